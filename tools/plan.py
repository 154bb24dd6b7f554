"""What is trained and measured, as data: every victim, purifier and fine-tuning of the papers' tables, then the tables.

The papers' epochs do not fit into half an hour on one GPU, so every item names its own, fewer, mostly under one cycle
of the learning rate; the card of what is trained records them. Costs are estimates, see `seconds`. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from defend.stages import Stage
from defend.weights.find import file_name, tuned_name

FAST, PLAIN = 120e12, 60e12
"""FLOP/s of an H100 on networks of this size, in bf16 and in TF32: an eighth of its peak. An estimate."""
KERNEL = 13e-6  # seconds to launch what one pass through one layer takes
STEP = 2e-3  # seconds of everything else in a step: batch, optimiser, schedule
SETUP = 8.0  # seconds to begin, and to measure and write at the end
WORTHWHILE = 60.0  # seconds in which a table gets some of its cells
SIZES: Mapping[str, int] = {"mnist": 55_000, "fashion_mnist": 55_000, "cifar10": 45_000}
NETWORKS: Mapping[str, tuple[float, int]] = {
    # GFLOP of a forward pass of one image, counted at 32x32x3, or 28x28x1 where the network is for these; layers
    "apudae": (0.53, 59),
    "apudae_grey": (0.12, 19),
    "classifier_a": (0.024, 10),
    "classifier_b": (0.37, 14),
    "dae": (0.002, 10),
    "densenet121": (1.78, 370),
    "inception_v3": (6.92, 280),
    "mlp": (0.001, 4),
    "puvae": (0.12, 25),
    "puvae_compact": (0.02, 23),
    "puvae_grey": (0.24, 23),
    "resnet18": (1.11, 77),
    "resnet20": (0.082, 51),
    "se_preresnet56": (0.252, 168),
    "unet_gan": (1.54, 70),
    "unet_discriminator": (0.035, 9),
    "vaegan": (0.235, 46),
    "vgg11_bn": (0.31, 35),
    "vgg13_bn": (0.46, 41),
    "vgg16_bn": (0.62, 50),
}
HALF = "half"
"""A training's precision: bf16 where the core multiplies it itself, else fp32, as what is emulated is slower."""
LEARN = 3  # passes of a training step: forward, and backward to weights and inputs
SLOPE = 2  # of the gradient of an input

Work = Sequence[tuple[str, float] | tuple[str, float, float]]
"""Of a step: (network, passes of an image), and the share of the images that makes them, if not all."""


@attrs.frozen(kw_only=True)
class Item:
    """One thing to do.

    Attributes:
        name: unique, "resnet18/cifar10".
        dataset: what it reads.
        seconds: what it takes alone on an H100, estimated.
        rank: lower goes first.
        measured: whether `seconds` were measured; else they are estimated.
        needs: the items without which it cannot begin.
        after: the items that it waits for if they are going to be done: a table is measured without the arms whose
            weights nobody has.
    """

    name: str
    dataset: str
    seconds: float
    rank: int
    measured: bool = False
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()

    @property
    def least(self) -> float:
        """The seconds below which it is not worth beginning: all it takes."""
        return self.seconds


@attrs.frozen(kw_only=True)
class Train(Item):
    """A training, as in `defend train STAGE NAME`."""

    stage: Stage
    stage_name: str
    options: Mapping[str, Any]
    edition: str = ""
    victim: str | None = None
    purifier: str | None = None
    weights: Mapping[str, str] = attrs.field(factory=dict)
    precision: str = "no"

    @property
    def file(self) -> str:
        """The name of the weights file."""
        tuned = self.stage == "finetuner" and self.victim is not None
        made = tuned_name(self.stage_name, self.victim or "", self.purifier) if tuned else self.stage_name
        return file_name(self.stage, made, self.dataset, self.edition)

    def command(self) -> str:
        """Return the command that does the same."""
        named = {"edition": self.edition, "victim": self.victim, "purifier": self.purifier}
        named |= {f"{part}-weights": edition for part, edition in self.weights.items()}
        flags = [f"--{flag} {value}" for flag, value in named.items() if value]
        flags += [f"--precision {self.precision}"] if self.precision != "no" else []
        flags += [f"--set {key}={value}" for key, value in self.options.items()]
        return f"defend train {self.stage} {self.stage_name} --dataset {self.dataset} {' '.join(flags)}".rstrip()


@attrs.frozen(kw_only=True)
class Measure(Item):
    """A table, as in `defend reproduce TABLE`; `only_open`: what the kept result of it lacks."""

    table: str
    only_open: bool = False

    @property
    def least(self) -> float:
        """The seconds below which it is not worth beginning: a table that is cut off keeps the cells it has."""
        return min(self.seconds, WORTHWHILE)

    @property
    def file(self) -> str:
        """The name of the result."""
        return f"{self.table.replace('/', '-')}.json"

    def command(self) -> str:
        """Return the command that does the same."""
        return f"defend reproduce {self.table}" + (" --open" if self.only_open else "")


