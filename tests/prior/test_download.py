import contextlib
import hashlib
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from safetensors import SafetensorError
from safetensors.torch import load_file

from ddfm.errors import InputError
from ddfm.prior import download
from ddfm.prior.download import Published, cache_dir, cached, pull

DATA = Path(__file__).parents[1] / "data"
FILE = (DATA / "tiny_adm.pt").read_bytes()
SHA = hashlib.sha256(FILE).hexdigest()
ARGS = json.loads((DATA / "tiny_adm.json").read_text())


class Server(ThreadingHTTPServer):
    """Serves `body` on localhost; the switches say how it misbehaves. `asked` is what clients sent."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.etag, self.ranges, self.break_after = FILE, '"v1"', True, []
        self.length = self.codes = self.stall = self.shift = None
        self.asked = []
        self.url = f"http://127.0.0.1:{self.server_port}/weights.pt"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        s = self.server
        s.asked.append(dict(self.headers))
        if s.codes:
            self.send_response(s.codes.pop(0))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = 0
        span = self.headers.get("Range")
        if s.ranges and span and self.headers.get("If-Range", s.etag) == s.etag:
            start = int(span.removeprefix("bytes=").rstrip("-")) + (s.shift or 0)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(s.body) - 1}/{len(s.body)}")
        else:
            self.send_response(200)
        if s.length != "unknown":
            self.send_header("Content-Length", str((s.length or len(s.body)) - start))
        if s.etag:
            self.send_header("ETag", s.etag)
        self.end_headers()
        end = start + s.break_after.pop(0) if s.break_after else len(s.body)
        with contextlib.suppress(ConnectionError):  # a client may hang up early
            self.wfile.write(s.body[start:end])
        if s.stall:
            s.stall.wait(20)
        self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    monkeypatch.setitem(download.PUBLISHED, "tiny", Published(server.url, len(FILE), SHA, ARGS))
    monkeypatch.setattr(download, "BACKOFF", 0.01)
    monkeypatch.setattr(download, "TIMEOUT", 5.0)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield server
    server.shutdown()
    server.server_close()


def get(tmp_path, **options):
    return pull("tiny", cache_dir=tmp_path, progress=False, **options)


def left(tmp_path):
    """Bytes kept of an unfinished download."""
    part = tmp_path / ".tiny.download" / "weights.pt.part"
    return part.stat().st_size if part.exists() else None


def check(folder, tmp_path):
    """`folder` is the cached prior, whole and right, and nothing else is left."""
    assert folder == cached("tiny", tmp_path) == tmp_path / "tiny"
    assert sorted(p.name for p in tmp_path.iterdir()) == [".tiny.lock", "tiny"]
    state = torch.load(DATA / "tiny_adm.pt", weights_only=True)
    weights = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(weights["conv_out.weight"], state["out.2.weight"].float())
    assert sum(v.numel() for v in weights.values()) == sum(v.numel() for v in state.values())


def refused(tmp_path, words):
    with pytest.raises(InputError, match=words) as caught:
        get(tmp_path)
    assert "\n" not in str(caught.value)
    assert cached("tiny", tmp_path) is None
    assert not (tmp_path / "tiny").exists()


def test_pull_gives_the_reference_network(server, tmp_path):
    folder = get(tmp_path)
    check(folder, tmp_path)
    ref = np.load(DATA / "unet.npz")
    unet = UNet2DModel.from_pretrained(folder, subfolder="unet")
    with torch.no_grad():
        out = unet(torch.from_numpy(ref["unet_x"]), torch.from_numpy(ref["unet_t"])).sample.numpy()
    assert np.abs(out - ref["unet_out"]).max() < 1e-5
    assert DDPMScheduler.from_pretrained(folder, subfolder="scheduler").config.beta_end == 0.02
    assert get(tmp_path) == folder
    assert len(server.asked) == 1, "a second pull asks nobody"


def test_breaking_off_is_resumed_within_a_pull(server, tmp_path):
    third = len(FILE) // 3
    server.break_after = [third, third]
    check(get(tmp_path), tmp_path)
    assert [a.get("Range") for a in server.asked] == [None, f"bytes={third}-", f"bytes={2 * third}-"]
    assert server.asked[1]["If-Range"] == '"v1"'


def test_giving_up_keeps_what_arrived_and_the_next_pull_goes_on(server, tmp_path):
    server.break_after = [1_000_000] + [0] * download.RETRIES
    refused(tmp_path, "broke off at 1,000,000 of")
    assert left(tmp_path) == 1_000_000
    server.break_after = []
    check(get(tmp_path), tmp_path)
    assert server.asked[-1]["Range"] == "bytes=1000000-"


def test_no_range_support_starts_anew(server, tmp_path):
    server.ranges, server.break_after = False, [len(FILE) // 2]
    check(get(tmp_path), tmp_path)


def test_a_changed_file_starts_anew(server, tmp_path):
    old = bytes(reversed(FILE))
    server.body, server.break_after = old, [1_000_000] + [0] * download.RETRIES
    refused(tmp_path, "broke off")
    server.body, server.etag, server.break_after = FILE, '"v2"', []
    check(get(tmp_path), tmp_path)


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_a_strong_tag_it_still_resumes(server, tmp_path, etag):
    server.etag, server.break_after = etag, [len(FILE) // 2]
    check(get(tmp_path), tmp_path)
    assert "If-Range" not in server.asked[1]


def test_another_part_than_asked_for_is_not_appended(server, tmp_path):
    server.shift, server.break_after = 7, [len(FILE) // 2]
    check(get(tmp_path), tmp_path)
    assert [bool(a.get("Range")) for a in server.asked] == [False, True, False]


def test_a_wrong_byte_is_deleted(server, tmp_path):
    wrong = bytearray(FILE)
    wrong[1234567] ^= 1
    server.body = bytes(wrong)
    refused(tmp_path, "SHA-256 differs")
    assert left(tmp_path) is None
    assert not list(tmp_path.rglob("*.pt"))
    server.body = FILE
    check(get(tmp_path), tmp_path)


def test_a_damaged_part_file_is_found_out(server, tmp_path):
    (tmp_path / ".tiny.download").mkdir()
    (tmp_path / ".tiny.download" / "weights.pt.part").write_bytes(b"\0" * 500_000)
    refused(tmp_path, "SHA-256 differs")
    check(get(tmp_path), tmp_path)


def test_a_part_file_that_is_too_long_starts_anew(server, tmp_path):
    (tmp_path / ".tiny.download").mkdir()
    (tmp_path / ".tiny.download" / "weights.pt.part").write_bytes(FILE + b"x")
    check(get(tmp_path), tmp_path)


@pytest.mark.parametrize("body", [FILE[:-5], FILE + b"12345"])
def test_a_wrong_length_is_refused(server, tmp_path, body):
    server.body = body
    refused(tmp_path, f"has {len(body)} bytes, not {len(FILE)}")
    assert left(tmp_path) is None


def test_a_wrong_length_that_is_not_announced_is_refused(server, tmp_path):
    server.body, server.length = FILE + b"x", "unknown"
    refused(tmp_path, "more than")
    assert left(tmp_path) is None
    server.body = FILE[:-5]
    server.ranges = False
    refused(tmp_path, "broke off")


def test_a_missing_file_is_not_asked_for_again(server, tmp_path):
    server.codes = [404] * 9
    refused(tmp_path, "404")
    assert len(server.asked) == 1


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.codes = [500, 503, 429]
    check(get(tmp_path), tmp_path)
    assert len(server.asked) == 4


def test_a_broken_server_is_given_up(server, tmp_path):
    server.codes = [500] * 99
    refused(tmp_path, "500")
    assert len(server.asked) == download.RETRIES


def test_nobody_there(server, tmp_path):
    closed = Server()
    closed.server_close()
    with pytest.raises(InputError, match="refused"):
        get(tmp_path, url=closed.url)
    assert cached("tiny", tmp_path) is None


def test_a_silent_server_times_out(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.5)
    monkeypatch.setattr(download, "RETRIES", 2)
    server.stall, server.break_after = threading.Event(), [300_000, 0, 0]
    refused(tmp_path, "nothing arrived for 0.5 seconds")
    server.stall.set()
    assert left(tmp_path) == 300_000


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://127.0.0.1/x", "weights.pt", "http://127.0.0.1:x/y"])
def test_addresses_that_are_none(server, tmp_path, url):
    with pytest.raises(InputError):
        get(tmp_path, url=url)
    assert cached("tiny", tmp_path) is None


def test_two_pulls_at_once(server, tmp_path):
    results = []

    def run():
        try:
            results.append(get(tmp_path))
        except InputError as error:
            results.append(str(error))

    # The first is held in the middle of its download while the second comes.
    server.stall, server.break_after = threading.Event(), [len(FILE) // 2]
    first = threading.Thread(target=run)
    first.start()
    while not left(tmp_path):
        assert first.is_alive()
        threading.Event().wait(0.01)
    run()
    assert len(results) == 1 and "Another pull of tiny" in results[0]
    server.stall.set()
    first.join(60)
    assert results[1] == tmp_path / "tiny"
    check(results[1], tmp_path)


def test_the_lock_holds_between_processes_and_dies_with_them(server, tmp_path):
    code = (
        "import sys, time, pathlib; sys.path.insert(0, sys.argv[2])\n"
        "from ddfm.prior.download import _only_one\n"
        "with _only_one(pathlib.Path(sys.argv[1]), 'tiny'):\n"
        "    print('held', flush=True); time.sleep(60)\n"
    )
    source = str(Path(download.__file__).parents[2])
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / ".tiny.lock"), source], stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        refused(tmp_path, "Another pull of tiny")
    finally:
        holder.kill()
        holder.communicate()
    check(get(tmp_path), tmp_path)


def test_ctrl_c_keeps_the_part_and_says_how_to_go_on(server, tmp_path, monkeypatch, capsys):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    server.break_after = [700_000]
    with monkeypatch.context() as patch:
        patch.setattr(download.time, "sleep", interrupt)  # where Ctrl-C finds it waiting for the second try
        with pytest.raises(KeyboardInterrupt):
            get(tmp_path)
    said = capsys.readouterr().err
    assert "ddfm prior pull tiny" in said and "0.7 of 2.9 MB" in said
    assert left(tmp_path) == 700_000
    check(get(tmp_path), tmp_path)
    assert server.asked[-1]["Range"] == "bytes=700000-"


def test_killed_before_conversion_goes_on_without_the_network(server, tmp_path):
    work = tmp_path / ".tiny.download"
    work.mkdir()
    (work / "weights.pt").write_bytes(FILE)
    (work / "converted" / "unet").mkdir(parents=True)
    (work / "converted" / "unet" / "config.json").write_text("{")
    (tmp_path / "tiny").mkdir()  # and a folder that is no whole prior in its place
    check(get(tmp_path), tmp_path)
    assert server.asked == []


def test_no_room_on_the_disk(server, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 2 * len(FILE) - 1})
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage)
    refused(tmp_path, "GB are needed")
    assert server.asked == []
    usage.free += 1
    check(get(tmp_path), tmp_path)


def test_a_cache_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="Cannot write to the cache"):
        get(tmp_path / "file" / "cache")


def test_a_disk_that_fills_up_while_converting(server, tmp_path, monkeypatch):
    def full(*args, **options):
        raise SafetensorError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(UNet2DModel, "save_pretrained", full)
        refused(tmp_path, "No space left")
    check(get(tmp_path), tmp_path)
    assert len(server.asked) == 1, "what was downloaded is not downloaded again"


def test_unknown_name(tmp_path):
    with pytest.raises(InputError, match="'openai-1024'; there is openai-256"):
        pull("openai-1024", cache_dir=tmp_path)


def test_progress_is_shown_on_standard_error(server, tmp_path, capsys):
    pull("tiny", cache_dir=tmp_path)
    out = capsys.readouterr()
    assert out.out == ""
    assert "download" in out.err and "2.9/2.9 MB" in out.err


def test_cache_dir(monkeypatch, tmp_path):
    for name in ("DDFM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "ddfm"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "ddfm"
    monkeypatch.setenv("DDFM_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"
    assert cached("openai-256") is None


def test_what_is_published():
    item = download.PUBLISHED["openai-256"]
    assert item.url.startswith("https://openaipublic.blob.core.windows.net/diffusion/jul-2021/256x256_")
    assert (item.size, item.sha256[:8], len(item.sha256)) == (2_211_383_297, "a37c32ff", 64)
