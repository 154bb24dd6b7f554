"""What a caller in Python gets wrong is answered in one line, as on the command line."""

import inspect
from pathlib import Path

import pytest
from torch import nn

import defend
from defend.errors import ConfigError
from defend.util.processes import resolve_device

WRONG = [
    ({"victim": None}, "victim is None, expected a name$"),
    ({"victim": nn.Identity()}, "victim is Identity, expected a name: defend.evaluate and defend.Defence take modules"),
    ({"purifier": 3}, "purifier is 3, expected a name$"),
    ({"finetune": 3}, "finetune is 3, expected a name$"),
    ({"attacks": [3]}, "one of attacks is 3, expected a name"),
    ({"attacks": 3}, "one of attacks is 3, expected a name"),
    ({"attacks": [print]}, "one of attacks is builtin_function_or_method, expected a name$"),
    ({"threats": [3]}, "one of threats is 3, expected a name"),
    ({"sources": [None]}, "one of sources is None, expected a name"),
    ({"limit": "x"}, "limit is 'x': expected a whole number"),
    ({"limit": True}, "limit is True: expected a whole number"),
    ({"batch_size": 2.5}, r"batch_size is 2\.5: expected a whole number"),
    ({"batch_size": None}, "batch_size is None: expected a whole number"),
    ({"workers": "x"}, "workers is 'x': expected a whole number"),
    ({"seed": "x"}, "seed is 'x': expected a whole number"),
    ({"fpr": "x"}, "fpr is 'x': expected a number"),
    ({"thorough": "no"}, "thorough is 'no': expected True or False"),
    ({"checks": None}, r"unknown checks None: did you mean 'none'\?"),
    ({"budget": 3}, "budget '3' is no span of time"),
    ({"shard": 3}, "shard '3' is no share of a run"),
    ({"options": 3}, "options are 3, expected them by stage"),
    ({"options": {"steps": 3}}, "options are .*, expected them by stage, for example"),
    ({"weights": "mine.safetensors"}, "weights are 'mine.safetensors', expected them by stage"),
    ({"out": 3}, "out is 3, expected a path"),
    ({"victm": "resnet18"}, r"unknown argument 'victm' of RunConfig: did you mean 'victim'\?"),
]


@pytest.mark.parametrize(
    ("wrong", "words"), WRONG, ids=[f"{next(iter(each))}-{at}" for at, (each, _) in enumerate(WRONG)]
)
def test_a_run_refuses_what_is_of_another_type(wrong, words):
    with pytest.raises(ConfigError, match=words):
        defend.RunConfig(**{"victim": "resnet18", **wrong})


def test_a_run_takes_paths_and_says_what_it_has():
    config = defend.RunConfig(victim="resnet18", out=Path("runs"), data_dir=Path("images"))
    assert (config.out, config.data_dir) == ("runs", "images")
    assert "eps" in inspect.signature(defend.RunConfig).parameters


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: defend.load("resnet18", purifer="dae"), r"'purifer' of load: did you mean 'purifier'\?"),
        (lambda: defend.load(None), "victim is None, expected a name$"),
        (lambda: defend.load("resnet18", purifier=nn.Identity()), "purifier is Identity, expected a name: .* modules"),
        (lambda: defend.load("resnet18", weights="x"), "weights are 'x', expected them by stage"),
        (lambda: defend.load("resnet18", options={"victim": 3}), "options are .* expected them by stage"),
        (lambda: resolve_device(3), "device '3' is none that torch knows"),
        (lambda: defend.dataset(nam="digits"), r"'nam' of dataset: did you mean 'name'\?"),
        (lambda: defend.build_stage("purifer", "dae", None), r"unknown stage 'purifer': did you mean 'purifier'\?"),
        (lambda: defend.recipe(None), "unknown recipe None: known are"),
        (lambda: defend.train("purifer", "dae", None), r"unknown stage 'purifer': did you mean 'purifier'\?"),
        (lambda: defend.train("purifier", None, None), "purifier is None, expected a name$"),
        (lambda: defend.train("purifier", "dae", None, options=3), "options are 3, expected a mapping"),
        (lambda: defend.train("purifier", "dae", None, epoch=1), "unknown argument 'epoch' of train: known are stage"),
        (lambda: defend.calibrate(nn.Identity(), None), "defence is Identity, expected a defend.Defence"),
        (lambda: defend.evaluate(None, None), "the model is None: expected an nn.Module"),
        (lambda: defend.run_arms([]), "no runs were given"),
        (lambda: defend.run_arms(defend.RunConfig(victim="resnet18")), "a run came alone, expected a list"),
        (lambda: defend.run({"victim": "resnet18"}), "a run is .*, expected a defend.RunConfig"),
    ],
)
def test_the_python_face_answers_mistakes_in_one_line(call, words):
    with pytest.raises(ConfigError, match=words):
        call()
