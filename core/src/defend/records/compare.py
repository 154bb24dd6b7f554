"""Runs beside each other: what each left standing, and whether a difference between two is more than chance.

The runs judged the same images, so they are compared image by image: McNemar's test of the images that only one of
the two got right. Imports no torch.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs

from defend.errors import ConfigError
from defend.records.run import Right, RowKey, Run, RunRow
from defend.util.statistics import holm, mcnemar, paired_interval, wilson
from defend.values.report import LeastRow, is_loose, undercut
from defend.values.threats import THREATS, is_harmless, rank


@attrs.frozen
class RunAccuracy:
    """One run's accuracy on a row, a fraction, with its Wilson 95 % interval.

    `loose`: more steps would plainly lower it, see `defend.values.report.is_loose`. `undercut_by`: of a worst case, the
    row that leaves less of all its own images, see `defend.values.report.undercut`.
    """

    accuracy: float
    ci95: tuple[float, float]
    n: int
    steps: int | None = None
    partial: bool = False
    loose: bool = False
    undercut_by: LeastRow | None = None


@attrs.frozen
class Difference:
    """Two runs on one row, over the `n` images that both judged.

    Attributes:
        first, second: places of the runs in `Comparison.labels`.
        only_first, only_second: images that only this one got right.
        difference: accuracy of the second less that of the first, a fraction.
        ci95: `paired_interval` of the difference.
        p: `mcnemar`'s p value.
        p_holm: the same, adjusted for all tests of the comparison (`holm`).
    """

    first: int
    second: int
    n: int
    only_first: int
    only_second: int
    difference: float
    ci95: tuple[float, float]
    p: float
    p_holm: float


@attrs.frozen
class ComparedRow:
    """One row of the table: a cell for every run (None where it lacks the row), a difference for every pair.

    A pair without an image in common has none.
    """

    key: RowKey
    cells: tuple[RunAccuracy | None, ...]
    differences: tuple[Difference, ...]


@attrs.frozen
class ComparedWorstCase:
    """Per image, right in every row of `over`: the rows that all runs have, on the images common to all of them.

    A bare victim lacks the rows of attackers who know a defence, as it has none: they count for the others. `left_out`
    are the rows that only some runs have.
    """

    over: tuple[RowKey, ...]
    left_out: tuple[RowKey, ...]
    cells: tuple[RunAccuracy, ...]
    differences: tuple[Difference, ...]


@attrs.frozen
class Comparison:
    """Runs side by side; `notes` say, a line each, what makes a comparison of them less than one of equals."""

    labels: tuple[str, ...]
    runs: tuple[Run, ...]
    rows: tuple[ComparedRow, ...]
    worst_case: ComparedWorstCase | None
    notes: tuple[str, ...]

    @property
    def tests(self) -> int:
        """How many tests the Holm adjustment counts."""
        worst = 0 if self.worst_case is None else len(self.worst_case.differences)
        return sum(len(row.differences) for row in self.rows) + worst


def _rate(right: Right, steps: int | None = None, partial: bool = False, loose: bool = False) -> RunAccuracy:
    successes, n = sum(right.values()), len(right)
    return RunAccuracy(successes / n, wilson(successes, n), n, steps, partial, loose)


def _rate_row(run: Run, row: RunRow) -> RunAccuracy:
    return _rate(row.right, row.steps, row.partial, is_loose(row.rising, row.key.threat, not _is_bare(run)))


def _bound(worst: RunAccuracy, rows: Sequence[RunRow]) -> RunAccuracy:
    """Return a run's worst case with the row among `rows` that undercuts it, if one does."""
    rated = {str(row.key): _rate(row.right) for row in rows}
    name = min(rated, key=lambda key: rated[key].accuracy)
    least = LeastRow(name, rated[name].accuracy, rated[name].ci95, rated[name].n)
    return attrs.evolve(worst, undercut_by=undercut(worst.accuracy, least))


