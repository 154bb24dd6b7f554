"""Trained weights: safetensors files with a card in their metadata, and where they are looked for.

Matrices and kernels are stored in half precision, vectors in single. Only safetensors is ever
read; nothing is unpickled. Reading a card imports no torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.resources
import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import platformdirs

from defend.editions import EDITION, edition_of, is_bare, is_file
from defend.errors import WeightsError, did_you_mean
from defend.files import atomic
from defend.options import describe
from defend.plugins import Found
from defend.stages import Task

if TYPE_CHECKING:
    from torch import Tensor, nn

    from defend.datasets.base import ImageDataset

CARD_FORMAT = 1
MOST_HEADER_BYTES = 100_000_000
SMALL_TENSOR = 64  # elements; halving these saves nothing


@attrs.frozen(kw_only=True)
class Card:
    """What is known of a weights file.

    Attributes:
        stage, name: which stage these weights are for.
        config: its architecture options.
        dataset: {"name", "sha256" of the training split, "shape", "classes" (names), "mean", "std", "flips"}.
        recipe: the training options, seed and versions.
        figures: what was measured, for example {"test_accuracy": 0.996}.
        licence: SPDX identifier.
        content_sha256: the hash of all tensors, checked at loading.
    """

    stage: str
    name: str
    config: Mapping[str, Any]
    dataset: Mapping[str, Any]
    recipe: Mapping[str, Any] = attrs.field(factory=dict)
    figures: Mapping[str, float] = attrs.field(factory=dict)
    licence: str = "MIT"
    content_sha256: str = ""
    format: int = CARD_FORMAT

    def task(self) -> Task:
        """Return the task these weights were trained for."""
        known = self.dataset
        channels, height, width = known["shape"]
        return Task(
            known["name"],
            channels,
            height,
            width,
            len(known["classes"]),
            tuple(known["mean"]),
            tuple(known["std"]),
            known["flips"],
        )


def new_card(
    found: Found,
    config: Any,
    dataset: ImageDataset,
    *,
    recipe: Mapping[str, Any],
    figures: Mapping[str, float],
    made_for: Mapping[str, Any] | None = None,
) -> Card:
    """Describe weights that were just made: the stage's architecture options, the data set, and what is given."""
    architecture = {option.name for option in describe(found.spec.config) if option.architecture}
    kept = {key: value for key, value in attrs.asdict(config).items() if key in architecture}
    task = dataset.task()
    return Card(
        stage=found.entry.stage,
        name=found.name,
        config={**kept, **(made_for or {})},
        dataset={
            "name": dataset.name,
            "sha256": dataset.sha256("train"),
            "shape": list(dataset.shape),
            "classes": list(dataset.classes),
            "mean": list(task.mean),
            "std": list(task.std),
            "flips": dataset.flips,
        },
        recipe=recipe,
        figures=figures,
    )


def cache_dir() -> Path:
    """Return the user's cache: $DEFEND_CACHE_DIR, or the platform's own."""
    named = os.environ.get("DEFEND_CACHE_DIR")
    return Path(named) if named else platformdirs.user_cache_path("defend")


def file_name(stage: str, name: str, dataset: str, edition: str = "") -> str:
    """Return the name of a weights file: purifier-apudae-digits.safetensors, or ...-digits+EDITION.safetensors."""
    return f"{stage}-{name}-{dataset}{EDITION if edition else ''}{edition}.safetensors"


def cached_path(stage: str, name: str, dataset: str, edition: str = "") -> Path:
    """Return where `defend train` writes weights unless told otherwise."""
    return cache_dir() / "weights" / file_name(stage, name, dataset, edition)


def tuned_name(finetuner: str, victim: str, purifier: str | None) -> str:
    """Return what a fine-tuned victim is filed under: fine-tuner, victim and purifier, as in dae-resnet20-dae."""
    return f"{finetuner}-{victim}-{(purifier or 'none').replace(',', '+')}"


