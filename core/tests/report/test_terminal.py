"""What the terminal says beside a run's table."""

import io

import pytest
from rich.console import Console, Group

from defend.report.terminal import certificate
from defend.values.report import Certified, Check


@pytest.mark.parametrize("failed", [False, True])
def test_a_certificate_of_a_run_that_is_not_to_be_trusted_says_so(failed):
    curve = ({"radius": 0.0, "accuracy": 0.25, "ci95": (0.1, 0.5)},)
    found = Certified(
        sigma=0.25, draws=500, selection=10, alpha=0.001, n=4, abstained=0.0, largest=1.0, curve=curve, images=()
    )
    checks = (Check("batch", "fail", "rounds", 13),) if failed else ()
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(Group(*certificate(found, failed=checks)))
    assert ("Not to be trusted, a check failed (13 batch)" in console.export_text(clear=False)) is failed
    assert ("line-through" in console.export_html()) is failed
