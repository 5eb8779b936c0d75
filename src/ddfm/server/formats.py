"""The file formats in which a result is available, by media type."""

from __future__ import annotations

from ddfm.colour import lends_colour
from ddfm.runs.scene import Scene
from ddfm.server.problems import Problem

IMAGES = {"image/png": ".png", "image/tiff": ".tif", "image/jpeg": ".jpg", "image/bmp": ".bmp"}
VOLUMES = {"application/x-nifti": ".nii.gz", "application/dicom": ".dcm"}
FORMATS = IMAGES | VOLUMES


def negotiate(accept: str, scene: Scene, colour: str, palette: str | None = None) -> str:
    """The media type, of those possible for this scene's result, that the Accept header ranks highest.

    Raises Problem 406, listing the possible ones.
    """
    kinds = possible(scene, colour, palette)
    ranked = sorted(_ranges(accept), key=lambda item: -item[1])  # stable: the first of equals wins
    for pattern, quality in ranked:
        for kind in kinds:
            if quality > 0 and pattern in ("*/*", kind, f"{kind.split('/')[0]}/*"):
                return kind
    *others, last = kinds
    names = f"{', '.join(others)} or {last}" if others else last
    raise Problem(406, f"The result can be {names}; ask for one of them in Accept.")


def possible(scene: Scene, colour: str, palette: str | None = None) -> list[str]:
    """The media types of FORMATS that are possible for this scene's result, preferred ones first."""
    return [kind for kind in FORMATS if _possible(scene, kind, colour, palette)]


def _possible(scene: Scene, kind: str, colour: str, palette: str | None) -> bool:
    """Whether the writers would accept a result of this kind, found out without writing it."""
    if kind in IMAGES:
        return not scene.is_volume
    from ddfm.io.medical import lends_geometry

    lends = lends_colour([s.pixels for s in scene.sources], colour)  # type: ignore[arg-type]
    coloured = not scene.is_volume and (palette is not None or bool(lends))
    return not coloured and any(lends_geometry(source, f"x{FORMATS[kind]}") for source in scene.sources)


def _ranges(accept: str) -> list[tuple[str, float]]:
    """The media ranges of an Accept header with their quality; an empty header means any."""
    found = []
    for part in accept.split(",")[:32]:
        pattern, *parameters = (text.strip().lower() for text in part.split(";"))
        quality = next((text[2:] for text in parameters if text.startswith("q=")), "1")
        try:
            found.append((pattern, float(quality)))
        except ValueError:
            found.append((pattern, 0.0))
    return [item for item in found if item[0]] or [("*/*", 1.0)]
