"""A state of the user's own into a module that was built: names and shapes compared, prefixes told and stripped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from defend.errors import WeightsError
from defend.plugins import Found
from defend.stages import Task
from defend.util.tensors import bytes_of

if TYPE_CHECKING:
    from torch import Tensor, nn

INSERTED = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What torch's wrappers (compile, FSDP, checkpointing) put anywhere into a name."""
COUNTER = "num_batches_tracked"  # of batch norm: states from before torch 0.4 lack it, and evaluation never reads it
AVERAGED = "n_averaged"  # of `torch.optim.swa_utils.AveragedModel`
MOST_NAMED = 3


def fit(
    tensors: Mapping[str, Tensor], module: nn.Module, path: Path, found: Found, config: Any, task: Task
) -> tuple[str, ...]:
    """Load a state into a module, or into the network that it wraps; strict.

    Args:
        tensors: by name, from the file `path`.
        module: of a stage (`found`, `config`), built for the task; as it was where an error is raised.

    Returns:
        What was done to the names, in words.

    Raises:
        WeightsError: names or shapes differ, whatever is left out of the names: how, and the usual cause; or values
            that are no weights.
    """
    tried = []
    for named, said in _renamed(tensors):
        for depth, target in enumerate(_targets(module)):
            expected = target.state_dict()
            differs = _compare(named, expected)
            if not differs:
                _fill(path, target, expected, named)
                return said
            tried.append((differs.common, -len(said), depth, differs))
    # the names as they are, and those of the network itself, where no try is nearer than the others
    nearest = max(tried, key=lambda each: each[:3])[3]
    what = f"{found.entry.stage} {found.name}"
    causes = "; or ".join(_guess_causes(nearest, found, config, task))
    raise WeightsError(f"weights {str(path)!r} do not fit {what}: {nearest}. Usual cause: {causes}")


@attrs.frozen
class _Differs:
    """In what a state differs from a module's."""

    missing: Sequence[str]
    unexpected: Sequence[str]
    misshapen: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    common: int

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.misshapen)

    def __str__(self) -> str:
        parts = [
            f"{len(names)} {what} ({_listed(map(repr, names))})"
            for what, names in (("missing", self.missing), ("unexpected", self.unexpected))
            if names
        ]
        if self.misshapen:
            shapes = (f"{key!r} is {list(got)}, not {list(asked)}" for key, (got, asked) in self.misshapen.items())
            parts.append(f"{len(self.misshapen)} of another shape ({_listed(shapes)})")
        return ", ".join(parts)


def _listed(names: Iterable[str]) -> str:
    several = list(names)
    return ", ".join(several[:MOST_NAMED]) + (", ..." if len(several) > MOST_NAMED else "")


def _guess_causes(differs: _Differs, found: Found, config: Any, task: Task) -> list[str]:
    """Return what usually makes the weights of others differ so, the likeliest first."""
    shapes = differs.misshapen.values()
    heads = {got[0] for got, asked in shapes if got[1:] == asked[1:] and asked[:1] == (task.classes,)}
    kernels = [got for got, asked in shapes if len(got) == len(asked) == 4 and got[2:] != asked[2:]]
    causes = []
    if len(heads) == 1 and found.entry.stage in ("victim", "finetuner"):
        causes.append(f"they are for {heads.pop()} classes, and {task.dataset} has {task.classes}")
    if getattr(config, "stem", "standard") != "standard" and (kernels or not causes):
        causes.append("a stem for small images stands here, and not there: --set victim.stem=standard")
    if not causes or differs.missing or differs.unexpected:
        causes.insert(0, f"another architecture than {found.name}")
    return causes


def _targets(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the module, then the child that holds all that it learnt, and so on: what users train has no wrapper."""
    yield module
    learnt = {id(each) for each in module.parameters()}
    for child in module.children():
        if learnt and learnt == {id(each) for each in child.parameters()}:
            yield from _targets(child)
            return


def _renamed(tensors: Mapping[str, Tensor]) -> Iterator[tuple[Mapping[str, Tensor], tuple[str, ...]]]:
    """Yield a state as it is, then without what wrappers put into its names, and without prefixes that all have."""
    named, said = dict(tensors), tuple[str, ...]()
    yield named, said
    for word in INSERTED:
        shorter = {key.replace(word, ""): value for key, value in named.items()}
        if shorter.keys() != named.keys() and len(shorter) == len(named):
            named, said = shorter, (*said, f"{word!r} left out of its names")
            yield named, said
    while True:
        if AVERAGED in named and all(key.startswith("module.") for key in named if key != AVERAGED):
            named.pop(AVERAGED)
        prefixes = {key.partition(".")[0] for key in named}
        prefix = f"{next(iter(prefixes), '')}."
        if len(prefixes) != 1 or not all(key.startswith(prefix) and key != prefix for key in named):
            return
        named = {key.removeprefix(prefix): value for key, value in named.items()}
        said = (*said, f"without the prefix {prefix!r}")
        yield named, said


def _compare(named: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> _Differs:
    missing = [key for key in expected if key not in named and key.rpartition(".")[2] != COUNTER]
    unexpected = [key for key in named if key not in expected]
    shapes = {key: (tuple(named[key].shape), tuple(expected[key].shape)) for key in named if key in expected}
    misshapen = {key: pair for key, pair in shapes.items() if pair[0] != pair[1]}
    return _Differs(missing, unexpected, misshapen, len(shapes))


def _fill(path: Path, target: nn.Module, expected: Mapping[str, Tensor], named: Mapping[str, Tensor]) -> None:
    """Load tensors of the right names and shapes.

    Raises:
        WeightsError: one of a type that is no weight, or not finite; or two that the module holds as one.
    """
    learnt = {key for key, _ in target.named_parameters()}
    given = {}
    for key, value in named.items():
        wanted = expected[key].dtype
        if value.is_complex() or value.is_floating_point() != wanted.is_floating_point:
            raise WeightsError(f"weights {str(path)!r} hold {key!r} as {value.dtype}, expected {wanted}")
        given[key] = value.to(wanted)
        if key in learnt and not bool(given[key].isfinite().all()):
            raise WeightsError(
                f"weights {str(path)!r} are not finite in {key!r}: the training that wrote them diverged"
            )
    target.load_state_dict(given, strict=False)  # names and shapes were compared
    for key, value in target.state_dict().items():
        if key in given and bytes_of(value) != bytes_of(given[key]):
            raise WeightsError(
                f"weights {str(path)!r} do not fit: {key!r} shares its memory with another parameter here, and not in "
                "the file"
            )
