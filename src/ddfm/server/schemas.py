"""The JSON schemas of the API."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class Problem(BaseModel):
    """RFC 9457 problem details; `detail` is one sentence: the problem, the file, and what to do."""

    type: str = Field(examples=["about:blank"])
    title: str
    status: int
    detail: str


class JobStatus(BaseModel):
    """The status of a job."""

    id: str
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    position: int = Field(description="Place in the queue, from 1; 0 once the job runs.")
    done: float = Field(description="Network evaluations done, or slices of a volume.")
    total: int = Field(description="Their total, which may increase.")
    seconds: float = Field(description="Running time so far; once the job is over, its total.")
    names: list[str] = Field(description="Names of the sources, in order.")
    width: int
    height: int
    slices: int = Field(description="Number of slices of a volume; 0 for images.")
    findings: list[str] = Field(description="Sentences on what was assumed about the sources and done to them.")
    formats: list[str] = Field(description="Media types in which the result is available.")
    uncertainty: float | None = Field(description="Largest standard deviation of the luma in [0, 1] over samples.")
    problem: Problem | None = Field(description="Why there is no result.")


class PreviewSource(BaseModel):
    """One source as it will be fused."""

    name: str
    width: int
    height: int
    slices: int
    bits: int
    coloured: bool
    image: str = Field(description="8-bit PNG as a data URL; the middle slice of a volume.")


class Preview(BaseModel):
    """The sources as they will be fused."""

    sources: list[PreviewSource]
    findings: list[str]


class Metric(BaseModel):
    """One metric of the fused image."""

    name: str
    label: str
    meaning: str
    better: Literal["higher", "lower"]
    value: float | None
    average: float | None = Field(description="The same metric for the plain average of the sources.")


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
    stage: Literal["reading", "fusing", "showing"] = Field(description="The stage that the setting affects.")
    option: str = Field(description="Name of the command-line option.")


class Example(BaseModel):
    """A pair of images included in the package."""

    name: str
    label: str
    sources: list[str] = Field(description="Paths of the images on this server.")


class About(BaseModel):
    """Everything a client needs to build the form."""

    version: str
    settings: list[Setting]
    formats: dict[str, str] = Field(description="File name extension by media type.")
    sources: int
    upload_bytes: int
    pixels: int
    examples: list[Example]
