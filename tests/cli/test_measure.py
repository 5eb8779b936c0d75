"""`ddfm evaluate` and `bench`."""

import csv
import json

import pytest
from cli.helpers import complaint, listing

from ddfm.prior import Denoiser


@pytest.fixture
def evaluate(ddfm_, sets):
    def run(*options, fused=("ours",), sources=("ir", "vis")):
        arguments = [x for name in fused for x in ("--fused", sets / name if "=" not in name else name)]
        return ddfm_("evaluate", *arguments, *(x for name in sources for x in ("--sources", sets / name)), *options)

    return run


def test_evaluate_shows_every_number_whole_however_narrow_the_terminal(evaluate):
    code, out, err = evaluate(fused=("ours", "[old]"))
    assert code == 0
    assert all(name in out for name in ("ours", "[old]", "EN", "Qabf", "rank")) and "…" not in out
    assert "[lonely].png" in err


def test_evaluate_writes_what_it_shows(evaluate, sets):
    files = [sets / name for name in ("t.csv", "t.json", "t.html")]
    options = [x for file in files for x in (f"--{file.suffix[1:]}", file)]
    assert evaluate("--metrics", "EN,SD", "--published", "roadscene", *options)[0] == 0
    header, row, published = csv.reader(files[0].read_text().splitlines())
    assert header[:4] == ["method", "images", "EN mean", "EN std"]
    assert row[:2] == ["ours", "2"] and published[2] == "7.41"
    assert json.loads(files[1].read_text())["methods"][0]["mean"]["EN"] == pytest.approx(float(row[2]))
    assert "ours" in files[2].read_text() and "http" not in files[2].read_text().replace("http://www.w3.org", "")


def test_evaluate_per_image_and_standard_convention(evaluate, sets):
    code, out, _ = evaluate("--per-image", "--convention", "standard", "--metrics", "EN", "--csv", sets / "t.csv")
    assert code == 0 and "0 [x]" in out and "'standard'" in out
    assert [row[:2] for row in csv.reader((sets / "t.csv").read_text().splitlines())][1:] == [
        ["ours", "0 [x]"],
        ["ours", "1 [x]"],
    ]


def test_evaluate_with_baselines_and_names(evaluate, sets):
    code, out, _ = evaluate("--baselines", "--metrics", "EN", fused=(f"mine={sets / 'ours'}",))
    assert code == 0
    assert all(name in out for name in ("mine", "average", "maximum", "laplacian_pyramid"))
    (sets / "ours").rename(sets / "lr=0.1")
    code, out, _ = evaluate("--metrics", "EN", fused=(str(sets / "lr=0.1"),))
    assert code == 0 and "lr=0.1" in out


@pytest.mark.parametrize(
    "options, changes",
    [
        (["--metrics", "EN,nope"], {}),
        (["--convention", "mine"], {}),
        (["--published", "mine"], {}),
        (["--csv", "no/such/folder/t.csv"], {}),
        (["--metrics", "EN", "--html", "no/such/folder/t.html"], {}),
        ([], {"sources": ["ir"]}),
        ([], {"sources": ["ir", "nowhere"]}),
        ([], {"fused": ["ours", "ours"]}),
        ([], {"fused": ["nowhere"]}),
    ],
    ids=["metric", "convention", "published", "csv", "html", "one source", "no source", "two of a name", "no fused"],
)
def test_evaluate_refuses_in_one_line(evaluate, options, changes):
    code, _, err = evaluate(*options, **changes)
    sentences = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(sentences) == 1 and "Traceback" not in err


def test_bench_fuses_measures_and_times(ddfm_, sets, prior):
    code, out, _ = ddfm_(
        *("bench", "--sources", sets / "ir", "--sources", sets / "vis", "--prior", prior, "--device", "cpu"),
        *("--likelihood", "salient", "--also", "released", "--steps", 2, "--metrics", "EN,SD"),
        *("-o", sets / "kept", "--json", sets / "t.json", "--html", sets / "t.html", "--csv", sets / "t.csv"),
        *("--published", "tno"),
    )
    assert code == 0
    assert all(word in out for word in ("salient", "released", "laplacian_pyramid", "s/pair"))
    assert "beats salient" in out or "comes nearest to salient" in out
    assert listing(sets / "kept" / "released") == ["0 [x].png", "1 [x].png"]
    methods = json.loads((sets / "t.json").read_text())["methods"]
    assert [m["name"] for m in methods][:2] == ["salient", "released"] and methods[0]["seconds_per_pair"] > 0
    assert (sets / "t.html").stat().st_size > 1000 and (sets / "t.csv").exists()


def test_bench_keeps_nothing_among_its_sources(ddfm_, sets, prior):
    before = listing(sets)
    command = ("bench", "--sources", sets / "ir", "--sources", sets / "vis", "--prior", prior, "--metrics", "EN")
    assert "a folder of sources" in complaint(ddfm_(*command, "-o", sets / "ir"))
    assert listing(sets) == before


def test_bench_in_tiles(ddfm_, sets, prior, monkeypatch):
    tiles, denoise = [], Denoiser.__call__
    monkeypatch.setattr(
        Denoiser,
        "__call__",
        lambda self, *args: tiles.append((self.tile, self.tile_overlap)) or denoise(self, *args),
    )
    folders = ("--sources", sets / "ir", "--sources", sets / "vis", "--metrics", "EN", "--steps", 1)
    assert ddfm_("bench", *folders, "--prior", prior, "--tile", 16, "--overlap", 4)[0] == 0
    assert set(tiles) == {(16, 4)}
    assert "--tile must be a number" in complaint(ddfm_("bench", *folders, "--prior", prior, "--tile", "large"))


def test_bench_refuses_an_unknown_likelihood(ddfm_, sets, prior):
    folders = ("--sources", sets / "ir", "--sources", sets / "vis")
    complaint(ddfm_("bench", *folders, "--prior", prior, "--likelihood", "mine"))
