"""FILE.py:NAME and MODULE:NAME as the names of stages."""

import copy
import pickle
import sys

import numpy as np
import pytest
import torch
from torch import nn

from defend.assembly.composition import Composition
from defend.attacks.target import Target
from defend.custom.build import Function, OneLogit, _as_purifier, _as_victim
from defend.custom.drawing import Drawing
from defend.custom.reference import load_reference
from defend.datasets.normalised import NormalisedVictim
from defend.defence import Defence
from defend.errors import ConfigError, ContractError, StageError, UnknownNameError
from defend.evaluation.bpda import surrogates_of
from defend.plugins import registry
from defend.randomness import keyed, normal_like
from defend.testing.toys import TASK, TinyVictim, images
from defend.values.references import anchor, shorten, split_reference

FILE = """
import torch
from torch import nn
import beside

class Net(nn.Module):
    def __init__(self, width: int = 4, scale=1.0, name: str | None = None, task=None):
        super().__init__()
        self.width, self.scale, self.task = width, scale, task
        self.head = nn.Linear(task.channels * task.height * task.width, task.classes)
    def forward(self, images):
        return self.head(images.flatten(1))

def load(task, width: int):
    return Net(width, task=task)

def blur(images):
    return images

def noisy(x, sigma=0.1):
    return (x + sigma * torch.randn_like(x)).clamp(0, 1)

def needs(thing): ...

def fails(): raise SystemExit(0)

ready = nn.Identity()
number = 3
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my_parts.py"
    path.write_text(FILE)
    (tmp_path / "beside.py").write_text("")
    yield str(path)
    for name in ("my_parts", "beside"):
        sys.modules.pop(name, None)
    sys.path[:] = [each for each in sys.path if each != str(tmp_path)]


def built(stage, name, **options):
    composition = Composition.of(**{stage: name}, options={stage: options})
    return composition.build(TASK)[stage].module


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("my.py:load", ("my.py", "load")),
        ("/a b/c:d/my.py:load", ("/a b/c:d/my.py", "load")),
        ("json:loads", ("json", "loads")),
        ("os.path:join", ("os.path", "join")),
        ("resnet18", None),
        ("nowhere.at.all:load", None),
        ("torchattacks:PGD", ("torchattacks", "PGD")),  # a family of that name comes first, see `Registry.find`
        ("my.py:", None),
        ("+paper", None),
    ],
)
def test_references_are_told_from_other_names(text, parts):
    assert split_reference(text) == parts


def test_names_are_shortened_and_anchored(tmp_path):
    assert shorten("/a/b/my.py:load,dae") == "my.py:load,dae"
    assert anchor("my.py:load,dae", tmp_path) == f"{tmp_path}/my.py:load,dae"
    assert anchor("/a/my.py:load", tmp_path) == "/a/my.py:load"
    assert anchor("timm:resnet18", tmp_path) == "timm:resnet18"


def test_a_function_or_class_makes_the_stage_and_its_arguments_are_options(file):
    found = registry().find("victim", f"{file}:Net")
    assert found.name == "my_parts.py:Net"
    module = built("victim", f"{file}:Net", width="8", scale="0.5")
    assert (module.width, module.scale, module.task) == (8, 0.5, TASK)
    assert built("victim", f"{file}:load", width=3).width == 3
    with pytest.raises(ConfigError, match=r"unknown option 'widht' of victim my_parts.py:Net: did you mean 'width'"):
        found.config({"widht": 3})
    with pytest.raises(ConfigError, match="width='x' is not a whole number"):
        found.config({"width": "x"})


def test_what_is_missing_is_told(file):
    with pytest.raises(ConfigError, match=r"my_part.py' does not exist: did you mean 'my_parts.py'"):
        registry().find("victim", file.replace("my_parts", "my_part") + ":load")
    with pytest.raises(ConfigError, match="there is no 'laod' in it: did you mean 'load'"):
        registry().find("victim", f"{file}:laod")
    with pytest.raises(ConfigError, match=r"an argument 'thing' without a default .* or call it 'images' if the func"):
        registry().find("victim", f"{file}:needs")
    with pytest.raises(StageError, match=r"victim my_parts.py:fails failed in build: SystemExit: 0"):
        built("victim", f"{file}:fails")
    with pytest.raises(ContractError, match=r"victim my_parts.py:number is int, expected an nn.Module or a function"):
        built("victim", f"{file}:number")
    with pytest.raises(ConfigError, match=r"my_parts.py' is a whole file: name a class or function in it .*:NAME"):
        registry().find("victim", file)
    with pytest.raises(UnknownNameError):
        registry().find("victim", "resnet81")


@pytest.fixture
def without_here(tmp_path, monkeypatch):
    """A folder with `my_net.py` and `my_package/nets.py`, and Python's path as the command `defend` has it."""
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").write_text("raise RuntimeError('was run')")
    for name in ("my_net.py", "my_package/nets.py"):
        (tmp_path / name).write_text("from torch import nn\n\ndef load(task): return nn.Flatten()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    yield tmp_path
    for name in ("my_net", "my_package", "my_package.nets"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("stage", ["victim", "purifier", "detector", "attack", "dataset"])
def test_a_module_in_the_current_folder_is_found_by_the_command(without_here, stage):
    (without_here / "my_package" / "__init__.py").write_text("")
    for module in ("my_net", "my_package.nets"):
        assert registry().find(stage, f"{module}:load").spec.thing.__module__ == module


def test_nothing_is_run_to_tell_a_reference(without_here):
    assert split_reference("my_package.nets:load") == ("my_package.nets", "load")
    assert split_reference("my_package.no:load") is None
    assert "my_package" not in sys.modules
    with pytest.raises(StageError, match=r"nets:load failed in its import: RuntimeError: was run"):
        load_reference("my_package.nets:load")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("my_package.nest:load", "my_package.nets:load"),
        ("my_ent:load", "my_net.py:load"),
        ("my_ent:resnet18", "my_net.py:resnet18"),
    ],
)
def test_a_module_that_is_not_there_is_told_from_a_model_of_a_family(without_here, typed, meant):
    module = typed.partition(":")[0]
    said = rf"no module '{module}' \(looked in \. and the installed packages\): did you mean '{meant}'"
    with pytest.raises(ConfigError, match=said):
        registry().find("victim", typed)
    for family in ("timm:resnet81", "torchvison:resnet18"):
        with pytest.raises(UnknownNameError, match=r"did you mean 'resnet18'|did you mean 'torchvision:resnet18'"):
            registry().find("victim", family)


