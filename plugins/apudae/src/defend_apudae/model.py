"""APuDAE's equations: the reconstruction error and the purification rules.

Symbols are the paper's: N layers, r the reconstruction error, mu and sigma its mean and standard
deviation on clean images, a the step, n the number of updates.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from defend.gradients import SEGMENT, State, inner_gradients, smooth_sign, unroll
from defend.randomness import normal_like, uniform_like, uniform_per_image
from defend_apudae.config import ApudaeOptions
from defend_apudae.frozen import FrozenAutoencoder

ADAM_BETAS = (0.9, 0.999)
ADAM_EPS = 1e-8
ROOT_FLOOR = 1e-24  # keeps the slope of the square root finite where the gradient is exactly zero
CODE_NOISE = 0.7 / 255
CODE_NOISE_CAP = 4.0
PAPER_NOISE = 2 / 255


def reconstruction_error(images: Tensor, autoencoder: Callable[[Tensor], Tensor]) -> Tensor:
    """r(x): the squared error summed over channels and pixels, [B]; the mean is never taken (resolution 3)."""
    return (images - autoencoder(images)).square().flatten(1).sum(1)


def loss(variant: str, r: Tensor, mu: Tensor, sigma: Tensor) -> Tensor:
    """The quantity that is descended, [B]: eq. 8 (A, B, C), eq. 11 (D), or the hinge of eqs. 12 and 13 (E, F, G)."""
    if variant == "D":
        return (r - mu).abs() / sigma
    if variant in ("E", "F", "G"):
        return (r - mu).clamp_min(0) / sigma
    return r


def loss_slope(variant: str, r: Tensor, mu: Tensor, sigma: Tensor) -> Tensor:
    """The derivative of `loss` with respect to r, [B,1,1,1]; its own is zero, as every loss is linear in pieces."""
    at = r.detach().requires_grad_()
    (slope,) = torch.autograd.grad(loss(variant, at, mu, sigma).sum(), at)
    return slope.view(-1, 1, 1, 1)


def rate(variant: str, a: float, r: Tensor, mu: Tensor, sigma: Tensor) -> Tensor:
    """The step of each image, [B,1,1,1]: a, or eq. 10's a (1 - exp(-((r - mu)/sigma)^2)) for C (resolution 4)."""
    if variant != "C":
        return torch.full_like(r, a).view(-1, 1, 1, 1)
    return (a * (1 - torch.exp(-(((r - mu) / sigma) ** 2)))).view(-1, 1, 1, 1)


def direction(
    rule: str, gradient: Tensor, first: Tensor, second: Tensor, count: int, momentum: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Turn a gradient into the direction that is stepped along; all are [B,C,H,W].

    sign; gd, the gradient itself (eq. 8); ema, its running average (eq. 9); adam, with the default betas.

    Args:
        first, second: running averages of the gradient and of its square before this step.
        count: which step this is, from 1.

    Returns:
        The direction, and the two averages after this step.
    """
    if rule == "sign":
        return smooth_sign(gradient), first, second
    if rule == "gd":
        return gradient, first, second
    if rule == "ema":
        first = momentum * first + (1 - momentum) * gradient
        return first, first, second
    fast, slow = ADAM_BETAS
    first = fast * first + (1 - fast) * gradient
    second = slow * second + (1 - slow) * gradient.square()
    mean = first / (1 - fast**count)
    root = (second / (1 - slow**count) + ROOT_FLOOR).sqrt()
    return mean / (root + ADAM_EPS), first, second


def resolve_rule(config: ApudaeOptions) -> str:
    """Return the step rule that `auto` stands for."""
    if config.rule != "auto":
        return config.rule
    return "sign" if config.variant == "A" else "adam"


def purify(
    images: Tensor, autoencoder: Callable[[Tensor], Tensor], mu: Tensor, sigma: Tensor, config: ApudaeOptions
) -> Tensor:
    """Descend the loss from `images` by exactly n updates, then clip to [0,1].

    Works whether gradients are on or off. Where they are on and `images` requires them, the result is
    differentiable with respect to `images`, second order included: the updates' own gradients are
    differentiated too. That is exact but for `sign`, see `defend.gradients.smooth_sign` and the option `sign_slope`.
    A `FrozenAutoencoder` gives both gradients itself, and so little to remember that no step is computed twice.
    """
    rule = resolve_rule(config)
    frozen = autoencoder if isinstance(autoencoder, FrozenAutoencoder) else None

    def step(number: int, state: State, attached: bool) -> State:
        x, first, second = state
        if config.variant == "F" and config.noise == "uniform":
            with torch.set_grad_enabled(attached):  # its size depends on the image
                x = x + code_noise(x, autoencoder, mu, sigma, config)
        twice = attached and (rule != "sign" or config.sign_slope == "smooth")
        keeps = twice or (attached and config.variant == "C")
        at = x if keeps else x.detach().requires_grad_(frozen is None)
        there = at
        if config.variant == "F" and config.noise == "gaussian":
            there = at + _size(config, PAPER_NOISE) * normal_like(at)
        if frozen is not None:
            r, slope = frozen.error_and_slope(there)
            gradient = loss_slope(config.variant, r, mu, sigma) * (slope if twice else slope.detach())
        else:
            r = reconstruction_error(there, autoencoder)
            total = loss(config.variant, r, mu, sigma).sum()
            (gradient,) = torch.autograd.grad(total, at, create_graph=twice, retain_graph=keeps)
        along, first, second = direction(rule, gradient, first, second, number + 1, config.momentum)
        x = x - rate(config.variant, config.step_size, r, mu, sigma) * along
        return (x, first, second) if attached else (x.detach(), first.detach(), second.detach())

    with inner_gradients(images) as (x, outer):
        if config.variant == "G":
            x = transform(x, config.resize, config.rotate)
        nothing = torch.zeros_like(x)
        segment = SEGMENT if frozen is None else config.steps
        return unroll(step, (x, nothing, nothing), config.steps, attached=outer, segment=segment)[0].clamp(0, 1)


def _size(config: ApudaeOptions, default: float) -> float:
    return default if config.noise_size is None else config.noise_size


def code_noise(
    images: Tensor, autoencoder: Callable[[Tensor], Tensor], mu: Tensor, sigma: Tensor, config: ApudaeOptions
) -> Tensor:
    """Variant F as the authors' code has it: uniform noise of size 0.7/255 * clip(((r - mu)/(2 sigma))^2, 0, 4)."""
    r = reconstruction_error(images, autoencoder)
    scale = _size(config, CODE_NOISE) * (((r - mu) / (2 * sigma)) ** 2).clamp(0, CODE_NOISE_CAP)
    return uniform_like(images, -1, 1) * scale.view(-1, 1, 1, 1)


def transform(images: Tensor, resize: float, rotate: float) -> Tensor:
    """Variant G's start: every image scaled by f and turned by theta about its centre, edges repeated."""
    f = uniform_per_image(images, 1 - resize, 1 + resize)
    theta = uniform_per_image(images, -rotate, rotate) * (math.pi / 180)
    cosine, sine, zero = theta.cos() / f, theta.sin() / f, torch.zeros_like(f)
    high = images.shape[2] / images.shape[3]  # the grid counts both sides from -1 to 1, whatever their lengths
    matrix = torch.stack([torch.stack([cosine, -sine * high, zero], 1), torch.stack([sine / high, cosine, zero], 1)], 1)
    grid = F.affine_grid(matrix.to(images.dtype), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
