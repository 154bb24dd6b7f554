"""`--junit` and `--sarif`: what was checked, for a CI server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from defend.cli.flags import PATH
from defend.cli.usage import option
from defend.values.references import split_reference

if TYPE_CHECKING:
    from defend.report.verdicts import Suites

VERDICTS = (
    option("--junit FILE", "Write the checks as JUnit XML, for CI servers.", type=PATH),
    option("--sarif FILE", "Write them as SARIF, for code scanning.", type=PATH),
)


@attrs.frozen
class VerdictFiles:
    """The files that were asked for."""

    junit: Path | None = None
    sarif: Path | None = None

    def begin(self) -> None:
        """Remove what an earlier run wrote there: where this one fails, nothing must say that all is well.

        Raises:
            WriteError: a file cannot be written; better now than after hours.
        """
        from defend.util.files import check_writable

        for path in (self.junit, self.sarif):
            if path is not None:
                check_writable(path, "checks")
                path.unlink(missing_ok=True)

    def write(self, suites: Suites, victim: str) -> None:
        """Write checks; in SARIF they stand at the file that the victim comes from, if it is one's own."""
        from defend.report.verdicts import to_junit, to_sarif
        from defend.util.files import write_text

        if self.junit is not None:
            write_text(self.junit, to_junit(suites), "checks")
        if self.sarif is not None:
            write_text(self.sarif, to_sarif(suites, _source(victim)), "checks")


def _source(victim: str) -> str:
    file = (split_reference(victim) or ("",))[0]
    return Path(os.path.relpath(file)).as_posix() if file.endswith(".py") else "config.toml"
