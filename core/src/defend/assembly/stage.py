"""One part to one built stage: find its weights, build, load."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn

from defend.assembly.part import Part, find_part
from defend.boundary.answers import unwrap
from defend.boundary.calls import Calling
from defend.boundary.trial import try_out
from defend.custom.spec import CustomSpec
from defend.datasets.classes import ITS_NAMES, count_names
from defend.errors import ContractError, WeightsError
from defend.options import describe
from defend.plugins import Found, Registry
from defend.stages import Stage, Task
from defend.values.editions import is_file
from defend.weights.card import READ, Card, has_card, read_card
from defend.weights.files import load
from defend.weights.find import mismatch, near, stages_of
from defend.weights.foreign import adopt
from defend.weights.origin import Origin


@attrs.frozen
class Built:
    """A stage ready to use: its module, options, and the weights it was loaded from, if any, with their origin.

    `custom`: whether a user gave it, and no package.
    """

    module: nn.Module
    config: Any
    path: Path | None
    card: Card | None
    origin: Origin | None = None
    custom: bool = False

    @property
    def content_hash(self) -> str | None:
        """Of its weights, as their card has it; None where it was loaded from none."""
        return self.card.content_sha256 if self.card else None

    def list_options(self) -> dict[str, Any]:
        """Return its options as they are read back from a file."""
        return dict(json.loads(json.dumps(attrs.asdict(self.config), default=str)))


def build_stage(
    stage: Stage,
    name: str,
    task: Task,
    options: Mapping[str, Any] | None = None,
    weights: str | None = None,
    plugins: Registry | None = None,
) -> Built:
    """Build one stage by its name, for a task, and load its weights; see `build_part`.

    Raises:
        UnknownNameError: nothing of that name is installed.
    """
    return build_part(find_part(stage, name, options, weights, plugins=plugins), task)


def build_part(part: Part, task: Task, bare: nn.Module | None = None) -> Built:
    """Build a part for a task and load its weights.

    Args:
        part: which.
        task: what for.
        bare: of a fine-tuner: the victim before tuning; left as it is.

    Raises:
        ConfigError: a wrong option.
        WeightsError: no weights for this data set (the message gives the command that trains them), or weights that do
            not fit: for other images, another architecture, another victim or purifier. A file that was named may be
            the user's own, without a card: it is read as `defend.weights.foreign` says.
    """
    found, options = part.found, dict(part.options)
    config = found.config(options)
    path = part.find_weights(task.filing)
    if path is None and part.needs_weights:
        raise WeightsError(_say_missing(part, task))
    card = None
    foreign = path is not None and is_file(part.weights) and not has_card(path)
    if path is not None and not foreign:
        card = read_card(path)
        _check_card(card, part, task, path)
        # weights fit one architecture alone, so what nobody asked for is as their card has it
        config = found.config(_with_architecture(part, card, path, task))
    module = build_module(found, config, task, *(() if bare is None else (bare,)))
    if part.victim is not None:
        # errors of a tuned victim name the victim, not the tuner
        module.stage_name = part.victim  # type: ignore[assignment]
    if path is not None and foreign:
        made_for = {} if part.victim is None else {"victim": part.victim, "purifier": part.behind}
        card = adopt(path, module, found, config, task, **made_for)
        if card.recipe[READ]:
            warnings.warn(f"weights {str(path)!r} were read so: {card.recipe[READ]}", stacklevel=2)
    elif path is not None:
        load(path, module, stages_of(found), found.name)
        if card is not None and card.cut_short:
            warnings.warn(
                f"weights {str(path)!r} are of a training that failed before its end, so that what is measured there "
                f"may be missing, as a threshold: {card.cut_short}",
                stacklevel=2,
            )
    origin = None if path is None else part.find_origin(path, task.filing)
    module.eval()
    return Built(module, config, path, card, origin, isinstance(found.spec, CustomSpec))


def build_module(found: Found, config: Any, task: Task, *bare: nn.Module) -> nn.Module:
    """Call a spec's `build`, and leave the stage's name on the module for error messages."""
    module = found.call("build", config, task, *bare)
    if not isinstance(module, nn.Module):
        raise ContractError(f"{found.entry.stage} {found.name} built {type(module).__name__}, expected an nn.Module")
    with Calling(f"{found.entry.stage} {found.name}", "its attributes"):
        module.stage_name = found.name  # type: ignore[assignment]
        for name in ("random", "threshold"):  # what the host reads of it later, where nobody would know whose it was
            getattr(module, name, None)
    return module


def _say_missing(part: Part, task: Task) -> str:
    what = f"{part.stage} {part.name}"
    if part.victim is not None:
        what = f"{part.victim} fine-tuned by {part.name} behind {part.behind or 'no purifier'}"
    command = part.say_command(task.dataset, task.filing, task.typed)
    how = f"train it with `{command}`"
    if task.typed is not None:
        how = f"run `{command}`; `defend run` does so itself with --train-missing"
    other = near(part.found, task, None if part.victim is None else part.filed_as)
    return f"no weights {'for' if part.victim is None else 'of'} {what} on {task.filing}: {how}{other}"


def _check_card(card: Card, part: Part, task: Task, path: Path) -> None:
    """Refuse weights that were made for other images or classes, or tuned for another victim or purifier."""
    if differs := mismatch(card, task):
        makes = f"; `{part.say_command(task.dataset, task.filing, task.typed)}` makes some that do"
        raise WeightsError(f"weights {str(path)!r} do not fit: {differs}{makes if part.needs_weights else ''}")
    if part.victim is None:
        return
    theirs = (card.config.get("victim"), card.config.get("purifier"))
    if theirs != (part.victim, part.behind):
        hint = "; to put one before it nonetheless: bare" if theirs == (part.victim, None) else ""
        raise WeightsError(
            f"weights {str(path)!r} are of {theirs[0]} tuned behind {theirs[1] or 'no purifier'}, expected "
            f"{part.victim} behind {part.behind or 'no purifier'}{hint}"
        )


def check_outputs(module: nn.Module, task: Task, what: str) -> None:
    """Refuse a victim that answers for more or fewer classes than the data set has.

    One that fails on grey images, or answers with something else than logits, is left to the checks of a run.

    Raises:
        ContractError: another number of outputs than of classes.
    """
    said = unwrap(try_out("victim", module, (task.channels, task.height, task.width)).answer)
    if isinstance(said, torch.Tensor) and said.ndim == 2 and said.shape[1] != task.classes:
        count = said.shape[1]
        more = ""
        if count > task.classes:
            more = f"; where the images at hand are not of all of them, say so with {_say_classes(count, task)}"
        raise ContractError(
            f"{what} answers for {count} classes, and {task.dataset} has {task.classes}: its outputs must be those of "
            f"the data set's classes, in their order{more}"
        )


def _say_classes(count: int, task: Task) -> str:
    """Say how a user tells of classes that her images are not of: a number does not say where names belong."""
    if task.typed is None:
        named = task.class_names not in ((), count_names(task.classes))
        return f"the names of all {count}, in the model's order: classes=[names]" if named else f"classes={count}"
    if set(task.class_names) <= set(count_names(count)):
        return f"--classes {count}, or a file with their names"
    return f"a file of {ITS_NAMES}: --classes FILE"


def _with_architecture(part: Part, card: Card, path: Path, task: Task) -> dict[str, Any]:
    """Fill in the architecture that the card gives; another one that was asked for is refused."""
    found, options = part.found, part.options
    asked, merged = found.config(options), dict(options)
    fixed = [option for option in describe(found.spec.config) if option.architecture]
    for option in fixed:
        # a card from before there was such an option is of its default; JSON knows no tuples
        kept = card.config.get(option.name, option.default)
        kept = tuple(kept) if isinstance(kept, list) else kept
        wanted = getattr(asked, option.name)
        if option.name in options and wanted != kept:
            command = part.say_command(task.dataset, task.filing, task.typed)
            raise WeightsError(
                f"weights {str(path)!r} have {option.name}={kept}, and {wanted} was asked for: run `{command}`"
            )
        if option.name != found.spec.member_option or found.member is None:
            merged[option.name] = kept
    return merged
