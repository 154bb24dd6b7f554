"""timm's and torchvision's models behind the victim hook. Imports neither of them, nor torch."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

from defend.datasets.normalisation import NormalisationOptions
from defend.errors import PluginError
from defend.hookspecs import hookimpl
from defend.options import option, options
from defend.stages import Paper, StageSpec

SIZE_HELP = (
    "side in pixels to which the victim scales images before its network sees them; 0: as they come; none: that of "
    "published weights, else as they come"
)
LARGEST_SIZE = 4096
SGD = {"optimiser": "sgd", "weight_decay": 5e-4}


@options
class NetworkOptions(NormalisationOptions):
    """What timm's and torchvision's models have in common."""

    size: int | None = option(None, help=SIZE_HELP, at_least=0, at_most=LARGEST_SIZE, architecture=True)


@options
class TimmOptions(NetworkOptions):
    """Options of a timm victim."""

    model: str = option("resnet18", help="timm's model name", architecture=True)
    stem: str = option(
        "auto",
        help="standard: as timm has it; small: for small images (ResNet, DenseNet, Inception-v3: a 3x3 stride-1 stem "
        "without pooling; VGG: one linear layer, images padded to 32); pooled (ResNet, DenseNet): 3x3 stride 1 and "
        "pooling; strided (the same): 3x3 stride 2, no pooling; auto: small up to 64 pixels (a ResNet under 32: "
        "strided), standard above",
        choices=("auto", "standard", "small", "pooled", "strided"),
        architecture=True,
    )
    pretrained: bool = option(
        False,
        help="timm's own weights (downloaded), those of the name's tag, with their normalisation and size; needs their "
        "classes in their order, ImageNet's 1,000 for most. On where the name is timm:NAME",
    )


@options
class TorchvisionOptions(NetworkOptions):
    """Options of a torchvision victim."""

    model: str = option("resnet18", help="torchvision's model name", architecture=True)
    pretrained: bool = option(
        True,
        help="torchvision's default weights (downloaded) with their normalisation and size, which need their classes "
        "in their order; off where a weights file is named",
    )


@options
class VictimRecipe:
    """How a victim is trained: a one-cycle rate, shifts, and flips where they keep the class."""

    epochs: int = option(30, help="passes over the training images", at_least=1)
    batch_size: int = option(128, help="images a step", at_least=2)
    lr: float = option(2e-3, help="peak of the one-cycle learning rate", at_least=0)
    weight_decay: float = option(5e-2, help="weight decay; sgd spares biases and normalisation", at_least=0)
    shift: int = option(4, help="random shift of up to this many pixels, zero padding", at_least=0, at_most=32)
    optimiser: str = option(
        "adamw",
        help="adamw, or sgd (Nesterov momentum 0.9), which wants lr near 0.1 and weight_decay near 5e-4",
        choices=("adamw", "sgd"),
    )
    label_smoothing: float = option(
        0.0, help="share of the target that is spread over all classes", at_least=0, at_most=1
    )
    cutout: int = option(0, help="side in pixels of a black square at a random place of each image", at_least=0)
    small_epochs: int = option(
        0, help="the first so many epochs see images of small_size, which take less time", at_least=0
    )
    small_size: int = option(
        24, help="height in pixels of the images of small_epochs; width to scale", at_least=8, at_most=LARGEST_SIZE
    )
    zero_residuals: bool = option(
        True,
        help="residual branches begin as nothing where the model has it so, as timm's ResNets; off: the normalisation "
        "that ends each of them begins at 1, which learns faster in few epochs",
    )


@hookimpl
def defend_victims() -> Sequence[StageSpec]:
    """Families: every model of timm, those that timm finds on Hugging Face's hub, every classifier of torchvision."""
    return [
        StageSpec(
            name="timm",
            summary="any timm model by its name, for example resnet18; timm:NAME[.TAG] with its published weights",
            build="defend.victims.network:build",
            config=TimmOptions,
            paper=Paper(
                title="PyTorch Image Models",
                authors="Wightman",
                year=2019,
                url="https://github.com/huggingface/pytorch-image-models",
            ),
            train="defend.victims.network:train",
            recipe=VictimRecipe,
            recipes={
                "digits": {"epochs": 20, "batch_size": 64, "shift": 2},
                "mnist": {"epochs": 6, "batch_size": 256, "shift": 2},
                "fashion_mnist": {**SGD, "epochs": 15, "batch_size": 256, "lr": 0.1, "shift": 2},
                # [R] resnet18's first epoch of 14 gets 42 % of the training images right. With residuals that begin as
                # nothing it was 28 (smaller images), and 25 in 512 images a step up to lr 0.4
                "cifar10": {**SGD, "epochs": 30, "lr": 0.2, "label_smoothing": 0.1, "zero_residuals": False},
            },
            weights="defend.victims.weights",
            members="defend.victims.plugin:timm_models",
            tags="defend.victims.plugin:timm_tags",
            published={"pretrained": True},
        ),
        StageSpec(
            name="hf-hub",
            summary="a timm model on Hugging Face's hub with its published weights: hf-hub:ORG/NAME",
            build="defend.victims.network:build_from_hub",
            config=TimmOptions,
            train="defend.victims.network:train_from_hub",
            recipe=VictimRecipe,
            pattern=r"[\w.-]+/[\w.-]+(@[\w./-]+)?",
            published={"pretrained": True},
            prefixed=True,
        ),
        StageSpec(
            name="torchvision",
            summary="a classifier of torchvision with its published weights, for example torchvision:resnet18",
            build="defend.victims.vision:build",
            config=TorchvisionOptions,
            train="defend.victims.vision:train",
            recipe=VictimRecipe,
            members="defend.victims.plugin:torchvision_models",
            prefixed=True,
        ),
    ]


@functools.cache
def timm_models() -> tuple[str, ...]:
    """Return the names of timm's models, read from its files: importing timm takes seconds.

    Raises:
        PluginError: timm is not installed.
    """
    marked = re.compile(r"^@register_model\s+def (\w+)\(", re.MULTILINE)
    return tuple(sorted({name for source in _sources("timm") for name in marked.findall(source)}))


@functools.cache
def torchvision_models() -> tuple[str, ...]:
    """Return the names of torchvision's classifiers, read from its files as those of timm are.

    Raises:
        PluginError: torchvision is not installed.
    """
    marked = re.compile(r"^@register_model\(\)\n(?:(?!def ).*\n)*def (\w+)\(", re.MULTILINE)
    return tuple(sorted({name for source in _sources("torchvision") for name in marked.findall(source)}))


@functools.cache
def timm_tags() -> tuple[str, ...]:
    """Return the names of timm's published weights, MODEL.TAG, read from its files as they stand there.

    Raises:
        PluginError: timm is not installed.
    """
    known = set(timm_models())
    keyed = re.compile(r"""^\s*['"]((\w+)\.\w+)['"]\s*:""", re.MULTILINE)
    return tuple(
        sorted({whole for source in _sources("timm") for whole, model in keyed.findall(source) if model in known})
    )


@functools.cache
def _sources(library: str) -> tuple[str, ...]:
    """Return the text of the files that a library's models stand in."""
    found = importlib.util.find_spec(library)
    if found is None or found.origin is None:
        raise PluginError(f"{library} is not installed: pip install {library}")
    files = sorted((Path(found.origin).parent / "models").glob("*.py"))
    return tuple(file.read_text(encoding="utf-8") for file in files)
