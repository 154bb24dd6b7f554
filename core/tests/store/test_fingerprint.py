"""Whose source counts: what somebody may be editing, not what is installed, in this environment or one that it sees."""

import sys
from types import ModuleType

import pytest

from defend.store.fingerprint import _is_edited


@pytest.mark.parametrize(
    ("file", "edited"),
    [
        ("/home/me/work/helpers/__init__.py", True),
        ("/usr/lib/python3/dist-packages/helpers/__init__.py", False),
        ("/opt/other/lib/python3.11/site-packages/helpers/__init__.py", False),
    ],
)
def test_what_is_installed_elsewhere_is_not_edited(file, edited, monkeypatch):
    module = ModuleType("helpers")
    module.__file__ = file
    monkeypatch.setitem(sys.modules, "helpers", module)
    assert _is_edited("helpers") is edited
