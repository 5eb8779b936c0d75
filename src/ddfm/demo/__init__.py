"""The scenes that `ddfm demo` fuses, rendered once and bundled; the code that drew them is in `examples/`."""

from ddfm.demo.panels import side_by_side
from ddfm.demo.scenes import SCENES, save_scenes

__all__ = ["SCENES", "save_scenes", "side_by_side"]
