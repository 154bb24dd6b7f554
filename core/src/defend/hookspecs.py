"""The hooks of `defend`: what a plugin may offer.

A plugin is a module with any of these functions, marked with `@hookimpl`, and an entry point in the
group "defend" that names the module. Each returns specs and changes nothing; none may import torch.

    from defend import Paper, StageSpec, hookimpl

    @hookimpl
    def defend_purifiers():
        return [StageSpec(name="haze", summary="Gaussian blur", build="my_haze.purifier:build")]
"""

from __future__ import annotations

from collections.abc import Sequence

import pluggy

from defend.recipes import Recipe
from defend.stages import StageSpec
from defend.tables import Table

GROUP = "defend"
hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


@hookspec
def defend_attacks() -> Sequence[StageSpec]:  # type: ignore[empty-body]
    """Attacks: make adversarial images within a budget (`defend.stages.Attack`)."""


@hookspec
def defend_purifiers() -> Sequence[StageSpec]:  # type: ignore[empty-body]
    """Purifiers: image to image, before the victim (`defend.stages.Purifier`)."""


@hookspec
def defend_detectors() -> Sequence[StageSpec]:  # type: ignore[empty-body]
    """Detectors: a score per image, and a threshold that rejects (`defend.stages.Detector`)."""


@hookspec
def defend_victims() -> Sequence[StageSpec]:  # type: ignore[empty-body]
    """Victims: the classifiers to protect, images in [0,1] to logits."""


@hookspec
def defend_finetuners() -> Sequence[StageSpec]:  # type: ignore[empty-body]
    """Fine-tuners: adapt a victim to a purifier's outputs (`defend.train.Training`)."""


@hookspec
def defend_datasets() -> Sequence[StageSpec]:  # type: ignore[empty-body]
    """Data sets: labelled images by name (`defend.datasets.base.ImageDataset`)."""


@hookspec
def defend_tables() -> Sequence[Table]:  # type: ignore[empty-body]
    """Tables of a paper, to be measured again (`defend.tables.Table`)."""


@hookspec
def defend_recipes() -> Sequence[Recipe]:  # type: ignore[empty-body]
    """Recipes: whole defences by name, with what was measured of them (`defend.recipes.Recipe`)."""