def test_a_file_that_fails_is_named(tmp_path):
    (tmp_path / "broken.py").write_text("import nothing_of_this_name")
    with pytest.raises(StageError, match=r"broken.py:load failed in its import: ModuleNotFoundError"):
        load_reference(f"{tmp_path}/broken.py:load")


def test_functions_of_images_are_stages_themselves(file):
    assert not built("purifier", f"{file}:blur").random
    assert isinstance(built("purifier", f"{file}:noisy"), Drawing)
    assert isinstance(built("purifier", f"{file}:ready"), nn.Identity)


def test_what_a_plain_function_draws_belongs_to_the_image(file):
    purifier, batch = built("purifier", f"{file}:noisy"), images(TASK, 6)
    keys = torch.arange(6)
    with keyed(keys, seed=0, stream="x"):
        together = purifier(batch)
    with keyed(keys[2:4], seed=0, stream="x"):
        apart = purifier(batch[2:4])
    with keyed(keys, seed=1, stream="x"):
        other = purifier(batch)
    assert torch.equal(together[2:4], apart)
    assert not torch.equal(together, other)


class Turning(nn.Module):
    """Says nothing of its draws, and leaves an image of one colour as it is."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, pictures):
        if self.how == "roll":
            return pictures.roll(int(torch.randint(0, pictures.shape[-1], ())), -1)
        flip = torch.rand(len(pictures)) < 0.5
        return torch.where(flip.view(-1, 1, 1, 1), pictures.flip(-1), pictures)


@pytest.mark.parametrize("how", ["roll", "flip"])
def test_a_purifier_that_moves_pixels_at_random_is_random(how):
    assert isinstance(_as_purifier(Turning(how), TASK), Drawing)


class Suspicious(nn.Module):
    """Draws only where an image is rough; the images of a trial are smooth, and those of an attack are not."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, pictures):
        rough = (pictures.diff(dim=-1).abs().flatten(1).mean(1) > 0.1).view(-1, 1, 1, 1)
        if self.how == "always draws":
            return pictures + 0.5 * torch.randn_like(pictures) * rough
        if not rough.any():
            return pictures
        drawn = np.random.rand() if self.how == "numpy" else float(torch.rand(()))
        return pictures + drawn * rough


