"""A cluster gives what one machine gives, whatever dies on the way."""

import contextlib
import functools
import json
import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
from conftest import made_image

from ddfm.cli import main
from ddfm.errors import InputError
from ddfm.evaluation.metrics import fusion_metrics
from ddfm.io import images
from ddfm.runs.batch import batch
from ddfm.settings import FusionSettings

ray = pytest.importorskip("ray", reason="Ray is not installed: make test-ray")
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

from ddfm.runs.cluster import FuseBatch, batch_on_cluster, listing  # noqa: E402
from ddfm.runs.records import Records  # noqa: E402

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]
QUICK = FusionSettings(num_inference_steps=2, likelihood="paper")


@pytest.fixture(scope="module")
def nodes():
    """Two nodes of two CPUs each in this machine."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    cluster.add_node(num_cpus=2)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def make_pairs(root: Path, count: int, size=(24, 32)) -> list[Path]:
    for k, sensor in enumerate(("ir", "vi")):
        (root / sensor).mkdir(parents=True)
        for n in range(count):
            picture = made_image(*size, seed=2 * n + k).astype(np.float32) / 255
            images.write(root / sensor / f"{n:03}.png", picture, 8)
    return [root / "ir", root / "vi"]


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.png")}


def rows(folder: Path) -> list[dict]:
    return pq.read_table(folder / "manifest.parquet").to_pylist()


def test_the_bytes_are_those_of_one_machine_and_a_second_run_verifies_them(nodes, prior, tmp_path):
    pairs = make_pairs(tmp_path, 40)
    one = batch(pairs, tmp_path / "one", prior=prior, device="cpu", settings=QUICK)
    seen = []
    options = {"prior": prior, "device": "cpu", "settings": QUICK, "concurrency": 2}
    there = batch_on_cluster(
        pairs, tmp_path / "out", progress=lambda now: seen.append((now.done, now.total)), **options
    )
    assert (there.fused, there.complete, there.failures) == (40, 0, {}) and not one.failed
    assert seen[-1] == (40, 40)
    assert files(tmp_path / "out") == files(tmp_path / "one")
    listed = {row["name"]: row for row in rows(tmp_path / "out")}
    assert len(listed) == 40 and listed["007"]["status"] == "fused" and listed["007"]["seconds"] > 0
    assert listed["007"]["sources"] == [str(folder / "007.png") for folder in pairs]

    with pytest.raises(InputError, match="earlier run"):
        batch_on_cluster(pairs, tmp_path / "out", **options)
    (tmp_path / "out" / "003.png").unlink()
    images.write(tmp_path / "out" / "005.png", np.zeros((24, 32), np.float32), 8)  # somebody's own now
    images.write(pairs[0] / "009.png", made_image(24, 32, seed=999).astype(np.float32) / 255, 8)
    again = batch_on_cluster(pairs, tmp_path / "out", resume=True, **options)
    assert (again.fused, again.complete, again.failed) == (2, 37, 1)
    assert "was changed since it was written" in again.failures["005"]
    replaced = batch_on_cluster(pairs, tmp_path / "out", resume=True, overwrite=True, **options)
    assert (replaced.fused, replaced.complete) == (1, 39)
    assert batch_on_cluster(pairs, tmp_path / "out", overwrite=True, **options).fused == 40


def test_a_bad_pair_of_each_kind_is_a_row(nodes, prior, tmp_path):
    infrared, visible = make_pairs(tmp_path, 6)
    (infrared / "001.png").write_bytes(b"no image")
    (infrared / "002.png").write_bytes(b"")
    (visible / "003.png").unlink()
    images.write(visible / "004.png", np.zeros((24, 32, 3), np.float32), 8)
    (tmp_path / "s").mkdir()
    (tmp_path / "s/linked.png").symlink_to(infrared / "000.png")
    table = ["ir,vi,output"]
    table += [f"ir/{n:03}.png,vi/{n:03}.png,s/{n}" for n in range(6)]
    table += ["ir/000.png,,a", "ir/000.png,vi/000.png,b,c", "ir/000.png,vi/000.png,../d", "ir/000.png,ir/000.png,e"]
    table += [f"ir/000.png,vi/000.png,{tmp_path}/f", "ir/000.png,vi/000.png,s/linked", "ir/000.png,vi/000.png,ir/x"]
    (tmp_path / "pairs.csv").write_text("\n".join(table))
    before = {p: p.read_bytes() for p in [*infrared.iterdir(), *visible.iterdir()]}
    options = {"prior": prior, "device": "cpu", "settings": QUICK, "concurrency": 1}
    done = batch_on_cluster(tmp_path / "pairs.csv", tmp_path, **options)
    assert {p: p.read_bytes() for p in [*infrared.iterdir(), *visible.iterdir()]} == before
    assert (done.fused, done.failed) == (3, 10), done.failures
    assert {"s/1", "s/2", "s/3", "../d", "e", "s/linked", "ir/x"} <= set(done.failures)
    assert all(sentence.endswith(".") and "\n" not in sentence for sentence in done.failures.values())
    assert sorted(p.name for p in (tmp_path / "s").glob("?.png")) == ["0.png", "4.png", "5.png"]


@pytest.mark.parametrize(
    "table, sentence",
    [
        ("ir,vi,output\na.png,b.png,x\nc.png,d.png,./x\n", "Two rows write to the same file"),
        ("a.png,b.png\nc.png,d.png\n", "needs a header"),
        ("ir\na.png\n", "needs a header"),
        ("", "needs a header"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused_before_the_work(nodes, prior, tmp_path, table, sentence):
    (tmp_path / "pairs.csv").write_text(table)
    with pytest.raises(InputError, match=sentence):
        batch_on_cluster(tmp_path / "pairs.csv", tmp_path / "out", prior=prior, concurrency=1)
    assert not (tmp_path / "out").exists()


def test_what_concerns_all_pairs_ends_the_run_in_a_sentence(nodes, prior, tmp_path):
    pairs = make_pairs(tmp_path, 2)
    with pytest.raises(InputError, match="nothere"):
        batch_on_cluster(pairs, tmp_path / "out", prior=tmp_path / "nothere", concurrency=1)
    with pytest.raises(InputError, match="do not fit"):
        batch_on_cluster(pairs, tmp_path / "out", prior=prior, concurrency=4)


def test_other_file_systems_and_somebody_elses_dataset(nodes, prior, tmp_path):
    """`file://` stands for all of fsspec's: what lies there is fetched, and results are put there."""
    pairs = make_pairs(tmp_path, 5)
    uris = [[f"file://{folder}/{n:03}.png" for folder in pairs] for n in range(5)]
    pq.write_table(pa.table({"sources": uris, "name": [f"flight/{n}" for n in range(5)]}), tmp_path / "pairs.parquet")
    out = f"file://{tmp_path}/far"
    options = {"prior": prior, "device": "cpu", "settings": QUICK}
    assert batch_on_cluster(f"file://{tmp_path}/pairs.parquet", out, concurrency=1, **options).fused == 5
    assert (
        batch_on_cluster(f"file://{tmp_path}/pairs.parquet", out, concurrency=1, resume=True, **options).complete == 5
    )
    assert sorted(files(tmp_path / "far")) == [f"flight/{n}.png" for n in range(5)]

    data = ray.data.from_items([{"sources": list(map(str, row)), "name": f"flight/{n}"} for n, row in enumerate(uris)])
    options |= {"measure": functools.partial(fusion_metrics, names=["EN"])}
    mine = data.map_batches(FuseBatch, fn_constructor_args=(tmp_path / "near",), fn_constructor_kwargs=options,
                            batch_size=2, concurrency=1)  # fmt: skip
    table = mine.to_pandas()
    assert (table["status"] == "fused").all() and "EN" in json.loads(table["metrics"][0])
    assert files(tmp_path / "near") == files(tmp_path / "far")


