"""Tensors as bytes, and the hash of what they hold."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def bytes_of(tensor: Tensor) -> bytes:
    """Return a tensor's bytes in the order of its elements; of any type, also those that numpy lacks."""
    import torch

    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    data: bytes = plain.reshape(-1).view(torch.uint8).numpy().tobytes()
    return data


def to_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring tensors of one device to the CPU in one copy, for which the host waits once, not once a tensor."""
    import torch

    if all(tensor.device.type == "cpu" for tensor in tensors.values()):
        return {name: tensor.detach() for name, tensor in tensors.items()}
    flat = [tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in tensors.values()]
    parts = torch.cat(flat).cpu().split([len(part) for part in flat])
    # copies, which lie where their type may, and do not hold the whole
    return {
        name: part.clone().view(tensor.dtype).reshape(tensor.shape)
        for (name, tensor), part in zip(tensors.items(), parts, strict=True)
    }


def content_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, types, shapes and bytes of all tensors, in the order of their names."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key]
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()
