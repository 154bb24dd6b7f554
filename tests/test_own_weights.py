"""Weights that users bring, through the commands: a run tells of them, and goes on as with any other."""

import attrs
import pytest
import torch

from defend.assembly.load import open_dataset
from defend.assembly.stage import build_stage
from defend.weights.files import save
from defend.weights.origin import describe

pytestmark = pytest.mark.filterwarnings("always:weights:UserWarning")  # a command prints them
QUICK = ("--limit", 12, "--attack", "fgsm", "--threat", "oblivious", "--quiet", "--json")


@pytest.fixture
def mine(tmp_path):
    """The state of the shipped victim's network, as a trainer with DataParallel would have kept it."""
    state = build_stage("victim", "resnet18", open_dataset("digits").task()).module.network.state_dict()
    path = tmp_path / "mine.pth"
    torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}, path)
    return path


def test_a_run_tells_of_the_users_weights_and_goes_on(defend, mine):
    arguments = ("run", "--victim", "resnet18", *QUICK, "--out", "mine")
    answer = defend(*arguments, "--victim-weights", mine)
    assert answer.code == 0, answer.error
    assert "warning: weights" in answer.error and "without the prefix 'module.'" in answer.error
    (note,) = (note for note in answer.json["notes"] if "mine.pth" in note)
    assert "Their accuracy was not known before; here it is 100.0 % of 12 clean images" in note
    assert "Usual causes" not in note
    assert answer.json["dataset"]["seen"] == {"victim": "unknown"}
    assert (
        "it is not known what the weights of victim ('mine.pth') were trained on"
        in answer.json["dataset"]["warnings"][0]
    )
    weights = answer.json["weights"]["victim"]
    assert (weights["file"], weights["figures"]) == ("mine.pth", {})
    again = defend("run", "--config", "mine/config.toml", "--quiet", "--json")
    assert again.code == 0 and again.json["weights"]["victim"] == weights


def test_a_victim_at_chance_is_told_the_usual_causes(defend, mine):
    state = torch.load(mine, weights_only=True)["state_dict"]
    state["module.fc.weight"] = state["module.fc.weight"].roll(3, 0)  # the classes in another order
    state["module.fc.bias"] = state["module.fc.bias"].roll(3, 0)
    torch.save(state, mine)
    answer = defend("run", "--victim", "resnet18", *QUICK, "--out", "shifted", "--victim-weights", mine, "--gate")
    assert answer.code == 3
    (note,) = (note for note in answer.json["notes"] if "mine.pth" in note)
    assert "which is chance. Usual causes: normalisation" in note and "(--mean, --std)" in note and "stem" in note


def test_predict_and_export_take_them_too(defend, mine, tmp_path):
    from defend.util.images import write_image

    pictures, labels = open_dataset("digits").tensors("test", 1)
    write_image(tmp_path / "one.png", pictures[0])
    answer = defend("predict", tmp_path / "one.png", "--victim", "resnet18", "--victim-weights", mine, "--json")
    assert answer.code == 0, answer.error
    assert answer.json[0]["undefended"]["label"] == str(int(labels[0]))
    answer = defend("export", "--victim", "resnet18", "--victim-weights", mine, "--out", tmp_path / "m.pt2", "--json")
    assert answer.code == 0, answer.error


def test_weights_of_a_training_that_failed_are_told(defend, tmp_path):
    shipped = build_stage("purifier", "dae", open_dataset("digits").task())
    kept, why = tmp_path / "kept.safetensors", "purifier dae failed in finish: no such thing"
    save(kept, shipped.module, attrs.evolve(shipped.card, recipe={**shipped.card.recipe, "cut_short": why}))
    arguments = ("run", "--victim", "resnet18", "--purifier", "dae", *QUICK)
    answer = defend(*arguments, "--purifier-weights", kept, "--out", "failed")
    assert answer.code == 0, answer.error
    assert f"warning: weights '{kept}' are of a training that failed before its end, " in answer.error
    assert f"may be missing, as a threshold: {why}\n" in answer.error
    known = answer.json["weights"]["purifier"]
    assert known["cut_short"] == why
    assert describe(known).endswith(f", of a training that failed before its end ({why})")


def test_a_file_that_does_not_fit_is_one_line(refused, mine):
    line = refused("run", "--victim", "resnet34", "--victim-weights", mine, "--limit", 4, "--quiet")
    assert "do not fit victim resnet34" in line and "missing" in line and "another architecture" in line


def test_the_flags_for_normalisation_are_short_for_the_victims_options(defend, refused, mine):
    arguments = ("run", "--victim", "resnet18", "--victim-weights", mine)
    answer = defend(*arguments, *QUICK, "--out", "half", "--mean", "half", "--std", "0.5")
    assert answer.code == 0, answer.error
    assert answer.json["config"]["options"] == {"victim": {"mean": "half", "std": "0.5"}}
    assert "give both" in refused(*arguments, "--mean", "half")
    assert "give one of the two" in refused(*arguments, "--mean", "half", "--set", "victim.mean=none")
