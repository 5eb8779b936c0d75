"""No command writes onto an input of the same run or, unasked, onto a file that it did not make."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from conftest import made_image

import ddfm.cli
import ddfm.cli.loading
from ddfm.errors import InputError
from ddfm.io import images
from ddfm.prior.train import TrainingConfig, train


@pytest.fixture
def sets(tmp_path):
    """ir/ and salient/, a pair of images in each; fused/ like them."""
    for k, name in enumerate(("ir", "salient", "fused")):
        (tmp_path / name).mkdir()
        for i in range(2):
            images.write(tmp_path / name / f"{i}.png", made_image(100, 104, seed=10 * i + k) / np.float32(255))
    return tmp_path


@pytest.fixture
def command(monkeypatch, capsys, prior, sets):
    """A command line, `{}` standing for the folder of `sets`: (exit code, the sentence on standard error)."""

    def run(line):
        words = line.format(sets).split()
        if words[0] in ("fuse", "batch", "bench"):
            words += ["--prior", str(prior), "--device", "cpu", "--steps", "1"]
        monkeypatch.setattr(sys, "argv", ["ddfm", *words])
        with pytest.raises(SystemExit) as stop:
            ddfm.cli.main()
        return stop.value.code or 0, capsys.readouterr().err.strip()

    return run


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


PAIR = "{0}/ir/0.png {0}/salient/0.png"
EVALUATE = "evaluate --fused {0}/fused --sources {0}/ir --sources {0}/salient --metrics EN"
BENCH = "bench --sources {0}/ir --sources {0}/salient --metrics EN"


@pytest.mark.parametrize("overwrite", ["", " --overwrite"])
@pytest.mark.parametrize(
    "line",
    [
        f"fuse {PAIR} -o {{0}}/ir/0.png",
        f"fuse {PAIR} -o {{0}}/ir/../salient/0.png",
        f"fuse {PAIR} -o {{0}}/link.png",
        "batch {0}/ir {0}/salient -o {0}/ir",
        "batch {0}/rows.csv -o {0}/salient",
        "batch {0}/rows.csv -o {0}",  # one of its results would be rows.csv's source
        f"{EVALUATE} --csv {{0}}/fused/0.png",
        f"{EVALUATE} --json {{0}}/ir/1.png",
        f"{EVALUATE} --html {{0}}/salient/../salient/1.png",
        f"{EVALUATE} --csv {{0}}/link.png",
        f"{EVALUATE} --csv {{0}}/t --json {{0}}/t",
        f"{BENCH} -o {{0}}",  # {0}/salient/0.png would be the method's and is a source
        f"{BENCH} --csv {{0}}/ir/0.png",
        "prior train {0} -o {0}/ir --steps 1",
        "prior train {0} -o {0}/new --steps 1",
    ],
)
def test_an_input_is_never_written_onto(command, sets, line, overwrite):
    (sets / "link.png").symlink_to(sets / "ir" / "0.png")
    (sets / "rows.csv").write_text("a,b,output\nir/0.png,salient/0.png,0\nir/1.png,salient/1.png,link.png\n")
    before = contents(sets)
    code, sentence = command(line + overwrite)
    assert code == 2 and len(sentence.splitlines()) == 1 and sentence.startswith("error: "), sentence
    assert contents(sets) == before


@pytest.mark.parametrize(
    ("line", "taken"),
    [
        (f"fuse {PAIR} -o {{0}}/mine.png", "mine.png"),
        ("batch {0}/ir {0}/salient -o {0}/out", "out/1.png"),
        ("batch {0}/ir {0}/salient -o {0}/out", "out/manifest.jsonl"),
        ("batch {0}/ir {0}/salient -o {0}/out --resume", "out/manifest.jsonl"),
        (f"{EVALUATE} --csv {{0}}/mine.csv", "mine.csv"),
        (f"{EVALUATE} --json {{0}}/mine.json", "mine.json"),
        (f"{EVALUATE} --html {{0}}/mine.html", "mine.html"),
        (f"{BENCH} -o {{0}}/out", "out/average/1.png"),
        (f"{BENCH} --csv {{0}}/mine.csv", "mine.csv"),
        ("demo {0}/out", "out/head_pet_mri.png"),
        ("demo {0}/out", "out/head_pet_side_by_side.png"),
        ("prior export --onnx {0}/mine.onnx", "mine.onnx"),
        ("prior train {0} -o {0}/new/run --steps 1", "new/run/log.csv"),
        ("prior train {0} -o {0}/new/run --steps 1", "new/run/prior/unet/config.json"),
    ],
)
def test_another_file_is_not_replaced_unasked(command, sets, line, taken):
    (sets / taken).parent.mkdir(parents=True, exist_ok=True)
    (sets / taken).write_text("mine")
    before = contents(sets)
    code, sentence = command(line)
    assert code == 2 and "--overwrite" in sentence and len(sentence.splitlines()) == 1
    assert contents(sets) == before


@pytest.mark.parametrize(
    ("line", "taken"),
    [
        (f"fuse {PAIR} -o {{0}}/mine.png --overwrite", "mine.png"),
        ("batch {0}/ir {0}/salient -o {0}/out --overwrite", "out/1.png"),
        ("batch {0}/ir {0}/salient -o {0}/out --overwrite", "out/manifest.jsonl"),
        ("batch {0}/ir {0}/salient -o {0}/out --resume --overwrite", "out/1.png"),
        (f"{EVALUATE} --csv {{0}}/mine.csv --overwrite", "mine.csv"),
        (f"{BENCH} -o {{0}}/out --overwrite", "out/average/1.png"),
    ],
)
def test_another_file_is_replaced_if_asked(command, sets, line, taken):
    (sets / taken).parent.mkdir(parents=True, exist_ok=True)
    (sets / taken).write_text("mine")
    assert command(line)[0] == 0
    assert (sets / taken).read_bytes() != b"mine"


def test_a_resumed_batch_leaves_a_foreign_file_and_does_the_rest(command, sets):
    (sets / "out").mkdir()
    (sets / "out" / "0.png").write_text("mine")
    code, sentence = command("batch {0}/ir {0}/salient -o {0}/out --resume")
    assert code == 1 and "--overwrite" in sentence
    assert (sets / "out" / "0.png").read_text() == "mine" and (sets / "out" / "1.png").exists()


def test_a_demo_may_be_seen_again(command, sets, monkeypatch, prior):
    load = ddfm.cli.loading.pipeline
    monkeypatch.setattr(ddfm.cli.loading, "pipeline", lambda name, device: load(str(prior), "cpu"))
    assert command("demo {0}/demo --device cpu")[0] == 0
    assert "--overwrite" in command("demo {0}/demo")[1]
    assert command("demo {0}/demo --overwrite")[0] == 0


def test_a_run_is_gone_on_with_and_not_into_its_images(sets):
    config, run = TrainingConfig(channels=(8, 16), blocks=(1, 1), steps=1, batch_size=1, crop=16), sets / "new" / "run"
    train(sets, run, config, report=lambda line: None)
    train(sets, run, replace(config, steps=2), report=lambda line: None)
    assert len((run / "log.csv").read_text().splitlines()) == 3
    for name in ("ir", "another"):
        with pytest.raises(InputError, match="image folders"):
            train(sets, sets / name, config)
