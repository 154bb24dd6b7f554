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

INTERRUPTED = 130  # what a program exits with that was told to stop: 128, and the number of Ctrl-C's signal
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Ears:
    """What was heard, and what follows from it.

    Attributes:
        listening: whether anybody listens.
        alone: whether the process is the program's own, which may end at once.
        asked: whether the user asked to stop.
        careful: how many blocks are open in which the process may not end at once.
    """

    listening = alone = asked = False
    careful = 0


_ears = _Ears()


def _hear(*_: int | FrameType | None) -> None:
    _ears.asked = True
    if _ears.alone and not _ears.careful:
        _leave()
    raise KeyboardInterrupt


def _leave() -> None:
    """End the process at once, with the line that an interrupted command says."""
    shown = "\x1b[?25h\n" if sys.stderr is not None and sys.stderr.isatty() else ""  # a status line hides the cursor
    with contextlib.suppress(OSError):
        os.write(2, f"{shown}error: interrupted\n".encode())
    os._exit(INTERRUPTED)


def listen() -> None:
    """Take Ctrl-C and SIGTERM for the user's wish from now on, in a process of the program's own.

    Outside of `careful` they end it at once: what is under way then, imports above all, may swallow a
    KeyboardInterrupt, or turn it into something else. A signal that whoever started the process ignores stays ignored.
    """
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _hear)
    _ears.listening, _ears.alone, _ears.asked = True, True, False


def ignore() -> None:
    """Be deaf from now on: the program has said all that it has to say, and is about to end."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def was_asked() -> bool:
    """Whether the user asked to stop, as far as anybody listened."""
    return _ears.asked


def stop_if_asked() -> None:
    """Raise KeyboardInterrupt where the user asked to stop and something swallowed that."""
    if _ears.asked:
        raise KeyboardInterrupt


def is_users(error: BaseException) -> bool:
    """Whether an error is the KeyboardInterrupt of the user; where nobody listens it is taken for that."""
    return isinstance(error, KeyboardInterrupt) and (_ears.asked or not _ears.listening)


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Listen to Ctrl-C within the block, where nobody does yet and Python lets us."""
    before = signal.getsignal(signal.SIGINT)
    known = before in (signal.default_int_handler, signal.SIG_IGN)  # ignored: then none is the user's
    if _ears.listening or not known or threading.current_thread() is not threading.main_thread():
        yield
        return
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _hear)
    _ears.listening, _ears.asked = True, False
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        _ears.listening = _ears.asked = False


@contextlib.contextmanager
def careful() -> Iterator[None]:
    """Within the block a wish to stop raises KeyboardInterrupt: there is something to keep, or to clean up."""
    _ears.careful += 1
    try:
        yield
    finally:
        _ears.careful -= 1
