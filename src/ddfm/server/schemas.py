"""The JSON of the API."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class Problem(BaseModel):
    """RFC 9457 problem details; `detail` is one sentence: what, which file, what to do."""

    type: str = Field(examples=["about:blank"])
    title: str
    status: int
    detail: str


class JobStatus(BaseModel):
    """Where a job stands."""

    id: str
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    position: int = Field(description="How many jobs the queue starts before the one after it; 0 once it runs.")
    done: float = Field(description="Evaluations of the network done, or slices of a volume.")
    total: int = Field(description="Of how many; it may increase.")
    seconds: float = Field(description="Since a worker took it.")
    names: list[str] = Field(description="The sources, in their order.")
    width: int
    height: int
    slices: int = Field(description="Of a volume; 0 for images.")
    findings: list[str] = Field(description="What was assumed about the sources and done to them, in sentences.")
    formats: list[str] = Field(description="Media types that the result can be.")
    uncertainty: float | None = Field(description="Largest standard deviation over the samples, luma in [0, 1].")
    problem: Problem | None = Field(description="Why there is no result.")


class PreviewSource(BaseModel):
    """One source as it will be fused."""

    name: str
    width: int
    height: int
    slices: int
    bits: int
    coloured: bool
    image: str = Field(description="8-bit PNG as a data URL; of a volume the middle slice.")


class Preview(BaseModel):
    """The sources as they will be fused."""

    sources: list[PreviewSource]
    findings: list[str]


class Metric(BaseModel):
    """One measure of the fused image."""

    name: str
    label: str
    meaning: str
    better: Literal["higher", "lower"]
    value: float | None
    average: float | None = Field(description="The same measure of the plain average of the sources.")


class Choice(BaseModel):
    """One value of a setting."""

    value: str
    label: str


class Setting(BaseModel):
    """One field of the form."""

    name: str
    label: str
    help: str
    kind: Literal["choice", "integer", "number", "share", "text", "flag"]
    choices: list[Choice]
    default: str | int | float | bool | None
    nullable: bool
    minimum: float | None
    advanced: bool
    stage: Literal["reading", "fusing", "showing"] = Field(description="What it concerns.")
    option: str = Field(description="The command line's name of it.")


class Example(BaseModel):
    """A pair of images that comes with the package."""

    name: str
    label: str
    sources: list[str] = Field(description="Addresses, below /.")


class About(BaseModel):
    """What a client needs to build a form."""

    version: str
    settings: list[Setting]
    formats: dict[str, str] = Field(description="File name extension by media type.")
    sources: int
    upload_bytes: int
    pixels: int
    examples: list[Example]
