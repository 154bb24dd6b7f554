"""Runs beside each other: the statistics, the pairing by image, what is refused, what is said, what is printed."""

import io
import itertools
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy.stats import multinomial

from defend.compare import (
    RowKey,
    Run,
    RunRow,
    compare,
    from_records,
    read_run,
)  # fmt: skip
from defend.errors import ConfigError, DataError
from defend.metrics import arm
from defend.report import folder as run_folder
from defend.report.comparison import render, to_dict
from defend.statistics import holm, mcnemar, paired_interval, wilson
from defend.values import DatasetInfo, Report, Row, RunConfig, Threat

# McNemar's test


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [
        (0, 0, 1),
        (0, 1, 1),
        (0, 5, 2 / 2**5),
        (5, 0, 2 / 2**5),
        (1, 5, 2 * (1 + 6) / 2**6),
        (2, 8, 2 * (1 + 10 + 45) / 2**10),
        (7, 7, 1),
    ],
)
def test_mcnemar_by_hand(only_first, only_second, p):
    assert mcnemar(only_first, only_second) == pytest.approx(p, rel=1e-12)


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_twice_the_exact_tail(only_first, only_second):
    total = only_first + only_second
    tail = sum(math.comb(total, k) for k in range(min(only_first, only_second) + 1))
    assert mcnemar(only_first, only_second) == pytest.approx(min(1, 2 * tail / 2**total), rel=1e-9)
    assert mcnemar(only_first, only_second) == pytest.approx(mcnemar(only_second, only_first), rel=1e-12)


# The interval of a paired difference


def test_the_interval_is_bonett_and_prices():
    """The example in the manual of the R package statpsych, ci.prop.ps(.05, 12, 4, 26, 6)."""
    assert paired_interval(4, 26, 48) == pytest.approx((0.2548067, 0.6251933), abs=1e-7)


def test_the_interval_by_hand():
    half = 1.959964 * math.sqrt((2 / 22) / 22)  # nothing differs among 20: one image added on either side
    assert paired_interval(0, 0, 20) == pytest.approx((-half, half), abs=1e-6)


@given(st.data(), st.integers(1, 3000))
def test_the_interval_holds_the_difference_and_turns_with_it(data, n):
    first = data.draw(st.integers(0, n))
    second = data.draw(st.integers(0, n - first))
    low, high = paired_interval(first, second, n)
    assert -1 <= low < high <= 1
    assert low <= (second - first) / n <= high
    assert paired_interval(second, first, n) == pytest.approx((-high, -low), abs=1e-12)


@pytest.mark.parametrize("n", [20, 60])
@pytest.mark.parametrize(("first", "second"), [(0.01, 0.01), (0.02, 0.1), (0.1, 0.15), (0.02, 0.4), (0.3, 0.3)])
def test_the_interval_covers_the_truth_as_often_as_it_says(n, first, second):
    """Exactly, over every outcome of n images of which these shares are right in one run only."""
    outcomes = [(b, c) for b in range(n + 1) for c in range(n + 1 - b)]
    chances = multinomial.pmf([(b, c, n - b - c) for b, c in outcomes], n, [first, second, 1 - first - second])
    covers = [low <= second - first <= high for low, high in (paired_interval(b, c, n) for b, c in outcomes)]
    assert chances.sum() == pytest.approx(1)
    assert 0.935 < chances @ np.array(covers) <= 1


# Holm's adjustment


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.01, 0.02, 0.03, 0.04]) == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert holm([0.4, 0.9]) == pytest.approx([0.8, 0.9])
    assert holm([0.6, 0.9]) == [1, 1]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@given(P_VALUES, st.floats(0.001, 0.2))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values, alpha):
    """Holm 1979: from the smallest up, reject while p <= alpha / (how many are left), then stop."""
    rejected, left = set(), len(p_values)
    for index in sorted(range(len(p_values)), key=p_values.__getitem__):
        if p_values[index] * left > alpha:
            break
        rejected.add(index)
        left -= 1
    assert {index for index, p in enumerate(holm(p_values)) if p <= alpha} == rejected


