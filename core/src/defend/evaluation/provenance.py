"""Whose images were judged, and whether training could have seen them: the data set's part of a report."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from defend.assembly.stage import Built
from defend.custom.build import Function
from defend.datasets.base import ImageDataset, Origin, Split
from defend.datasets.twins import Duplicates
from defend.fingerprints.values import globals_read
from defend.values.report import DatasetInfo

SPLIT: Split = "test"


def describe(name: str, dataset: ImageDataset, judged: int, built: Mapping[str, Built]) -> DatasetInfo:
    """Return what a report says of its test images.

    Args:
        name: what the user typed.
        judged: how many images the largest row has.
        built: the parts of the defence, with the cards of their weights.
    """
    n, origin = len(dataset.labels(SPLIT)), dataset.origin(SPLIT)
    seen = {
        part: _find_seen(value, dataset, origin)
        for part, value in built.items()
        if value.card is not None or getattr(value.config, "pretrained", False) or _is_unknown(part, value)
    }
    twins = dataset.duplicates()
    warnings = []
    cards = {part: value.card for part, value in built.items() if value.card is not None}
    if own := [f"{part} ({card.foreign!r})" for part, card in cards.items() if card.foreign]:
        warnings.append(
            f"training could have seen the test images: it is not known what the weights of {', '.join(own)} were "
            "trained on"
        )
    if mine := [part for part, value in built.items() if _is_unknown(part, value)]:
        warnings.append(
            f"training could have seen the test images: it is not known what your own {', '.join(mine)} was trained on"
        )
    if old := [part for part, card in cards.items() if card.overwritten]:
        warnings.append(
            f"training could have seen the test images: an earlier version set the threshold of {', '.join(old)}, and "
            "no longer says what the weights were trained on; set it anew from their own weights (defend calibrate)"
        )
    unsaid = {part for part, card in cards.items() if card.foreign or card.overwritten}
    if others := [part for part in cards if seen[part] == "unknown" and part not in unsaid]:
        known = f"were trained on other images than the training split of this {name}"
        if not dataset.has("train"):
            known = f"do not say on which, and this {name} has no training split"
        warnings.append(f"training could have seen the test images: the weights of {', '.join(others)} {known}")
    if twins is not None:
        if twins.n:  # weights trained on the training split saw the copies that stand there too
            seen = {part: "some" if said == "no" else said for part, said in seen.items()}
        warnings += twins.sentences()
    return DatasetInfo(
        name=name,
        split=SPLIT,
        n=judged,
        sha256=dataset.sha256(SPLIT),
        images=_images(n, origin, dataset.origin("val"), bool(seen) and set(seen.values()) == {"no"}),
        seen=seen,
        duplicates=None if twins is None else _list_twins(twins),
        warnings=tuple(warnings),
    )


def _list_twins(twins: Duplicates) -> dict[str, Any]:
    pairs, of_val = ([list(pair) for pair in each] for each in (twins.pairs, twins.pairs_val))
    return {"n": twins.n, "pairs": pairs, "val": {"n": twins.n_val, "pairs": of_val}}


def _images(n: int, origin: Origin | None, val: Origin | None, unseen: bool) -> dict[str, Any]:
    if origin is None:
        folder, cut, seed, of, said = None, False, None, n, f"all {n} of the data set's own test split"
    else:
        folder, cut, seed, of = origin.folder, origin.seed is not None, origin.seed, origin.of
        where = f" of the folder {folder!r}" if folder else " that were given" if origin.given else ""
        said = f"{n} of all {of} images{where}, cut off from train by seed {seed}" if cut else f"the {n} images{where}"
        if cut and folder:
            said += " as there is no folder of test images"
        if not cut and n < of and val is not None and val.seed is not None:
            said = f"{n} of the {of} images{where}; {of - n} others, cut off by seed {val.seed}, are held out"
        if origin.stands_in:
            said += ", as there is no 'test'"
            said += f"; what is held out for validation is cut off from train by seed {val.seed}" if val else ""
    said += "; the weights were not trained on them" if unseen else ""
    return {"n": n, "folder": folder, "cut_off": cut, "seed": seed, "of": of, "said": said}


def _is_unknown(part: str, built: Built) -> bool:
    """Whether a part is a user's own, with weights of which no card says what they were trained on."""
    if not built.custom or built.card is not None:
        return False
    return part == "victim" or _holds_weights(built.module)


def _holds_weights(module: nn.Module) -> bool:
    """Whether a part has parameters or buffers, or is a function whose closure or globals hold networks or tensors."""
    if any(True for _ in (*module.parameters(), *module.buffers())):
        return True
    for function in (part.function for part in module.modules() if isinstance(part, Function)):
        if not isinstance(function, types.FunctionType):  # a method, or an object that is called
            return True
        try:
            held = [cell.cell_contents for cell in function.__closure__ or ()]
        except ValueError:  # a closure that is not filled yet
            return True
        if any(isinstance(value, nn.Module | Tensor) for value in (*held, *globals_read(function).values())):
            return True
    return False


def _find_seen(built: Built, dataset: ImageDataset, origin: Origin | None) -> str:
    card = built.card
    if (
        card is None
        or card.foreign
        or card.overwritten
        or card.filing != dataset.filed_as
        or not card.dataset.get("sha256")
    ):
        return "unknown"
    # a name does not say which images a data set has, nor which of them a seed cut off for tests
    cut = origin is not None and origin.seed is not None
    if dataset.published_apart and not cut:
        return "no"
    same = dataset.has("train") and card.dataset["sha256"] == dataset.sha256("train")
    return "no" if same else "unknown"
