"""Names to built stages: find the spec, find its weights, build, load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn

from defend.boundary import unwrapped
from defend.datasets.base import ImageDataset
from defend.defence import Defence, PurifierSequence
from defend.editions import edition_of, is_file, tuned_behind
from defend.errors import ConfigError, ContractError, WeightsError
from defend.options import describe
from defend.plugins import Found, Registry, registry
from defend.stages import Stage, Task
from defend.values import split_names
from defend.weights import Card, available, cache_dir, load, locate, mismatch, near, read_card, stages_of, tuned_name

MOST_SOURCES = 2


@attrs.frozen
class Built:
    """A stage ready to use: its module, options, and the weights it was loaded from, if any."""

    module: nn.Module
    config: Any
    path: Path | None
    card: Card | None


def open_dataset(
    name: str, data_dir: str | None = None, options: Mapping[str, Any] | None = None, found_in: Registry | None = None
) -> ImageDataset:
    """Open a data set by name.

    Args:
        name: for example "digits".
        data_dir: where its files lie, for those that have files.
        options: its options.

    Raises:
        UnknownNameError, ConfigError, DataError.
    """
    found = (found_in or registry()).find("dataset", name)
    values = dict(options or {})
    if data_dir is not None and any(option.name == "data_dir" for option in describe(found.spec.config)):
        values.setdefault("data_dir", data_dir)
    dataset = found.spec.resolve(found.spec.build)(found.config(values))
    if not isinstance(dataset, ImageDataset):
        raise ContractError(
            f"data set {name} built {type(dataset).__name__}, expected a defend.datasets.base.ImageDataset"
        )
    return dataset


def train_command(
    stage: str, name: str, dataset: str, options: Mapping[str, Any] | None = None, edition: str = ""
) -> str:
    """Return the command that trains what is missing."""
    chosen = "".join(f" --set {key}={value}" for key, value in (options or {}).items())
    return f"defend train {stage} {name} --dataset {dataset}{f' --edition {edition}' if edition else ''}{chosen}"


def build_stage(
    stage: Stage,
    name: str,
    task: Task,
    options: Mapping[str, Any] | None = None,
    weights: str | None = None,
    found_in: Registry | None = None,
) -> Built:
    """Build one stage for a task and load its weights.

    Raises:
        UnknownNameError, ConfigError: a wrong name or option.
        WeightsError: no weights for this data set (the message gives the command that trains them), or
            weights that do not fit.
    """
    found = (found_in or registry()).find(stage, name)
    options = dict(options or {})
    config = found.config(options)
    path = None if getattr(config, "pretrained", False) else locate(found, task.filing, weights)
    if path is None and needs_weights(found, config):
        command = train_command(
            found.spec.weights_of or stage, name, task.dataset, _architecture_asked(found, options), edition_of(weights)
        )
        other = near(found, task)
        raise WeightsError(
            f"no weights for {stage} {name} on {task.filing}: run `{command}`, or add --train-missing{other}"
        )
    card = None
    if path is not None:
        card = read_card(path)
        _check_task(card, task, path)
        config = found.config(_with_architecture(found, options, card, path, task))
    module = build_module(found, config, task)
    if path is not None:
        load(path, module, stages_of(found), found.name)
    return Built(module.eval(), config, path, card)


def build_purifiers(
    names: Sequence[str],
    task: Task,
    options: Mapping[str, Mapping[str, Any]],
    weights: Mapping[str, str],
    found_in: Registry | None = None,
) -> dict[str, Built]:
    """Build the purifiers of a sequence, by name; `options` and `weights` are those of a whole defence.

    Raises:
        ConfigError: one named twice; or options or weights for "purifier" where there are several.
    """
    if len(set(names)) < len(names):
        raise ConfigError(f"purifier {','.join(names)!r} names one twice: expected different ones")
    if len(names) > 1:
        for kind, given in (("options", options), ("weights", weights)):
            if "purifier" in given:
                raise ConfigError(f"{kind} for 'purifier', and there are {len(names)}: name one of {', '.join(names)}")
    files = {name: weights.get(name, weights.get("purifier")) for name in names}
    return {
        name: build_stage("purifier", name, task, purifier_options(options, name), files[name], found_in)
        for name in names
    }


def purifier_options(options: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, Any]:
    """Return the options of one purifier: those for "purifier", and those under its own name, which win."""
    return {**options.get("purifier", {}), **options.get(name, {})}


def in_sequence(purifiers: Mapping[str, Built]) -> nn.Module | None:
    """Compose purifiers in their order; one alone is itself, none is None."""
    modules = [built.module for built in purifiers.values()]
    return PurifierSequence(modules) if len(modules) > 1 else modules[0] if modules else None


def build_tuned(
    name: str,
    task: Task,
    victim: str,
    bare: nn.Module,
    purifier: str | None,
    options: Mapping[str, Any] | None = None,
    weights: str | None = None,
    found_in: Registry | None = None,
) -> Built:
    """Build a victim as a fine-tuner adapted it, from the weights that its training wrote.

    Args:
        name: the fine-tuner's.
        task: what the victim is for.
        victim, purifier: the names that it was tuned for.
        bare: the victim before tuning; left as it is.
        options: the fine-tuner's.
        weights: an explicit file, "+EDITION", or "bare": those of the victim tuned alone.

    Raises:
        UnknownNameError, ConfigError: a wrong name or option.
        WeightsError: not tuned yet (the message gives the command), or for another victim or purifier.
    """
    found = (found_in or registry()).find("finetuner", name)
    purifier = tuned_behind(purifier, weights)
    filed_as = tuned_name(found.name, victim, purifier)
    path = locate(found, task.filing, weights, filed_as)
    if path is None:
        behind = f" --purifier {purifier}" if purifier else ""
        command = train_command("finetuner", name, task.dataset, edition=edition_of(weights))
        raise WeightsError(
            f"no weights of {victim} fine-tuned by {name} behind {purifier or 'no purifier'} on {task.filing}: "
            f"run `{command} --victim {victim}{behind}`, or add --train-missing{near(found, task, filed_as)}"
        )
    card = read_card(path)
    _check_task(card, task, path)
    theirs = (card.config.get("victim"), card.config.get("purifier"))
    if theirs != (victim, purifier):
        hint = "; to put one before it nonetheless: bare" if theirs == (victim, None) else ""
        raise WeightsError(
            f"weights {str(path)!r} are of {theirs[0]} tuned behind {theirs[1] or 'no purifier'}, expected {victim} "
            f"behind {purifier or 'no purifier'}{hint}"
        )
    config = found.config(_with_architecture(found, dict(options or {}), card, path, task))
    module = found.spec.resolve(found.spec.build)(config, task, bare)
    if not isinstance(module, nn.Module):
        raise ContractError(f"finetuner {found.name} built {type(module).__name__}, expected an nn.Module")
    module.stage_name = victim  # type: ignore[assignment]
    load(path, module, "finetuner", found.name)
    return Built(module.eval(), config, path, card)


def build_module(found: Found, config: Any, task: Task) -> nn.Module:
    """Call a spec's `build`, and leave the stage's name on the module for error messages."""
    module = found.spec.resolve(found.spec.build)(config, task)
    if not isinstance(module, nn.Module):
        raise ContractError(f"{found.entry.stage} {found.name} built {type(module).__name__}, expected an nn.Module")
    module.stage_name = found.name  # type: ignore[assignment]
    return module


def _architecture_asked(found: Found, options: Mapping[str, Any]) -> dict[str, Any]:
    fixed = {option.name for option in describe(found.spec.config) if option.architecture}
    return {key: value for key, value in options.items() if key in fixed and key != found.spec.member_option}


def needs_weights(found: Found, config: Any) -> bool:
    """Whether a stage is of no use untrained: it can be trained, and brings no weights of its own."""
    trained = found.spec.train is not None or found.spec.weights_of is not None
    return trained and not getattr(config, "pretrained", False)


def _check_task(card: Card, task: Task, path: Path) -> None:
    """Refuse weights that were made for images of another shape, or a victim's for other classes."""
    if differs := mismatch(card, task):
        raise WeightsError(f"weights {str(path)!r} do not fit: {differs}")