@given(P_VALUES)
def test_holm_is_between_no_adjustment_and_bonferronis(p_values):
    adjusted = holm(p_values)
    for p, after in zip(p_values, adjusted, strict=True):
        assert p <= after <= min(1, len(p_values) * p) or after == pytest.approx(p)
    assert holm(p_values[::-1])[::-1] == pytest.approx(adjusted)
    assert [adjusted[place] for place in np.argsort(p_values, kind="stable")] == sorted(adjusted)


# Comparing

CLEAN = RowKey("none", "none", "none", 0.0)
FGSM, PGD = RowKey("fgsm", "oblivious", "linf", 0.1), RowKey("pgd", "oblivious", "linf", 0.1)
ADAPTIVE = RowKey("pgd", "adaptive", "linf", 0.1)


def document(**changes):
    """What of a report decides whether runs are comparable; `config` and `dataset` are merged."""
    return {
        "seed": 0,
        "weights": {"victim": {"sha256": "aaaabbbbcccc"}},
        "precision": {"crafting": "fp32"},
        **changes,
        "config": {"victim": "resnet18", "eps": 0.1, "draws": 20, "options": {}, **changes.get("config", {})},
        "dataset": {"name": "digits", "split": "test", "n": 4, "sha256": "0123456789", **changes.get("dataset", {})},
    }


def run(label, rows, folder=None, partial=(), steps=None, **changes):
    """A run in memory; `rows` maps a key to the images' rights: "1101", or {image: bool}."""
    made = []
    for key, right in rows.items():
        if isinstance(right, str):
            right = {image: said == "1" for image, said in enumerate(right)}
        made.append(RunRow(key, (steps or {}).get(key), key in partial, right))
    return Run(label, document(**changes), tuple(made), folder)


def test_pairs_are_made_by_image_not_by_place():
    first = run("a", {CLEAN: {3: True, 1: False, 2: True, 9: True}})
    second = run("b", {CLEAN: {1: True, 2: False, 3: True, 4: True}})
    (row,) = compare([first, second]).rows
    (difference,) = row.differences
    assert (difference.first, difference.second) == (0, 1)
    assert (difference.n, difference.only_first, difference.only_second) == (3, 1, 1)
    assert difference.difference == 0
    assert [cell.n for cell in row.cells] == [4, 4]
    assert [cell.accuracy for cell in row.cells] == [0.75, 0.75]


def test_a_difference_by_hand():
    first, second = run("a", {CLEAN: "1111100000"}), run("b", {CLEAN: "1100011111"})
    comparison = compare([first, second])
    (row,) = comparison.rows
    (difference,) = row.differences
    assert (difference.only_first, difference.only_second) == (3, 5)
    assert difference.difference == pytest.approx(0.2)
    assert difference.ci95 == paired_interval(3, 5, 10)
    assert difference.p == difference.p_holm == mcnemar(3, 5)
    assert row.cells[1].ci95 == pytest.approx(wilson(7, 10), abs=1e-9)
    assert comparison.tests == 1


def test_every_row_that_a_run_has_is_listed_by_threat():
    first = run("a", {CLEAN: "11", ADAPTIVE: "10", FGSM: "01"})
    second = run("b", {CLEAN: "11", PGD: "10"})
    rows = compare([first, second]).rows
    assert [row.key for row in rows] == [CLEAN, FGSM, PGD, ADAPTIVE]
    assert [[cell is not None for cell in row.cells] for row in rows] == [
        [True, True], [True, False], [False, True], [True, False],
    ]  # fmt: skip
    assert [len(row.differences) for row in rows] == [1, 0, 0, 0]


def test_another_eps_is_another_row():
    wider = RowKey("fgsm", "oblivious", "linf", 0.2)
    rows = compare([run("a", {FGSM: "11"}), run("b", {wider: "10"})]).rows
    assert [row.key.eps for row in rows] == [0.1, 0.2]
    assert not any(row.differences for row in rows)


def test_the_worst_case_is_over_what_all_have():
    first = run("a", {CLEAN: "11110", FGSM: "11010", PGD: "00000"})
    second = run("b", {CLEAN: {0: True, 1: True, 2: False, 3: True}, FGSM: "10111"})
    worst = compare([first, second]).worst_case
    assert worst.over == (CLEAN, FGSM) and worst.left_out == (PGD,)
    # images 0 to 3; the first is right in both rows about 0, 1, 3, the second about 0, 3
    assert [(cell.accuracy, cell.n) for cell in worst.cells] == [(0.75, 4), (0.5, 4)]
    (difference,) = worst.differences
    assert (difference.n, difference.only_first, difference.only_second) == (4, 1, 0)


