"""What a stage needs that takes gradients inside its own forward pass, and must itself be differentiable."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

TINY_WIDTH = 1e-12
SLOPE_WIDTH = 1.0  # of the tanh that stands for sign in the backward pass, in mean absolute values


@contextlib.contextmanager
def inner_gradients(images: Tensor) -> Iterator[tuple[Tensor, bool]]:
    """Let a forward pass differentiate, whatever surrounds it: gradients on, off, or inference mode.

    Yields:
        The images to start from, and whether the result must stay differentiable with respect to them: gradients
        are on outside and the images require them. If not, the images come detached, and every step may detach.
    """
    outer = torch.is_grad_enabled() and images.requires_grad
    with torch.inference_mode(False), torch.enable_grad():
        start = images.clone() if images.is_inference() else images
        yield (start if outer else start.detach()), outer


class _SmoothSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.save_for_backward(values)
        return values.sign()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Tensor:
        (values,) = ctx.saved_tensors
        width = (SLOPE_WIDTH * values.abs().flatten(1).mean(1)).clamp_min(TINY_WIDTH).view(-1, 1, 1, 1)
        slope: Tensor = outer[0] * (1 - torch.tanh(values / width).square()) / width
        return slope


def smooth_sign(values: Tensor) -> Tensor:
    """sign(v) of [B,C,H,W] forwards; backwards the slope of tanh(v/w), w the mean absolute value of the image.

    The true derivative of sign is zero wherever it exists, so an attack that differentiates it to the letter never
    learns how a purifier with sign steps answers a change of the image: gradient masking, not robustness.
    """
    smooth: Tensor = _SmoothSign.apply(values)
    return smooth