def locate(found: Found, dataset: str, explicit: str | None = None, filed_as: str | None = None) -> Path | None:
    """Find weights: an explicit path, then the user's cache, then the plugins' packages.

    "+EDITION" in the place of a path asks for that edition of them (`StageSpec.editions`). `filed_as` stands in the
    file's name instead of the stage's own (see `tuned_name`; "bare" is for the caller, who knows what stood before the
    victim). A stage with `weights_of` may also find those of that stage.

    Raises:
        WeightsError: an explicit path, or an edition, that does not exist; or "bare" of what is no fine-tuner's.
    """
    if filed_as is None and is_bare(explicit):
        raise WeightsError(
            f"{found.entry.stage} {found.name} has no weights {explicit!r}, which are of a fine-tuned victim: expected "
            "a file, or an edition (+NAME)"
        )
    edition = edition_of(explicit)
    if edition and edition not in found.spec.editions:
        known = did_you_mean(edition, list(found.spec.editions)) if found.spec.editions else "it has none"
        raise WeightsError(f"{found.entry.stage} {found.name} has no edition {edition!r}: {known}")
    if explicit is not None and is_file(explicit):
        if not Path(explicit).is_file():
            raise WeightsError(f"weights file {explicit!r} does not exist")
        return Path(explicit)
    candidates = [cached_path(stage, filed_as or found.name, dataset, edition) for stage in stages_of(found)]
    shipped = {path.name: path for path in _shipped(found.packages)}
    candidates += [shipped[path.name] for path in candidates if path.name in shipped]
    return next((path for path in candidates if path.is_file()), None)


def stages_of(found: Found) -> tuple[str, ...]:
    """Return the stages whose weights serve this one: its own, and the one it shares a network with."""
    shared = (found.spec.weights_of,) if found.spec.weights_of else ()
    return (found.entry.stage, *shared)


@attrs.frozen
class Available:
    """A weights file that a name leads to: the user's own, or one that came with a package (`shipped`)."""

    path: Path
    card: Card
    shipped: bool

    @property
    def edition(self) -> str:
        """Which edition of its stage's weights these are, by the file's name; "" for the usual ones."""
        return self.path.stem.partition(f"-{self.card.dataset['name']}{EDITION}")[2]

    @property
    def filed_for(self) -> str:
        """The data set, and the edition where there is one: "mnist", "mnist+paper"."""
        return f"{self.card.dataset['name']}{EDITION if self.edition else ''}{self.edition}"


def available(stage: str, name: str | None, packages: Iterable[str]) -> Iterator[Available]:
    """Yield every readable weights file of a stage (of any name if None), the user's before those in `packages`."""
    prefix = f"{stage}-" if name is None else f"{stage}-{name}-"
    cached = sorted((cache_dir() / "weights").glob("*.safetensors"))
    for shipped, paths in ((False, cached), (True, _shipped(packages))):
        for path in paths:
            if path.name.startswith(prefix):
                with contextlib.suppress(WeightsError):  # loading a damaged one will say why
                    yield Available(path, read_card(path), shipped)


def _shipped(packages: Iterable[str]) -> list[Path]:
    found: list[Path] = []
    for package in packages:
        try:
            folder = Path(str(importlib.resources.files(package)))
        except ModuleNotFoundError as error:
            raise WeightsError(f"package {package!r} with the shipped weights is missing: {error}") from None
        found += sorted(folder.glob("*.safetensors"))
    return found


