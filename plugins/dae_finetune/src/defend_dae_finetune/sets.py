"""The fixed sets: one data set's images in several kinds, made once, before any training [P].

Kinds are clean, FGSM and PGD, and the purifier's output for each of the three.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from defend.attacks.host import craft, warn_of_unmoved
from defend.attacks.iterated import Pgd
from defend.attacks.objectives import unscaled_odds
from defend.attacks.options import FgsmOptions, PgdOptions
from defend.attacks.single_step import Fgsm
from defend.attacks.target import Target
from defend.datasets.base import ImageDataset, MemoryDataset, Split
from defend.options import make
from defend.randomness import keyed, permutation
from defend.stages import Attack
from defend.train import copy_to_tune
from defend_dae_finetune.config import CraftRecipe

CRAFTED = ("clean", "fgsm", "pgd")
PURIFIED = tuple(f"purified_{kind}" for kind in CRAFTED)
BATCH = 128
SEED = 0  # of PGD's starts and of a random purifier's draws, which are keyed by image
LEVELS = 255


class Sets(MemoryDataset):
    """The images of a data set in several kinds: image i of N in kind number k has the key k N + i.

    Held as uint8, as image files hold them: CIFAR-10's three splits in six kinds take 1.1 GB, a quarter of what
    single precision takes.

    Args:
        dataset: where the images come from.
        images: split to kind to uint8 [N,C,H,W], every split with the same kinds in the same order.
        keys: split to which of its images these are, int64 [N].
    """

    def __init__(
        self, dataset: ImageDataset, images: Mapping[Split, Mapping[str, Tensor]], keys: Mapping[Split, Tensor]
    ) -> None:
        self.kinds = tuple(images["train"])
        super().__init__(
            dataset.name,
            dataset.classes,
            {split: torch.cat(list(kinds.values())) for split, kinds in images.items()},
            {split: dataset.labels(split)[keys[split]].repeat(len(kinds)) for split, kinds in images.items()},
            dataset.flips,
        )

    def keys_of(self, kinds: Sequence[str], size: int) -> Tensor:
        """Return the keys of some kinds in a split of `size` images, all kinds counted: int64."""
        count = size // len(self.kinds)
        starts = torch.tensor([self.kinds.index(kind) * count for kind in kinds])
        return (starts[:, None] + torch.arange(count)).flatten()

    def count(self, split: Split) -> int:
        """Return how many images of the data set a split's kinds are of."""
        return len(self.labels(split)) // len(self.kinds)

    def clean(self, split: Split, keys: Tensor, device: torch.device) -> Tensor:
        """Return the clean images that belong to the images at `keys` [B]: [B,C,H,W] in [0,1]."""
        pixels = self.pixels(split, device)
        return pixels[keys % (len(pixels) // len(self.kinds))].float().div_(LEVELS)

    def shuffled(self, kinds: Sequence[str], epoch: int, size: int, seed: int) -> Tensor:
        """Return the keys of some kinds, each once, in an order that depends on epoch and seed alone."""
        keys = self.keys_of(kinds, size)
        return keys[permutation(len(keys), seed=seed, stream=f"epoch/{epoch}")]

    def accuracy(self, classify: Callable[[Tensor], Tensor], split: Split, kind: str, device: torch.device) -> float:
        """Return the share of a kind's images that `classify` (images to logits) gets right."""
        keys = self.keys_of((kind,), len(self.labels(split)))
        right = torch.zeros((), device=device)
        with torch.no_grad():
            for batch in self.batches(split, keys, BATCH, device):
                right += (classify(batch.images).argmax(1) == batch.labels).sum()
        return float(right) / len(keys)


def make_sets(
    dataset: ImageDataset,
    splits: Sequence[Split],
    recipe: CraftRecipe,
    victim: nn.Module,
    device: torch.device,
    purifier: nn.Module | None = None,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> Sets:
    """Attack the images of some splits (train among them), and purify what comes out.

    Args:
        dataset, splits: the clean images.
        recipe: the attacks' budget and steps, and how many images.
        victim: in eval mode on `device`; images in [0,1] to logits. The gradient is taken through its
            normalisation; the author's code took it without (contradiction 1).
        purifier: in eval mode on `device`; None leaves the purified kinds out.
        told: of how many clean images are attacked, and of how many.
    """
    keys = {split: _keys(dataset, split, recipe) for split in splits}
    total, done = sum(map(len, keys.values())), 0

    def tell(count: int) -> None:
        nonlocal done
        done += count
        told(done, total)

    tell(0)
    made = {split: _make(dataset, split, keys[split], recipe, victim, device, purifier, tell) for split in splits}
    return Sets(dataset, made, keys)


def _make(
    dataset: ImageDataset,
    split: Split,
    chosen: Tensor,
    recipe: CraftRecipe,
    victim: nn.Module,
    device: torch.device,
    purifier: nn.Module | None,
    tell: Callable[[int], None],
) -> dict[str, Tensor]:
    steps = {"steps": recipe.pgd_steps, "step_size": recipe.pgd_step_size, "early_stop": False}
    attacks: dict[str, Attack] = {
        "fgsm": Fgsm(FgsmOptions(), unscaled_odds),
        "pgd": Pgd(make(PgdOptions, steps, "pgd")),
    }
    reduced = recipe.craft_precision == "bf16"
    if reduced:  # without that layout bfloat16 gains little; the copy is only asked
        victim = copy_to_tune(victim).requires_grad_(False).to(memory_format=torch.channels_last)
    target = Target(victim, seed=SEED, precision=torch.bfloat16 if reduced else None)
    layout = torch.channels_last if reduced else torch.contiguous_format
    parts: dict[str, list[Tensor]] = {}
    for batch in dataset.batches(split, chosen, BATCH, device):
        kinds = {"clean": to_bytes(batch.images)}
        for name, attack in attacks.items():
            images = batch.images.contiguous(memory_format=layout)
            attacked = craft(attack, target, images, batch.labels, eps=recipe.eps, keys=batch.keys).contiguous()
            kinds[name] = within(to_bytes(attacked), kinds["clean"], recipe.eps)
        if purifier is not None:
            for name in CRAFTED:
                with torch.no_grad(), keyed(batch.keys, seed=SEED, stream=f"purified/{name}"):
                    kinds[f"purified_{name}"] = to_bytes(purifier(kinds[name].float() / LEVELS))
        for name, images in kinds.items():
            parts.setdefault(name, []).append(images.cpu())
        tell(len(batch.labels))
    made = {name: torch.cat(images) for name, images in parts.items()}
    for name in attacks:
        warn_of_unmoved(made[name], made["clean"], f"{name} on the victim ({split} images)", "take another victim")
    return made


def _keys(dataset: ImageDataset, split: Split, recipe: CraftRecipe) -> Tensor:
    """Return which images of a split the sets are made of, in ascending order.

    Of fewer than all every class has its share, as image folders hold one class after the other.
    """
    if recipe.train_subset is None:
        return torch.arange(len(dataset.labels(split)))
    count = recipe.train_subset if split == "train" else recipe.train_subset // 10
    return dataset.keys(split, count, seed=SEED).sort().values


def to_bytes(images: Tensor) -> Tensor:
    """Round images in [0,1] to uint8."""
    return images.mul(LEVELS).round().clamp(0, LEVELS).to(torch.uint8)


def within(attacked: Tensor, clean: Tensor, eps: float) -> Tensor:
    """Clip uint8 images to whole levels within eps of the clean ones: rounding may have left the budget."""
    most = int(eps * LEVELS + 1e-3)
    change = (attacked.short() - clean.short()).clamp(-most, most)
    return (clean.short() + change).to(torch.uint8)
