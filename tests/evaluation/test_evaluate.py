"""Folders to tables: pairing, numbers, ranks, comparison, files and complaints."""

import csv
import io
import json
import math
import re
import xml.etree.ElementTree

import numpy as np
import pytest
from rich.console import Console

from ddfm.errors import InputError
from ddfm.evaluation.baselines import BASELINES, average
from ddfm.evaluation.evaluate import PUBLISHED, Evaluation, bench, evaluate_folders, pair_by_stem
from ddfm.evaluation.guards import LIMITS
from ddfm.evaluation.metrics import EVALUATOR_NAMES, fusion_metrics
from ddfm.evaluation.report import write_html
from ddfm.io import images

SIZE = (48, 52)


def smooth(seed):
    x = np.random.default_rng(seed).random((SIZE[0] + 4, SIZE[1] + 4))
    x = sum(x[i : i + SIZE[0], j : j + SIZE[1]] for i in range(5) for j in range(5))
    return ((x - x.min()) / np.ptp(x)).astype(np.float32)


@pytest.fixture
def folders(tmp_path):
    """Three scenes: `ir` PNG, `vis` in colour as TIFF, `mean` and `ir_again` fused; odd files that match nothing."""
    for name in ("ir", "vis", "mean", "ir_again"):
        (tmp_path / name).mkdir()
    for i, stem in enumerate(("b", "a", "c.d")):
        ir, vis = smooth(i), np.stack([smooth(10 + i), smooth(20 + i), smooth(30 + i)], -1)
        images.write(tmp_path / "ir" / f"{stem}.png", ir)
        images.write(tmp_path / "vis" / f"{stem}.TIF", vis)
        images.write(tmp_path / "mean" / f"{stem}.bmp", (ir[..., None] + vis) / 2)
        images.write(tmp_path / "ir_again" / f"{stem}.png", ir)
    images.write(tmp_path / "ir" / "lonely.png", smooth(5))
    (tmp_path / "ir" / "notes.txt").write_text("not an image")
    return tmp_path


def run(folders, **options):
    fused = {"mean": folders / "mean", "ir again": folders / "ir_again"}
    return evaluate_folders(fused, [folders / "ir", folders / "vis"], **options)


def made_up(values, metrics, methods=("ours", "theirs"), **options):
    values = np.asarray(values, float)
    names = [str(i) for i in range(values.shape[1])]
    guards = np.full((*values.shape[:2], len(LIMITS)), np.nan)
    return Evaluation(list(methods), names, list(metrics), values, "ddfm", ["a", "b"], guards, **options)


def test_pairs_by_stem_whatever_the_extension(folders):
    pairs, unmatched = pair_by_stem([folders / "ir", folders / "vis"])
    assert list(pairs) == ["a", "b", "c.d"]
    assert pairs["c.d"] == [folders / "ir" / "c.d.png", folders / "vis" / "c.d.TIF"]
    assert unmatched == [folders / "ir" / "lonely.png"]


def test_values_are_those_of_fusion_metrics_on_luma(folders):
    calls = []
    result = run(folders, progress=lambda done, total: calls.append((done, total)))
    assert result.metrics == list(EVALUATOR_NAMES) and result.images == ["a", "b", "c.d"]
    assert calls == [(1, 3), (2, 3), (3, 3)]

    def y(path):
        pixels = np.rint(images.read(path).pixels * 255).astype(int)
        return pixels if pixels.ndim == 2 else pixels @ np.array([299, 587, 114]) / 1000

    sources = [y(folders / "ir" / "a.png"), y(folders / "vis" / "a.TIF")]
    expected = fusion_metrics(y(folders / "mean" / "a.bmp"), sources)
    np.testing.assert_allclose(result.values[0, 0], list(expected.values()), rtol=1e-6)


def test_the_standard_convention_and_chosen_names(folders):
    result = run(folders, convention="standard", names=["mi", "NMI"])
    assert result.metrics == ["MI", "NMI"] and result.convention == "standard"
    assert not np.allclose(result.values[..., 0], run(folders, names=["MI"]).values[..., 0])


