"""Threads: as many as there are free cores, one at least, and the caller's number again afterwards."""

import threading

import pytest
import torch

from ddfm import threads
from ddfm.threads import on_free_cores

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def four_threads(monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("others", "expected"), [(0, 4), (1, 3), (3, 1), (4, 1), (90, 1), (None, 4)])
def test_one_thread_for_each_free_core(monkeypatch, others, expected):
    monkeypatch.setattr(threads, "_other_threads", lambda: others)
    with on_free_cores(CPU):
        assert torch.get_num_threads() == expected
    assert torch.get_num_threads() == 4


def test_the_number_is_restored_after_an_error(monkeypatch):
    monkeypatch.setattr(threads, "_other_threads", lambda: 4)
    with pytest.raises(ValueError, match="inside"), on_free_cores(CPU):
        raise ValueError("inside")
    assert torch.get_num_threads() == 4


def test_a_single_thread_and_other_devices_are_left_alone(monkeypatch):
    monkeypatch.setattr(threads, "_other_threads", lambda: pytest.fail("asked"))
    with on_free_cores(torch.device("meta")):
        assert torch.get_num_threads() == 4
    torch.set_num_threads(1)
    with on_free_cores(CPU):
        assert torch.get_num_threads() == 1


@pytest.mark.parametrize("content", ["", "0.1 0.2", "a b c d e", None])
def test_a_system_that_does_not_say_changes_nothing(monkeypatch, tmp_path, content):
    if content is not None:
        (tmp_path / "loadavg").write_text(content)
    monkeypatch.setattr(threads, "LOADAVG", tmp_path / "loadavg")
    with on_free_cores(CPU):
        assert torch.get_num_threads() == 4


@pytest.mark.skipif(not threads.LOADAVG.exists(), reason="only Linux counts running threads there")
def test_own_threads_are_not_other_programs(monkeypatch, tmp_path):
    """With a count of running threads as it was before, this program's own busy threads lower the others'."""
    (tmp_path / "loadavg").write_text("0 0 0 9/100 1")
    monkeypatch.setattr(threads, "LOADAVG", tmp_path / "loadavg")
    idle, stop = threads._other_threads(), threading.Event()
    x = torch.randn(1500, 1500)

    def work():
        while not stop.is_set():
            x @ x

    torch.set_num_threads(1)
    worker = threading.Thread(target=work)
    worker.start()
    try:
        busy = threads._other_threads()
    finally:
        stop.set()
        worker.join()
    assert idle is not None and busy is not None and busy < idle
