"""Random draws that belong to an image, not to a batch.

A plugin draws with `uniform_like`, `normal_like` or `sign_like`. Inside `keyed(...)`, which the
evaluation opens, the numbers depend only on the image's key, the seed, the stream's name and how
many draws came before; so batch size, order, workers and processes change nothing, and CPU and GPU
draw the same integers. Outside of it they come from torch's global generator, as users of an
`nn.Module` expect.

The generator is counter-based: splitmix64 (Steele, Lea and Flood, 2014) over (key, draw, position).
"""

from __future__ import annotations

import contextlib
import contextvars
import hashlib
import math
from collections.abc import Iterator

import attrs
import torch
from torch import Tensor

from defend.errors import ContractError

APART = 40  # bits of a key below the number of its draw, where one image has several at a time
ATTACKER = "attacker/"  # begins the names of an attacker's streams


class _Draws:
    """The state of one `keyed` block: a base number per image, a count of draws, and what the block was opened with."""

    def __init__(self, base: Tensor, keys: Tensor, seed: int, stream: str) -> None:
        self.base, self.keys, self.seed, self.stream = base, keys, seed, stream
        self.count = 0


_current: contextvars.ContextVar[_Draws | None] = contextvars.ContextVar("defend_draws", default=None)

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


@contextlib.contextmanager
def keyed(keys: Tensor, *, seed: int, stream: str) -> Iterator[None]:
    """Make every draw in this block depend on `keys` (int64 [B]), `seed` and `stream` alone."""
    with _drawing_from(_Draws(_mix(keys * _GOLDEN + _stream_number(seed, stream)), keys, seed, stream)):
        yield


@contextlib.contextmanager
def _drawing_from(draws: _Draws) -> Iterator[None]:
    token = _current.set(draws)
    try:
        yield
    finally:
        _current.reset(token)


def open_keys() -> Tensor | None:
    """Return the keys of the innermost `keyed` block, int64 [B]; None outside of any."""
    draws = _current.get()
    return None if draws is None else draws.keys


def is_attackers() -> bool:
    """Whether the innermost `keyed` block has draws of an attacker, who does not know the judge's."""
    draws = _current.get()
    return draws is not None and draws.stream.startswith(ATTACKER)


@contextlib.contextmanager
def switched(stream: str) -> Iterator[None]:
    """Inside `keyed`, draw from another stream of the same images and seed, from its beginning; outside as ever."""
    draws = _current.get()
    with contextlib.nullcontext() if draws is None else keyed(draws.keys, seed=draws.seed, stream=stream):
        yield


