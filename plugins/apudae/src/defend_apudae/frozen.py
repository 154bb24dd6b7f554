"""The autoencoder with frozen weights: the gradient of its reconstruction error written out, and that gradient's own.

In evaluation the network D is piecewise linear: convolutions, ReLU, and batch norm that only scales and shifts. With J
its Jacobian at x, of r(x) = |x - D(x)|^2 the gradient is 2 (I - J)^T (x - D(x)), and wherever D has a slope the second
derivative is 2 (I - J)^T (I - J), without further terms. So all that the second derivative needs is which ReLUs let
through: one bit each, and no pass is ever computed twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defend_apudae.networks import DenoisingAutoencoder

KERNEL, BYTE = 3, 8

Gate = Callable[[Tensor], Tensor]
"""What goes into a ReLU to what comes out of it."""


class FrozenAutoencoder(nn.Module):
    """The same function as an autoencoder in eval mode, up to rounding, with `error_and_slope` made faster.

    Every hidden layer is one plain convolution of stride 1, forwards and backwards (a transposed one is the plain one
    with its kernel turned), and the two layers of stride 2, which have few channels on one side, are matrix products.
    The weights are copied: later changes of the autoencoder's are not seen.

    Args:
        dae: the autoencoder; its own forward pass stays as it is.
    """

    def __init__(self, dae: DenoisingAutoencoder) -> None:
        super().__init__()
        self.dae = dae
        self._layers = 2 * dae.depth - 1  # without the last
        for number, layer in enumerate([*dae.encoder, *dae.decoder]):
            scale = layer.norm.weight / (layer.norm.running_var + layer.norm.eps).sqrt()
            self._keep("scale", number, scale.view(1, -1, 1, 1))
            self._keep("shift", number, (layer.norm.bias - layer.norm.running_mean * scale).view(1, -1, 1, 1))
            self._keep("bias", number, layer.conv.bias)
            weight, turned = layer.conv.weight, layer.conv.weight.transpose(0, 1).flip(2, 3)
            transposed = isinstance(layer.conv, nn.ConvTranspose2d)
            self._keep("kernel", number, turned if transposed else weight)
            self._keep("adjoint", number, weight if transposed else turned)
        first: Any = dae.encoder[0]
        self._keep("outer", 0, first.conv.weight.flatten(1))  # [width,9c], both of them
        self._keep("outer", 1, dae.last.weight.flatten(1))
        self._keep("bias", self._layers, dae.last.bias)

    def _keep(self, kind: str, number: int, value: Any) -> None:
        self.register_buffer(f"{kind}_{number}", value.detach().clone(), persistent=False)

    def _read(self, kind: str, number: int) -> Tensor:
        found: Tensor = getattr(self, f"{kind}_{number}")
        return found

    def forward(self, images: Tensor) -> Tensor:
        """Reconstruct, as the autoencoder does; differentiable to any order."""
        restored: Tensor = self.dae(images)
        return restored

    def error_and_slope(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return r(x), [B], and its gradient with respect to images [B,C,H,W], of the same shape.

        Both are differentiable with respect to the images, once. A graph keeps an eighth of a byte for every
        activation, and no more.
        """
        r, slope = _ErrorAndSlope.apply(images, self)
        return r, slope

    def restore(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return D(x) and its gates: what every ReLU returned, in order. Builds no graph."""
        gates: list[Tensor] = []

        def note(hidden: Tensor) -> Tensor:
            gates.append(hidden.relu_())
            return gates[-1]

        return self._through(images, note, affine=True), gates

    def move(self, directions: Tensor, gates: list[Tensor]) -> Tensor:
        """Return J v of directions [B,C,H,W], J as the gates have it."""
        passed = iter(gates)
        return self._through(directions, lambda hidden: _let(hidden, next(passed)), affine=False)

    def pull(self, slopes: Tensor, gates: list[Tensor]) -> Tensor:
        """Return J^T v of slopes [B,C,H,W]."""
        height, width = slopes.shape[-2:]
        passed = reversed(gates)
        straight = _let(F.pad(slopes, (0, width % 2, 0, height % 2)), next(passed))
        hidden, skipping = _down(straight, self._read("outer", 1)), {}
        for number in reversed(range(self._layers)):
            source = self._skip_after(number)
            if source is not None:
                hidden = skipping[source] = _let(hidden, next(passed))
            if number in skipping:
                hidden = hidden + skipping.pop(number)
            hidden = _let(hidden * self._read("scale", number), next(passed))
            if number:
                hidden = F.conv2d(hidden, self._read("adjoint", number), padding=1)
        return _fold_edges(straight + _up(hidden, self._read("outer", 0), straight.shape[-2:]), height, width)

    def recall(self, bits: Sequence[Tensor], images: Tensor) -> list[Tensor]:
        """Turn gates that became bits, see `pack`, into gates for images [B,C,H,W] again; 1 is let through."""
        batch, channels, height, width = images.shape
        size = height + height % 2, width + width % 2
        inner = (batch, self._read("outer", 0).shape[0], size[0] // 2, size[1] // 2)
        shapes = [inner] * (len(bits) - 1) + [(batch, channels, *size)]
        return [unpack(each, shape, images.dtype) for each, shape in zip(bits, shapes, strict=True)]

    def _skip_after(self, number: int) -> int | None:
        """Return the layer that is added to what layer `number` returns; both count from 0 through all of them."""
        mirrored = 2 * self.dae.depth - number - 2
        return mirrored if number >= self.dae.depth and mirrored + 1 in self.dae.skipped else None

    def _through(self, images: Tensor, gate: Gate, *, affine: bool) -> Tensor:
        """Go through every layer; `affine` adds biases and shifts. No graph: `gate` may overwrite what it gets."""
        height, width = images.shape[-2:]
        padded = images
        if height % 2 or width % 2:
            padded = F.pad(images, (0, width % 2, 0, height % 2), mode="replicate")
        hidden, outputs = _down(padded, self._read("outer", 0)), {}
        for number in range(self._layers):
            if number:
                bias = self._read("bias", number) if affine else None
                hidden = F.conv2d(hidden, self._read("kernel", number), bias, padding=1)
            elif affine:
                hidden = hidden.add_(self._read("bias", 0).view(1, -1, 1, 1))
            hidden, scale = gate(hidden), self._read("scale", number)
            hidden = torch.addcmul(self._read("shift", number), hidden, scale) if affine else hidden.mul_(scale)
            if number + 1 in self.dae.skipped:
                outputs[number] = hidden
            source = self._skip_after(number)
            if source is not None:
                hidden = gate(hidden + outputs[source])
        last = _up(hidden, self._read("outer", 1), padded.shape[-2:]) + padded
        if affine:
            last = last.add_(self._read("bias", self._layers).view(1, -1, 1, 1))
        return gate(last)[..., :height, :width]


class _ErrorAndSlope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, network: FrozenAutoencoder) -> tuple[Tensor, Tensor]:
        restored, gates = network.restore(images)
        difference = images - restored
        slope = 2 * (difference - network.pull(difference, gates))
        if ctx.needs_input_grad[0]:
            ctx.set_materialize_grads(False)
            ctx.network = network
            ctx.save_for_backward(slope, *map(pack, gates))
        return difference.square().flatten(1).sum(1), slope

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, for_error: Tensor | None, for_slope: Tensor | None) -> tuple[Tensor | None, None]:
        slope, *bits = ctx.saved_tensors
        found = None if for_error is None else for_error.view(-1, 1, 1, 1) * slope
        if for_slope is not None:
            gates = ctx.network.recall(bits, slope)
            moved = for_slope - ctx.network.move(for_slope, gates)
            second = 2 * (moved - ctx.network.pull(moved, gates))
            found = second if found is None else found + second
        return found, None


def _fold_edges(padded: Tensor, height: int, width: int) -> Tensor:
    """Transpose the padding of odd sides: what falls on the repeated row or column goes to the one it repeats."""
    if height % 2:
        padded = torch.cat([padded[..., : height - 1, :], padded[..., height - 1 :, :].sum(-2, keepdim=True)], -2)
    if width % 2:
        padded = torch.cat([padded[..., : width - 1], padded[..., width - 1 :].sum(-1, keepdim=True)], -1)
    return padded


def _down(images: Tensor, weight: Tensor) -> Tensor:
    """Convolve [B,c,H,W] by 3x3 with stride 2 and weight [width,9c]: [B,width,H/2,W/2], channels-last in memory."""
    height, width = (side // 2 for side in images.shape[-2:])
    patches = F.unfold(images, KERNEL, padding=1, stride=2).transpose(1, 2)
    return torch.matmul(patches, weight.t()).view(len(images), height, width, -1).permute(0, 3, 1, 2)


def _up(hidden: Tensor, weight: Tensor, size: torch.Size) -> Tensor:
    """Transpose `_down`: [B,width,H/2,W/2] to [B,c,H,W]."""
    patches = torch.matmul(hidden.permute(0, 2, 3, 1).flatten(1, 2), weight)
    return F.fold(patches.transpose(1, 2), (size[-2], size[-1]), KERNEL, padding=1, stride=2)


def _let(values: Tensor, gate: Tensor) -> Tensor:
    """Return values where the gate is above zero, zero elsewhere: the backward pass of a ReLU, in one kernel."""
    passed: Tensor = torch.ops.aten.threshold_backward(values, gate, 0)
    return passed


def pack(gate: Tensor) -> Tensor:
    """Return one bit for every number of [B,C,H,W] that is not zero, eight in a uint8: flat."""
    flat = gate.permute(0, 2, 3, 1).bool().flatten()
    parts = F.pad(flat, (0, -len(flat) % BYTE)).view(torch.uint8).view(BYTE, -1)
    return (parts << _places(gate)).sum(0, dtype=torch.uint8)


def unpack(bits: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Undo `pack`: [B,C,H,W], 1 where the bit is set, 0 elsewhere."""
    batch, channels, height, width = shape
    flat = ((bits >> _places(bits)) & 1).flatten()[: math.prod(shape)]
    return flat.view(batch, height, width, channels).permute(0, 3, 1, 2).to(dtype)


def _places(like: Tensor) -> Tensor:
    return torch.arange(BYTE, dtype=torch.uint8, device=like.device)[:, None]
