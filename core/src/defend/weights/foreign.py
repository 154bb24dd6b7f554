"""Weights that no `defend train` wrote: the user's own state, read, unwrapped and given a card.

torch's files are read with `weights_only=True` and in no other way, the others as safetensors: nothing is unpickled.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from defend.errors import WeightsError
from defend.plugins import Found
from defend.stages import Task
from defend.util.tensors import content_hash
from defend.weights.card import FROM, READ, Card, architecture_of, describe_task, has_card, read_card
from defend.weights.fitting import MOST_NAMED, fit

if TYPE_CHECKING:
    from torch import Tensor, nn

WRAPPERS = (
    *("state_dict", "model_state_dict", "model_state", "model", "network", "net", "module", "weights", "params"),
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema"),
)
"""Where trainers put a network's state beside their own; of several the first is taken."""
DEEPEST = 3
SAVE_INSTEAD = "save the network's state alone: torch.save(model.state_dict(), 'weights.pth')"
LICENCE = "NOASSERTION"  # SPDX's word for one that nobody stated


@attrs.frozen
class State:
    """A network's state as a file has it.

    Attributes:
        path: the file.
        tensors: by name, on the CPU.
        unwrapped: what was done to get at them, in words.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    unwrapped: tuple[str, ...] = ()

    @property
    def content_sha256(self) -> str:
        return content_hash(self.tensors)


def hash_of(path: Path) -> str:
    """Return the content hash of a weights file: from its card, or of the tensors of one that has none.

    Raises:
        WeightsError: it cannot be read.
    """
    return read_card(path).content_sha256 if has_card(path) else read_state(path).content_sha256


def adopt(path: Path, module: nn.Module, found: Found, config: Any, task: Task, **made_for: Any) -> Card:
    """Load the user's own weights into a module, and return a card for them.

    Args:
        path: a file without a card.
        module: built for the task; what the file does not hold (normalisation around the network) stays.
        found, config: the module's stage and its options.
        task: what it was built for.
        made_for: what else the card's config says, of a fine-tuner.

    Raises:
        WeightsError: not a file of tensors alone, or of other names or shapes than the module's.
    """
    state = read_state(path)
    said = fit(state.tensors, module, path, found, config, task)
    return Card(
        stage=found.entry.stage,
        name=found.name,
        config={**architecture_of(found, config), **made_for},
        dataset={**describe_task(task), "sha256": ""},
        recipe={FROM: path.name, READ: ", ".join((*state.unwrapped, *said))},
        licence=LICENCE,
        content_sha256=state.content_sha256,
    )


def read_state(path: Path) -> State:
    """Read a network's state from a file of torch or safetensors, out of what trainers wrap it in.

    Raises:
        WeightsError: no such file, objects in it that are no tensors, or tensors that no evaluation can take.
    """
    held = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    inside, unwrapped = _unwrap(path, held)
    for key, value in inside.items():
        _check_tensor(path, key, value)
    return State(path, {str(key): value for key, value in inside.items()}, unwrapped)


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise WeightsError(f"weights {str(path)!r} are damaged or cut short: {error}") from None
    except OSError as error:
        raise WeightsError(f"weights {str(path)!r} cannot be read: {error.strerror or error}") from None


def _read_torch(path: Path) -> Any:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsError(f"weights {str(path)!r} cannot be read: {error.strerror or error}") from None
    except MemoryError:
        raise
    except Exception as error:  # a file of anything else fails in many ways
        # torch's own words advise to trust the file
        if held := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise WeightsError(
                f"weights {str(path)!r} hold more than tensors ({held[1]}), and nothing is unpickled: {SAVE_INSTEAD}"
            ) from None
        if "TorchScript" in str(error):
            raise WeightsError(
                f"weights {str(path)!r} are a TorchScript archive, which holds code: {SAVE_INSTEAD}"
            ) from None
        raise WeightsError(
            f"weights {str(path)!r} are neither a file of torch.save nor of safetensors that can be read without "
            f"unpickling, or cut short: {SAVE_INSTEAD}"
        ) from None


def _unwrap(path: Path, held: Any) -> tuple[Mapping[Any, Any], tuple[str, ...]]:
    """Return the state inside what a trainer keeps, and what was taken, in words."""
    import torch

    said: tuple[str, ...] = ()
    for _ in range(DEEPEST):
        if not isinstance(held, Mapping) or not held:
            break
        if all(isinstance(value, torch.Tensor) for value in held.values()):
            return held, said
        states = [str(key) for key, value in held.items() if isinstance(value, Mapping) and _has_tensors(value)]
        known = [key for key in WRAPPERS if key in states] or (states if len(states) == 1 else [])
        if not known:
            break
        others = f" (and not {', '.join(map(repr, known[1:]))})" if known[1:] else ""
        said = (*said, f"its {known[0]!r}{others}")
        held = held[known[0]]
    if isinstance(held, Mapping) and any(isinstance(value, torch.Tensor) for value in held.values()):
        return held, said  # the first of its values that is no tensor is named
    got = type(held).__name__
    if isinstance(held, Mapping):
        names = [repr(key) for key in held][:MOST_NAMED]
        got = f"a dictionary with {', '.join(names)}{' ...' if len(held) > MOST_NAMED else ''}" if names else "nothing"
    raise WeightsError(f"weights {str(path)!r} hold {got}, expected a network's tensors by name: {SAVE_INSTEAD}")


def _has_tensors(value: Mapping[Any, Any]) -> bool:
    """Whether tensors lie in it, at once or in the wrapper of another trainer."""
    import torch

    inner = [each for each in value.values() if isinstance(each, Mapping)]
    return any(isinstance(each, torch.Tensor) for part in (value, *inner) for each in part.values())


def _check_tensor(path: Path, key: Any, value: Any) -> None:
    import torch

    got = ""
    if not isinstance(key, str):
        got = f"a tensor named {key!r}, of type {type(key).__name__}"
    elif not isinstance(value, torch.Tensor):
        got = f"{key!r} of type {type(value).__name__}"
    elif value.is_quantized or value.layout is not torch.strided or value.device.type != "cpu":
        what = "quantised" if value.is_quantized else value.device if value.device.type != "cpu" else value.layout
        got = f"{key!r}, which is {what}"
    elif value.is_floating_point() and bool(value.isnan().any()):
        raise WeightsError(f"weights {str(path)!r} hold NaN in {key!r}: their training diverged")
    if got:
        raise WeightsError(f"weights {str(path)!r} hold {got}, expected plain tensors by name: {SAVE_INSTEAD}")
