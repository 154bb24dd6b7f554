"""The stages of this plugin keep to core's contracts."""

from typing import ClassVar

from defend.stages import Task
from defend.testing.contracts import PurifierContract, VictimContract


class TestDae(PurifierContract):
    name = "dae"
    not_denoising: ClassVar = dict.fromkeys(
        ("cifar10", "cifar10+long", "cifar10+se_preresnet56"),
        "3,795 parameters that halve the image twice are hardly better than a blur, and worse than nothing at 8/255",
    )


class TestDaeColour(TestDae):
    task = Task("cifar10", 3, 32, 32, 10)


class TestDaeOddSize(TestDae):
    task = Task("imagefolder", 3, 33, 30, 2)


class TestResnet20(VictimContract):
    name = "resnet20"


class TestSePreresnet56(VictimContract):
    name = "se_preresnet56"
    task = Task("cifar10", 3, 32, 32, 10, (0.49, 0.48, 0.45), (0.2, 0.2, 0.2))
