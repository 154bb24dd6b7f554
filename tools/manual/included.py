"""Documents of the repository as pages of the manual, with their links turned to the manual's pages."""

from __future__ import annotations

import os
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "extend/contributing.md",
    "benchmarks/README.md": "scale/benchmarks.md",
}
LINK = re.compile(r"(\]\(|src=\")(?!https?:|#|mailto:)([^)\"#\s]+)")


def plugin_folders() -> list[Path]:
    """Return the folders of the plugins in this repository."""
    return sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))


def pages() -> dict[str, str]:
    """Return the text of each page by its name in docs/."""
    # the first page's own navigation would list that page alone
    found = {page: include(document, page) for document, page in PAGES.items()}
    return {**found, "index.md": f"---\nhide: [navigation]\n---\n\n{found['index.md']}"}


def include(document: str, page: str) -> str:
    """Return a document's text, to stand on a page: its links lead to pages, or are words where there is none."""
    homes = {**PAGES, **{f"plugins/{folder.name}/README.md": f"papers/{folder.name}.md" for folder in plugin_folders()}}
    text = (ROOT / document).read_text(encoding="utf-8")

    def turn(found: re.Match[str]) -> str:
        aim = os.path.normpath(os.path.join(os.path.dirname(document), found[2]))
        aim = homes.get(aim, aim.removeprefix("docs/") if aim.startswith("docs/") else "")
        return found[1] + (os.path.relpath(aim, os.path.dirname(page) or ".") if aim else "")

    return re.sub(r"\[([^\]]+)\]\(\)", r"\1", LINK.sub(turn, text))
