"""Victims through timm: contracts, stems, normalisation, and the augmentation of their training."""

import attrs
import pytest
import timm
import torch
from torch.nn import functional as F

from defend.assembly.load import open_dataset
from defend.assembly.stage import build_module
from defend.errors import ConfigError, UnknownNameError, WeightsError
from defend.plugins import Registry, registry
from defend.report import catalogue
from defend.stages import Task
from defend.testing.contracts import VictimContract
from defend.testing.toys import TASK
from defend.testing.toys import images as pictures
from defend.victims import network
from defend.victims.plugin import timm_tags
from defend.victims.training import augment

COLOUR = Task("tiles", 3, 32, 32, 7, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


class TestResnet18(VictimContract):
    name = "resnet18"


class TestMobilenet(VictimContract):
    name = "mobilenetv3_small_050"
    task = COLOUR


class TestVisionTransformer(VictimContract):
    name = "test_vit"
    task = COLOUR


def build(name, task, **options):
    found = Registry(entry_points=[]).find("victim", name)
    return build_module(found, found.config(options), task).eval()


def square(side):
    return attrs.evolve(TASK, height=side, width=side)


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def stem_output(victim, side):
    network = victim.network
    with torch.no_grad():
        return network.maxpool(network.act1(network.bn1(network.conv1(torch.zeros(1, 1, side, side))))).shape[-1]


@pytest.mark.parametrize(
    ("stem", "kernel", "size"), [("standard", 7, 7), ("small", 3, 28), ("pooled", 3, 14), ("strided", 3, 14)]
)
def test_a_stem_sets_the_resolution_that_the_network_starts_from(stem, kernel, size):
    victim = build("resnet18", TASK, stem=stem)
    assert victim.network.conv1.kernel_size == (kernel, kernel)
    assert stem_output(victim, 28) == size


@pytest.mark.parametrize(("side", "size"), [(8, 4), (28, 14), (31, 16), (32, 32), (64, 64), (65, 17), (224, 56)])
def test_the_stem_follows_the_side_of_the_images(side, size):
    assert stem_output(build("resnet18", square(side)), side) == size


@pytest.mark.parametrize(
    ("stem", "needed"),
    [
        ("small", "a VGG, inception_v3, or a ResNet or DenseNet with a 7x7 stem"),
        ("strided", "a ResNet or DenseNet with a 7x7 stem"),
    ],
)
@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "test_vit", "resnet10t"])
def test_a_small_stem_is_refused_where_there_is_none_to_replace(name, stem, needed):
    with pytest.raises(ConfigError) as caught:
        build(name, COLOUR, stem=stem)
    assert str(caught.value) == f"stem='{stem}' needs {needed}, and {name} is none: use stem=standard"


def test_a_network_without_a_resnet_stem_is_left_as_timm_builds_it():
    own = timm.create_model("mobilenetv3_small_050", in_chans=3, num_classes=7)
    assert parameters(build("mobilenetv3_small_050", COLOUR)) == parameters(own)


def test_an_unknown_stem_lists_the_known():
    with pytest.raises(ConfigError, match=r"did you mean 'small'\? \(known: auto, standard, small, pooled, strided\)"):
        build("resnet18", TASK, stem="smal")


@pytest.mark.parametrize(
    ("name", "stem", "count"),
    [
        ("resnet18", "auto", 11_172_810),
        ("resnet18", "standard", 11_175_370),
        ("mobilenetv3_small_050", "auto", 578_186),
    ],
)
def test_victims_of_digits_have_a_known_size(name, stem, count):
    assert parameters(build(name, TASK, stem=stem)) == count


def test_normalisation_is_inside_and_saved_with_the_weights():
    victim, images = build("test_vit", COLOUR), pictures(COLOUR, 2)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (COLOUR.mean, COLOUR.std))
    with torch.no_grad():
        assert torch.equal(victim(images), victim.network((images - mean) / std))
    assert torch.equal(victim.state_dict()["mean"], mean)
    assert torch.equal(victim.state_dict()["std"], std)


def test_the_statistics_of_digits_reach_the_victim():
    task = open_dataset("digits").task()
    victim = build("resnet18", task)
    assert (victim.mean.item(), victim.std.item()) == pytest.approx((task.mean[0], task.std[0]))


def test_a_network_that_cannot_take_the_images_is_refused_when_it_is_built():
    with pytest.raises(ConfigError, match=r"test_vit cannot take 28x28 images: .*patch size"):
        build("test_vit", open_dataset("digits").task())


def test_without_statistics_images_are_centred():
    victim = build("test_vit", attrs.evolve(COLOUR, mean=(), std=()))
    assert (victim.mean.flatten().tolist(), victim.std.flatten().tolist()) == ([0.5] * 3, [0.5] * 3)


def test_images_of_one_colour_are_not_divided_by_zero():
    victim = build("test_vit", attrs.evolve(COLOUR, std=(0.0, 0.0, 0.2)))
    assert victim.std.flatten().tolist() == pytest.approx([1e-3, 1e-3, 0.2])
    assert torch.isfinite(victim(pictures(COLOUR, 1))).all()


def test_a_model_of_fixed_size_is_built_for_the_images():
    with torch.no_grad():
        assert build("vit_tiny_patch16_224", COLOUR)(pictures(COLOUR, 1)).shape == (1, 7)


def test_pretrained_weights_for_other_classes_are_refused():
    with pytest.raises(
        ConfigError, match="pretrained resnet18 has 1000 classes and digits has 10: leave pretrained off"
    ):
        build("resnet18", TASK, pretrained=True)