@pytest.mark.parametrize(
    "second", [{CLEAN: "11", PGD: "11"}, {CLEAN: "11", FGSM: {7: True}}], ids=["one row in common", "no image"]
)
def test_there_may_be_no_worst_case(second):
    comparison = compare([run("a", {CLEAN: "11", FGSM: "11"}), run("b", second)])
    assert comparison.worst_case is None
    assert "no worst case: the runs have fewer than two rows with images in common" in comparison.notes


def test_all_pairs_are_compared_and_adjusted_together():
    rows = [{CLEAN: "1" * 12, FGSM: right} for right in ("1" * 12, "0" * 12, "0" * 6 + "1" * 6)]
    comparison = compare([run(name, each) for name, each in zip("abc", rows, strict=True)])
    lines = [*comparison.rows, comparison.worst_case]
    for line in lines:
        assert [(each.first, each.second) for each in line.differences] == [(0, 1), (0, 2), (1, 2)]
    every = [each for line in lines for each in line.differences]
    assert comparison.tests == len(every) == 9
    assert [each.p_holm for each in every] == holm([each.p for each in every])
    (against_b, against_c, _) = comparison.rows[1].differences
    assert (against_b.p, against_c.p) == (2 / 2**12, 2 / 2**6)
    assert against_b.p_holm == 9 * 2 / 2**12  # the smallest of nine, which the worst case ties with


ROW = st.dictionaries(st.integers(0, 15), st.booleans(), min_size=1)
ROWS = st.dictionaries(st.sampled_from([CLEAN, FGSM, PGD, ADAPTIVE]), ROW, min_size=1)


@given(ROWS, ROWS)
def test_swapping_two_runs_turns_every_difference(first, second):
    forth, back = (compare([run("a", one), run("b", other)]) for one, other in ((first, second), (second, first)))
    there = {row.key: row for row in forth.rows}
    here = {row.key: row for row in back.rows}
    assert there.keys() == here.keys() == first.keys() | second.keys()
    for key, row in there.items():
        assert row.cells == here[key].cells[::-1]
        shared = first.get(key, {}).keys() & second.get(key, {}).keys()
        assert len(row.differences) == len(here[key].differences) == bool(shared)
        for one, other in zip(row.differences, here[key].differences, strict=True):
            assert one.difference == -other.difference
            assert (one.only_first, one.only_second) == (other.only_second, other.only_first)
            assert one.n == other.n == len(shared)
            assert (one.p, one.p_holm) == pytest.approx((other.p, other.p_holm))
            assert one.ci95 == pytest.approx((-other.ci95[1], -other.ci95[0]))
            assert one.p <= one.p_holm <= 1
    assert forth.tests == back.tests


@given(ROWS)
def test_a_run_does_not_differ_from_its_like(rows):
    comparison = compare([run("a", rows), run("b", rows)])
    for row in comparison.rows:
        (difference,) = row.differences
        assert (difference.difference, difference.p, difference.p_holm) == (0, 1, 1)
        assert row.cells[0] == row.cells[1]
    assert (comparison.worst_case is None) == (len(rows) < 2 or not set.intersection(*map(set, rows.values())))


# What is refused, what is said


def refusal(*runs):
    with pytest.raises(ConfigError) as caught:
        compare(runs)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("changes", [{"sha256": "other"}, {"name": "mnist"}, {"split": "val"}])
def test_other_images_are_refused(changes):
    message = refusal(run("a", {CLEAN: "11"}), run("b", {CLEAN: "11"}, Path("runs/b"), dataset=changes))
    assert "digits test 01234567 (a)" in message and "(runs/b)" in message and "same data set" in message


def test_one_run_is_no_comparison(tmp_path):
    one = run("a", {CLEAN: "11"}, tmp_path)
    assert "1 run to compare: expected at least two" in refusal(one)
    assert "given twice" in refusal(one, run("b", {CLEAN: "11"}, tmp_path / "x" / ".."))


