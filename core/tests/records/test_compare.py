"""Runs beside each other: the pairing by image, what is refused, what is said, what is printed."""

import io
import itertools
import json
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from defend.errors import ConfigError
from defend.records.compare import compare
from defend.records.run import RowKey, Run, RunRow
from defend.report.comparison import render, to_dict
from defend.util.statistics import holm, mcnemar, paired_interval, wilson

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


def run(label, rows, folder=None, partial=(), steps=None, rising=(), **changes):
    """A run in memory; `rows` maps a key to the images' rights: "1101", or {image: bool}."""
    made = []
    for key, right in rows.items():
        if isinstance(right, str):
            right = {image: said == "1" for image, said in enumerate(right)}
        made.append(RunRow(key, (steps or {}).get(key), key in partial, right, rising=key in rising))
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


def test_what_more_steps_would_lower_is_told_as_a_bound():
    unaware, aware = (RowKey("pgd", threat, "linf", 0.1) for threat in ("oblivious", "adaptive"))
    rows = {CLEAN: "11", unaware: "10", aware: "10"}
    blur = {"config": {"purifier": "blur"}}
    compared = compare([run("a", rows, rising=(unaware, aware), **blur), run("b", rows, **blur)])
    # the oblivious one took its steps against the bare victim
    assert [[cell.loose for cell in row.cells] for row in compared.rows] == [[False, False], [False] * 2, [True, False]]
    assert [cell.loose for cell in compared.worst_case.cells] == [True, False]
    text = printed(compared)
    assert lines(text, "adaptive", "≤ 50.0", " 50.0") and "an attack was still fooling images" in text
    alone = compare([run("a", rows, rising=(unaware,)), run("b", rows)])
    assert alone.rows[1].cells[0].loose
    assert "still fooling" not in printed(compare([run("a", rows), run("b", rows)]))


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
        [True, True],
        [True, False],
        [False, True],
        [True, False],
    ]
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


def test_a_row_that_leaves_less_of_more_images_stands_beside_the_worst_case():
    first = run("a", {CLEAN: "11111111", FGSM: "11110000", PGD: "1100"})
    second = run("b", {CLEAN: "11111111", FGSM: "11100000", PGD: "1110"})
    comparison = compare([first, second])
    assert [cell.accuracy for cell in comparison.worst_case.cells] == [0.5, 0.75]
    one, other = (cell.undercut_by for cell in comparison.worst_case.cells)
    assert one is None and (other.row, other.accuracy, other.n) == (str(FGSM), 0.375, 8)
    text = printed(comparison)
    assert len(lines(text, "worst case", "75.0", ", ≤ 37.5")) == 1 and "≤: what one row alone leaves" in text
    assert to_dict(comparison)["worst_case"]["runs"]["b"]["undercut_by"]["accuracy"] == 0.375


@pytest.mark.parametrize(
    "second", [{CLEAN: "11", PGD: "11"}, {CLEAN: "11", FGSM: {7: True}}], ids=["one row in common", "no image"]
)
def test_there_may_be_no_worst_case(second):
    comparison = compare([run("a", {CLEAN: "11", FGSM: "11"}), run("b", second)])
    assert comparison.worst_case is None
    assert any(note.startswith("no worst case: the runs have fewer than two rows") for note in comparison.notes)


def test_rows_that_no_attacker_made_have_no_worst_case():
    noise = RowKey("noise", "noise", "linf", 0.1)
    comparison = compare([run("a", {CLEAN: "11", noise: "11"}), run("b", {CLEAN: "11", noise: "10"})])
    assert comparison.worst_case is None and "one of them of an attacker" in comparison.notes[-1]


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


def made_of(label, digests, **changes):
    """A run of two rows whose attacks have these digests."""
    made = run(label, ROWS_OF_TWO, **changes)
    return attrs.evolve(made, rows=tuple(attrs.evolve(row, made_of=digests.get(row.key)) for row in made.rows))


def test_attacks_of_one_name_that_are_not_the_same_are_told():
    one, other = made_of("a", {FGSM: "aa"}), made_of("b", {FGSM: "bb"})
    (note,) = compare([one, other]).notes
    assert note == "attacks called fgsm/oblivious, eps 0.1 differ (aa: a; bb: b): not the same attack"
    assert compare([one, made_of("b", {FGSM: "aa"})]).notes == compare([one, made_of("b", {})]).notes == ()
    (note,) = compare([one, made_of("b", {FGSM: "bb"}, steps={FGSM: 40})]).notes
    assert note.startswith("steps of fgsm/oblivious"), "which says it"