def test_mean_std_and_ranks():
    values = np.array([[[1, 9], [3, 9]], [[5, 2], [5, 4]], [[2, 3], [2, np.nan]]], float)
    result = made_up(values, ["EN", "MSE"], ["x", "y", "z"])
    np.testing.assert_allclose(result.mean(), [[2, 9], [5, 3], [2, 3]])
    np.testing.assert_allclose(result.std(), [[math.sqrt(2), 0], [0, math.sqrt(2)], [0, np.nan]])
    np.testing.assert_array_equal(result.ranks(), [[2, 3], [1, 1], [2, 1]])  # MSE: lower is better; equals share


def test_a_metric_that_never_exists_is_a_dash_and_null(tmp_path, recwarn):
    result = made_up([[[np.nan], [np.nan]], [[1.0], [np.inf]]], ["PSNR"])
    assert np.isnan(result.mean()[0, 0]) and np.isnan(result.ranks()[0, 0]) and result.ranks()[1, 0] == 1
    result.to_json(tmp_path / "x.json")
    read = json.loads((tmp_path / "x.json").read_text(), parse_constant=pytest.fail)
    assert read["methods"][0]["mean"]["PSNR"] is None and read["methods"][1]["images"] == {
        "0": {"PSNR": 1.0},
        "1": {"PSNR": None},
    }
    write_html(result, tmp_path / "x.html")
    assert "–" in text_of(result)
    assert not recwarn.list


def test_bootstrap_interval_covers_the_truth_and_narrows():
    rng = np.random.default_rng(0)
    hits, widths = 0, {20: [], 80: []}
    for n in widths:
        for trial in range(40):
            paired = rng.normal(0.3, 1, n)
            result = made_up([np.c_[paired], np.zeros((n, 1))], ["EN"])
            (d,) = result.compare("ours", "theirs", seed=trial)
            assert d.mean == pytest.approx(paired.mean()) and d.low < d.mean < d.high
            hits += d.low < 0.3 < d.high
            widths[n].append(d.high - d.low)
    assert 0.85 <= hits / 80 <= 1
    assert np.mean(widths[80]) == pytest.approx(np.mean(widths[20]) / 2, rel=0.2)


def test_comparison_is_paired():
    noise = np.random.default_rng(0).normal(0, 100, 30)
    result = made_up([np.c_[noise + 1], np.c_[noise]], ["EN"])
    (d,) = result.compare("ours", "theirs")
    assert d.low == pytest.approx(1) and d.high == pytest.approx(1) and d.is_clear
    (alone,) = made_up([[[2.0]], [[1.0]]], ["EN"]).compare("ours", "theirs")
    assert alone.mean == 1 and math.isnan(alone.low) and not alone.is_clear


def test_baseline_notes_respect_the_direction():
    values = [[[5.0, 5.0]], [[4.0, 4.0]], [[6.0, 6.0]], [[5.0, 3.0]]]
    result = made_up(values, ["EN", "MSE"], ["ours", *BASELINES], baselines=list(BASELINES))
    best = {note.metric: note for note in result.baseline_notes()}
    assert (best["EN"].baseline, best["EN"].baseline_wins) == ("maximum", True)
    assert (best["MSE"].baseline, best["MSE"].baseline_wins) == ("laplacian_pyramid", True)
    assert str(best["EN"]) == "EN: maximum beats ours (6.000 against 5.000)"
    result.values[0] = [9, 1]
    notes = [str(note) for note in result.baseline_notes()]
    assert notes[0] == "EN: maximum comes nearest to ours (6.000 against 9.000)" and "nearest" in notes[1]


def test_baselines_in_an_evaluation_are_those_of_bench(folders):
    sources = [folders / "ir", folders / "vis"]
    measured = evaluate_folders({"mean": folders / "mean"}, sources, baselines=True)
    benched = bench(sources, {})
    assert measured.methods == ["mean", *BASELINES] and benched.methods == list(BASELINES)
    np.testing.assert_array_equal(measured.values[1:], benched.values)


