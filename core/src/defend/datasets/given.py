"""A data set of what a user hands over: what is given is test, and what it lacks is held out of that, or missing."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from defend.datasets.base import SPLIT_SEED, SPLITS, Batch, ImageDataset, Origin, Split
from defend.datasets.classes import count_names
from defend.datasets.digests import SIZE
from defend.datasets.given_sources import CPU, Source, SplitOf, find_source
from defend.datasets.splitting import USUAL_SHARES, Part, share_out
from defend.datasets.twins import Duplicates, find_twins
from defend.errors import ConfigError, DataError, did_you_mean

STATISTICS_SAMPLE = 512
STATISTICS_BATCH = 64
NAME = r"[A-Za-z0-9][\w.+-]*"  # it becomes part of a file's name
CURES: Mapping[Split, str] = {
    "train": "pass train=: (images, labels), a Dataset, a DataLoader, a folder or a name",
    "val": "pass val=: images that are held out for thresholds and selection, as for train",
    "test": "pass some to judge",
}


def gather(
    data: Any,
    *,
    val: Any = None,
    train: Any = None,
    classes: int | Sequence[str] | None = None,
    name: str = "given",
    seed: int = 0,
) -> ImageDataset:
    """Return what a user has as a data set; names and paths are for `defend.assembly.load.as_dataset`.

    Args:
        data: what is judged: (images, labels), a map-style torch `Dataset` or list of (image, label), a `DataLoader` of
            one, or an `ImageDataset`. Images are uint8, or floats in [0,1].
        val: images held out for thresholds and selection, likewise; if None those of an `ImageDataset`, else a seeded
            part of `data` (`splitting.hold_out_of_given`), which is then not judged.
        train: what is trained on, likewise; without it nothing can be.
        classes: class names by label, or how many there are. Labels that came with names are found by these where all
            of them are known; a number leaves labels as they are, and is refused where fewer names came. None takes
            the names that came with `data`, else "0", "1", ...
        name: what it is called.
        seed: of what is held out.

    Raises:
        DataError, ConfigError: what was given is something else; the message says what to pass.
    """
    if not isinstance(name, str) or not re.fullmatch(NAME, name):
        raise ConfigError(f"name {name!r} cannot be part of a file's name: expected letters, digits, '_', '-'")
    if isinstance(data, ImageDataset) and val is None and train is None and classes is None:
        return data
    others: dict[Split, Any] = {"val": val, "train": train}
    sources: dict[Split, Source] = {"test": find_source(data, "test", f"data set {name}")}
    if train is not None and val is train and not isinstance(train, ImageDataset):
        raise ConfigError("val= is what is trained on: pass other images, or leave it out")
    for split, given in others.items():
        if given is data and not isinstance(data, ImageDataset):
            raise ConfigError(f"{split}= is what is judged: pass other images, or leave it out")
        if given is None and isinstance(data, ImageDataset) and data.has(split):
            given = data
        if given is not None:
            sources[split] = find_source(given, split, f"data set {name}, {split}")
    judged: dict[Split, Tensor] = {split: source.labels for split, source in sources.items() if split != "train"}
    parts = share_out(judged, {"val": 1}, seed)
    if "train" in sources:
        parts["train"] = Part("train", torch.arange(len(sources["train"].labels)))
    return GivenDataset(name, sources, parts, classes)


def gather_training(
    data: Any, *, val: Any = None, classes: int | Sequence[str] | None = None, name: str = "given", seed: int = 0
) -> ImageDataset:
    """Return what a user has as a data set to train on: a fifth is held out to measure by, and a tenth for val.

    Args:
        data: what is trained on, see `gather`; an `ImageDataset` keeps its splits, and what it lacks is held out.
        val: images held out for thresholds and selection, likewise, in the place of a part of `data`.
        classes, name, seed: see `gather`; a data set's images are held out by the same seed in every run.

    Raises:
        DataError, ConfigError: as `gather`.
    """
    if isinstance(data, ImageDataset) and val is None and classes is None:
        return data
    whole = isinstance(data, ImageDataset)
    if whole:
        data.labels("train")  # or there is no such split
    own: list[Split] = [split for split in SPLITS if data.has(split)] if whole else ["train"]
    sources: dict[Split, Source] = {split: find_source(data, split, f"data set {name}") for split in own}
    if val is data and not whole:
        raise ConfigError("val= is what is trained on: pass other images, or leave it out")
    if val is not None:
        sources["val"] = find_source(val, "val", f"data set {name}, val")
    labels = {split: source.labels for split, source in sources.items()}
    return GivenDataset(name, sources, share_out(labels, USUAL_SHARES, SPLIT_SEED if whole else seed), classes)


def gather_held_out(data: Any, name: str = "given") -> ImageDataset:
    """Return what a user has as a data set whose val split is all of it; an `ImageDataset` keeps its own.

    Of one with test alone that is val: it is all that was given.

    Raises:
        DataError, ConfigError: as `gather`.
    """
    if isinstance(data, ImageDataset):
        if data.fitted_on() != "test":
            return data
        name = data.name
    source = find_source(data, "val", f"data set {name}")
    return GivenDataset(name, {"val": source}, {"val": Part("val", torch.arange(len(source.labels)))})


class GivenDataset(ImageDataset):
    """Images from several sources, streamed.

    Args:
        name: what it is called.
        sources: the images that there are, by the split that they were given for.
        parts: which of them each split has.
        classes: as for `gather`.
        missing: what to do about a split that there is not.
        stands_in: whether the images of test are those that were val's, as there were none for test.

    Raises:
        DataError: images of different shapes, labels that no class name stands for, or names that do not match.
    """

    def __init__(
        self,
        name: str,
        sources: Mapping[Split, Source],
        parts: Mapping[Split, Part],
        classes: int | Sequence[str] | None = None,
        missing: Mapping[Split, str] = CURES,
        stands_in: bool = False,
    ) -> None:
        self._stands_in = stands_in
        self.name, self._missing, self._sources, self._parts = name, missing, dict(sources), dict(parts)
        self.typed, learnt_of = None, sources.get("train")
        self.flips = isinstance(learnt_of, SplitOf) and learnt_of.dataset.flips
        first, source = next(iter(sources.items()))
        for split, other in sources.items():
            if other.shape != source.shape:
                raise DataError(
                    f"data set {name}: images of {split} have shape {list(other.shape)}, those of {first} "
                    f"{list(source.shape)}: scale and crop them to one size"
                )
        self.shape = source.shape
        self.classes, counted = _name_classes(name, sources, classes)
        numbers = {
            split: _renumber(f"data set {name}, {split}", each, self.classes, counted)
            for split, each in sources.items()
        }
        self._labels: dict[Split, Tensor] = {
            split: numbers[part.source][part.places] for split, part in self._parts.items()
        }

    @property
    def prepared(self) -> str:
        """The shape, and how the data sets that it is made of prepare theirs."""
        own = [source.dataset.prepared for source in self._sources.values() if isinstance(source, SplitOf)]
        return "; ".join(dict.fromkeys((super().prepared, *own)))

    def has(self, split: Split) -> bool:
        return split in self._parts

    def _part(self, split: Split) -> Part:
        if split not in self._parts:
            # where nothing but test was given, a part of it would be val
            few = split == "val" and self._missing is CURES and "test" in self._parts
            why = f", and those to judge ({len(self._labels['test'])}) are too few to hold any out" if few else ""
            raise DataError(f"data set {self.name} has no {split} images{why}: {self._missing[split]}")
        return self._parts[split]

    def labels(self, split: Split) -> Tensor:
        """Return all labels of a split, int64 [N].

        Raises:
            DataError: it has no such split; what to pass.
        """
        self._part(split)
        return self._labels[split]

    def batches(self, split: Split, keys: Tensor, batch_size: int, device: torch.device) -> Iterator[Batch]:
        part, labels, keys = self._part(split), self._labels[split], keys.cpu()
        start = 0
        for pixels in self._sources[part.source].read(part.places[keys], batch_size, device.type == "cuda"):
            whose = keys[start : start + len(pixels)]
            start += len(pixels)
            images = pixels.to(device, non_blocking=True)
            images = images.float().div_(255) if images.dtype == torch.uint8 else images
            yield Batch(images, labels[whose].to(device), whose.to(device))

    @functools.cache  # noqa: B019 - a data set lives as long as the process
    def sha256(self, split: Split) -> str:
        part, labels = self._part(split), self._labels[split]
        source = self._sources[part.source]
        known = source.sha256(part.places)
        if torch.equal(labels, source.labels[part.places]):
            return known
        return hashlib.sha256(known.encode() + labels.numpy().tobytes()).hexdigest()

    @property
    def filed_as(self) -> str:
        """The name, and what tells these images from others of that name."""
        made_for = repr((self.name, self.classes, self.shape, self.sha256(self.fitted_on())))
        return f"{self.name}-{hashlib.sha256(made_for.encode()).hexdigest()[:10]}"

    @functools.cache  # noqa: B019
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        split = self.fitted_on()
        count, total, squares = 0, torch.zeros(self.shape[0]).double(), torch.zeros(self.shape[0]).double()
        for batch in self.batches(split, self.keys(split, STATISTICS_SAMPLE), STATISTICS_BATCH, CPU):
            values = batch.images.double().transpose(0, 1).flatten(1)
            count, total, squares = count + values.shape[1], total + values.sum(1), squares + (values**2).sum(1)
        mean = total / count
        std = (squares / count - mean**2).clamp_min(0).sqrt()
        return tuple(round(float(m), 4) for m in mean), tuple(round(float(s), 4) for s in std)

    def origin(self, split: Split) -> Origin | None:
        if split not in self._parts:
            return None
        part = self._parts[split]
        source = self._sources[part.source]
        if isinstance(source, SplitOf) and len(part.places) == len(source.labels):
            return source.dataset.origin(source.split)
        cut = part.source == "train" and part.seed is not None
        replaces = self._stands_in and split == "test"
        return Origin("", len(part.places), len(source.labels), part.seed, stands_in=replaces, given=not cut)

    @functools.cache  # noqa: B019
    def duplicates(self) -> Duplicates | None:
        for find in (self.files, self.contents):
            contents = {split: find(split) for split in SPLITS if split in self._parts}
            known = {split: each for split, each in contents.items() if each is not None}
            if len(known) == len(contents):
                return find_twins(known, "{} image {}".format)
        return None

    def contents(self, split: Split) -> bytes | None:
        part = self._parts[split]
        return _take(self._sources[part.source].contents(), part)

    def files(self, split: Split) -> bytes | None:
        part = self._parts[split]
        return _take(self._sources[part.source].files(), part)


def _take(digests: bytes | None, part: Part) -> bytes | None:
    return digests and b"".join(digests[SIZE * at : SIZE * at + SIZE] for at in part.places.tolist())


def _name_classes(
    name: str, sources: Mapping[Split, Source], wanted: int | Sequence[str] | None
) -> tuple[tuple[str, ...], bool]:
    """Return the class names, those that are wanted or came with the images, else numbers; and whether numbers."""
    counted = isinstance(wanted, int)
    highest = max(int(source.labels.max()) for source in sources.values())
    if isinstance(wanted, int):
        names = tuple(map(str, range(wanted)))
    elif wanted is not None:
        listed = isinstance(wanted, Sequence) and not isinstance(wanted, str)
        if not listed or not all(isinstance(each, str) for each in wanted) or len(set(wanted)) < len(wanted):
            raise ConfigError(
                f"classes={str(wanted)[:80]!r}: expected the class names by label, each once, or their number"
            )
        names = tuple(wanted)
    else:
        said = {source.classes for source in sources.values() if len(source.classes) > highest}
        names = said.pop() if len(said) == 1 else ()
        if len(said):
            raise DataError(f"data set {name}: its splits have other class names: pass classes=")
        counted = not names
        names = names or tuple(map(str, range(highest + 1)))
    if len(names) < 2:
        raise DataError(
            f"data set {name} has one class: a classifier needs two or more; pass classes= with the names of all, or "
            "how many they are"
        )
    return names, counted


def _renumber(who: str, source: Source, classes: tuple[str, ...], counted: bool) -> Tensor:
    """Return a source's labels by the class names: by name where it has these names too, else as they are.

    Classes that are only `counted` have no names: a folder "10" may be of any label.

    Raises:
        DataError: a label without a name; only some of the names; or fewer classes, of which nothing says which.
    """
    said, labels = source.classes, source.labels
    highest = int(labels.max())
    if len(said) > highest:
        # where classes are missing, those after them have other labels than the model's
        fewer = len(said) < len(classes) and said != count_names(len(said))
        if counted and fewer:
            raise DataError(
                f"{who} names {len(said)} classes ({', '.join(said)[:60]}), and there are {len(classes)}: a number "
                "does not say which of them these are; pass the model's class names, in its order (classes=[names])"
            )
        known = [] if counted else [name for name in said if name in classes]
        if known or fewer:
            if len(known) < len(said):
                strange = next(name for name in said if name not in classes)
                like = did_you_mean(strange, classes)
                raise DataError(f"{who} has a class {strange!r} that classes= does not: {like}")
            return torch.tensor([classes.index(name) for name in said])[labels]
    if highest >= len(classes):
        raise DataError(
            f"{who}: a label is {highest}, and there are {len(classes)} classes: expected 0 to {len(classes) - 1}; "
            "pass classes= with the names of all, or how many they are"
        )
    return labels
