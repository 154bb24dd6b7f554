"""Adversarial training: PGD (Madry et al. 2018, arXiv:1706.06083), TRADES, MART, one step, or free; AWP, averages.

Within L-inf, or a share of the images within L2 (after Tramèr and Boneh 2019, arXiv:1904.13000). Behind a purifier the
victim learns from what the purifier makes of images that were crafted against both. The equations and their papers
are in `rules`.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from defend.attacks.balls import clip, random_start, steepest, usual_l2
from defend.attacks.host import craft
from defend.attacks.iterated import Pgd
from defend.attacks.objectives import log_odds
from defend.attacks.options import PgdOptions
from defend.attacks.target import Target
from defend.boundary.answers import unwrap
from defend.boundary.copies import copy_module
from defend.datasets.base import Batch, ImageDataset
from defend.defence import Defence
from defend.errors import ConfigError
from defend.finetuners.plugin import AdversarialRecipe
from defend.finetuners.rules import (
    Overfitting,
    Perturbation,
    average_weights,
    divergence,
    mart,
    misleads,
    raise_weights,
    steady_divergence,
)
from defend.options import NoOptions, make
from defend.randomness import keyed, normal_like
from defend.stages import Task
from defend.train import Loss, Optimiser, Training, copy_to_tune
from defend.victims.training import augment

TRADES_START = 1e-3  # deviation of the normal noise that TRADES starts from: at the image itself KL has no slope
SINGLE_STEP = 1.25  # of eps, from a random start: the one step of mode fgsm (Wong et al. 2020)
JUDGE_STEPS = 10  # of the PGD that epochs are compared and the card is filled with
SCORED, MEASURED = 256, 1000  # validation images, after an epoch and for the card
JUDGE_BATCH = 250

BLIND_SHARE = 0.5  # of a batch: more images without a gradient than that are told, and all of them refused
NO_GRADIENT = (
    "adversarial training needs a gradient, and victim or purifier lets none through to the images: leave the purifier "
    "out, or take one that is differentiable"
)
BLIND = (
    "adversarial training needs a gradient, and that of victim and purifier is zero at {where}: what it would "
    "learn and measure are unattacked images; leave the purifier out, or take one that is differentiable"
)
SATURATED = (
    "mode=free needs the gradient of the cross-entropy itself, and float32 rounds that to zero at {where}, as the "
    "victim's logits lie so far apart: they would stay unattacked; take mode=fgsm, or divide the logits"
)
BLIND_STEPS = 2  # a network that begins with zeros in its last layer has a gradient from its second step on
PAIRED = ("trades", "mart")  # modes that learn from every image, clean and as it was crafted

Raised = Callable[[Tensor], Tensor]
"""Logits [B,K] to the numbers [B] that crafting raises."""


def away_from(labels: Tensor) -> Raised:
    """Return what rises with the cross-entropy of labels [B], and has its sign steps, but saturates nowhere."""
    return lambda logits: log_odds(logits.float(), labels)


def default_step(eps: float, steps: int) -> float:
    """Return 2.5 eps / steps: the ball's edge is reached from any start, and the rest of the steps move along it."""
    return 2.5 * eps / steps


def climb(
    model: nn.Module,
    images: Tensor,
    start: Tensor,
    objective: Raised,
    *,
    eps: float,
    steps: int,
    step_size: float,
    norm: str = "linf",
) -> Tensor:
    """Take `steps` projected steps up the objective; all of them, so that nothing waits for the device.

    Args:
        model: images [B,C,H,W] in [0,1] to logits [B,K], in the mode that it is to be attacked in.
        images: the centre of the ball of radius `eps` in the norm, "linf" or "l2".
        start: where to begin; projected first.
        objective, steps, step_size: what is raised, how often, by how much: along the gradient's sign in L-inf, along
            the gradient in L2.

    Raises:
        ConfigError: no gradient reaches the images.
    """
    radius = images.new_full((len(images),), eps)
    current = clip(start, images, radius, norm)
    for _ in range(steps):
        source = current.detach().requires_grad_()
        value = objective(model(source)).sum()
        if not value.requires_grad:
            raise ConfigError(NO_GRADIENT)
        (gradient,) = torch.autograd.grad(value, source)
        current = clip(current + step_size * steepest(gradient, norm), images, radius, norm)
    return current


