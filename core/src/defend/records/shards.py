"""The folders of a run's shards: whether they make one run, and their finished batches as that run's journal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from defend.errors import ConfigError
from defend.records.journal import Journal
from defend.records.rows import PlannedRow
from defend.records.unfinished import ABOUT, FOLDER, find_unfinished, read_sealed, say_difference
from defend.values.commands import say_command
from defend.values.run_config import RunConfig
from defend.values.shards import Shard, parse_shard

HERE = ("out", "shard", "workers", "data_dir")  # settings that may differ: they decide no record


def places_of(rows: Sequence[PlannedRow], batch_size: int, shard: Shard) -> list[range]:
    """Return which batches of every row a shard computes.

    Every N-th; each row begins with another shard, as adaptive rows have few batches and cost most. Rows that take
    images over from smaller budgets begin with the same one, which has those images.
    """
    begins: dict[object, int] = {}
    found = []
    for number, row in enumerate(rows):
        begin = begins.setdefault(row.carry or number, number)
        found.append(range((shard.number - 1 - begin) % shard.of, -(-len(row.keys) // batch_size), shard.of))
    return found


def share(rows: Sequence[PlannedRow], batch_size: int, shard: Shard) -> list[PlannedRow]:
    """Return the rows with a shard's images alone; its batches are cut as those of the whole run.

    Raises:
        ConfigError: there are more shards than batches, so that one would have nothing to do.
    """
    every = [places_of(rows, batch_size, Shard(number, shard.of)) for number in range(1, shard.of + 1)]
    if idle := [number for number, places in enumerate(every, 1) if not any(map(len, places))]:
        batches = sum(len(places) for each in every for places in each)
        raise ConfigError(
            f"shard {idle[0]}/{shard.of} would have nothing to compute: the run has {batches} batches of at most "
            f"{batch_size} images; take fewer shards, or a smaller --batch-size"
        )
    mine = every[shard.number - 1]
    return [
        attrs.evolve(row, keys=row.keys[[key for place in places for key in _images(row, place, batch_size)]])
        for row, places in zip(rows, mine, strict=True)
    ]


def _images(row: PlannedRow, place: int, batch_size: int) -> range:
    return range(place * batch_size, min((place + 1) * batch_size, len(row.keys)))


@attrs.frozen
class Shards:
    """All shards of a run, as their folders have them.

    Attributes:
        configs: of the whole run, one an arm, without a folder.
        folders: as they were named, in the order of the shards.
        journals: where the finished batches lie.
        fingerprint: what decided the records.
    """

    configs: Sequence[RunConfig]
    folders: Sequence[Path]
    journals: Sequence[Path]
    fingerprint: Mapping[str, Any]

    def check(self, rows: Sequence[PlannedRow], fingerprint: Mapping[str, Any]) -> None:
        """See that they were computed with what is here now, and that no batch is missing.

        Raises:
            ConfigError: they are not whole, or were computed with something else.
        """
        for key, value in json.loads(json.dumps(fingerprint)).items():
            if self.fingerprint.get(key) != value:
                other = say_difference(key, self.fingerprint.get(key), value)
                raise ConfigError(
                    f"the shards differ from what is here now in {other}: merge them where they were run, "
                    "or run them again"
                )
        for number, row, _, source in self._batches(rows):
            if not source.is_file():
                place = self.journals.index(source.parent)
                what = "clean" if row.attack is None else f"{row.name}, {row.threat.kind}"
                raise ConfigError(
                    f"shard {place + 1}/{len(self.folders)} is not finished (row {number + 1}, {what}): "
                    f"{say_command('run', '--resume', self.folders[place])}"
                )

    def hand_over(self, journal: Journal, rows: Sequence[PlannedRow]) -> None:
        """Put all finished batches into the journal of the whole run."""
        # first, so that a merge that is cut off and goes on keeps to it
        journal.choose("crafting", read_sealed(self.journals[0] / "crafting.json"))
        journal.choose("merged", {"shards": len(self.journals)})
        for number, _, place, source in self._batches(rows):
            journal.adopt(number, place, source)

    def _batches(self, rows: Sequence[PlannedRow]) -> list[tuple[int, PlannedRow, int, Path]]:
        """Return every batch of the run: its row's number, the row, its place in it, and where a shard has it."""
        size, count = self.configs[0].batch_size, len(self.journals)
        return [
            (number, row, place, Journal.file(journal, number, own))
            for which, journal in enumerate(self.journals, 1)
            for number, (row, places) in enumerate(zip(rows, places_of(rows, size, Shard(which, count)), strict=True))
            for own, place in enumerate(places)
        ]


