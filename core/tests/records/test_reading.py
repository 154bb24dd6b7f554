"""A run in memory and its folder read back are the same; what is missing or damaged is named."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from defend.errors import DataError
from defend.evaluation.assemble import arm
from defend.records import folder as run_folder
from defend.records.compare import compare
from defend.records.reading import read_run
from defend.records.run import RowKey, from_records
from defend.report.comparison import to_dict
from defend.values.report import DatasetInfo, Report, Row
from defend.values.run_config import RunConfig
from defend.values.threats import Threat

CLEAN = RowKey("none", "none", "none", 0.0)
PGD = RowKey("pgd", "oblivious", "linf", 0.1)
N = 6


def judged(key, predicted, accepted="111111", keys=range(N), partial=False, steps=None):
    """A row's record; image k has label k, `predicted` is a digit an image."""
    keys = torch.tensor(list(keys))
    zeros = torch.zeros(len(keys))
    said = {
        "undefended": SimpleNamespace(
            predicted=torch.zeros_like(keys),
            accepted=torch.ones(len(keys), dtype=torch.bool),
            confidence=zeros,
            score=zeros,
            passes=None,
            distance=None,
        ),
        "defended": SimpleNamespace(
            predicted=torch.tensor([int(digit) for digit in predicted]),
            accepted=torch.tensor([said == "1" for said in accepted[: len(keys)]]),
            confidence=zeros,
            score=zeros,
            passes=None,
            distance=None,
        ),
    }
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
            Row(
                record.plan.name,
                threat.kind,
                threat.norm,
                threat.eps,
                len(record.keys),
                record.plan.steps,
                0,
                arms["undefended"],
                arms["defended"],
                0.0,
                0.0,
                {},
                record.partial,
            )
        )
    return Report(
        versions={},
        plugins={},
        config=RunConfig(**{"victim": "resnet18", "purifier": "apudae", **config}),
        seed=0,
        device="cpu",
        precision={"crafting": "fp32"},
        seconds=1.0,
        dataset=DatasetInfo("digits", "test", N, "01234567"),
        rows=tuple(rows),
        worst_case=None,
        detector=None,
        checks=(),
        cost=None,
        weights={"victim": {"sha256": "aaaabbbb"}},
        partial=partial,
    )


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
    # what neither was asked is said of both
    assert comparison.notes == tuple(f"{label}: {read.caveats[0]}" for label in comparison.labels)
    assert read.caveats == in_memory.caveats and read.caveats[0].startswith("no attacker knew of the defence")
    assert all(row.cells[0] == row.cells[1] for row in comparison.rows)


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
        (edit_report(lambda report: report.update(rows=[])), ("was edited", "'rows'")),
        (edit_report(lambda report: report.update(rows=3)), ("is damaged", "not what `defend run` writes")),
        (edit_report(lambda report: report.update(config=[])), ("is damaged", "not what `defend run` writes")),
        (edit_report(lambda report: report["rows"].append(report["rows"][0])), ("was edited", "'rows'")),
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
)
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
        "from defend.records.compare import compare; from defend.records.reading import read_run\n"
        "from defend.report.comparison import render, to_dict\n"
        "comparison = compare([read_run(Path(folder)) for folder in sys.argv[1:]])\n"
        "render(comparison, Console()); to_dict(comparison)\n"
        "assert not {'torch', 'sklearn', 'timm'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, *folders], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "apudae (b) against apudae (a)" in done.stdout
