"""The form of a fusion, described once from FusionSettings: for the page, for OpenAPI, for "copy as command"."""

from __future__ import annotations

import dataclasses
import re
import typing
from typing import Any

from ddfm.server.fields import PALETTE_NAMES
from ddfm.settings import CHOICES, FusionSettings

# Names for people; a field without one gets its own name with spaces.
_LABELS = {
    "likelihood": "Method",
    "contrast": "Contrast",
    "colour": "Colours",
    "num_samples": "Samples",
    "num_inference_steps": "Steps",
    "sampler": "Sampler",
    "strength": "Noise strength",
    "seed": "Seed",
    "precision": "Precision",
    "tile": "Tile size",
    "tile_overlap": "Tile overlap",
    "roles": "What the sources are",
}
_CHOICES = {
    "likelihood": {"salient": "Salient (default)", "paper": "DDFM paper", "released": "DDFM released code"},
    "contrast": {"natural": "Natural", "strong": "Strong", "minmax": "Full range"},
    "colour": {"auto": "Automatic", "grey": "Greyscale", "first": "Of the first", "second": "Of the second"},
    "sampler": {"ddim": "DDIM", "ddpm": "DDPM (ancestral)", "dpm++": "DPM-Solver++"},
    "precision": {"auto": "Automatic", "float32": "float32", "bfloat16": "bfloat16"},
}
_FIRST = ("likelihood", "contrast", "colour", "num_samples")  # the others are for experts
_OPTIONS = {"num_inference_steps": "--steps", "tile_overlap": "--overlap", "num_samples": "--samples"}
_MINIMUM = {"num_inference_steps": 1, "num_samples": 1, "seed": 0, "tile_overlap": 0}
_FRAMES = ("auto", "first", "second", "3", "4", "5", "6", "7", "8")
_ORDINALS = ("Automatic", "First", "Second", "Third", "Fourth", "Fifth", "Sixth", "Seventh", "Eighth")


def _other(name: str, label: str, text: str, kind: str, default: Any = False, **more: Any) -> dict[str, Any]:
    """A field that is none of FusionSettings."""
    fixed = {"choices": [], "nullable": False, "minimum": None, "advanced": False, "stage": "reading"}
    option = f"--{name.removeprefix('value_').replace('_', '-')}"
    described = {"name": name, "label": label, "help": text, "kind": kind, "default": default, "option": option}
    return fixed | described | more


def _choices(names: dict[str, str]) -> list[dict[str, str]]:
    return [{"value": value, "label": label} for value, label in names.items()]


_READING = (
    _other(
        "align",
        "Align",
        "Estimate shift, rotation and scale between the images, and bring them together.",
        "choice",
        None,
        nullable=True,
        choices=_choices(
            {"auto": "Always", "dense": "And refine locally", "force": "Even if unsure", "skip": "Never, only resize"}
        ),
    ),
    _other(
        "normalise", "Stretch raw counts", "Stretch dark thermal counts of 14 or 16 bits to the full range.", "flag"
    ),
    _other(
        "frame",
        "Frame",
        "Whose grid the result has. Automatic: the image with most pixels, the first volume.",
        "choice",
        "auto",
        choices=_choices(dict(zip(_FRAMES, _ORDINALS, strict=True))),
        advanced=True,
    ),
    _other("crop", "Crop", "Keep only what all images show.", "flag", advanced=True),
    _other(
        "value_range",
        "Black and white",
        "Two numbers in the unit of the files, such as degrees, that become black and white.",
        "text",
        "",
        advanced=True,
    ),
    _other(
        "window",
        "CT window",
        "brain, bone, lung, soft-tissue or two numbers in Hounsfield units.",
        "text",
        "",
        advanced=True,
    ),
    _other(
        "rigid",
        "Register volumes",
        "Move the DICOM or NIfTI volumes onto the first one by rotation and shift.",
        "flag",
        advanced=True,
    ),
    _other(
        "allow_different_patients",
        "Different patients",
        "Fuse although the files name different patients.",
        "flag",
        advanced=True,
    ),
)
_SHOWING = (
    _other(
        "palette",
        "Palette",
        "Lay the thermal image as colours over the result.",
        "choice",
        "none",
        choices=_choices({name: name.capitalize() for name in PALETTE_NAMES}),
        stage="showing",
    ),
    _other("blend", "Blend", "How much of the palette is seen.", "share", 0.5, minimum=0, stage="showing"),
)
# Where the docstring, which is for those who program, says it otherwise than a page should.
_PLAIN = {
    "likelihood": "Salient keeps what stands out in each source; the other two follow the DDFM paper and its code.",
    "contrast": "Strong brings out local contrast; Full range stretches the result from black to white.",
    "colour": "Whose colours the result gets: of all colour images, none, or of one.",
    "num_samples": "Several give their mean and a map of how uncertain it is, and take as many times as long.",
    "num_inference_steps": "Evaluations of the network; more take longer. Empty: what suits the method.",
    "strength": "Above 0, up to 1: how much the network may change; 1 starts from noise. Empty: what suits the method.",
    "sampler": "Empty: what suits the method.",
    "seed": "The same seed gives the same result.",
    "precision": "Automatic is bfloat16 where the hardware is fast in it, else float32.",
    "tile": "Pixels a side of the tiles in which large images are processed, auto or none.",
    "tile_overlap": "Pixels that neighbouring tiles share.",
    "roles": "thermal or visible for each image in their order, such as thermal,visible. Empty: all alike.",
}


