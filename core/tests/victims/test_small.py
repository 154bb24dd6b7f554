"""Victims for images of 28 and 32 pixels: the small forms of timm's networks, and the recipe that trains them."""

import functools

import attrs
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from defend.assembly.load import open_dataset
from defend.assembly.prepare import fold_batch_norm
from defend.assembly.stage import build_module, build_stage
from defend.datasets.base import Batch, MemoryDataset
from defend.errors import ConfigError
from defend.options import make
from defend.plugins import Registry
from defend.stages import Task
from defend.testing.toys import TASK, TinyVictim
from defend.testing.toys import images as pictures
from defend.training.loop import FitSettings, fit
from defend.training.stage import train_stage
from defend.victims.plugin import VictimRecipe
from defend.victims.training import NormalisedVictim, VictimTraining, cut_out, shrink

COLOUR = Task("tiles", 3, 32, 32, 10, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
GREY = attrs.evolve(TASK, dataset="grey")
FORMS = [
    ("vgg16_bn", "auto", GREY, 14_727_114),
    ("vgg13_bn", "small", COLOUR, 9_416_010),
    ("vgg11_bn", "auto", COLOUR, 9_231_114),
    ("densenet121", "auto", COLOUR, 6_956_426),
    ("densenet121", "pooled", GREY, 6_955_274),
    ("inception_v3", "auto", COLOUR, 21_638_954),
    ("resnet18", "pooled", COLOUR, 11_173_962),
]
LOGITS = [  # of classes 0 to 2, of the first two images
    ("resnet18", [[-1.97897, -4.03422, -3.11483], [-1.48877, -2.44458, -3.16888]]),
    ("mobilenetv3_small_050", [[-9.32056, 2.36021, 3.87368], [-3.68058, -4.40334, 3.96165]]),
]


@functools.cache
def built(name, task, stem="auto"):
    """Build a victim once: the networks are large, and no test here changes their weights."""
    found = Registry(entry_points=[]).find("victim", name)
    torch.manual_seed(0)
    return build_module(found, found.config({"stem": stem}), task).eval()


def square(side):
    return attrs.evolve(TASK, height=side, width=side)


@pytest.mark.parametrize(("name", "stem", "task", "count"), FORMS)
def test_a_small_form_has_a_known_size(name, stem, task, count):
    assert sum(parameter.numel() for parameter in built(name, task, stem).parameters()) == count


@pytest.mark.parametrize(("name", "stem", "task"), [form[:3] for form in FORMS if form[0] != "resnet18"])
def test_a_small_form_gives_logits_and_gradients_to_every_part(name, stem, task):  # ResNet's branches begin at zero
    victim = built(name, task, stem)
    images = pictures(task, 2).requires_grad_()
    logits = victim(images)
    assert logits.shape == (2, 10)
    F.cross_entropy(logits, torch.tensor([3, 8])).backward()
    assert images.grad.abs().sum((1, 2, 3)).min() > 0
    unused = [key for key, value in victim.named_parameters() if value.grad is None or not value.grad.any()]
    victim.zero_grad()
    assert unused == []


@pytest.mark.parametrize(
    ("name", "stem", "task", "module", "size"),
    [
        ("densenet121", "auto", COLOUR, "features.pool0", 32),
        ("densenet121", "pooled", GREY, "features.pool0", 14),
        ("inception_v3", "auto", COLOUR, "Pool2", 32),
        ("vgg16_bn", "auto", GREY, "features", 1),
        ("vgg11_bn", "auto", COLOUR, "features", 1),
        ("resnet18", "pooled", COLOUR, "maxpool", 16),
    ],
)
def test_a_small_form_starts_from_the_resolution_of_the_images(name, stem, task, module, size):
    victim, seen = built(name, task, stem), []
    handle = victim.network.get_submodule(module).register_forward_hook(lambda *call: seen.append(call[-1].shape[-1]))
    with torch.no_grad():
        victim(pictures(task, 1))
    handle.remove()
    assert seen == [size]


@pytest.mark.parametrize(("name", "side"), [("densenet121", 8), ("inception_v3", 7)])
def test_the_smallest_images(name, side):
    with torch.no_grad():
        assert built(name, COLOUR)(torch.zeros(1, 3, side, side)).shape == (1, 10)


def test_a_vgg_takes_an_image_of_one_pixel():
    with torch.no_grad():
        assert built("vgg11_bn", square(1))(torch.zeros(1, 1, 1, 1)).shape == (1, 10)


def test_images_that_leave_no_feature_map_are_refused():
    with pytest.raises(ConfigError, match="densenet121 cannot take 7x7 images"):
        built("densenet121", square(7))


def test_above_64_pixels_a_network_is_timms_own():
    assert built("densenet121", square(65)).network.features.conv0.kernel_size == (7, 7)


@pytest.mark.parametrize("stem", ["strided", "pooled"])
def test_a_form_that_a_network_does_not_have_is_refused(stem):
    with pytest.raises(ConfigError) as caught:
        built("vgg11_bn", COLOUR, stem)
    message = f"stem='{stem}' needs a ResNet or DenseNet with a 7x7 stem, and vgg11_bn is none: use stem=small"
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("rows", "columns", "box"), [(28, 28, (2, 30, 2, 30)), (31, 40, (0, 31, 0, 40)), (27, 1, (2, 29, 15, 16))]
)
def test_the_margin_is_black_and_around_the_image(rows, columns, box):
    task = attrs.evolve(TASK, height=rows, width=columns)
    victim, images = NormalisedVictim.for_task(nn.Identity(), task, side=32), torch.rand(2, 1, rows, columns)
    seen = victim(images) * victim.std + victim.mean
    top, bottom, left, right = box
    assert seen.shape == (2, 1, 32, max(columns, 32))
    torch.testing.assert_close(seen[:, :, top:bottom, left:right], images)
    seen[:, :, top:bottom, left:right] = 0
    torch.testing.assert_close(seen, torch.zeros_like(seen))


