"""The JSON Schema of report.json describes what runs write."""

import importlib.util
import json
from pathlib import Path

import attrs
import jsonschema
import pytest

from defend.records.document import to_dict
from defend.records.schema import report_schema
from defend.values.report import Report

MADE_UP = Path(__file__).parents[1] / "made_up_run.py"


@pytest.fixture
def folder(tmp_path):
    spec = importlib.util.spec_from_file_location("made_up_run", MADE_UP)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.write(tmp_path / "run")


@pytest.fixture
def validator():
    schema = report_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_a_report_is_valid(folder, validator):
    assert list(validator.iter_errors(json.loads((folder / "report.json").read_text()))) == []


def test_every_key_of_a_report_is_described(folder):
    properties = report_schema()["properties"]
    assert {"schema", *(field.name for field in attrs.fields(Report))} <= set(properties)
    assert set(json.loads((folder / "report.json").read_text())) <= set(properties)


@pytest.mark.parametrize(
    ("path", "value"),
    [(("schema",), 2), (("rows", 0, "n"), "80"), (("checks", 0, "status"), "fine"), (("dataset", "sha256"), None)],
)
def test_what_is_no_report_is_refused(folder, validator, path, value):
    report = json.loads((folder / "report.json").read_text())
    *to, last = path
    part = report
    for key in to:
        part = part[key]
    part[last] = value
    assert list(validator.iter_errors(report))


def test_a_figure_that_is_not_finite_is_null_and_valid(folder, validator):
    from defend.records.reading import read_report

    report = read_report(folder)
    row = attrs.evolve(report.rows[0], mean_linf=float("nan"))
    assert list(validator.iter_errors(to_dict(attrs.evolve(report, rows=(row,))))) == []