def fields() -> list[dict[str, Any]]:
    """One entry for each form field but `sources`, as `schemas.Setting`."""
    described = [_field(field) for field in dataclasses.fields(FusionSettings)]
    order = {name: place for place, name in enumerate(_LABELS)}
    described.sort(key=lambda field: order.get(field["name"], len(order)))
    return [*_READING, *described, *_SHOWING]


def form_schema(sources: int) -> dict[str, Any]:
    """The JSON schema of the multipart form."""
    properties: dict[str, Any] = {
        "sources": {
            "type": "array",
            "items": {"type": "string", "format": "binary"},
            "minItems": 1,
            "maxItems": sources,
            "description": "Two or more images of one scene, such as infrared and visible: PNG, JPEG, BMP, TIFF, "
            "DICOM or NIfTI; or one radiometric JPEG of FLIR, which holds two.",
        }
    }
    for field in fields():
        properties[field["name"]] = {"description": field["help"]} | _json_type(field)
    return {"type": "object", "properties": properties, "required": ["sources"], "additionalProperties": False}


def _field(field: dataclasses.Field[Any]) -> dict[str, Any]:
    kinds = typing.get_args(_TYPES[field.name]) or (_TYPES[field.name],)
    names = _CHOICES.get(field.name, {})
    choices = [{"value": value, "label": names.get(value, value)} for value in CHOICES.get(field.name, ())]
    kind = "choice" if choices else "text" if str in kinds or field.name in ("tile", "roles") else "number"
    default = field.default if not isinstance(field.default, tuple) else ",".join(field.default)
    return {
        "name": field.name,
        "label": _LABELS.get(field.name, field.name.replace("_", " ").capitalize()),
        "help": _PLAIN.get(field.name) or _HELP.get(field.name, ""),
        "kind": "integer" if kind == "number" and float not in kinds else kind,
        "choices": choices,
        "default": default,
        "nullable": type(None) in kinds,
        "minimum": _MINIMUM.get(field.name),
        "advanced": field.name not in _FIRST,
        "stage": "fusing",
        "option": _OPTIONS.get(field.name, f"--{field.name.replace('_', '-')}"),
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


def _attributes(docstring: str) -> dict[str, str]:
    """The entries of a Google-style Attributes section, each on one line."""
    section = docstring.partition("Attributes:")[2]
    entries = re.findall(r"^        (\w+): (.*(?:\n            .*)*)", section, re.M)
    return {name: " ".join(text.split()) for name, text in entries}


_TYPES = typing.get_type_hints(FusionSettings)
_HELP = _attributes(FusionSettings.__doc__ or "")
