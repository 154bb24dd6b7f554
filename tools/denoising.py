"""Measures how well the shipped purifiers take noise away, and writes it into their cards; no weight is touched.

    python -m tools.denoising [PLUGIN ...]       # the data sets lie in $DEFEND_DATA_DIR
    python -m tools.denoising --readme           # nothing is measured: the READMEs' tables, from the cards as they are

A training measures this by itself (`defend.training.denoising`); this is for weights that were trained before it did.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import attrs
import torch

from defend.assembly.load import open_dataset
from defend.assembly.stage import build_stage
from defend.errors import DefendError, UnknownNameError
from defend.report import readme
from defend.training.denoising import IMAGES, SIGMAS, find_fault, measure_denoising
from defend.values.editions import EDITION
from defend.weights.card import read_card
from defend.weights.files import save

ROOT = Path(__file__).parents[1]


def find_files(plugin: str) -> Iterator[Path]:
    """Yield the weights of purifiers that a plugin of this checkout ships."""
    yield from sorted(ROOT.glob(f"plugins/{plugin}/src/*/weights/purifier-*.safetensors"))


def measure(path: Path) -> None:
    """Measure a purifier's weights, and write the figures into its card."""
    card = read_card(path)
    module = build_stage("purifier", card.name, card.task(), weights=str(path)).module.eval()
    figures = measure_denoising(module, open_dataset(card.dataset["name"]), torch.device("cpu"))
    kept = save(path, module, attrs.evolve(card, figures={**card.figures, **figures}))
    if kept.content_sha256 != card.content_sha256:
        raise SystemExit(f"{path.name}: its weights changed by being written")


def describe(files: Iterable[Path]) -> str:
    """Return the table for a README: of every file the PSNR at every scale, (noisy, blurred) in brackets."""
    body = []
    for path in files:
        card, (_, plus, edition) = read_card(path), path.stem.partition(EDITION)
        cells = []
        for sigma in SIGMAS:
            made, noisy, blurred = (card.figures[f"val_psnr_{sigma}{which}"] for which in ("", "_noisy", "_blur"))
            cells.append(f"{made:.1f} ({noisy:.1f}, {blurred:.1f})")
        body.append([f"{card.filing}{plus}{edition}", *cells, "no" if find_fault(card) else "yes"])
    lines = readme.grid(["PSNR in dB", *(f"noise {sigma}/255" for sigma in SIGMAS), "denoises"], body)
    said = (
        f"Of {IMAGES} held-out images with Gaussian noise: after the purifier, in brackets the noisy image and a "
        "3x3 binomial blur of it. It denoises if it is no worse than either at 8/255 (colour) or 25/255 (grey), as "
        "large as the usual attacks. Every training ends with this measurement; `python -m tools.denoising`."
    )
    return "\n".join([*lines, "", said]) + "\n"


def choose(named: Sequence[str]) -> list[str]:
    """Return the plugins of these names that ship purifiers; all of those, without any.

    Raises:
        UnknownNameError: a name is none of theirs.
    """
    shipping = [path.name for path in sorted(ROOT.glob("plugins/*/")) if any(find_files(path.name))]
    for name in named:
        if name not in shipping:
            raise UnknownNameError("plugin that ships purifiers", name, shipping)
    return list(dict.fromkeys(named)) or shipping


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the purifiers of some plugins, of all if none is named, and write their READMEs.

    Returns:
        0, or 2 for wrong input.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tools.denoising", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("plugins", nargs="*", metavar="PLUGIN", help="a folder of plugins/ (default: all)")
    parser.add_argument("--readme", action="store_true", help="measure nothing: write the READMEs from the cards")
    given = parser.parse_args(arguments)
    try:
        for plugin in choose(given.plugins):
            files = list(find_files(plugin))
            for path in () if given.readme else files:
                measure(path)
            readme.fill(ROOT / "plugins" / plugin / "README.md", "denoising", {plugin: describe(files)})
    except DefendError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