def test_folders_with_names_of_the_driver(nodes, tmp_path):
    pairs = make_pairs(tmp_path, 3)
    images.write(pairs[0] / "alone.png", np.zeros((24, 32), np.float32), 8)
    data, total, found = listing(pairs, str(tmp_path / "out"))
    assert total == 3 == data.count() and [path.name for path in found.unmatched] == ["alone.png"]


def test_a_record_counts_for_its_run_its_settings_and_its_sources(tmp_path):
    from ddfm.runs.plan import Pair

    output = tmp_path / "a.png"
    pair = Pair("a", [], output, output)

    def complete(settings="s", resume=False, run="r", hashes=("1", "2")):
        records = Records(str(tmp_path), settings, resume, run)
        records.expect(pair)
        return records.complete("a", output, list(hashes)) is not None

    records = Records(str(tmp_path), "s", False, "r")
    records.expect(pair)
    records.begin({"a": output})
    assert not complete()
    output.write_bytes(b"result")
    assert records_of(tmp_path, pair).made("a", output)  # of a killed run: begun
    records.add("a", output, [], ["1", "2"], kind=[])
    assert complete() and complete(resume=True, run="other")
    assert not complete(run="other") and not complete(settings="t") and not complete(hashes=("1", "3"))
    output.write_bytes(b"changed")
    assert not complete() and not records_of(tmp_path, pair).made("a", output)


def records_of(folder, pair):
    records = Records(str(folder), "s", True, "r")
    records.expect(pair)
    return records


