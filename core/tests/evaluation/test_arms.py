"""What the attackers of a transfer face: each source, and several at once."""

from types import SimpleNamespace

import torch

from defend.defence import Defence
from defend.evaluation.arms import _faced
from defend.evaluation.assemble import _weakest_of
from defend.testing.toys import TASK, TinyVictim, images
from defend.values.run_config import RunConfig
from defend.values.threats import DEFENDED, UNDEFENDED


def faced(sources, **values):
    arms = {UNDEFENDED: Defence(TinyVictim())}
    names = {UNDEFENDED: UNDEFENDED, DEFENDED: UNDEFENDED}
    return _faced(RunConfig(victim="resnet18", **values), "", names, arms, sources)


def test_several_sources_are_also_attacked_as_the_mean_of_their_logits():
    sources = {"one": TinyVictim(), "other": TinyVictim(seed=1)}
    seen, made, left_out = faced(sources, threats=("transfer",))
    assert seen["transfer"] == {
        "one": "source one",
        "other": "source other",
        "one + other": "source one + other",
    }
    batch = images(TASK, 2)
    mean = (sources["one"](batch) + sources["other"](batch)) / 2
    torch.testing.assert_close(made["source one + other"](batch), mean)
    assert left_out == {}


def test_one_source_and_a_quick_run_have_no_mean():
    assert list(faced({"one": TinyVictim()}, threats=("transfer",))[0]["transfer"]) == ["one"]
    assert list(faced({"one": TinyVictim(), "other": TinyVictim()})[0]["transfer"]) == ["one", "other"]


def test_of_each_threat_with_a_choice_the_row_that_leaves_least_is_told():
    rows = [
        SimpleNamespace(threat=threat, key=key)
        for threat, key in (("none", "clean"), ("transfer", "one"), ("transfer", "both"), ("query", "square"))
    ]
    assert _weakest_of(rows, {"clean": 9, "one": 5, "both": 4, "square": 1}) == {"transfer": "both"}