def test_transfer_sources_with_other_weights_are_told():
    def through(label, source):
        return run(label, ROWS_OF_TWO, weights={"victim": {"sha256": "aaaabbbbcccc"}, "source resnet20": source})

    one, other = through("a", {"sha256": "1111222233"}), through("b", {"sha256": "4444555566"})
    (note,) = compare([one, other, through("c", {})]).notes
    assert note == (
        "weights of source resnet20 differ (11112222: a; 44445555: b): transfer rows are not the same attack"
    )
    assert compare([one, through("b", {"sha256": "1111222233"}), run("d", ROWS_OF_TWO)]).notes == ()


def test_runs_that_were_not_checked_alike_are_told():
    (note,) = compare([run("a", ROWS_OF_TWO, config={"checks": kind}) for kind in ("basic", "full")]).notes
    assert note.startswith("checks differ (basic: ") and note.endswith(
        "full checks would strike out, basic ones may pass"
    )


def test_a_run_whose_checks_failed_is_no_winner():
    checks = ({"number": 5, "name": "gradients", "status": "fail", "detail": "none"},)
    compared = compare([run("a", ROWS_OF_TWO), run("b", ROWS_OF_TWO, checks=checks)])
    assert compared.notes == ("b: its figures are not to be trusted, as checks failed (5 gradients: none)",)
    (worst, *_) = lines(printed(compared), "worst case")
    assert worst.count("✗") == 1 and to_dict(compared)["runs"][1]["failed"] == ["5 gradients: none"]


def test_what_each_run_says_of_itself_is_said_once_with_the_runs_that_say_it():
    checks = ({"number": 4, "name": "convergence", "status": "warn", "detail": "still falling"},)
    images = {**run("a", ROWS_OF_TWO).report["dataset"], "warnings": ["3 images stand twice"]}
    said = {"dataset": images, "left_out": {"query": "no attack fits it"}}
    compared = compare([run("a", ROWS_OF_TWO, **said, checks=checks), run("b", ROWS_OF_TWO, **said)])
    assert compared.notes == (
        "a: a warning of check 4 convergence: still falling",
        "every run: query is left out, no attack fits it",
        "every run: 3 images stand twice",
    )
    first, second = to_dict(compared)["runs"]
    assert (first["warned"], second["warned"]) == (["4 convergence: still falling"], [])
    assert first["left_out"] == said["left_out"] and first["warnings"] == ["3 images stand twice"]
    assert "Note: a: a warning of check 4" in printed(compared)


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
    keys = [
        CLEAN,
        RowKey("noise", "noise", "linf", 8 / 255),
        RowKey("pgd", "oblivious", "linf", 8 / 255),
        RowKey("cw", "oblivious", "l2", None),
        RowKey("apudae_a", "adaptive", "linf", 8 / 255),
    ]
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
        "attack": "fgsm",
        "threat": "oblivious",
        "norm": "linf",
        "eps": 0.1,
    }
    assert fgsm["runs"]["d"] is None and fgsm["runs"]["c"]["accuracy"] == 0.5
    assert len(clean["pairs"]) == 6
    assert [(each["first"], each["second"]) for each in fgsm["pairs"]] == list(itertools.combinations("abc", 2))
    pair = fgsm["pairs"][0]
    assert {**pair, "ci95": None, "p_holm": None} == {
        "first": "a",
        "second": "b",
        "n": 4,
        "only_first": 4,
        "only_second": 0,
        "difference": -1.0,
        "ci95": None,
        "p": 0.125,
        "p_holm": None,
    }
    assert pair["p_holm"] == 1 and data["tests"] == 9
    assert data["worst_case"] is None and data["notes"] == list(comparison.notes)
    three = to_dict(compare(runs))["worst_case"]
    assert [key["attack"] for key in three["over"]] == ["none", "fgsm"] and three["left_out"] == []
    assert three["runs"]["c"]["accuracy"] == 0.5 and len(three["pairs"]) == 3


def test_a_bare_victim_lacks_what_an_attacker_knows_of_a_defence_and_takes_it_from_nobody():
    bare = run("none", {CLEAN: "1111", PGD: "1000"})
    defended = run("dae", {CLEAN: "1111", PGD: "1110", ADAPTIVE: "1001"}, config={"purifier": "dae"})
    comparison = compare([bare, defended])
    worst = comparison.worst_case
    assert worst.over == (CLEAN, PGD, ADAPTIVE) and worst.left_out == ()
    assert [cell.accuracy for cell in worst.cells] == [0.25, 0.25]
    (note,) = comparison.notes
    assert note.startswith("none: there is no defence that an attacker could know") and str(ADAPTIVE) in note
    # two defences are held to the rows that both have
    other = run("blur", {CLEAN: "1111", PGD: "1110"}, config={"purifier": "blur"})
    assert compare([other, defended]).worst_case.over == (CLEAN, PGD)