def test_weights_that_cannot_be_downloaded_are_no_crash(monkeypatch):
    def offline(*_, **__):
        raise OSError("We couldn't connect to\nthe hub")

    monkeypatch.setattr(timm, "create_model", offline)
    message = "timm's weights for resnet18 could not be downloaded: We couldn't connect to the hub"
    with pytest.raises(WeightsError, match=message):
        build("resnet18", attrs.evolve(COLOUR, classes=1000), pretrained=True)


def test_a_model_that_timm_cannot_build_is_named():
    with pytest.raises(
        ConfigError, match="timm cannot build xcit_nano_12_p8_224 for 28x28 images: `patch_size` should"
    ):
        build("xcit_nano_12_p8_224", TASK)


def test_an_unknown_model_offers_the_nearest():
    with pytest.raises(UnknownNameError, match="unknown victim 'resnet19': did you mean 'resnet1"):
        build("resnet19", TASK)


def numbered(count):
    """Return images [count,2,6,7] whose pixels all differ, none of them zero."""
    return 1 + torch.arange(count * 2 * 6 * 7, dtype=torch.float32).view(count, 2, 6, 7)


def crops(image, shift):
    """Return every shift of one image by up to `shift` pixels, zeros moving in."""
    padded = F.pad(image, (shift,) * 4)
    height, width = image.shape[-2:]
    places = [(top, left) for top in range(2 * shift + 1) for left in range(2 * shift + 1)]
    return [padded[:, top : top + height, left : left + width] for top, left in places]


def test_without_shift_or_flips_images_stay_as_they_are():
    images = numbered(5)
    assert torch.equal(augment(images, shift=0, flips=False), images)


def test_every_image_is_shifted_by_its_own_offset_and_keeps_its_orientation():
    torch.manual_seed(0)
    images = numbered(1).expand(64, -1, -1, -1)
    before = images.clone()
    shifted = augment(images, shift=2, flips=False)
    assert shifted.shape == images.shape
    accepted = crops(images[0], 2)
    places = [next(i for i, crop in enumerate(accepted) if torch.equal(crop, image)) for image in shifted]
    assert len(set(places)) > 12
    assert torch.equal(images, before)


def test_flips_mirror_about_half_of_the_images():
    torch.manual_seed(0)
    images = numbered(64)
    flipped = augment(images, shift=0, flips=True)
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    kept = (flipped == images).flatten(1).all(1)
    assert (mirrored ^ kept).all()
    assert 16 < int(mirrored.sum()) < 48


def test_flips_and_shifts_together_give_shifts_of_the_image_or_its_mirror():
    torch.manual_seed(0)
    images = numbered(32)
    for image, found in zip(images, augment(images, shift=1, flips=True), strict=True):
        assert any(torch.equal(found, crop) for crop in crops(image, 1) + crops(image.flip(2), 1))


# Names with the tag of published weights

TAGGED = "resnet18.a1_in1k"


def test_a_tagged_name_is_the_network_of_its_model():
    found = registry().find("victim", TAGGED)
    assert (found.name, found.member, found.tag) == ("resnet18", "resnet18", "a1_in1k")
    config = found.config({})
    assert config.model == "resnet18"
    torch.manual_seed(0)
    tagged = network.build(config, COLOUR).state_dict()
    torch.manual_seed(0)
    plain = network.build(registry().find("victim", "resnet18").config({}), COLOUR).state_dict()
    assert all(torch.equal(tagged[key], plain[key]) for key in plain) and tagged.keys() == plain.keys()
    assert registry().find("victim", f"timm:{TAGGED}").tag == "a1_in1k"


def test_a_tag_without_pretrained_is_said_to_mean_nothing():
    found = registry().find("victim", TAGGED)
    said = found.note(found.config({}))
    assert said.startswith("victim resnet18.a1_in1k is resnet18:") and "pretrained=true" in said
    assert found.note(found.config({"pretrained": True})) == ""
    plain = registry().find("victim", "resnet18")
    assert plain.note(plain.config({})) == ""


def test_a_tag_selects_the_published_weights(monkeypatch):
    asked, create = [], timm.create_model

    def untrained(name, pretrained=False, **arguments):
        asked.append((name, pretrained))
        return create(name, **arguments)

    monkeypatch.setattr(timm, "create_model", untrained)
    task = attrs.evolve(COLOUR, classes=1000)
    for name in (TAGGED, "resnet18.tv_in1k"):
        found = registry().find("victim", name)
        network.build(found.config({"pretrained": True}), task)
    assert asked == [(TAGGED, True), ("resnet18.tv_in1k", True)]
    with pytest.raises(ConfigError, match="contradicts victim 'resnet18'"):
        registry().find("victim", TAGGED).config({"model": "resnet34"})


@pytest.mark.parametrize("name", ["resnet18.a1_in1kk", "resnet81.a1_in1k", "resnet18.a1-in1k"])
def test_a_tag_that_does_not_exist_is_refused_with_the_nearest(name):
    for ask in (lambda: registry().find("victim", name), lambda: catalogue.descriptions(registry(), name)):
        with pytest.raises(UnknownNameError, match=r"did you mean 'resnet18\.a1_in1k'"):
            ask()


def test_the_tags_are_timms():
    known, published = set(timm_tags()), {name for name in timm.list_pretrained() if "." in name}
    assert len(known & published) > 0.97 * len(published)
    assert {TAGGED, "vgg11.tv_in1k", "inception_v3.tv_in1k", "densenet121.ra_in1k"} <= known


def test_show_explains_a_tagged_name():
    (shown,) = catalogue.descriptions(registry(), TAGGED)
    assert (shown["stage"], shown["name"], shown["tag"]) == ("victim", TAGGED, "a1_in1k")
    assert [one["name"] for one in shown["weights"]] == [
        one["name"] for one in catalogue.descriptions(registry(), "resnet18")[0]["weights"]
    ]
    assert catalogue.descriptions(registry(), "resnet18")[0]["tag"] is None
