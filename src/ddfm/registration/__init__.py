"""One frame for all sources: estimates where one image lies in another, and resamples it there."""

from ddfm.registration.estimate import register
from ddfm.registration.frame import Align, Framed, frame_of, registered, to_frame, with_frame_beyond
from ddfm.registration.transform import Registration, from_matrix, identity, resize

__all__ = [
    "Align",
    "Framed",
    "Registration",
    "frame_of",
    "from_matrix",
    "identity",
    "register",
    "registered",
    "resize",
    "to_frame",
    "with_frame_beyond",
]
