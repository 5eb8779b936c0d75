"""Scenes from a CSV; what concerns all pairs is refused."""

import pytest
from runs.folders import QUICK, files, table

from ddfm.errors import InputError
from ddfm.io import images
from ddfm.runs.batch import batch


def test_a_csv_names_scenes(scenes, prior, tmp_path):
    rows = table(tmp_path, 'infrared,visible,output\nir/a.png,vi/a.png,\nir/b.png,vi/b.png,"day 1/ü, b.tif"\n')
    out = tmp_path / "out"
    result = batch(rows, out, prior=prior, **QUICK)
    assert {path.relative_to(out).as_posix() for path in result.fused} == {"a.png", "day 1/ü, b.tif"}
    assert images.read(out / "day 1" / "ü, b.tif").pixels.shape == (17, 41)
    assert len(batch(rows, out, prior=prior, resume=True, **QUICK).skipped) == 2
    assert (out / "a.png").read_bytes() == files(batch(scenes, tmp_path / "o", prior=prior, **QUICK).fused[0].parent)[
        "a.png"
    ]


def test_rows_that_cannot_be_used_are_listed(scenes, prior, tmp_path):
    rows = table(
        tmp_path,
        "infrared,visible,output\nir/a.png,vi/a.png\nir/b.png,,\n,,\nir/c.png,vi/c.png,../c.png\n"
        f"ir/d.png,vi/d.png,{tmp_path}/d.png\nir/e.png,vi/absent.png,\nir/e.png,vi/e.png,x.png,more\n",
    )
    result = batch(rows, tmp_path / "out", prior=prior, **QUICK)
    assert [path.name for path in result.fused] == ["a.png"]
    assert len(result.failed) == 6
    assert sum("outside" in sentence for sentence in result.failed.values()) == 2
    assert sum("needs 2 sources" in sentence for sentence in result.failed.values()) == 3
    assert sum("absent.png" in sentence for sentence in result.failed.values()) == 1
    assert not (tmp_path / "c.png").exists() and not (tmp_path / "d.png").exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("\n", "header"),
        ("infrared,visible\n", "header"),
        ("infrared,output\nir/a.png,a.png\n", "header"),
        ("ir/a.png,vi/a.png\nir/b.png,vi/b.png\n", "no header"),
        ("some/a.xyz,vi/a.png\nir/b.png,vi/b.png\n", "no header"),
        ("a,a\nir/a.png,vi/a.png\n", "two columns a in"),
        (f"{'x' * 9999},{'x' * 9999}\nir/a.png,vi/a.png\n", "two columns"),
        (f"{'x' * 9999}.png,vi/a.png\n", "no header"),
        ("a,b\nir/a.png,vi/a.png\0\n", "NUL"),
        ("a,b\nir/a.png,vi/a.png\nir/a.png,vi/b.png\n", "two rows"),
        ("a,b,output\nir/a.png,vi/a.png,x\nir/a.png,vi/b.png,./x\n", "two rows"),
        ("a,b,output\nir/a.png,vi/a.png,s/x\nir/a.png,vi/b.png,s//x\n", "two rows"),
        ("a,b,output\nir/a.png,vi/a.png,a.png\nir/a.png,vi/b.png,a.tif\n", "two rows"),
        ("a,b,output\nir/a.png,vi/a.png,ir/b.png\nir/b.png,vi/b.png,x\n", "one of the sources"),
        ('a,b\n"ir/a.png,vi/a.png\n', "CSV"),
    ],
)
def test_a_csv_that_cannot_be_used_is_refused(scenes, prior, tmp_path, text, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        batch(table(tmp_path, text), tmp_path, prior=prior, **QUICK)
    assert len(str(caught.value)) < 1000


def test_a_csv_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "scenes.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(InputError, match="UTF-8"):
        batch(tmp_path / "scenes.csv", tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"batch_size": 0}, "batch size"),
        ({"format": "xyz"}, "must end in"),
        ({"format": "jpg", "depth": 16}, "16 bits"),
        ({"likelihood": "none such"}, "likelihood"),
        ({"generator": None}, "generator is not a fusion setting"),
        ({"step": 3}, "step is not a fusion setting"),
        ({"prior": "/none/such"}, "prior"),
        ({"tile": 7}, "tile"),
    ],
)
def test_what_concerns_all_pairs_is_raised(scenes, prior, tmp_path, options, sentence):
    with pytest.raises(InputError, match=sentence):
        batch(scenes, tmp_path / "out", **({"prior": prior} | QUICK | options))


def test_folders_that_cannot_be_used_are_refused(scenes, prior, tmp_path):
    for pairs, sentence in (
        (scenes[:1], "tell two sensors apart"),
        ([], "none was given"),
        (tmp_path / "absent.csv", "does not exist"),
        ([scenes[0], tmp_path / "absent"], "not a folder"),
    ):
        with pytest.raises(InputError, match=sentence):
            batch(pairs, tmp_path / "out", prior=prior)
    with pytest.raises(InputError, match="folder of sources"):
        batch(scenes, scenes[1] / ".." / "vi", prior=prior)


def test_an_output_folder_that_is_a_file_is_refused(scenes, prior, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file"):
        batch(scenes, tmp_path / "file", prior=prior)
