"""What a report says of its records is computed again; what was edited is named."""

import importlib.util
import json
from pathlib import Path

import pytest

from defend.errors import DataError
from defend.records.reading import read_report, read_results, read_run
from defend.records.recount import add_digests

spec = importlib.util.spec_from_file_location("made_up_run", Path(__file__).parents[1] / "made_up_run.py")
made_up_run = importlib.util.module_from_spec(spec)
spec.loader.exec_module(made_up_run)


@pytest.fixture
def run(tmp_path):
    return made_up_run.write(tmp_path / "run")


def edit(folder, change, seal=False):
    path = folder / "report.json"
    report = json.loads(path.read_text())
    report = add_digests(report) if seal else report
    change(report)
    path.write_text(json.dumps(report))


def put(*keys, value):
    def change(report):
        place = report
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return change


EDITS = {
    "worst_case.accuracy": put("worst_case", "accuracy", value=0.99),
    "worst_case.undefended": put("worst_case", "undefended", value=0.99),
    "worst_case.ci95": put("worst_case", "ci95", value=[0.9, 1.0]),
    "worst_case.n": put("worst_case", "n", value=4000),
    "worst_case.least_row.accuracy": put("worst_case", "least_row", "accuracy", value=0.99),
    "worst_case.least_row.n": put("worst_case", "least_row", "n", value=4000),
    "rows[4].undefended.accuracy": put("rows", 4, "undefended", "accuracy", value=0.0),
    "rows[4].defended.ci95": put("rows", 4, "defended", "ci95", value=[0.9, 1.0]),
    "rows[4].defended.rejected": put("rows", 4, "defended", "rejected", value=0.5),
    "rows[4].defended.accuracy_with_credit": put("rows", 4, "defended", "accuracy_with_credit", value=1.0),
}


@pytest.mark.parametrize("key", EDITS)
@pytest.mark.parametrize("read", [read_run, read_results])
def test_an_edited_figure_is_named(run, key, read):
    read(run)
    edit(run, EDITS[key])
    with pytest.raises(DataError, match=key.replace("[", r"\[")):
        read(run)


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("checks", put("checks", 0, "status", value="pass")),
        ("partial", put("partial", value=True)),
        ("config", put("config", "eps", value=0.2)),
        ("precision", put("precision", value={})),
    ],
)
def test_what_cannot_be_computed_again_is_held_by_its_digest(tmp_path, key, change):
    folder = made_up_run.write(tmp_path / "run", checks=("fail", "warn"))
    edit(folder, lambda report: None, seal=True)
    read_run(folder)
    edit(folder, change)
    with pytest.raises(DataError, match=f"'{key}' is not what the run wrote"):
        read_run(folder)


@pytest.mark.parametrize("read", [read_run, read_report])
def test_a_part_whose_digest_was_taken_out_was_edited(tmp_path, read):
    folder = made_up_run.write(tmp_path / "run", checks=("fail", "warn"))
    edit(folder, lambda report: None, seal=True)
    read(folder)
    edit(folder, put("checks", 0, "status", value="pass"))
    edit(folder, lambda report: report["digests"].pop("checks"))
    with pytest.raises(DataError, match="was edited: 'checks' has no digest"):
        read(folder)


def test_a_report_whose_digests_were_taken_out_was_edited(tmp_path):
    folder = made_up_run.write(tmp_path / "run", checks=("fail", "warn"))
    read_run(folder)  # an old one, which never had any
    edit(folder, put("rows", 1, "made_of", value="1f2e3d4c5b6a7988"))
    edit(folder, put("checks", 0, "status", value="pass"))
    with pytest.raises(DataError, match="was edited: 'digests' is gone"):
        read_run(folder)
