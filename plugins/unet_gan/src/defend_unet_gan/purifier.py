"""The purifier stage: the generator of `model.py`, its range brought to [0,1]."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from defend import Task
from defend_unet_gan.config import LARGEST, UnetGanOptions, UnetGanRecipe
from defend_unet_gan.model import Generator

GREY_WIDTH, COLOUR_WIDTH = 16, 64
GREY_KEY_STRIDE, COLOUR_KEY_STRIDE = 2, 1


class UnetGanPurifier(nn.Module):
    """Images [B,C,H,W] in [0,1] to painted images of the same shape and range. It draws no random numbers.

    Attributes:
        generator: the attention U-Net.
        noise_range: E_max/255 of the training, the largest change of a pixel in noise mode; kept with the weights.
    """

    random = False
    noise_range: Tensor

    def __init__(self, generator: Generator, config: UnetGanOptions) -> None:
        super().__init__()
        self.generator, self.config = generator, config
        self.register_buffer("noise_range", torch.tensor(UnetGanRecipe().eps_max / LARGEST))

    def forward(self, images: Tensor) -> Tensor:
        """Image mode: (G(x) + 1)/2. Noise mode: clip(x + noise_scale G(x)). G ends in tanh."""
        painted: Tensor = self.generator(images)
        if self.config.mode == "image":
            return (painted + 1) / 2
        scale = self.noise_range if self.config.noise_scale is None else self.config.noise_scale
        return (images + scale * painted).clamp(0, 1)


def build(config: UnetGanOptions, task: Task) -> UnetGanPurifier:
    """Build the purifier for a task; untrained until weights are loaded."""
    grey = task.channels == 1
    width = config.width or (GREY_WIDTH if grey else COLOUR_WIDTH)
    key_stride = config.key_stride or (GREY_KEY_STRIDE if grey else COLOUR_KEY_STRIDE)
    return UnetGanPurifier(Generator(task.channels, width, config.up_kernel, key_stride), config)
