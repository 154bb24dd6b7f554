"""Other libraries' attacks, each set up as its documentation does: the plain model in evaluation mode, fp32.

Every function takes a module (images [B,C,H,W] in [0,1] to logits) and returns an attack, (images, labels [B]) to
adversarial images, or None where the library is not installed. A peer gets a copy of the module whose parameters ask
for gradients, as a freshly loaded model's do; foolbox and ART then compute those too.
"""

from __future__ import annotations

import copy
import importlib
import logging
import warnings
from collections.abc import Callable
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor, nn

Craft = Callable[[Tensor, Tensor], Tensor]


@attrs.frozen
class Pgd:
    """Projected gradient descent in L-inf: budget, step size, steps, and whether it starts at a random point."""

    eps: float
    step: float
    steps: int = 10
    random_start: bool = True


@attrs.frozen
class Cw:
    """Carlini and Wagner's L2 attack: iterations of Adam for each of so many constants, the first one, the rate."""

    steps: int
    constants: int
    initial: float
    lr: float


@attrs.frozen
class Square:
    """Square Attack in L-inf: budget and queries an image."""

    eps: float
    queries: int
    p_init: float = 0.8


def pgd(module: nn.Module, task: tuple[int, ...], how: Pgd, batch: int, peers: tuple[str, ...]) -> dict[str, Craft]:
    """Return PGD of every peer that has it, for images of shape `task` [C,H,W]."""
    found: dict[str, Craft] = {}
    if "torchattacks" in peers:
        torchattacks = library("torchattacks")
        attack = torchattacks.PGD(plain(module), how.eps, how.step, how.steps, random_start=how.random_start)
        found["torchattacks"] = attack
    if "foolbox" in peers:
        foolbox = library("foolbox")
        linf = foolbox.attacks.LinfPGD(abs_stepsize=how.step, steps=how.steps, random_start=how.random_start)
        found["foolbox"] = _foolbox(linf, module, how.eps)
    if "art" in peers:
        descent = library("art.attacks.evasion").ProjectedGradientDescent(
            _art(module, task),
            eps=how.eps,
            eps_step=how.step,
            max_iter=how.steps,
            batch_size=batch,
            num_random_init=int(how.random_start),
            verbose=False,
        )
        found["ART"] = _on_arrays(descent)
    return found


def apgd(module: nn.Module, eps: float, steps: int, peers: tuple[str, ...]) -> dict[str, Craft]:
    """Return Auto-PGD on the cross-entropy of the peers that have it."""
    found: dict[str, Craft] = {}
    if "torchattacks" in peers:
        torchattacks = library("torchattacks")
        found["torchattacks"] = torchattacks.APGD(plain(module), eps=eps, steps=steps, loss="ce")
    if "pyautoattack" in peers:
        found["pyautoattack"] = (
            library("pyautoattack.autopgd_base")
            .APGDAttack(
                plain(module), n_iter=steps, eps=eps, norm="Linf", loss="ce", device=_device(module), logger=_silent()
            )
            .perturb
        )
    return found


def cw(module: nn.Module, task: tuple[int, ...], how: Cw, batch: int, peers: tuple[str, ...]) -> dict[str, Craft]:
    """Return CW-L2 of every peer; torchattacks' has one constant, so it gets all iterations for the first."""
    found: dict[str, Craft] = {}
    if "torchattacks" in peers:
        torchattacks = library("torchattacks")
        found["torchattacks"] = torchattacks.CW(plain(module), c=1, steps=how.steps * how.constants, lr=how.lr)
    if "foolbox" in peers:
        foolbox = library("foolbox")
        attack = foolbox.attacks.L2CarliniWagnerAttack(
            binary_search_steps=how.constants, steps=how.steps, stepsize=how.lr, initial_const=how.initial
        )
        found["foolbox"] = _or_unchanged(_foolbox(attack, module, None))
    if "art" in peers:
        found["ART"] = _on_arrays(
            library("art.attacks.evasion").CarliniL2Method(
                _art(module, task),
                learning_rate=how.lr,
                binary_search_steps=how.constants,
                max_iter=how.steps,
                initial_const=how.initial,
                batch_size=batch,
                verbose=False,
            )
        )
    return found


