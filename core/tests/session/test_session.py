"""Objects of a session: evaluated, trained for and calibrated without a package, and left as they were."""

import csv
import functools
import threading

import attrs
import pytest
import torch
from PIL import Image
from torch import nn

import defend
from defend.custom.build import Function
from defend.defence import Defence, PurifierSequence
from defend.errors import ConfigError, ContractError, DataError
from defend.evaluation.provenance import _holds_weights
from defend.plugins import registry
from defend.records.compare import compare
from defend.records.reading import read_run
from defend.report.terminal import more_steps
from defend.testing.toys import TASK, TinyVictim, images

QUICK = {
    "limit": 12,
    "adaptive_limit": 4,
    "attacks": ["fgsm"],
    "checks": "none",
    "progress": False,
    "precision": "fp32",
}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return TinyVictim(TASK).train()


@pytest.fixture
def data(model):
    batch = images(TASK, 40)
    with torch.no_grad():
        return batch, model(batch).argmax(1)


class Blur(nn.Module):
    random = False

    def __init__(self):
        super().__init__()
        self.passes = 0

    def forward(self, batch):
        self.passes += 1
        return nn.functional.avg_pool2d(batch, 3, 1, 1)


class Score(nn.Module):
    random = False

    def __init__(self):
        super().__init__()
        self.register_buffer("threshold", torch.tensor(float("inf")))

    def forward(self, batch, purified):
        return (batch - purified).flatten(1).abs().sum(1)


def test_a_model_is_evaluated_and_left_as_it_was(model, data, tmp_path):
    blur = Blur()
    found = defend.evaluate(
        model, data, purifier=blur, out=tmp_path / "mine", threats=["oblivious", "adaptive"], **QUICK
    )
    assert [(row.attack, row.threat, row.n) for row in found.rows] == [
        ("none", "none", 12),
        ("fgsm", "oblivious", 12),
        ("fgsm", "adaptive", 4),
    ]
    assert found.worst_case is not None and not found.partial and found.failed == ()
    assert model.training and not hasattr(model, "stage_name") and blur.passes == 0
    assert found.folder == tmp_path / "mine" and (found.folder / "report.json").is_file()
    assert "Blur + TinyVictim on given" in str(found)
    assert "held out" in str(found)


class Held(nn.Module):
    """A part that cannot be copied, as one that holds a session or a file cannot."""

    def __init__(self, module, strength=1.0):
        super().__init__()
        self.module, self.strength, self.lock = module, strength, threading.Lock()

    def forward(self, batch):
        return self.module(batch) * self.strength


def test_parts_that_cannot_be_copied_are_given_back_as_they_were(model, data):
    """Else her next training step learns nothing, and a purifier that draws later is taken for one that does not."""
    victim, purifier = Held(model).train(), Held(nn.Identity())
    wanted = [weight.requires_grad for weight in victim.parameters()]
    layouts = [weight.stride() for weight in victim.parameters()]
    defend.evaluate(victim, data, purifier=purifier, **QUICK)
    assert all(part.training for part in victim.modules())
    assert [weight.requires_grad for weight in victim.parameters()] == wanted and any(wanted)
    assert [weight.stride() for weight in victim.parameters()] == layouts
    assert not {"random", "stage_name"} & {*vars(victim), *vars(purifier)}


