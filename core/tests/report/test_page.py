"""The report page: what stands in it, that it needs nothing else, and that its figures are the report's."""

import importlib.util
import io
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
from rich.console import Console

from defend.cli import main
from defend.errors import ConfigError, DataError
from defend.records.compare import compare
from defend.records.reading import read_results, run_folders
from defend.records.run import Examples, Surface, row_name
from defend.report import terminal
from defend.report.figures import strips
from defend.report.figures.board import board
from defend.report.figures.curves import curves
from defend.report.figures.detector import roc
from defend.report.figures.distances import distances
from defend.report.figures.ladder import ladder
from defend.report.figures.passes import passes
from defend.report.figures.scene import DARK, LIGHT, SERIES, Picture, Shape, Text, fit_text, round_ticks
from defend.report.figures.surface import surface
from defend.report.figures.svg import to_svg
from defend.report.leaderboard import leaderboard
from defend.report.page import Section, render, write_page
from defend.report.text import chance_in_words, spent
from defend.util.metrics import auroc
from defend.values.report import LeastRow

spec = importlib.util.spec_from_file_location("made_up_run", Path(__file__).parents[1] / "made_up_run.py")
made_up_run = importlib.util.module_from_spec(spec)
spec.loader.exec_module(made_up_run)

DASH, TIMES, MINUS = "\N{EN DASH}", "\N{MULTIPLICATION SIGN}", "\N{MINUS SIGN}"
VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Checks that tags close in order; collects texts, attributes and table cells."""

    def __init__(self, html):
        super().__init__()
        self.open, self.text, self.seen, self.headings, self.rows = [], [], [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open or "svg" in self.open:
            return
        self.text.append(data)
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.seen if name == tag]

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


def page_of(*folders):
    results = [read_results(folder) for folder in folders]
    compared = compare([each.run for each in results]) if len(results) > 1 else None
    sections = [Section(each, place, each.run.label) for place, each in enumerate(results, start=1)]
    html = render(sections, compared, leaderboard(results, compared) if compared else [])
    return html, Page(html)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def full(runs):
    return made_up_run.write(runs / "full")


@pytest.fixture(scope="module")
def old(runs):
    return made_up_run.write(runs / "old", parts=False)


# The page of one run


def test_every_section_is_there_in_order(full):
    _, page = page_of(full)
    assert page.headings == [
        "puvae + puvae + resnet18 on digits",
        "What each attacker leaves",
        "What chance is worth",
        "Accuracy against the budget",
        "Single images",
        "The detector",
        "Checks of the evaluation",
        "The loss around the images",
        "Cost",
        "To run it again",
    ]


def test_the_page_needs_nothing_else(full):
    html, page = page_of(full)
    for tag, attributes in page.seen:
        assert tag not in ("script", "iframe", "object", "base")
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            assert re.match(r"data:|#", attributes.get(name, "#")), attributes[name]
    assert "url(" not in html and "@import" not in html
    assert page.all("html") == [{"lang": "en"}]


def test_names_and_numbers_for_every_reader(full):
    _, page = page_of(full)
    ids = [attributes["id"] for _, attributes in page.seen if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {
        attributes["aria-labelledby"]
        for attributes in page.all("section")
        if "id" not in attributes and "aria-labelledby" in attributes
    } <= set(ids)
    assert all(len(attributes["alt"]) > 10 for attributes in page.all("img"))
    assert all(len(attributes["aria-label"]) > 20 for attributes in page.all("svg"))
    # what has links is no image to a screen reader, which would not read them
    assert {attributes["role"] for attributes in page.all("svg")} == {"img", "group"}
    assert {attributes["href"][1:] for attributes in page.all("a") if "href" in attributes} <= set(ids)
    for kind, tag in (("Figure", "figcaption"), ("Table", "caption")):
        numbers = [int(number) for number in re.findall(rf"{kind} (\d+)\.", page.words)]
        assert numbers == list(range(1, len(page.all(tag)) + 1)), kind
    assert len(page.all("figure")) == len(page.all("figcaption"))


def test_headline_and_table_are_the_reports(full):
    report = json.loads((full / "report.json").read_text())
    _, page = page_of(full)
    worst = report["worst_case"]
    low, high = (f"{100 * end:.1f}" for end in worst["ci95"])
    said = f"{100 * worst['accuracy']:.1f} % worst-case accuracy, 95 % interval [{low}, {high}], n = {worst['n']}, "
    said += f"{len(worst['over'])} rows, up to {worst['steps']} steps, {worst['gradients']:,} looks an image"
    said = said if not worst["rising"] else f"≤ {said}"
    assert said + f"; {worst['weakest']} alone leaves least" in page.words.replace("\xa0", " ")
    alone = "The attacks of one norm alone leave: L-inf 62.5 % [50.0, 75.0]; L2 87.5 % [75.0, 100.0]."
    assert alone in " ".join(page.words.split())
    right = round(worst["accuracy"] * worst["n"])
    assert f"Of {worst['n']} test images, {right} are still classified correctly and accepted" in page.words
    table = [row for row in page.rows if len(row) == 15][1:]
    assert len(table) == len(report["rows"])
    for row in report["rows"]:
        cells = [
            "clean" if row["attack"] == "none" else row["attack"],
            "" if row["threat"] == "none" else row["threat"],
        ]
        cells[0] += "" if row["headline"] else "\N{NO-BREAK SPACE}†"
        found = [line for line in table if line[:3] == [*cells, row["variant"]] and line[3].startswith(_eps(row))]
        assert len(found) == 1, row
        arm = row["defended"]
        shown = (f"{100 * share:.1f}" for share in (arm["accuracy"], arm["accuracy_with_credit"], arm["rejected"]))
        assert [cell.partition("[")[0] for cell in found[0][8:11]] == list(shown)
        assert (found[0][7] == DASH) == (row["threat"] in ("query", "bpda", "adaptive", "detector-aware"))
        assert found[0][11].startswith(f"{100 * row['passes']['worst']['accuracy']:.1f}")
        assert bool(found[0][14]) == (row["threat"] == "query")


def _eps(row):
    return "" if row["threat"] == "none" else DASH if row["eps"] is None else f"{row['eps']:.4g}"


def test_a_random_defence_is_drawn_over_its_passes_beside_the_clean_images(full):
    results = read_results(full)
    rows = [row for row in results.rows if row.passes]
    html, _ = page_of(full)
    assert html.count('width="92"') == len(rows) > 1, "a curve as large as a word in every row"
    chart = passes(results)
    assert chart is not None and "clean, right in every pass" in chart.says and "of 10" in chart.says
    asked_once = attrs.evolve(results, report=attrs.evolve(results.report, rows=(), worst_case=None), rows=())
    assert passes(asked_once) is None


def test_what_the_draws_are_worth_is_said_in_one_sentence():
    share = {"accuracy": 0.4, "ci95": (0.3, 0.5)}
    chance = {"attack": "pgd", "draws": 20, "averaged": share, "one_draw": {**share, "accuracy": 0.55}}
    chance |= {"bought": {"difference": 0.15, "ci95": (0.05, 0.25)}, "known_draws": {**share, "accuracy": 0.1}}
    assert chance_in_words(chance) == (
        "pgd averaged over 20 draws leaves 40.0 %, with one draw a step and as many gradients 55.0 %: averaging bought "
        "+15.0 points [5.0, 25.0]; who knows the draws leaves 10.0 %"
    )
    assert spent({"draws": 20, "steps": 1000, "passes": 10}) == "20 draws x 1,000 steps x 10 passes"
    assert spent({"draws": 1, "steps": 1, "passes": 1}) == "1 draw x 1 step x 1 pass"


def test_a_failed_check_blocks_the_headline(runs):
    folder = made_up_run.write(runs / "failed", checks=("pass", "fail"))
    html, page = page_of(folder)
    worst = json.loads((folder / "report.json").read_text())["worst_case"]
    assert "Not to be trusted: attack order: check 2 says why it is fail, with 2 of 40 images" in page.words
    assert f"Blocked figure: worst-case accuracy {100 * worst['accuracy']:.1f} %" in page.words
    assert 'class="figure"' not in html and "<s>" in html
    assert "still classified correctly" not in page.words
    assert html.index('class="banner"') < html.index("<s>") < html.index("<svg")


def test_what_was_recorded_of_checks_detector_and_rerun(full):
    _, page = page_of(full)
    assert "✓ pass" in page.words and "! warn" in page.words and f"{DASH} skip" in page.words
    assert '"pgd/adaptive": [ 0.3, 0.25 ]' in page.words and "drawn below" in page.words
    assert "was set here on 400 held-out clean images for at most 1 %; it rejects 0.5 % of these" in page.words
    assert [row[-2:] for row in page.rows if row[0] == "pgd_joint/detector-aware"] == [["60.0", "45.0"]]
    assert f"defend run --config {full}/config.toml" in page.words
    assert 'victim = "resnet18" purifier = "puvae" detector = "puvae"' in page.words
    assert "cd" * 32 in page.words and "defend-core 0.0" in page.words


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"


def test_hostile_names_stay_text(runs):
    folder = made_up_run.write(runs / "hostile", name=HOSTILE.replace('"', ""))
    for name in ("report.json", "records.csv"):
        path = folder / name
        hostile = json.dumps(HOSTILE)[1:-1] if name.endswith("json") else HOSTILE.replace('"', '""')
        text = path.read_text()
        for old in ("resnet20 behind dae", "says why it is warn"):
            text = text.replace(f"{old},", f'"{hostile}",') if name.endswith("csv") else text.replace(old, hostile)
        path.write_text(text)
    with (folder / "config.toml").open("a") as file:
        file.write(f"# {HOSTILE}\n")
    html, page = page_of(folder)
    assert page.words.count(HOSTILE) >= 4
    assert "<script" not in html and "<img src=x" not in html
    assert not [attributes for _, attributes in page.seen if "onerror" in attributes]
    scene = ladder(read_results(folder))
    root = ET.fromstring(to_svg(scene))
    assert root.attrib["aria-label"] == scene.says and HOSTILE in scene.says


def test_older_runs_leave_out_what_they_did_not_record(old):
    _, page = page_of(old)
    assert "The loss around the images" not in page.headings
    for line in (
        "This run kept no examples.",
        "No attack of this run was made at more than one eps.",
        "No attack of this run knew the detector",
        "left out: no attack fits it",
    ):
        assert line in page.words
    assert "pgd/adaptive alone leaves least" in page.words  # found by the page: the run did not name it
    assert page.all("img") == []


def test_runs_without_a_defence_or_a_detector(runs):
    folder = made_up_run.write(runs / "bare", detector=False)
    report = json.loads((folder / "report.json").read_text())
    _, page = page_of(folder)
    assert "The detector" not in page.headings and "rejected" not in page.rows[0]
    del report["config"]["purifier"]
    (folder / "report.json").write_text(json.dumps(report))
    with pytest.warns(UserWarning, match=r"config\.toml' is not the configuration that the run had"):
        _, page = page_of(folder)
    assert page.headings[0] == "resnet18, undefended, on digits"
    assert "worst-case accuracy of the undefended victim" in page.words and "defended" not in page.rows[0]


def test_the_same_run_gives_the_same_bytes(tmp_path):
    run = made_up_run.write(tmp_path / "run", threats=("bpda",))
    first = write_page([run], tmp_path / "one.html")
    before = {path: path.read_bytes() for path in first.figures}
    second = write_page([run], tmp_path / "two.html")
    assert first.page.read_bytes() == second.page.read_bytes()
    assert before == {path: path.read_bytes() for path in second.figures}
    assert {path.suffix for path in before} == {".png", ".svg"} and len(before) == 12
    for path, content in before.items():
        if path.suffix == ".png":
            assert content.startswith(b"\x89PNG")
        else:
            assert ET.fromstring(content).findall(".//{*}text")  # text is text
            assert b"<dc:date>" not in content


# Several runs


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"config": {"checks": "none"}}, "unchecked"),
        ({"partial": True}, "interrupted"),
        ({"rows": "harmless"}, "not comparable"),
    ],
)
def test_what_cannot_be_ranked_has_no_rank(tmp_path, change, said):
    folders = [made_up_run.write(tmp_path / name, name=name, better=0.1) for name in ("dae", "apudae")]
    results = [read_results(folder) for folder in folders]
    if "rows" in change:  # the second has another budget in all rows
        rows = tuple(attrs.evolve(row, key=attrs.evolve(row.key, eps=1.0)) for row in results[1].run.rows)
        changed = attrs.evolve(results[1], run=attrs.evolve(results[1].run, rows=rows))
    else:
        report = results[1].report
        config = attrs.evolve(report.config, **change.get("config", {}))
        raw = dict(results[1].run.report)
        raw |= {"config": {**raw["config"], **change.get("config", {})}, "partial": change.get("partial", False)}
        changed = attrs.evolve(
            results[1],
            report=attrs.evolve(report, config=config, partial=change.get("partial", False)),
            run=attrs.evolve(results[1].run, report=raw),
        )
    results[1] = changed
    places = leaderboard(results, compare([each.run for each in results]))
    assert {place.run: place.blocked for place in places}[1] == said
    ranks = {place.run: place.rank for place in places}
    assert ranks == ({0: None, 1: None} if said == "not comparable" else {0: 1, 1: None})
    assert (board(places, "figure") is None) == (said == "not comparable")


@pytest.mark.parametrize("why", ["interrupted", "unchecked", "blocked"])
def test_a_run_without_a_rank_takes_no_row_from_the_others(why, tmp_path):
    folders = [
        made_up_run.write(tmp_path / name, name=name, better=better) for name, better in (("dae", 0), ("apudae", 0.3))
    ]
    results = [read_results(folder) for folder in folders]
    alone = leaderboard(results, compare([each.run for each in results]))
    cut = read_results(made_up_run.write(tmp_path / "vaegan", name="vaegan"))
    report = {**cut.run.report, "partial": why == "interrupted"}
    cut = attrs.evolve(cut, run=attrs.evolve(cut.run, rows=cut.run.rows[:1], report=report))
    if why == "unchecked":
        cut = attrs.evolve(cut, report=attrs.evolve(cut.report, config=attrs.evolve(cut.report.config, checks="none")))
    if why == "blocked":
        failed = read_results(made_up_run.write(tmp_path / "blocked", name="vaegan", checks=("fail",)))
        cut = attrs.evolve(failed, run=attrs.evolve(failed.run, rows=failed.run.rows[:1]))
    every = [cut, *results]
    places = leaderboard(every, compare([each.run for each in every]))
    assert [(place.run, place.rank, place.blocked) for place in places] == [
        (2, 1, ""),
        (1, 2, ""),
        (0, None, why),
    ]
    assert [place.worst for place in places[:2]] == [place.worst for place in alone]
    assert places[1].difference.difference == alone[1].difference.difference and places[0].over == alone[0].over > 2


def test_a_worst_case_over_what_all_have_keeps_its_caveat(tmp_path):
    """The rows of the attacker who knew the defence may be those that another run lacks."""
    folders = [made_up_run.write(tmp_path / name, name=name) for name in ("dae", "apudae")]
    whole, other = (read_results(folder).run for folder in folders)
    poor = attrs.evolve(other, rows=tuple(row for row in other.rows if row.key.threat in ("none", "oblivious")))
    notes = compare([whole, poor]).notes
    assert f"{whole.label}: in the rows that all have, no attacker knew of the defence" in " ".join(notes)
    assert not any("rows that all have" in note for note in compare([whole, other]).notes)


EQUAL = (("dae", 0.3), ("apudae", 0.3), ("vaegan", 0))


def test_equal_figures_have_the_same_rank(tmp_path):
    folders = [made_up_run.write(tmp_path / name, name=name, better=better) for name, better in EQUAL]
    results = [read_results(folder) for folder in folders]
    places = leaderboard(results, compare([each.run for each in results]))
    assert [place.rank for place in places] == [1, 1, 3]


def test_the_leaderboard_ranks_and_tests(runs):
    arms = runs / "arms"
    weak = made_up_run.write(arms / "a", name="dae")
    strong = made_up_run.write(arms / "b", name="apudae", better=0.3)
    blocked = made_up_run.write(arms / "c", name="vaegan", better=0.4, checks=("fail",))
    assert run_folders([arms]) == [weak, strong, blocked]
    results = [read_results(folder) for folder in (weak, strong, blocked)]
    compared = compare([each.run for each in results])
    places = leaderboard(results, compared)
    assert [(place.run, place.rank) for place in places] == [(1, 1), (0, 2), (2, None)]
    assert places[0].difference is None
    (found,) = compare([each.run for each in results[:2]]).worst_case.differences
    turned = places[1].difference
    assert (turned.first, turned.second, turned.p_holm) == (1, 0, found.p_holm)
    assert turned.difference == -found.difference == places[1].worst.accuracy - places[0].worst.accuracy < 0
    assert turned.ci95 == (-found.ci95[1], -found.ci95[0])
    assert (turned.only_first, turned.only_second) == (found.only_second, found.only_first)

    _, page = page_of(weak, strong, blocked)
    assert page.headings[:2] == ["3 runs on digits", "Leaderboard"]
    assert [row[1].split()[0] for row in page.rows[1:4]] == ["apudae+apudae", "dae+dae", "vaegan+vaegan"]
    points = f"{100 * turned.difference:.1f}".replace("-", MINUS)
    assert page.rows[2][5].startswith(points)
    assert page.rows[2][6:] == [str(turned.only_second), str(turned.only_first), f"{turned.p_holm:.3f}"]
    assert [attributes["id"] for attributes in page.all("details") if "id" in attributes] == ["run1", "run2", "run3"]
    ids = [attributes["id"] for _, attributes in page.seen if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert page.words.count("To run it again") == 3


# Figures


def test_the_ladder_leaves_other_budgets_to_the_curves(full):
    results = read_results(full)
    scene = ladder(results)
    texts = [mark.text for mark in scene.marks if isinstance(mark, Text)]
    threats = [text for text in texts if text in {row.threat for row in results.rows}]
    assert list(dict.fromkeys(threats)) == [
        "noise",
        "transfer",
        "oblivious",
        "query",
        "bpda",
        "adaptive",
        "detector-aware",
    ]
    assert texts.count("pgd") == 2 and "cw (L2) †" in texts and "worst case" in texts
    # as in the table below it, a threat leads to what it means
    links = {mark.text: mark.link for mark in ladder(results, place=3).marks if isinstance(mark, Text) and mark.link}
    assert links == {threat: f"{threat}3" for threat in threats}
    assert 'href="#adaptive1"><text' in to_svg(curves(results)[0]) and 'role="group"' in to_svg(scene)
    (curve,) = curves(results)
    assert curve.name == "accuracy-against-eps-pgd"
    row = next(row for row in results.rows if row.key == "pgd/adaptive@0.05")
    assert f"{100 * row.defended.accuracy:.1f} at 0.05" in curve.says
    assert curve.says.startswith("Line chart of accuracy in percent against eps for pgd. undefended, oblivious: ")
    assert curve.says.count("at 0,") == curve.says.count("at 0.1") == 3  # undefended, and defended twice
    for narrow in (False, True):
        drawn = ladder(results, narrow)
        assert drawn.width <= (350 if narrow else 720)


def test_the_smallest_changes_are_drawn_as_accuracy_at_any_eps(full):
    results = read_results(full)
    assert distances(results) == []
    curve = {"eps": [0.0, 0.05, 0.1, 0.3], "accuracy": [0.75, 0.5, 0.5, 0.25], "ci95": [(0.3, 0.9)] * 4}
    far = {"median": 0.3, "found": 3, "images": [0.0, 0.05, 0.3, None], "curve": curve}
    cw = next(row for row in results.rows if row.attack == "cw")
    one = attrs.evolve(cw, attack="fmn", norm="linf", eps=0.1, headline=True, n=4, distances=far)
    changed = attrs.evolve(results, rows=tuple(one if row is cw else row for row in results.rows))
    (scene,) = distances(changed)
    assert scene.name == "accuracy-at-any-eps" and "median 0.3 in L-inf, found for 3 of 4" in scene.says
    texts = [mark.text for mark in scene.marks if isinstance(mark, Text)]
    assert "the run's eps, 0.1" in texts and "fmn, adaptive, n=4" in texts
    (upright,) = [mark for mark in scene.marks if isinstance(mark, Shape) and mark.stroke == "ink" and mark.width == 1]
    assert upright.points[0][0] == upright.points[1][0]
    page = Page(render([Section(changed)], None, []))
    assert (
        "Accuracy at any eps" in page.words
        and "fmn/adaptive median 0.3 in L-inf, found for 3 of 4; where none is found" in page.words
    )


def test_the_source_and_the_steps_that_leave_least_are_said(full):
    results = read_results(full)
    said = "Of other victims' images those of pgd/transfer:resnet20 leave least"
    assert said not in Page(render([Section(results)], None, [])).words
    worst = attrs.evolve(
        results.report.worst_case,
        by_threat={"transfer": "pgd/transfer:resnet20", "adaptive": "pgd/adaptive"},
    )
    told = attrs.evolve(results, report=attrs.evolve(results.report, worst_case=worst))
    assert said in Page(render([Section(told)], None, [])).words.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")


def test_a_share_near_the_end_is_not_said_to_be_there(full):
    results = read_results(full)
    report = attrs.evolve(
        results.report, worst_case=attrs.evolve(results.report.worst_case, accuracy=0.9996, undefended=0.0004)
    )
    console = Console(file=io.StringIO(), width=200)
    terminal.render(report, console)
    for text in (
        console.file.getvalue(),
        Page(render([Section(attrs.evolve(results, report=report))], None, [])).words,
    ):
        assert "99.96" in text and "0.04" in text


def test_a_row_that_leaves_less_of_more_images_stands_beside_the_worst_case(full):
    results = read_results(full)
    worst = attrs.evolve(
        results.report.worst_case,
        accuracy=0.68,
        weakest_accuracy=0.72,
        least_row=LeastRow("fgsm/oblivious", 0.63, (0.5, 0.75), 80),
    )
    report = attrs.evolve(results.report, worst_case=worst)
    told = attrs.evolve(results, report=report)
    words = Page(render([Section(told)], None, [])).words.replace("\xa0", " ")
    assert "68.0, ≤ 63.0 % worst-case accuracy" in words
    assert "≤ 63.0 % [50.0, 75.0], n=80: what fgsm/oblivious alone leaves of all its images." in words
    assert f"; {worst.weakest} alone leaves least, 72.0 % of these" in words
    bars = [mark.text for mark in ladder(told).marks if isinstance(mark, Text)]
    assert "68.0, ≤ 63.0" in bars
    console = Console(file=io.StringIO(), width=200)
    terminal.render(report, console)
    assert "68.0 %, ≤ 63.0 %  [" in console.file.getvalue()
    assert "\n≤ 63.0 % [50.0, 75.0], n=80: what fgsm/oblivious" in console.file.getvalue()
    older = attrs.evolve(results, report=attrs.evolve(report, worst_case=attrs.evolve(worst, weakest_accuracy=None)))
    least = f"{100 * older.least.defended.accuracy:.1f} % of its {older.least.n}"
    assert f"alone leaves least, {least}" in Page(render([Section(older)], None, [])).words.replace("\xa0", " ")


def test_bars_are_as_long_as_the_figures(full):
    results = read_results(full)
    scene = ladder(results)
    solid = [mark for mark in scene.marks if isinstance(mark, Shape) and mark.closed and mark.fill == "defended"][1:]
    left, right = (
        min(mark.points[0][0] for mark in solid),
        next(mark.x for mark in scene.marks if isinstance(mark, Text) and mark.text == "100"),
    )
    lengths = [(mark.points[1][0] - left) / (right - left) for mark in solid]
    expected = [row.defended.accuracy for row in results.ladder] + [results.report.worst_case.accuracy]
    assert lengths == pytest.approx(expected, abs=1e-6)


def test_the_roc_is_that_of_the_scores(full):
    results = read_results(full)
    row = next(row for row in results.rows if row.key == "pgd/adaptive")
    alone = attrs.evolve(results, rows=(results.rows[0], row))
    scene = roc(alone)
    (line,) = [mark for mark in scene.marks if isinstance(mark, Shape) and mark.stroke == "s3" and len(mark.points) > 2]
    across, down = np.array(line.points).T
    area = np.trapezoid(down.max() - down, across) / (np.ptp(across) * np.ptp(down))
    clean, attacked = (torch.tensor(results.scores[row_name(each)]) for each in alone.rows)
    assert area == pytest.approx(auroc(clean, attacked), abs=1e-9)


def test_the_surface_rises_upwards_along_the_gradient():
    axis = np.linspace(-1, 1, 5)
    loss = np.repeat(axis[:, None], 5, axis=1)
    loss[0, 0] = np.nan
    (picture, _) = [mark for mark in surface(Surface(axis, loss)).marks if isinstance(mark, Picture)]
    light = picture.pixels.sum(axis=2).astype(int)
    assert (light[0] > light[3]).all() and light[0, 0] == light[0, 4]
    assert picture.pixels[4, 0].tolist() == [200, 200, 200]  # no number


def examples(side=8, held=(False, False, True, True, True, True)):
    count = len(held)
    clean = np.full((count, side, side, 3), 0.5, np.float32)
    attacked = clean + np.float32(0.04)
    label = np.arange(count)
    return Examples(
        clean,
        attacked,
        clean + np.float32(0.01),
        label,
        label + 1,
        np.where(held, label, 9),
        np.array([True, True, True, True, True, True]),
        label * 10,
    )


def test_strips_enlarge_differences_and_say_by_how_much(full):
    row = read_results(full).rows[1]
    strip = strips.strip(row, examples(), purified=True)
    assert strip.factor == 10 and not strip.reduced and strip.held == (False, False, True, True, True, True)
    names = [band.name for band in strip.bands]
    assert names == ["clean", "attacked", "purified", f"attack {TIMES} 10", f"left over {TIMES} 10"]
    assert strip.bands[3].images[0][0, 0].tolist() == [230, 230, 230]  # 0.5 + 10 * 0.04
    assert strip.bands[4].images[0][0, 0].tolist() == [153, 153, 153]
    assert [answer.text for answer in strip.bands[2].answers] == ["✗ 9", "✗ 9", "✓ 2", "✓ 3", "✓ 4", "✓ 5"]
    assert {answer.role for answer in strip.bands[1].answers} == {"wrong"}


def test_large_images_are_reduced_and_fewer(full):
    row = read_results(full).rows[1]
    strip = strips.strip(row, examples(side=130), purified=False)
    assert strip.reduced and strip.held == (False, False, True, True) and strip.image == (0, 10, 20, 30)
    assert strip.bands[0].images[0].shape == (43, 43, 3)
    assert [band.name for band in strip.bands] == ["clean", "attacked", "to the victim", f"attack {TIMES} 10"]


def test_texts_keep_to_their_room_and_ticks_are_round():
    assert fit_text("short", 11, 100) == "short"
    cut = fit_text("a" * 100, 11, 100)
    assert cut.endswith("…") and 10 < len(cut) < 18
    assert list(round_ticks(0, 0.1).values()) == ["0", "0.02", "0.04", "0.06", "0.08", "0.1"]
    assert list(round_ticks(-1, 1, 4).values()) == [f"{MINUS}1", f"{MINUS}0.5", "0", "0.5", "1"]
    assert round_ticks(2, 2) == {2: "2"}


def luminance(colour):
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [each / 12.92 if each <= 0.03928 else ((each + 0.055) / 1.055) ** 2.4 for each in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_contrast_is_enough(palette):
    """WCAG 2: 4.5 for text, 3 for lines and bars."""
    for role, least in {
        "ink": 4.5,
        "muted": 4.5,
        "right": 4.5,
        "wrong": 4.5,
        "aside": 4.5,
        "bare": 3,
        "defended": 3,
        **dict.fromkeys(SERIES, 3),
    }.items():
        pair = sorted([luminance(palette[role]), luminance(palette["paper"])])
        assert (pair[1] + 0.05) / (pair[0] + 0.05) >= least, role


# The command


def command(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    return stopped.value.code, *capsys.readouterr()


def test_the_command_lists_what_it_wrote(tmp_path, monkeypatch, capsys):
    run = made_up_run.write(tmp_path / "run", threats=("adaptive",))
    code, out, _ = command(capsys, "report", run, "--json")
    files = [Path(file) for file in json.loads(out)]
    assert code == 0 and files[0] == run / "report.html" and all(file.is_file() for file in files)
    names = {file.name for file in files}
    assert {
        "ladder.png",
        "ladder.svg",
        "roc.png",
        "loss-surface.svg",
        "accuracy-against-eps-pgd.png",
        "examples-pgd-adaptive.svg",
        "scores-cw-adaptive.png",
    } <= names
    assert sorted(path.name for path in run.glob("figures/*")) == sorted(names - {"report.html"})
    assert files[0].stat().st_size < 200_000

    monkeypatch.chdir(tmp_path)
    options = {"parts": False, "detector": False, "threats": ("adaptive",)}
    others = [made_up_run.write(tmp_path / "arms" / name, name=name, **options) for name in ("dae", "apudae")]
    code, out, _ = command(capsys, "report", others[0].parent)
    assert code == 0 and out.startswith("Written to defend-report.html")
    assert {path.name for path in tmp_path.glob("defend-report*")} == {
        "defend-report.html",
        "defend-report-leaderboard.png",
        "defend-report-leaderboard.svg",
    }


def test_what_is_refused(full, tmp_path, capsys):
    code, _, error = command(capsys, "report", full.with_name("ful"))
    assert code == 2 and error.count("\n") == 1 and "does not exist" in error and str(full) in error
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no report\.json"):
        write_page([tmp_path / "empty"])
    with pytest.raises(ConfigError, match="was given twice"):
        write_page([full, full])
    with pytest.raises(ConfigError, match="does not exist; name a file"):
        write_page([full], tmp_path / "no" / "page.html")
    with pytest.raises(ConfigError, match="is a folder; name a file"):
        write_page([full], tmp_path)
    with pytest.raises(ConfigError, match=r"--out '.*run.pdf': a page is HTML, which a browser prints"):
        write_page([full], tmp_path / "run.pdf")


def damaged(folder, name, change):
    run = made_up_run.write(folder / name)
    change(run)
    return run


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("examples.safetensors", lambda run: (run / "examples.safetensors").write_bytes(b"no tensors")),
        (
            "report.json",
            lambda run: (run / "report.json").write_text(
                (run / "report.json").read_text().replace('"checks": [', '"checks": [7, ')
            ),
        ),
        (
            "records.csv",
            lambda run: (run / "records.csv").write_text(
                (run / "records.csv").read_text().replace("score", "scores", 1)
            ),
        ),
    ],
)
def test_damaged_runs_are_named(tmp_path, file, change):
    run = damaged(tmp_path, "run", change)
    with pytest.raises(DataError, match=re.escape(f"{str(run / file)!r} is damaged")):
        read_results(run)


def test_reading_a_run_takes_no_torch():
    code = "import sys, defend.report.page; assert not {'torch', 'sklearn', 'scipy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
