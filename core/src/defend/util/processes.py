"""Several processes as one run, as torchrun and its likes start them, on torch's own distributed engine."""

from __future__ import annotations

import atexit
import contextlib
import datetime
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import attrs
import torch
from torch import Tensor

from defend.errors import ConfigError, DefendError, ProcessLostError, did_you_mean
from defend.util.launch import place

T = TypeVar("T")
DEVICES = ("auto", "cpu", "cuda", "mps", "xpu")
PATIENCE = datetime.timedelta(hours=12)  # processes wait for each other's batches; one that dies is noticed at once
LETTING_GO = 0.5  # seconds, at the end of a process


@attrs.frozen
class Processes:
    """The processes that share a run: this one is number `rank` of `world`."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def gather(self, value: T, what: str) -> list[T]:
        """Return every process's value, in the order of ranks; all of them must call, and for the same.

        Args:
            value: what can be pickled.
            what: what it is, in words: a process that was stopped, or that failed, comes with something else.

        Raises:
            ProcessLostError: one of them is gone, or at another place of the run.
        """
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        with _noticing_loss():
            torch.distributed.all_gather_object(found, (what, value))
        if places := sorted({place for place, _ in found} - {what}):
            _ignore_launcher()
            raise ProcessLostError(
                f"process {self.rank} of this run is at {what}, and another at {places[0]}: one was stopped, or failed"
            )
        return [each for _, each in found]

    def tell(self, value: T, what: str) -> T:
        """Return process 0's value; all of them must call, see `gather`."""
        return self.gather(value, what)[0]

    def do_first(self, work: Callable[[], T], what: str) -> T:
        """Let process 0 alone do something, and return in every process what it returned; see `gather`.

        Raises:
            DefendError: what the work raised, in every process.
            ProcessLostError: one of them is gone, as process 0 is when the work raises anything else.
        """
        if self.world == 1:
            return work()
        done: T | None = None
        failed: DefendError | None = None
        if self.first:
            try:
                done = work()
            except DefendError as error:
                failed = error
        # not the error itself: what an error is made from, it need not be made from again
        done, kind, said = self.tell((done, type(failed), str(failed)), what)
        if failed is not None:
            raise failed
        if issubclass(kind, DefendError):
            raise kind.__new__(kind, said)
        return done  # type: ignore[return-value]

    def find_difference(self, said: Mapping[str, Any]) -> tuple[int, str] | None:
        """Return the first process that says otherwise than process 0, and of what; None where all say the same."""
        first, *others = self.gather(dict(said), "what it computes with")
        for rank, other in enumerate(others, start=1):
            for what in (*first, *other):
                if first.get(what) != other.get(what):
                    return rank, what
        return None

    @torch.no_grad()
    def share(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Write process 0's values into the tensors of every process, in place; all of them must call.

        Args:
            tensors: of the same names, types and shapes everywhere, dense; on any device.
            device: this process's own, over which they travel.

        Raises:
            ProcessLostError: one of them is gone.
        """
        held = [tensors[name] for name in sorted(tensors) if tensors[name].numel()]
        if self.world == 1 or not held:
            return
        # as bytes: no backend carries every type, and one message takes less than one a tensor
        flat = [each.detach().to(device).contiguous().reshape(-1).view(torch.uint8) for each in held]
        carried = torch.cat(flat)
        with _noticing_loss():
            torch.distributed.broadcast(carried, src=0)
        if self.first:
            return
        for each, part in zip(held, carried.split([len(one) for one in flat]), strict=True):
            # a copy lies where its type may
            each.copy_(part.clone().view(each.dtype).reshape(each.shape))


@contextlib.contextmanager
def _noticing_loss() -> Iterator[None]:
    """Say in words that another process is gone, which torch tells of in many ways."""
    try:
        yield
    except RuntimeError as error:
        _ignore_launcher()
        raise ProcessLostError(f"another process of this run is gone ({_first_line(error)})") from None


def _leave() -> None:
    """Part from the other processes, and let the threads that talked to them finish.

    Such a thread lets go of the tensors of its last message after the message is there, for which it needs Python's
    lock. Where Python is ending by then it aborts the process, after all its work is done ("terminate called without
    an active exception").
    """
    if torch.distributed.is_initialized():
        with contextlib.suppress(RuntimeError):
            torch.distributed.destroy_process_group()
        time.sleep(LETTING_GO)


def join(device: torch.device) -> tuple[Processes, torch.device]:
    """Meet the other processes, if a launcher started several; return them and this one's device.

    Each process on a machine with GPUs gets one of its own; on CPUs gloo connects them. A process alone has the device
    that was asked for.

    Raises:
        ConfigError: what the launcher says of them does not fit together, they do not meet, or they met before on
            devices of another kind.
    """
    rank, world = place()
    if world == 1:
        return Processes(), device
    from accelerate import PartialState

    try:
        state: Any = PartialState(cpu=device.type == "cpu", timeout=PATIENCE)
        atexit.register(_leave)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"process {rank} of {world} cannot meet the others: {_first_line(error)}") from None
    if (state.process_index, state.num_processes) != (rank, world):
        raise ConfigError(
            f"the environment says process {rank} of {world}, and torch found process {state.process_index} of "
            f"{state.num_processes}: start the run with torchrun"
        )
    # Python lets no other thread set a handler
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _stop)
    if state.device.type != device.type:
        raise ConfigError(
            f"device {device.type} was asked for, and these {world} processes share work on {state.device.type}: "
            f"ask for {state.device.type}"
        )
    # of several GPUs that this process sees, the one that it talks to the others over: under some launchers it sees one
    own = state.device if device.type != "cpu" else device
    return Processes(state.process_index, state.num_processes), own


def _stop(*_: Any) -> None:
    _ignore_launcher()
    raise ProcessLostError("the launcher stopped this process, as another one failed or the run was ended")


def _ignore_launcher() -> None:
    """Be deaf to the launcher: this process is ending, and a second error would take the place of the first."""
    if signal.getsignal(signal.SIGTERM) is _stop:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0][:120]


def resolve_device(name: str) -> torch.device:
    """Turn "auto" (CUDA where it is there, else the CPU) or any device's name that torch knows into a device.

    Raises:
        ConfigError: unknown, or not there.
    """
    name = str(name)  # one of torch's is named as well
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # a device that keeps no numbers (meta) computes none
    except (RuntimeError, AssertionError) as error:  # NotImplementedError is one
        kind = name.partition(":")[0].lower()
        if kind in DEVICES:
            cause = str(error).splitlines()[0]
            raise ConfigError(
                f"device {name!r} cannot be used ({cause[:100]}): expected auto, or one that this machine has"
            ) from None
        near = did_you_mean("cuda" if kind == "gpu" else kind, DEVICES)
        raise ConfigError(f"device {name!r} is none that torch knows: {near}") from None
    return device
