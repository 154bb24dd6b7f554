"""The host's side of an attack: it runs it, checks what comes back, and clips it to the budget."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from defend.attacks.balls import HALVES, at_least_float32, clip, measure
from defend.attacks.sight import Ball, Halves
from defend.attacks.target import Target
from defend.boundary.answers import Answering
from defend.boundary.calls import Calling
from defend.boundary.given import Asked, as_budgets, as_images, as_keys, as_labels, compare_labels
from defend.boundary.held import as_before, eval_mode
from defend.errors import ConfigError, ContractError
from defend.randomness import keyed
from defend.stages import Attack


def craft(
    attack: Attack,
    target: Target,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float | Tensor | None,
    keys: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Run an attack and hold its result to the contract.

    What goes in is checked: a quantity that is out of its range ends in an error, never in a figure. The attack gets
    copies of everything, so that writing into them changes nothing. The module attacked is held in eval mode, with
    frozen parameters; modes, gradients' flags, hooks and buffers are as before afterwards, whatever the attack did.

    Afterwards `target.overshoot` [B] says how far each raw result was outside its budget (in the attack's norm) or
    the box [0,1], whichever is larger, before it was clipped; `target.queries` is what the attack counted, or None;
    and `target.sight.seen` what it saw of each image, in the batch's order.

    Args:
        attack: from a registry or built by hand.
        target: what to attack.
        images: floats [B,C,H,W] in [0,1].
        labels: whole numbers [B], 0 to one less than the module has logits.
        eps: one budget, or one an image [B], at least 0, in the attack's norm. An attack that minimises the distance
            (`attack.minimal` is true) has none: it gets infinite budgets, and of one that `strays` what is given says
            from where on an image counts as fooled in `target.sight`.
        keys: int64 [B], each image's identity for random draws; the place in the batch if None.
        name: what errors call the attack; its class's name if None.

    Raises:
        ConfigError: no budget for an attack that needs one, or one that is negative or not finite.
        DataError: images, labels or keys that are not what they should be.
        StageError: the attack, or what it attacks, failed.
        ContractError: another shape than the images', or numbers that are not finite; a module that answers with
            something else than logits; or an attack that changes its weights.
    """
    name = name or type(attack).__name__
    images = as_images(images).detach()
    exact = at_least_float32(images)  # small steps are lost in half precision
    if getattr(attack, "minimal", False):
        budgets = exact.new_full((len(images),), torch.inf)
    elif eps is None:
        raise ConfigError(f"eps is None for attack {name}: expected its {attack.norm} budget, for example 8/255")
    else:
        budgets = as_budgets(eps, exact, name)
    identity = as_keys(keys, images)
    labels = as_labels(labels, images)
    ball = None
    if getattr(attack, "strays", False) and eps is not None:
        ball = Ball(exact.clone(), as_budgets(eps, exact, name), attack.norm)
    # R-FGSM as the code of Kalaria et al. 2022 has it goes beyond eps, see `defend.attacks.single_step.Rfgsm`
    # and images that came as a file are as they were written, whatever float32 makes of their budget
    allowed = budgets + getattr(attack, "excess", 0.0) + getattr(attack, "slack", 0.0)
    halves = Halves(images, allowed.float(), attack.norm) if images.dtype in HALVES else None
    # inside inference mode there are no gradients, whatever an attack turns on
    with (
        torch.inference_mode(False),
        eval_mode(target.module),
        as_before(target.module, f"attack {name}", closely=True),
    ):
        asked = Asked(_victim(target.module), int(labels.max()) if len(labels) else 0)
        if target.classes is not None:
            asked.note_classes(target.classes)
        target.queries, target.shown = None, images.dtype
        target.watch(identity.clone(), labels.clone(), ball, halves)
        copies = [value.clone() for value in (exact, labels, budgets, identity)]
        try:
            with compare_labels(asked):
                with Calling(f"attack {name}", "its call", exact):
                    adversarial = attack(target, copies[0], copies[1], eps=copies[2], keys=copies[3])
                if asked.classes is None and len(images):  # the attack asked nothing, or something else
                    _look(target, images[:1], identity[:1])
        finally:
            target.shown = None
        target.classes = asked.classes
    adversarial = _check(adversarial, images, name)
    target.overshoot = overshoot(adversarial, exact, allowed, attack.norm)
    return clip(adversarial.to(images.dtype), images, allowed, attack.norm)


UNMOVED_SHARE = 0.5  # of the images that were to be attacked: more than that are told of


def warn_of_unmoved(attacked: Tensor, images: Tensor, what: str, instead: str) -> None:
    """Warn where more than half of what is to be learned from as attacked images [B,...] are the images themselves.

    Args:
        attacked, images: of the same shape and type.
        what: which attack on which victim, for the message.
        instead: what to do.
    """
    left = int((attacked == images).flatten(1).all(1).sum())
    if left > UNMOVED_SHARE * len(images):
        warnings.warn(
            f"{what} left {left} of {len(images)} images as they were, so what learns from them learns of no attack: "
            f"the victim's gradient is zero there, or eps is below a grey level; {instead}",
            stacklevel=3,
        )


@torch.no_grad()
def _look(target: Target, image: Tensor, key: Tensor) -> None:
    """Ask a target once; random draws outside stay as they were."""
    with torch.random.fork_rng([image.device] if image.is_cuda else []), keyed(key, seed=target.seed, stream="look"):
        target.module(image)


def _victim(module: nn.Module) -> object:
    """Return whose logits a target's are: a defence's victim, or the network itself."""
    return module.module if isinstance(module, Answering) else getattr(module, "victim", module)


def overshoot(adversarial: Tensor, images: Tensor, eps: Tensor, norm: str) -> Tensor:
    """Return how far each image is outside its budget or outside [0,1], whichever is larger: [B], 0 if inside."""
    distance = measure(adversarial - images, norm)
    flat = adversarial.flatten(1)
    outside = torch.maximum(-flat.amin(1), flat.amax(1) - 1)
    return torch.maximum(distance - eps, outside).clamp_min(0).abs()  # no -0


def _check(adversarial: Tensor, images: Tensor, name: str) -> Tensor:
    if not isinstance(adversarial, Tensor) or adversarial.shape != images.shape:
        got = f"shape {list(adversarial.shape)}" if isinstance(adversarial, Tensor) else type(adversarial).__name__
        raise ContractError(f"attack {name} returned {got}, expected images of shape {list(images.shape)}")
    if not adversarial.is_floating_point():
        raise ContractError(f"attack {name} returned {adversarial.dtype}, expected floats in [0,1]")
    adversarial = adversarial.detach().to(torch.promote_types(images.dtype, torch.float32))
    bad = (~torch.isfinite(adversarial)).flatten(1).any(1)
    if bad.any():
        raise ContractError(f"attack {name} returned {int(bad.sum())} of {len(bad)} images that are not finite")
    return adversarial
