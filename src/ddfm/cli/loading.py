"""The prior and one fusion with it, with what they show on the terminal."""

from typing import TYPE_CHECKING, Any

from ddfm.cli.console import err, reported
from ddfm.settings import FusionSettings

if TYPE_CHECKING:
    from ddfm.pipeline import DDFMPipeline
    from ddfm.runs.scene import Scene


def pipeline(prior: str, device: str | None) -> "DDFMPipeline":
    """`DDFMPipeline.from_prior` without its own progress bar."""
    with err.status("loading the prior"):
        from ddfm.pipeline import DDFMPipeline

        pipe = DDFMPipeline.from_prior(prior, device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe: "DDFMPipeline", scene: "Scene", settings: FusionSettings, label: str) -> Any:
    """One fusion with its progress, tile by tile, over evaluations of the network or slices; the result."""
    with reported(label) as progress:
        return scene.fuse(pipe, settings, progress)
