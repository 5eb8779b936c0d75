"""The fields of a form: how its sources are read, how they are fused, and how the result is shown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ddfm.errors import InputError
from ddfm.palettes import PALETTES
from ddfm.runs.reading import Reading
from ddfm.settings import FusionSettings

ALIGN = ("auto", "force", "skip")
FRAMES = {"auto": None, "first": 0, "second": 1} | {str(k): k - 1 for k in range(3, 9)}
READING = ("align", "frame", "normalise", "crop", "rigid", "allow_different_patients", "value_range", "window")
SHOWING = ("palette", "blend")
PALETTE_NAMES = ("none", *PALETTES)


@dataclass(frozen=True)
class Overlay:
    """A thermal source as colours over the result, see `Scene.overlaid`.

    Attributes:
        palette: One of `PALETTES`, or None for the result alone.
        blend: How much of it, 0 to 1.
    """

    palette: str | None = None
    blend: float = 0.5

    @classmethod
    def of(cls, palette: str, blend: str) -> Overlay:
        """From text, where "" is the default. Raises InputError."""
        name = _choice("palette", palette, {name: name for name in PALETTE_NAMES})
        [share] = _numbers("blend", blend or "0.5", 1)
        if not 0 <= share <= 1:
            raise InputError(f"blend is between 0 and 1, not {blend[:80]!r}.")
        return cls(None if name == "none" else name, share)


PLAIN = Overlay()


@dataclass(frozen=True)
class Asked:
    """What a form asks for besides its sources."""

    reading: Reading
    settings: FusionSettings
    overlay: Overlay


def asked(fields: Mapping[str, str]) -> Asked:
    """The fields as values; one that is missing or empty has its default. Raises InputError."""
    texts = {name: fields.get(name, "") for name in (*READING, *SHOWING)}
    reading = Reading(
        align=_choice("align", texts["align"], {name: name for name in ALIGN}),
        frame=_choice("frame", texts["frame"], FRAMES),
        value_range=_range("value_range", texts["value_range"]),
        window=_window(texts["window"]),
        normalise=_flag("normalise", texts["normalise"]),
        crop=_flag("crop", texts["crop"]),
        rigid=_flag("rigid", texts["rigid"]),
        allow_different_patients=_flag("allow_different_patients", texts["allow_different_patients"]),
    )
    settings = FusionSettings.from_strings({name: text for name, text in fields.items() if name not in texts})
    return Asked(reading, settings, Overlay.of(texts["palette"], texts["blend"]))


def _choice(name: str, text: str, values: Mapping[str, Any]) -> Any:
    if text and text not in values:
        raise InputError(f"{name} is one of {', '.join(values)}, not {text[:80]!r}.")
    return values[text] if text else None


def _flag(name: str, text: str) -> bool:
    if text.lower() not in ("", "true", "false", "1", "0", "on", "off"):
        raise InputError(f"{name} is true or false, not {text[:80]!r}.")
    return text.lower() in ("true", "1", "on")


def _range(name: str, text: str) -> Any:
    return _numbers(name, text, 2) if text else None


def _window(text: str) -> Any:
    """A window's name, or two numbers."""
    return _range("window", text) if any(character.isdigit() for character in text) else text or None


def _numbers(name: str, text: str, count: int) -> tuple[float, ...]:
    try:
        values = tuple(float(word) for word in text.replace(",", " ").split())
    except ValueError:
        values = ()
    if len(values) != count or not all(map(math.isfinite, values)):
        what = "a number" if count == 1 else '"LOW HIGH", two numbers'
        raise InputError(f"{name} is {what}, not {text[:80]!r}.")
    return values
