"""What stands between a command and the terminal."""

import warnings

import pytest

import defend.train
from defend.cli import main


def test_what_any_part_of_defend_warns_of_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    with pytest.raises(SystemExit):
        main(["--version"])
    capsys.readouterr()
    warnings.showwarning("no checkpoint is kept", UserWarning, defend.train.__file__, 1)
    assert capsys.readouterr().err == "warning: no checkpoint is kept\n"
    warnings.showwarning("theirs", UserWarning, pytest.__file__, 1)
    assert "UserWarning: theirs" in capsys.readouterr().err
