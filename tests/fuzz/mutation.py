"""Mutations of bytes, drawn by hypothesis so that a failure is shrunk to few of them."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

NUMBERS = [
    bytes(4),
    b"\xff" * 4,
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\0\0\0\1",
    b"\x80\0\0\0",
    b"\0\0\xc0\x7f",
    b"\xff" * 8,
]


def mutated(seeds: list[bytes], texts: list[bytes] | None = None) -> st.SearchStrategy[bytes]:
    """One of the seeds with one to six changes; `texts` are put in where JSON and CSV have a value."""
    place = st.integers(0, 2**16 - 1)  # of 65,536ths of the length
    header = st.integers(0, 400).map(lambda n: -n)  # a byte near the beginning, where most is decided
    where = st.one_of(place, header)
    changes = [
        st.tuples(st.just("set"), where, st.binary(min_size=1, max_size=4)),
        st.tuples(st.just("set"), where, st.sampled_from(NUMBERS)),
        st.tuples(st.just("cut"), where, st.just(b"")),
        st.tuples(st.just("drop"), where, st.binary(min_size=1, max_size=40)),
        st.tuples(st.just("insert"), where, st.binary(min_size=1, max_size=40)),
        st.tuples(st.just("repeat"), where, st.binary(min_size=1, max_size=40)),
        st.tuples(st.just("splice"), where, st.sampled_from(seeds)),
    ]
    if texts is not None:
        changes += [st.tuples(st.just("value"), place, st.sampled_from(texts))] * 4
    return st.tuples(st.sampled_from(seeds), st.lists(st.one_of(changes), min_size=1, max_size=6)).map(_apply)


def _apply(case: tuple[bytes, list[tuple[str, int, bytes]]]) -> bytes:
    data, changes = case
    for what, where, argument in changes:
        at = min(-where, len(data)) if where < 0 else where * len(data) >> 16
        data = _CHANGES[what](data, at, argument)
    return data[: 2**20]


def _value(data: bytes, at: int, text: bytes) -> bytes:
    """Another value behind the next colon or comma."""
    starts = [k for k in (data.find(mark, at) for mark in (b":", b",")) if k >= 0]
    if not starts:
        return data
    start = min(starts) + 1
    ends = [k for k in (data.find(mark, start) for mark in (b",", b"}", b"]", b"\n")) if k >= 0]
    return data[:start] + text + data[min(ends, default=len(data)) :]


_CHANGES: dict[str, Any] = {
    "set": lambda data, at, x: data[:at] + x + data[at + len(x) :],
    "cut": lambda data, at, x: data[:at],
    "drop": lambda data, at, x: data[:at] + data[at + len(x) :],
    "insert": lambda data, at, x: data[:at] + x + data[at:],
    "repeat": lambda data, at, x: data[:at] + data[at : at + len(x)] * 3 + data[at + len(x) :],
    "splice": lambda data, at, x: data[:at] + x[at:],
    "value": _value,
}
