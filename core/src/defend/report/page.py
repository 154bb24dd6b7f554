"""The report as a page: one HTML file that needs nothing else, and every figure as PNG and SVG for a paper.

Charts are SVG inside the page, coloured by CSS variables, images are PNG inside it; there is no script.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import attrs
import jinja2
from markupsafe import Markup

from defend import __version__
from defend.errors import ConfigError
from defend.records.compare import Comparison, compare
from defend.records.reading import read_results, run_folders
from defend.records.run import Results, name_row
from defend.records.standing import find_doubts
from defend.report.figures import paper, strips
from defend.report.figures.board import board
from defend.report.figures.curves import curves
from defend.report.figures.detector import histograms, roc, scored_rows
from defend.report.figures.distances import distances
from defend.report.figures.ladder import ladder
from defend.report.figures.passes import passes, spark
from defend.report.figures.progress import progress
from defend.report.figures.scene import DARK, LIGHT, NOTHING, Scene
from defend.report.figures.strips import Strip
from defend.report.figures.surface import surface
from defend.report.figures.svg import png_uri, to_svg
from defend.report.html import check_page, environment
from defend.report.leaderboard import Place, leaderboard
from defend.report.terminal import ARM_TITLES, basis, more_steps
from defend.report.text import (
    calibration_in_words,
    certified_in_words,
    chance_in_words,
    distances_in_words,
    of_norms,
    sources_in_words,
    spent,
    undercut_in_words,
)
from defend.util.files import make_folder, place_under, write_text
from defend.values.commands import say_command
from defend.values.references import number_twin
from defend.values.report import Row
from defend.values.threats import THREATS, knows_the_defence
from defend.weights.origin import describe

ONE, SEVERAL = "report.html", Path("defend-report.html")
FIGURES = "figures"
BADGES = {"pass": "✓", "warn": "!", "fail": "✗", "skip": NOTHING}


@attrs.frozen
class Written:
    """What `write_page` wrote; `doubts` are what it says of the runs today, see `records.standing`."""

    page: Path
    figures: tuple[Path, ...]
    doubts: tuple[str, ...] = ()


@attrs.frozen(slots=False)
class Section:
    """One run's part of the page; `place` is its place among the runs, from 1."""

    results: Results
    place: int = 1
    label: str = ""

    @cached_property
    def ladder(self) -> Scene:
        """The ladder, for wide pages and for papers."""
        return ladder(self.results, place=self.place)

    @cached_property
    def narrow_ladder(self) -> Scene:
        """The ladder for a phone."""
        return ladder(self.results, narrow=True, place=self.place)

    @cached_property
    def curves(self) -> list[Scene]:
        """Accuracy against eps, by attack."""
        return curves(self.results, self.place)

    @cached_property
    def distances(self) -> list[Scene]:
        """Accuracy at every eps at once, by norm."""
        return distances(self.results, self.place)

    @cached_property
    def progress(self) -> Scene | None:
        """How many images were left after each step of the attacks on the defence."""
        return progress(self.results, self.place)

    @cached_property
    def passes(self) -> Scene | None:
        """What more passes of a random defence leave, attacked and clean."""
        return passes(self.results)

    @cached_property
    def strips(self) -> list[Strip]:
        """Example images, by row."""
        results = self.results
        purified = bool(results.report.config.purifier)
        places = dict(zip((row.key for row in results.rows), results.places, strict=True))
        return [
            strips.strip(row, examples, purified, results.defended)
            for row in results.ladder
            if (examples := results.examples.get(places[row.key])) is not None and len(examples.label)
        ]

    @cached_property
    def roc(self) -> Scene | None:
        """The detector's ROC curves."""
        return roc(self.results)

    @cached_property
    def histograms(self) -> list[Scene]:
        """The detector's scores, by row."""
        return histograms(self.results)

    @cached_property
    def surface(self) -> Scene | None:
        """The slice of the loss."""
        found = self.results.surface
        return None if found is None else surface(found)

    @cached_property
    def doubts(self) -> tuple[str, ...]:
        """What the report's claims look like today: the victim's card, the versions that are here."""
        return find_doubts(self.results.run.report)

    @property
    def scenes(self) -> list[Scene]:
        """Every figure, for the files."""
        single = [
            scene for scene in (self.ladder, self.passes, self.progress, self.roc, self.surface) if scene is not None
        ]
        return [*single, *self.curves, *self.distances, *map(strips.scene, self.strips), *self.histograms]

    @property
    def detector_rows(self) -> list[Row]:
        """The rows that the detector's table lists."""
        listed = (self.results.report.detector or {}).get("rows", {})
        return [row for row in self.results.ladder if row.key in listed or row.success_at_fpr]

    @property
    def calibrated(self) -> str:
        """How the detector's threshold was set, in words."""
        return calibration_in_words((self.results.report.detector or {}).get("calibration"))

    @property
    def scored(self) -> bool:
        """Whether there are scores to draw."""
        return bool(scored_rows(self.results))

    @property
    def arms(self) -> dict[str, str]:
        """The arms beside the undefended and the defended one, with their titles."""
        names = dict.fromkeys(name for row in self.results.rows for name in row.arms)
        return {name: ARM_TITLES.get(name, name) for name in names}

    @property
    def sentence(self) -> str:
        """What the headline means, in plain words."""
        worst, results = self.results.report.worst_case, self.results
        if worst is None:
            return "A worst case needs two rows with images in common, one of them of an attacker; this run has none."
        right, bare = (round(share * worst.n) for share in (worst.accuracy, worst.undefended))
        accepted = " and accepted" if results.report.config.detector else ""
        without = f" (without the defence, {bare})" if results.defended else ""
        return (
            f"Of {worst.n} test images, {right} are still classified correctly{accepted} whatever these attackers "
            f"tried{without}; a stronger attacker can only leave fewer."
        )

    @property
    def rerun(self) -> str:
        """The command that makes the run again, or who does."""
        if given := self.results.report.given:
            return f"# by the program that gave its {' and '.join(given)}: no command finds objects. Its settings:"
        return say_command("run", "--config", self.results.folder / "config.toml")