@pytest.mark.parametrize(("name", "task"), [("vgg11_bn", GREY), ("resnet18", COLOUR)])
def test_batch_norm_folds_into_a_small_form(name, task):
    victim, images = built(name, task), pictures(task, 2)
    folded, done = fold_batch_norm(victim, images)
    assert done
    with torch.no_grad():
        torch.testing.assert_close(folded(images), victim(images), atol=1e-4, rtol=1e-3)


def test_weights_of_a_small_form_come_back_through_their_card(tmp_path):
    torch.manual_seed(0)
    images = {split: torch.randint(0, 256, (4, 1, 28, 28), dtype=torch.uint8) for split in ("train", "val", "test")}
    dataset = MemoryDataset("four", ("a", "b"), images, dict.fromkeys(images, torch.arange(4) % 2))
    options = {"epochs": 2, "batch_size": 4, "optimiser": "sgd"}
    path, card = train_stage("victim", "vgg11_bn", dataset, options=options, out=tmp_path / "w.safetensors")
    again = build_stage("victim", "vgg11_bn", dataset.task(), weights=str(path)).module
    assert card.config["stem"] == "auto"
    assert [type(part) for part in (again.network.pre_logits, again.network.head.fc)] == [nn.Identity, nn.Linear]
    with torch.no_grad():
        right = again(images["val"].float() / 255).argmax(1) == torch.arange(4) % 2
    assert float(right.float().mean()) == card.figures["val_accuracy"]


@pytest.mark.parametrize(("name", "expected"), LOGITS)
def test_the_shipped_weights_of_digits_give_the_logits_they_gave(name, expected):
    dataset = open_dataset("digits")
    images, _ = dataset.tensors("test", 2)
    with torch.no_grad():
        logits = build_stage("victim", name, dataset.task()).module(images)
    torch.testing.assert_close(logits[:, :3], torch.tensor(expected), atol=1e-3, rtol=0)


def training(task=TASK, victim=None, **recipe):
    victim = victim or NormalisedVictim.for_task(TinyVictim(task), task)
    return VictimTraining(victim, make(VictimRecipe, recipe, "the test"), task)


