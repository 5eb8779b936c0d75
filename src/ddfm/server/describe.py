"""The fusion form, described once for the page, for OpenAPI and for "Copy as command"."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

from ddfm.registration import Align
from ddfm.server.fields import PALETTE_NAMES
from ddfm.settings import CHOICES, FusionSettings

# name: (label, help), in the order of the page. Written for users; docstrings are for programmers.
_WORDS = {
    "align": ("Align", "Estimate the shift, rotation and scale between the images, and register them."),
    "normalise": ("Stretch raw counts", "Stretch dark 14- or 16-bit thermal counts to the full range."),
    "frame": ("Frame", "Whose grid the result has. Automatic: the image with the most pixels, or the first volume."),
    "crop": ("Crop", "Keep only the area that all images show."),
    "value_range": (
        "Black and white",
        "Two values, in the files' unit (such as degrees), to map to black and white.",
    ),
    "window": ("CT window", "brain, bone, lung, soft-tissue, or two numbers in Hounsfield units."),
    "rigid": ("Register volumes", "Register the DICOM or NIfTI volumes to the first by rotation and shift."),
    "allow_different_patients": ("Different patients", "Fuse even if the files name different patients."),
    "likelihood": (
        "Method",
        "Salient keeps what stands out in each source; the other two follow the DDFM paper and its code.",
    ),
    "contrast": ("Contrast", "Strong brings out local contrast; Full range stretches the result from black to white."),
    "colour": ("Colours", "Whose colours to use: those of all colour images, of none, or of one."),
    "num_samples": (
        "Samples",
        "With several, the result is their mean, with a map of its uncertainty; time grows in proportion.",
    ),
    "num_inference_steps": ("Steps", "Evaluations of the network; more take longer. Empty: the method's default."),
    "sampler": ("Sampler", "Automatic: the method's default."),
    "strength": (
        "Noise strength",
        "Fraction of the noise schedule, above 0 and up to 1; 1 starts from pure noise. Empty: the method's default.",
    ),
    "seed": ("Seed", "The same seed gives the same result."),
    "precision": ("Precision", "Automatic: bfloat16 where the hardware supports it, else float32."),
    "tile": ("Tile size", "Tile size for large images: pixels a side, auto or none."),
    "tile_overlap": ("Tile overlap", "Pixels that neighbouring tiles share."),
    "roles": (
        "Roles",
        "Role of each image, thermal or visible, in order: thermal,visible. Empty: all alike.",
    ),
    "palette": ("Palette", "Overlay the thermal image in colour on the result."),
    "blend": ("Blend", "Opacity of the palette."),
}
_VALUES = CHOICES | {"align": typing.get_args(Align)}
# name: {value: its label on the page}
_CHOICES = {
    "align": {"auto": "Always", "dense": "Refine locally too", "force": "Even if unsure", "skip": "Never, only resize"},
    "frame": {"auto": "Automatic", "first": "First", "second": "Second", "3": "Third", "4": "Fourth", "5": "Fifth"}
    | {"6": "Sixth", "7": "Seventh", "8": "Eighth"},
    "likelihood": {"salient": "Salient (default)", "paper": "DDFM paper", "released": "DDFM released code"},
    "contrast": {"natural": "Natural", "strong": "Strong", "minmax": "Full range"},
    "colour": {"auto": "Automatic", "grey": "Greyscale", "first": "From the first", "second": "From the second"},
    "sampler": {"ddim": "DDIM", "ddpm": "DDPM (ancestral)", "dpm++": "DPM-Solver++"},
    "precision": {"auto": "Automatic", "float32": "float32", "bfloat16": "bfloat16"},
    "palette": {name: name.capitalize() for name in PALETTE_NAMES},
}
# name: (kind, default, stage) of fields that FusionSettings does not have
_OTHERS = {
    "align": ("choice", None, "reading"),
    "normalise": ("flag", False, "reading"),
    "frame": ("choice", "auto", "reading"),
    "crop": ("flag", False, "reading"),
    "value_range": ("text", "", "reading"),
    "window": ("text", "", "reading"),
    "rigid": ("flag", False, "reading"),
    "allow_different_patients": ("flag", False, "reading"),
    "palette": ("choice", "none", "showing"),
    "blend": ("share", 0.5, "showing"),
}
# Shown outside Advanced.
_PLAIN = ("align", "normalise", "likelihood", "contrast", "colour", "num_samples", "palette", "blend")
_OPTIONS = {"num_inference_steps": "--steps", "num_samples": "--samples", "tile_overlap": "--overlap"}
_OPTIONS |= {"value_range": "--range"}
_MINIMUM = {"num_inference_steps": 1, "num_samples": 1, "seed": 0, "tile_overlap": 0, "blend": 0}
_TYPES = typing.get_type_hints(FusionSettings)


def fields() -> list[dict[str, Any]]:
    """One entry per form field except `sources`, as in `schemas.Setting`."""
    settings = {field.name: field for field in dataclasses.fields(FusionSettings)}
    return [_field(name, *(_OTHERS.get(name) or _of_setting(settings[name]))) for name in _WORDS]


def form_schema(sources: int) -> dict[str, Any]:
    """The JSON schema of the multipart form."""
    properties: dict[str, Any] = {
        "sources": {
            "type": "array",
            "items": {"type": "string", "format": "binary"},
            "minItems": 1,
            "maxItems": sources,
            "description": "Two or more images of one scene, such as infrared and visible: PNG, JPEG, BMP, TIFF, "
            "DICOM or NIfTI; or one radiometric FLIR JPEG, which holds two.",
        }
    }
    for field in fields():
        properties[field["name"]] = {"description": field["help"]} | _json_type(field)
    return {"type": "object", "properties": properties, "required": ["sources"], "additionalProperties": False}


def _of_setting(field: dataclasses.Field[Any]) -> tuple[str, Any, str]:
    kinds = typing.get_args(_TYPES[field.name]) or (_TYPES[field.name],)
    if field.name in CHOICES:
        kind = "choice"
    elif str in kinds or field.name in ("tile", "roles"):
        kind = "text"
    else:
        kind = "number" if float in kinds else "integer"
    return kind, field.default, "fusing"


def _field(name: str, kind: str, default: Any, stage: str) -> dict[str, Any]:
    label, text = _WORDS[name]
    called = _CHOICES.get(name, {})
    return {
        "name": name,
        "label": label,
        "help": text,
        "kind": kind,
        "choices": [{"value": value, "label": called[value]} for value in _VALUES.get(name, called)],
        "default": default,
        "nullable": default is None or type(None) in typing.get_args(_TYPES.get(name)),
        "minimum": _MINIMUM.get(name),
        "advanced": name not in _PLAIN,
        "stage": stage,
        "option": _OPTIONS.get(name, f"--{name.replace('_', '-')}"),
    }


def _json_type(field: dict[str, Any]) -> dict[str, Any]:
    if field["kind"] == "flag":
        return {"type": "boolean", "default": False}
    if field["kind"] == "choice":
        return {"type": "string", "enum": [choice["value"] for choice in field["choices"]]}
    if field["kind"] == "integer":
        return {"type": "integer", "minimum": field["minimum"] or 0, "maximum": 2**63 - 1}
    if field["kind"] == "share":
        return {"type": "number", "minimum": 0, "maximum": 1}
    if field["kind"] == "number":
        return {"type": "number", "exclusiveMinimum": 0, "maximum": 1}
    return {"type": "string", "maxLength": 200}