@pytest.mark.parametrize("how", ["always draws", "torch", "numpy"])
def test_a_purifier_that_draws_only_where_it_suspects_an_attack_is_random(how):
    assert isinstance(_as_purifier(Suspicious(how), TASK), Drawing)
    says_so = Suspicious(how)
    says_so.random = True
    assert isinstance(_as_purifier(says_so, TASK), Drawing)


def test_a_layer_that_draws_its_weights_in_its_first_pass_is_not_random():
    lazy = nn.Sequential(nn.LazyConv2d(1, 1))
    assert _as_purifier(lazy, TASK) is lazy and not lazy.random


class Noisy(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, pictures):
        if self.how == "into a buffer":
            buffer = torch.zeros_like(pictures)
            torch.randn(pictures.shape, out=buffer)
            return pictures + buffer
        more = {"generator": None} if self.how == "without a generator" else {}
        return pictures + torch.randn(pictures.shape, **more)


@pytest.mark.parametrize("how", ["into a buffer", "without a generator"])
def test_draws_are_by_image_however_they_are_asked_for(how):
    batch, drawn = images(TASK, 6), {}
    for way in (how, "as ever"):
        with keyed(torch.arange(6), seed=0, stream="x"):
            drawn[way] = Drawing(Noisy(way))(batch) - batch
    assert torch.equal(drawn[how], drawn["as ever"]) and drawn[how].std() > 0.5