def test_bench_times_writes_and_measures_what_it_wrote(folders):
    sources = [folders / "ir", folders / "vis"]
    seen = []

    def ours(pictures):
        seen.append([(p.shape, p.dtype) for p in pictures])
        return pictures[1] * 0.5 + pictures[0][..., None] * 0.5

    result = bench(sources, {"ours": ours}, out_dir=folders / "out")
    assert seen == [[(SIZE, np.float32), ((*SIZE, 3), np.float32)]] * 3
    assert set(result.seconds) == {"ours", *BASELINES} and all(s > 0 for s in result.median_seconds().values())
    again = evaluate_folders({name: folders / "out" / name for name in result.methods}, sources)
    np.testing.assert_array_equal(again.values, result.values)
    assert images.read(folders / "out" / "ours" / "a.png").pixels.shape == (*SIZE, 3)


def test_bench_refuses_wrong_methods(folders):
    sources = [folders / "ir", folders / "vis"]
    with pytest.raises(InputError, match="name of a baseline"):
        bench(sources, {"average": average})
    with pytest.raises(InputError, match=r"ours returned shape \(2, 2\) for a, whose sources are 52x48"):
        bench(sources, {"ours": lambda pictures: np.zeros((2, 2))})
    with pytest.raises(InputError, match="not finite"):
        bench(sources, {"ours": lambda pictures: np.full(SIZE, np.nan)})
    (folders / "file").write_text("")
    with pytest.raises(InputError, match="Cannot use the folder"):
        bench(sources, {}, out_dir=folders / "file")


# ---- output ---------------------------------------------------------------------------------------------------


def text_of(result, **options):
    console = Console(width=200, record=True, file=io.StringIO(), force_terminal=True)
    console.print(result.to_rich(**options))
    return console.export_text()


def test_rich_table_marks_best_and_second():
    result = made_up([[[1.0, 1.0]], [[2.0, 2.0]], [[3.0, 3.0]]], ["EN", "MSE"], ["x", "y", "z"])
    table = result.to_rich()
    cells = [list(column.cells) for column in table.columns]
    assert [str(column.header) for column in table.columns[1:3]] == ["EN↑", "MSE↓"]
    styles = [[{str(span.style) for span in cell.spans if span.style} for cell in column] for column in cells[1:3]]
    assert styles == [[set(), {"underline"}, {"bold"}], [{"bold"}, {"underline"}, set()]]


def test_rich_table_shows_published_rows_seconds_and_images(folders):
    sources = [folders / "ir", folders / "vis"]
    text = text_of(bench(sources, {}, published="TNO"))
    assert "DDFM paper, TNO (published, not measured)" in text and "51.42" in text and "s/pair" in text
    assert "1 unmatched file left out" in text and "[" not in text
    text = text_of(run(folders, names=["EN"]), per_image=True)
    assert len(re.findall("c.d", text)) == 2


def test_published_rows_are_complete_and_never_ranked(folders):
    assert set(PUBLISHED) == {"msrs", "m3fd", "roadscene", "tno", "harvard"}
    assert all(set(row) == {"EN", "SD", "MI", "VIF", "Qabf", "SSIM"} for row in PUBLISHED.values())
    plain, beside = run(folders), run(folders, published="harvard")
    np.testing.assert_array_equal(plain.ranks(), beside.ranks())
    assert list(beside.published.values()) == [PUBLISHED["harvard"]]
    with pytest.raises(InputError, match="No published row is called 'kaist'"):
        run(folders, published="kaist")
    with pytest.raises(InputError, match="'ddfm' convention"):
        run(folders, published="tno", convention="standard")