def write_page(paths: Sequence[Path], out: Path | None = None) -> Written:
    """Write the page of one run or several, and the figures of each into its folder's `figures`.

    Where a run's folder may only be read, its figures go beside the page, into PAGE-figures.

    Args:
        paths: run folders, or folders of several arms.
        out: the page; by default report.html in the run's folder, or defend-report.html here for several.

    Raises:
        ConfigError: runs that judged different images, one given twice, or an `out` that cannot be.
        DataError: no run folder, or a damaged one.
        WriteError: a file cannot be written; what was written before it is there.
    """
    folders = run_folders(paths)
    page = out or (folders[0] / ONE if len(folders) == 1 else SEVERAL)
    if out is not None:
        check_page(out, "--out", ONE)
    sections, compared, places = _read(folders)
    if out is None and not os.access(page.parent, os.W_OK):
        raise ConfigError(f"{str(page.parent)!r} cannot be written to: name a page elsewhere, --out report.html")
    write_text(page, render(sections, compared, places), "page")
    figures = [file for section in sections for file in _draw(section.scenes, _place_figures(section, page))]
    if compared:
        chart = board(places, f"{page.stem}-leaderboard")
        figures += [] if chart is None else paper.write(chart, page.parent)
    several = len(sections) > 1
    doubts = [f"{each.label}: {doubt}" if several else doubt for each in sections for doubt in each.doubts]
    return Written(page, tuple(figures), tuple(doubts))


def render_page(folder: Path) -> str:
    """Return the page of one run, and write nothing.

    Raises:
        DataError: no run folder, or a damaged one.
    """
    return render(*_read([folder]))


def _read(folders: Sequence[Path]) -> tuple[list[Section], Comparison | None, Sequence[Place]]:
    """Read what a page shows: each run, how they compare, and in which order they stand."""
    results = [read_results(folder) for folder in folders]
    compared = compare([each.run for each in results]) if len(results) > 1 else None
    labels = compared.labels if compared else (results[0].run.label,)
    sections = [
        Section(each, place, label) for place, (each, label) in enumerate(zip(results, labels, strict=True), start=1)
    ]
    return sections, compared, leaderboard(results, compared) if compared else []


def _place_figures(section: Section, page: Path) -> Path:
    """Return where a run's figures go: into its folder, or beside the page where that may only be read."""
    results = section.results.folder
    folder = place_under(results, FIGURES, f"run folder {str(results)!r}")
    if os.access(folder if folder.exists() else folder.parent, os.W_OK):
        return folder
    return page.parent / f"{page.stem}-{FIGURES}{f'-{section.place}' if section.place > 1 else ''}"


def _draw(scenes: Sequence[Scene], folder: Path) -> list[Path]:
    make_folder(folder)
    taken: set[str] = set()
    named = [attrs.evolve(scene, name=number_twin(scene.name, taken)) for scene in scenes]
    return [path for scene in named for path in paper.write(scene, folder)]


def render(sections: Sequence[Section], compared: Comparison | None, places: Sequence[Place]) -> str:
    """Return the page's HTML: `sections` in their order, below the leaderboard where there are several."""
    dataset = sections[0].results.report.dataset
    title = sections[0].results.title if compared is None else f"{len(sections)} runs on {dataset.name}"
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            title=title,
            sections=sections,
            compared=compared,
            places=places,
            light=LIGHT,
            dark=DARK,
            version=__version__,
            board=_embed(board(places, "leaderboard")),
            narrow_board=_embed(board(places, "leaderboard", narrow=True)),
        )
    )


def _embed(scene: Scene | None) -> Markup | None:
    return None if scene is None else to_svg(scene)


def _environment() -> jinja2.Environment:
    made = environment()
    made.filters.update(
        rate=lambda text: f"{100 * float(text):g}\N{NO-BREAK SPACE}%",
        p=lambda p: "<0.001" if p < 0.001 else f"{p:.3f}",
        short=lambda value: NOTHING if value is None else f"{value:.4g}",
        png=png_uri,
        named=name_row,
        certified_in_words=certified_in_words,
        distances_in_words=distances_in_words,
        sources_in_words=sources_in_words,
        undercut_in_words=undercut_in_words,
        chance_in_words=chance_in_words,
        spark=spark,
        spent=spent,
        origin=lambda weights: describe(weights) or NOTHING,
        knows_the_defence=knows_the_defence,
        numbers=_numbers,
        by_threat=lambda rows: [list(found) for _, found in itertools.groupby(rows, lambda row: row.threat)],
    )
    # the template numbers figures and tables as it comes to them, as not every run has all of them
    counters = {kind: itertools.count(1) for kind in ("figure", "table")}
    made.globals.update(
        badges=BADGES,
        basis=basis,
        more_steps=more_steps,
        threats=THREATS,
        of_norms=of_norms,
        rates=("0.01", "0.05"),
        number=lambda kind: next(counters[kind]),
    )
    return made


def _numbers(numbers: Mapping[str, Any]) -> str:
    """Return a check's figures as text; a slice of the loss is drawn instead."""
    shown = {key: "drawn below" if key == "surface" else value for key, value in numbers.items()}
    short = json.loads(json.dumps(shown, default=str), parse_float=lambda text: float(f"{float(text):.6g}"))
    return json.dumps(short, indent=1, ensure_ascii=False)
