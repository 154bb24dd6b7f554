"""What a user gave, as the stage that the host expects: called, wrapped, and looked at once."""

from __future__ import annotations

import contextlib
import functools
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from defend.boundary.answers import Answering, unwrap
from defend.boundary.calls import Calling
from defend.boundary.given import name_of
from defend.boundary.held import moves_in_training
from defend.boundary.trial import complete_modes, try_out
from defend.custom.drawing import Drawing
from defend.custom.spec import NORMALISATION, TASK, CustomSpec, takes
from defend.datasets.base import ImageDataset
from defend.datasets.normalisation import choose_normalisation
from defend.datasets.normalised import NormalisedVictim
from defend.errors import ContractError
from defend.randomness import keyed
from defend.stages import Task
from defend.util.tensors import device_of

TRIES = 5  # how often it is asked who has a generator of its own: one in two flips is missed once in sixteen


class Function(nn.Module):
    """A plain function of images as a module. Attributes that it lacks, as `random`, are the function's."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *images: Tensor) -> Any:
        """Return what the function does."""
        return self.function(*images)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or "function" not in vars(self):  # how it is copied, and its like
                raise
            return getattr(vars(self)["function"], name)


def networks_of(function: Callable[..., Any]) -> list[nn.Module]:
    """Return the networks that a function calls, as far as they are seen: bound, enclosed, or global by their name."""
    given: list[Any] = [getattr(function, "__self__", None)]
    if isinstance(function, functools.partial):
        given += [*function.args, *function.keywords.values(), *networks_of(function.func)]
    plain = getattr(function, "__func__", function)
    for cell in getattr(plain, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # one that is not filled yet
            given.append(cell.cell_contents)
    names = getattr(getattr(plain, "__code__", None), "co_names", ())
    given += [getattr(plain, "__globals__", {}).get(name) for name in names]
    return list(dict.fromkeys(thing for thing in given if isinstance(thing, nn.Module)))


class OneLogit(nn.Module):
    """A binary classifier that answers with one logit z an image, as two: (-z/2, z/2)."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    @property
    def random(self) -> bool:
        """Whether the module says that it draws."""
        return bool(getattr(self.module, "random", False))

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
    for network in networks_of(module.function) if isinstance(module, Function) else ():
        if moves_in_training(network):
            warnings.warn(
                f"{spec.stage} {spec.name} calls {name_of(network)} in training mode, where attacked images move its "
                "answers: call its .eval() before",
                stacklevel=2,
            )
    if spec.stage == "purifier":
        return _as_purifier(module, task)
    if spec.stage == "detector":
        return _as_detector(module, task)
    if spec.stage != "victim":
        return module
    mean, std = (() if spec.makes and takes(spec.thing, name) else getattr(config, name, ()) for name in NORMALISATION)
    if mean or std:
        channels = _count_channels(module, max(len(mean), len(std)), task)
        chosen = choose_normalisation(mean, std, task, channels=channels)
        module = NormalisedVictim(module, *chosen).train(module.training)
    return _as_victim(module, task)


def _count_channels(module: nn.Module, numbers: int, task: Task) -> int:
    """Return how many channels a network takes: the images'; as many as `numbers` where it refuses grey ones."""
    if task.channels != 1 or numbers == 1:
        return task.channels
    one, several = (try_out("victim", module, (channels, task.height, task.width)).answer for channels in (1, numbers))
    return numbers if one is None and several is not None else 1


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

    name = re.sub(r"\W+", "_", spec.name)
    return gather(thing, name=re.sub(r"^[^A-Za-z0-9]+", "", name) or "given")  # as `given.NAME` begins


def _as_victim(module: nn.Module, task: Task) -> nn.Module:
    shape = (task.channels, task.height, task.width)
    if _says_random("victim", module, shape):
        module = Drawing(module)
    raw = try_out("victim", module, shape).answer
    answer = unwrap(raw)
    one = isinstance(answer, Tensor) and answer.shape in ((2,), (2, 1)) and answer.is_floating_point()
    if one and task.classes == 2:
        return OneLogit(module)
    # trainings of plugins ask the victim themselves, and expect a tensor
    return module if raw is answer else Answering(module)


def _as_purifier(module: nn.Module, task: Task) -> nn.Module:
    """Return a purifier that says whether it draws: one that does not say so itself is asked a few times."""
    shape = (task.channels, task.height, task.width)
    if hasattr(module, "random"):
        return Drawing(module) if module.random and _draws("purifier", module, shape, by_key=True) else module
    if _draws("purifier", module, shape):
        return Drawing(module)
    module.random = False  # type: ignore[assignment]
    return module


def _as_detector(module: nn.Module, task: Task) -> nn.Module:
    shape = (task.channels, task.height, task.width)
    return Drawing(module) if _says_random("detector", module, shape) else module


def _says_random(stage: str, module: nn.Module, shape: tuple[int, int, int]) -> bool:
    """Whether a module, or a part of it behind a wrapper that says nothing, says that it draws and needs `Drawing`."""
    if getattr(module, "random", False):
        return _draws(stage, module, shape, by_key=True)
    return any(getattr(part, "random", False) is True for part in module.modules())


def _draws(stage: str, module: nn.Module, shape: tuple[int, int, int], *, by_key: bool = False) -> bool:
    """Whether a module draws, on smooth images or on rough ones.

    `by_key`: whether it may do so otherwise than by `defend.randomness`; also of one that cannot be asked, as a
    detector before its `with_victim()` may be.
    """
    keys = torch.arange(2, device=device_of(module))
    for rough in (False, True):
        first = None
        for seed in range(TRIES):
            with keyed(keys, seed=0, stream="trial") if by_key else contextlib.nullcontext():
                trial = try_out(stage, module, shape, seed, rough=rough)
            answer = unwrap(trial.answer)
            if by_key and not isinstance(answer, Tensor):
                return True
            first = answer if first is None else first
            other = isinstance(answer, Tensor) and isinstance(first, Tensor) and not torch.equal(answer, first)
            # a lazy layer draws its weights in its first pass
            if other or (trial.drew and seed > 0):
                return True
    return False
