"""Convolutions over maps of a few pixels, as one matrix product of whole maps, on a CPU.

Late in a network for large images that is given small ones, a 3x3 kernel stands on a map of 2x2 or of a single pixel:
most of its taps fall beside the map and are multiplied all the same, and kernels of 512 channels are brought into
another order before every pass. A matrix product of all pixels of the map does a fraction of the arithmetic, at the
full rate. The sums are the same numbers added in another order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SAVING = 2  # times as many taps as pixels in the map: below it there is too little to gain for the memory


class WholeMap(nn.Conv2d):
    """A convolution that multiplies maps of one size by a matrix; maps of any other it convolves.

    Its weights are the layer's own. The matrix is made of them once: later changes are not seen.

    Args:
        layer: frozen, of one group, padded with zeros or not at all.
        size: rows and columns of the maps.
    """

    def __init__(self, layer: nn.Conv2d, size: tuple[int, int]) -> None:
        super().__init__(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,  # type: ignore[arg-type]
            stride=layer.stride,  # type: ignore[arg-type]
            padding=layer.padding,  # type: ignore[arg-type]
            dilation=layer.dilation,  # type: ignore[arg-type]
            bias=layer.bias is not None,
            device="meta",
        )
        self.weight, self.bias, self.meets = layer.weight, layer.bias, size
        self.matrix = _write_out(layer, size)  # no buffer: these are copied wherever they might be changed
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Map [B,C,H,W] as the layer does."""
        fits = tuple(images.shape[-2:]) == self.meets and images.dtype == self.matrix.dtype
        if not fits or images.device != self.matrix.device:
            return super().forward(images)
        rows, columns = _sides(self, self.meets)
        bias = None if self.bias is None else self.bias.repeat(rows * columns)
        made = F.linear(images.permute(0, 2, 3, 1).flatten(1), self.matrix, bias)
        return made.view(len(images), rows, columns, -1).permute(0, 3, 1, 2)


@torch.no_grad()
def find_small_maps(module: nn.Module, sample: Tensor) -> dict[str, tuple[int, int]]:
    """Return the convolutions that meet small maps of one size alone, by their names in the module, with that size.

    A pass over a few images [B,C,H,W] shows what each meets. None is found on another device than a CPU.
    """
    if sample.device.type != "cpu":
        return {}
    met: dict[nn.Module, set[tuple[int, int]]] = {}

    def note(layer: nn.Module, given: tuple[Any, ...]) -> None:
        met.setdefault(layer, set()).add((given[0].shape[-2], given[0].shape[-1]))

    uses = Counter(id(layer) for _, layer in module.named_modules(remove_duplicate=False))
    fitting = {name: layer for name, layer in module.named_modules() if _fits(layer) and uses[id(layer)] == 1}
    hooks = [layer.register_forward_pre_hook(note) for layer in fitting.values()]
    try:
        module(sample)
    finally:
        for hook in hooks:
            hook.remove()
    single = {name: next(iter(met[layer])) for name, layer in fitting.items() if len(met.get(layer, ())) == 1}
    return {name: size for name, size in single.items() if _pays(fitting[name], size)}


def multiply_small_maps(module: nn.Module, found: Mapping[str, tuple[int, int]]) -> None:
    """Replace convolutions of a frozen module, as `find_small_maps` returned them."""
    for name, size in found.items():
        layer = module.get_submodule(name)
        assert isinstance(layer, nn.Conv2d)
        module.set_submodule(name, WholeMap(layer, size))


def _fits(layer: nn.Module) -> bool:
    """Whether a layer is a plain convolution: a subclass, or what computes its weight before every pass, is left."""
    return (
        type(layer) is nn.Conv2d
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and set(layer._parameters) == {"weight", "bias"}
        and not (layer._forward_hooks or layer._forward_pre_hooks)
    )


def _pays(layer: nn.Module, size: tuple[int, int]) -> bool:
    assert isinstance(layer, nn.Conv2d)
    rows, columns = layer.kernel_size
    return rows * columns >= SAVING * size[0] * size[1]


def _sides(layer: nn.Conv2d, size: tuple[int, int]) -> tuple[int, int]:
    """Return rows and columns of what a layer makes of maps of a size."""
    rows, columns = (
        (size[axis] + 2 * _padding(layer)[axis] - layer.dilation[axis] * (layer.kernel_size[axis] - 1) - 1)
        // layer.stride[axis]
        + 1
        for axis in (0, 1)
    )
    return rows, columns


def _padding(layer: nn.Conv2d) -> tuple[int, int]:
    assert not isinstance(layer.padding, str)
    return layer.padding[0], layer.padding[1]


@torch.no_grad()
def _write_out(layer: nn.Conv2d, size: tuple[int, int]) -> Tensor:
    """Return the matrix [pixels out * channels out, pixels in * channels in] that a layer is on maps of a size."""
    made = _sides(layer, size)
    matrix = layer.weight.new_zeros(*made, layer.out_channels, *size, layer.in_channels)
    for row in range(made[0]):
        for column in range(made[1]):
            for down, across, tap in _taps(layer, size, row, column):
                matrix[row, column, :, down, across] = tap
    return matrix.flatten(3).flatten(0, 2)


def _taps(layer: nn.Conv2d, size: tuple[int, int], row: int, column: int) -> list[tuple[int, int, Tensor]]:
    """Return what one pixel is made of: places in the map, and the weights [out,in] there."""
    first = [made * step - pad for made, step, pad in zip((row, column), layer.stride, _padding(layer), strict=True)]
    taps = [
        (first[0] + down * layer.dilation[0], first[1] + across * layer.dilation[1], layer.weight[:, :, down, across])
        for down in range(layer.kernel_size[0])
        for across in range(layer.kernel_size[1])
    ]
    return [each for each in taps if 0 <= each[0] < size[0] and 0 <= each[1] < size[1]]
