"""Loads the prior and runs one fusion, showing status and progress on the terminal."""

from typing import TYPE_CHECKING, Any

from ddfm.cli.console import err, reported
from ddfm.settings import FusionSettings

if TYPE_CHECKING:
    from ddfm.pipeline import DDFMPipeline
    from ddfm.runs.scene import Scene


def pipeline(prior: str, device: str | None) -> "DDFMPipeline":
    """`quiet_pipeline`, with a status line while it loads."""
    with err.status("loading the prior"):
        from ddfm.pipeline import quiet_pipeline

        return quiet_pipeline(prior, device)


def run(pipe: "DDFMPipeline", scene: "Scene", settings: FusionSettings, label: str) -> Any:
    """The result of one fusion, showing progress in network evaluations (tile by tile) or slices."""
    with reported(label) as progress:
        return scene.fuse(pipe, settings, progress)