@pytest.mark.parametrize("how", ["enclosed", "bound", "partial"])
def test_a_function_over_a_network_in_training_mode_trains_nothing(data, how):
    """Else attacked images would move its batch statistics, and its dropout would look like a defence."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.BatchNorm2d(TASK.channels), nn.Dropout(0.5), TinyVictim(TASK)).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    functions = {
        "enclosed": lambda batch: network(batch),
        "bound": network.forward,
        "partial": functools.partial(lambda model, batch: model(batch), network),
    }
    with pytest.warns(UserWarning, match="Sequential is in training mode"):
        defend.evaluate(functions[how], data, **QUICK)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(part.training for part in network.modules())


class Frozen(nn.Module):
    """A part that keeps its norms in eval mode, in the usual way, whose `train` returns nothing."""

    random = False

    def __init__(self, module):
        super().__init__()
        self.module, self.norm = module, nn.BatchNorm2d(TASK.channels)

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()

    def forward(self, batch):
        return self.module(self.norm(batch)).clamp(0, 1) if isinstance(self.module, nn.Identity) else self.module(batch)


def test_a_part_whose_train_returns_nothing_is_used_like_any_other(model, data):
    found = defend.evaluate(Frozen(model), data, purifier=Frozen(nn.Identity()), **QUICK)
    assert found.rows[0].n == 12


class Dark(nn.Module):
    random = False

    def forward(self, batch):
        return batch * 0


NAMES = ["blur,dark", "own.py:load", "folder/own.py:load", "resnet18", "timm", "timm:resnet18", "none", "os:path"]


@pytest.mark.parametrize("name", NAMES)
def test_an_object_is_what_is_measured_whatever_its_name(model, data, name):
    dark = Dark()
    dark.stage_name = model.stage_name = name
    with torch.no_grad():
        answer = int(model.eval()(torch.zeros_like(data[0][:1])).argmax())
    found = defend.evaluate(model, data, purifier=dark, threats=["oblivious"], **QUICK)
    clean = found.rows[0]
    lines = list(csv.DictReader((found.folder / "records.csv").read_text(encoding="utf-8").splitlines()))
    # the victim is right on all that it sees, and of dark images it sees nothing
    assert clean.undefended.accuracy == 1
    assert {line["predicted"] for line in lines if line["arm"] == "defended"} == {str(answer)}
    assert found.report.given == ("victim", "purifier", "dataset")


def test_a_sequence_of_objects_is_measured_as_it_is(model, data):
    sequence = Defence(model, PurifierSequence([Blur(), Dark()]))
    assert sequence.purifier.stage_name == "Blur,Dark"
    found = defend.evaluate(sequence, data, threats=["oblivious"], **QUICK)
    assert found.report.config.purifier == "Blur + Dark"
    with torch.no_grad():
        answer = model.eval()(torch.zeros_like(data[0][:1])).argmax()
    lines = list(csv.DictReader((found.folder / "records.csv").read_text(encoding="utf-8").splitlines()))
    assert {line["predicted"] for line in lines if line["arm"] == "defended"} == {str(int(answer))}


def test_a_run_tells_models_of_one_class_apart(model, data):
    other = TinyVictim(TASK)
    with torch.no_grad():
        other.head.weight.neg_()
    runs = [defend.evaluate(each, data, threats=["oblivious"], **QUICK) for each in (model, other)]
    first, second = (run.report.weights["victim"] for run in runs)
    assert first["origin"] == "given" and first["sha256"] != second["sha256"]
    compared = compare([read_run(run.folder) for run in runs])
    assert any(note.startswith("victims differ") for note in compared.notes)


def scripted(model):
    return torch.jit.script(model)


def traced(model):
    return torch.jit.trace(model, images(TASK, 2))


def frozen(model):
    return torch.jit.freeze(torch.jit.script(model))


@pytest.mark.parametrize("make", [scripted, traced, frozen])
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_model_of_torchscript_is_measured_as_the_one_it_was_made_from(data, make):
    plain = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(images(TASK, 1).numel()), nn.Linear(images(TASK, 1).numel(), 10))
    plain = plain.eval()
    runs = [defend.evaluate(each, data, threats=["oblivious"], eps=0.02, **QUICK) for each in (plain, make(plain))]
    assert [row.defended for row in runs[0].rows] == [row.defended for row in runs[1].rows]
    assert all(weight.requires_grad for weight in plain.parameters())


class Named(nn.Module):
    """Answers by name."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(images(TASK, 1).numel(), 10)

    def forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.head(batch.flatten(1))}


class Offset(nn.Module):
    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return (batch + 0.05 * torch.rand(())).clamp(0.0, 1.0)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_torchscript_may_answer_by_name_and_draw(data):
    purifier = torch.jit.script(Offset())
    purifier.random = True
    victim = torch.jit.script(Named())
    found = defend.evaluate(victim, data, purifier=purifier, threats=["adaptive"], eps=0.02, **QUICK)
    assert [row.budget["draws"] for row in found.rows if row.threat == "adaptive"] == [20]