def uniform_like(images: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Draw U[low, high) of the shape, dtype and device of `images` [B,...]."""
    return low + (high - low) * _unit(images, images.shape[1:].numel()).view_as(images).to(images.dtype)


def normal_like(images: Tensor) -> Tensor:
    """Draw N(0,1) of the shape, dtype and device of `images` [B,...] (Box-Muller)."""
    if _current.get() is None:
        return torch.randn_like(images)
    size = images.shape[1:].numel()
    # draws may be 0 but never 1, and the logarithm of 0 is infinite
    radius = (-2 * torch.log(1 - _unit(images, size))).sqrt()
    return (radius * torch.cos(2 * math.pi * _unit(images, size))).view_as(images).to(images.dtype)


def sign_like(images: Tensor) -> Tensor:
    """Draw -1 or +1 with equal chance: sign(N(0,I)) without its zeros."""
    drawn = _unit(images, images.shape[1:].numel()).view_as(images)  # rounded to half precision, 0.4999 is no chance
    return torch.where(drawn < 0.5, -1.0, 1.0).to(images.dtype)


def uniform_per_image(images: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Draw one U[low, high) per image: float [B]."""
    return low + (high - low) * _unit(images, 1)[:, 0]


def batch_seed() -> int | None:
    """Return a seed for code that draws by itself: of all images of the block, and another every time; None outside.

    Such draws belong to the batch, not to its images.
    """
    draws = _current.get()
    if draws is None:
        return None
    draws.count += 1
    return step_seed(int(draws.base.sum()), "batch", draws.count)


@contextlib.contextmanager
def narrowed(part: slice) -> Iterator[None]:
    """Inside `keyed`, draw for some of the images alone, from here on; the block then goes on where it ended."""
    draws = _current.get()
    if draws is None:
        yield
        return
    own = _Draws(draws.base[part], draws.keys[part], draws.seed, draws.stream)
    own.count = draws.count
    with _drawing_from(own):
        yield
    draws.count = own.count


@attrs.frozen
class Mark:
    """Where random draws stand: in a `keyed` block, or in torch's generators."""

    draws: _Draws | None
    count: int
    generator: Tensor | None
    device: torch.device
    device_generator: Tensor | None


def mark(device: torch.device) -> Mark:
    """Remember where draws on a device stand, for `resumed`."""
    draws = _current.get()
    if draws is not None:
        return Mark(draws, draws.count, None, device, None)
    on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return Mark(None, 0, torch.get_rng_state(), device, on_device)


@contextlib.contextmanager
def resumed(at: Mark) -> Iterator[None]:
    """Make the draws in this block those that followed the mark; afterwards nothing has changed outside."""
    if at.draws is not None:
        draws = _Draws(at.draws.base, at.draws.keys, at.draws.seed, at.draws.stream)
        draws.count = at.count
        with _drawing_from(draws):
            yield
        return
    with torch.random.fork_rng([at.device] if at.device_generator is not None else []):
        if at.generator is not None:
            torch.set_rng_state(at.generator)
        if at.device_generator is not None:
            torch.cuda.set_rng_state(at.device_generator, at.device)
        yield


def permutation(size: int, *, seed: int, stream: str) -> Tensor:
    """Return a permutation of `range(size)` that depends on `seed` and `stream` alone: int64 [size]."""
    numbers = _mix(torch.arange(size) * _GOLDEN + _stream_number(seed, stream))
    return torch.argsort(numbers, stable=True)


def step_seed(seed: int, *parts: int | str) -> int:
    """Return a seed for torch's generator that depends on `seed` and `parts`."""
    return _stream_number(seed, "/".join(map(str, parts))) & 0x7FFF_FFFF_FFFF_FFFF


def _unit(images: Tensor, size: int) -> Tensor:
    """Draw float32 [B,size] in [0,1), 24 random bits each."""
    draws = _current.get()
    if draws is None:
        return torch.rand(images.shape[0], size, device=images.device)
    if draws.base.shape[0] != images.shape[0]:
        raise ContractError(
            f"random draws for {images.shape[0]} images inside a block keyed for {draws.base.shape[0]}: "
            "draw for the whole batch, or open defend.randomness.keyed with the keys of the part"
        )
    draws.count += 1
    base = _mix(draws.base.to(images.device) + _wrap(draws.count * 0x632BE59BD9B4E019))
    position = torch.arange(1, size + 1, device=images.device) * _GOLDEN
    # float32 holds whole numbers of 24 bits exactly
    bits = _shift(_mix(base[:, None] + position), 40)
    return bits.to(torch.float32) * 2.0**-24


def _mix(number: Tensor) -> Tensor:
    """splitmix64's finaliser on int64, whose products wrap as unsigned ones do."""
    number = (number ^ _shift(number, 30)) * _MIX_1
    number = (number ^ _shift(number, 27)) * _MIX_2
    return number ^ _shift(number, 31)


def _shift(number: Tensor, bits: int) -> Tensor:
    """Logical shift right: torch's own keeps the sign."""
    return (number >> bits) & ((1 << (64 - bits)) - 1)


def _wrap(number: int) -> int:
    """Fold any integer into the signed 64-bit range, as a tensor product would."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


def _stream_number(seed: int, stream: str) -> int:
    digest = hashlib.blake2b(f"{seed}/{stream}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
