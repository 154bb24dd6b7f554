"""A process of several that was told to end: by its launcher's SIGTERM, or by another process being gone."""

import os
import signal

import pytest
import torch

from defend.errors import ProcessLostError
from defend.util import processes


@pytest.fixture
def started():
    """As in a process that a launcher started."""
    before = signal.signal(signal.SIGTERM, processes._stop)
    yield
    signal.signal(signal.SIGTERM, before)


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)
    signal.getsignal(signal.SIGTERM)  # Python runs a handler between two instructions


@pytest.mark.usefixtures("started")
def test_the_launcher_is_heard_once():
    with pytest.raises(ProcessLostError, match="the launcher stopped this process"):
        terminate()
    terminate()  # while the error is on its way, with what it says of the results that are kept


@pytest.mark.usefixtures("started")
def test_a_lost_process_is_not_said_twice(monkeypatch):
    def gone(*_):
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(torch.distributed, "all_gather_object", gone)
    with pytest.raises(ProcessLostError, match=r"gone \(Connection closed by peer\)"):
        processes.Processes(0, 2).gather(1, "a row")
    terminate()


def test_who_else_listens_is_left_alone(monkeypatch):
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
    try:
        processes._ignore_launcher()
        terminate()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [1]


def test_processes_at_different_places_of_a_run_are_told_so(monkeypatch):
    def meet(found, mine):
        found[:] = [mine, ("its report", [1])]

    monkeypatch.setattr(torch.distributed, "all_gather_object", meet)
    with pytest.raises(ProcessLostError, match="process 0 of this run is at row 1, and another at its report: one was"):
        processes.Processes(0, 2).gather(1, "row 1")
    monkeypatch.setattr(
        torch.distributed, "all_gather_object", lambda found, mine: found.__setitem__(slice(None), [mine] * 2)
    )
    assert processes.Processes(0, 2).gather(1, "row 1") == [1, 1]
    assert processes.Processes(0, 2).tell(3, "row 1") == 3