def test_a_command_is_not_told_where_none_finds_the_objects(model, data):
    attacks = {"attacks": ["pgd"], "options": {"pgd": {"steps": 4, "step_size": 0.001}}}
    found = defend.evaluate(model, data, threats=["oblivious"], eps=0.3, **{**QUICK, **attacks})
    assert found.report.given == ("victim", "dataset")
    (row,) = [each for each in found.rows if each.attack == "pgd"]
    loose = attrs.evolve(found.report, rows=(attrs.evolve(row, curve={**row.curve, "flattened": False}),))
    assert more_steps(loose) == "evaluate(..., options={'pgd': {'steps': 16}})"
    assert "--config" not in str(attrs.evolve(found, report=loose)) + found.page().read_text()


def test_an_interrupted_evaluation_says_so(model, data):
    class Impatient(Blur):
        def forward(self, batch):
            if torch.is_grad_enabled():
                raise KeyboardInterrupt
            return super().forward(batch)

    with pytest.warns(UserWarning, match="was interrupted: rows are missing"):
        found = defend.evaluate(model, data, purifier=Impatient(), threats=["adaptive"], **QUICK)
    assert found.partial


def test_without_a_folder_everything_is_gone_with_the_object(model, data, tmp_path):
    found = defend.evaluate(model, data, threats=["oblivious"], **QUICK)
    folder = found.folder
    assert found.page(tmp_path / "page.html").is_file()
    assert found._repr_html_().startswith("<iframe srcdoc=")
    del found
    assert not folder.exists()


def test_a_defence_is_taken_apart_and_names_work_beside_objects(model, data):
    whole = Defence(model, Blur())
    found = defend.evaluate(whole, data, threats=["oblivious"], **QUICK)
    assert (found.report.config.victim, found.report.config.purifier) == ("TinyVictim", "Blur")
    with pytest.raises(ConfigError, match="has parts of its own"):
        defend.evaluate(whole, data, purifier=Blur(), **QUICK)
    named = defend.evaluate("resnet18", "digits", purifier=Blur(), threats=["oblivious"], **QUICK)
    assert named.report.dataset.name == "digits"


def test_a_model_that_wants_normalised_images_is_wrapped(model, data):
    class Normalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, batch):
            return self.inner(batch * 0.2 + 0.3)

    rows = [
        defend.evaluate(each, data, threats=["oblivious"], **more, **QUICK).rows
        for each, more in ((model, {}), (Normalised(), {"mean": 0.3, "std": 0.2}))
    ]
    assert [row.defended.accuracy for row in rows[0]] == [row.defended.accuracy for row in rows[1]]
    with pytest.raises(ConfigError, match="std is missing"):
        defend.evaluate(model, data, mean=0.5, **QUICK)


@pytest.mark.parametrize(
    ("mean", "std", "words"),
    [
        ((127.5,), (127.5,), r"mean=\(127.5,\) is out of range: expected 0 to 1: did you mean 0.5 \(divided by 255\)"),
        (0.5, 0, "std=.* is out of range: expected 0.001 to 1$"),
        (0.5, float("nan"), "std=.* is out of range: expected 0.001 to 1"),
        (True, 0.5, "mean=.* is not a number"),
        ("haf", "half", "mean='haf' is not .* one of imagenet, cifar10, half, none"),
        ("dataset", "dataset", "mean='dataset' is not a number"),  # of a model that is given nobody knows it
        ((), (), "mean is empty"),
        ((0.5, 0.4), 0.5, "mean has 2 numbers, and the images have 3 channels"),
    ],
)
def test_mean_and_std_are_held_to_what_the_command_line_holds_them_to(mean, std, words):
    colour = attrs.evolve(TASK, channels=3)
    batch = images(colour, 40)
    with pytest.raises(ConfigError, match=words):
        defend.evaluate(TinyVictim(colour), (batch, torch.arange(40) % 10), mean=mean, std=std, **QUICK)


def test_mean_and_std_go_by_names_and_are_given_once(model, data):
    rows = [
        defend.evaluate(own, data, mean=mean, std=std, threats=["oblivious"], **QUICK)
        for own, mean, std in (
            (model, "half", "half"),
            (model, torch.tensor([0.5]).view(1, 1, 1), [0.5]),
            (lambda images, mean=0: model.eval()(images), 0.5, 0.5),
        )
    ]
    assert rows[0].rows[0].defended.accuracy < 1  # as it was trained on images in [0,1]
    assert len({run.rows[0].defended.accuracy for run in rows}) == 1
    assert rows[0].report.config.victim == "TinyVictim"
    with pytest.raises(ConfigError, match=r"mean= is short for .*: give one of the two"):
        defend.evaluate(model, data, mean=0.5, std=0.5, options={"victim": {"mean": 0.5}}, **QUICK)


