"""Backward pass differentiable approximation (Athalye et al. 2018, arXiv:1802.00420, section 4.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from defend.boundary.answers import ask, pixels_of
from defend.boundary.calls import Calling
from defend.boundary.given import name_of
from defend.errors import ContractError
from defend.randomness import mark, resumed
from defend.values.threats import IDENTITY

LONGEST_NAME = 60  # characters of a surrogate's name


class _Replaced(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, approximation: Tensor, exact: Tensor) -> Tensor:  # noqa: ARG004 - its gradient is what counts
        return exact.clone()

    @staticmethod
    def backward(_: Any, *outer: Tensor) -> tuple[Tensor, None]:
        return outer[0], None


class BackwardThrough(nn.Module):
    """A purifier forwards, exactly; backwards a surrogate at the same images, or the identity.

    Args:
        purifier: images [B,C,H,W] in [0,1] to the same.
        surrogate: of the same kind and differentiable; None is the identity.
    """

    def __init__(self, purifier: nn.Module, surrogate: nn.Module | None) -> None:
        super().__init__()
        self.purifier, self.surrogate = purifier, surrogate
        self.stage_name = name_of(purifier)

    @property
    def random(self) -> bool:
        """Whether either of them draws random numbers."""
        return any(bool(getattr(part, "random", False)) for part in (self.purifier, self.surrogate))

    def forward(self, images: Tensor) -> Tensor:
        """Return what the purifier returns, [B,C,H,W]."""
        at = mark(images.device)
        with torch.no_grad():
            exact = pixels_of(ask("purifier", self.purifier, images), images, self.purifier)
        approximation = images
        if self.surrogate is not None:
            # with the purifier's own draws: another shift or size would send the gradient to other pixels
            with resumed(at):
                answer = ask("surrogate", self.surrogate, images)
            approximation = pixels_of(answer, images, self.surrogate, "surrogate")
        replaced: Tensor = _Replaced.apply(approximation, exact)
        return replaced


def surrogates_of(purifier: nn.Module) -> Mapping[str, nn.Module | None]:
    """Return what may stand for a purifier backwards, by name: the identity, and what the purifier offers itself.

    A purifier offers modules by a method `surrogates()`, name to module, for example its plain autoencoder, or itself
    with fewer steps.

    Raises:
        ContractError: it offers something that is no module, or one under the identity's own name.
    """
    offered: Any = getattr(purifier, "surrogates", None)
    with Calling(f"purifier {name_of(purifier)}", "surrogates"):
        given = offered() if callable(offered) else {}
    if not isinstance(given, Mapping):
        raise ContractError(
            f"purifier {name_of(purifier)}: surrogates() returned {type(given).__name__}, expected a dict of modules"
        )
    for name, surrogate in given.items():
        if not isinstance(name, str) or not name or name == IDENTITY:
            raise ContractError(
                f"purifier {name_of(purifier)} offers a surrogate called {name!r}: expected a name of its own, other "
                f"than {IDENTITY!r}, which stands for no surrogate at all"
            )
        if len(name) > LONGEST_NAME or not name.isprintable():
            raise ContractError(
                f"purifier {name_of(purifier)} offers a surrogate called {name[:LONGEST_NAME]!r}: expected at most "
                f"{LONGEST_NAME} characters that can be printed, as rows, files and figures are named after it"
            )
        if not isinstance(surrogate, nn.Module):
            raise ContractError(
                f"purifier {name_of(purifier)}: surrogate {name!r} is {type(surrogate).__name__}, expected an nn.Module"
            )
    return {IDENTITY: None, **given}
