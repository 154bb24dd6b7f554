"""An evaluation as text: in a notebook's kernel too, where rich would rather display it, in colours."""

import importlib.util
from pathlib import Path

import rich.console

from defend.records.reading import read_report
from defend.session.evaluate import Evaluation

MADE_UP = Path(__file__).parents[1] / "made_up_run.py"


def test_in_a_notebook_it_prints_the_same_text(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("made_up_run", MADE_UP)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = module.write(tmp_path / "run")
    found = Evaluation(read_report(folder), folder)
    alone = str(found)
    monkeypatch.setattr(rich.console, "_is_jupyter", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert str(found) == alone
    assert "Quick run" in alone
    assert "\x1b" not in alone
