"""Published tables as data: what a table refuses, how ours stands to the paper's, what is kept, and how it is read."""

import json
import re
import sys
from html.parser import HTMLParser

import attrs
import pytest
from rich.console import Console

from defend.errors import ConfigError, DataError
from defend.report import reproduction
from defend.report.figures.dumbbell import dumbbell
from defend.report.reproduction_page import page_name, render_page, write_page
from defend.reproduce.results import AdaptiveResult, Cell, TableResult, find_kept, restate, stamp, standing
from defend.stages import Paper
from defend.tables import Adaptive, Reason, Table, TableArm, TableAttack, choose_tables, grid
from defend.values.report import LeastRow

ARMS = (
    TableArm(name="None", reference=True),
    TableArm(name="Soft", purifier="soften"),
    TableArm(name="Rival", absent="another paper's defence"),
)
ROWS = {"Clean": (95.0, 90.0, 80.0), "PGD": (None, 60.0, 70.0)}
GUESS = "a weaker victim"
ATTACKS = (TableAttack(name="Clean"), TableAttack(name="PGD", attack="pgd"), TableAttack(name="CW", attack="cw"))


def table(**changes):
    values = {
        "name": "toys/table-1",
        "caption": "digits, eps 0.1",
        "paper": Paper("Toys", "A. Author", 2020, "x.org/1"),
        "dataset": "digits",
        "victim": "resnet18",
        "eps": 0.1,
        "arms": ARMS,
        "attacks": ATTACKS,
        "cells": {**grid(ARMS, ROWS), ("CW", "Soft"): None},
        "knowledge": "oblivious",
        **changes,
    }
    return Table(**values)


# What a table refuses


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": "table-1"}, "name='table-1' is not PLUGIN/TABLE"),
        ({"name": "Toys/Table 1"}, "is not PLUGIN/TABLE"),
        ({"arms": (*ARMS, TableArm(name="Soft"))}, "two headings are called 'Soft'"),
        ({"attacks": (*ATTACKS, TableAttack(name="CW"))}, "two headings are called 'CW'"),
        ({"cells": {("Clean", "Sotf"): 1.0}}, "('Clean', 'Sotf') has no such attack or arm"),
        ({"cells": {("Clear", "Soft"): 1.0}}, "('Clear', 'Soft') has no such attack or arm"),
        ({"misses": {"PGD / Sotf": "why"}}, "'PGD / Sotf' is about no cell, arm or attack"),
        ({"adaptive": Adaptive(fewer_draws={"Sotf": 4})}, "fewer draws in 'Sotf': did you mean 'Soft'?"),
        (
            {"attacks": (TableAttack(name="Clean"), TableAttack(name="PGD", threat="oblivous"), ATTACKS[2])},
            "threat 'oblivous': did you mean 'oblivious'?",
        ),
        ({"arms": (*ARMS, TableArm(name="T", threat="transfers"))}, "threat 'transfers': did you mean 'transfer'?"),
        ({"arms": (*ARMS, TableArm(name="Best", best_of=("Soft", "Hard")))}, "'Best' is the best of 'Hard'"),
        (
            {"arms": (*ARMS, TableArm(name="A", best_of=("Soft",)), TableArm(name="B", best_of=("A",)))},
            "'B' is the best of 'A', itself a best of others",
        ),
        ({"arms": (*ARMS, TableArm(name="T", judged="tuned"))}, "'T' has judged='tuned'"),
        ({"arms": (*ARMS, TableArm(name="T", finetune="f", judged="tund"))}, "did you mean 'tuned'?"),
    ],
)
def test_a_table_refuses_what_contradicts_itself(changes, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        table(**changes)


def test_rows_as_the_paper_prints_them():
    assert grid(ARMS, ROWS) == {
        ("Clean", "None"): 95.0,
        ("Clean", "Soft"): 90.0,
        ("Clean", "Rival"): 80.0,
        ("PGD", "Soft"): 60.0,
        ("PGD", "Rival"): 70.0,
    }
    with pytest.raises(ValueError, match="zip"):
        grid(ARMS, {"Clean": (95.0, 90.0)})


def test_tables_are_chosen_by_their_name_or_their_plugins():
    every = [table(name="toys/table-2"), table(), table(name="others/table-1")]
    assert [one.name for one in choose_tables(every, ["toys"])] == ["toys/table-1", "toys/table-2"]
    assert [one.name for one in choose_tables(every, ["toys/table-2", "others"])] == ["others/table-1", "toys/table-2"]
    assert [one.name for one in choose_tables(every, ["toys", "toys/table-1"])] == ["toys/table-1", "toys/table-2"]
    with pytest.raises(ConfigError, match=r"^unknown table 'toys/tabel-1': did you mean 'toys/table-1'\?"):
        choose_tables(every, ["toys/tabel-1"])
    with pytest.raises(ConfigError, match="none is installed"):
        choose_tables([], ["toys"])


def test_the_nearest_reason_counts():
    reasons = {"PGD": "of the attack", "Soft": "of the arm", "Clean / Soft": "of the cell"}
    one = table(misses=reasons)
    assert one.miss("Clean", "Soft") == Reason("of the cell")
    assert one.miss("PGD", "Soft") == Reason("of the arm")
    assert one.miss("PGD", "Rival") == Reason("of the attack")
    assert one.miss("Clean", "None") is None


# How ours stands to the paper's


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        (0.90, "same"),
        (0.93, "same"),
        (0.87, "same"),
        (0.93004, "same"),
        (0.9301, "better"),
        (0.8699, "off"),
        (1.0, "better"),
        (0.0, "off"),
        (None, "open"),
    ],
)
def test_three_points_are_the_same(ours, expected):
    assert standing(table(), "Clean", "Soft", ours) == (expected, "")