def read_shards(folders: Sequence[Path]) -> Shards:
    """Read the folders of all shards of a run.

    Raises:
        ConfigError: one is no shard, or is missing, or there twice, or was run with other settings or code.
    """
    found: dict[int, tuple[Path, list[RunConfig]]] = {}
    count = 0
    for folder in folders:
        configs = find_unfinished(folder)
        if not configs or not configs[0].shard:
            raise ConfigError(f"{str(folder)!r} is no shard: expected folders that `defend run --shard` wrote")
        shard = parse_shard(configs[0].shard)
        if found and shard.of != count:
            other = next(iter(found.values()))[0]
            raise ConfigError(f"{str(folder)!r} is shard {shard}, and {str(other)!r} is one of {count}: name one run's")
        if shard.number in found:
            other = found[shard.number][0]
            raise ConfigError(f"shard {shard} is there twice, {str(other)!r} and {str(folder)!r}: name one of them")
        count, found[shard.number] = shard.of, (folder, configs)
    if lacks := [str(Shard(number, count)) for number in range(1, count + 1) if number not in found]:
        raise ConfigError(f"of {count} shards {', '.join(lacks)} {'is' if len(lacks) == 1 else 'are'} missing")
    ordered = [found[number] for number in sorted(found)]
    journals = [Path(str(configs[0].out)) / FOLDER for _, configs in ordered]
    first, configs = ordered[0]
    for folder, others in ordered[1:]:
        if differs := _compare(configs, others):
            raise ConfigError(
                f"{str(folder)!r} differs from {str(first)!r} in {differs}: run that shard again with "
                f"{say_command('run', '--config', first / 'config.toml', '--shard', others[0].shard)}"
            )
    decided = [_decided(folder, journal) for (folder, _), journal in zip(ordered, journals, strict=True)]
    for (folder, _), said in zip(ordered[1:], decided[1:], strict=True):
        for key in {**decided[0], **said}:
            if decided[0].get(key) != said.get(key):
                apart = say_difference(key, said.get(key), decided[0].get(key), "")
                raise ConfigError(f"{str(folder)!r} differs from {str(first)!r} in {apart}: run one of them again")
    whole = [attrs.evolve(each, shard=None, out=None) for each in configs]
    return Shards(whole, [folder for folder, _ in ordered], journals, decided[0]["fingerprint"])


def _decided(folder: Path, journal: Path) -> dict[str, Any]:
    """Return what decided a shard's records, and what its attacks are crafted in."""
    if not (journal / ABOUT).is_file() or not (journal / "crafting.json").is_file():
        raise ConfigError(f"shard {str(folder)!r} is not finished: {say_command('run', '--resume', folder)}")
    fingerprint = read_sealed(journal / ABOUT)["fingerprint"]
    return {**fingerprint, "fingerprint": fingerprint, "precision": read_sealed(journal / "crafting.json")["name"]}


def _compare(configs: Sequence[RunConfig], others: Sequence[RunConfig]) -> str:
    """Return the first setting in which a shard differs; "" where none does."""
    if len(configs) != len(others):
        return "number of purifiers"
    for one, other in zip(configs, others, strict=True):
        for field in attrs.fields(RunConfig):
            if field.name not in HERE and getattr(one, field.name) != getattr(other, field.name):
                return field.name
    return ""
