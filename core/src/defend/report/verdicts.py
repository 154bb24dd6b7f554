"""Checks as files that CI servers read: JUnit XML, and SARIF 2.1.0 for code scanning. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree as ET

from defend import __version__
from defend.util.printable import escape
from defend.values.floors import BOUND, CLEAN, WORST, Floor, find_left
from defend.values.report import Check, Report
from defend.values.shares import in_percent

Suites = Mapping[str, Sequence[Check]]
"""Checks by what they were made of: a defence, or a victim."""
LEFT = "at least"
"""The name of the checks that the worst case, or a row, leaves what was asked for."""
OF_CLEAN_IMAGES = ("randomness", "clean accuracy", "batch")
"""The checks that speak of clean images too: a failed one closes a floor on their accuracy."""
LEVELS = {"pass": "none", "warn": "warning", "fail": "error", "skip": "none"}
SARIF = "https://json.schemastore.org/sarif-2.1.0.json"


def checks_of(report: Report, floors: Sequence[Floor] = ()) -> list[Check]:
    """Return a report's checks, and what else decides whether a run passes: that it is whole, and leaves enough.

    Enough by a figure that more steps would plainly lower is a warning: it passes, and is no proof.

    Raises:
        ConfigError: a floor is of a row that the run does not have.
    """
    found = list(report.checks)
    if report.partial:
        found.append(Check("complete", "fail", "the run was interrupted: rows are missing"))
    for floor in floors:
        left, what = find_left(report, floor), "the worst case" if floor.row == WORST else floor.row
        said = f"{what}: no attack was run that counts; at least {in_percent(floor.share)} % was asked for"
        if left is not None:
            said = f"{what} leaves {left.against(floor.share)}"
        enough = left is not None and left.accuracy >= floor.share
        # clean images were not attacked, so no check of the attacks says anything of them
        doubts = [check for check in report.failed if floor.row != CLEAN or check.name in OF_CLEAN_IMAGES]
        if enough and doubts:
            names = ", ".join(f"{check.number} {check.name}" for check in doubts)
            enough, said = False, f"{said}, and that figure is not to be trusted, as checks failed ({names})"
        if enough and floor.row != CLEAN and report.config.checks == "none":
            enough, said = False, f"{said}, and nothing was checked: leave out --checks none"
        caveats = report.caveats if floor.row == WORST else ()
        if enough and left is not None and (left.loose or caveats):
            found.append(Check(LEFT, "warn", ", and ".join([said, *[BOUND] * left.loose, *caveats])))
        else:
            found.append(Check(LEFT, "pass" if enough else "fail", said))
    return found


def to_junit(suites: Suites) -> str:
    """Return checks as JUnit XML: a failed one is a failure, a skipped one skipped; what a warning says is output."""
    root = ET.Element("testsuites", name="defend")
    for name, checks in suites.items():
        count = {status: str(sum(check.status == status for check in checks)) for status in LEVELS}
        counts = {"tests": str(len(checks)), "failures": count["fail"], "skipped": count["skip"], "errors": "0"}
        suite = ET.SubElement(root, "testsuite", {"name": _xml(name), **counts})
        for check in checks:
            case = ET.SubElement(suite, "testcase", classname=_xml(f"defend.{name}"), name=_xml(_title(check)))
            said = _xml(check.detail)
            if check.status == "fail":
                ET.SubElement(case, "failure", message=said).text = said
            elif check.status == "skip":
                ET.SubElement(case, "skipped", message=said)
            else:
                ET.SubElement(case, "system-out").text = f"{check.status}: {said}"
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def to_sarif(suites: Suites, source: str) -> str:
    """Return checks as SARIF: a result for each that failed or warns, at the file `source` (a path from here)."""
    rules: dict[str, dict[str, Any]] = {}
    results = []
    for name, checks in suites.items():
        for check in checks:
            rule = check.name.replace(" ", "-")
            rules.setdefault(rule, {"id": rule, "name": check.name, "shortDescription": {"text": _title(check)}})
            if LEVELS[check.status] != "none":
                place = {"artifactLocation": {"uri": source}, "region": {"startLine": 1}}
                results.append(
                    {
                        "ruleId": rule,
                        "level": LEVELS[check.status],
                        "message": {"text": f"{name}: {check.detail or check.name}"},
                        "locations": [{"physicalLocation": place}],
                    }
                )
    driver = {"name": "defend", "version": __version__, "rules": list(rules.values())}
    run = {"tool": {"driver": driver}, "results": results}
    return json.dumps({"$schema": SARIF, "version": "2.1.0", "runs": [run]}, indent=1) + "\n"


def _title(check: Check) -> str:
    return f"{check.number} {check.name}" if check.number else check.name


def _xml(text: str) -> str:
    """Return a text without the control characters that XML does not allow."""
    return escape(text, keep="\n\t")