def test_a_reason_explains_what_is_worse_and_goes_with_what_is_better():
    one = table(misses={"Soft": Reason("trained for less long", measured=True)})
    assert standing(one, "Clean", "Soft", 0.5) == ("explained", "trained for less long")
    assert standing(one, "Clean", "Soft", 0.99) == ("better", "trained for less long")
    assert standing(one, "Clean", "Soft", 0.91) == ("same", "")
    assert standing(one, "CW", "Soft", 0.5)[0] == "beside" and standing(one, "CW", "Soft", None)[0] == "unmeasured"


def test_more_under_attack_is_no_merit_and_takes_a_reason_of_its_own():
    """A weaker or a broken attack leaves more too; why a whole row or column leaves less does not explain it."""
    assert standing(table(), "PGD", "Soft", 1.0) == ("off", "")
    assert standing(table(misses={"Soft": Reason("trained for less long", True)}), "PGD", "Soft", 1.0) == ("off", "")
    own = table(misses={"Soft": "for less", "PGD / Soft": Reason("fewer steps", measured=True)})
    assert standing(own, "PGD", "Soft", 1.0) == ("explained", "fewer steps")


def test_of_an_arm_without_a_defence_more_accurate_is_no_merit():
    assert standing(table(), "Clean", "None", 0.99) == ("off", "")
    assert standing(table(misses={"None": Reason("a stronger victim", True)}), "Clean", "None", 0.99)[0] == "explained"


def test_a_reason_that_declares_no_measurement_is_a_guess():
    for why in ("an idea", Reason("an idea")):
        assert standing(table(misses={"Soft": why}), "Clean", "Soft", 0.5) == ("guessed", "an idea")


def test_a_baseline_that_beats_the_paper_s_is_no_merit_of_the_defence():
    arms = (*ARMS[:2], attrs.evolve(ARMS[2], baseline=True))
    one = table(arms=arms, misses={"Rival": "trained for longer"})
    assert standing(one, "Clean", "Rival", 0.9) == ("stronger", "trained for longer")
    assert standing(one, "Clean", "Rival", 0.82)[0] == "same" and standing(one, "Clean", "Rival", 0.5)[0] == "guessed"


