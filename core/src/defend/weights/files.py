"""Weights to safetensors files and back: only safetensors is ever read; nothing is unpickled.

Matrices and kernels are stored in half precision, vectors in single.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from defend.errors import ConfigError, WeightsError
from defend.util.files import cache_dir, make_folder, sweep, write_bytes
from defend.util.tensors import bytes_of, content_hash
from defend.weights.card import Card, read_card

if TYPE_CHECKING:
    from torch import Tensor, nn


SUFFIX = ".safetensors"
SMALL_TENSOR = 64  # elements; halving these saves nothing


def check_out(path: Path) -> None:
    """Refuse a file for weights that nothing would read as the safetensors that it is to hold, before they are made.

    Raises:
        ConfigError: its name has another suffix.
    """
    if path.suffix != SUFFIX:
        found = f"ends in {path.suffix!r}" if path.suffix else "has no suffix"
        expected = str(path.with_suffix(SUFFIX))
        raise ConfigError(f"--out {str(path)!r} {found}: weights are written as safetensors; expected {expected!r}")


def save(path: Path, module: nn.Module, card: Card) -> Card:
    """Write a module's weights and its card, atomically; return the card with its content hash.

    Raises:
        WriteError: the file cannot be written.
    """
    from safetensors.torch import save as to_bytes

    tensors = to_stored(module)
    card = attrs.evolve(card, content_sha256=content_hash(tensors))
    data = to_bytes(tensors, metadata={"defend.card": json.dumps(attrs.asdict(card), sort_keys=True)})
    make_folder(path.parent)
    sweep(path.parent, of="" if path.parent == cache_dir() / "weights" else path.name)
    write_bytes(path, data, "weights")
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
    return bytes_of(one) == bytes_of(other)


def to_stored(module: nn.Module) -> dict[str, Tensor]:
    """Return the state as it is stored: kernels and matrices in half precision, all else as it is.

    Every tensor has memory of its own: one that a module has under two names is there twice, and is one again where it
    is loaded into such a module.

    Raises:
        WeightsError: part of the state is no tensor.
    """
    import torch

    state = detach(module.state_dict())

    def halve(tensor: Tensor) -> Tensor:
        wanted = tensor.dtype == torch.float32 and tensor.ndim > 1 and tensor.numel() > SMALL_TENSOR
        fits = wanted and bool(tensor.abs().max() <= torch.finfo(torch.float16).max)
        return tensor.half() if fits else tensor

    return {key: halve(tensor) for key, tensor in state.items()}


def detach(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return tensors on the CPU, contiguous, each in memory of its own, as safetensors asks for.

    Raises:
        WeightsError: a value is no tensor, as a module's extra state may be, or one that no file holds: sparse,
            quantised, without memory, or of a type that safetensors lacks; it is named.
    """
    import torch

    tensors = {}
    for key, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise WeightsError(
                f"{key!r} of the module's state is of type {type(value).__name__}, expected a tensor: "
                "only tensors are kept in a weights file; register it as a buffer"
            )
        if kind := _say_unfit(value):
            raise WeightsError(
                f"{key!r} of the module's state is {kind}, which no weights file holds: expected a dense tensor of "
                "floats, whole numbers or bools"
            )
        own = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        tensors[key] = own.resolve_conj().resolve_neg()
    return tensors


def _say_unfit(value: Tensor) -> str:
    """Say of what kind a tensor is that cannot be written, "" of others."""
    import torch
    from safetensors.torch import save as to_bytes

    if torch.nn.parameter.is_lazy(value):
        return "a lazy parameter whose shape is not known yet"
    if value.is_quantized:
        return f"quantised ({value.dtype})"
    if value.layout is not torch.strided:
        return f"sparse ({value.layout})"
    if value.is_meta:
        return "on the meta device"
    try:
        to_bytes({"": torch.empty(0, dtype=value.dtype)})
    except KeyError:
        return f"of type {value.dtype}"
    return ""


def round_to_stored(module: nn.Module) -> None:
    """Round a module's parameters to what a file keeps of them, so that what is measured is what ships."""
    kept = to_stored(module)
    current = module.state_dict()
    module.load_state_dict({key: kept[key].to(current[key]) for key in current})