def test_csv_and_json_hold_the_numbers(folders):
    result = run(folders, names=["EN", "SCD"], published="msrs")
    result.to_csv(folders / "mean.csv")
    with open(folders / "mean.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["EN mean"]) == pytest.approx(result.mean()[0, 0], rel=1e-7)
    assert float(rows[0]["EN std"]) == pytest.approx(result.std()[0, 0], rel=1e-7)
    assert rows[1]["method"] == "ir again" and rows[1]["SCD mean"] == ""  # equal to a source: undefined
    assert rows[2]["EN mean"] == "6.88" and "not measured" in rows[2]["method"]
    result.to_csv(folders / "each.csv", per_image=True)
    with open(folders / "each.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["image"]) for row in rows[:4]] == [
        ("mean", "a"),
        ("mean", "b"),
        ("mean", "c.d"),
        ("ir again", "a"),
    ]
    result.to_json(folders / "x.json")
    read = json.loads((folders / "x.json").read_text())
    assert read["methods"][0]["images"]["b"]["EN"] == result.values[0, 1, 0]
    assert read["unmatched"] == [str(folders / "ir" / "lonely.png")] and read["convention"] == "ddfm"
    assert read["differences"][0]["other"] == "ir again"


def test_html_is_self_contained_and_whole(folders):
    result = bench(
        [folders / "ir", folders / "vis"], {"<b>ours & co": lambda p: average([p[0], p[1][..., 0]])}, keep_examples=2
    )
    write_html(result, folders / "report.html")
    html = (folders / "report.html").read_text()
    assert not re.findall(r"""(?:src|href)=["']?(?!data:)[^"'\s>]*[/.]""", html) and "url(" not in html
    assert "<b>ours" not in html and "&lt;b&gt;ours &amp; co" in html
    scenes, methods, sources = 2, 4, 2
    assert html.count("data:image/jpeg;base64,") == scenes * (sources + methods + methods * sources)
    plots = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(plots) == len(result.metrics)
    for plot in plots:
        xml.etree.ElementTree.fromstring(plot)
    assert "2 of 3 images are shown" in html and "lonely.png" in html


# ---- complaints -----------------------------------------------------------------------------------------------


def test_one_sentence_for_each_thing_that_can_be_wrong(folders):
    sources = [folders / "ir", folders / "vis"]
    (folders / "empty").mkdir()
    (folders / "other").mkdir()
    images.write(folders / "other" / "zzz.png", smooth(0))
    for fused, where, sentence in (
        ({}, sources, "No folder of fused images"),
        ({"x": folders / "mean"}, sources[:1], "two or more folders of sources; 1 given"),
        ({"x": folders / "nowhere"}, sources, "nowhere is not a folder"),
        ({"x": folders / "empty"}, sources, "empty has no images in it"),
        ({"x": folders / "other"}, sources, "No file name"),
    ):
        with pytest.raises(InputError, match=sentence) as caught:
            evaluate_folders(fused, where)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="rename one of them"):
        evaluate_folders({"average": folders / "mean"}, sources, baselines=True)


def test_sizes_twins_and_broken_files(folders):
    images.write(folders / "mean" / "a.bmp", smooth(0)[:40])
    with pytest.raises(InputError, match=r"a\.bmp is 52x40 but .*a\.png is 52x48"):
        run(folders)
    (folders / "mean" / "a.bmp").write_bytes(b"BM no image")
    with pytest.raises(InputError, match=r"a\.bmp"):
        run(folders)
    images.write(folders / "mean" / "a.png", smooth(0))
    with pytest.raises(InputError, match=r"has both a\.bmp and a\.png"):
        run(folders)


def test_raw_counts_are_measured_as_they_are_fused_and_said(folders):
    """Taken as they are they would be one tone, of which VIF is 10 and more."""
    counts = folders / "counts"
    counts.mkdir()
    for path in (folders / "vis").iterdir():
        stretched = images.read(folders / "ir" / f"{path.stem}.png").pixels
        images.write(counts / f"{path.stem}.png", (7000 + stretched * 800) / 65535, 16)
    sources, methods = [counts, folders / "vis"], {"first": lambda pair: pair[0]}
    measured = bench(sources, methods, names=["SD"])
    assert measured.mean()[0, 0] > 30
    assert len(measured.findings) == 3 and "a.png holds counts from 7000 to 7800" in "".join(measured.findings)
    evaluated = evaluate_folders({"first": folders / "ir"}, sources, names=["VIF"])
    assert evaluated.mean()[0, 0] < 2 and evaluated.as_dict()["findings"] == measured.findings
