"""How a scene's files are read: one frozen dataclass shared by Python, command line, batch and cluster."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from ddfm.errors import InputError

if TYPE_CHECKING:
    from ddfm.io.images import Range
    from ddfm.io.volume import Window
    from ddfm.registration import Align, Registration


@dataclass(frozen=True)
class Reading:
    """All options for reading a scene.

    Text is accepted as on the command line: `Reading(frame="first", value_range="20 40")`; see `from_strings`.

    Attributes:
        normalise: Percentile-stretch raw counts, as in `images.read`; for a volume over all slices.
        align, rig, crop: Images are brought into the frame of `sources[frame]`, by default the one with the most
            pixels, see `registration.to_frame`. By default, images of equal size are assumed to be aligned. align: True
            is "auto", False None. rig: also the name of a rig file; align must then be None or "dense", which refines
            it.
        value_range: The values, in the files' unit, that become 0 and 1, as in `images.read`; not applied to photos, to
            CT sources with a window, and to files without values in it.
        frame, rigid: DICOM and NIfTI sources are resampled to the grid of `sources[frame]`, by default the first, by
            their world coordinates or after a rigid registration, see `registration.volumes.to_frame`.
        window: For CT sources, "brain", "bone", "lung", "soft-tissue" or (low, high) in Hounsfield units.
        allow_different_patients: Fuse volumes whose files name different patients.
    """

    normalise: bool = False
    align: Align | None = None
    value_range: Range | None = None
    frame: int | None = None
    rig: Registration | None = None
    crop: bool = False
    window: Window | None = None
    rigid: bool = False
    allow_different_patients: bool = False

    def __post_init__(self) -> None:
        """Raise InputError for invalid values; the sentence begins with the field's name."""
        for name, parsed in _PARSERS.items():
            if isinstance(value := getattr(self, name), str):
                object.__setattr__(self, name, parsed(value[:80]))
        if isinstance(self.align, bool):
            object.__setattr__(self, "align", "auto" if self.align else None)
        if self.frame is not None and not hasattr(self.frame, "__index__"):
            raise InputError(f"frame must be the number of a source from 0, or text, not {self.frame!r}.")
        if self.value_range is not None and not (hasattr(self.value_range, "__len__") and len(self.value_range) == 2):
            raise InputError(f"value_range must be two numbers, not {self.value_range!r}.")
        if isinstance(self.rig, (str, os.PathLike)):
            from ddfm.registration import Registration  # late, like all heavy imports

            object.__setattr__(self, "rig", Registration.load(self.rig))
        if self.rig is not None and self.align not in (None, "dense"):
            raise InputError(
                f"A rig file already aligns the sources, and so does align={self.align}: drop one of them; "
                "align=dense refines a rig file."
            )

    @classmethod
    def from_strings(cls, fields: Mapping[str, str]) -> Reading:
        """From text, as in a form or on the command line: {"align": "force", "frame": "2"}; "" is the default.

        A frame is "first", "second" or a number from 1; a range or window is two numbers; a rig is a file name.

        Raises:
            InputError: text that is not valid for its field; the sentence begins with the field's name.
        """
        return cls(**{name: text for name, text in fields.items() if text != ""})  # type: ignore[arg-type]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, by name."""
        return {name: getattr(self, name) for name in FIELDS} | {"rig": self.rig and self.rig.as_dict()}


FIELDS = tuple(field.name for field in dataclasses.fields(Reading))


def with_changes(reading: Reading | None, changes: Mapping[str, Any]) -> tuple[Reading, dict[str, Any]]:
    """The reading (None: the defaults) with the `changes` to its fields applied, and the remaining changes."""
    own = {name: value for name, value in changes.items() if name in FIELDS}
    return dataclasses.replace(reading or Reading(), **own), {n: v for n, v in changes.items() if n not in own}


def _align(text: str) -> Any:
    from ddfm.registration import Align  # late: imported only to align

    *words, last = get_args(Align)
    if text not in (*words, last):
        raise InputError(f"align must be {', '.join(words)} or {last}, not {text}.")
    return text


def _frame(text: str) -> int | None:
    words = {"auto": None, "first": 0, "second": 1}
    if text in words:
        return words[text]
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:3]) <= 99):
        raise InputError(f"frame must be auto, first, second or the number of a source from 1, not {text}.")
    return int(text[:3]) - 1


def _range(text: str) -> tuple[float, float]:
    try:
        low, high = (float(word) for word in text.replace(",", " ").split())
    except ValueError as error:
        raise InputError(f'value_range must be two numbers, "LOW HIGH", not {text}.') from error
    return low, high


def _window(text: str) -> Any:
    if not any(character.isdigit() for character in text):
        return text  # a name
    try:
        return _range(text)
    except InputError as error:
        raise InputError(f'window must be brain, bone, lung, soft-tissue or "LOW HIGH", not {text}.') from error


def _flag(name: str) -> Callable[[str], bool]:
    def parsed(text: str) -> bool:
        if text.lower() not in ("true", "false", "1", "0", "on", "off"):
            raise InputError(f"{name} must be true or false, not {text!r}.")
        return text.lower() in ("true", "1", "on")

    return parsed


_PARSERS: dict[str, Callable[[str], Any]] = {
    "align": _align,
    "frame": _frame,
    "value_range": _range,
    "window": _window,
    **{name: _flag(name) for name in ("crop", "normalise", "rigid", "allow_different_patients")},
}