def compare(runs: Sequence[Run]) -> Comparison:
    """Compare runs, the first of which is what the others are measured against.

    Raises:
        ConfigError: fewer than two runs, one given twice, or runs that judged different images.
    """
    _check(runs)
    labels = _unique_labels(runs)
    found = [{row.key: row for row in run.rows} for run in runs]
    keys = _order(key for rows in found for key in rows)
    table = [[rows.get(key) for rows in found] for key in keys]
    shared = [key for key in keys if _is_shared(key, runs, found)]
    worst = _worst_case(found, shared)

    judged: list[list[Right | None]] = [[None if row is None else row.right for row in line] for line in table]
    # the worst case too, as Holm's adjustment is over all tests of the comparison
    *differences, worst_differences = _differences([*judged, list(worst)])
    compared = tuple(
        ComparedRow(
            key, tuple(None if row is None else _rate_row(run, row) for run, row in zip(runs, line, strict=True)), pairs
        )
        for key, line, pairs in zip(keys, table, differences, strict=True)
    )
    worst_case = None
    if worst:
        having = [[rows[key] for key in shared if key in rows] for rows in found]
        cut, loose = ([any(map(operator.attrgetter(name), rows)) for rows in having] for name in ("partial", "rising"))
        worst_case = ComparedWorstCase(
            over=tuple(shared),
            left_out=tuple(
                key for key in keys if key not in shared and any(key in rows and rows[key].headline for rows in found)
            ),
            cells=tuple(
                _bound(_rate(right, None, *said), rows)
                for right, rows, *said in zip(worst, having, cut, loose, strict=True)
            ),
            differences=worst_differences,
        )
    return Comparison(labels, tuple(runs), compared, worst_case, tuple(_notes(runs, labels, compared, worst_case)))


def _check(runs: Sequence[Run]) -> None:
    if len(runs) < 2:
        raise ConfigError(f"{len(runs)} run to compare: expected at least two")
    folders = [run.folder.resolve() for run in runs if run.folder is not None]
    for place, folder in enumerate(folders):
        if folder in folders[:place]:
            raise ConfigError(f"run folder {str(folder)!r} was given twice")
    images = [run.report["dataset"] for run in runs]
    for run, theirs in zip(runs, images, strict=True):
        if any(theirs[part] != images[0][part] for part in ("name", "split", "sha256")):
            raise ConfigError(
                f"runs judged different images, {_images(runs[0])} and {_images(run)}: "
                "only runs on the same data set can be compared"
            )


def _images(run: Run) -> str:
    dataset = run.report["dataset"]
    return f"{dataset['name']} {dataset['split']} {dataset['sha256'][:8]} ({run.folder or run.label})"


def _unique_labels(runs: Sequence[Run]) -> tuple[str, ...]:
    """Tell equal labels apart by the folder's name, then by its whole path, then by the place among the runs."""
    ways: tuple[Callable[[int, Run], str], ...] = (
        lambda place, run: f"{run.label} ({run.folder.name})" if run.folder else run.label,
        lambda place, run: f"{run.label} ({run.folder})" if run.folder else run.label,
        lambda place, run: f"{place + 1}: {run.label}",
    )
    labels = [run.label for run in runs]
    for way in ways:
        equal = [labels.count(label) > 1 for label in labels]
        labels = [way(place, runs[place]) if equal[place] else label for place, label in enumerate(labels)]
    return tuple(labels)


def _order(keys: Iterable[RowKey]) -> list[RowKey]:
    """List the keys once each, by threat: clean first, then as threats are listed, then as they came."""
    return sorted(dict.fromkeys(keys), key=lambda key: rank(key.threat))


def _is_shared(key: RowKey, runs: Sequence[Run], found: Sequence[Mapping[RowKey, RunRow]]) -> bool:
    """Whether a row counts in the worst case: all runs have it, but for bare victims where it needs a defence."""
    needed = key.threat in THREATS and bool(THREATS[key.threat].needs)
    having = [run for run, rows in zip(runs, found, strict=True) if key in rows and rows[key].headline]
    needed = needed and not all(map(_is_bare, having))
    return bool(having) and all(run in having or (needed and _is_bare(run)) for run in runs)


