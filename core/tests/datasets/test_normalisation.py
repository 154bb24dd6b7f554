"""What a victim normalises by: by name or number, the data set's own, that of published weights; and its size."""

import attrs
import pytest
import torch
from torch.nn import functional as F

from defend.assembly.stage import build_stage
from defend.datasets.normalisation import MEANS, STDS, choose_normalisation
from defend.errors import ConfigError, WeightsError
from defend.plugins import Registry
from defend.stages import Task
from defend.testing.toys import TASK, images
from defend.victims.network import build as build_network
from defend.victims.training import NormalisedVictim

COLOUR = Task("tiles", 3, 32, 32, 5, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
SMALL = "test_resnet"


def victim(task=COLOUR, name=SMALL, **options):
    found = Registry(entry_points=[]).find("victim", name)
    torch.manual_seed(0)
    return build_network(found.config(options), task).eval()


def normalises_by(module):
    return tuple(each.flatten().tolist() for each in (module.mean, module.std))


@pytest.mark.parametrize("name", sorted(set(MEANS) - {"dataset"}))
def test_the_usual_triplets_go_by_their_names(name):
    mean, std = normalises_by(victim(mean=name, std=name.upper()))
    for found, known in ((mean, MEANS[name]), (std, STDS[name])):
        assert found == pytest.approx(known * (3 // len(known)))


@pytest.mark.parametrize("options", [{}, {"mean": "dataset", "std": "dataset"}, {"mean": (), "std": ()}])
def test_the_default_is_the_data_sets_own(options):
    mean, std = normalises_by(victim(**options))
    assert (mean, std) == (pytest.approx(COLOUR.mean), pytest.approx(COLOUR.std))


def test_numbers_are_taken_from_a_flag_from_toml_and_from_python():
    for mean in ("0.49,0.48,0.45", "49/100, 48/100, 45/100", [0.49, 0.48, 0.45], (0.49, 0.48, 0.45)):
        assert normalises_by(victim(mean=mean, std="half"))[0] == pytest.approx((0.49, 0.48, 0.45))


def test_grey_images_take_the_mean_of_three():
    assert normalises_by(victim(TASK, mean="imagenet", std="imagenet"))[0] == [
        pytest.approx(sum(MEANS["imagenet"]) / 3)
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mean": "imagenet"}, "mean was given and std was not: give both"),
        ({"std": "0.5"}, "std was given and mean was not: give both"),
        ({"mean": "0.4,0.5", "std": "half"}, "mean has 2 numbers, and the images have 3 channels"),
        ({"mean": "123.7,116.3,103.5", "std": "half"}, "out of range: expected 0 to 1"),
        ({"mean": "half", "std": "0,0,0"}, "out of range: expected 0.001 to 1"),
        ({"mean": "imagnet", "std": "half"}, "or one of dataset, imagenet, cifar10, half, none"),
        ({"size": "-1"}, "out of range"),
    ],
)
def test_wrong_normalisation_is_refused(options, words):
    with pytest.raises(ConfigError) as caught:
        victim(**options)
    assert words in str(caught.value)


def test_published_statistics_come_before_the_data_sets_and_after_the_users():
    published = (0.1, 0.2, 0.3), (0.3, 0.2, 0.1)
    assert choose_normalisation((), (), COLOUR, published=published) == published
    assert choose_normalisation((0.5,), (0.5,), COLOUR, published=published) == ((0.5,) * 3, (0.5,) * 3)
    assert choose_normalisation((), (), attrs.evolve(TASK, mean=(), std=())) == ((0.5,), (0.5,))


def test_weights_keep_the_normalisation_that_they_were_trained_with(tmp_path):
    asked = {"mean": "0.485,0.456,0.406", "std": "imagenet"}
    with pytest.raises(WeightsError) as caught:  # shipped before there was such an option
        build_stage("victim", "resnet18", attrs.evolve(TASK, class_names=()), asked)
    message = str(caught.value)
    assert "have mean=(), and (0.485, 0.456, 0.406) was asked for" in message
    assert message.endswith(
        "defend train victim resnet18 --dataset digits --set mean=0.485,0.456,0.406 --set std=imagenet`"
    )


def test_images_are_scaled_inside_where_a_size_is_asked_for():
    module, pictures = victim(size=64), images(COLOUR, 2).requires_grad_()
    scaled = F.interpolate(pictures, (64, 64), mode="bilinear", align_corners=False)
    torch.testing.assert_close(module(pictures), module.network((scaled - module.mean) / module.std))
    module(pictures).sum().backward()
    assert pictures.grad.abs().sum() > 0
    assert victim(size=32)._size is None and victim(size=0)._size is None


def test_scaling_down_averages():
    module = NormalisedVictim(torch.nn.Identity(), (0.0,), (1.0,), size=(4, 4))
    board = (torch.arange(32)[:, None] + torch.arange(32)) % 2
    seen = module(board.float()[None, None])
    torch.testing.assert_close(seen, torch.full((1, 1, 4, 4), 0.5), atol=0.05, rtol=0)
