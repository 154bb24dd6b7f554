"""Tensors as bytes, and the hash of what they hold."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


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


def hash_state(module: nn.Module) -> str:
    """Return a hash of all parameters and buffers, those that no file holds too; "" of a module that has none."""
    held = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    if not held:
        return ""
    return hashlib.sha256("".join(_hash(name, tensor) for name, tensor in sorted(held.items())).encode()).hexdigest()


def _hash(name: str, tensor: Tensor) -> str:
    try:
        return content_hash({name: tensor})
    except (RuntimeError, NotImplementedError, TypeError):  # sparse, quantised, of a library's own kind
        import torch

        file = io.BytesIO()
        torch.save((name, tensor.detach()), file)
        return hashlib.sha256(file.getvalue()).hexdigest()


def device_of(module: nn.Module) -> torch.device:
    """Return where a module's first parameter or buffer lies; the CPU of one that holds nothing."""
    import torch

    return next((tensor.device for tensor in (*module.parameters(), *module.buffers())), torch.device("cpu"))