def test_sgd_takes_nesterov_steps_and_decays_matrices_alone():
    layer = nn.Linear(2, 3).double()
    described = training(victim=layer, optimiser="sgd", lr=0.5, weight_decay=0.1)
    chosen = described.optimisers(10)["victim"]
    expected = {key: value.detach().clone() for key, value in layer.named_parameters()}
    momentum = {key: torch.zeros_like(value) for key, value in expected.items()}
    for _ in range(3):
        rate = chosen.optimizer.param_groups[0]["lr"]
        for key, value in layer.named_parameters():
            value.grad = torch.randn_like(value)
            gradient = value.grad + (0.1 * expected[key] if key == "weight" else 0)
            momentum[key] = 0.9 * momentum[key] + gradient
            expected[key] = expected[key] - rate * (gradient + 0.9 * momentum[key])
        chosen.optimizer.step()
        chosen.schedule.step()
    for key, value in layer.named_parameters():
        torch.testing.assert_close(value.detach(), expected[key])


def test_sgd_keeps_its_momentum_while_the_rate_rises_to_lr_and_falls():
    chosen = training(optimiser="sgd", lr=0.4).optimisers(20)["victim"]
    rates = []
    for _ in range(20):
        rates.append(chosen.optimizer.param_groups[1]["lr"])
        assert chosen.optimizer.param_groups[1]["momentum"] == 0.9
        chosen.optimizer.step()
        chosen.schedule.step() if len(rates) < 20 else None
    assert (rates[0], max(rates)) == pytest.approx((0.016, 0.4))
    assert rates[-1] < 1e-4


def test_by_default_adamw_decays_every_parameter():
    chosen = training().optimisers(10)["victim"].optimizer
    assert isinstance(chosen, torch.optim.AdamW)
    assert [group["weight_decay"] for group in chosen.param_groups] == [0.05]


def test_label_smoothing_spreads_its_share_over_all_classes():
    described, images, labels = training(shift=0, label_smoothing=0.2), pictures(TASK, 4), torch.tensor([1, 0, 9, 4])
    (loss,) = described.losses(Batch(images, labels, torch.arange(4)))
    with torch.no_grad():
        logs = described.modules["victim"](images).log_softmax(1)
    target = 0.8 * F.one_hot(labels, 10) + 0.2 / 10
    torch.testing.assert_close(loss.value.detach(), -(target * logs).sum(1).mean())


def test_cutout_blackens_one_square_inside_each_image():
    torch.manual_seed(0)
    images = torch.rand(200, 3, 9, 7) * 0.9 + 0.1
    before = images.clone()
    cut = cut_out(images, 4)
    black = (cut == 0).all(1)
    assert torch.equal(cut == 0, black[:, None].expand_as(cut))
    assert (black.any(2).sum(1) == 4).all() and (black.any(1).sum(1) == 4).all() and (black.sum((1, 2)) == 16).all()
    assert torch.equal(cut[cut != 0], images[cut != 0])
    assert len({tuple(place.flatten().tolist()) for place in black}) == 6 * 4  # every place occurs
    assert torch.equal(images, before)


def test_without_cutout_nothing_is_drawn():
    images, state = torch.rand(2, 1, 4, 4), torch.get_rng_state()
    assert cut_out(images, 0) is images
    assert torch.equal(torch.get_rng_state(), state)


def test_the_losses_see_the_cut_images():
    torch.manual_seed(0)
    described = training(task=COLOUR, victim=(probe := Probe()), shift=0, cutout=32)
    list(described.losses(Batch(torch.ones(2, 3, 32, 32), torch.tensor([0, 1]), torch.arange(2))))
    assert not probe.seen.any()


class Probe(nn.Linear):
    """Remember the images, and answer something that has gradients."""

    def __init__(self):
        super().__init__(3, 10)

    def forward(self, images):
        self.seen = images
        return super().forward(images.mean((2, 3)))


def test_a_cutout_larger_than_the_images_is_refused():
    with pytest.raises(ConfigError) as caught:
        training(cutout=29)
    assert str(caught.value) == "cutout=29 is larger than the images of digits: expected at most 28"