@contextlib.contextmanager
def still(network: nn.Module) -> Iterator[None]:
    """Hold a network in eval mode with frozen parameters; afterwards every part is as it was.

    Passes in this block leave batch norm's statistics alone, and differentiate with respect to images only.
    """
    modes = [(part, part.training) for part in network.modules()]
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    network.eval()
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
        for part, mode in modes:
            part.training = mode


def warm(step: int, steps: int, warmup: float) -> float:
    """Return the share of the full eps at step `step` (from 0) of `steps`, where `warmup` of them are the rise."""
    return min((step + 1) / max(warmup * steps, 1.0), 1.0)


@torch.no_grad()
def accuracies(
    model: Defence,
    dataset: ImageDataset,
    eps: float,
    limit: int,
    device: torch.device,
    eps_l2: float | None = None,
    single: bool = False,
) -> dict[str, float]:
    """Return the accuracy on validation images: "clean", and under "pgd" (random start, 10 steps, one draw).

    With `eps_l2` also under as many steps in L2 ("pgd_l2"), and on images that stand both ("pgd_both"); with `single`
    under one step from a random start ("fgsm"). All draws are keyed by image, so every call with the same
    weights gives the same. The model must be in eval mode.
    """
    target, attack = Target(model), Pgd(make(PgdOptions, {"steps": JUDGE_STEPS}, "pgd"))
    keys, right = dataset.keys("val", limit), dict[str, Tensor]()
    for batch in dataset.batches("val", keys, JUDGE_BATCH, device):

        def ball(norm: str, radius: float, steps: int, size: float, some: Batch = batch) -> Tensor:
            with keyed(some.keys, seed=0, stream=f"adversarial/judge/{norm}"), torch.enable_grad():
                start = random_start(some.images, radius, norm)
                away = away_from(some.labels)
                return climb(model, some.images, start, away, eps=radius, steps=steps, step_size=size, norm=norm)

        shown = {"clean": batch.images}
        shown["pgd"] = craft(attack, target, batch.images, batch.labels, eps=eps, keys=batch.keys)
        if eps_l2 is not None:
            shown["pgd_l2"] = ball("l2", eps_l2, JUDGE_STEPS, default_step(eps_l2, JUDGE_STEPS))
        if single:
            shown["fgsm"] = ball("linf", eps, 1, SINGLE_STEP * eps)
        stood = {}
        for place, (name, seen) in enumerate(shown.items()):
            with keyed(batch.keys, seed=0, stream=f"adversarial/judge/{place}"):
                stood[name] = model(seen).argmax(1) == batch.labels
        if eps_l2 is not None:
            stood["pgd_both"] = stood["pgd"] & stood["pgd_l2"]
        for name, ok in stood.items():
            right[name] = right.get(name, 0) + ok.sum()
    return dict(zip(right, (torch.stack([*right.values()]) / len(keys)).tolist(), strict=True))


