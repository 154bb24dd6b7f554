"""What running another library's attack takes: a plain model, seeds, its arguments, and leaving no trace."""

from __future__ import annotations

import ast
import contextlib
import contextvars
import importlib
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from defend.attacks.balls import at_least_float32, clip, lengths, scale_exactly
from defend.attacks.goals import keep_wrong
from defend.attacks.objectives import steady_cross_entropy
from defend.attacks.target import Target
from defend.boundary.calls import Calling
from defend.errors import ConfigError
from defend.randomness import step_seed

STEP_SIZES = ("alpha", "lr")  # what libraries call the size of a step, beside names with "step" in them
TINY = 1e-8  # length of a gradient that libraries' guards against dividing by zero (1e-12 to 1e-8) are large beside

Work = Callable[[Tensor, Tensor, float], Tensor]
"""(images, labels, one budget for all) to what the library returns."""


class Plain(nn.Module):
    """A target as the plain network that a library expects: logits, the mean over `draws` passes in one batch.

    Each draw is one of its own, as in `Target.slope`. Whatever float type a library computes in, the target sees the
    type that it is shown, and answers in float32 at least. Libraries put the model into eval or training mode as they
    like; this one keeps the mode it has.
    """

    def __init__(self, target: Target, draws: int | None = None, shown: torch.dtype | None = None) -> None:
        """`shown` is the float type of images where the target does not say itself; None leaves it."""
        super().__init__()
        self.module, self._draws, self._shown = target.module, draws or target.draws, shown
        self.training, self._target, self._asked = False, target, 0

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B,K]."""
        if torch.is_grad_enabled() and images.requires_grad:
            self._target.differentiated = True
            if (record := _record.get()) is not None:
                record.watch(images)
        record, keys = _record.get(), None
        if record is not None and len(record.place) == len(images):
            keys = record.keys[record.place]
        if self._target.shown is not None:
            images = self._target.show(images, keys)
        elif self._shown is not None:
            images = images.to(self._shown)
        if not self._target.random:
            return at_least_float32(self.module(images))
        keys = torch.arange(len(images), device=images.device) if keys is None else keys
        self._asked += 1
        with self._target.drawing(images, keys, f"library/{self._asked}", self._draws):
            packed = at_least_float32(self.module(images.repeat(self._draws, 1, 1, 1)))
        mean: Tensor = packed.unflatten(0, (self._draws, -1)).mean(0)
        return mean

    def train(self, mode: bool = True) -> Plain:
        """Change nothing."""
        return self


class _Record:
    """The first and the last gradient of each image that a library took, by its own loss.

    Args:
        images: [B,C,H,W], those of the batch.
        keys: [B], theirs.
        by_direction, copies: see `run`.
    """

    def __init__(self, images: Tensor, keys: Tensor, by_direction: bool, copies: int) -> None:
        self.keys, self.by_direction, self._copies = keys, by_direction, copies
        self.first, self.last = (torch.zeros_like(images, dtype=torch.float32) for _ in range(2))
        self._begun = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        self.place = torch.arange(len(images), device=images.device)
        self._whole = True

    @property
    def known(self) -> bool:
        """Whether it is of every image, and none was looked at apart from the others."""
        return self._whole and bool(self._begun.all())

    def watch(self, images: Tensor) -> None:
        """Have autograd hand over the gradient of what is shown; of a few images nobody says which they are.

        The library gets it at a usual size where only its direction is of use.
        """
        if len(images) != self._copies * len(self.place):
            self._whole = False
        else:
            images.register_hook(self._take)
        if self.by_direction:
            images.register_hook(self._at_usual_size)

    def _take(self, gradient: Tensor) -> None:
        gradient, place = self._by_image(gradient.detach().float()).sum(1), self.place
        begun = self._begun[place].view(-1, *(1,) * (gradient.ndim - 1))
        self.first[place] = torch.where(begun, self.first[place], gradient)
        self.last[place] = gradient
        self._begun[place] = True

    def _at_usual_size(self, gradient: Tensor) -> Tensor:
        scaled, _ = scale_exactly(self._by_image(gradient))
        return scaled.flatten(0, 1).to(gradient.dtype)

    def _by_image(self, gradient: Tensor) -> Tensor:
        """View gradients of copies of images, [B*copies,C,H,W], as [B,copies,C,H,W]."""
        each: Tensor = gradient.unflatten(0, (-1, self._copies))
        return each


_record: contextvars.ContextVar[_Record | None] = contextvars.ContextVar("defend_library_record", default=None)


@contextlib.contextmanager
def _recording(record: _Record) -> Iterator[None]:
    token = _record.set(record)
    try:
        yield
    finally:
        _record.reset(token)


@torch.no_grad()
def count_classes(model: Plain, images: Tensor, name: str, least: int) -> int:
    """Ask a model about one image; return how many classes it has.

    Raises:
        ConfigError: fewer than the attack's loss takes.
    """
    classes = int(model(images[:1]).shape[1])
    if classes < least:
        raise ConfigError(f"attack {name} needs at least {least} classes, there are {classes}: use apgd_ce")
    return classes


def load(module: str, extra: str, attack: str) -> Any:
    """Import a library, its own deprecations unseen.

    Raises:
        ConfigError: it is not installed; how to install it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(f"attack {attack} needs {error.name}: pip install 'defend-core[{extra}]'") from None