def test_the_first_epochs_see_small_images_and_the_others_whole_ones():
    described = training(task=COLOUR, victim=(probe := Probe()), shift=0, epochs=3, small_epochs=2, small_size=8)
    halves = torch.zeros(1, 3, 32, 32)
    halves[..., 16:, :] = 1  # what is large stays where it is
    for epoch, side in ((0, 8), (1, 8), (2, 32)):
        described.epoch = epoch
        list(described.losses(Batch(halves.expand(2, -1, -1, -1), torch.tensor([0, 1]), torch.arange(2))))
        assert probe.seen.shape == (2, 3, side, side)
        top, bottom = probe.seen[..., : side // 4, :], probe.seen[..., -(side // 4) :, :]
        torch.testing.assert_close(top, torch.zeros_like(top))
        torch.testing.assert_close(bottom, torch.ones_like(bottom))


def test_small_images_keep_their_mean_and_shape():
    torch.manual_seed(0)
    images = torch.rand(2, 3, 32, 48)
    small = shrink(images, 16)
    assert small.shape == (2, 3, 16, 24)
    torch.testing.assert_close(small.mean((2, 3)), images.mean((2, 3)), atol=0.02, rtol=0)
    assert small.std() < 0.7 * images.std()  # antialiased: noise of a pixel is averaged, not picked


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (
            {"small_epochs": 1, "small_size": 28},
            "small_size=28 is no smaller than the images of digits: expected at most 27, or small_epochs=0",
        ),
        (
            {"small_epochs": 3, "epochs": 3},
            "small_epochs=3 leaves no epoch of whole images: expected at most 2, one less than epochs",
        ),
    ],
)
def test_small_images_that_are_none_are_refused(recipe, said):
    with pytest.raises(ConfigError) as caught:
        training(**recipe)
    assert str(caught.value) == said


def test_the_recipe_with_everything_on_learns_digits():
    dataset = open_dataset("digits")
    recipe = {"optimiser": "sgd", "lr": 0.2, "weight_decay": 5e-4, "label_smoothing": 0.1, "cutout": 4, "shift": 1}
    recipe |= {"small_epochs": 1, "small_size": 20}
    described = training(task=dataset.task(), epochs=5, batch_size=32, **recipe)
    untrained = described.finish(dataset, torch.device("cpu"))["val_accuracy"]
    figures = fit(described, dataset, FitSettings(), {"what": "test"})
    assert untrained < 0.3
    assert figures["val_accuracy"] > 0.7


def ends_of_residuals(victim):
    """Return the scales of the normalisation that ends each residual branch, which timm's ResNet begins at zero."""
    return [value for key, value in victim.named_parameters() if key.endswith("bn2.weight")]


@pytest.mark.parametrize(("zero", "begins"), [(True, 0), (False, 1)])
def test_residual_branches_begin_as_nothing_or_take_part(zero, begins):
    found = Registry(entry_points=[]).find("victim", "resnet18")
    victim = build_module(found, found.config({}), COLOUR)
    kept = {key: value.clone() for key, value in victim.named_parameters() if not key.endswith("bn2.weight")}
    training(task=COLOUR, victim=victim, zero_residuals=zero)
    ends = ends_of_residuals(victim)
    assert len(ends) == 8
    assert all((scale == begins).all() for scale in ends)
    assert all(value.requires_grad for value in ends)
    now = dict(victim.named_parameters())
    assert all(torch.equal(now[key], value) for key, value in kept.items())


def test_cifar10_is_learnt_with_every_residual_branch_from_the_first_step():
    spec = Registry(entry_points=[]).find("victim", "resnet18").spec
    assert make(spec.recipe, spec.recipes["cifar10"], "cifar10").zero_residuals is False


@pytest.mark.parametrize("dataset", ["digits", "mnist", "fashion_mnist", "cifar10"])
def test_the_recipe_of_a_data_set_is_accepted(dataset):
    spec = Registry(entry_points=[]).find("victim", "resnet18").spec
    recipe = make(spec.recipe, spec.recipes[dataset], dataset)
    assert (recipe.optimiser, recipe.lr < 0.01) in {("sgd", False), ("adamw", True)}
