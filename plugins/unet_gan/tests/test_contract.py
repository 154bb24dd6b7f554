"""The purifier keeps to core's contract, in both modes and at every size."""

from typing import ClassVar

from defend.stages import Task
from defend.testing.contracts import PurifierContract


class UnetGanContract(PurifierContract):
    name = "unet_gan"
    not_denoising: ClassVar = {
        "cifar10+narrow": "made in two epochs: at 8/255 it is worse than a blur",
        "cifar10+narrow-image-2": "made in two epochs: at 8/255 it is worse than a blur",
        "cifar10+narrow-noise": "made in two epochs: at 8/255 it leaves the noise as it is",
        "cifar10+narrow-eps128": "made for attacks of up to 128/255, in two epochs: at 8/255 it is worse than a blur",
    }


class Small(UnetGanContract):
    options: ClassVar = {"width": 8}

    def stage_module(self):
        """Untrained, but with every attention switched on: their gains start at zero."""
        purifier = super().stage_module()
        for name, parameter in purifier.named_parameters():
            if name.endswith("gain"):
                parameter.data.fill_(0.5)
        return purifier


class TestImage(Small):
    pass


class TestNoise(Small):
    options: ClassVar = {"width": 8, "mode": "noise", "noise_scale": 0.1}


class TestColour(Small):
    options: ClassVar = {"width": 8, "key_stride": 2, "up_kernel": 3}
    task = Task("cifar10", 3, 32, 32, 10)


class TestOddSize(Small):
    task = Task("imagefolder", 3, 33, 29, 2)


class TestAsItIsBuilt(UnetGanContract):
    pass