def _is_bare(run: Run) -> bool:
    config = run.report["config"]
    return not any(config.get(stage) for stage in ("purifier", "detector", "finetune"))


def _worst_case(found: Sequence[Mapping[RowKey, RunRow]], shared: Sequence[RowKey]) -> list[Right]:
    """Return for every run whether each image common to all was right in all `shared` rows; [] if that says nothing."""
    # the worst of one row is that row, and rows that no attacker made have no worst case
    if len(shared) < 2 or all(is_harmless(key.threat) for key in shared):
        return []
    own = [[rows[key].right for key in shared if key in rows] for rows in found]
    common = set(own[0][0]).intersection(*itertools.chain(*own)) if all(own) else set()
    if not common:
        return []
    return [{image: all(right[image] for right in rights) for image in sorted(common)} for rights in own]


def _differences(lines: Sequence[Sequence[Right | None]]) -> list[tuple[Difference, ...]]:
    """Compare every pair of runs on every line; the p values are adjusted over all of them."""
    drafts: list[tuple[int, Difference]] = []
    for place, line in enumerate(lines):
        for (first, one), (second, other) in itertools.combinations(enumerate(line), 2):
            if one is None or other is None:
                continue
            images = one.keys() & other.keys()
            if not images:
                continue
            only_first = sum(one[image] and not other[image] for image in images)
            only_second = sum(other[image] and not one[image] for image in images)
            n = len(images)
            draft = Difference(
                first,
                second,
                n,
                only_first,
                only_second,
                difference=(only_second - only_first) / n,
                ci95=paired_interval(only_first, only_second, n),
                p=mcnemar(only_first, only_second),
                p_holm=1.0,
            )
            drafts.append((place, draft))
    adjusted = holm([draft.p for _, draft in drafts])
    compared: list[list[Difference]] = [[] for _ in lines]
    for (place, draft), p in zip(drafts, adjusted, strict=True):
        compared[place].append(attrs.evolve(draft, p_holm=p))
    return [tuple(line) for line in compared]


def _victim(run: Run) -> str:
    config, weights = run.report["config"], run.report.get("weights", {})
    parts = []
    for stage, name in (("victim", config["victim"]), ("finetuner", config.get("finetune"))):
        if name:
            sha = str(weights.get(stage, {}).get("sha256", ""))[:8]
            parts.append(" ".join(filter(None, [name, sha, _options(run, stage)])))
    return " tuned by ".join(parts)


def _options(run: Run, name: str) -> str:
    chosen = run.report["config"].get("options", {}).get(name, {})
    return " ".join(f"{key}={value}" for key, value in sorted(chosen.items()) if key != "steps")


NOT_THE_SAME = "not the same attack"
SOURCE = "source "  # before the name of a transfer source, among a report's weights
_ASPECTS: tuple[tuple[str, Callable[[Run], Any], str], ...] = (
    ("victims", _victim, "oblivious rows are not the same attack"),
    ("eps", lambda run: run.report["config"]["eps"], "rows with another eps are other rows"),
    ("seeds", lambda run: run.report.get("seed"), "other starting points of attacks, and other images with --limit"),
    ("draws", lambda run: run.report["config"].get("draws"), "adaptive attackers of a random defence differ"),
    (
        "thoroughness",
        lambda run: "--thorough" if run.report["config"].get("thorough") else "quick",
        "attacks take other numbers of restarts, classes and steps",
    ),
    (
        "checks",
        lambda run: run.report["config"].get("checks", "basic"),
        "what full checks would strike out, basic ones may pass",
    ),
    ("options of the data set", lambda run: _options(run, "dataset") or "defaults", "images may differ"),
    ("crafting precision", lambda run: run.report.get("precision", {}).get("crafting"), "attacks differ"),
)


