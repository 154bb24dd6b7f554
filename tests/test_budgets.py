"""No budget and no step of any installed attack or training may be 0: it would read as robustness."""

import pytest

from defend.errors import ConfigError
from defend.options import describe, make
from defend.plugins import registry

BUDGETS = {"eps", "eps_l2", "eps_max", "pgd_step_size"}
OF_ATTACKS = BUDGETS | {"step_size", "lr", "initial_const", "p_init"}


def find_budgets():
    """Yield (what it is of, its option class, option) of every budget and step that an attack or a training takes."""
    for entry in registry().all_entries():
        spec = entry.spec
        found = [(spec.config, OF_ATTACKS if entry.stage == "attack" else BUDGETS), (spec.recipe, BUDGETS)]
        if entry.stage == "finetuner":
            found[1] = spec.recipe, BUDGETS | {"step_size"}
        for options, names in found:
            for one in describe(options) if options is not None else ():
                if one.name in names:
                    yield pytest.param(options, one.name, id=f"{entry.stage}-{spec.name}-{one.name}")


@pytest.mark.parametrize(("options", "name"), list(find_budgets()))
def test_a_budget_or_a_step_of_nothing_is_refused(options, name):
    with pytest.raises(ConfigError, match=f"{name}=0.* is out of range: expected (above 0|at least 1|1 to )"):
        make(options, {name: "0"}, "it")


def test_there_are_some_of_every_package():
    named = {each.id for each in find_budgets()}
    assert {
        "attack-pgd-step_size",
        "attack-cw-initial_const",
        "attack-fmn-step_size",
        "attack-square-p_init",
        "attack-pgd_joint-step_size",
        "attack-mi_fgsm-step_size",
        "finetuner-adversarial-eps",
        "finetuner-adversarial-step_size",
        "finetuner-dae-eps",
        "purifier-vaegan-eps",
        "purifier-unet_gan-eps_max",
    } <= named
