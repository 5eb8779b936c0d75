"""Draw the synthetic scenes that `ddfm demo` fuses, with known ground truth: python examples/draw_scenes.py FOLDER."""

import sys
from pathlib import Path

import cv2
from head import head_phantom
from street import night_street


def main() -> None:
    """Write every scene's two images as PNG."""
    folder = Path(sys.argv[1])
    scenes = {"night_street": (("infrared", "visible"), night_street())}
    scenes |= {f"head_{kind}": (("mri", kind), head_phantom(kind=kind)) for kind in ("pet", "spect", "ct")}
    for scene, (names, drawn) in scenes.items():
        for name, image in zip(names, drawn, strict=True):
            bgr = image[..., ::-1] if image.ndim == 3 else image
            cv2.imwrite(str(folder / f"{scene}_{name}.png"), bgr, [cv2.IMWRITE_PNG_COMPRESSION, 9])


if __name__ == "__main__":
    main()
