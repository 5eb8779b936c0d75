"""The command line's options, each written once; those of `FusionSettings` are added to a command by a decorator."""

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from ddfm.errors import InputError
from ddfm.runs.reading import Reading
from ddfm.settings import FusionSettings

PANELS = INPUT, METHOD, OUTPUT, PERFORMANCE = "Input", "Method", "Output", "Performance"


def option(help: str, panel: str, *names: str, **more: Any) -> Any:
    """`typer.Option` in a panel of the help."""
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


Output = Annotated[Path, option("Where the result goes.", OUTPUT, "--output", "-o")]
Overwrite = Annotated[
    bool, option("Replace files that this command did not make; never a source.", OUTPUT, "--overwrite")
]
Depth = Annotated[str, option("Bits per channel: same (as the deepest source), 8 or 16.", OUTPUT)]
Quiet = Annotated[bool, option("Print nothing but errors.", OUTPUT, "--quiet", "-q")]
Verbose = Annotated[bool, option("Also print the settings, the prior and the device.", OUTPUT, "--verbose", "-v")]
JsonObject = Annotated[bool, option("Print one JSON object on standard output, for machines.", OUTPUT, "--json")]
Prior = Annotated[str, option("embedded, openai-256, a .pt file, a diffusers folder or a hub id.", METHOD)]
Device = Annotated[str | None, option("cpu, cuda, ...; by default CUDA where there is one.", PERFORMANCE)]

Frame = Annotated[
    str,
    option(
        "Whose grid the result has: first, second, a number from 1, or auto (the image with most pixels, the first "
        "volume).",
        INPUT,
    ),
]
Palette = Annotated[
    str | None,
    option("Show the thermal as colour over the result: ironbow, inferno, plasma, hot or turbo.", OUTPUT),
]
Blend = Annotated[float | None, option("How much of the palette, 0 to 1. (Default: 0.5.)", OUTPUT)]
Anonymise = Annotated[
    bool,
    option("Remove what identifies the patient from the result's header; of images EXIF.", OUTPUT, "--anonymise"),
]

# The options of FusionSettings: field -> (names, help, panel)
SETTINGS: dict[str, tuple[tuple[str, ...], str, str]] = {
    "likelihood": (("--likelihood",), "salient (ours), paper (as printed) or released (the authors' code).", METHOD),
    "sampler": (("--sampler",), "ddim, ddpm (ancestral) or dpm++ (second order). (Default: ddim.)", METHOD),
    "num_inference_steps": (("--steps",), "Reverse steps. (Default: the likelihood's own.)", METHOD),
    "strength": (("--strength",), "Share of the noise schedule, in (0, 1]. (Default: the likelihood's own.)", METHOD),
    "num_samples": (("--samples",), "Samples of the posterior to average.", METHOD),
    "seed": (("--seed",), "Of the noise; the same seed gives the same image.", METHOD),
    "contrast": (("--contrast",), "natural, strong, or minmax (stretched to the full range).", OUTPUT),
    "colour": (("--colour", "--color"), "Whose colour the result has: auto, grey, first or second.", OUTPUT),
    "roles": (("--roles",), 'What each source is, in order: "thermal visible". (Default: all alike.)', INPUT),
    "precision": (("--precision",), "auto, float32 (the same on every machine) or bfloat16 (faster).", PERFORMANCE),
    "tile": (("--tile",), "Tiles of large images: auto (by the free memory), none, or pixels a side.", PERFORMANCE),
    "tile_overlap": (("--overlap",), "Pixels that neighbouring tiles share.", PERFORMANCE),
}