@torch.no_grad()
def check_outputs(module: nn.Module, task: Task, what: str) -> None:
    """Refuse a victim that answers for more or fewer classes than the data set has.

    One that cannot be asked like this, or answers something else than logits, is left to those who run it.

    Raises:
        ContractError: another number of outputs than of classes.
    """
    where = next((each.device for each in (*module.parameters(), *module.buffers())), torch.device("cpu"))
    grey = torch.full((2, task.channels, task.height, task.width), 0.5, device=where)
    with torch.random.fork_rng([where] if where.type == "cuda" else []):
        try:
            said = module(grey)
        except Exception:
            return
    said = unwrapped(said)
    if isinstance(said, torch.Tensor) and said.ndim == 2 and said.shape[1] != task.classes:
        raise ContractError(
            f"{what} answers for {said.shape[1]} classes, and {task.dataset} has {task.classes}: its outputs must be "
            "those of the data set's classes, in their order"
        )


def _with_architecture(found: Found, options: Mapping[str, Any], card: Card, path: Path, task: Task) -> dict[str, Any]:
    """Fill in the architecture that the card gives; another one that was asked for is refused."""
    asked, merged = found.config(options), dict(options)
    for option in describe(found.spec.config):
        if not option.architecture or option.name not in card.config:
            continue
        kept = card.config[option.name]
        kept = tuple(kept) if isinstance(kept, list) else kept
        wanted = getattr(asked, option.name)
        if option.name in options and wanted != kept:
            command = train_command(found.entry.stage, found.name, task.dataset, {option.name: wanted})
            raise WeightsError(
                f"weights {str(path)!r} have {option.name}={kept}, and {wanted} was asked for: run `{command}`"
            )
        if option.name != found.spec.member_option or found.member is None:
            merged[option.name] = kept
    return merged


