"""How to fuse: one frozen dataclass shared by Python, command line, batch, bench, manifest, server and cluster."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ddfm.errors import InputError

Sampler = Literal["ddim", "ddpm", "dpm++"]
Contrast = Literal["natural", "strong", "minmax"]
Colour = Literal["auto", "grey", "first", "second"]
Precision = Literal["auto", "float32", "bfloat16"]
Tile = int | Literal["auto"] | None
LikelihoodName = Literal["salient", "paper", "released"]
OVERLAP = 32  # pixels that neighbouring tiles share


@dataclass(frozen=True)
class FusionSettings:
    """Everything about a fusion except its sources, prior and device.

    Attributes:
        likelihood: "salient" (ours), "paper" (Algorithm 1 as printed), "released" (the authors' code, exactly), or
            an object such as `Paper(eta=1.0)`; see `ddfm.likelihoods.Likelihood`.
        sampler: "ddim" (deterministic, eta 0), "ddpm" (ancestral, as in the paper) or "dpm++" (second order); None for
            the pipeline's own scheduler.
        num_inference_steps: Reverse steps, one network evaluation each; None for the likelihood's default.
        strength: Fraction of the noise schedule that the steps span, in (0, 1]: 1 starts from pure noise, lower values
            from the likelihood's initial estimate with noise added. None for the likelihood's default.
        num_samples: Number of posterior samples to draw; the result is their mean.
        seed: Seed of the noise, 0 or more.
        precision: Arithmetic of the network: "auto" is bfloat16 where the hardware supports it, and float32 elsewhere
            and for "released"; "float32" is the same on every machine up to rounding.
        contrast: "natural", "strong" (more local contrast), or "minmax" (each fused luma stretched to [0, 1], as the
            released code does on saving).
        colour: Whose chroma the result gets: all coloured sources' ("auto"), none ("grey"), or one source's.
        tile: Tile size in pixels a side for large images; None for no tiling; "auto" decides by the free memory.
        tile_overlap: Pixels that neighbouring tiles share.
        roles: What each source is, "thermal" or "visible", in order; None to treat all alike.
    """

    likelihood: Any = "salient"
    sampler: Sampler | None = None
    num_inference_steps: int | None = None
    strength: float | None = None
    num_samples: int = 1
    seed: int = 0
    precision: Precision = "auto"
    contrast: Contrast = "natural"
    colour: Colour = "auto"
    tile: Tile = "auto"
    tile_overlap: int = OVERLAP
    roles: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Raise InputError with one sentence for an unusable value."""
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            if name == "likelihood" and value is not None and not isinstance(value, (str, type)):
                continue  # an object
            if value not in allowed and not (value is None and name == "sampler"):
                raise InputError(f"{name} must be one of {', '.join(allowed)}, not {value!r}.")
        for name, least in (("num_inference_steps", 1), ("num_samples", 1), ("seed", 0), ("tile_overlap", 0)):
            value = getattr(self, name)
            if value is None and name == "num_inference_steps":
                continue
            if isinstance(value, bool) or not hasattr(value, "__index__") or value < least:
                raise InputError(f"{name} must be a whole number, {least} or more, not {value!r}.")
            if value >= 2**63:
                raise InputError(f"{name} must be a whole number below 2^63, not {value!r}.")
            object.__setattr__(self, name, int(value))
        if self.tile is not None and self.tile != "auto":
            if isinstance(self.tile, (bool, str)) or not hasattr(self.tile, "__index__") or not 1 <= self.tile < 2**31:
                raise InputError(f"tile must be a number of pixels, 'auto' or None, not {self.tile!r}.")
            object.__setattr__(self, "tile", int(self.tile))
        if self.tile is None and self.tile_overlap != OVERLAP:
            raise InputError("tile_overlap has no effect without tiling; choose a tile size.")
        if self.strength is not None and not (
            isinstance(self.strength, (int, float)) and math.isfinite(self.strength) and 0 < self.strength <= 1
        ):
            raise InputError(f"strength must be above 0 and at most 1, not {self.strength!r}.")
        if self.roles is not None:
            roles = self.roles.replace(",", " ").split() if isinstance(self.roles, str) else self.roles
            object.__setattr__(self, "roles", tuple(roles))
            if unknown := [role for role in self.roles if role not in ("thermal", "visible")]:
                raise InputError(f"roles must be thermal or visible, not {unknown[0]!r}.")

    @classmethod
    def from_strings(cls, fields: Mapping[str, str]) -> FusionSettings:
        """Settings from text, as in a form or a table: {"tile": "256", "strength": "0.5"}; "" means the default.

        Raises:
            InputError: a name that is not a setting, or text that is not a valid value.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(fields) - known):
            raise InputError(f"{unknown[0]!r} is not a setting; the settings are {', '.join(sorted(known))}.")
        return cls(**{name: _parsed(name, text) for name, text in fields.items() if text != ""})

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, by name."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if not isinstance(self.likelihood, str):
            values["likelihood"] = repr(self.likelihood)
        return values


def changed(settings: FusionSettings | None, changes: Mapping[str, Any]) -> FusionSettings:
    """The settings, or the defaults, with some fields changed.

    Raises:
        InputError: a name that is not a field, or an unusable value.
    """
    if settings is not None and not isinstance(settings, FusionSettings):
        raise InputError(
            f"settings is a FusionSettings, not {type(settings).__name__}; give the sources in one list and a "
            "likelihood as likelihood=..."
        )
    known = {field.name for field in dataclasses.fields(FusionSettings)}
    if unknown := sorted(set(changes) - known):
        raise InputError(f"{unknown[0]} is not a fusion setting; the settings are {', '.join(sorted(known))}.")
    return dataclasses.replace(settings or FusionSettings(), **changes)


_TYPES = typing.get_type_hints(FusionSettings)
CHOICES: dict[str, tuple[str, ...]] = {
    "likelihood": typing.get_args(LikelihoodName),
    "sampler": typing.get_args(Sampler),
    "precision": typing.get_args(Precision),
    "contrast": typing.get_args(Contrast),
    "colour": typing.get_args(Colour),
}


def _parsed(name: str, text: str) -> Any:
    kinds = typing.get_args(_TYPES[name]) or (_TYPES[name],)
    if text.lower() == "none" and type(None) in kinds:
        return None
    for kind in (int, float):
        if kind in kinds:
            try:
                return kind(text)
            except ValueError:
                if name != "tile":
                    whole = "whole " if kind is int else ""
                    raise InputError(f"{name} must be a {whole}number, not {text!r}.") from None
    return text