ROWS_OF_TWO = {CLEAN: "11", FGSM: "11"}


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"config": {"victim": "resnet34"}}, "victims differ (resnet18 aaaabbbb: a; resnet34 aaaabbbb: b): oblivious"),
        ({"weights": {"victim": {"sha256": "ffff"}}}, "victims differ (resnet18 aaaabbbb: a; resnet18 ffff: b): "),
        ({"config": {"options": {"victim": {"width": 2}}}}, "resnet18 aaaabbbb width=2: b): oblivious rows are not"),
        ({"config": {"finetune": "dae"}}, "victims differ (resnet18 aaaabbbb: a; resnet18 aaaabbbb tuned by dae: b)"),
        ({"config": {"eps": 0.2}}, "eps differ (0.1: a; 0.2: b): "),
        ({"seed": 3}, "seeds differ (0: a; 3: b): "),
        ({"config": {"draws": 1}}, "draws differ (20: a; 1: b): "),
        ({"config": {"options": {"dataset": {"image_size": 64}}}}, "data set differ (defaults: a; image_size=64: b)"),
        ({"precision": {"crafting": "bf16"}}, "crafting precision differ (fp32: a; bf16: b): "),
        ({"config": {"options": {"fgsm": {"loss": "dlr"}}}}, "options of fgsm differ (defaults: a; loss=dlr: b): "),
        ({"steps": {FGSM: 40}}, "steps of fgsm/oblivious, eps 0.1 differ (None: a; 40: b): "),
        ({"partial": True}, "b was interrupted: "),
    ],
)
def test_what_makes_runs_less_comparable_is_said(changes, note):
    steps, partial = changes.pop("steps", None), changes.pop("partial", False)
    second = run("b", ROWS_OF_TWO, steps=steps, **changes)
    second.report["partial"] = partial
    (found,) = compare([run("a", ROWS_OF_TWO), second]).notes
    assert note in found and "\n" not in found


def test_what_makes_no_difference_is_not_said():
    same = {"options": {"fgsm": {"loss": "dlr", "steps": 1}, "purifier": {"steps": 3}, "cw": {"c": 2}}}
    text = {"options": {"fgsm": {"loss": "dlr"}, "purifier": {"steps": 5}}}
    assert compare([run("a", ROWS_OF_TWO, config=same), run("b", ROWS_OF_TWO, config=text)]).notes == ()


def test_rows_beyond_the_common_ones_are_said():
    second = run("b", {**ROWS_OF_TWO, ADAPTIVE: "10"})
    assert compare([run("a", ROWS_OF_TWO), second]).notes == (
        "the worst case is over what all runs have; without pgd/adaptive, eps 0.1",
    )


def test_a_pair_without_an_image_in_common_is_said():
    comparison = compare([run("a", {FGSM: {1: True}}), run("b", {FGSM: {2: True}}), run("c", {FGSM: {1: True}})])
    assert [(each.first, each.second) for each in comparison.rows[0].differences] == [(0, 2)]
    assert "fgsm/oblivious, eps 0.1: some runs have no image in common there, and are not compared" in comparison.notes


@pytest.mark.parametrize(
    ("runs", "labels"),
    [
        ([("x", None), ("y", None)], ("x", "y")),
        ([("x", "runs/1"), ("y", "runs/2"), ("x", "runs/3")], ("x (1)", "y", "x (3)")),
        ([("x", "runs/1"), ("x", "old/1")], ("x (runs/1)", "x (old/1)")),
        ([("x", None), ("x", "runs/1")], ("x", "x (1)")),
        ([("x", None), ("x", None)], ("1: x", "2: x")),
    ],
)
def test_labels_are_made_unique(runs, labels):
    made = [run(label, {CLEAN: "1"}, folder and Path(folder)) for label, folder in runs]
    assert compare(made).labels == labels


# From records in memory, and from a folder

N = 6


def judged(key, predicted, accepted="111111", keys=range(N), partial=False, steps=None):
    """A row's record; image k has label k, `predicted` is a digit an image."""
    keys = torch.tensor(list(keys))
    zeros = torch.zeros(len(keys))
    said = {
        "undefended": SimpleNamespace(
            predicted=torch.zeros_like(keys), accepted=torch.ones(len(keys), dtype=torch.bool),
            confidence=zeros, score=zeros, passes=None,
        ),
        "defended": SimpleNamespace(
            predicted=torch.tensor([int(digit) for digit in predicted]),
            accepted=torch.tensor([said == "1" for said in accepted[: len(keys)]]),
            confidence=zeros, score=zeros, passes=None,
        ),
    }  # fmt: skip
    plan = SimpleNamespace(
        name=key.attack, threat=Threat(key.threat, key.norm, key.eps), steps=steps, variant=key.variant, headline=True
    )
    return SimpleNamespace(
        plan=plan,
        queries=None,
        seen=None,
        keys=keys,
        labels=keys.clone(),
        arms=said,
        linf=zeros,
        l2=zeros,
        partial=partial,
    )