def test_three_numbers_make_grey_images_those_of_a_network_that_takes_colour(data):
    torch.manual_seed(0)
    colour = TinyVictim(attrs.evolve(TASK, channels=3)).eval()
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    with torch.no_grad():
        wanted = (data[0] - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
        labels = colour(wanted).argmax(1)
    found = defend.evaluate(colour, (data[0], labels), classes=10, mean=mean, std=std, threats=["oblivious"], **QUICK)
    assert found.rows[0].defended.accuracy == 1


def test_what_is_wrong_is_told(model, data):
    with pytest.raises(ConfigError, match=r"unknown argument 'epz' of evaluate: did you mean 'eps'"):
        defend.evaluate(model, data, epz=0.1)
    with pytest.raises(DataError, match="dictionary"):
        defend.evaluate(model, {"image": data[0], "label": data[1]})


def test_a_part_is_trained_in_front_of_the_model(model, data):
    trained = defend.train("purifier", "dae", data, victim=model, options={"epochs": 1}, progress=False)
    assert trained(data[0][:2]).shape == data[0][:2].shape
    assert not trained.training and model.training
    found = defend.evaluate(model, data, purifier=trained, threats=["oblivious"], **QUICK)
    assert found.report.config.purifier == "dae as given"  # not the one of that name that is installed
    with pytest.raises(ConfigError, match="the training of purifier apudae uses no victim"):
        defend.train("purifier", "apudae", data, victim=model, progress=False)


def test_what_was_trained_with_options_is_returned_with_them(data, tmp_path):
    chosen = {"epochs": 1, "width": 4, "depth": 3, "variant": "E", "steps": 3}
    trained = defend.train("purifier", "apudae", data, options=chosen, out=tmp_path / "w.safetensors", progress=False)
    assert (trained.config.variant, trained.config.steps, trained.config.width) == ("E", 3, 4)


def test_a_detector_is_calibrated_on_images_that_are_given(model, data):
    whole = Defence(model.eval(), Blur(), Score())
    said = defend.calibrate(whole, data, fpr=0.1)
    assert said.n == 40
    rejected = ~whole.judge(data[0]).accepted
    assert float(rejected.double().mean()) == said.measured <= 0.1


@pytest.fixture
def folders(tmp_path):
    for name, count in (("a", 200), ("b", 100)):
        for place in range(count):
            path = tmp_path / name / "xy"[place % 2] / f"{place}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (place, len(name), 0)).save(path)
    return tmp_path


def test_a_path_is_given_as_its_arrays_would_be(folders, monkeypatch):
    seen = {}

    def stop(stage, name, images, **_):
        seen.update({split: len(images.labels(split)) for split in ("train", "val", "test")})
        raise KeyboardInterrupt

    monkeypatch.setattr("defend.session.prepare.train_stage", stop)
    for data in (str(folders / "a"), folders / "a", defend.dataset(folders / "a", options={"hold_out": False})):
        with pytest.raises(KeyboardInterrupt):
            defend.train("purifier", "dae", data, val=folders / "b", progress=False)
        assert seen == {"train": 160, "val": 100, "test": 40}
    with pytest.raises(KeyboardInterrupt):
        defend.train("purifier", "dae", str(folders / "a"), progress=False)
    assert seen == {"train": 144, "val": 16, "test": 40}


def test_a_detector_is_calibrated_on_all_images_of_a_folder(folders):
    whole = Defence(TinyVictim(attrs.evolve(TASK, channels=3, classes=2)).eval(), Blur(), Score())
    said = defend.calibrate(whole, folders / "b", fpr=0.2)
    assert (said.n, said.measured) == (100, 0.2) and said.dataset.startswith("imagefolder-")


def test_registries_of_sessions_are_their_own(model, data):
    defend.evaluate(model, data, threats=["oblivious"], **QUICK)
    with pytest.raises(defend.DefendError):
        registry().find("victim", "TinyVictim")


class RobustBenchModel(nn.Module):
    """The shape of RobustBench's models: an own normalisation in buffers, an own forward, images in [0,1] to logits."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mu", torch.full((1, 1, 1), 0.3))
        self.register_buffer("sigma", torch.full((1, 1, 1), 0.38))
        self.layers = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 10))

    def forward(self, batch):
        return self.layers((batch - self.mu) / self.sigma)


def test_a_model_of_robustbenchs_shape_is_one_like_any_other(data):
    torch.manual_seed(0)
    model = RobustBenchModel()
    with torch.no_grad():
        labels = model(data[0]).argmax(1)
    with pytest.raises(ContractError, match=r"answers for 10 classes.*say so with classes=10"):
        defend.evaluate(model, (data[0], labels % 4), threats=["oblivious"], **QUICK)
    found = defend.evaluate(model, (data[0], labels), classes=10, threats=["oblivious"], **QUICK)
    assert found.rows[0].defended.accuracy == 1 and found.report.config.victim == "RobustBenchModel"
    assert "no finite" not in str(found) and found.rows[1].gradients["never"] == 0


def test_a_run_of_a_data_set_that_is_handed_over_says_its_name(data):
    from defend.assembly.load import as_dataset
    from defend.evaluation.runner import run_arms
    from defend.plugins import using

    images_of_mine = as_dataset(data, name="mine")
    name, plugins = registry().with_thing("victim", TinyVictim(TASK), "tiny")
    with using(plugins):
        config = defend.RunConfig(victim=name, attacks=("fgsm",), threats=("oblivious",), limit=4, checks="none")
        (outcome,) = run_arms([config], plugins=plugins, dataset=images_of_mine)
    assert outcome.report.dataset.name == outcome.report.config.dataset == "mine"


def test_too_few_held_out_images_are_told_before_a_training(model, data):
    with pytest.raises(ConfigError, match=r"false-positive rate of 0\.01 needs at least 100 held-out"):
        defend.train("purifier", "puvae", data, victim=model, progress=False)


def soften(img, share=0.5):
    return (1 - share) * img + share * nn.functional.avg_pool2d(img, 3, 1, 1)


def made(task):
    return Blur()


def strong(width: int):
    return Blur()


@pytest.mark.parametrize("purifier", [soften, lambda i: i, lambda img: img * 0.9, made])
def test_a_function_of_one_argument_takes_images_whatever_that_is_called(model, data, purifier):
    found = defend.evaluate(model, data, purifier=purifier, **QUICK)
    assert found.rows[0].n == 12


@pytest.mark.parametrize(("network", "held"), [(None, False), (nn.Conv2d(1, 1, 3, padding=1), True)])
def test_a_function_holds_weights_where_it_calls_a_network(network, held):
    def purify(images):
        return images if network is None else network(images)

    assert _holds_weights(Function(purify)) == held
    assert not _holds_weights(Function(soften))
    assert _holds_weights(Function(functools.partial(soften, share=0.1))), "nobody looks into what is called"


def test_a_function_of_what_is_made_later_may_hold_anything():
    def purify(images):
        return later(images)

    assert _holds_weights(Function(purify))
    later = nn.Identity()
    assert _holds_weights(Function(purify))


def test_an_argument_that_is_annotated_is_an_option(model, data):
    with pytest.raises(ConfigError, match="purifier strong has no default for width: give a value"):
        defend.evaluate(model, data, purifier=strong, **QUICK)
    defend.evaluate(model, data, purifier=strong, options={"purifier": {"width": 3}}, **QUICK)


def test_a_function_of_several_things_is_told_how_to_be_one_of_images(model, data):
    with pytest.raises(
        ConfigError, match=r"an argument 'a' without a default .* call it 'images' if the function takes"
    ):
        defend.evaluate(model, data, purifier=lambda a, b: a, **QUICK)


@pytest.mark.parametrize("as_function", [False, True])
def test_of_a_model_of_ones_own_nobody_knows_what_it_was_trained_on(model, as_function):
    own = (lambda images: model(images)) if as_function else model
    found = defend.evaluate(own, "digits", purifier="dae", threats=["oblivious"], **QUICK)
    assert found.report.dataset.seen == {"victim": "unknown", "purifier": "no"}
    assert any("not known what your own victim was trained on" in line for line in found.report.dataset.warnings)
    assert "were not trained on them" not in found.report.dataset.images["said"]
