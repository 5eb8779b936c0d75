"""The command-line options, each defined once; a decorator adds those of `FusionSettings` to a command."""

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
    """`typer.Option` in a help panel."""
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


Output = Annotated[Path, option("File for the result.", OUTPUT, "--output", "-o")]
Overwrite = Annotated[bool, option("Replace existing files, but never a source.", OUTPUT, "--overwrite")]
Depth = Annotated[str, option("Bits per channel: same (as the deepest source), 8 or 16.", OUTPUT)]
Quiet = Annotated[bool, option("Print only errors.", OUTPUT, "--quiet", "-q")]
Verbose = Annotated[bool, option("Also print the settings, the prior and the device.", OUTPUT, "--verbose", "-v")]
JsonObject = Annotated[bool, option("Print one JSON object to standard output.", OUTPUT, "--json")]
Prior = Annotated[str, option("embedded, openai-256, a .pt file, a diffusers folder or a hub id.", METHOD)]
Device = Annotated[str | None, option("cpu, cuda, ... (Default: CUDA if available.)", PERFORMANCE)]

Frame = Annotated[
    str,
    option(
        "The source whose grid the result has: first, second, a number from 1, or auto (the image with the most pixels "
        "or the first volume).",
        INPUT,
    ),
]
Palette = Annotated[
    str | None,
    option("Overlay the thermal image in colour: ironbow, inferno, plasma, hot or turbo.", OUTPUT),
]
Blend = Annotated[float | None, option("Opacity of the palette, 0 to 1. (Default: 0.5.)", OUTPUT)]
Anonymise = Annotated[
    bool,
    option("Remove patient identification from the result's header, and EXIF from images.", OUTPUT, "--anonymise"),
]

# The options of FusionSettings: field -> (names, help, panel)
SETTINGS: dict[str, tuple[tuple[str, ...], str, str]] = {
    "likelihood": (("--likelihood",), "salient (ours), paper (as published) or released (the authors' code).", METHOD),
    "sampler": (("--sampler",), "ddim, ddpm (ancestral) or dpm++ (second order). (Default: ddim.)", METHOD),
    "num_inference_steps": (("--steps",), "Number of reverse steps. (Default: the likelihood's.)", METHOD),
    "strength": (("--strength",), "Fraction of the noise schedule, in (0, 1]. (Default: the likelihood's.)", METHOD),
    "num_samples": (("--samples",), "Number of posterior samples to average.", METHOD),
    "seed": (("--seed",), "Noise seed; the same seed gives the same image.", METHOD),
    "contrast": (("--contrast",), "natural, strong, or minmax (stretched to the full range).", OUTPUT),
    "colour": (("--colour", "--color"), "Whose colour to use: auto (all sources), grey, first or second.", OUTPUT),
    "roles": (("--roles",), 'Role of each source, in order: "thermal visible". (Default: all alike.)', INPUT),
    "precision": (("--precision",), "auto, float32 (the same on every machine) or bfloat16 (faster).", PERFORMANCE),
    "tile": (("--tile",), "Tile size for large images: auto (by free memory), none, or pixels a side.", PERFORMANCE),
    "tile_overlap": (("--overlap",), "Pixels that neighbouring tiles share.", PERFORMANCE),
}


@dataclass(frozen=True)
class _Reading:
    """The options of `Reading`, with the types they have on the command line."""

    align: Annotated[
        str | None,
        option(
            "auto (register the other sources), dense (refine locally too, for parallax), force (even if unsure) or "
            "skip (all have the same field of view). (Default: auto for images of different sizes.)",
            INPUT,
        ),
    ] = None
    assume_aligned: Annotated[
        bool,
        option("Resize only, because all have the same field of view (--align skip).", INPUT, "--assume-aligned"),
    ] = False
    rig: Annotated[
        Path | None, option("Use a calibration from `ddfm register --save` instead of registering.", INPUT)
    ] = None
    frame: Frame = "auto"
    crop: Annotated[bool, option("Crop to the area that all sources cover.", INPUT, "--crop")] = False
    normalise: Annotated[bool, option("Percentile-stretch raw counts (14-bit thermal).", INPUT, "--normalise")] = False
    value_range: Annotated[
        str | None,
        option('Values for black and white, "LOW HIGH", in the unit of the files (counts, degrees).', INPUT, "--range"),
    ] = None
    window: Annotated[
        str | None, option('CT window: brain, bone, lung, soft-tissue or "LOW HIGH" in Hounsfield units.', INPUT)
    ] = None
    rigid: Annotated[
        bool, option("Refine the world coordinates of volumes by rigid registration.", INPUT, "--rigid")
    ] = False
    allow_different_patients: Annotated[
        bool, option("Fuse volumes of different patients.", INPUT, "--allow-different-patients")
    ] = False


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """The command with its parameter `settings` replaced by one option per field of `FusionSettings`."""
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
    """The command with its parameter `reading` replaced by the options for reading sources."""
    return with_options(command, "reading", options_of(_Reading), _reading_from)


def options_of(fields: type) -> list[inspect.Parameter]:
    """One parameter per field of a dataclass whose types are annotated with options."""
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
    """The command with `options` in place of `parameter`; it is called with what `make` builds from their values."""
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
    """The position of its panel in the help; arguments come first."""
    panels = [getattr(info, "rich_help_panel", None) for info in getattr(parameter.annotation, "__metadata__", ())]
    panel = panels[0] if panels else None
    return 0 if panel is None else 1 + PANELS.index(panel) if panel in PANELS else 1 + len(PANELS)


def _reading_from(values: dict[str, Any]) -> Reading:
    """Raises InputError."""
    rig, assume = values.pop("rig"), values.pop("assume_aligned")
    if assume and values["align"] not in (None, "skip"):
        raise InputError(f"--assume-aligned does not register but --align {values['align']} does; drop one of them.")
    if assume and rig:
        raise InputError("--assume-aligned ignores a calibration but --rig gives one; drop one of them.")
    texts = {name: str(value) for name, value in values.items() if value is not None}
    with naming({"value_range": "--range"}):
        reading = Reading.from_strings(texts | ({"align": "skip"} if assume else {}))
    return dataclasses.replace(reading, rig=rig)


@contextlib.contextmanager
def naming(options: dict[str, str]) -> Iterator[None]:
    """In errors that begin with a field name, replaces it with the option's name."""
    try:
        yield
    except InputError as error:
        field, _, rest = str(error).partition(" ")
        known = field.isidentifier() and field == field.lower()
        raise InputError(f"{options.get(field, '--' + field)} {rest}" if known else str(error)) from error


def settings_from(texts: dict[str, str]) -> FusionSettings:
    """`FusionSettings.from_strings`, with option names in its errors instead of field names."""
    with naming({name: names[0] for name, (names, _, _) in SETTINGS.items()}):
        return FusionSettings.from_strings(texts)


def depth_from(text: str) -> Any:
    """ "same", 8 or 16. Raises InputError."""
    if text not in ("same", "8", "16"):
        raise InputError(f"--depth must be same, 8 or 16, not {text}.")
    return text if text == "same" else int(text)