def reported(records, partial=False, **config):
    """The report of such records, as a run makes it."""
    rows = []
    for record in records:
        threat, attacked = record.plan.threat, record.plan.name != "none"
        arms = {name: arm(said.predicted, record.labels, said.accepted, attacked) for name, said in record.arms.items()}
        rows.append(
            Row(record.plan.name, threat.kind, threat.norm, threat.eps, len(record.keys), record.plan.steps, 0,
                arms["undefended"], arms["defended"], 0.0, 0.0, {}, record.partial)
        )  # fmt: skip
    return Report(
        versions={}, plugins={}, config=RunConfig(**{"victim": "resnet18", "purifier": "apudae", **config}), seed=0,
        device="cpu", precision={"crafting": "fp32"}, seconds=1.0, dataset=DatasetInfo("digits", "test", N, "01234567"),
        rows=tuple(rows), worst_case=None, detector=None, checks=(), cost=None,
        weights={"victim": {"sha256": "aaaabbbb"}}, partial=partial,
    )  # fmt: skip


RECORDS = [
    judged(CLEAN, "012345", "101111"),
    judged(PGD, "512344", "111110", steps=20),
    judged(RowKey("cw", "oblivious", "l2", None), "5125", keys=(0, 1, 2, 5), partial=True),
]
RIGHT = (
    {0: True, 1: False, 2: True, 3: True, 4: True, 5: True},
    {0: False, 1: True, 2: True, 3: True, 4: True, 5: False},
    {0: False, 1: True, 2: True, 5: True},
)


@pytest.fixture
def saved(tmp_path):
    """Write a run folder as a run does; `saved("name", purifier="dae")` returns it."""

    def write(name, records=RECORDS, partial=False, **config):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        run_folder.write(folder, reported(records, partial, **config), records)
        return folder

    return write


def test_records_in_memory_become_a_run():
    made = from_records("apudae", reported(RECORDS), RECORDS)
    assert made.label == "apudae" and made.folder is None and not made.partial
    assert [row.key for row in made.rows] == [CLEAN, PGD, RowKey("cw", "oblivious", "l2", None)]
    assert tuple(row.right for row in made.rows) == RIGHT  # a rejected image is wrong
    assert [row.steps for row in made.rows] == [None, 20, None]
    assert [row.partial for row in made.rows] == [False, False, True]


def test_a_folder_holds_the_same_run(saved):
    in_memory = from_records("apudae", reported(RECORDS), RECORDS)
    read = read_run(saved("a"))
    assert read.rows == in_memory.rows and read.label == in_memory.label
    comparison = compare([in_memory, read])
    assert comparison.labels == ("apudae", "apudae (a)")
    assert comparison.notes == () and all(row.cells[0] == row.cells[1] for row in comparison.rows)


@pytest.mark.parametrize(
    ("config", "label"),
    [
        ({"purifier": None}, "no defence"),
        ({"purifier": "dae"}, "dae"),
        ({"purifier": "puvae", "detector": "puvae"}, "puvae+puvae"),
        ({"detector": "puvae", "finetune": "dae"}, "apudae+puvae+dae"),
    ],
)
def test_a_run_is_called_after_its_defence(saved, config, label):
    assert read_run(saved("a", **config)).label == label


def test_an_interrupted_run_is_read_and_marked(saved):
    cut = [judged(CLEAN, "012345"), judged(PGD, "01", keys=(0, 1), partial=True)]
    comparison = compare([read_run(saved("whole")), read_run(saved("cut", cut, partial=True, purifier="dae"))])
    clean, pgd, cw = comparison.rows
    assert not clean.cells[1].partial and pgd.cells[1].partial and cw.cells[1] is None
    assert pgd.differences[0].n == 2 and comparison.worst_case.cells[1].partial
    assert any(note.startswith("dae was interrupted") for note in comparison.notes)
    data = to_dict(comparison)
    assert [each["partial"] for each in data["runs"]] == [False, True]
    assert data["rows"][1]["runs"]["dae"]["partial"] is True


