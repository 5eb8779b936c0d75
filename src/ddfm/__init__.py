"""DDFM: fuse registered images of several sensors by posterior sampling with a diffusion prior.

    from ddfm import fuse
    fused = fuse("infrared.png", "visible.png")        # float32 in [0, 1], in the colour of the visible image

The heavy libraries are imported when a name is first used, so that `import ddfm` is quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddfm.pipeline import DDFMPipeline, FusionOutput, fuse
    from ddfm.prior.load import load_prior

__version__ = "0.1.0"
__all__ = ["DDFMPipeline", "FusionOutput", "fuse", "load_prior"]

_HOME = {"fuse": "pipeline", "DDFMPipeline": "pipeline", "FusionOutput": "pipeline", "load_prior": "prior"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
