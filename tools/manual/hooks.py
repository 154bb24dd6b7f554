"""What mkdocs calls: adds the generated pages, and puts generated parts where a page says {{ NAME ARGUMENT }}."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # mkdocs loads this file by its path

from tools.manual import included, papers, parts, reference  # noqa: E402
from tools.manual.parts import PLACE  # noqa: E402

NO_BREAK = "\N{NO-BREAK SPACE}"
INTERVAL = re.compile(r"\d \[\d+\.\d+, \d+\.\d+\](?=[^\n]*\|$)", re.MULTILINE)
"""An accuracy's last digit and its interval, in a table."""
SPAN = re.compile(r"<code>[^<]*</code>")
HYPHENATED = re.compile(r"(?<![^\s>])(?=[^\s<>]{1,36}(?![^\s<]))[^\s<>-]*-[^\s<>]*")
"""A word of a code span with a hyphen, up to the length that a phone's line has."""


def on_config(config: Any) -> Any:
    """Add a page of the navigation for every plugin."""
    try:
        plugins = papers.plugins()
    except RuntimeError as error:  # what is missing, which mkdocs then says in a line
        raise PluginError(str(error)) from None
    for entry in config.nav:
        for title, pages in entry.items():
            if title == "The papers":
                pages[1:1] = [{plugin.name: f"papers/{plugin.name}.md"} for plugin in plugins]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are written from the code, from cards, kept results and the repository's documents."""
    written = {**included.pages(), **papers.pages(), **reference.pages()}
    for name, text in written.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill the places of a page."""

    def fill(found: re.Match[str]) -> str:
        name, argument = found.groups()
        if name not in parts.PARTS:
            raise PluginError(f"{page.file.src_uri}: no part {name!r}: expected one of {', '.join(parts.PARTS)}")
        return parts.PARTS[name](*(argument or "").split())

    return INTERVAL.sub(lambda found: found[0].replace(" ", NO_BREAK), PLACE.sub(fill, markdown))


def on_page_content(html: str, **_: Any) -> str:
    """Keep words with a hyphen whole in code: a line that ends in `--` hides which option it is."""

    def keep(found: re.Match[str]) -> str:
        return HYPHENATED.sub(r'<span class="word">\g<0></span>', found[0])

    return SPAN.sub(keep, html)