def test_a_run_stopped_between_writing_its_two_files_is_read(saved):
    folder = saved("a", RECORDS[:2])
    records = (saved("b") / "records.csv").read_text()
    (folder / "records.csv").write_text(records)  # holds one row more than report.json
    assert [row.key for row in read_run(folder).rows] == [CLEAN, PGD]


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def edit_report(change):
    def damage(folder):
        report = json.loads((folder / "report.json").read_text())
        change(report)
        (folder / "report.json").write_text(json.dumps(report))

    return damage


def cut_short(folder):
    path = folder / "records.csv"
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "report.json").unlink(), ("holds no report.json",)),
        (lambda folder: (folder / "report.json").write_text("{"), ("report.json", "is damaged")),
        (lambda folder: (folder / "report.json").write_bytes(b"\xff\xfe{}"), ("report.json", "is damaged")),
        (lambda folder: (folder / "report.json").write_text("[]"), ("schema None", "expected 1")),
        (edit_report(lambda report: report.update(schema=2)), ("schema 2", "expected 1")),
        (edit_report(lambda report: report.pop("dataset")), ("is damaged", "lacks 'dataset'")),
        (edit_report(lambda report: report["rows"][0].pop("norm")), ("is damaged", "lacks 'norm'")),
        (edit_report(lambda report: report.update(rows=[])), ("is damaged", "not what `defend run` writes")),
        (edit_report(lambda report: report.update(rows=3)), ("is damaged", "not what `defend run` writes")),
        (edit_report(lambda report: report.update(config=[])), ("is damaged", "not what `defend run` writes")),
        (edit_report(lambda report: report["rows"].append(report["rows"][0])), ("not what `defend run` writes",)),
        (edit_report(lambda report: report["rows"][1].update(n=9)), ("pgd/oblivious, eps 0.1", "6 images", "says 9")),
        (edit_report(lambda report: report["rows"][1].update(eps=0.2)), ("eps 0.2", "holds 0 images")),
        (edit_report(lambda report: report["rows"][0]["defended"].update(accuracy=0.5)), ("0.8333", "6 with 0.5")),
        (lambda folder: (folder / "records.csv").unlink(), ("holds no records.csv",)),
        (lambda folder: (folder / "records.csv").write_text(""), ("records.csv", "line 1")),
        (lambda folder: (folder / "records.csv").write_bytes(b"\xff\xfe"), ("records.csv", "line 1")),
        (lambda folder: edit(folder / "records.csv", ",image,", ",picture,"), ("line 1", "'image'")),
        (lambda folder: edit(folder / "records.csv", "0.0,0,0,0,0,,defended", "0.0,zero,0,0,0,,defended"), ("line 8",)),
        (lambda folder: edit(folder / "records.csv", "0,0,,defended,0,", "0,0,,defended,0.5,"), ("line 8", "0.5")),
        (lambda folder: edit(folder / "records.csv", "5,5,0,0,,defended", "4,5,0,0,,defended"), ("image 4", "twice")),
        (cut_short, ("records.csv", "damaged")),
    ],
)  # fmt: skip
def test_a_damaged_folder(saved, damage, words):
    folder = saved("a")
    damage(folder)
    message = unreadable(folder)
    assert str(folder) in message
    for word in words:
        assert word in message, message


