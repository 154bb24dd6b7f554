"""Flags and TOML to `RunConfig`, one an arm, and back to TOML."""

from __future__ import annotations

import datetime
import os
import secrets
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import cattrs
import tomli_w

from defend.errors import ConfigError, did_you_mean
from defend.options import parse
from defend.values.editions import is_file
from defend.values.references import FILE, anchor, number_twin, shorten
from defend.values.run_config import NONE, RunConfig
from defend.values.sources import is_path, name_source

_converter = cattrs.Converter(omit_if_default=True)


def parse_settings(settings: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Read `--set STAGE.OPTION=VALUE` arguments into options by stage."""
    found: dict[str, dict[str, Any]] = {}
    for setting in settings:
        path, equals, value = setting.partition("=")
        stage, dot, key = path.strip().rpartition(".")
        if not (equals and dot and stage and key):
            raise ConfigError(f"--set {setting!r} is not STAGE.OPTION=VALUE, for example purifier.steps=15")
        found.setdefault(stage.strip(), {})[key.strip()] = value.strip()
    return found


def run_config(flags: Mapping[str, Any], file: Path | None = None) -> RunConfig:
    """Merge a TOML file and flags (which win; None means not given) into a `RunConfig`.

    Raises:
        ConfigError: an unreadable file, an unknown key (the nearest is offered) or a wrong value.
    """
    # a file that was written by hand may name what lies beside it
    values: dict[str, Any] = anchor_paths(_read(file), file.absolute().parent, only_there=True) if file else {}
    for key, value in flags.items():
        if value is None:
            continue
        if key in ("options", "weights"):
            values[key] = _table(key, values.get(key, {}), str(file))
            merged = {
                stage: dict(chosen) if isinstance(chosen, Mapping) else chosen
                for stage, chosen in values.get(key, {}).items()
            }
            for stage, chosen in value.items():
                merged[stage] = {**merged.get(stage, {}), **chosen} if isinstance(chosen, Mapping) else chosen
            value = merged
        values[key] = value
    where = str(file) if file else "the configuration"
    return _structure(values, where)


def anchor_paths(values: Mapping[str, Any], folder: Path, only_there: bool = False) -> dict[str, Any]:
    """Return values whose relative paths are looked up from a folder: files of parts, of weights, of the data.

    Args:
        values: as `RunConfig` has them.
        folder: where whoever wrote them stood.
        only_there: leave a path as it is that is not in the folder, or is where the user stands.
    """

    def elsewhere(path: str) -> bool:
        return only_there and (not path or os.path.exists(path) or not os.path.exists(folder / path))  # of any text

    def root(path: Any) -> Any:
        if not isinstance(path, str) or not is_file(path) or elsewhere(path):
            return path
        return str(folder / Path(path).expanduser())

    def name(text: Any) -> Any:
        file = text.partition(":")[2] if isinstance(text, str) and text.startswith(f"{FILE}:") else None
        if not isinstance(text, str) or elsewhere(text.rpartition(":")[0] if file is None else file):
            return text
        return anchor(text, folder)

    found = dict(values)
    for key, value in values.items():
        if key == "dataset" and isinstance(value, str) and name_source(value)[0] != value and is_path(value):
            found[key] = root(value)
        elif key in ("victim", "purifier", "detector", "finetune", "dataset"):
            found[key] = name(value)
        elif key in ("attacks", "sources") and isinstance(value, (list, tuple)):
            found[key] = [name(each) for each in value]
        elif key == "data_dir":
            found[key] = root(value)
        elif key == "weights" and isinstance(value, Mapping):
            found[key] = {stage: root(path) for stage, path in value.items()}
    return found


def read_toml(text: str, where: str) -> RunConfig:
    """Read what `to_toml` wrote; `where` names it in errors.

    Raises:
        ConfigError: as `run_config`.
    """
    return _structure(_parse(text, f"the configuration in {where!r}"), where)


def _parse(text: str, what: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except ValueError as error:  # whole numbers of thousands of digits are refused too
        raise ConfigError(f"{what} is not TOML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{what} is nested too deeply") from None


def _read(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"configuration {str(file)!r} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"configuration {str(file)!r} is not TOML: {error}") from None
    return _parse(text, f"configuration {str(file)!r}")


def _structure(values: Mapping[str, Any], where: str) -> RunConfig:
    hints = typing.get_type_hints(RunConfig)
    names = [field.name for field in attrs.fields(RunConfig)]
    parsed: dict[str, Any] = {}
    for key, value in values.items():
        if key not in names:
            raise ConfigError(f"unknown key {key!r} in {where}: {did_you_mean(key, names)}")
        if key in ("eps", "sweep", "eps_l2"):
            parsed[key] = value  # RunConfig's own converters explain a wrong budget best
        elif key in ("options", "weights"):
            parsed[key] = _table(key, value, where)
        else:
            try:
                parsed[key] = parse(value, hints[key])
            except (ValueError, TypeError) as error:
                raise ConfigError(f"{where}: {key}={value!r} is not {error}") from None
    if "victim" not in parsed:
        raise ConfigError("no victim was named: add --victim, for example --victim resnet18")
    return RunConfig(**parsed)


def _table(key: str, value: Any, where: str) -> dict[str, Any]:
    inner: type | types.UnionType = Mapping if key == "options" else str
    if not isinstance(value, Mapping) or not all(isinstance(item, inner) for item in value.values()):
        shape = "[options.STAGE] tables" if key == "options" else 'STAGE = "FILE" lines'
        raise ConfigError(f"{where}: {key} must hold {shape}")
    return {stage: dict(item) if isinstance(item, Mapping) else item for stage, item in value.items()}


def to_toml(config: RunConfig) -> str:
    """Write a config as TOML that `run_config` reads back to an equal value; defaults are left out.

    TOML has no null, so an option of None is written as "none", which options read as None.
    """
    values: dict[str, Any] = _converter.unstructure(config)
    for chosen in values.get("options", {}).values():
        chosen.update({name: "none" for name, value in chosen.items() if value is None})
    return tomli_w.dumps({key: list(value) if isinstance(value, tuple) else value for key, value in values.items()})


def alternatives(config: RunConfig, purifiers: Sequence[str]) -> list[RunConfig]:
    """Return one config a purifier (or sequence of them), each an arm with a folder of its own under the config's.

    "none" is the arm without a purifier.

    Raises:
        ConfigError: one named twice; or options or weights for "purifier", which cannot mean several.
    """
    if len(set(purifiers)) < len(purifiers):
        raise ConfigError(f"--purifier names one twice: {', '.join(purifiers)}")
    for kind, given in (("options", config.options), ("weights", config.weights)):
        if "purifier" in given:
            raise ConfigError(f"{kind} for 'purifier', and there are {len(purifiers)}: name one of them instead")
    every = {name for purifier in purifiers for name in purifier.split(",")}
    configs = []
    for purifier, folder in zip(purifiers, _as_folders(purifiers), strict=True):
        others = every - set(purifier.split(","))
        own = {key: value for key, value in config.options.items() if key not in others}
        files = {key: value for key, value in config.weights.items() if key not in others}
        out = None if config.out is None else str(Path(config.out) / folder)
        configs.append(attrs.evolve(config, purifier=purifier, options=own, weights=files, out=out))
    return configs


def place_arms(configs: Sequence[RunConfig], out: str | None) -> list[RunConfig]:
    """Give the arms of a run their folders: `out` itself, or those of the purifiers in it; None names a fresh one."""
    several = tuple(config.purifier or NONE for config in configs) if len(configs) > 1 else ()
    root = out or default_out(configs[0], several)
    if not several:
        return [attrs.evolve(configs[0], out=root)]
    return [
        attrs.evolve(config, out=str(Path(root) / folder))
        for config, folder in zip(configs, _as_folders(several), strict=True)
    ]


def _as_folders(names: Sequence[str]) -> list[str]:
    """Return what folders of purifiers are called, each its own: files of one name may lie in two places."""
    taken: set[str] = set()
    return [number_twin(_as_file_name(name), taken) for name in names]


def _as_file_name(names: str) -> str:
    """Return names as a folder of theirs is called."""
    return shorten(names).replace(":", "_").replace("/", "_").replace(",", "+")


def default_out(config: RunConfig, purifiers: Sequence[str] = (), root: Path = Path("runs")) -> str:
    """Return a fresh run folder's name: runs/20260131-120000-resnet18-apudae-5f0c21e8, as no other process finds it."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    named = "-vs-".join(purifiers) or config.purifier
    tuned = f"finetune-{config.finetune}" if config.finetune else None
    share = f"shard-{config.shard.replace('/', '-of-')}" if config.shard else None
    named_parts = [config.victim, *(part for part in (named, config.detector, tuned, share) if part)]
    return str(root / "-".join([stamp, *map(_as_file_name, named_parts), secrets.token_hex(4)]))


def with_out(config: RunConfig, purifiers: Sequence[str] = ()) -> RunConfig:
    """Name a run folder if the config has none; `purifiers` are those of several arms."""
    return config if config.out else attrs.evolve(config, out=default_out(config, purifiers))