def test_draws_that_no_image_has_are_of_the_batch_and_come_again():
    def drops(images):
        return images * (torch.rand(3, 3).sum() / 9)

    purifier = Drawing(nn.Identity())
    purifier.module = (
        drops if isinstance(drops, nn.Module) else type("M", (nn.Module,), {"forward": lambda _, x: drops(x)})()
    )
    outside = torch.get_rng_state()
    with keyed(torch.arange(2), seed=0, stream="x"):
        first = purifier(images(TASK, 2))
    with keyed(torch.arange(2), seed=0, stream="x"):
        again, second = purifier(images(TASK, 2)), purifier(images(TASK, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert torch.equal(outside, torch.get_rng_state())


def test_a_draw_for_all_images_is_another_for_each_draw_that_is_averaged_over():
    """Twenty copies of an image that share one draw would be called twenty draws."""
    purifier, batch = Drawing(Turning("roll")), images(TASK, 3)
    keys = (torch.arange(3)[None] + torch.arange(20)[:, None] * 2**40).flatten()
    with keyed(keys, seed=0, stream="attacker/x"):
        drawn = purifier(batch.repeat(20, 1, 1, 1)).unflatten(0, (20, 3))
    assert len({drawn[place].numpy().tobytes() for place in range(20)}) > 3
    with keyed(keys[:3], seed=0, stream="attacker/x"):  # of one draw too
        assert any(torch.equal(purifier(batch), batch.roll(by, -1)) for by in range(batch.shape[-1]))
    for place in range(20):  # of one draw all images are rolled alike, as the module does
        assert any(torch.equal(drawn[place], batch.roll(by, -1)) for by in range(batch.shape[-1]))


def test_a_draw_for_all_images_is_judged_image_by_image():
    """Else the images of a batch are one sample, and their interval counts them as many."""
    batch, keys = images(TASK, 16), torch.arange(16)
    purifier, after = Drawing(Turning("roll")), []
    drawn = []
    for _ in range(2):  # the first pass is the one that finds it out
        with keyed(keys, seed=0, stream="x"):
            drawn.append(purifier(batch))
            after.append(normal_like(batch))
    assert torch.equal(*drawn) and torch.equal(*after)
    offsets = range(batch.shape[-1])
    pairs = list(zip(drawn[0], batch, strict=True))
    by = [next(by for by in offsets if torch.equal(one, image.roll(by, -1))) for one, image in pairs]
    assert len(set(by)) > 1
    with keyed(keys[5:8], seed=0, stream="x"):
        assert torch.equal(purifier(batch[5:8]), drawn[0][5:8])


class Secret(nn.Module):
    """Draws one offset for all images, from a generator of its own; maybe only where it suspects an attack."""

    random = True

    def __init__(self, careful=False):
        super().__init__()
        self.careful, self.generator = careful, torch.Generator().manual_seed(0)

    def forward(self, pictures):
        if self.careful and pictures.diff(dim=-1).abs().mean() < 0.1:
            return pictures
        return pictures + 0.1 * torch.rand((), generator=self.generator)


@pytest.mark.parametrize("careful", [True, False])
def test_a_generator_of_its_own_is_seen_and_told(careful):
    """Else one draw would stand for all that an attack averages over, and two runs would differ unsaid."""
    purifier, batch = _as_purifier(Secret(careful), TASK), torch.rand(2, 1, 28, 28)
    keys = (torch.arange(2)[None] + torch.arange(5)[:, None] * 2**40).flatten()

    def ask(*which):
        with keyed(keys, seed=0, stream="attacker/x"):
            return [(purifier(each.repeat(5, 1, 1, 1))[::2] - each[0]).mean((1, 2, 3)) for each in which][-1]

    shown = [torch.zeros_like(batch)] * careful  # which shows nothing in the first pass
    with pytest.warns(UserWarning, match="^Secret answers otherwise to the same draws, so no run") as told:
        drawn = ask(*shown, batch, batch)
    assert len(told) == 1 and len(set(drawn.round(decimals=5).tolist())) == 5
    with keyed(torch.arange(2), seed=0, stream="x"):
        one, other = (purifier(batch) - batch).mean((1, 2, 3)).tolist()
    assert abs(one - other) > 1e-4


class Random(nn.Module):
    """Says that it draws, and asks torch for it."""

    random = True
    smoothing_sigma = 0.1

    def __init__(self, answers=0):
        super().__init__()
        self.answers = answers

    def forward(self, pictures):
        drawn = pictures + 0.1 * torch.randn_like(pictures)
        return drawn.flatten(1)[:, : self.answers] if self.answers else drawn

    def surrogates(self):
        return {"soft": Random()}


def test_a_module_that_says_that_it_draws_is_repeated_too():
    purifier, victim = _as_purifier(Random(), TASK), _as_victim(Random(TASK.classes), TASK)
    for module in (purifier, victim):
        answers = []
        for _ in range(2):
            with keyed(torch.arange(4), seed=0, stream="x"):
                answers.append(module(images(TASK, 4)))
        assert torch.equal(*answers) and module.random
    assert purifier.smoothing_sigma == 0.1 and set(surrogates_of(purifier)) == {"identity", "soft"}


class Rating(nn.Module):
    """A detector that draws one offset for all images; where it stands it may be another."""

    random = True

    def __init__(self, placed=False):
        super().__init__()
        self.placed = placed
        self.register_buffer("threshold", torch.tensor(torch.inf))

    def forward(self, pictures, purified):
        return pictures.mean((1, 2, 3)) + 0.4 * torch.rand(())


class Placed(Rating):
    """One that cannot be asked before it knows where it stands."""

    def forward(self, pictures, purified):
        assert self.placed == 2
        return super().forward(pictures, purified)

    def beside(self, purifier):
        return self._at(1)

    def with_victim(self, victim):
        return self._at(self.placed + 1)

    def _at(self, placed):
        other = type(self)(placed)
        other.threshold = self.threshold
        return other


@pytest.mark.parametrize("kind", [Rating, Placed])
def test_a_detector_that_draws_for_all_images_is_asked_once_a_draw_and_judged_image_by_image(kind):
    name, plugins = registry().with_thing("detector", kind())
    detector = Composition.of(detector=name, plugins=plugins).build(TASK)["detector"].module
    defence, batch, keys = Defence(TinyVictim(TASK), detector=detector), images(TASK, 4), torch.arange(4)

    def rate(some, keys, stream):
        with keyed(keys, seed=0, stream=stream), torch.no_grad():
            return defence.rate(some, some) - some.mean((1, 2, 3))

    judged = rate(batch, keys, "x")
    assert len(set(judged.round(decimals=5).tolist())) == 4
    assert torch.equal(rate(batch[1:3], keys[1:3], "x"), judged[1:3]) and torch.equal(rate(batch, keys, "x"), judged)
    draws = (keys[None] + torch.arange(5)[:, None] * 2**40).flatten()
    drawn = rate(batch.repeat(5, 1, 1, 1), draws, "attacker/x").unflatten(0, (5, 4))
    assert torch.allclose(drawn, drawn[:, :1], atol=1e-6) and len(set(drawn[:, 0].round(decimals=5).tolist())) == 5
    assert defence.random and hasattr(defence.detector, "with_victim") == (kind is Placed)
    detector.threshold.fill_(0.5)
    assert defence.detector.threshold is detector.threshold
    assert set(detector.state_dict()) == {"threshold"}  # as a file would have it that was written without this
    detector.load_state_dict({"threshold": torch.tensor(0.25)})
    assert defence.detector.threshold == 0.25


def test_a_detector_whose_draws_are_keyed_or_that_does_not_draw_is_asked_as_it_is():
    class Keyed(Rating):
        def forward(self, pictures, purified):
            return normal_like(pictures).mean((1, 2, 3)) if self.random else pictures.mean((1, 2, 3))

    for random in (True, False):
        detector = Keyed()
        detector.random = random
        name, plugins = registry().with_thing("detector", detector)
        assert Composition.of(detector=name, plugins=plugins).build(TASK)["detector"].module is detector


def test_a_faster_form_of_what_draws_is_repeated_too():
    class Slow(Random):
        def prepared(self):
            return Random()

    purifier = _as_purifier(Slow(), TASK)
    purifier.stage_name = "slow"
    faster, answers = purifier.prepared(), []
    for module in (purifier, faster):
        with keyed(torch.arange(4), seed=0, stream="x"):
            answers.append(module(images(TASK, 4)))
    assert torch.equal(*answers) and faster.random and faster.stage_name == "slow"


def noisy(pictures):
    return (pictures + 0.1 * torch.randn_like(pictures)).flatten(1)[:, : TASK.classes]


noisy.random = True
noisy.surrogates = lambda: {"soft": Random()}


@pytest.mark.parametrize(
    "victim",
    [Function(noisy), nn.Sequential(Random(TASK.classes)), nn.DataParallel(Random(TASK.classes))],
    ids=["a function", "a sequence", "a wrapper"],
)
def test_a_victim_says_that_it_draws_wherever_that_stands(victim):
    """Else no attack averages over its draws, however often check 6 says how to tell."""
    assert Target(Defence(_as_victim(victim, TASK)), draws=20).draws == 20


def test_a_function_has_the_attributes_that_were_set_on_it():
    assert set(surrogates_of(Function(noisy))) == {"identity", "soft"}
    assert not hasattr(Function(lambda pictures: pictures), "random")
    assert isinstance(pickle.loads(pickle.dumps(Function(noisy))), Function) and copy.deepcopy(Function(noisy)).random


def test_a_function_of_a_file_over_a_network_in_training_mode_is_told(tmp_path):
    file = tmp_path / "own.py"
    file.write_text("""
from torch import nn
network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5))
def answer(images):
    return network(images)[:, :10]
""")
    with pytest.warns(UserWarning, match=r"calls Sequential in training mode, .*\.eval\(\)"):
        built("victim", f"{file}:answer")


def test_what_wraps_a_victim_says_what_it_says():
    wrapped = [NormalisedVictim(Random(2), (0.5,), (0.5,)), OneLogit(Random(1))]
    for victim in wrapped:
        assert Defence(victim).random and Target(Defence(victim), draws=20).draws == 20
    assert not Defence(NormalisedVictim(nn.Flatten(), (0.5,), (0.5,))).random and not OneLogit(nn.Flatten()).random


class OneScore(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape = shape

    def forward(self, batch):
        return batch.flatten(1).sum(1).reshape(self.shape)


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_one_logit_becomes_two(shape):
    import attrs

    task, batch = attrs.evolve(TASK, classes=2), images(TASK, 3)
    name, plugins = registry().with_thing("victim", OneScore(shape))
    module = Composition.of(name, plugins=plugins).build(task)["victim"].module
    assert isinstance(module, OneLogit)
    total = batch.flatten(1).sum(1)
    assert torch.allclose(module(batch), torch.stack([-total / 2, total / 2], 1))


@pytest.mark.parametrize(("file", "name"), [("_data.py", "data_py_load"), ("data.py", "data_py_load")])
def test_a_data_set_of_any_file_has_a_name(tmp_path, monkeypatch, file, name):
    from defend.assembly.load import open_dataset

    (tmp_path / file).write_text(
        "import torch\ndef load():\n    return torch.rand(20, 1, 4, 4), torch.arange(20) % 2\n"
    )
    monkeypatch.chdir(tmp_path)
    assert open_dataset(f"{file}:load").name == name


def test_objects_are_stages_of_a_registry_of_their_own():
    victim = TinyVictim(TASK)
    name, plugins = registry().with_thing("victim", victim)
    assert name == "TinyVictim"
    assert Composition.of(name, plugins=plugins).build(TASK)["victim"].module is victim
    with pytest.raises(UnknownNameError):
        registry().find("victim", name)
    assert registry().with_thing("victim", "resnet18") == ("resnet18", registry())
