"""The fields of a form: how to read the sources, how to fuse them, and how to show the result."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

from ddfm.errors import InputError
from ddfm.palettes import PALETTES
from ddfm.runs.reading import FIELDS, Reading
from ddfm.settings import FusionSettings

READING = tuple(name for name in FIELDS if name != "rig")  # the rig file would be a path on the server
SHOWING = ("palette", "blend")
PALETTE_NAMES = ("none", *PALETTES)


@dataclass(frozen=True)
class Overlay:
    """A thermal source overlaid in colour on the result, see `Scene.overlaid`.

    Attributes:
        palette: One of `PALETTES`, or None for the result alone.
        blend: Opacity of the palette, 0 to 1.
    """

    palette: str | None = None
    blend: float = 0.5

    @classmethod
    def of(cls, palette: str, blend: str) -> Overlay:
        """An overlay from text, where "" means the default. Raises InputError."""
        if palette not in ("", *PALETTE_NAMES):
            raise InputError(f"palette must be one of {', '.join(PALETTE_NAMES)}, not {palette[:80]!r}.")
        try:
            share = float(blend or cls.blend)
        except ValueError:
            share = math.nan
        if not 0 <= share <= 1:
            raise InputError(f"blend must be between 0 and 1, not {blend[:80]!r}.")
        return cls(None if palette in ("", "none") else palette, share)


PLAIN = Overlay()


@dataclass(frozen=True)
class Asked:
    """The parsed values of a form, without its sources."""

    reading: Reading
    settings: FusionSettings
    overlay: Overlay


def asked(fields: Mapping[str, str]) -> Asked:
    """The parsed fields; a missing or empty one has its default. Raises InputError."""
    reading = Reading.from_strings({name: fields[name] for name in READING if name in fields})
    overlay = Overlay.of(*(fields.get(name, "") for name in SHOWING))
    others = {name: text for name, text in fields.items() if name not in (*READING, *SHOWING)}
    settings = {field.name for field in dataclasses.fields(FusionSettings)}
    if unknown := sorted(set(others) - settings):
        known = ", ".join(sorted(settings.union(READING, SHOWING)))
        raise InputError(f"{unknown[0][:80]!r} is not a field of this form; its fields are sources, {known}.")
    return Asked(reading, FusionSettings.from_strings(others), overlay)