def arguments(text: str, where: str) -> dict[str, Any]:
    """Read "steps=20,rel_stepsize=1/10": Python literals, and fractions of two numbers; nothing is evaluated.

    Raises:
        ConfigError: anything else.
    """
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ValueError
        given = {_name(keyword.arg): _literal(keyword.value) for keyword in call.keywords}
    except (ValueError, SyntaxError, TypeError, ZeroDivisionError):
        raise ConfigError(
            f"{where}: arguments={text!r} is not name=value pairs of literals, for example steps=20,rel_stepsize=1/10"
        ) from None
    for key, value in given.items():
        # what stands still leaves every image right
        if ("step" in key or key in STEP_SIZES) and type(value) in (int, float) and not value > 0:
            raise ConfigError(f"{where}: arguments={text!r}: {key}={value!r} is out of range: expected above 0")
    return given


def _name(name: str | None) -> str:
    if name is None:  # **something
        raise ValueError
    return name


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        return ast.literal_eval(node.left) / ast.literal_eval(node.right)
    return ast.literal_eval(node)


def run(
    work: Work,
    name: str,
    norm: str,
    target: Target,
    images: Tensor,
    labels: Tensor,
    eps: Tensor,
    keys: Tensor,
    by_direction: bool = False,
    copies: int = 1,
) -> Tensor:
    """Run a library's attack once for each budget, and clip to it what a minimiser leaves beyond.

    Libraries draw from the global generators, so no image's draws can be its own: they are seeded from the target's
    seed and the keys of the batch. Another batch size gives another result of the same distribution. Afterwards
    generators and parameters are as they were. Unless the target is random, an image that was misclassified and that
    the library made right comes back as it was: an attacker may always leave one alone. If a library differentiates,
    one look is noted where it began and one where it ended: with its own first and last gradient, which its loss may
    have lost; where it asked for some images alone, with one that is taken there.

    `by_direction` says that of each gradient of an image the attack uses the direction alone. It then gets it times a
    power of two, its largest number between 1 and 2: divided by its length plus a guard that is larger, a tiny one
    would leave the image where it is. To other L2 attacks one shorter than `TINY` is no gradient, and is noted so.
    `copies` of each image, one after the other, are shown at a time, of whose gradients the sum is used.

    Raises:
        StageError: the library failed; its message.
    """
    with torch.inference_mode(False), _freeze(target.module):
        images, labels = images.clone(), labels.clone().long()
        result = images.clone()
        target.differentiated, record = False, _Record(images, keys, by_direction, copies)
        for budget in sorted({value for value in eps.tolist() if value > 0}):
            some = (eps == budget).nonzero()[:, 0]
            with _seed(step_seed(target.seed, name, *keys[some].tolist()), images.device), torch.enable_grad():
                record.place = some
                with _recording(record):
                    found = _run_named(work, name, images[some].clone(), labels[some], budget)
            result[some] = clip(found.detach().to(images.dtype), images[some], eps[some], norm)
        if target.differentiated:
            _look(target, name, norm, images, result, labels, keys, record)
        # of a random target that takes many passes, and a library's attack can do with few
        return result if target.random else keep_wrong(target, images, result, labels, keys, name)


def _look(
    target: Target,
    name: str,
    norm: str,
    images: Tensor,
    found: Tensor,
    labels: Tensor,
    keys: Tensor,
    record: _Record,
) -> None:
    """Note where a library's attack began and ended, which differentiates out of sight: was there a gradient?"""
    for where, at, own in (("begin", images, record.first), ("end", found, record.last)):
        if not record.known or target.sight is None:
            target.slope(at, labels, keys, f"{name}/{where}", steady_cross_entropy)
            continue
        logits, _ = target.judge(at, labels, keys, f"{name}/{where}")
        lost, own = ~own.isfinite().flatten(1).all(1), own.nan_to_num(0, 0, 0)
        if norm == "l2" and not record.by_direction:  # a sign has no length
            own = torch.where((lengths(own) < TINY).view(-1, 1, 1, 1), 0, own)
        target.sight.note(keys, gradient=own, broken=lost, logits=logits, points=at)


def _run_named(work: Work, name: str, images: Tensor, labels: Tensor, budget: float) -> Tensor:
    with Calling(f"attack {name}", "its library", images):
        return work(images, labels, budget)


@contextlib.contextmanager
def _freeze(module: nn.Module) -> Iterator[None]:
    """Freeze the parameters, so that no backward pass leaves gradients there; afterwards they are as before."""
    needed = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in needed:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in needed:
            parameter.requires_grad_(True)


@contextlib.contextmanager
def _seed(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's, numpy's and Python's generators for a block, and put them back."""
    numpy, python = np.random.get_state(), random.getstate()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        np.random.seed(seed % (1 << 32))
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy)
            random.setstate(python)
