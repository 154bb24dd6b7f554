"""A process of several that was told to end: by its launcher's SIGTERM, or by another process being gone."""

import os
import signal
import threading
from types import SimpleNamespace

import accelerate
import pytest
import torch

from defend.errors import ConfigError, ProcessLostError, UnknownNameError
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

    def agree(found, mine):
        found[:] = [mine, mine]

    monkeypatch.setattr(torch.distributed, "all_gather_object", agree)
    assert processes.Processes(0, 2).gather(1, "row 1") == [1, 1]
    assert processes.Processes(0, 2).tell(3, "row 1") == 3


@pytest.fixture
def met_on(monkeypatch):
    """Say which device accelerate gives to process 1 of two, which its launcher numbers 1 on its machine."""

    def meet(device):
        place = {"process_index": 1, "num_processes": 2, "local_process_index": 1, "device": torch.device(device)}
        monkeypatch.setattr(accelerate, "PartialState", lambda **_: SimpleNamespace(**place))

    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    return meet


@pytest.mark.usefixtures("started")
@pytest.mark.parametrize(
    ("asked", "met", "own"),
    [
        ("cuda", "cuda:1", "cuda:1"),
        ("cuda", "cuda:0", "cuda:0"),  # a launcher that shows every process one GPU alone
        ("cuda:0", "cuda:1", "cuda:1"),  # each has its own
        ("xpu", "xpu:1", "xpu:1"),
        ("cpu", "cpu:0", "cpu"),
    ],
)
def test_each_process_computes_on_the_device_that_it_talks_to_the_others_over(met_on, asked, met, own):
    met_on(met)
    found, device = processes.join(torch.device(asked))
    assert (found, device) == (processes.Processes(1, 2), torch.device(own))


@pytest.mark.usefixtures("started")
def test_processes_that_met_elsewhere_are_refused(met_on):
    met_on("cpu")
    with pytest.raises(ConfigError, match="device cuda was asked for, and these 2 processes share work on cpu"):
        processes.join(torch.device("cuda"))


class Second(processes.Processes):
    """The second of two, which is told what the first one said."""

    def gather(self, value, what):
        return [self.told, value]


def test_an_error_of_the_first_process_is_raised_in_every_other():
    second = Second(1, 2)

    def never():
        raise AssertionError("only the first process does it")

    object.__setattr__(second, "told", (7, type(None), "None"))
    assert second.do_first(never, "its file") == 7
    error = UnknownNameError("victim", "resnet", ["resnet18"])  # which is made of more than a message
    object.__setattr__(second, "told", (None, type(error), str(error)))
    with pytest.raises(UnknownNameError, match="did you mean 'resnet18'"):
        second.do_first(never, "its file")


def test_a_process_that_leaves_lets_the_threads_of_its_messages_finish(monkeypatch):
    # torch's threads let go of the last tensors a moment after the message is there, and abort once Python is ending
    let_go = []
    held = threading.Timer(0.05, lambda: let_go.append("the last tensor"))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", held.start)
    processes._leave()
    assert let_go == ["the last tensor"]
