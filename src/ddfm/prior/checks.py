"""Checks on a prior's files, which are untrusted, before anything is loaded or built from them."""

from __future__ import annotations

import json
import os
import stat
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddfm.errors import InputError
from ddfm.io.files import quoted, read_bytes

NO_CLIPPING = ("lambda_min_clipped", float("-inf"))  # written by diffusers itself for DPM-Solver
LARGEST_JSON = 2**20  # bytes; a configuration has a few thousand
LARGEST_WEIGHTS = 2**36  # bytes
LEVELS = 16  # resolution levels of a network; more would not fit any image
LAYERS = 256  # per level
LARGEST_NUMBER = 2**20
LONGEST_TEXT = 200  # characters
LONGEST_LIST = 10_000  # a schedule may have a thousand betas


def regular(path: str | os.PathLike[str]) -> Path:
    """The path of a regular file, not a pipe, device or folder, of at most 64 GiB. Raises InputError otherwise."""
    name = quoted(path)
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise InputError(f"{name} does not exist; check the name.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{name} is not a regular file; copy its contents to one.")
    if status.st_size > LARGEST_WEIGHTS:
        raise InputError(f"{name} is larger than {LARGEST_WEIGHTS >> 30} GiB, too large for a prior.")
    return Path(path)


def regular_files(folders: Iterable[Path]) -> None:
    """Raise InputError if anything in these folders is neither a folder nor `regular`."""
    for folder in folders:
        try:
            inside = sorted(folder.iterdir())
        except OSError as error:
            raise InputError(f"{quoted(folder)} cannot be read: {error.strerror}.") from error
        for path in inside:
            if not path.is_dir():
                regular(path)


def read_config(path: Path) -> dict[str, Any]:
    """The object in a JSON file, with values that are finite and plausible for a network.

    Raises InputError.
    """
    name = quoted(path)
    if regular(path).stat().st_size > LARGEST_JSON:
        raise InputError(f"{name} is larger than {LARGEST_JSON >> 20} MiB, too large for a configuration.")
    try:
        config = json.loads(read_bytes(path).decode())
        bad = _unusable(config)
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name} is not JSON; download it again.") from error
    if not isinstance(config, dict):
        raise InputError(f"{name} is not a JSON object; download it again.")
    if bad is not None:
        raise InputError(f"{name} specifies {bad}, which no network has.")
    return config


def check_size(network: type[nn.Module], config: dict[str, Any], weights: Iterable[Path]) -> None:
    """Raise InputError if a configuration's network is larger than its weight files, before allocating memory for it.

    Args:
        network: A diffusers model class.
        config: The result of `read_config`.
        weights: The weight files.
    """
    levels, layers = config.get("block_out_channels", ()), config.get("layers_per_block", 1)
    if len(levels) > LEVELS or max([*_flat(layers), 1]) > LAYERS:
        raise InputError(f"the configuration specifies {len(levels)} levels of {layers} layers, which no network has")
    with torch.device("meta"):
        unet = network.from_config(config)  # type: ignore[attr-defined]
    parameters, size = sum(p.numel() for p in unet.parameters()), sum(path.stat().st_size for path in weights)
    if parameters > size:
        raise InputError(f"the configuration specifies {parameters:,} weights, but the files have {size:,} bytes")


def check_archive(path: Path) -> bool:
    """Whether a checkpoint is a zip archive, torch's current format. Raises InputError if the archive is compressed."""
    if not zipfile.is_zipfile(regular(path)):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise InputError(f"{quoted(path)} is not a complete checkpoint ({error}); download it again.") from error
    if packed:
        raise InputError(f"{quoted(path)} is a compressed archive, not a checkpoint saved by torch.")
    return True


def _unusable(value: Any) -> str | None:
    """A value in a configuration that no network has, described for an error; or None."""
    if isinstance(value, dict):
        values = [x for key, x in value.items() if (key, x) != NO_CLIPPING]
        return next((bad for x in (*value, *values) if (bad := _unusable(x))), None)
    if isinstance(value, str) and len(value) > LONGEST_TEXT:
        return f"a text of {len(value)} characters"
    if isinstance(value, list):
        if len(value) > LONGEST_LIST:
            return f"a list of {len(value)} items"
        return next((bad for x in value if (bad := _unusable(x))), None)
    if isinstance(value, (int, float)) and not abs(value) <= LARGEST_NUMBER:  # NaN included
        return f"the number {value:.4g}" if isinstance(value, float) else "a number of many digits"
    return None


def _flat(value: Any) -> list[int]:
    return [x for x in value if isinstance(x, int)] if isinstance(value, (list, tuple)) else [value]
