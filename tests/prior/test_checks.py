"""Priors that are not what they say: refused in a sentence, without waiting, and before memory is made for them."""

import json
import os
import re
import shutil
import signal
import time
import zipfile

import pytest
import torch
from conftest import DATA, tiny_unet
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

import ddfm.prior.download
from ddfm.errors import InputError
from ddfm.prior.download import PUBLISHED, Published, cache_dir, cached, pull
from ddfm.prior.export import from_checkpoint
from ddfm.prior.load import load_prior
from ddfm.prior.unet import ResidualUNet


@pytest.fixture(autouse=True)
def no_hang():
    """A file that is waited for ends the test, not the suite."""

    def hung(*args):
        raise AssertionError("waited for a file that never ends")

    before = signal.signal(signal.SIGALRM, hung)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(params=["UnshuffleUNet2DModel", "ResidualUNet"])
def folder(tmp_path, request):
    if request.param == "ResidualUNet":
        unet = ResidualUNet(block_out_channels=(8, 16), layers_per_block=(1, 1))
        unet.save_pretrained(tmp_path / "prior" / "unet")
        unet.schedule.save_pretrained(tmp_path / "prior" / "scheduler")
    else:
        tiny_unet().save_pretrained(tmp_path / "prior" / "unet")
        DDPMScheduler().save_pretrained(tmp_path / "prior" / "scheduler")
    return tmp_path / "prior"


@pytest.fixture
def checkpoint(tmp_path):
    for suffix in (".pt", ".json"):
        shutil.copy(DATA / f"tiny_adm{suffix}", tmp_path / f"net{suffix}")
    return tmp_path / "net.pt"


def refused(load, *words):
    with pytest.raises(InputError) as error:
        load()
    sentence = str(error.value)
    assert "\n" not in sentence and sentence.endswith(".") and len(sentence) < 1000
    assert all(re.search(word, sentence) for word in words), sentence


FILES = ("unet/config.json", "unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/dev/zero", path)], ids=["pipe", "device"])
def test_a_folder_with_a_pipe_or_a_device(folder, file, make):
    (folder / file).unlink()
    make(folder / file)
    refused(lambda: load_prior(folder), "not a regular file")


@pytest.mark.parametrize("suffix", [".pt", ".json"])
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/dev/zero", path)], ids=["pipe", "device"])
def test_a_checkpoint_that_is_a_pipe_or_a_device(checkpoint, suffix, make):
    checkpoint.with_suffix(suffix).unlink()
    make(checkpoint.with_suffix(suffix))
    refused(lambda: load_prior(checkpoint), "not a regular file")
    if suffix == ".pt":
        refused(lambda: from_checkpoint(checkpoint), "not the checkpoint")


NUMBERS = [1e30, -1e30, 10**400, float("inf"), float("nan"), 2**40]


@pytest.mark.parametrize("value", NUMBERS, ids=lambda value: str(value)[:10])
@pytest.mark.parametrize("key", ["in_channels", "block_out_channels"])
def test_a_network_of_impossible_numbers(folder, key, value):
    path = folder / FILES[0]
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {key: [value, value] if key == "block_out_channels" else value}))
    refused(lambda: load_prior(folder), "which no network has")


@pytest.mark.parametrize(
    "change",
    [
        {"block_out_channels": [8] * 20_000},
        {"block_out_channels": [8] * 17, "layers_per_block": [1] * 17},
        {"layers_per_block": 100_000},
        {"layers_per_block": [100_000, 1]},
        {"block_out_channels": [65_536, 65_536]},
        {"block_out_channels": []},
        {"block_out_channels": "many"},
        {"in_channels": -1},
        {"in_channels": "x"},
        {"_class_name": "os.system"},
        {"_class_name": None},
    ],
    ids=str,
)
def test_a_network_that_would_not_fit_its_weights(folder, change):
    path = folder / FILES[0]
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refused(lambda: load_prior(folder))


@pytest.mark.parametrize("text", [b"[" * 200_000, b'{"a":' * 200_000, b"", b"\xff", b"3", b"{}", b" " * 2**21])
@pytest.mark.parametrize("file", [FILES[0], FILES[2]])
def test_a_configuration_that_is_none(folder, file, text):
    if text == b"{}" and file == FILES[2]:
        return  # all defaults
    (folder / file).write_bytes(text)
    refused(lambda: load_prior(folder))


