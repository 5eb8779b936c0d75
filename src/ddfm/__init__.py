"""DDFM: fuse registered images from several sensors by posterior sampling with a diffusion prior.

    from ddfm import fuse
    fused = fuse("infrared.png", "visible.png")        # float32 in [0, 1], in the colour of the visible image

Heavy libraries are imported only when a name is first used, so `import ddfm` is fast.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddfm.errors import InputError
    from ddfm.likelihoods import Paper, Released, Salient
    from ddfm.pipeline import DDFMPipeline, FusionOutput, fuse
    from ddfm.prior import Denoiser, load_prior
    from ddfm.runs.scene import Scene
    from ddfm.settings import FusionSettings

__version__ = "0.2.0"

_HOME = {
    "DDFMPipeline": "pipeline",
    "Denoiser": "prior",
    "FusionOutput": "pipeline",
    "FusionSettings": "settings",
    "InputError": "errors",
    "Paper": "likelihoods",
    "Released": "likelihoods",
    "Salient": "likelihoods",
    "Scene": "runs.scene",
    "fuse": "pipeline",
    "load_prior": "prior",
}
__all__ = [
    "DDFMPipeline",
    "Denoiser",
    "FusionOutput",
    "FusionSettings",
    "InputError",
    "Paper",
    "Released",
    "Salient",
    "Scene",
    "fuse",
    "load_prior",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
