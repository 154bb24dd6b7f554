"""Whatever somebody else's code raises becomes one line that says whose it was."""

import signal

import pytest
import torch

from defend.boundary.calls import Calling, say_cause
from defend.errors import ContractError, StageError
from defend.util import interrupts


class Mute(Exception):
    def __str__(self):
        raise RuntimeError


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (ValueError("odd\n  thing"), "ValueError: odd thing"),
        (SystemExit(0), "SystemExit: 0"),
        (GeneratorExit(), "GeneratorExit: no message"),
        (StopIteration(), "StopIteration: no message"),
        (Mute(), "Mute: no message"),
    ],
)
def test_stage_method_and_shapes_are_named(raised, said):
    with pytest.raises(StageError) as error, Calling("purifier p", "forward", torch.zeros(2, 3)):
        raise raised
    assert (
        str(error.value) == f"purifier p failed in forward on [2, 3] float32: {said} (--debug shows where in its code)"
    )
    assert error.value.__cause__ is raised


@pytest.mark.parametrize(
    "raised", [ContractError("it says so itself"), MemoryError(), RuntimeError("CUDA out of memory.")]
)
def test_what_the_host_understands_passes_as_it_is(raised):
    with pytest.raises(type(raised)) as error, Calling("purifier p", "forward"):
        raise raised
    assert error.value is raised


@pytest.fixture
def heard():
    """Python's own handler, whatever this process was started with."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_where_ctrl_c_is_ignored_none_is_the_users():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts.listening(), pytest.raises(StageError), Calling("purifier p", "forward"):
            raise KeyboardInterrupt
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
def test_a_stage_that_interrupts_by_itself_is_told_apart_from_the_user():
    with pytest.raises(KeyboardInterrupt), Calling("purifier p", "forward"):
        raise KeyboardInterrupt  # nobody listens: it may be the user's
    with interrupts.listening():
        with pytest.raises(StageError, match="KeyboardInterrupt"), Calling("purifier p", "forward"):
            raise KeyboardInterrupt
        with pytest.raises(KeyboardInterrupt), Calling("purifier p", "forward"):
            signal.raise_signal(signal.SIGINT)


def test_long_causes_are_cut():
    assert len(say_cause(ValueError("x" * 5000))) < 330
