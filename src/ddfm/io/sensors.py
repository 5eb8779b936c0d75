"""Infers the sensor from a file's name: FLIR_0001_T, DJI_0001_W, street_ir, brain-PET, thermal/0001."""

from __future__ import annotations

import re

# In the order in which the sources of a scene are given.
WORDS = {
    "thermal": "ir tir lwir mwir thermal infrared therm",
    "near infrared": "nir",
    "short-wave infrared": "swir",
    "visible": "vi vis visible visual rgb eo wide color colour",
    "zoom": "zoom",
    "MR": "mr mri t1 t1w t2 t2w flair",
    "CT": "ct",
    "PET": "pet",
    "SPECT": "spect",
}
ORDER = tuple(WORDS)
_SENSOR = {word: sensor for sensor, words in WORDS.items() for word in words.split()}
# The letters of FLIR and DJI after a "_"; R is radiometric (DJI XT2, FLIR Duo Pro R)
_LETTERS = {"T": "thermal", "R": "thermal", "V": "visible", "W": "visible", "Z": "zoom"}
_LAST = re.compile(r"(?P<rest>.+)(?P<mark>[_\-. ])(?P<word>[A-Za-z0-9]+)", re.DOTALL)
_FIRST = re.compile(r"(?P<word>[A-Za-z0-9]{2,})[_\-. ](?P<rest>.+)", re.DOTALL)


def sensor_of(name: str) -> tuple[str, str | None]:
    """(the name without its sensor part, the sensor or None).

    Args:
        name: A path within a folder, with "/" and without extension. The sensor is taken from the end of the file's
            name, else from its beginning, else from the nearest folder; a folder that names the same sensor as the file
            is left out too.
    """
    *folders, last = name.split("/")
    rest, sensor = _in_name(last)
    for k in reversed(range(len(folders))):
        told = _SENSOR.get(folders[k].lower())
        if told is not None and sensor in (None, told):
            return "/".join([*folders[:k], *folders[k + 1 :], *([rest] if rest else [])]), told
        if told is not None:
            break
    return "/".join([*folders, *([rest] if rest else [])]), sensor


def counterpart(sensor: str) -> str | None:
    """The likely sensor of a file without a sensor in its name, next to one of this sensor."""
    return {"thermal": "visible", "visible": "thermal", "zoom": "thermal"}.get(sensor)


def _in_name(name: str) -> tuple[str, str | None]:
    if sensor := _SENSOR.get(name.lower()):  # patient 3/PET.nii
        return "", sensor
    if match := _LAST.fullmatch(name):
        sensor = _SENSOR.get(match["word"].lower()) or (_LETTERS.get(match["word"]) if match["mark"] == "_" else None)
        if sensor:
            return match["rest"], sensor
    if (match := _FIRST.fullmatch(name)) and (sensor := _SENSOR.get(match["word"].lower())):
        return match["rest"], sensor
    return name, None