def test_a_kept_result_stands_to_its_table_as_it_is_now():
    before = measured()
    now = table(
        misses={"Soft": Reason("found since", measured=True)},
        cells={("PGD", "Soft"): 60.0, ("Clean", "Soft"): 70.0, ("CW", "None"): 3.0, ("PGD", "Rival"): 70.0},
    )
    after = restate(now, before)
    assert [(cell.attack, cell.arm) for cell in after.cells] == list(now.cells)
    assert [(cell.standing, cell.why) for cell in after.cells] == [
        ("explained", "found since"),
        ("better", "found since"),
        ("open", "it is still to be run"),
        ("open", "another paper's defence"),
    ]
    for cell in after.cells[:2]:
        kept = before.cell(cell.attack, cell.arm)
        assert (cell.ours, cell.ci95, cell.n, cell.details) == (kept.ours, kept.ci95, kept.n, kept.details)
    assert restate(table(misses={"None": GUESS}), before) == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"eps": 0.3}, "it was measured at eps 0.1, and the table has 0.3 now"),
        (
            {"attacks": (ATTACKS[0], TableAttack(name="PGD", attack="pgd", options={"steps": 7}), ATTACKS[2])},
            "it was measured with 5 steps, and the table has 7 now",
        ),
    ],
)
def test_a_cell_that_its_table_attacks_otherwise_now_is_open(change, said):
    before = measured()
    details = {"eps": 0.1, "steps": 5}
    before = attrs.evolve(
        before,
        cells=tuple(attrs.evolve(cell, details=details if cell.attack == "PGD" else {}) for cell in before.cells),
    )
    assert restate(table(), before).cell("PGD", "Soft").ours is not None
    after = restate(table(**change), before)
    cell = after.cell("PGD", "Soft")
    assert (cell.ours, cell.standing, cell.why) == (None, "open", said)
    assert after.cell("Clean", "Soft").ours is not None


STEPS = {"options": {"steps": 5}}


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"caption": "other words", "misses": {"PGD": "a reason"}, "knowledge": "adaptive"}, {"PGD", "Clean"}),
        ({"attacks": (ATTACKS[0], TableAttack(name="PGD", attack="pgd", n=50), ATTACKS[2])}, {"PGD", "Clean"}),
        ({"eps": 0.3}, {"Clean"}),
        ({"attacks": (ATTACKS[0], TableAttack(name="PGD", attack="pgd", threat="adaptive"), ATTACKS[2])}, {"Clean"}),
        ({"attacks": (ATTACKS[0], TableAttack(name="PGD", attack="pgd", **STEPS), ATTACKS[2])}, {"Clean"}),
        ({"victim": "resnet20"}, set()),
        ({"dataset": "mnist"}, set()),
        ({"arms": (ARMS[0], attrs.evolve(ARMS[1], weights={"purifier": "+long"}), ARMS[2])}, set()),
        ({"arms": (ARMS[0], attrs.evolve(ARMS[1], options={"soften": {"by": 2}}), ARMS[2])}, set()),
        ({"arms": (ARMS[0], attrs.evolve(ARMS[1], source="resnet20"), ARMS[2])}, set()),
    ],
)
def test_what_a_cell_was_measured_with_is_kept_and_a_table_that_has_it_otherwise_now_opens_it(change, same):
    """Weights, options and sources of an arm decide as much as an attack's budget and steps."""
    before, now = table(), table(**change)
    kept = tuple(
        attrs.evolve(cell, details={"declared": before.declare(cell.attack, cell.arm)}) for cell in measured().cells
    )
    after = restate(now, attrs.evolve(measured(), cells=kept))
    for attack in ("PGD", "Clean"):
        cell = after.cell(attack, "Soft")
        assert (cell.ours is not None) is (attack in same), attack
        assert cell.ours is not None or cell.why == "it was measured otherwise than the table has it now"


def test_figures_that_do_not_say_what_they_were_measured_with_are_stamped():
    """They count as the table's; once stamped, an arm that is another opens them as those that always said it."""
    now, longer = table(), table(arms=(ARMS[0], attrs.evolve(ARMS[1], weights={"purifier": "+long"}), ARMS[2]))
    assert restate(longer, measured()).cell("PGD", "Soft").ours is not None
    stamped = stamp(now, measured())
    assert [cell.ours for cell in stamped.cells] == [cell.ours for cell in measured().cells]
    assert stamp(now, stamped) == restate(now, stamped) == stamped
    opened = restate(longer, stamped)
    assert opened.cell("PGD", "Soft").ours is None and not opened.adaptive
    assert opened.cell("Clean", "None").ours is not None
    assert stamp(longer, stamped) == opened, "what is of another arm is not stamped as of this one"


def test_what_an_adaptive_attacker_left_of_an_arm_that_is_another_now_is_gone():
    before, result = table(), measured()
    kept = attrs.evolve(
        result, adaptive=tuple(attrs.evolve(one, declared=before.declare_adaptive(one.arm)) for one in result.adaptive)
    )
    assert restate(before, result).adaptive == result.adaptive != () and restate(before, kept).adaptive == kept.adaptive
    longer = (ARMS[0], attrs.evolve(ARMS[1], weights={"purifier": "+long"}), ARMS[2])
    for now in (table(arms=longer), table(adaptive=Adaptive(options={"pgd": {"steps": 3}})), table(adaptive=None)):
        assert not restate(now, kept).adaptive
    assert restate(table(adaptive=Adaptive(n=7)), kept).adaptive == kept.adaptive


