"""Finds files that belong together: by pattern, by name, or by the naming schemes of cameras and scanners."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ddfm.errors import InputError
from ddfm.io import dicom, sensors, thermal
from ddfm.io.files import listed, quoted

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp"),
    *(".nii.gz", ".nii", ".dcm", ".dicom"),
)
CANDIDATES = 3  # how many ambiguous files a message shows


@dataclass(frozen=True)
class Pairing:
    """The files that belong together.

    Attributes:
        groups: By shared name, with subfolders ("day 1/0007"): one file per sensor.
        unmatched: Images without a partner.
        findings: A sentence for each decision about names.
    """

    groups: dict[str, list[Path]]
    unmatched: list[Path] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)


def find_groups(
    folders: Sequence[str | os.PathLike[str]],
    patterns: Sequence[str] = (),
    leave_out: str | os.PathLike[str] | None = None,
) -> Pairing:
    """The images in folders and their subfolders that belong together.

    A folder with the slices of a DICOM series is one source, a volume, and has the name of the folder.

    Args:
        folders: One folder per sensor, whose files have the same names, or names that differ only by the sensor
            ("7_ir", "7_vis"); or a single folder, whose files or subfolders name the sensor (see `sensors.sensor_of`),
            or of radiometric JPEGs, each of which is a group.
        patterns: A pattern per sensor, in which `{id}` is the part shared by the files of a scene, `*` any text and
            `?` any character: "{id}_T.jpg", "thermal/{id}.png". It is matched with the end of the path, ignoring
            case; a file goes to the matching pattern with the most literal characters.
        leave_out: A folder within these to skip: that of the results.

    Raises:
        InputError: a folder that cannot be read, no files that belong together, or several candidates for one sensor.
    """
    roots = [Path(folder) for folder in folders]
    if patterns:
        found = _by_pattern(roots, patterns, leave_out)
    else:
        found = _by_name(roots, leave_out) if len(roots) > 1 else _by_sensor(roots[0], leave_out)
    if number := sum(path.is_dir() for paths in found.groups.values() for path in paths):
        said = f"{number} folders are read as DICOM series, one volume each; a CSV can pair single slices."
        found.findings.append(said)
    groups = {roots[0].resolve().name if name == "." else name: paths for name, paths in found.groups.items()}
    return replace(found, groups=groups)


def pair_by_stem(folders: Sequence[Path]) -> tuple[dict[str, list[Path]], list[Path]]:
    """The images present in all folders, by stem: {stem: [path in each folder]}, sorted, and the unmatched files.

    Extensions may differ between folders. Raises InputError for something that is not a folder, an empty folder, two
    files with the same stem in a folder, and if nothing matches.
    """
    tables = [_by_stem(Path(folder), {p.name: p for p in _listed(Path(folder)) if p.is_file()}) for folder in folders]
    groups, unmatched = _in_all(tables)
    if not groups:
        names = " and ".join(map(quoted, folders))
        raise InputError(f"No file name (without extension) is in all of {names}; corresponding files share a name.")
    return groups, unmatched


def is_image_name(name: str) -> bool:
    """Whether a name has the extension of an image or volume."""
    return name.lower().endswith(SUFFIXES)


def _is_source(path: Path) -> bool:
    """Whether a path from `_walked` is an image or volume by its name, or a series."""
    return is_image_name(path.name) or path.is_dir()


def stem(name: str) -> str:
    """A name without its image extension."""
    suffix = next((s for s in SUFFIXES if name.lower().endswith(s)), "")
    return name[: len(name) - len(suffix)]


# ---------------------------------------------------------------------------------------------- the three ways


def _by_pattern(roots: list[Path], patterns: Sequence[str], leave_out: str | os.PathLike[str] | None) -> Pairing:
    if len(patterns) < 2 or len(roots) not in (1, len(patterns)):
        raise InputError(
            f"Give two or more patterns, one for each sensor, and one folder or one for each pattern: {len(patterns)} "
            f"patterns and {len(roots)} folders were given."
        )
    compiled = [_compiled(pattern) for pattern in patterns]
    by_letters = sorted(range(len(patterns)), key=lambda k: -len(re.sub(r"\{id\}|[*?]", "", patterns[k])))
    found: list[dict[str, list[Path]]] = [{} for _ in patterns]
    unmatched = []
    for at, root in enumerate(roots):
        for name, path in _walked(root, leave_out).items():
            for k in by_letters if len(roots) == 1 else [at]:
                if match := compiled[k].fullmatch(name):
                    scene = _one_form(f"{match['folder']}/{match['id']}" if match["folder"] else match["id"])
                    found[k].setdefault(scene, []).append(path)
                    break
            else:
                unmatched += [path] * _is_source(path)
    groups, alone = _in_all([{name: path for name, (path, *_) in table.items()} for table in found])
    _refuse_ambiguous({name: table[name] for table in found for name in groups if len(table[name]) > 1})
    if not groups:
        raise InputError(f"No files match {' and '.join(patterns)} in {' and '.join(map(quoted, roots))}.")
    return Pairing(groups, sorted([*unmatched, *alone]))


def _by_name(roots: list[Path], leave_out: str | os.PathLike[str] | None) -> Pairing:
    """Pairs by equal names in each folder; the rest by names that differ only by the sensor."""
    tables = [_by_stem(root, _walked(root, leave_out)) for root in roots]
    groups, _ = _in_all(tables)
    rest: list[dict[str, list[Path]]] = []
    for table in tables:
        rest.append({})
        for name, path in table.items():
            if name not in groups:
                rest[-1].setdefault(sensors.sensor_of(name)[0], []).append(path)
    more, _ = _in_all([{name: path for name, (path, *_) in table.items()} for table in rest])
    more = {name: paths for name, paths in more.items() if name not in groups}
    _refuse_ambiguous({name: table[name] for table in rest for name in more if len(table[name]) > 1})
    groups |= more
    if not groups:
        raise InputError(
            f"No file name (without extension) is in all of {' and '.join(map(quoted, roots))}; corresponding files "
            "share a name; if they differ, use --pattern '{id}_ir.png' '{id}_vis.png'."
        )
    taken = {path for paths in groups.values() for path in paths}
    unmatched = sorted(path for table in tables for path in table.values() if path not in taken)
    return Pairing(dict(sorted(groups.items())), unmatched)


def _by_sensor(root: Path, leave_out: str | os.PathLike[str] | None) -> Pairing:
    """Pairs in one folder, whose names or subfolders give the sensor."""
    table = _by_stem(root, _walked(root, leave_out))
    scenes: dict[str, dict[str, list[Path]]] = {}
    plain = {}  # such as FLIR_0001.jpg, next to FLIR_0001_T.jpg
    for name, path in table.items():
        scene, sensor = sensors.sensor_of(name)
        if sensor is None:
            plain[name] = path
        else:
            scenes.setdefault(scene, {}).setdefault(sensor, []).append(path)
    for name, path in plain.items():
        if len(known := scenes.get(name, {})) == 1 and (other := sensors.counterpart(*known)):
            known[other] = [path]
    zooms = [path for scene in scenes.values() if "visible" in scene for path in scene.pop("zoom", [])]
    pairs = {name: scene for name, scene in sorted(scenes.items()) if len(scene) > 1}
    _refuse_ambiguous({n: paths for n, scene in pairs.items() for paths in scene.values() if len(paths) > 1})
    if not pairs and (both := {name: [path] for name, path in table.items() if _holds_both(path)}):
        others = sorted(path for name, path in table.items() if name not in both)
        return Pairing(both, others, [f"{len(both)} radiometric files are read as temperatures and a photo each."])
    if not pairs:
        raise InputError(
            f"{_no_pairs(root, table, scenes)}: give a folder for each sensor, or describe the names "
            "with --pattern '{id}_T.jpg' '{id}_V.jpg' (* is any text)."
        )
    groups = {
        name or root.resolve().name: [scene[s][0] for s in sensors.ORDER if s in scene] for name, scene in pairs.items()
    }
    taken = {path for paths in groups.values() for path in paths} | set(zooms)
    findings = [f"{len(zooms)} zoom images are left out: the wide camera sees the whole scene."] if zooms else []
    return Pairing(groups, sorted(set(table.values()) - taken), findings)


def _holds_both(path: Path) -> bool:
    try:
        return path.suffix.lower() in (".jpg", ".jpeg") and thermal.is_radiometric(path)
    except InputError:  # empty or unreadable
        return False


def _no_pairs(root: Path, table: dict[str, Path], scenes: dict[str, dict[str, list[Path]]]) -> str:
    """Why nothing in a folder belongs together."""
    first = {sensor: paths[0].name for scene in reversed(scenes.values()) for sensor, paths in scene.items()}
    if len(first) > 1:
        examples = ", ".join(f"{quoted(first[sensor])} as {sensor}" for sensor in sensors.ORDER if sensor in first)
        return f"No two names in {quoted(root)} are the same but for the sensor ({examples})"
    example = quoted(next(iter(table.values())).name)
    return f"No names in {quoted(root)} tell two sensors apart ({example}, ...)"


# ---------------------------------------------------------------------------------------------- shared helpers


def _compiled(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"(\{id\}|\*|\?)", pattern)
    if "{id}" not in parts or re.search(r"[{}]", pattern.replace("{id}", "")):
        raise InputError(
            f"The pattern {pattern!r} needs {{id}} for the part that the files of a scene share, as in {{id}}_T.jpg."
        )
    text, seen = "", False
    for part in parts:
        text += {"{id}": "(?P=id)" if seen else "(?P<id>[^/]+?)", "*": "[^/]*", "?": "[^/]"}.get(part, re.escape(part))
        seen |= part == "{id}"
    return re.compile(f"(?:(?P<folder>.+)/)?{text}", re.IGNORECASE | re.DOTALL)


def _in_all(tables: list[dict[str, Path]]) -> tuple[dict[str, list[Path]], list[Path]]:
    """The entries in all tables, sorted by name, and the files of the rest."""
    common = set.intersection(*(set(table) for table in tables))
    groups = {name: [table[name] for table in tables] for name in sorted(common)}
    return groups, sorted({path for table in tables for name, path in table.items() if name not in common})


def _by_stem(folder: Path, files: dict[str, Path]) -> dict[str, Path]:
    """The images among files, by name without extension; InputError if two have the same, or if there is none."""
    found: dict[str, Path] = {}
    for name, path in files.items():
        if not _is_source(path) or path.name.startswith("."):
            continue
        if (key := _one_form(stem(name))) in found:
            raise InputError(f"{quoted(folder)} has both {found[key].name} and {path.name}; remove one of them.")
        found[key] = path
    if not found:
        raise InputError(f"{quoted(folder)} has no images in it ({', '.join(SUFFIXES)}).")
    return found


def _one_form(name: str) -> str:
    """A name with composed accents: macOS decomposes them, other systems keep them as typed."""
    return unicodedata.normalize("NFC", name)


def _refuse_ambiguous(candidates: dict[str, list[Path]]) -> None:
    """Raise InputError if any scene has several files for one sensor."""
    if not candidates:
        return
    shown = "; ".join(
        f"{quoted(scene)}: {' or '.join(quoted(path.name) for path in paths[:CANDIDATES])}"
        for scene, paths in list(candidates.items())[:CANDIDATES]
    )
    more = f" (and {len(candidates) - CANDIDATES} more)" if len(candidates) > CANDIDATES else ""
    raise InputError(
        f"Which files belong together is ambiguous for {shown}{more}; choose with "
        "--pattern '{id}_T.jpg' '{id}_V.jpg'."
    )


def _walked(root: Path, leave_out: str | os.PathLike[str] | None) -> dict[str, Path]:
    """All files in a folder and its subfolders, including linked folders, by relative path; hidden ones are skipped.

    The slices of a DICOM series are represented by their folder, "." if it is `root` itself.
    """
    files: dict[str, Path] = {}
    seen = {os.path.realpath(leave_out)} if leave_out is not None else set()
    todo = [root]
    while todo:
        folder = todo.pop()
        if (real := os.path.realpath(folder)) in seen:  # the results, or a circular link
            continue
        seen.add(real)
        inside = [path for path in _listed(folder) if not path.name.startswith(".")]
        todo += [path for path in inside if path.is_dir()]
        found = [path for path in inside if path.is_file()]
        if slices := set(dicom.slices_among(path for path in found if _may_be_dicom(path.name))):
            found = [folder, *(path for path in found if path not in slices)]
        files |= {path.relative_to(root).as_posix(): path for path in found}
    return dict(sorted(files.items()))


def _may_be_dicom(name: str) -> bool:
    """Whether a name may be that of a DICOM file: any extension or none, but not that of another image format."""
    return name.lower().endswith((".dcm", ".dicom")) or not is_image_name(name)


def _listed(folder: Path) -> list[Path]:
    """The contents of a folder, sorted. Raises InputError."""
    if not os.path.isdir(folder):
        raise InputError(f"{quoted(folder)} is not a folder; check the name.")
    return listed(folder)