@pytest.mark.parametrize(
    "change",
    [
        *({"beta_start": value} for value in (-0.1, float("nan"), float("inf"), 1e30, 2)),
        {"trained_betas": [-0.1] * 1000},
        {"trained_betas": [1] * 100_000},
        {"num_train_timesteps": 10**12},
        {"num_train_timesteps": -3},
        {"num_train_timesteps": "x"},
        {"prediction_type": "wish"},
    ],
    ids=lambda change: str(change)[:40],
)
def test_a_schedule_that_is_none(folder, change):
    path = folder / FILES[2]
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refused(lambda: load_prior(folder))


@pytest.mark.parametrize(
    "change",
    [
        {"channel_mult": [1] * 20_000},
        {"channel_mult": ",".join(["1"] * 20_000)},
        *({"channel_mult": [1, value]} for value in (*NUMBERS, -1, "x", None)),
        *({"attention_resolutions": [value]} for value in NUMBERS),
        *({key: value} for key in ("image_size", "num_channels", "num_res_blocks") for value in (*NUMBERS, -1, 2**19)),
        {"dropout": float("nan")},
    ],
    ids=lambda change: str(change)[:40],
)
def test_create_model_arguments_that_are_none(checkpoint, change):
    path = checkpoint.with_suffix(".json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refused(lambda: load_prior(checkpoint), r"net\.(json|pt)")


def test_a_checkpoint_that_unfolds_in_memory(checkpoint):
    with zipfile.ZipFile(checkpoint, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/data.pkl", bytes(2**24))
    refused(lambda: load_prior(checkpoint), "compressed")


def test_names_that_are_no_priors():
    for name in ("x" * 5000, "a/" * 2500, "nul\0", "\udcff", "~nobody", "", "."):
        refused(lambda name=name: load_prior(name))


# --------------------------------------------------------------------------------------------------- the cache


def test_a_cache_in_nobodys_home(monkeypatch):
    monkeypatch.setenv("DDFM_CACHE", "~nobody-of-this-name/x")
    refused(cache_dir, "DDFM_CACHE")
    refused(lambda: load_prior("openai-256"), "DDFM_CACHE")


@pytest.mark.parametrize(
    "name", [".openai-256.lock", ".openai-256.download/weights.pt", ".openai-256.download/weights.pt.part"]
)
def test_a_cache_with_pipes(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / name)
    refused(lambda: pull(cache_dir=tmp_path, progress=False), "not a regular file")
    assert cached(cache_dir=tmp_path) is None


def test_what_is_in_the_way_is_left_there(tmp_path):
    (tmp_path / "openai-256").mkdir()
    (tmp_path / "openai-256" / "mine").touch()
    refused(lambda: pull(cache_dir=tmp_path, progress=False), "in the way")
    assert (tmp_path / "openai-256" / "mine").exists()


class Dribbling:
    """A response whose bytes come one by one, each after what the clock says are twenty seconds."""

    status_code = 200

    def __init__(self, clock):
        self.clock, self.headers, self.sent = clock, {"Content-Length": "1000000"}, 0
        self.raw = self

    def raise_for_status(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *args):
        pass

    def read1(self, size):
        self.clock[0] += 20
        self.sent += 1
        return b"x"


def test_a_server_that_dribbles_is_given_up(tmp_path, monkeypatch):
    clock, responses = [0.0], []

    def answer(url, headers, stream, timeout):
        responses.append(Dribbling(clock))
        return responses[-1]

    monkeypatch.setitem(PUBLISHED, "tiny", Published("http://localhost/x.pt", 1_000_000, "0" * 64))
    monkeypatch.setattr(ddfm.prior.download.requests, "get", answer)
    monkeypatch.setattr(ddfm.prior.download.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(ddfm.prior.download, "BACKOFF", 0)
    refused(lambda: pull("tiny", tmp_path, progress=False), "bytes a second", "pull again")
    assert len(responses) == 5 and sum(response.sent for response in responses) < 30


def test_a_server_that_dribbles_its_headers_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setitem(PUBLISHED, "tiny", Published("http://localhost/x.pt", 1_000_000, "0" * 64))
    monkeypatch.setattr(ddfm.prior.download.requests, "get", lambda *args, **kwargs: time.sleep(2))
    monkeypatch.setattr(ddfm.prior.download, "PATIENCE", 0.01)
    monkeypatch.setattr(ddfm.prior.download, "BACKOFF", 0)
    refused(lambda: pull("tiny", tmp_path, progress=False), "nothing arrived", "pull again")


def test_what_is_right_is_loaded(folder, checkpoint):
    assert isinstance(load_prior(folder, "cpu").unet, torch.nn.Module)
    assert isinstance(load_prior(checkpoint, "cpu").unet, torch.nn.Module)