def test_the_best_of_several_arms_is_open_once_one_of_them_is_another():
    def best(**change):
        arms = (
            *ARMS[:2],
            attrs.evolve(ARMS[1], name="Softer", **change),
            TableArm(name="B", best_of=("Soft", "Softer")),
        )
        return table(arms=arms, cells={("PGD", "B"): 50.0})

    assert best().declare("PGD", "B") == best().declare("PGD", "B") != best(purifier="blur").declare("PGD", "B")


# What is kept


def measured(one=None):
    """A result of the table: a cell of every standing, and an adaptive figure that a check blocks."""
    one = one or table(misses={"None": GUESS})
    ours = {("Clean", "None"): 0.8, ("Clean", "Soft"): 0.91, ("PGD", "Soft"): 0.5, ("CW", "Soft"): 0.25}
    cells = []
    for (attack, arm), paper in one.cells.items():
        figure = ours.get((attack, arm))
        stands, why = standing(one, attack, arm, figure)
        values = {"attack": attack, "arm": arm, "paper": None if paper is None else paper / 100, "why": why}
        if figure is None:
            cells.append(Cell(**{**values, "why": one.arm(arm).absent}))
            continue
        details = {"threat": "oblivious", "eps": 0.1, "steps": 10, "run": "a-run"}
        ci95 = (round(figure - 0.1, 4), round(figure + 0.09, 4))
        cells.append(Cell(**values, ours=figure, ci95=ci95, n=1200, standing=stands, details=details))
    adaptive = AdaptiveResult(
        arm="Soft",
        eps=0.1,
        accuracy=0.125,
        ci95=(0.05, 0.2),
        n=40,
        credit=True,
        over=("none/none", "pgd/adaptive"),
        failed=("gradients",),
    )
    return TableResult(
        table=one.name,
        command="defend reproduce toys/table-1",
        dataset={"name": "digits", "sha256": "ab" * 32},
        cells=tuple(cells),
        adaptive=(adaptive,),
        versions={"torch": "2.0"},
        plugins={"defend-toys": "1.0"},
        device="cpu (2 threads)",
        seconds=90.0,
        weights={"Soft": {"purifier": "cd" * 32}},
        missing=("defend train purifier soften --dataset digits  (1 min)",),
        failed={"Soft": "no room"},
    )


def test_a_result_is_read_as_it_was_written(tmp_path):
    result = measured()
    result.save(tmp_path / "deep" / "table-1.json")
    text = (tmp_path / "deep" / "table-1.json").read_text()
    assert TableResult.from_json(text, "here") == result
    assert json.loads(text).pop("digest") and TableResult.from_json(result.to_json(), "here") == result
    with pytest.raises(DataError, match="is damaged"):
        TableResult.from_json(text.replace("1200", "1201"), "here")
    third = attrs.evolve(result, cells=(attrs.evolve(result.cells[0], ours=1 / 3),))
    assert TableResult.from_json(third.to_json(), "here").cells[0].ours == 0.3333
    assert result.cells[0].difference == pytest.approx(-0.15)
    assert result.cell("CW", "None") is None
    assert result.against("Soft").accuracy == 0.125
    assert result.against("None") is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        '"x"',
        '{"table": "toys/table-1"}',
        '{"table": 1, "command": "", "dataset": 3, "cells": []}',
    ],
)
def test_a_damaged_result_is_refused(text):
    with pytest.raises(DataError, match=r"^'here' is damaged"):
        TableResult.from_json(text, "here")


@pytest.mark.parametrize(("key", "value"), [("standing", "fine"), ("ours", "much"), ("ci95", [0.1]), ("n", None)])
def test_a_damaged_cell_is_refused(key, value):
    values = json.loads(measured().to_json())
    values["cells"][0][key] = value
    with pytest.raises(DataError, match=r"^'here' is damaged"):
        TableResult.from_json(json.dumps(values), "here")


