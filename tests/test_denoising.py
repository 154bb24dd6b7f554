"""What the plugins' READMEs say of their purifiers against noise is what their weights' cards say."""

import pytest
from tools.denoising import ROOT, describe, find_files

SHIPPING = [path.name for path in sorted((ROOT / "plugins").iterdir()) if list(find_files(path.name))]


@pytest.mark.parametrize("plugin", SHIPPING)
def test_the_readme_has_the_cards_figures(plugin):
    text = (ROOT / "plugins" / plugin / "README.md").read_text(encoding="utf-8")
    block = text.partition(f"<!-- denoising {plugin} -->")[2].partition(f"<!-- end {plugin} -->")[0]
    assert block.strip("\n") == describe(find_files(plugin)).strip("\n"), "python -m tools.denoising"


def test_every_plugin_that_offers_a_purifier_is_held_to_it():
    assert len(SHIPPING) == 5
