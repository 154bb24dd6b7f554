"""A call of what others wrote: what it raises becomes one line that says whose it was, and in what. Without torch."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from defend.errors import DefendError, StageError
from defend.util import interrupts
from defend.util.memory import out_of_memory

LONGEST_CAUSE = 300


class Calling:
    """Within the block code of a stage runs; what it raises, be it SystemExit, is raised as a `StageError`.

    What passes as it is: a `DefendError`, which names what it is of; memory that ran out, as fewer images at a time
    may fit; the user's own Ctrl-C.

    Args:
        who: whose code, for example "purifier dae".
        what: which part of it, for example "forward".
        given: what it was called with; of tensors the shape is told.
    """

    __slots__ = ("_given", "_what", "_who")

    def __init__(self, who: str, what: str, *given: Any) -> None:
        self._who, self._what, self._given = who, what, given

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        if error is None or isinstance(error, DefendError) or interrupts.is_users(error):
            return
        if out_of_memory(error):
            return
        shapes = [f"{list(each.shape)} {str(each.dtype).removeprefix('torch.')}" for each in self._given]
        on = f" on {', '.join(shapes)}" if shapes else ""
        raise StageError(
            f"{self._who} failed in {self._what}{on}: {say_cause(error)} (--debug shows where in its code)"
        ) from error


def say_cause(error: BaseException) -> str:
    """Return an error of somebody else's code as one line: its type, and what it says."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # even its own words may fail
        text = ""
    short = text if len(text) <= LONGEST_CAUSE else f"{text[:LONGEST_CAUSE]}..."
    return f"{type(error).__name__}: {short or 'no message'}"