def resolve_device(name: str) -> torch.device:
    """Turn "auto", "cpu", "cuda", "cuda:1" or "mps" into a device.

    Raises:
        ConfigError: unknown, or not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        cause = str(error).splitlines()[0]
        raise ConfigError(f"device {name!r} cannot be used ({cause[:100]}): expected auto, cpu or cuda") from None
    return device


def transfer_sources(victim: str, dataset: str, found_in: Registry, most: int = MOST_SOURCES) -> tuple[str, ...]:
    """Return other victims that have weights for a data set, at most so many, by name: each trained on its own.

    `dataset` is what it files weights under, see `defend.weights.file_name`.
    """
    names = {
        found.card.name
        for entry in found_in.entries("victim")
        for found in available("victim", None, found_in.packages(entry))
        if found.card.filing == dataset
    }
    return tuple(sorted(names - {victim}))[:most]


def find_task(
    victim: str,
    dataset: str,
    data_dir: str | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    weights: Mapping[str, str] | None = None,
) -> tuple[Task, tuple[str, ...]]:
    """Return the task and the class names: from the card of the victim's weights, else from the data set.

    Raises:
        WeightsError: several weights go by the data set's name, and nothing says which images are meant.
    """
    found = registry().find("victim", victim)
    registry().find("dataset", dataset)
    asked = (weights or {}).get("victim")
    path = locate(found, dataset, asked)
    trained = needs_weights(found, found.config((options or {}).get("victim", {})))
    if trained and path is None and data_dir is None:
        path = _only(found, dataset, edition_of(asked))
    own = path is not None and path.parent == cache_dir() / "weights"
    # what this user trained under the name of a data set may be of another folder than the one that is named now
    if trained and path is not None and (is_file(asked) or data_dir is None or not own):
        card = read_card(path)
        return card.task(), card.task().class_names
    opened = open_dataset(dataset, data_dir, (options or {}).get("dataset"))
    return opened.task(), opened.classes


def _only(found: Found, dataset: str, edition: str) -> Path | None:
    """Return the one weights file of a data set whose name does not say which images it has, None if there is none."""
    several = [
        each for each in available("victim", found.name, found.packages)
        if each.card.dataset["name"] == dataset and each.card.name == found.name and each.edition == edition
    ]  # fmt: skip
    if len(several) > 1:
        names = ", ".join(repr(each.path.name) for each in several[:3])
        raise WeightsError(
            f"{len(several)} weights of victim {found.name} are for a data set {dataset} ({names}): say which images "
            "are meant with --data-dir, or name a file with --victim-weights"
        )
    return several[0].path if several else None


def build_parts(
    victim: str,
    task: Task,
    purifier: str | None = None,
    detector: str | None = None,
    *,
    finetune: str | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    weights: Mapping[str, str] | None = None,
    bare: Built | None = None,
    found_in: Registry | None = None,
) -> dict[str, Built]:
    """Build the parts of a defence, with their weights, by stage; of several purifiers each by its name.

    Args:
        victim, purifier, detector, finetune, options, weights: as in `load_defence`.
        task: what they are built for.
        bare: the victim, if it has been built.

    Raises:
        DefendError: whatever is wrong with a name, an option or the weights, in one line.
    """
    options, weights = options or {}, weights or {}

    def stage(kind: Stage, name: str) -> Built:
        return build_stage(kind, name, task, options.get(kind), weights.get(kind), found_in)

    parts = {"victim": bare or stage("victim", victim)}
    purifiers = build_purifiers(split_names(purifier), task, options, weights, found_in)
    parts |= {"purifier" if len(purifiers) == 1 else name: built for name, built in purifiers.items()}
    if finetune:
        parts["finetuner"] = build_tuned(
            finetune, task, victim, parts["victim"].module, purifier, options.get("finetuner"),
            weights.get("finetuner"), found_in,
        )  # fmt: skip
    check_outputs(parts["victim"].module, task, f"victim {victim}")
    if finetune:
        check_outputs(parts["finetuner"].module, task, f"{victim} as tuned by {finetune}")
    if detector:
        parts["detector"] = stage("detector", detector)
    return parts


def compose(parts: Mapping[str, Built], purifier: str | None) -> Defence:
    """Put the parts of `build_parts` together; `purifier` is what they were built for."""
    names = split_names(purifier)
    purifiers = {name: parts["purifier" if len(names) == 1 else name] for name in names}
    screen = parts["detector"].module if "detector" in parts else None
    return Defence(parts.get("finetuner", parts["victim"]).module, in_sequence(purifiers), screen)


def check_default_type() -> None:
    """Refuse to build networks in another type than images and weights have.

    Raises:
        ConfigError: torch's default type is not float32.
    """
    if torch.get_default_dtype() != torch.float32:
        raise ConfigError(
            f"torch's default type is {torch.get_default_dtype()}, expected torch.float32, which images and weights "
            "have: call torch.set_default_dtype(torch.float32) before"
        )


def load_defence(
    victim: str,
    dataset: str = "digits",
    purifier: str | None = None,
    detector: str | None = None,
    *,
    finetune: str | None = None,
    data_dir: str | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    weights: Mapping[str, str] | None = None,
    device: str = "cpu",
) -> Defence:
    """Load a defence by names, weights included: an `nn.Module` in eval mode.

    Args:
        victim: any timm model, or a victim of a plugin.
        dataset: which weights to take.
        purifier, detector: names, or None. "dae,apudae" is two purifiers in sequence.
        finetune: the fine-tuner whose tuned weights replace the victim's, or None.
        data_dir: where the data set lies, if it has files.
        options: options by stage (or purifier), for example {"purifier": {"steps": 10}}.
        weights: explicit files by stage (or purifier).
        device: "auto", "cpu", "cuda", ...

    Raises:
        DefendError: whatever is wrong with a name, an option or the weights, in one line.
    """
    check_default_type()
    task, _ = find_task(victim, dataset, data_dir, options, weights)
    parts = build_parts(victim, task, purifier, detector, finetune=finetune, options=options, weights=weights)
    return compose(parts, purifier).to(resolve_device(device)).eval()