class AdversarialTraining(Training):
    """A victim learns from images crafted against itself as it is, behind the purifier if there is one.

    Crafting sees the victim in eval mode, and the purifier as it answers, differentiated exactly; a random purifier
    draws anew for every step and for the loss. The loss is on train mode's logits, of one forward pass for clean and
    adversarial images together (TRADES' code makes two, each with batch statistics of its own), as several processes
    need. With mode "free" crafting sees train mode too, as one backward pass is for weights and images.

    Args:
        tuned: what is kept; starts as a copy of the victim. It learns itself, or is the average of what does.
        recipe: see `AdversarialRecipe`.
        task: whether a mirrored image is of its class.
        victim: the victim as it was, which the card compares with.
        purifier: what stands before it, frozen; or None.
    """

    _cycle: torch.optim.lr_scheduler.OneCycleLR
    _steps: int

    def __init__(
        self, tuned: nn.Module, recipe: AdversarialRecipe, task: Task, victim: nn.Module, purifier: nn.Module | None
    ) -> None:
        frozen = {"victim": victim} if purifier is None else {"victim": victim, "purifier": purifier}
        self._learner = copy_module(tuned) if recipe.ema else tuned
        networks = {"victim": self._learner}
        if recipe.ema:
            networks["average"] = tuned
        self._perturbation = Perturbation(recipe.batch_size, (task.channels, task.height, task.width))
        if recipe.mode == "free":
            networks["perturbation"] = self._perturbation
        super().__init__(tuned, networks, epochs=recipe.epochs, batch_size=recipe.batch_size, frozen=frozen)
        self._replays = recipe.replays if recipe.mode == "free" else 1
        self._recipe, self._flips = recipe, task.flips
        usual = usual_l2(recipe.eps, task.channels * task.height * task.width)
        self._eps_l2 = usual if recipe.eps_l2 is None else recipe.eps_l2
        self._overfitting, self._blind_steps, self._sees = Overfitting(), 0, False
        if recipe.on_single_steps:
            self.records["overfitting"] = self._overfitting
        self._before, self._after = Defence(victim, purifier), Defence(tuned, purifier)
        self._learning = Defence(self._learner, purifier)

    def optimisers(self, steps: int) -> dict[str, Optimiser]:
        parameters = self.modules["victim"].parameters()
        adamw = torch.optim.AdamW(parameters, lr=self._recipe.lr, weight_decay=self._recipe.weight_decay)
        self._steps = steps * self._replays
        self._cycle = torch.optim.lr_scheduler.OneCycleLR(adamw, self._recipe.lr, total_steps=self._steps)
        return {"victim": Optimiser(adamw, self._cycle)}

    def craft(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return adversarial images [B,C,H,W] within this step's share of eps, against the weights as they are.

        The first `l2_share` of them are crafted in L2.
        """
        count = round(self._recipe.l2_share * len(images))
        parts = [("l2", images[:count], labels[:count]), ("linf", images[count:], labels[count:])]
        with still(self._learner):
            return torch.cat([self._craft(*part) for part in parts if len(part[1])])

    def _craft(self, norm: str, images: Tensor, labels: Tensor) -> Tensor:
        recipe = self._recipe
        share = self._share()
        full = recipe.eps if norm == "linf" else self._eps_l2
        eps, step_size = share * full, share * default_step(full, recipe.steps)
        if norm == "linf" and recipe.step_size is not None:
            step_size = share * recipe.step_size
        steps = recipe.steps
        if recipe.mode == "fgsm":
            steps, step_size = 1, SINGLE_STEP * eps
        objective = self._objective(images, labels)
        if recipe.mode == "trades":
            start = images + TRADES_START * normal_like(images)
        else:
            start = random_start(images, eps, norm)
        return climb(self._learning, images, start, objective, eps=eps, steps=steps, step_size=step_size, norm=norm)

    def _objective(self, images: Tensor, labels: Tensor) -> Raised:
        """Return what crafting from these images raises, in a form whose gradient no softmax hides.

        That of mode "free" is literal, as its gradient is the loss's own.
        """
        if self._recipe.mode == "trades":
            with torch.no_grad():
                return partial(steady_divergence, self._learning(images))
        if self._recipe.mode == "free":
            return partial(F.cross_entropy, target=labels, reduction="none")
        return away_from(labels)

    def _share(self) -> float:
        """Return the share of the full eps at this step; the schedule's count survives a resume."""
        return warm(self._cycle.last_epoch, self._steps, self._recipe.warmup)

    def losses(self, batch: Batch) -> Iterator[Loss]:
        for loss in self._replay(batch) if self._recipe.mode == "free" else self._learn(batch):
            yield loss
            if self._recipe.ema:  # the step is taken by now
                average_weights(self.stage, self._learner, self._recipe.ema, self._cycle.last_epoch)

    def _look(self, images: Tensor, labels: Tensor) -> None:
        """Refuse, in the first steps, what hides the gradient of what crafting raises; tell of what hides most of it.

        Raises:
            ConfigError: there is none, or it was zero at all images of a batch after more than half of one before.
        """
        if self._sees:
            return
        count = len(images)
        with still(self._learner), torch.random.fork_rng([images.device] if images.is_cuda else []):
            objective = self._objective(images, labels)
        blind = self._count_blind(images, objective)
        self._sees = blind <= BLIND_SHARE * count
        self._blind_steps += not self._sees
        if self._blind_steps < BLIND_STEPS:
            return
        self._sees = True  # it is told once
        hidden = self._recipe.mode == "free" and self._count_blind(images, away_from(labels)) < blind
        where = "every image" if blind == count else f"{blind} of {count} images"
        said = (SATURATED if hidden else BLIND).format(where=where)
        if blind == count:
            raise ConfigError(said)
        warnings.warn(said, stacklevel=2)

    def _count_blind(self, images: Tensor, objective: Raised) -> int:
        """Return for how many images the objective's gradient is zero; in the ball, as TRADES' is at its centre."""
        with still(self._learner), torch.random.fork_rng([images.device] if images.is_cuda else []):
            source = random_start(images, self._recipe.eps, "linf").clamp(0, 1).requires_grad_()
            raised = objective(self._learning(source)).sum()
            (slope,) = torch.autograd.grad(raised, source, allow_unused=True) if raised.requires_grad else (None,)
        if slope is None:
            raise ConfigError(NO_GRADIENT)
        return int((slope.flatten(1) == 0).all(1).sum())

    def _learn(self, batch: Batch) -> Iterator[Loss]:
        labels, recipe = batch.labels, self._recipe
        images = augment(batch.images, recipe.shift, self._flips)
        self._look(images, labels)
        if recipe.mode in PAIRED:
            left, shown = len(images), torch.cat([images, self.craft(images, labels)])
        else:
            # the order of images is random, so the first ones are as good as any
            left = round(recipe.clean_share * len(images))
            shown = torch.cat([images[:left], self.craft(images[left:], labels[left:])])
        with torch.no_grad():  # the purifier is frozen, and the images are given
            seen = self._learning.purify(shown)
        yield self._lose(seen, labels, left)

    def _replay(self, batch: Batch) -> Iterator[Loss]:
        """Learn a batch several times, each time with the gradients of weights and images of one backward pass."""
        labels, recipe = batch.labels, self._recipe
        images = augment(batch.images, recipe.shift, self._flips)
        left = round(recipe.clean_share * len(images))
        self._look(images, labels)
        for _ in range(self._replays):
            eps = self._share() * recipe.eps
            source = self._perturbation.apply_to(images, eps, left).requires_grad_()
            yield self._lose(self._learning.purify(source), labels, left)
            if source.grad is None:
                raise ConfigError(NO_GRADIENT)
            self._perturbation.step(source.grad, eps)

    def _lose(self, seen: Tensor, labels: Tensor, left: int) -> Loss:
        """Return the loss of what the victim sees [B,C,H,W], of which the first `left` are clean."""
        weights = self._raise_weights(seen.detach(), labels, left) if self._recipe.awp else {}
        # with no weights moved this is a call like any other
        logits: Tensor = unwrap(functional_call(self.modules["victim"], weights, (seen,)))
        value, metrics = self._value(logits, labels, left)
        return Loss("victim", value, metrics)

    def _value(self, logits: Tensor, labels: Tensor, left: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, and what is logged, of logits of which the first `left` are on clean images."""
        recipe = self._recipe
        clean, robust = logits[:left], logits[left:]
        if recipe.mode not in PAIRED:
            return F.cross_entropy(logits, labels), {"robust": _accuracy(robust, labels[left:])}
        if recipe.mode == "mart":
            value = mart(clean, robust, labels, recipe.beta).mean()
        else:
            value = F.cross_entropy(clean, labels) + recipe.beta * divergence(clean, robust).mean()
        return value, {"accuracy": _accuracy(clean, labels), "robust": _accuracy(robust, labels)}

    def _raise_weights(self, seen: Tensor, labels: Tensor, left: int) -> dict[str, Tensor]:
        """Return the weights that the loss of what the victim sees [B,C,H,W] is to be taken at, by name."""
        learning = {name: weight for name, weight in self._learner.named_parameters() if weight.requires_grad}
        # batch norm's statistics are moved by the pass that counts, and not by this one
        buffers = {name: buffer.clone() for name, buffer in self._learner.named_buffers()}
        value, _ = self._value(unwrap(functional_call(self._learner, buffers, (seen,))), labels, left)
        found = torch.autograd.grad(value, list(learning.values()), allow_unused=True)
        slopes = {name: slope for name, slope in zip(learning, found, strict=True) if slope is not None}
        moved = raise_weights(learning, slopes, self._recipe.awp)
        # what several processes train is wrapped, and its names are longer
        names = {id(weight): name for name, weight in self.modules["victim"].named_parameters()}
        return {names[id(learning[name])]: weight for name, weight in moved.items()}

    def score(self, dataset: ImageDataset, device: torch.device) -> float | None:
        """Accuracy under PGD of the full eps on up to 256 validation images, behind the purifier.

        Of a training within both norms, the accuracy on those that stand both. A training on single steps is watched
        for overfitting to them, and warns in the epoch in which it is seen.
        """
        last, single = self._recipe.select == "last", self._recipe.on_single_steps
        if last and not single:
            return None
        found = self._judge(self._after, dataset, SCORED, device)
        if single and self._overfitting.note(self.epoch + 1, found["pgd"], found["fgsm"]):
            kept = (
                "the last epoch's are kept (select=last)" if last else "those of the epoch that stood PGD best are kept"
            )
            warnings.warn(
                f"catastrophic overfitting in epoch {self.epoch + 1}: of held-out images {found['pgd']:.0%} stand PGD "
                f"(before, {self._overfitting.best[0]:.0%}), {found['fgsm']:.0%} one step; {kept}: lower eps or "
                "epochs, or train with mode=pgd",
                stacklevel=2,
            )
        return None if last else found.get("pgd_both", found["pgd"])

    def finish(self, dataset: ImageDataset, device: torch.device) -> dict[str, float]:
        """Measure up to 1,000 validation images, clean and under PGD of the full eps, before and after the training.

        Behind the purifier where there is one; what PGD attacks is what it is judged by. Of a training on single
        steps also under one, and in which epoch it was overfitted to them, from 1; 0 for never, and nothing where
        epochs were not watched, as a checkpoint of older code does not say what they saw.
        """
        figures = {"val_images": float(min(len(dataset.labels("val")), MEASURED))}
        for when, model in (("before", self._before), ("after", self._after)):
            found = self._judge(model, dataset, MEASURED, device)
            figures |= {f"val_{kind}_{when}": value for kind, value in found.items()}
        if self._recipe.on_single_steps:
            if self._overfitting.since or self._overfitting.noted == self.epochs:
                figures["overfitted_in_epoch"] = float(self._overfitting.since)
            if misleads(found["pgd"], found["fgsm"]):
                warnings.warn(
                    f"the weights that are kept stand one step and not PGD: {found['fgsm']:.0%} and {found['pgd']:.0%} "
                    "of held-out images; they are overfitted to single steps, train with mode=pgd",
                    stacklevel=2,
                )
        return figures

    def _judge(self, model: Defence, dataset: ImageDataset, limit: int, device: torch.device) -> dict[str, float]:
        eps_l2 = self._eps_l2 if self._recipe.l2_share else None
        return accuracies(model, dataset, self._recipe.eps, limit, device, eps_l2, self._recipe.on_single_steps)


def _accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.detach().argmax(1) == labels).float().mean()


def build(_: NoOptions, __: Task, victim: nn.Module) -> nn.Module:
    """Build what will hold the tuned weights: a copy of the victim."""
    return copy_to_tune(victim)


def train(
    config: NoOptions, recipe: AdversarialRecipe, task: Task, victim: nn.Module, purifier: nn.Module | None
) -> AdversarialTraining:
    """Describe the adversarial training of a victim behind a purifier, or of a bare one."""
    return AdversarialTraining(build(config, task, victim), recipe, task, victim, purifier)
