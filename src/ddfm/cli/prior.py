"""The commands `prior info`, `pull`, `export` and `train`."""

from pathlib import Path
from typing import Annotated

import typer

from ddfm.cli.console import out, say
from ddfm.cli.options import Device, Overwrite

app = typer.Typer(help="Describe, download, export or train the image prior.", no_args_is_help=True)


@app.command("info")
def prior_info(source: Annotated[str, typer.Argument(help="Same choices as fuse --prior.")] = "embedded") -> None:
    """Show a prior's parameters, channels, prediction type, and model card if it has one."""
    from ddfm.prior.load import EMBEDDED, image_channels, load_prior, size_multiple

    prior = load_prior(source)
    parameters = sum(p.numel() for p in prior.unet.parameters())
    say(f"{source}: {type(prior.unet).__name__}, {parameters:,} parameters")
    say(
        f"channels {image_channels(prior.unet)}, any size (padded to multiples of {size_multiple(prior.unet)}), "
        f"predicts {prior.scheduler.config['prediction_type']}, {len(prior.scheduler.betas)} steps"
    )
    card = EMBEDDED / "MODEL_CARD.md"
    if source == "embedded" and card.exists():
        from rich.markdown import Markdown

        out.print(Markdown(card.read_text(encoding="utf-8")))


@app.command("pull")
def prior_pull(
    name: Annotated[str, typer.Argument(help="openai-256: the paper's prior (2.2 GB).")] = "openai-256",
) -> None:
    """Download a published prior to the local cache, resuming if interrupted; verify and convert it."""
    from ddfm.prior.download import pull

    say(pull(name))


@app.command("export")
def prior_export(
    onnx: Annotated[Path, typer.Option("--onnx", help="ONNX file to write.")],
    source: Annotated[str, typer.Argument(help="Same choices as fuse --prior.")] = "embedded",
    overwrite: Overwrite = False,
) -> None:
    r"""Write a prior's network as ONNX, for images of any size (needs `pip install ddfm\[onnx]`).

    Example: ddfm prior export --onnx prior.onnx
    """
    from ddfm.io.outputs import Outputs
    from ddfm.prior.export import export_onnx
    from ddfm.prior.load import load_prior

    Outputs([source, *(Path(source) / part for part in ("unet", "scheduler"))], overwrite).claim(onnx)
    say(export_onnx(load_prior(source, "cpu"), onnx))


@app.command("train")
def prior_train(
    data: Annotated[Path, typer.Argument(help="Folder of folders of images.")],
    run: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run; resumed if it exists.")],
    steps: Annotated[int, typer.Option(help="Total number of optimiser steps.")] = 8000,
    initial: Annotated[str | None, typer.Option(help="Prior with the same architecture to start from.")] = None,
    device: Device = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; 1 is best on a busy machine.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Train the embedded prior, or resume a run.

    Example: ddfm prior train PHOTOS -o runs/first
    """
    import torch

    from ddfm.prior import usable_device
    from ddfm.prior.train import TrainingConfig, train

    if threads:
        torch.set_num_threads(threads)
    config, found = TrainingConfig(steps=steps), str(usable_device(device))
    say(train(data, run, config, initial=initial, device=found, overwrite=overwrite))
