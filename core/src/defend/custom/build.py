"""What a user gave, as the stage that the host expects: called, wrapped, and looked at once."""

from __future__ import annotations

import contextlib
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from defend.boundary.answers import Answering, unwrap
from defend.boundary.calls import Calling
from defend.boundary.trial import complete_modes, try_out
from defend.custom.spec import NORMALISATION, TASK, CustomSpec, takes
from defend.datasets.base import ImageDataset
from defend.datasets.normalisation import choose_normalisation
from defend.datasets.normalised import NormalisedVictim
from defend.errors import ContractError
from defend.randomness import batch_seed, normal_like, uniform_like
from defend.stages import Task

TRIES = 5  # how often a purifier is asked whether it draws: one in two flips is missed once in sixteen


class Function(nn.Module):
    """A plain function of images as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *images: Tensor) -> Any:
        """Return what the function does."""
        return self.function(*images)


class Drawing(nn.Module):
    """A purifier that draws by itself, so that a run can be repeated.

    What it asks torch for by images' shape (`randn_like` and its likes) belongs to the image, as if it had asked
    `defend.randomness`. All else that it draws belongs to the batch.
    """

    random = True

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Any:
        """Return what the module does with this pass's draws."""
        seed = batch_seed()
        if seed is None:
            return self.module(images)
        with torch.random.fork_rng([images.device] if images.is_cuda else []), _of_others(seed), _ByImage(len(images)):
            torch.manual_seed(seed)
            return self.module(images)


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


@contextlib.contextmanager
def _of_others(seed: int) -> Iterator[None]:
    """Seed Python's and numpy's generators for a block, and put them back."""
    kept, theirs = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(kept)
        np.random.set_state(theirs)


class OneLogit(nn.Module):
    """A binary classifier that answers with one logit z an image, as two: (-z/2, z/2)."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B,2] of images [B,C,H,W]."""
        half = unwrap(self.module(images)).reshape(len(images)) / 2
        return torch.stack([-half, half], 1)


def build(spec: CustomSpec, config: Any, task: Task | None = None) -> Any:
    """Make the stage that a user's thing is, or makes.

    Raises:
        ContractError: it is nothing that can be used as this stage.
        StageError: her code failed.
    """
    thing = spec.thing
    if spec.makes:
        given = attrs.asdict(config, recurse=False) if attrs.has(type(config)) else {}
        given = {name: value for name, value in given.items() if takes(thing, name)}
        if task is not None and takes(thing, TASK):
            given[TASK] = task
        with Calling(f"{spec.stage} {spec.name}", "build"):
            thing = thing(**given)
    if spec.stage == "attack":
        return _as_attack(spec, thing)
    if spec.stage == "dataset":
        return _as_dataset(spec, thing)
    module = thing if isinstance(thing, nn.Module) else Function(thing) if callable(thing) else None
    if module is None:
        hint = ": load a state dict into its model first, and pass that" if isinstance(thing, Mapping) else ""
        what = f"{spec.stage} {spec.name} is {type(thing).__name__}"
        raise ContractError(f"{what}, expected an nn.Module or a function{hint}")
    assert task is not None
    complete_modes(module)
    if spec.stage == "purifier":
        return _as_purifier(module, task)
    if spec.stage != "victim":
        return module
    mean, std = (() if takes(spec.thing, name) else getattr(config, name, ()) for name in NORMALISATION)
    if mean or std:
        module = NormalisedVictim(module, *choose_normalisation(mean, std, task)).train(module.training)
    return _as_victim(module, task)


def _as_attack(spec: CustomSpec, thing: Any) -> Any:
    if getattr(thing, "norm", None) not in ("linf", "l2") or not callable(thing):
        raise ContractError(
            f"attack {spec.name} is {type(thing).__name__}, expected a callable with norm = 'linf' or 'l2': "
            "attack(target, images, labels, *, eps, keys) returns images"
        )
    return thing


def _as_dataset(spec: CustomSpec, thing: Any) -> ImageDataset:
    if isinstance(thing, ImageDataset):
        return thing
    from defend.datasets.given import gather

    return gather(thing, name=re.sub(r"\W+", "_", spec.name))


def _as_victim(module: nn.Module, task: Task) -> nn.Module:
    raw = try_out("victim", module, (task.channels, task.height, task.width))
    answer = unwrap(raw)
    one = isinstance(answer, Tensor) and answer.shape in ((2,), (2, 1)) and answer.is_floating_point()
    if one and task.classes == 2:
        return OneLogit(module)
    # trainings of plugins ask the victim themselves, and expect a tensor
    return module if raw is answer else Answering(module)


def _as_purifier(module: nn.Module, task: Task) -> nn.Module:
    """Return a purifier that says whether it draws: one that does not say so itself is asked a few times."""
    if hasattr(module, "random"):
        return module
    shape = (task.channels, task.height, task.width)
    first, *others = (try_out("purifier", module, shape, seed) for seed in range(TRIES))
    drawn = isinstance(first, Tensor) and any(
        isinstance(other, Tensor) and not torch.equal(first, other) for other in others
    )
    if drawn:
        return Drawing(module)
    module.random = False  # type: ignore[assignment]
    return module