@dataclass(frozen=True)
class _Reading:
    """The options of `Reading`, each as it is typed."""

    align: Annotated[
        str | None,
        option(
            "auto (estimate where the others lie), dense (and refine it locally, for parallax), force (even if unsure) "
            "or skip (take all as one field of view). (Default: auto for images of different sizes.)",
            INPUT,
        ),
    ] = None
    assume_aligned: Annotated[
        bool,
        option("All show the same field of view: resize, estimate nothing (--align skip).", INPUT, "--assume-aligned"),
    ] = False
    rig: Annotated[
        Path | None, option("A calibration that `ddfm register --save` wrote, instead of estimating.", INPUT)
    ] = None
    frame: Frame = "auto"
    crop: Annotated[bool, option("Keep only what all sources cover.", INPUT, "--crop")] = False
    normalise: Annotated[bool, option("Stretch raw counts (14 bit thermal) robustly.", INPUT, "--normalise")] = False
    value_range: Annotated[
        str | None,
        option('"LOW HIGH" in the unit of the files (counts, degrees) that become black and white.', INPUT, "--range"),
    ] = None
    window: Annotated[
        str | None, option('Of CT, in Hounsfield units: brain, bone, lung, soft-tissue or "LOW HIGH".', INPUT)
    ] = None
    rigid: Annotated[
        bool, option("Register volumes rigidly, beyond their own world coordinates.", INPUT, "--rigid")
    ] = False
    allow_different_patients: Annotated[
        bool, option("Fuse volumes of different patients.", INPUT, "--allow-different-patients")
    ] = False


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameter `settings` becomes one option for each field of `FusionSettings`."""
    defaults = FusionSettings().as_dict()
    added = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None if defaults[name] is None else str(defaults[name]),
            annotation=Annotated[str | None, option(help, panel, *names, metavar="TEXT", show_default=True)],
        )
        for name, (names, help, panel) in SETTINGS.items()
    ]

    def settings(values: dict[str, Any]) -> FusionSettings:
        return settings_from({name: text for name, text in values.items() if text is not None})

    return with_options(command, "settings", added, settings)


def with_reading(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameter `reading` becomes the options of how sources are read."""
    return with_options(command, "reading", options_of(_Reading), _reading_from)


def options_of(fields: type) -> list[inspect.Parameter]:
    """A parameter for each field of a dataclass, whose types are annotated with options."""
    types = get_type_hints(fields, include_extras=True)
    return [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=types[field.name]
        )
        for field in dataclasses.fields(fields)
    ]


def with_options(
    command: Callable[..., None],
    parameter: str,
    options: list[inspect.Parameter],
    make: Callable[[dict[str, Any]], Any],
) -> Callable[..., None]:
    """The command with `options` in place of `parameter`, which it is called with: what `make` makes of them."""
    signature = inspect.signature(command)
    names = [option.name for option in options]
    own = [own for name, own in signature.parameters.items() if name != parameter]
    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in sorted([*own, *options], key=_panel)]

    @functools.wraps(command)
    def run(*args: Any, **values: Any) -> None:
        made = make({name: values.pop(name) for name in names})
        command(*args, **{parameter: made}, **values)

    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _panel(parameter: inspect.Parameter) -> int:
    """Where its panel comes in the help; arguments first."""
    panels = [getattr(info, "rich_help_panel", None) for info in getattr(parameter.annotation, "__metadata__", ())]
    panel = panels[0] if panels else None
    return 0 if panel is None else 1 + PANELS.index(panel) if panel in PANELS else 1 + len(PANELS)


def _reading_from(values: dict[str, Any]) -> Reading:
    """Raises InputError."""
    rig, assume = values.pop("rig"), values.pop("assume_aligned")
    if assume and values["align"] not in (None, "skip"):
        raise InputError(f"--assume-aligned estimates nothing and --align {values['align']} does; drop one of them.")
    if assume and rig:
        raise InputError("--assume-aligned takes all as one field of view and --rig does not; drop one of them.")
    texts = {name: str(value) for name, value in values.items() if value is not None}
    with naming({"value_range": "--range"}):
        reading = Reading.from_strings(texts | ({"align": "skip"} if assume else {}))
    return dataclasses.replace(reading, rig=rig)


@contextlib.contextmanager
def naming(options: dict[str, str]) -> Iterator[None]:
    """Errors whose sentence begins with a field's name begin with its option instead."""
    try:
        yield
    except InputError as error:
        field, _, rest = str(error).partition(" ")
        known = field.isidentifier() and field == field.lower()
        raise InputError(f"{options.get(field, '--' + field)} {rest}" if known else str(error)) from error


def settings_from(texts: dict[str, str]) -> FusionSettings:
    """`FusionSettings.from_strings`, whose sentences name options instead of fields."""
    with naming({name: names[0] for name, (names, _, _) in SETTINGS.items()}):
        return FusionSettings.from_strings(texts)


def depth_from(text: str) -> Any:
    """ "same", 8 or 16. Raises InputError."""
    if text not in ("same", "8", "16"):
        raise InputError(f"--depth is same, 8 or 16, not {text}.")
    return text if text == "same" else int(text)
