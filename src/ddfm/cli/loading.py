"""The prior and one fusion with it, with what they show on the terminal."""

from typing import TYPE_CHECKING, Any

from ddfm.cli.console import err, reported
from ddfm.settings import FusionSettings

if TYPE_CHECKING:
    from ddfm.pipeline import DDFMPipeline
    from ddfm.runs.scene import Scene


def pipeline(prior: str, device: str | None) -> "DDFMPipeline":
    """`quiet_pipeline`, with a line while it loads."""
    with err.status("loading the prior"):
        from ddfm.pipeline import quiet_pipeline

        return quiet_pipeline(prior, device)


def run(pipe: "DDFMPipeline", scene: "Scene", settings: FusionSettings, label: str) -> Any:
    """One fusion with its progress, tile by tile, over evaluations of the network or slices; the result."""
    with reported(label) as progress:
        return scene.fuse(pipe, settings, progress)
