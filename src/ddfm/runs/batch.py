"""Fuses folders on one machine.

A run resumed after a kill gives the same results as an uninterrupted one: groups are formed from all images, including
finished ones, and results are verified before they count as finished.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ddfm import __version__
from ddfm.errors import InputError
from ddfm.io import images
from ddfm.io.files import reason
from ddfm.io.outputs import Outputs
from ddfm.pipeline import DDFMPipeline, likelihood_of, quiet_pipeline
from ddfm.prior import Progress
from ddfm.runs.execution import BatchResult, Run, check_format, earlier_results
from ddfm.runs.fusing import images_at_once
from ddfm.runs.manifest import Manifest, is_manifest
from ddfm.runs.plan import Pair, Pairs, plan, suffix_of
from ddfm.runs.reading import Reading, with_changes
from ddfm.runs.scene import Depth
from ddfm.settings import FusionSettings, changed

MANIFEST, LOCK = "manifest.jsonl", ".ddfm.lock"


def batch(
    pairs: Pairs,
    out_dir: str | Path,
    *,
    patterns: Sequence[str] = (),
    prior: str | Path = "embedded",
    device: str | None = None,
    settings: FusionSettings | None = None,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    batch_size: int | None = None,
    depth: Depth = "same",
    format: str = "png",
    reading: Reading | None = None,
    progress: Progress | None = None,
    **changes: Any,
) -> BatchResult:
    """Fuse folders of images, each scene to `out_dir/<name>.<format>`, and write a manifest next to the results.

    Volumes go to `out_dir/<name>` with the extension of their first source, unless `format` is a volume format. A pair
    that cannot be read, aligned or written is listed in the result, and the others continue.

    Args:
        pairs: Folders, one per sensor or a single one, with their subfolders (see `pairing.find_groups`); or a CSV
            file with a header and a row per scene: one column per sensor, with paths relative to the CSV, which may
            be folders of a DICOM series, and optionally `output`, a path within `out_dir` (default: the first source's
            name; one without extension gets `format`).
        out_dir: Folder for the results, created if it does not exist. One run at a time.
        patterns: A pattern per sensor, such as "{id}_T.jpg" and "{id}_V.jpg", as in `pairing.find_groups`.
        prior: As in `load_prior`.
        device: "cpu", "cuda", ...; None uses CUDA if available.
        settings: How to fuse. Each image has its own noise, `image_generator(settings.seed, name)`, regardless of the
            images it is batched with.
        resume: Skip pairs that the manifest lists with these settings, this version and these sources, and whose file
            is unchanged. A file that was changed since, or that no run wrote, is listed as failed.
        overwrite: Replace files that are not from this run: existing ones, and with `resume` those changed since they
            were written. Sources are never replaced.
        dry_run: Write and fuse nothing, but read all pairs: the result says what would be done.
        batch_size: Images of equal size per network call; None for 1 on the CPU, else 8.
        depth: Bits of the results: "same" (16 if a source has more than 8 and the format supports it), 8, 16 or 32.
        format: Extension of the results, as in `images.write`.
        reading: How the sources are read, as in `Scene.read`.
        progress: Called with (images done, total images) while the network works; done may be fractional.
        changes: Fields of `FusionSettings` and of `Reading`.

    Raises:
        InputError: for problems that affect all pairs: a folder, the CSV, the prior, an option, an output folder that
            cannot be used, ambiguous names.
    """
    reading, changes = with_changes(reading, changes)
    settings = changed(settings, changes)
    if batch_size is not None and batch_size < 1:
        raise InputError(f"The batch size must be 1 or more, not {batch_size}.")
    out, suffix = Path(out_dir), suffix_of(format)
    todo = plan(pairs, out, suffix, patterns)
    inputs = [prior, *([pairs] if isinstance(pairs, (str, os.PathLike)) else pairs)]
    with contextlib.nullcontext() if dry_run else _held(out, inputs):
        _claim(todo.pairs, out, inputs, resume, overwrite, dry_run)
        check_format(out, suffix, depth)

        pipe = quiet_pipeline(prior, device)
        recorded = recorded_settings(pipe, settings, reading, depth, suffix) | {"prior": str(prior)}
        result = BatchResult(out / MANIFEST, todo.pairs, unmatched=todo.unmatched, notes=todo.findings)
        with Manifest(result.manifest, recorded, resume) as manifest:
            run = Run(manifest, result, depth, reading, overwrite, batch_size or images_at_once(pipe))
            if dry_run:
                run.rehearse(progress)
            else:
                run.fuse(pipe, settings, progress)
    return result


@contextlib.contextmanager
def _held(out: Path, inputs: list[Any]) -> Iterator[None]:
    """Create the folder of the results and lock it against other runs, which would replace this run's manifest and
    remove its temporary files. Raises InputError."""
    lock = FileLock(Outputs(inputs).folder(out, shared=True) / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"Another run is writing to {images.quoted(out)}: wait for its end, or choose another folder."
        ) from None
    except NotImplementedError:  # a file system without locks
        pass
    except OSError as error:
        raise InputError(f"Cannot use the folder {images.quoted(out)}: {reason(error)}.") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(lock.lock_file)
        lock.release()


def _claim(todo: list[Pair], out: Path, inputs: list[Any], resume: bool, overwrite: bool, dry_run: bool) -> None:
    """Create the folders of the results and check that none overwrites an input, another result or a foreign file.

    With `resume`, results of an earlier run are checked file by file, see `Run.job`.
    """
    manifest = out / MANIFEST
    if os.path.lexists(manifest) and not overwrite:
        if not resume:
            raise earlier_results(out)
        if not is_manifest(manifest):
            raise InputError(
                f"{images.quoted(manifest)} is not the manifest of a batch: move it, or replace it with --overwrite."
            )
    outputs = Outputs([source for pair in todo for source in pair.sources], overwrite=overwrite or resume)
    for path in inputs:
        outputs.add_input(path)
    whole = [pair for pair in todo if pair.error is None]
    for folder in dict.fromkeys([out, *(pair.output.parent for pair in whole)] if not dry_run else []):
        outputs.folder(folder)
    for pair in whole:
        outputs.claim(pair.output)
        if pair.volume_output != pair.output:
            outputs.claim(pair.volume_output, ours=not images.is_medical(pair.sources[0]))
    outputs.claim(manifest, ours=True)


def recorded_settings(
    pipe: DDFMPipeline, settings: FusionSettings, reading: Reading, depth: Depth, suffix: str
) -> dict[str, Any]:
    """Everything that results depend on: the settings, the likelihood's constants, the prior's weights, the version."""
    weights = hashlib.sha256()
    for name, tensor in pipe.unet.state_dict().items():
        weights.update(name.encode() + tensor.float().cpu().numpy().tobytes())
    return {
        "ddfm": __version__,
        "prior_sha256": weights.hexdigest(),
        "scheduler": type(pipe.scheduler).__name__,
        "settings": settings.as_dict() | {"likelihood": repr(likelihood_of(settings))},
        "reading": reading.as_dict(),
        "depth": depth,
        "format": suffix,
    }
