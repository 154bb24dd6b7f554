"""The user's wish to stop, by Ctrl-C or SIGTERM, told apart from a part that raises KeyboardInterrupt by itself.

Imports nothing slow: the program listens from its first moment.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

import attrs

INTERRUPTED = 130  # what a program exits with that was told to stop: 128, and the number of Ctrl-C's signal
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@attrs.define
class _Ears:
    """Whether somebody listens, whether the user asked to stop, and whether that ends the process at once."""

    listening: bool = False
    asked: bool = False
    leaving: int = 0


_ears = _Ears()


def _hear(*_: int | FrameType | None) -> None:
    _ears.asked = True
    if _ears.leaving:
        say_and_leave()
    raise KeyboardInterrupt


def say_and_leave() -> None:
    """End the process at once, with the line that an interrupted command says."""
    shown = "\x1b[?25h" if sys.stderr is not None and sys.stderr.isatty() else ""  # a status line hides the cursor
    os.write(2, f"{shown}\nerror: interrupted\n".encode())
    os._exit(INTERRUPTED)


def listen() -> None:
    """Take a Ctrl-C and a SIGTERM for the user's wish from now on: each raises KeyboardInterrupt."""
    for number in SIGNALS:
        signal.signal(number, _hear)
    _ears.listening, _ears.asked = True, False


def ignore() -> None:
    """Be deaf from now on: the program has said all that it has to say, and is about to end."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def was_asked() -> bool:
    """Whether the user asked to stop, as far as anybody listened."""
    return _ears.asked


def is_users(error: BaseException) -> bool:
    """Whether a KeyboardInterrupt is the user's: where nobody listens it is taken for that."""
    return isinstance(error, KeyboardInterrupt) and (_ears.asked or not _ears.listening)


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Listen to Ctrl-C within the block, where nobody does yet and Python lets us."""
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if _ears.listening or not usual or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, _hear)
    _ears.listening, _ears.asked = True, False
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _ears.listening = False


@contextlib.contextmanager
def leaving() -> Iterator[None]:
    """Within the block a wish to stop ends the process at once: imports are under way, which may swallow it."""
    _ears.leaving += 1
    try:
        yield
    finally:
        _ears.leaving -= 1
