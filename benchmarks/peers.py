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


def white_box(
    module: nn.Module, task: tuple[int, ...], eps: float, budget: int, batch: int, peers: tuple[str, ...]
) -> dict[str, Craft]:
    """Return the L-inf attacks of every peer, each with `budget` gradients or queries an image.

    What divides its looks among classes or neighbours gets so many fewer steps. A step of a fixed size is 2.5 budgets
    over the number of steps, as Madry et al. (2018) have it.

    Args:
        module: images [B,*task] in [0,1] to logits [B,classes].
        task: (C, H, W).
        eps: the budget in L-inf.
        budget: gradients or queries an image.
        batch: how many images ART takes at once.
        peers: which libraries are installed.
    """
    classes = _count_classes(module, task)
    step = 2.5 * eps / budget
    found: dict[str, Craft] = {}
    if "torchattacks" in peers:
        found |= _torchattacks(module, eps, budget, step, classes)
    if "foolbox" in peers:
        attacks = library("foolbox").attacks
        each = max(budget // classes, 1)  # DeepFool asks for every class's gradient
        found |= {
            f"foolbox {type(attack).__name__}": _foolbox(attack, module, eps)
            for attack in (
                attacks.LinfPGD(abs_stepsize=step, steps=budget),
                attacks.LinfAdamPGD(abs_stepsize=step, steps=budget),
                attacks.LinfBasicIterativeAttack(abs_stepsize=step, steps=budget),
                attacks.LinfMomentumIterativeFastGradientMethod(abs_stepsize=step, steps=budget),
                attacks.LinfDeepFoolAttack(steps=each, candidates=classes),
                attacks.LInfFMNAttack(steps=budget),
                attacks.LinfRepeatedAdditiveUniformNoiseAttack(repeats=budget),
            )
        }
    if "pyautoattack" in peers:
        found["pyautoattack, custom"] = _pyautoattack(module, eps, budget, classes)
    if "art" in peers:
        evasion, model = library("art.attacks.evasion"), _art(module, task)
        shared: dict[str, Any] = {"eps": eps, "max_iter": budget, "batch_size": batch, "verbose": False}
        stepped = {**shared, "eps_step": step, "nb_random_init": 1}
        losses = {"ce": "cross_entropy", "dlr": "difference_logits_ratio"}
        found["ART PGD"] = _on_arrays(
            evasion.ProjectedGradientDescent(model, **shared, eps_step=step, num_random_init=1)
        )
        for short, loss in losses.items():
            found[f"ART AutoPGD {short}"] = _on_arrays(
                evasion.AutoProjectedGradientDescent(model, **stepped, loss_type=loss)
            )
        found["ART Square"] = _on_arrays(evasion.SquareAttack(model, norm=np.inf, **shared))
    return found


def _torchattacks(module: nn.Module, eps: float, budget: int, step: float, classes: int) -> dict[str, Craft]:
    library_, neighbours = library("torchattacks"), 5
    looks = max(budget // (neighbours + 1), 1)
    others = max(budget // (classes - 1), 1)
    stepped: dict[str, Any] = {"eps": eps, "alpha": step, "steps": budget}
    attacks = {
        "PGD": library_.PGD(plain(module), **stepped),
        "Jitter": library_.Jitter(plain(module), **stepped),
        "MIFGSM": library_.MIFGSM(plain(module), **stepped),
        "NIFGSM": library_.NIFGSM(plain(module), **stepped),
        "VMIFGSM": library_.VMIFGSM(plain(module), eps=eps, alpha=2.5 * eps / looks, steps=looks, N=neighbours),
        "APGD ce": library_.APGD(plain(module), eps=eps, steps=budget, loss="ce"),
        "APGD dlr": library_.APGD(plain(module), eps=eps, steps=budget, loss="dlr"),
        "APGDT": library_.APGDT(plain(module), eps=eps, steps=others, n_classes=classes),
        "FAB": library_.FAB(plain(module), eps=eps, steps=max(budget // classes, 1), n_classes=classes),
        "Square": library_.Square(plain(module), eps=eps, n_queries=budget),
    }
    return {f"torchattacks {name}": attack for name, attack in attacks.items()}


def _pyautoattack(module: nn.Module, eps: float, budget: int, classes: int) -> Craft:
    """Return the four parts of the ensemble, a quarter of the looks each."""
    share = max(budget // 4, 1)
    whole = library("pyautoattack").AutoAttack(
        plain(module),
        norm="Linf",
        eps=eps,
        seed=0,
        device=_device(module),
        version="custom",
        attacks=["apgd-ce", "apgd-t", "fab-t", "square"],
    )
    whole.logger.disabled = True
    each = max(share // (classes - 1), 1)
    for part, steps in ((whole.apgd, share), (whole.apgd_targeted, each), (whole.fab, each)):
        part.n_iter, part.n_restarts = steps, 1
    for part in (whole.apgd_targeted, whole.fab):
        part.n_target_classes = classes - 1
    whole.square.n_queries = share

    def craft(images: Tensor, labels: Tensor) -> Tensor:
        return whole.run_standard_evaluation(images, labels, batch_size=len(images))[0]  # type: ignore[no-any-return]

    return craft


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


def _count_classes(module: nn.Module, shape: tuple[int, ...]) -> int:
    with torch.no_grad():
        return int(module(torch.zeros(1, *shape, device=_device(module))).shape[1])


def _art(module: nn.Module, shape: tuple[int, ...]) -> Any:
    device, classes = _device(module), _count_classes(module, shape)
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
