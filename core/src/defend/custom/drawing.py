"""Modules that draw by themselves: their draws are made those of each image, so that a run can be repeated."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from defend.boundary.answers import unwrap
from defend.boundary.generators import read_states, same_states, seeded
from defend.randomness import (
    APART,
    Mark,
    batch_seed,
    is_attackers,
    mark,
    narrowed,
    normal_like,
    open_keys,
    resumed,
    uniform_like,
)

SEEN = ("_draws_for_all", "_unrepeatable", "_passes")
SAME = 1e-4  # of the largest number, on average of an image: what rounding alone makes of an answer
MAKERS = ("beside", "with_victim", "prepared")  # methods of a stage that return what to use in its place


class Drawing(nn.Module):
    """A stage that draws by itself, so that a run can be repeated. Attributes that this lacks, and state, are its own.

    What it asks torch for by images' shape (`randn_like` and its likes) belongs to the image, as if it had asked
    `defend.randomness`. A module that draws anything else (an offset, a size, which half to drop) draws once for all
    images that it is given: it is asked once for each draw that an attacker averages over, and image by image where it
    is judged. Else all would share one draw, and count as many. Images of which an attacker asks for one draw share it:
    her next look has another.
    """

    random = True
    _draws_for_all = _unrepeatable = False  # until it was seen to
    _passes = 0

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what was seen so far: it is no part of what the module is, and of its hash."""
        return {name: value for name, value in vars(self).items() if name not in SEEN}

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__"):  # how the module itself is copied, and its like
                raise
            held = getattr(super().__getattr__("module"), name)
        return functools.partial(self._replaced, held) if name in MAKERS and callable(held) else held

    def state_dict(self, *args: Any, **more: Any) -> Any:
        """Return the module's own state, under the names that it has without this."""
        return self.module.state_dict(*args, **more)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *more: Any) -> None:
        for key in [key for key in state_dict if key.startswith(prefix)]:
            state_dict[f"{prefix}module.{key.removeprefix(prefix)}"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *more)

    def _replaced(self, make: Callable[..., Any], *given: Any) -> Any:
        """Return what one of the `MAKERS` does, which may draw too."""
        made = make(*given)
        if made is self.module:
            return self
        if not isinstance(made, nn.Module) or not getattr(made, "random", True):
            return made
        replaced = Drawing(made).train(made.training)
        if hasattr(self, "stage_name"):  # by which errors tell of it
            replaced.stage_name = self.stage_name
        return replaced

    def forward(self, images: Tensor, *more: Tensor) -> Any:
        """Return what the module does with this pass's draws; a detector is also given what was made of the images."""
        keys = open_keys()
        if keys is None:
            return self.module(images, *more)
        begin = mark(images.device)
        asked = not self._draws_for_all or len(images) < 2
        if asked:
            answer, draws_for_all = self._draw(images, *more)
            self._draws_for_all |= self._is_unrepeatable(answer, begin, images, *more) or draws_for_all
            if not self._draws_for_all or len(images) < 2:
                return answer
        answers = []
        for part in _parts(keys):
            # each from where this pass began; and what comes after it goes on from where one of them ended
            with resumed(begin) if asked else contextlib.nullcontext(), narrowed(part):
                answers.append(unwrap(self._draw(*(each[part] for each in (images, *more)))[0]))
            asked = True
        return torch.cat(answers)

    def surrogates(self) -> Any:
        """Return what the module offers for its backward pass, with the same draws."""
        offered = getattr(self.module, "surrogates", None)
        given = offered() if callable(offered) else {}
        if not isinstance(given, Mapping):
            return given
        return {name: Drawing(each) if isinstance(each, nn.Module) else each for name, each in given.items()}

    def _is_unrepeatable(self, answer: Any, begin: Mark, images: Tensor, *more: Tensor) -> bool:
        """Whether the module answers otherwise to the same draws, as with a generator of its own: nobody sees it move.

        It is asked again in its first pass, and now and then, as it may draw only where it suspects an attack.
        """
        self._passes += 1
        if self._unrepeatable or self._passes & (self._passes - 1):  # no power of two
            return self._unrepeatable
        with torch.no_grad(), resumed(begin):
            again = self._draw(images, *more)[0]
        self._unrepeatable = _are_apart(unwrap(answer), unwrap(again))
        if self._unrepeatable:
            who = getattr(self, "stage_name", type(self.module).__name__)
            warnings.warn(
                f"{who} answers otherwise to the same draws, so no run with it can be repeated: draw with "
                "defend.randomness, or from torch's, numpy's or Python's global generator",
                stacklevel=2,
            )
        return self._unrepeatable

    def _draw(self, images: Tensor, *more: Tensor) -> tuple[Any, bool]:
        """Return what the module answers, and whether it drew anything that belongs to no image."""
        seed = batch_seed()
        assert seed is not None
        with seeded(seed, images.device), _ByImage(len(images)):
            before = read_states(images.device)
            answer = self.module(images, *more)
            return answer, not same_states(before, read_states(images.device))


def _parts(keys: Tensor) -> list[slice]:
    """Return which images are asked together: those of one draw of an attacker; each alone where they are judged."""
    _, counts = (keys >> APART).unique_consecutive(return_counts=True)
    sizes = [1] * len(keys) if len(counts) == 1 and not is_attackers() else counts.tolist()
    ends = np.cumsum(sizes).tolist()
    return [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]


def _are_apart(first: Any, again: Any) -> bool:
    """Whether two answers [B,...] differ by more than rounding; what is no such answer has a contract to break."""
    if not all(isinstance(each, Tensor) and each.numel() and each.ndim for each in (first, again)):
        return False
    if first.shape != again.shape:
        return True
    moved = (again - first).detach().float().abs().reshape(len(first), -1).mean(1).max()
    return bool(moved > SAME * first.detach().abs().max())


class _ByImage(TorchFunctionMode):
    """Within the block, uniform and normal numbers for a batch are drawn image by image."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = count

    def __torch_function__(self, func: Any, _: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        draw = _DRAWS.get(func)
        if draw is None or given.get("generator") is not None:
            return func(*args, **given)
        given.pop("generator", None)
        out = given.pop("out", None)
        if out is not None:
            like = out
        elif func in (torch.rand_like, torch.randn_like):
            like = torch.empty_like(*args, **given)
        elif func in (torch.rand, torch.randn):
            like = torch.empty(*args, **given)
        else:  # in place
            like = args[0]
        if like.ndim == 0 or len(like) != self._count or not like.is_floating_point():
            return func(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():
            drawn = draw(like.detach())
        if func is Tensor.normal_:
            mean, std = _arguments(args[1:], given, mean=0.0, std=1.0)
            return like.copy_(mean + std * drawn)
        if func is Tensor.uniform_:
            low, high = _arguments(args[1:], given, **{"from": 0.0, "to": 1.0})
            return like.copy_(low + (high - low) * drawn)
        if out is not None:
            return out.copy_(drawn)
        return drawn.requires_grad_(bool(given.get("requires_grad", False)))


_DRAWS: dict[Any, Callable[[Tensor], Tensor]] = {
    torch.rand_like: uniform_like,
    torch.rand: uniform_like,
    Tensor.uniform_: uniform_like,
    torch.randn_like: normal_like,
    torch.randn: normal_like,
    Tensor.normal_: normal_like,
}


def _arguments(args: Sequence[Any], given: Mapping[str, Any], **usual: float) -> list[Any]:
    return [
        args[place] if place < len(args) else given.get(name, default)
        for place, (name, default) in enumerate(usual.items())
    ]