def seconds(work: Work, images: int, epochs: int, batch: int, fast: bool) -> float:
    """Estimate a training: each step is as long as its arithmetic, or as launching its kernels, whichever is more.

    Args:
        work: of a step.
        images: of an epoch.
        epochs, batch: how long, and how many images a step.
        fast: whether networks run in bf16.
    """
    arithmetic = sum(NETWORKS[part[0]][0] * 1e9 * part[1] * (part[2] if len(part) > 2 else 1.0) for part in work)
    launching = sum(NETWORKS[part[0]][1] * part[1] for part in work) * KERNEL
    step = max(batch * arithmetic / (FAST if fast else PLAIN), launching) + STEP
    return SETUP + epochs * max(images // batch, 1) * step


def make_training(
    stage: Stage,
    stage_name: str,
    dataset: str,
    *,
    edition: str = "",
    victim: str | None = None,
    purifier: str | None = None,
    **more: Any,
) -> Train:
    """Return a training under its name: resnet20/cifar10+long, or dae/resnet20/dae/cifar10 of a fine-tuner.

    `more` are the other fields of `Train`.
    """
    tuned = (part for part in (victim, purifier) if part and stage == "finetuner")
    name = "/".join((stage_name, *tuned, dataset)) + (f"+{edition}" if edition else "")
    own = {"edition": edition, "victim": victim, "purifier": purifier}
    return Train(name=name, stage=stage, stage_name=stage_name, dataset=dataset, **own, **more)


def _train(
    stage: Stage,
    stage_name: str,
    dataset: str,
    rank: int,
    work: Work,
    *,
    needs: tuple[str, ...] = (),
    edition: str = "",
    victim: str | None = None,
    purifier: str | None = None,
    weights: Mapping[str, str] | None = None,
    fast: bool = False,
    kinds: float = 1,
    rounds: int | None = None,
    **options: Any,
) -> Train:
    """Describe a training; `kinds` is how many images a training image becomes, `rounds` its epochs if not named."""
    epochs = rounds if rounds is not None else options["epochs"] + options.get("post_epochs", 0)
    return make_training(
        stage,
        stage_name,
        dataset,
        edition=edition,
        victim=victim,
        purifier=purifier,
        seconds=seconds(work, round(SIZES[dataset] * kinds), epochs, options["batch_size"], fast),
        rank=rank,
        needs=needs,
        options=options,
        weights=weights or {},
        precision="bf16" if fast else "no",
    )


SGD: Mapping[str, Any] = {"optimiser": "sgd", "weight_decay": 5e-4}


def _victim(name: str, dataset: str, rank: int, **options: Any) -> Train:
    return _train("victim", name, dataset, rank, [(name, LEARN)], fast=True, **options)


def _cifar_victim(name: str, rank: int, epochs: int, batch: int, lr: float, **options: Any) -> Train:
    return _victim(name, "cifar10", rank, epochs=epochs, batch_size=batch, lr=lr, **{**SGD, **options})


def _unet_gan(edition: str, rank: int, **options: Any) -> Train:
    sources = ("inception_v3", "resnet18", "vgg13_bn")
    work: Work = [
        *((source, SLOPE, 1 / 3) for source in sources),
        ("unet_gan", LEARN),
        ("unet_discriminator", 2 * LEARN),
        ("resnet18", SLOPE),
    ]
    return _train(
        "purifier",
        "unet_gan",
        "cifar10",
        rank,
        work,
        needs=tuple(f"{source}/cifar10" for source in sources),
        edition=edition,
        epochs=8,
        post_epochs=2,
        batch_size=96,
        schedule="one_cycle",
        lr=4e-4,
        post_lr=2e-4,
        classifier="resnet18",
        **options,
    )


def _adversarial(victim: str, dataset: str, rank: int, edition: str = "", **options: Any) -> Train:
    steps = options["steps"]
    return _train(
        "finetuner",
        "adversarial",
        dataset,
        rank,
        [(victim, LEARN + SLOPE * steps)],
        needs=(f"{victim}/{dataset}",),
        edition=edition,
        victim=victim,
        fast=True,
        **options,
    )


def _dae(rank: int, victim: str = "resnet20", edition: str = "", marks: str = "") -> Train:
    return _train(
        "purifier",
        "dae",
        "cifar10",
        rank,
        [("dae", LEARN)],
        needs=(f"{victim}/cifar10{marks}",),
        edition=edition,
        victim=victim if marks else None,
        weights={"victim": marks} if marks else None,
        kinds=3,
        epochs=40,
        batch_size=256,
        lr=2e-3,
    )


def _dae_tuned(
    victim: str, rank: int, edition: str, rounds: int, kinds: float, marks: str = "", behind: str | None = None
) -> Train:
    behind = marks if behind is None else behind
    return _train(
        "finetuner",
        "dae",
        "cifar10",
        rank,
        [(victim, LEARN)],
        needs=(f"{victim}/cifar10{marks}", f"dae/cifar10{behind}"),
        edition=edition,
        victim=victim,
        purifier="dae",
        weights={part: named for part, named in (("victim", marks), ("purifier", behind)) if named} or None,
        fast=True,
        kinds=kinds,
        rounds=rounds,
        batch_size=512,
        lr=2e-4,
        low_lr=2e-5,
    )


def _puvae_paper(dataset: str, rank: int) -> Train:
    return _train(
        "purifier",
        "puvae",
        dataset,
        rank,
        [("puvae_grey", LEARN), ("classifier_a", SLOPE)],
        needs=(f"classifier_a/{dataset}",),
        edition="paper",
        epochs=200,
        batch_size=512,
        schedule="one_cycle",
        lr=2e-3,
    )


def _puvae_compact(dataset: str, rank: int, edition: str = "", marks: str = "", **options: Any) -> Train:
    return _train(
        "purifier",
        "puvae",
        dataset,
        rank,
        [("puvae_compact", LEARN), ("classifier_a", SLOPE)],
        needs=(f"classifier_a/{dataset}{marks}",),
        edition=edition,
        victim="classifier_a" if marks else None,
        weights={"victim": marks} if marks else None,
        **{"epochs": 20, "batch_size": 128, "lr": 2e-3, **options},
    )


TRAININGS: tuple[Train, ...] = (
    _cifar_victim("resnet18", 10, epochs=30, batch=512, lr=0.4, label_smoothing=0.1, cutout=8),
    _cifar_victim("vgg13_bn", 11, epochs=30, batch=512, lr=0.2, label_smoothing=0.1, cutout=8),
    _cifar_victim("inception_v3", 12, epochs=15, batch=256, lr=0.2, label_smoothing=0.1, cutout=8),
    _cifar_victim("resnet20", 13, epochs=60, batch=512, lr=0.4),
    _cifar_victim("resnet20", 18, epochs=60, batch=512, lr=0.4, edition="long"),
    _dae(19, edition="long", marks="+long"),
    _train(
        "purifier",
        "apudae",
        "cifar10",
        14,
        [("apudae", LEARN)],
        epochs=40,
        batch_size=256,
        lr=1e-3,
        schedule="one_cycle",
    ),
    _adversarial("resnet18", "cifar10", 15, epochs=10, batch_size=256, steps=7),
    _dae(16),
    _cifar_victim("se_preresnet56", 17, epochs=60, batch=512, lr=0.4),
    _unet_gan("", 20),
    _unet_gan("eps128", 21),
    _train(
        "victim",
        "classifier_b",
        "cifar10",
        22,
        [("classifier_b", LEARN)],
        epochs=40,
        batch_size=256,
        lr=1e-3,
        schedule="one_cycle",
    ),
    # so short a training needs the reconstruction heavier, see the plugin's README
    _train(
        "purifier",
        "puvae",
        "cifar10",
        23,
        [("puvae", LEARN), ("classifier_b", SLOPE)],
        needs=("classifier_b/cifar10",),
        epochs=100,
        batch_size=256,
        lr=1e-3,
        schedule="one_cycle",
        rc_weight=1.0,
    ),
    _dae_tuned("resnet20", 24, "mix", rounds=3, kinds=6),
    _dae_tuned("resnet20", 27, "long", rounds=3, kinds=6, marks="+long"),
    _dae(18, victim="se_preresnet56", edition="se_preresnet56"),
    _dae_tuned("se_preresnet56", 25, "se_preresnet56", rounds=7, kinds=4.9, behind="+se_preresnet56"),
    _unet_gan("noise", 40),
    _unet_gan("image-2", 41),
    _victim("vgg16_bn", "fashion_mnist", 43, epochs=15, batch_size=256, lr=0.1, shift=2, **SGD),
    _train("purifier", "vaegan", "fashion_mnist", 44, [("vaegan", 3 * LEARN)], kinds=10 / 55, epochs=50, batch_size=64),
    _cifar_victim("vgg11_bn", 46, epochs=20, batch=512, lr=0.2, label_smoothing=0.1, cutout=8),
    _cifar_victim("densenet121", 47, epochs=10, batch=256, lr=0.2, label_smoothing=0.1, cutout=8),
    # grey images: a CPU trains most of these too
    _victim("classifier_a", "mnist", 50, epochs=6, batch_size=128, lr=2e-3, schedule="one_cycle"),
    _victim("classifier_a", "fashion_mnist", 51, epochs=14, batch_size=128, lr=2e-3, schedule="one_cycle"),
    _puvae_compact("mnist", 52),
    _puvae_compact("fashion_mnist", 53),
    _victim("classifier_a", "mnist", 61, edition="paper", epochs=64, batch_size=128, lr=1e-3, schedule="constant"),
    _puvae_compact("mnist", 62, "rc-0.01", "+paper", epochs=42, batch_size=64),
    _victim("mlp", "mnist", 56, epochs=3, batch_size=128, lr=2e-3),
    _train("purifier", "apudae", "mnist", 57, [("apudae_grey", LEARN)], epochs=12, batch_size=128),
    _adversarial("mlp", "mnist", 58, "eps-0.1", epochs=5, batch_size=128, steps=10),
    # what no table needs: the papers' sizes, and adversarial training to compare with
    _puvae_paper("mnist", 65),
    _puvae_paper("fashion_mnist", 66),
    _adversarial("resnet20", "cifar10", 67, epochs=15, batch_size=256, steps=7),
    _adversarial("resnet18", "cifar10", 68, "trades", epochs=10, batch_size=256, steps=7),
    _adversarial("resnet20", "cifar10", 69, "trades", epochs=15, batch_size=256, steps=7),
    _adversarial("classifier_a", "mnist", 70, epochs=10, batch_size=128, steps=10),
    _adversarial("classifier_a", "fashion_mnist", 71, epochs=10, batch_size=128, steps=10),
)


def _measure(table: str, dataset: str, minutes: float, rank: int, *after: str) -> Measure:
    """Describe a table: its victim, without which there is nothing, then what its arms have besides."""
    victim, *others = [
        f"{name}/{dataset}{mark}{edition}" for name, mark, edition in (one.partition("+") for one in after)
    ]
    return Measure(
        name=table, table=table, dataset=dataset, seconds=60 * minutes, rank=rank, needs=(victim,), after=tuple(others)
    )


TABLES: tuple[Measure, ...] = (
    _measure("unet_gan/table-2", "cifar10", 2.5, 33, "inception_v3", "vgg13_bn", "unet_gan+eps128"),
    _measure(
        "unet_gan/table-1",
        "cifar10",
        3,
        42,
        "inception_v3",
        "vgg13_bn",
        "unet_gan",
        "unet_gan+noise",
        "unet_gan+image-2",
    ),
    _measure("apudae/table-3", "cifar10", 8, 30, "resnet18", "apudae", "adversarial/resnet18"),
    _measure("puvae_detect/table-5", "cifar10", 4, 35, "classifier_b", "puvae"),
    _measure("dae_finetune/table-2-long", "cifar10", 1.5, 36, "resnet20+long", "dae+long", "dae/resnet20/dae+long"),
    _measure("dae_finetune/table-2", "cifar10", 1.5, 31, "resnet20", "dae", "dae/resnet20/dae+mix"),
    _measure(
        "dae_finetune/table-3",
        "cifar10",
        2,
        32,
        "se_preresnet56",
        "dae+se_preresnet56",
        "dae/se_preresnet56/dae+se_preresnet56",
    ),
    _measure("apudae/table-5-cifar10", "cifar10", 3, 34, "resnet18", "apudae", "adversarial/resnet18"),
    _measure("unet_gan/table-3", "cifar10", 2, 48, "inception_v3", "densenet121", "vgg11_bn", "unet_gan+eps128"),
    _measure("vaegan/table-1", "fashion_mnist", 2, 45, "vgg16_bn", "vaegan"),
    _measure("vaegan/eps-1", "fashion_mnist", 1, 46, "vgg16_bn", "vaegan"),
    _measure("puvae_detect/table-4", "fashion_mnist", 4, 54, "classifier_a", "puvae"),
    _measure("puvae_detect/table-3", "mnist", 4, 55, "classifier_a", "puvae"),
    _measure("puvae_detect/saturation-mnist", "mnist", 2, 56, "classifier_a", "puvae"),
    _measure("puvae_detect/rejection-3", "mnist", 2, 57, "classifier_a", "puvae"),
    _measure("puvae_detect/training-mnist", "mnist", 2, 63, "classifier_a+paper", "puvae+rc-0.01"),
    _measure("apudae/table-2", "mnist", 3, 59, "mlp", "apudae", "adversarial/mlp+eps-0.1"),
    _measure("apudae/table-5-mnist", "mnist", 3, 60, "mlp", "apudae", "adversarial/mlp+eps-0.1"),
)

PLAN: tuple[Item, ...] = tuple(sorted((*TRAININGS, *TABLES), key=lambda item: item.rank))
