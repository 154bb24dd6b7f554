"""`assert_robust` holds only where something was measured, was measured well, and leaves enough."""

from types import SimpleNamespace

import attrs
import pytest

from defend.errors import ConfigError
from defend.session import evaluate
from defend.testing import assert_robust
from defend.values.report import Check, LeastRow, WorstCase


def found(left=0.5, failed=(), partial=False, rising=(), caveats=()):
    worst = None if left is None else WorstCase(left, (0.0, 1.0), 10, ("pgd/oblivious",), 0.0, rising=rising)
    return SimpleNamespace(worst_case=worst, failed=failed, partial=partial, report=SimpleNamespace(caveats=caveats))


@pytest.fixture
def measured(monkeypatch):
    """Let an evaluation find what is given, and return what it was asked."""

    def give(result):
        asked = {}
        monkeypatch.setattr(evaluate, "evaluate", lambda *things, **settings: asked.update(settings) or result)
        return asked

    return give


def test_enough_is_left(measured):
    asked = measured(result := found(0.5))
    assert assert_robust("model", "data", at_least=0.5, eps="4/255") is result
    assert asked == {"progress": False, "eps": "4/255"}


@pytest.mark.parametrize(
    ("result", "why"),
    [
        (found(0.49), r"leaves 49\.0 % \[0\.0, 100\.0\], n=10; at least 50\.0 %"),
        (found(0.49, rising=("pgd/oblivious",)), r"leaves at most 49\.0 %"),
        (found(None), "no attack was run"),
        (found(0.9, partial=True), "cut off"),
        (found(0.9, failed=(Check("gradients", "fail", "zero", 5),)), r"a check failed \(5 gradients\)"),
    ],
)
def test_what_is_not_robust(result, why, measured):
    measured(result)
    with pytest.raises(AssertionError, match=why):
        assert_robust("model", "data", at_least=0.5)


def test_enough_by_a_figure_that_is_known_to_be_loose_is_told(measured):
    measured(result := found(0.5, rising=("pgd/oblivious",)))
    with pytest.warns(UserWarning, match=r"leaves at most 50\.0 % .* at least 40\.0 % .*: an attack was still fooling"):
        assert assert_robust("model", "data", at_least=0.4) is result


def test_a_row_that_leaves_less_of_more_images_is_less(measured):
    result = found(0.6)
    result.worst_case = attrs.evolve(result.worst_case, least_row=LeastRow("fgsm/oblivious", 0.4, (0.3, 0.5), 40))
    measured(result)
    with pytest.raises(AssertionError, match=r"leaves at most 40\.0 % .*fgsm/oblivious alone"):
        assert_robust("model", "data", at_least=0.5)


def test_enough_of_attackers_who_knew_nothing_of_the_defence_is_told(measured):
    measured(result := found(0.5, caveats=("no attacker knew of the defence",)))
    with pytest.warns(UserWarning, match="no attacker knew of the defence"):
        assert assert_robust("model", "data", at_least=0.4) is result


def test_what_is_not_checked_is_no_test():
    with pytest.raises(ConfigError, match="checks='none'"):
        assert_robust("model", "data", at_least=0.4, checks="none")


@pytest.mark.parametrize("share", [30, -0.1, True, "0.3", float("nan")])
def test_what_is_no_share_is_refused(share):
    with pytest.raises(ConfigError, match="expected 0 to 1"):
        assert_robust("model", "data", at_least=share)