def unreadable(folder):
    with pytest.raises(DataError) as caught:
        read_run(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_folder_offers_the_nearest(saved):
    folder = saved("resnet18-apudae")
    (folder.parent / "resnet18-apuda").mkdir()  # holds no run
    message = unreadable(folder.parent / "resnet18-apudea")
    assert "does not exist" in message and f"did you mean {str(folder)!r}?" in message
    assert "is a file, not a folder" in unreadable(folder / "report.json")
    assert "no run lies in" in unreadable(folder / "deeper")
    assert "no run lies in" in unreadable(folder.parent / "nowhere" / "at all")


def test_a_real_run_is_read(tmp_path):
    import defend

    folder, again = tmp_path / "a", tmp_path / "b"
    config = defend.RunConfig(
        victim="resnet18", attacks=("fgsm",), threats=("oblivious",), eps=0.05, limit=8, out=str(folder)
    )
    report = defend.run(config)
    shutil.copytree(folder, again)
    comparison = compare([read_run(folder), read_run(again)])
    assert comparison.labels == ("no defence (a)", "no defence (b)") and comparison.notes == ()
    assert [row.key.eps for row in comparison.rows] == [0, 0.05]
    for found, row in zip(comparison.rows, report.rows, strict=True):
        for cell in found.cells:
            assert (cell.accuracy, cell.n) == (row.defended.accuracy, 8)
            assert cell.ci95 == pytest.approx(row.defended.ci95, abs=1e-9)
    assert comparison.worst_case.cells[0].accuracy == report.worst_case.accuracy


def test_reading_and_printing_take_no_torch(saved):
    folders = [str(saved(name)) for name in "ab"]
    program = (
        "import sys; from pathlib import Path; from rich.console import Console\n"
        "from defend.compare import compare, read_run; from defend.report.comparison import render, to_dict\n"
        "comparison = compare([read_run(Path(folder)) for folder in sys.argv[1:]])\n"
        "render(comparison, Console()); to_dict(comparison)\n"
        "assert not {'torch', 'sklearn', 'timm'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, *folders], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "apudae (b) against apudae (a)" in done.stdout


# Printing

TERMINAL = {"force_terminal": True, "color_system": "standard"}


def printed(comparison, width=120, **options):
    file = io.StringIO()
    render(comparison, Console(file=file, width=width, **options))
    text = file.getvalue()
    assert max(map(len, text.splitlines())) <= width or options
    return text


def lines(text, *words):
    return [line for line in text.splitlines() if all(word in line for word in words)]


def runs_of(count, label="purifier-{}"):
    """Runs with every kind of row on 500 images, the later the worse."""
    images = range(500)
    keys = [CLEAN, RowKey("noise", "noise", "linf", 8 / 255), RowKey("pgd", "oblivious", "linf", 8 / 255),
            RowKey("cw", "oblivious", "l2", None), RowKey("apudae_a", "adaptive", "linf", 8 / 255)]  # fmt: skip
    return [
        run(label.format(place), {key: {i: i >= 40 * place * hard for i in images} for hard, key in enumerate(keys)})
        for place in range(count)
    ]


def test_two_runs_in_a_pipe():
    text = printed(compare(runs_of(2)))
    (header,) = lines(text, "steps")
    assert "purifier-0" in header and "purifier-1" in header
    oblivious, paired = lines(text, "pgd", "oblivious", "0.03137")
    assert "100.0 [99.2, 100.0]" in oblivious and "84.0 [80.5, 87.0]" in oblivious and " 500 " in oblivious
    assert "-16.0 [-19.2, -12.7]" in paired and "<0.001" in paired
    assert [cell.strip() for cell in paired.split("│")[4:7]] == ["500", "0", "80"]  # n, won, lost
    assert "purifier-1 against purifier-0, on the images that both judged" in text
    assert len(lines(text, "clean")) == len(lines(text, "worst case", "of 5 rows")) == 2
    assert lines(text, "cw (L2)", " - ")
    assert "Holm-adjusted over 6 tests" in " ".join(text.split())


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("label", ["purifier-{}", "a-purifier-with-a-long-name+detector+finetuner ({})"])
def test_up_to_three_runs_keep_their_intervals(count, label):
    text = printed(compare(runs_of(count, label)))
    assert "100.0 [99.2, 100.0]" in text and "Wilson" in text
    for place in range(count):
        assert label.format(place) in text


def test_six_runs_stay_legible():
    label = "apudae+puvae ({})"
    text = printed(compare(runs_of(6, label)))
    for letter, place in zip("ABCDEF", range(6), strict=True):
        assert f"{letter}  {label.format(place)}" in text
    (header,) = lines(text, "steps")
    assert header.replace("┃", " ").split() == ["attack", "threat", "eps", "steps", "n", *"ABCDEF"]
    row, first_pair = lines(text, "pgd", "oblivious")
    assert row.replace("│", " ").split()[-6:] == ["100.0", "84.0", "68.0", "52.0", "36.0", "20.0"]
    assert "Wilson" not in text and "…" not in text
    assert "-16.0 [-19.2, -12.7]" in first_pair  # differences keep theirs
    assert "The others against A" in text
    for letter in "BCDEF":  # not against each other
        assert len(lines(text, f"│   {letter} │")) == 6


def test_six_runs_on_a_wide_terminal_keep_labels_and_intervals():
    text = printed(compare(runs_of(6)), width=240)
    assert "A  " not in text and "100.0 [99.2, 100.0]" in text


def test_p_is_the_adjusted_one():
    text = printed(compare([run("a", {CLEAN: "111111", FGSM: "111111"}), run("b", {CLEAN: "111111", FGSM: "000000"})]))
    assert "0.094" in text and "0.031" not in text  # three tests, with the worst case


def test_a_narrow_terminal():
    text = printed(compare(runs_of(2)), width=80)
    assert "100.0" in text and "…" not in text


def test_the_best_is_bold_unless_all_are_equal():
    text = printed(compare(runs_of(2)), **TERMINAL)
    clean, clean_paired = lines(text, "clean")
    row, paired = lines(text, "pgd")
    assert "\x1b[1m100.0\x1b[0m" in row and "\x1b[1m84.0" not in row
    assert "\x1b[1m<0.001" in paired
    assert "\x1b[1m" not in clean + clean_paired


def test_no_color(monkeypatch):
    comparison = compare([run("a", ROWS_OF_TWO), run("b", ROWS_OF_TWO, seed=1)])
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[33m" in printed(comparison, **TERMINAL)
    assert "\x1b" not in printed(comparison)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[33m" not in printed(comparison, **TERMINAL)


def test_a_label_is_not_markup():
    assert "x [red] [/y]" in printed(compare([run("x [red] [/y]", ROWS_OF_TWO), run("b", ROWS_OF_TWO)]))


def test_rows_cut_short_are_marked():
    cut = run("b", {CLEAN: "1111", FGSM: "10"}, partial=[FGSM], steps={FGSM: 10})
    text = printed(compare([run("a", {CLEAN: "1111", FGSM: "1111"}, steps={FGSM: 100}), cut]))
    fgsm = lines(text, "fgsm", "oblivious", "0.1 │")[0]
    assert "50.0*" in fgsm and "2-4" in fgsm and "10-100" in fgsm
    assert "Note: steps of fgsm/oblivious, eps 0.1 differ (100: a; 10: b): not the same attack" in text


def test_runs_with_nothing_in_common_are_still_shown():
    text = printed(compare([run("a", {FGSM: "11"}), run("b", {PGD: "10"})]))
    assert "against" not in text and len(lines(text, "oblivious", "0.1")) == 2


def test_plain_data():
    rows = [{CLEAN: "1111", FGSM: right} for right in ("1111", "0000", "0011")]
    runs = [run(name, each) for name, each in zip("abc", rows, strict=True)]
    comparison = compare([*runs, run("d", {CLEAN: "1111"}, Path("runs/d"))])
    data = to_dict(comparison)
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert [each["label"] for each in data["runs"]] == ["a", "b", "c", "d"]
    assert data["runs"][3]["folder"] == str(Path("runs/d")) and data["runs"][0]["folder"] is None
    clean, fgsm = data["rows"]
    assert {key: fgsm[key] for key in ("attack", "threat", "norm", "eps")} == {
        "attack": "fgsm", "threat": "oblivious", "norm": "linf", "eps": 0.1,
    }  # fmt: skip
    assert fgsm["runs"]["d"] is None and fgsm["runs"]["c"]["accuracy"] == 0.5
    assert len(clean["pairs"]) == 6
    assert [(each["first"], each["second"]) for each in fgsm["pairs"]] == list(itertools.combinations("abc", 2))
    pair = fgsm["pairs"][0]
    assert {**pair, "ci95": None, "p_holm": None} == {
        "first": "a", "second": "b", "n": 4, "only_first": 4, "only_second": 0, "difference": -1.0, "ci95": None,
        "p": 0.125, "p_holm": None,
    }  # fmt: skip
    assert pair["p_holm"] == 1 and data["tests"] == 9
    assert data["worst_case"] is None and data["notes"] == list(comparison.notes)
    three = to_dict(compare(runs))["worst_case"]
    assert [key["attack"] for key in three["over"]] == ["none", "fgsm"] and three["left_out"] == []
    assert three["runs"]["c"]["accuracy"] == 0.5 and len(three["pairs"]) == 3