def read_card(path: Path) -> Card:
    """Read the card of a weights file from its header.

    Raises:
        WeightsError: not safetensors, cut short, or without a card of a known format.
    """
    try:
        with path.open("rb") as file:
            start = file.read(8)
            (length,) = struct.unpack("<Q", start) if len(start) == 8 else (0,)
            if not 2 <= length <= MOST_HEADER_BYTES:
                raise WeightsError(f"{_not_safetensors(path, start)}")
            header = json.loads(file.read(length))
    except OSError as error:
        raise WeightsError(f"weights {str(path)!r} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise WeightsError(_not_safetensors(path, start)) from None
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    text = metadata.get("defend.card") if isinstance(metadata, dict) else None
    if text is None:
        raise WeightsError(f"weights {str(path)!r} have no card: they were not written by `defend train`")
    try:
        values = json.loads(text)
        if (kept := values.get("format")) != CARD_FORMAT:
            raise WeightsError(
                f"weights {str(path)!r} have a card of format {kept}, and this version reads {CARD_FORMAT}"
            )
        card = Card(**values)
        card.task()
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        cause = f"{type(error).__name__}: {error}"
        raise WeightsError(
            f"weights {str(path)!r} have a damaged card ({cause}): train anew or fetch it again"
        ) from None
    return card


def _not_safetensors(path: Path, start: bytes) -> str:
    pickled = start[:2] == b"PK" or start[:1] == b"\x80"
    guess = " (it looks like a pickle, which is never loaded)" if pickled else ""
    return f"weights {str(path)!r} are not a safetensors file, or cut short{guess}: train anew or fetch it again"


def save(path: Path, module: nn.Module, card: Card) -> Card:
    """Write a module's weights and its card, atomically; return the card with its content hash."""
    from safetensors.torch import save as to_bytes

    tensors = stored(module)
    card = attrs.evolve(card, content_sha256=content_hash(tensors))
    data = to_bytes(tensors, metadata={"defend.card": json.dumps(attrs.asdict(card), sort_keys=True)})
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        temporary.write_bytes(data)
    return card


def load(path: Path, module: nn.Module, stages: str | tuple[str, ...], name: str) -> Card:
    """Load weights into a module that was built from their card's architecture; strict.

    `stages` are those that the weights may be of, the module's own first.

    Raises:
        WeightsError: another stage's weights, other shapes, a damaged file, or a wrong content hash.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    card = read_card(path)
    allowed = (stages,) if isinstance(stages, str) else stages
    if card.stage not in allowed or card.name != name:
        raise WeightsError(f"weights {str(path)!r} are of {card.stage} {card.name}, expected {allowed[0]} {name}")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise WeightsError(f"weights {str(path)!r} are damaged or cut short: {error}") from None
    if content_hash(tensors) != card.content_sha256:
        raise WeightsError(
            f"weights {str(path)!r} do not match the content hash in their card: fetch or train them anew"
        )
    expected = module.state_dict()
    wrong = sorted(set(tensors) ^ set(expected))
    wrong += [key for key in tensors if key in expected and tensors[key].shape != expected[key].shape]
    if wrong:
        raise WeightsError(
            f"weights {str(path)!r} are of another architecture than {allowed[0]} {name}: {len(wrong)} tensors differ, "
            f"the first is {wrong[0]!r}"
        )
    given = {key: tensor.to(expected[key].dtype) for key, tensor in tensors.items()}
    module.load_state_dict(given)
    for key, value in module.state_dict().items():
        if not _alike(value, given[key]):  # one tensor under two names, of which the file holds two
            raise WeightsError(
                f"weights {str(path)!r} are of another architecture than {allowed[0]} {name}: {key!r} shares its "
                "memory with another parameter here, and not in the file"
            )
    return card


def _alike(one: Tensor, other: Tensor) -> bool:
    return _bytes(one) == _bytes(other)


def _bytes(tensor: Tensor) -> bytes:
    """Return a tensor's bytes in the order of its elements; of any type, also those that numpy lacks."""
    import torch

    data: bytes = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return data


def stored(module: nn.Module) -> dict[str, Tensor]:
    """Return the state as it is stored: kernels and matrices in half precision, all else as it is.

    Every tensor has memory of its own: one that a module has under two names is there twice, and is one again where it
    is loaded into such a module.

    Raises:
        WeightsError: part of the state is no tensor.
    """
    import torch

    state = detached(module.state_dict())

    def halved(tensor: Tensor) -> Tensor:
        wanted = tensor.dtype == torch.float32 and tensor.ndim > 1 and tensor.numel() > SMALL_TENSOR
        fits = wanted and bool(tensor.abs().max() <= torch.finfo(torch.float16).max)
        return tensor.half() if fits else tensor

    return {key: halved(tensor) for key, tensor in state.items()}


def detached(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return tensors on the CPU, contiguous, each in memory of its own, as safetensors asks for.

    Raises:
        WeightsError: a value is no tensor, as a module's extra state may be; it is named.
    """
    import torch

    for key, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise WeightsError(
                f"{key!r} of the module's state is of type {type(value).__name__}, expected a tensor: "
                "only tensors are kept in a weights file; register it as a buffer"
            )
    return {key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in state.items()}


def round_to_stored(module: nn.Module) -> None:
    """Round a module's parameters to what a file keeps of them, so that what is measured is what ships."""
    kept = stored(module)
    current = module.state_dict()
    module.load_state_dict({key: kept[key].to(current[key]) for key in current})


def content_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, types, shapes and bytes of all tensors, in the order of their names."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key]
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()