def test_sources_are_measured_as_they_are_read_to_be_fused(prior, tmp_path):
    """Temperatures have no values in [0, 1] by themselves."""
    images.write(tmp_path / "vi.png", made_image(24, 32) / 255)
    tifffile.imwrite(tmp_path / "ir.tif", 20 + made_image(24, 32, seed=1).astype(np.float32))
    stage = FuseBatch(
        tmp_path / "out",
        prior=prior,
        device="cpu",
        settings=QUICK,
        measure=lambda _, each: {"span": float(np.ptp(each[0]))},
    )
    (row,) = stage({"sources": [[str(tmp_path / "ir.tif"), str(tmp_path / "vi.png")]]}).to_pylist()
    assert (row["status"], row["error"]) == ("fused", None) and json.loads(row["metrics"])["span"] == 255
    (row,) = stage({"sources": [[str(tmp_path / "vi.png")]]}).to_pylist()
    assert "unless the one is a FLIR radiometric JPEG" in row["error"]


def test_the_command(nodes, prior, tmp_path, capsys, monkeypatch):
    infrared, visible = make_pairs(tmp_path, 3)
    (infrared / "001.png").write_bytes(b"no image")
    command = ["ddfm", "batch", str(infrared), str(visible), "-o", str(tmp_path / "out"), "--prior", str(prior)]
    command += ["--engine", "ray", "--concurrency", "1", "--device", "cpu", "--likelihood", "paper", "--steps", "2"]
    monkeypatch.setattr("sys.argv", [*command, "--metrics", "EN"])
    with pytest.raises(SystemExit) as end:
        main()
    shown = capsys.readouterr()
    assert end.value.code == 1 and "2 fused, 0 complete before, 1 failed" in shown.out
    assert "001" in shown.err and "EN" in json.loads(rows(tmp_path / "out")[0]["metrics"])
    for more, sentence in ((["--dry-run"], "on this machine"), (["--engine", "dask"], "local or ray")):
        monkeypatch.setattr("sys.argv", [*command, *more])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 2 and sentence in capsys.readouterr().err


def workers() -> list[int]:
    """Processes that fuse."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and b"FuseBatch" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


@pytest.mark.slow
def test_workers_that_die_and_nodes_that_come_and_go_change_nothing(nodes, prior, tmp_path):
    pairs = make_pairs(tmp_path, 200)
    settings = FusionSettings(num_inference_steps=60, likelihood="paper")
    one = batch(pairs, tmp_path / "one", prior=prior, device="cpu", settings=settings)
    assert len(one.fused) == 200
    rng, killed, extra = random.Random(0), 0, nodes.add_node(num_cpus=2)
    with ThreadPoolExecutor(1) as pool:  # Ray adds nodes from the main thread only
        run = pool.submit(batch_on_cluster, pairs, tmp_path / "out", prior=prior, device="cpu", settings=settings,
                          concurrency=2)  # fmt: skip
        while not run.done():
            time.sleep(rng.uniform(0.1, 0.5))
            there = workers() if len(list((tmp_path / "out").glob("*.png"))) > 16 * killed + 2 else []
            if not there or killed == 10:
                continue
            with contextlib.suppress(ProcessLookupError):
                os.kill(rng.choice(there), signal.SIGKILL)
                killed += 1
            if killed == 4:
                nodes.remove_node(extra, allow_graceful=False)
            if killed == 7:
                nodes.add_node(num_cpus=2)
        done = run.result()
    assert killed == 10
    assert (done.fused + done.complete, done.failed) == (200, 0)
    assert files(tmp_path / "out") == files(tmp_path / "one")
    listed = [row["name"] for row in rows(tmp_path / "out")]
    assert len(listed) == len(set(listed)) == 200
    assert not list((tmp_path / "out").rglob("*.part"))


@pytest.mark.slow
def test_large_images_do_not_pile_up(nodes, prior, tmp_path):
    """A worker holds the groups that `batch` would, however many pairs its block has."""
    pairs = make_pairs(tmp_path, 4, size=(2000, 2600))
    table = pa.table({"sources": [[str(folder / f"{n % 4:03}.png") for folder in pairs] for n in range(16)],
                      "name": [f"{n}" for n in range(16)]})  # fmt: skip
    pq.write_table(table, tmp_path / "pairs.parquet")
    peak = [0]

    def watch(now) -> None:
        peak[0] = max([peak[0], *map(resident, workers())])

    done = batch_on_cluster(tmp_path / "pairs.parquet", tmp_path / "out", prior=prior, device="cpu", settings=QUICK,
                            concurrency=1, progress=watch)  # fmt: skip
    assert done.fused == 16 and 0 < peak[0] < 3 * 2**30


def resident(pid: int) -> int:
    """The most memory that a process has had, in bytes."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    return 0
