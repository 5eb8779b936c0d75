"""No command writes onto its own inputs, nor unasked onto what it did not make, however the file is called."""

import os
import unicodedata

import pytest

import ddfm.io.outputs
from ddfm.errors import InputError
from ddfm.io.outputs import Outputs


@pytest.fixture
def source(tmp_path):
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "a.png"
    path.write_bytes(b"source")
    return path


def refused(outputs, path, sentence, **more):
    with pytest.raises(InputError, match=sentence) as error:
        outputs.claim(path, **more)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("by_folder", [False, True])
def test_an_input_is_never_an_output_whatever_it_is_called(source, tmp_path, monkeypatch, overwrite, by_folder):
    os.link(source, tmp_path / "hard.png")
    (tmp_path / "soft.png").symlink_to(source)
    (tmp_path / "softer.png").symlink_to("soft.png")
    (tmp_path / "folder").symlink_to("in")
    monkeypatch.chdir(tmp_path)
    outputs = Outputs([source.parent if by_folder else source], overwrite)
    for name in (
        *(source, "in/a.png", "./in/a.png", "in//a.png", "in/../in/a.png", "folder/a.png"),
        *("hard.png", "soft.png", "softer.png"),
    ):
        refused(outputs, name, "one of the sources", ours=True)
    assert outputs.claim("in/b.png")


def test_a_source_that_is_a_link_protects_what_it_leads_to(source, tmp_path):
    (tmp_path / "link.png").symlink_to(source)
    refused(Outputs([tmp_path / "link.png"], overwrite=True), source, "one of the sources")


def test_another_file_is_replaced_only_if_asked_or_ours(tmp_path):
    path = tmp_path / "f.png"
    path.write_bytes(b"somebody's")
    (tmp_path / "link.png").symlink_to(path)
    for name in ("f.png", "link.png"):
        refused(Outputs([]), tmp_path / name, "exists already.*--overwrite")
        Outputs([]).claim(tmp_path / name, ours=True)
        Outputs([], overwrite=True).claim(tmp_path / name)
    Outputs([]).claim(tmp_path / "new.png")


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("other", ["./x.png", "s/../x.png", "s//../x.png", "t/../x.png", "link.png", "x.png"])
def test_two_results_are_two_files(tmp_path, monkeypatch, exists, other):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s").mkdir()
    (tmp_path / "t").mkdir()
    (tmp_path / "link.png").symlink_to("x.png")
    if exists:
        (tmp_path / "x.png").touch()
    outputs = Outputs([], overwrite=True)
    outputs.claim("x.png")
    refused(outputs, other, "Two results")
    outputs.claim("y.png")


@pytest.mark.parametrize(
    ("one", "two"), [("x.png", "X.PNG"), ("\u00fc.png", unicodedata.normalize("NFD", "\u00fc.png"))]
)
def test_names_that_only_some_disks_tell_apart(tmp_path, monkeypatch, one, two):
    outputs = Outputs([])
    outputs.claim(tmp_path / one)
    outputs.claim(tmp_path / two)  # this disk tells them apart
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(ddfm.io.outputs, "_one_name", lambda *names: True)
    outputs = Outputs([])
    outputs.claim(tmp_path / one)
    refused(outputs, tmp_path / two, "Two results")


def test_names_that_lead_nowhere(tmp_path):
    (tmp_path / "loop.png").symlink_to("pool.png")
    (tmp_path / "pool.png").symlink_to("loop.png")
    (tmp_path / "dangling.png").symlink_to("absent/x.png")
    (tmp_path / "file").touch()
    outputs = Outputs([tmp_path / "loop.png", "nul\0.png", tmp_path / "absent"], overwrite=True)
    refused(outputs, tmp_path / "loop.png", "links lead in a circle")
    refused(outputs, tmp_path / "nul\0.png", "not a valid file name")
    refused(outputs, tmp_path / ("x" * 5000), "too long")
    for name in ("dangling.png", "other/x.png", "file/x.png", os.fsdecode(b"\xff.png")):
        outputs.claim(tmp_path / name)  # whether it can be written is for `images.check_target`


def test_a_folder_of_results(source, tmp_path):
    out = Outputs([]).folder(tmp_path / "new" / "out")
    (out / ".ddfm-0123456789abcdef.part").write_bytes(b"half")
    (out / "kept").touch()
    assert len(list(Outputs([]).folder(out, shared=True).iterdir())) == 2  # another worker's
    assert [path.name for path in Outputs([]).folder(out).iterdir()] == ["kept"]
    with pytest.raises(InputError, match="folder of sources"):
        Outputs([source.parent]).folder(tmp_path / "in" / ".." / "in")
    Outputs([source]).folder(source.parent)
    for name in (source, source / "x", tmp_path / "nul\0"):
        with pytest.raises(InputError, match="Cannot use the folder"):
            Outputs([]).folder(name)