def _notes(
    runs: Sequence[Run], labels: Sequence[str], rows: Sequence[ComparedRow], worst: ComparedWorstCase | None
) -> Iterable[str]:
    everyone = range(len(runs))
    for what, value, consequence in _ASPECTS:
        yield from _differ(what, {place: value(runs[place]) for place in everyone}, labels, consequence)
    parts = dict.fromkeys(part for run in runs for part in run.report.get("weights", {}))
    for source in (part for part in parts if part.startswith(SOURCE)):
        hashes = {place: runs[place].report.get("weights", {}).get(source, {}).get("sha256") for place in everyone}
        kept = {place: value[:8] for place, value in hashes.items() if value}
        yield from _differ(f"weights of {source}", kept, labels, "transfer rows are not the same attack")
    told = set()
    for attack in dict.fromkeys(row.key.attack for row in rows):
        having = [place for place in everyone if any(row.key.attack == attack and row.cells[place] for row in rows)]
        values = {place: _options(runs[place], attack) or "defaults" for place in having}
        yield from (said := list(_differ(f"options of {attack}", values, labels, NOT_THE_SAME)))
        told |= {attack} if said else set()
    made_of = [{row.key: row.made_of for row in run.rows} for run in runs]
    for row in rows:
        steps = {place: cell.steps for place, cell in enumerate(row.cells) if cell is not None}
        yield from (said := list(_differ(f"steps of {row.key}", steps, labels, NOT_THE_SAME)))
        digests = {place: digest for place in steps if (digest := made_of[place].get(row.key))}
        if not said and row.key.attack not in told:  # which says what differs
            yield from _differ(f"attacks called {row.key}", digests, labels, NOT_THE_SAME)
        if len(steps) > 1 and len(row.differences) < math.comb(len(steps), 2):
            yield f"{row.key}: some runs have no image in common there, and are not compared"
    for place in everyone:
        if failed := runs[place].failed:
            yield f"{labels[place]}: its figures are not to be trusted, as checks failed ({'; '.join(failed)})"
        yield from (f"{labels[place]}: {caveat}" for caveat in _caveats(runs[place], worst))
        if runs[place].partial:
            yield f"{labels[place]} was interrupted: rows may be missing, and those marked * are cut short"
    yield from _gather(runs, labels)
    if worst is None:
        yield "no worst case: the runs have fewer than two rows with images in common, one of them of an attacker"
        return
    known = [row.key for row in rows if row.key in worst.over and None in row.cells]
    if known:
        bare = ", ".join(labels[place] for place in everyone if _is_bare(runs[place]))
        rows_without = ", ".join(map(str, known))
        yield f"{bare}: there is no defence that an attacker could know, so its worst case is without {rows_without}"
    if worst.left_out:
        left = ", ".join(map(str, worst.left_out))
        yield f"the worst case is over what all runs have; without {left}"


def _gather(runs: Sequence[Run], labels: Sequence[str]) -> Iterable[str]:
    """Return what each run says of itself beside its figures, once a sentence, with the runs that say it."""
    saying: dict[str, list[str]] = {}
    for label, run in zip(labels, runs, strict=True):
        left_out = (f"{what} is left out, {why}" for what, why in run.left_out.items())
        for said in (*(f"a warning of check {each}" for each in run.warned), *left_out, *run.warnings):
            saying.setdefault(said, []).append(label)
    for said, those in saying.items():
        yield f"{'every run' if len(those) == len(runs) else ', '.join(those)}: {said}"


def _caveats(run: Run, worst: ComparedWorstCase | None) -> Iterable[str]:
    """Return what a run's own figures rest on, and its part of a worst case that is over fewer rows."""
    yield from run.caveats
    if worst is not None and not _is_bare(run):
        over = run.caveats_over(key.threat for key in worst.over)
        yield from (f"in the rows that all have, {caveat}" for caveat in over if caveat not in run.caveats)


def _differ(what: str, values: Mapping[int, Any], labels: Sequence[str], consequence: str) -> Iterable[str]:
    having: dict[Any, list[str]] = {}
    for place, value in values.items():
        having.setdefault(value, []).append(labels[place])
    if len(having) > 1:
        listed = "; ".join(f"{value}: {', '.join(names)}" for value, names in having.items())
        yield f"{what} differ ({listed}): {consequence}"