def test_a_result_of_another_schema_is_refused():
    values = json.loads(measured().to_json()) | {"schema": 2}
    with pytest.raises(DataError, match="'here' is of schema 2, and this version reads 1"):
        TableResult.from_json(json.dumps(values), "here")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that holds results; return its folder."""
    folder = tmp_path / "kept_toys"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    sys.modules.pop("kept_toys", None)


def test_results_are_kept_in_the_plugins_package(package):
    one = table(results="kept_toys")
    assert find_kept(table()) is None
    assert find_kept(table(results="no_such_package")) is None
    assert find_kept(one) is None
    measured(one).save(package / "table-1.json")
    assert find_kept(one) == measured(one)
    (package / "table-1.json").write_text("{")
    with pytest.raises(DataError, match=r"^'kept_toys/table-1\.json' is damaged"):
        find_kept(one)


# How it is read

GUESS_SAID = "None (Clean): a guess, not measured: a weaker victim"
TALLY = "5 cells of the paper: 1 within 3 points, 1 explained by a guess, 1 off, 2 open; 1 of ours"
HEAD = (
    "digits, eps 0.1: accuracy in %, ours (the paper's). `defend reproduce toys/table-1`, cpu (2 threads), torch 2.0, "
    "seed 0. What the paper's figures are: oblivious\n"
    "\n"
    f"{TALLY}, which the paper has not.\n"
    "\n"
    f"- {GUESS_SAID}\n"
    "- Rival (Clean, PGD): open: another paper's defence\n"
    "- Soft (PGD): no reason is known yet\n"
)
ADAPTIVE = "**12.5** [5.0, 20.0], n=40, rejected counts as right (a check failed)"


def test_markdown_has_the_paper_in_brackets():
    one = table(misses={"None": GUESS})
    assert reproduction.markdown(one, measured(one)) == (
        "|  | None | Soft | Rival |\n"
        "| --- | --- | --- | --- |\n"
        "| Clean (n=1,200) | 80.0 (95.0) | 91.0 (90.0) | - (80.0) |\n"
        "| PGD (n=1,200) |  | 50.0 (60.0) | - (70.0) |\n"
        "| CW (n=1,200) |  | 25.0 |  |\n"
        f"| **adaptive** |  | {ADAPTIVE} |  |\n"
        "\n"
        f"{HEAD}"
    )


def test_a_row_that_leaves_less_than_the_adaptive_figure_stands_beside_it():
    one = table(misses={"None": GUESS})
    (adaptive,) = measured(one).adaptive
    below = attrs.evolve(adaptive, undercut_by=LeastRow("pgd/oblivious", 0.1, (0.05, 0.2), 90))
    result = attrs.evolve(measured(one), adaptive=(below,))
    assert "| **12.5, ≤ 10.0** [5.0, 20.0], n=40" in reproduction.markdown(one, result)
    text = printed(lambda console: reproduction.render(one, result, console))
    assert "12.5 [5.0, 20.0], ≤ 10.0 ✗ 40" in text and "≤: what one row alone leaves" in text
    assert "≤ 10.0" in render_page(one, result)


def test_markdown_with_the_attacks_across():
    one = table(misses={"None": GUESS}, across="attacks")
    assert reproduction.markdown(one, measured(one)) == (
        "|  | Clean (n=1,200) | PGD (n=1,200) | CW (n=1,200) | **adaptive** |\n"
        "| --- | --- | --- | --- | --- |\n"
        "| None | 80.0 (95.0) |  |  |  |\n"
        f"| Soft | 91.0 (90.0) | 50.0 (60.0) | 25.0 | {ADAPTIVE} |\n"
        "| Rival | - (80.0) | - (70.0) |  |  |\n"
        "\n"
        f"{HEAD}"
    )


def test_the_best_of_several_is_named_and_arms_without_a_cell_have_no_column(capsys):
    best = TableArm(name="Best", best_of=("Soft",))
    one = table(arms=(*ARMS, best), cells={("PGD", "Best"): 60.0})
    figure = Cell(
        attack="PGD",
        arm="Best",
        paper=0.6,
        ours=0.59,
        ci95=(0.5, 0.7),
        n=1200,
        standing="same",
        details={"best": "Soft"},
    )
    result = attrs.evolve(measured(one), cells=(figure,), adaptive=())
    lines = reproduction.markdown(one, result).splitlines()
    assert (lines[0], lines[3]) == ("|  | Best |", "| PGD (n=1,200) | 59.0 (60.0), Soft |")
    reproduction.render(one, result, Console(width=120))
    assert "within 3 points, Soft" in capsys.readouterr().out


def test_a_readme_is_filled_between_its_marks(package, tmp_path):
    one = table(results="kept_toys")
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- table toys/table-1 -->\nold\n<!-- end toys/table-1 -->\nafter\n")
    with pytest.raises(ConfigError, match=r"has no place for toys/table-1.*and a kept result"):
        reproduction.write_readme(readme, [one])
    measured(one).save(package / "table-1.json")
    assert reproduction.write_readme(readme, [one, table(name="toys/table-2", results="kept_toys")]) == ["toys/table-1"]
    body = reproduction.markdown(one, measured(one))
    text = readme.read_text()
    assert text == f"before\n<!-- table toys/table-1 -->\n\n{body}\n<!-- end toys/table-1 -->\nafter\n"
    reproduction.write_readme(readme, [one])
    assert readme.read_text() == text, "written twice, it is the same"


@pytest.mark.parametrize(
    "text",
    [
        "no marks\n",
        "<!-- table toys/table-1 -->\n",
        "<!-- end toys/table-1 -->\n<!-- table toys/table-1 -->\nmuch text\n",
        "<!-- table toys/table-1 -->\n<!-- table toys/table-1 -->\n<!-- end toys/table-1 -->\n",
    ],
)
def test_a_readme_without_its_marks_stays_as_it_is(package, tmp_path, text):
    one = table(results="kept_toys")
    measured(one).save(package / "table-1.json")
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(ConfigError, match="has no place for toys/table-1"):
        reproduction.write_readme(readme, [one])
    assert readme.read_text() == text
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        reproduction.write_readme(tmp_path / "elsewhere.md", [one])


def printed(render):
    console = Console(width=200, record=True, file=open("/dev/null", "w"), highlight=False)  # noqa: SIM115
    render(console)
    console.file.close()
    return console.export_text()


def test_the_terminal_says_it_all():
    one = table(misses={"None": GUESS})
    text = printed(lambda console: reproduction.render(one, measured(one), console))
    for said in (
        "91.0 [81.0, 100.0]",
        "+1.0",
        "within 3 points",
        "explained by a guess",
        "off",
        "not in the paper",
        "open",
        TALLY,
        "12.5 [5.0, 20.0] ✗ 40",
        "What the paper's figures are: oblivious",
        GUESS_SAID,
        "Soft: the adaptive figure is not to be trusted, a check failed (gradients)",
        "Soft: a run failed: no room",
        "Weights are missing: defend train purifier soften --dataset digits  (1 min)",
    ):
        assert said in text, said
    assert "Partial" not in text
    partial = attrs.evolve(measured(one), partial=True)
    text = printed(lambda console: reproduction.render(one, partial, console))
    assert "Partial: defend reproduce toys/table-1 goes on where it stopped" in text


def test_the_listing_counts_how_figures_stand():
    one = table(misses={"None": GUESS})
    other = table(name="toys/table-2", takes="an hour of training", stand_in=True)
    text = printed(lambda console: reproduction.print_listing(console, [(one, measured(one)), (other, None)]))
    said = " ".join(text.split())
    assert f"In all (without toys/table-2, whose cells stand in another table too): {TALLY}" in said
    assert reproduction.entry(one, measured(one))["standings"] == {
        "same": 1,
        "better": 0,
        "stronger": 0,
        "explained": 0,
        "guessed": 1,
        "off": 1,
        "beside": 1,
        "open": 2,
        "unmeasured": 0,
    }
    entry = reproduction.entry(other, None)
    assert (entry["standings"]["open"], entry["takes"]) == (5, "an hour of training")
    assert (entry["standings"]["beside"], entry["standings"]["unmeasured"]) == (0, 1), "the paper has none, nor have we"


def test_where_nothing_is_measured_the_readme_says_what_it_takes():
    assert reproduction.markdown(table(), None) is None
    said = reproduction.markdown(table(takes="an hour of training"), None)
    assert said == (
        "digits, eps 0.1. 5 cells of the paper: 5 open; 1 of ours, which the paper has not, 1 open: not measured yet: "
        "it takes an hour of training.\n"
    )


def test_a_result_for_machines_has_what_the_table_says():
    one = table(notes=("a note",))
    values = reproduction.as_dict(one, measured(one))
    assert values["notes"] == ["a note"]
    assert values["knowledge"] == "oblivious"
    assert values["cells"][0]["ours"] == 0.8
    json.dumps(values)


# The page

VOID = {"meta", "link", "br"}


class Page(HTMLParser):
    """Checks that tags close in order; collects tags, and texts outside of styles and charts."""

    def __init__(self, html):
        super().__init__()
        self.open, self.seen, self.text, self.drawn = [], [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            (self.drawn if "svg" in self.open else self.text).append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


@pytest.mark.parametrize("across", ["arms", "attacks"])
def test_the_page_has_every_figure_and_needs_nothing_else(across):
    one = table(misses={"None": GUESS}, across=across, notes=("a note",), adaptive=Adaptive(n=40))
    html = render_page(one, measured(one))
    page = Page(html)
    for said in (
        "digits, eps 0.1",
        "Toys, A. Author (2020)",
        "x.org/1",
        "oblivious",
        "1 within 3 points",
        "80.0",
        "95.0",
        "12.5",
        "n=40",
        GUESS_SAID,
        "a note",
        "✗ failed gradients",
        "pgd/adaptive",
        "a rejected attacked image counts as right",
        "Soft: a run failed. no room",
        "[81.0, 100.0]",
        "1,200",
        "defend reproduce toys/table-1",
        "defend train purifier soften",
        "ab" * 32,
        "cd" * 32,
        "cpu (2 threads)",
        "1.5 min",
        "defend-toys 1.0",
        "torch 2.0",
    ):
        assert said in page.words, said
    for tag, attributes in page.seen:
        assert tag not in ("script", "iframe", "object", "base", "img")
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            assert re.match(r"data:|#", attributes.get(name, "#")), attributes[name]
    assert "url(" not in html
    assert "@import" not in html
    ids = [attributes["id"] for _, attributes in page.seen if "id" in attributes]
    assert len(ids) == len(set(ids))
    classes = [attributes.get("class", "") for tag, attributes in page.seen if tag == "td"]
    for stands in ("same", "guessed", "off", "beside", "open"):
        assert any(stands in each.split() for each in classes), stands
    assert {"viewport", "color-scheme"} <= {attributes.get("name") for tag, attributes in page.seen if tag == "meta"}


def test_the_page_escapes_what_it_is_given():
    hostile = "<script>alert(1)</script>"
    one = table(caption=hostile, knowledge=hostile, notes=(hostile,))
    html = render_page(one, attrs.evolve(measured(one), command=hostile, failed={hostile: hostile}))
    assert "<script" not in html
    Page(html)


def test_an_empty_result_has_a_page_without_a_chart():
    one = table()
    nothing = TableResult(
        table=one.name,
        command="again",
        dataset={"name": "digits"},
        partial=True,
        cells=tuple(Cell(attack=attack, arm=arm, paper=None) for attack, arm in one.cells),
    )
    page = Page(render_page(one, nothing))
    assert "Not finished: again goes on" in page.words
    assert "svg" not in [tag for tag, _ in page.seen]
    assert dumbbell(nothing, ["None"], "table") is None


@pytest.mark.parametrize("narrow", [False, True])
def test_the_chart_says_every_figure_and_stays_within_its_width(narrow):
    result = measured()
    scene = dumbbell(result, [arm.name for arm in ARMS], "table", narrow=narrow)
    texts = [mark.text for mark in scene.marks if hasattr(mark, "text")]
    assert {"None", "Soft", "91.0 (90.0)", "25.0", "12.5 ✗", "adaptive"} <= set(texts)
    assert "Rival" not in texts, "nothing of it was measured"
    points = [point for mark in scene.marks if hasattr(mark, "points") for point in mark.points]
    assert all(0 <= x <= scene.width and 0 <= y <= scene.height for x, y in points)
    assert "Soft: Clean 91.0 where the paper has 90.0, PGD 50.0 where the paper has 60.0, CW 25.0, adaptive 12.5" in (
        scene.says
    )


def test_a_page_is_written_where_it_can_be(tmp_path):
    one = table()
    assert page_name(one) == "toys-table-1.html"
    write_page(one, measured(one), tmp_path / page_name(one))
    assert Page((tmp_path / "toys-table-1.html").read_text(encoding="utf-8"))
    for path, why in ((tmp_path, "is a folder"), (tmp_path / "no" / "page.html", "does not exist")):
        with pytest.raises(ConfigError, match=f"{why}; name a file, for example toys-table-1.html"):
            write_page(one, measured(one), path)
    with pytest.raises(ConfigError, match=r"--page '.*table.pdf': a page is HTML.*expected '.*table.html'"):
        write_page(one, measured(one), tmp_path / "table.pdf")
