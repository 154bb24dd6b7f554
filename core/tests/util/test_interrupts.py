"""Ctrl-C is the user's where it came as a signal, and nobody else's."""

import signal
import subprocess
import sys

import pytest

from defend.util import interrupts


@pytest.fixture(autouse=True)
def heard():
    """Python's own handler, whatever this process was started with; children inherit what is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_usual_handler_is_back_after_the_block():
    before = signal.getsignal(signal.SIGINT)
    with interrupts.listening():
        assert signal.getsignal(signal.SIGINT) is not before
        assert not interrupts.is_users(KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert interrupts.is_users(KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            interrupts.stop_if_asked()
    assert signal.getsignal(signal.SIGINT) is before
    assert not interrupts.was_asked()


def run(program):
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_program_ends_at_once_unless_it_is_careful(number):
    begin = f"import signal; from defend.util import interrupts; interrupts.listen()\nnumber = signal.{number}\n"
    ended = run(begin + "try: signal.raise_signal(number)\nexcept KeyboardInterrupt: print('kept')")
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "error: interrupted\n")
    careful = begin + (
        "with interrupts.careful():\n"
        "    try: signal.raise_signal(number)\n"
        "    except KeyboardInterrupt: print('kept')\n"
        "interrupts.ignore(); signal.raise_signal(number)"
    )
    kept = run(careful)
    assert (kept.returncode, kept.stdout, kept.stderr) == (0, "kept\n", "")
