"""Images that are there already: what another row made, rounded, or what somebody else made and sent as a file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from defend.attacks.balls import measure
from defend.attacks.options import GivenOptions
from defend.attacks.rounding import LEVELS
from defend.attacks.target import Target
from defend.boundary.arrays import list_members, open_archive, read_member
from defend.errors import DataError

ADVERSARIAL, KEYS, CLEAN, NORM, EPS, LABELS = "adversarial", "keys", "clean", "norm", "eps", "labels"
"""The arrays of a file: attacked images; the places of the images in the test split, or the clean images themselves (at
least one of the two); the norm of the budget, if it is not L-inf; budget and true classes, if they are there."""
EXPECTED = "np.savez(FILE, adversarial=..., keys=...), uint8 or floats in [0,1], keys the places in the test split"
LESS = 0.99  # of the run's budget: a file that says less was made for another, whatever its eps is rounded to
TOLERANCE = 1e-6  # beyond a budget: float32 makes as much of 8/255
SAME = 0.51 / LEVELS  # how far a clean image in the file may be from the data set's: it was rounded to 8 bits


class Replay:
    """Answers with images that are there already, by key.

    Args:
        norm: of their budget.
        keys: int64 [N].
        images: [N,C,H,W], uint8 or floats in [0,1].
    """

    slack = TOLERANCE

    def __init__(self, norm: str, keys: Tensor, images: Tensor) -> None:
        self.norm, self._images = norm, images
        self._places = {key: place for place, key in enumerate(keys.tolist())}

    def __call__(self, target: Target, images: Tensor, labels: Tensor, *, eps: Tensor, keys: Tensor) -> Tensor:
        """See `defend.stages.Attack`."""
        found = to_floats(self._images[[self._places[key] for key in keys.tolist()]])
        return found.to(images.device, images.dtype)


class GivenFile(Replay):
    """Attacked images from a file; nothing of it is believed before `take` has looked at it.

    Attributes:
        digest: of what was taken.
        content: a digest of the file's images and their places, however many of them are taken.
    """

    digest = ""

    def __init__(self, config: GivenOptions) -> None:
        self._path = Path(str(config.path))
        with open_archive(self._path, EXPECTED) as archive:
            self._arrays = {
                name: read_member(archive, name, self._path, EXPECTED)
                for name in (ADVERSARIAL, KEYS, CLEAN, NORM, EPS, LABELS)
                if name in archive.files
            }
            self._said = list_members(archive)
        self.content = _hash([array for name in (ADVERSARIAL, KEYS) if (array := self._arrays.get(name)) is not None])
        said = str(self._arrays[NORM]) if NORM in self._arrays else None
        norm = config.norm or said or "linf"
        if said is not None and norm != said:
            raise self._fault(f"it says that its norm is {said}, and norm={norm} was asked for: leave that out")
        if norm not in ("linf", "l2"):
            raise self._fault(f"its norm is {norm!r}: expected linf or l2")
        super().__init__(norm, torch.empty(0, dtype=torch.int64), torch.empty(0))

    def _fault(self, why: str) -> DataError:
        return DataError(f"{str(self._path)!r}: {why}")

    def take(self, clean: Tensor, labels: Tensor, keys: Tensor, eps: float) -> None:
        """Hold the file against the images that a run judges, and keep those that it needs.

        Args:
            clean: floats [N,C,H,W], the data set's.
            labels: int64 [N], their true classes.
            keys: int64 [N], their places in the test split.
            eps: the budget, in the file's norm.

        Raises:
            DataError: arrays that are missing, or of another number, shape, type or range; images of another order, or
                that are not those of the data set, or of other classes there; images that are missing, or that leave
                the budget; or the file says that they were made for a smaller one.
        """
        self._check_eps(eps, clean)
        found = self._as_images(ADVERSARIAL, clean)
        places = self._places_of(found, clean, keys)
        missing = (places < 0).nonzero()[:, 0]
        if len(missing):
            enough = int(missing[0])
            fewer = f"; --limit {enough} judges the first of them, which it has" if enough else ""
            raise self._fault(
                f"it lacks {len(missing)} of the {len(keys)} images that this run judges, image "
                f"{int(keys[missing[0]])} first, and holds {len(found)}{self._say_keys()}{fewer}"
            )
        chosen = found[places]
        self._check_clean(clean, keys, places)
        self._check_labels(labels, keys, places)
        distance = measure(to_floats(chosen) - clean, self.norm)
        far = (distance > eps + TOLERANCE).nonzero()[:, 0]
        if len(far):
            most = int(distance.argmax())
            raise self._fault(
                f"{len(far)} of {len(chosen)} images leave the budget: image {int(keys[most])} is {distance[most]:.4g} "
                f"away in {self.norm}, and eps is {eps:.4g}; give the budget that they were made with, or their order"
            )
        self.digest = hashlib.sha256(chosen.contiguous().numpy().tobytes()).hexdigest()
        self._images, self._arrays = chosen, {}
        self._places = {key: place for place, key in enumerate(keys.tolist())}

    def _array(self, name: str) -> Any:
        if name not in self._arrays:
            raise self._fault(f"it holds {self._said}: expected {EXPECTED}")
        return self._arrays[name]

    def _as_images(self, name: str, like: Tensor) -> Tensor:
        """Return an array of images as uint8 or float32 [N,C,H,W]."""
        array = self._array(name)
        channels, height, width = like.shape[1:]
        if array.dtype.kind not in "uf" or (array.dtype.kind == "u" and array.dtype.itemsize > 1):
            raise self._fault(f"{name} is of type {array.dtype}: expected uint8, or floats in [0,1]")
        images = torch.from_numpy(array.copy())
        if array.shape[1:] == (height, width, channels):
            images = images.permute(0, 3, 1, 2)
        elif channels == 1 and array.shape[1:] == (height, width):
            images = images[:, None]
        elif array.shape[1:] != (channels, height, width):
            raise self._fault(
                f"{name} has shape {list(array.shape)}: expected [N,{channels},{height},{width}] or "
                f"[N,{height},{width},{channels}], as the data set's images"
            )
        if images.dtype == torch.uint8:
            return images
        images = images.float()
        bad = ~((images >= 0) & (images <= 1)).flatten(1).all(1)  # a NaN is neither
        if bad.any():
            numbers = images[images.isfinite()]
            strange = images.numel() - numbers.numel()
            within = f"from {numbers.min():.4g} to {numbers.max():.4g}" if len(numbers) else "none is finite"
            raise self._fault(
                f"{int(bad.sum())} of {len(images)} images of {name} hold numbers outside [0,1] or that are not finite "
                f"({within}{f', {strange} not finite' if strange and len(numbers) else ''}): expected floats in [0,1], "
                "or uint8"
            )
        return images

    def _places_of(self, found: Tensor, clean: Tensor, keys: Tensor) -> Tensor:
        """Return where in the file the images at `keys` [N] stand, int64 [N]; -1 for one that is not there."""
        if KEYS in self._arrays:
            own = self._array(KEYS)
            if own.dtype.kind not in "iu" or own.shape != (len(found),):
                raise self._fault(
                    f"keys is {own.dtype} {list(own.shape)}: expected a whole number an image, [{len(found)}]"
                )
            named = own.tolist()
        elif CLEAN in self._arrays:
            original = self._as_images(CLEAN, clean)
            if len(original) != len(found):
                raise self._fault(f"it holds {len(found)} images of {ADVERSARIAL}, and {len(original)} of {CLEAN}")
            named, keys_of = _names(original), _names(clean)
            by_name: dict[Any, list[int]] = {}
            for place, name in enumerate(named):
                by_name.setdefault(name, []).append(place)
            # of two images that are the same each is taken once
            return torch.tensor([(by_name.get(name) or [-1]).pop(0) for name in keys_of], dtype=torch.int64)
        else:
            raise self._fault(
                f"it holds {self._said}, and neither keys nor clean, so that nothing tells whose images these are: "
                f"expected {EXPECTED}"
            )
        if len(set(named)) < len(named):
            twice = next(key for key in named if named.count(key) > 1)
            raise self._fault(f"keys names image {twice} twice: expected each once")
        where = {key: place for place, key in enumerate(named)}
        return torch.tensor([where.get(key, -1) for key in keys.tolist()], dtype=torch.int64)

    def _check_eps(self, eps: float, clean: Tensor) -> None:
        """Refuse images that were made for less than the run's budget: of it they would be a weak attack.

        And an eps that no images are apart, as that of grey levels would pass for a large one.
        """
        if EPS not in self._arrays:
            return
        own = self._array(EPS)
        if own.dtype.kind not in "iuf" or own.shape != () or not own > 0:
            raise self._fault(f"{EPS} is {own.dtype} {list(own.shape)}: expected one number above 0, or none")
        widest = 1.0 if self.norm == "linf" else clean.shape[1:].numel() ** 0.5
        if float(own) > widest:
            raise self._fault(
                f"it says that its images were made for eps {float(own):.4g}, and no two images are further apart than "
                f"{widest:.4g} in {self.norm}: grey levels? divide them by 255"
            )
        if float(own) * LESS > eps:
            raise self._fault(
                f"it says that its images were made for eps {float(own):.4g}, and this run's is {eps:.4g} in "
                f"{self.norm}: give the budget that they were made with, or with --set their norm"
            )
        if float(own) < LESS * eps:
            raise self._fault(
                f"it says that its images were made for eps {float(own):.4g}, and this run's is {eps:.4g} in "
                f"{self.norm}, at which they would read as robustness: give the budget that they were made with"
            )

    def _say_keys(self) -> str:
        """Say which images the file names."""
        own = self._arrays.get(KEYS)
        return "" if own is None or not len(own) else f", whose keys are {own.min()} to {own.max()}"

    def _check_labels(self, labels: Tensor, keys: Tensor, places: Tensor) -> None:
        """Refuse true classes that are not the data set's: the images are others, or the classes in another order."""
        if LABELS not in self._arrays:
            return
        own, count = self._array(LABELS), len(self._array(ADVERSARIAL))
        if own.dtype.kind not in "iu" or own.shape != (count,):
            raise self._fault(
                f"{LABELS} is {own.dtype} {list(own.shape)}: expected the true class of every image, [{count}], or none"
            )
        said = torch.from_numpy(own.astype("int64"))[places]
        other = (said != labels).nonzero()[:, 0]
        if len(other):
            first = int(other[0])
            raise self._fault(
                f"{len(other)} of {len(keys)} {LABELS} are not the data set's: image {int(keys[first])} is of class "
                f"{int(labels[first])}, and {LABELS} says {int(said[first])}; expected the true classes, in the order "
                "of the images, or none"
            )

    def _check_clean(self, clean: Tensor, keys: Tensor, places: Tensor) -> None:
        """Refuse clean images that are not those of the data set at their keys."""
        if CLEAN not in self._arrays or KEYS not in self._arrays:
            return
        original = self._as_images(CLEAN, clean)
        if len(original) != len(self._array(ADVERSARIAL)):
            raise self._fault(f"clean has {len(original)} images, and keys {len(self._array(KEYS))}")
        other = ((to_floats(original[places]) - clean).abs().flatten(1).amax(1) > SAME).nonzero()[:, 0]
        if len(other):
            raise self._fault(
                f"{len(other)} of {len(keys)} clean images are not the data set's, image {int(keys[other[0]])} first: "
                "expected those of its test split, in the order of keys"
            )


def to_floats(images: Tensor) -> Tensor:
    """Return images in [0,1], float32."""
    return images.float() / LEVELS if images.dtype == torch.uint8 else images.float()


def _names(images: Tensor) -> list[bytes]:
    """Name images [N,C,H,W] by their 8 bit levels."""
    levels = (LEVELS * to_floats(images)).round().to(torch.uint8)
    return [level.contiguous().numpy().tobytes() for level in levels]


def build(config: GivenOptions) -> GivenFile:
    """Open a file of attacked images.

    Raises:
        DataError: it is missing, damaged or no .npz.
    """
    return GivenFile(config)


def _hash(arrays: Sequence[Any]) -> str:
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    return found.hexdigest()
