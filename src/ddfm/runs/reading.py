"""How a scene's files become its sources: one frozen dataclass that Python, command line, batch and cluster share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddfm.io.images import Range
    from ddfm.io.volume import Window
    from ddfm.registration import Align, Registration


@dataclass(frozen=True)
class Reading:
    """Everything about reading a scene but its files.

    Attributes:
        normalise: Stretch raw counts robustly, as in `images.read`; of a volume over all slices.
        align, rig, crop: Images are brought into the frame of `sources[frame]`, by default the one with most pixels,
            see `registration.to_frame`. Images of one size are taken as aligned unless asked. align: True is "auto".
        value_range: The values, in the files' own unit, that become 0 and 1, as in `images.read`.
        frame, rigid: DICOM and NIfTI sources are resampled into the grid of `sources[frame]`, by default the first, by
            their own world coordinates or after a rigid registration, see `registration.volumes.to_frame`.
        window: Of CT sources, "brain", "bone", "lung", "soft-tissue" or (low, high) in Hounsfield units.
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
        """True and False are "auto" and None."""
        if isinstance(self.align, bool):
            object.__setattr__(self, "align", "auto" if self.align else None)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, by name."""
        return {name: getattr(self, name) for name in FIELDS} | {"rig": self.rig and self.rig.as_dict()}


FIELDS = tuple(field.name for field in dataclasses.fields(Reading))


def with_changes(reading: Reading | None, changes: Mapping[str, Any]) -> tuple[Reading, dict[str, Any]]:
    """The reading, or the defaults, with those of `changes` that are fields of it; and the other changes."""
    own = {name: value for name, value in changes.items() if name in FIELDS}
    return dataclasses.replace(reading or Reading(), **own), {n: v for n, v in changes.items() if n not in own}