def square(
    module: nn.Module, task: tuple[int, ...], how: Square, batch: int, peers: tuple[str, ...]
) -> dict[str, Craft]:
    """Return Square in L-inf of every peer that has it, the schedule rescaled to the queries where that is offered."""
    found: dict[str, Craft] = {}
    shared: dict[str, Any] = {
        "norm": "Linf",
        "eps": how.eps,
        "n_queries": how.queries,
        "p_init": how.p_init,
        "resc_schedule": True,
    }
    if "torchattacks" in peers:
        torchattacks = library("torchattacks")
        found["torchattacks"] = torchattacks.Square(plain(module), **shared)
    if "pyautoattack" in peers:
        found["pyautoattack"] = (
            library("pyautoattack.square").SquareAttack(plain(module), **shared, device=_device(module)).perturb
        )
    if "art" in peers:
        found["ART"] = _on_arrays(
            library("art.attacks.evasion").SquareAttack(
                _art(module, task),
                norm=np.inf,
                max_iter=how.queries,
                eps=how.eps,
                p_init=how.p_init,
                batch_size=batch,
                verbose=False,
            )
        )
    return found


def library(name: str) -> Any:
    """Import a module of a peer; what it has to say about its own dependencies is not for our reader."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def plain(module: nn.Module) -> nn.Module:
    """Return a copy as a user has it who loads a model and calls eval()."""
    return copy.deepcopy(module).requires_grad_(True).eval()


def in_batches(craft: Craft, images: Tensor, labels: Tensor, batch: int) -> Tensor:
    """Attack batch by batch, as a loop over a data loader does."""
    pairs = zip(images.split(batch), labels.split(batch), strict=True)
    return torch.cat([craft(some, true) for some, true in pairs])


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def _silent() -> logging.Logger:
    logger = logging.getLogger("benchmarks.peers")
    logger.setLevel(logging.ERROR)
    return logger


def _foolbox(attack: Any, module: nn.Module, eps: float | None) -> Craft:
    foolbox = library("foolbox")
    model = foolbox.PyTorchModel(plain(module), bounds=(0, 1), device=_device(module))

    def craft(images: Tensor, labels: Tensor) -> Tensor:
        _, clipped, _ = attack(model, images, labels, epsilons=eps)
        return clipped  # type: ignore[no-any-return]

    return craft


def _or_unchanged(craft: Craft) -> Craft:
    """Give back the image itself where an attack returns a black one: foolbox's CW does where it finds nothing."""

    def replace_black(images: Tensor, labels: Tensor) -> Tensor:
        found = craft(images, labels)
        nothing = found.flatten(1).amax(1) <= 0
        return torch.where(nothing.view(-1, 1, 1, 1), images, found)

    return replace_black


def _art(module: nn.Module, shape: tuple[int, ...]) -> Any:
    device = _device(module)
    with torch.no_grad():
        classes = module(torch.zeros(1, *shape, device=device)).shape[1]
    return library("art.estimators.classification").PyTorchClassifier(
        plain(module),
        loss=nn.CrossEntropyLoss(),
        input_shape=shape,
        nb_classes=classes,
        clip_values=(0.0, 1.0),
        device_type="cpu" if device.type == "cpu" else "gpu",
    )


def _on_arrays(attack: Any) -> Craft:
    def craft(images: Tensor, labels: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = attack.generate(x=images.cpu().numpy(), y=labels.cpu().numpy())
        return torch.from_numpy(found).to(images.device)

    return craft


def work(craft: Craft, images: Tensor, labels: Tensor, batch: int | None = None) -> Callable[[], Tensor]:
    """Return a turn of a contest: the attack on these images, in batches where that is asked for."""
    return lambda: in_batches(craft, images, labels, batch or len(images))


class Counting(nn.Module):
    """A module that notes in `seen` how many images each forward pass got; a copy of it notes in the same list."""

    def __init__(self, inner: nn.Module, seen: list[int] | None = None) -> None:
        super().__init__()
        self.inner, self.seen = inner, [] if seen is None else seen

    def __deepcopy__(self, memo: dict[int, Any]) -> Counting:
        return Counting(copy.deepcopy(self.inner, memo), self.seen)

    def forward(self, images: Tensor) -> Tensor:
        """Return the inner module's logits."""
        self.seen.append(len(images))
        logits: Tensor = self.inner(images)
        return logits
