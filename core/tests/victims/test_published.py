"""Victims with published weights, by name: timm:, hf-hub:, torchvision:. Nothing here is downloaded."""

import logging

import attrs
import pytest
import timm
import torch
import torchvision
from torchvision.models import list_models

from defend.assembly.composition import Composition
from defend.assembly.part import find_part
from defend.assembly.stage import build_module, build_stage
from defend.errors import ConfigError, UnknownNameError, WeightsError
from defend.plugins import registry
from defend.report import catalogue
from defend.stages import Task
from defend.testing.contracts import VictimContract
from defend.testing.toys import TASK, images
from defend.victims.plugin import torchvision_models
from defend.weights.find import cached_path, tuned_name

COLOUR = Task("tiles", 3, 64, 64, 5, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
WHOLE = attrs.evolve(COLOUR, dataset="imagefolder", classes=1000)
IMAGENET = (0.485, 0.456, 0.406)
SMALL = "torchvision:shufflenet_v2_x0_5"


class TestTorchvision(VictimContract):
    name = "torchvision:resnet18"
    options = {"pretrained": False}


def config(name, **options):
    return registry().find("victim", name).config(options)


def victim(name, task, **options):
    found = registry().find("victim", name)
    return build_module(found, found.config(options), task).eval()


@pytest.fixture
def downloads(monkeypatch):
    """What would have been downloaded; the networks are untrained."""
    asked, create = [], timm.create_model

    def untrained(name, pretrained=False, **arguments):
        asked.extend([name] if pretrained else [])
        torch.manual_seed(0)
        return create(name.removeprefix("hf-hub:").rpartition("/")[2], **arguments)

    def state(url, **arguments):
        assert arguments["weights_only"] is True
        asked.append(url)
        torch.manual_seed(0)
        name = url.rpartition("/")[2].partition("-")[0].replace("shufflenetv2_x0.5", "shufflenet_v2_x0_5")
        return torchvision.models.get_model(name).state_dict()

    monkeypatch.setattr(timm, "create_model", untrained)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", state)
    return asked


@pytest.fixture
def offline(monkeypatch):
    def refuse(*_, **__):
        logging.getLogger("huggingface_hub").warning("Retrying in 1s")
        raise OSError("[Errno -2] Name or service not known\nwhile requesting HEAD")

    for where in ("timm.create_model", "timm.models.load_model_config_from_hf"):
        monkeypatch.setattr(where, refuse)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)


def test_a_prefix_asks_for_published_weights_which_an_option_or_a_file_turns_off(tmp_path):
    for name in ("timm:resnet18", "timm:resnet18.a1_in1k", "torchvision:resnet18", "hf-hub:org/net"):
        assert config(name).pretrained and not config(name, pretrained="false").pretrained
        assert not find_part("victim", name).needs_weights
        assert find_part("victim", name, weights="mine.pth").needs_weights
        with pytest.raises(ConfigError, match=r"published weights, and 'mine.pth' was named"):
            find_part("victim", name, {"pretrained": "true"}, "mine.pth")
    assert not config("resnet18").pretrained and not config("resnet18.a1_in1k").pretrained
    assert config("timm:resnet18.a1_in1k").model == "resnet18.a1_in1k"


@pytest.mark.parametrize("name", ["timm:resnet18", "timm:resnet18.a1_in1k", "torchvision:resnet18"])
def test_another_number_of_classes_is_refused_with_both(name):
    with pytest.raises(ConfigError, match=r"has 1000 classes and tiles has 5: .*pretrained=false.*--victim-weights"):
        victim(name, COLOUR)


def test_timms_weights_come_with_their_normalisation_and_size(downloads):
    module = victim("timm:test_resnet.r160_in1k", WHOLE)
    settings = timm.get_pretrained_cfg("test_resnet.r160_in1k")
    assert downloads == ["test_resnet.r160_in1k"]
    assert module.mean.flatten().tolist() == pytest.approx(settings.mean)
    assert module._size == settings.input_size[-2:] == (160, 160)
    with torch.no_grad():
        assert module(images(WHOLE, 1)).shape == (1, 1000)
    asked = victim("timm:test_resnet.r160_in1k", WHOLE, size=0, mean="none", std="none")
    assert asked._size is None and asked.mean.flatten().tolist() == [0, 0, 0]


def test_torchvisions_weights_come_with_their_normalisation_and_size(downloads):
    module = victim(SMALL, WHOLE)
    assert downloads == [torchvision.models.ShuffleNet_V2_X0_5_Weights.DEFAULT.url]
    assert module.mean.flatten().tolist() == pytest.approx(IMAGENET)
    assert module._size == (224, 224)
    torch.manual_seed(0)
    published = torchvision.models.shufflenet_v2_x0_5().state_dict()
    assert all(torch.equal(value, published[key]) for key, value in module.network.state_dict().items())


def test_densenets_file_has_older_names(monkeypatch):
    net = torchvision.models.densenet121()
    older = {
        key.replace("norm1", "norm.1").replace("norm2", "norm.2").replace("conv1", "conv.1").replace("conv2", "conv.2")
        if "denselayer" in key
        else key: value
        for key, value in net.state_dict().items()
    }
    assert older.keys() != net.state_dict().keys()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: older)
    module = victim("torchvision:densenet121", WHOLE, size=0)
    assert torch.equal(module.network.features.conv0.weight, net.features.conv0.weight)


def test_a_model_of_the_hub(downloads, monkeypatch):
    settings = {"num_classes": 5, "input_size": (3, 96, 96), "mean": (0.1, 0.2, 0.3), "std": (0.3, 0.2, 0.1)}
    monkeypatch.setattr("timm.models.load_model_config_from_hf", lambda name: (settings, "test_resnet", {}))
    module = victim("hf-hub:org/test_resnet", COLOUR)
    assert downloads == ["hf-hub:org/test_resnet"]
    assert module.mean.flatten().tolist() == pytest.approx((0.1, 0.2, 0.3)) and module._size == (96, 96)
    with pytest.raises(ConfigError, match="pretrained hf-hub:org/test_resnet has 5 classes and digits has 10"):
        victim("hf-hub:org/test_resnet", TASK)


@pytest.mark.parametrize("name", ["timm:resnet18", "hf-hub:org/net", "torchvision:resnet18"])
def test_without_a_network_one_line_says_so(offline, name, caplog):
    with pytest.raises(WeightsError) as caught:
        victim(name, WHOLE)
    message = str(caught.value)
    assert "could not be downloaded: [Errno -2] Name or service not known" in message
    assert "they need a network, once" in message and "--victim-weights" in message and "\n" not in message
    assert name.startswith("torchvision") or not caplog.records  # torchvision does not download through the hub
    assert logging.getLogger("huggingface_hub").level != logging.CRITICAL


def test_the_users_weights_go_into_torchvisions_network(tmp_path):
    torch.manual_seed(1)
    net = torchvision.models.resnet18(num_classes=5).eval()
    torch.save(net.state_dict(), tmp_path / "mine.pth")
    built = build_stage("victim", "torchvision:resnet18", COLOUR, weights=str(tmp_path / "mine.pth"))
    pictures = images(COLOUR, 2)
    with torch.no_grad():
        expected = net((pictures - built.module.mean) / built.module.std)
        torch.testing.assert_close(built.module(pictures), expected)
    assert built.card.name == "torchvision:resnet18"


def test_grey_images_are_a_torchvision_networks_three_channels():
    module = victim(SMALL, attrs.evolve(COLOUR, channels=1, mean=(0.3,), std=(0.4,)), pretrained=False)
    grey = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(module(grey), module.network((grey.expand(-1, 3, -1, -1) - 0.3) / 0.4))


def test_a_size_that_a_network_cannot_take_is_refused_with_what_to_do():
    with pytest.raises(ConfigError, match=r"vit_b_32 cannot take 64x64 images: .*victim.size=224"):
        victim("torchvision:vit_b_32", COLOUR, pretrained=False)


def test_untrained_networks_of_torchvision_need_weights_and_say_what_trains_them():
    composition = Composition.of("torchvision:resnet18", options={"victim": {"pretrained": "false"}})
    (missing,) = composition.list_missing("cifar10")
    assert missing.command == "defend train victim torchvision:resnet18 --dataset cifar10 --set pretrained=false"
    with pytest.raises(WeightsError, match="no weights for victim torchvision:resnet18"):
        build_stage("victim", "torchvision:resnet18", COLOUR, {"pretrained": "false"})


def test_names_that_hold_marks_make_plain_files():
    assert cached_path("victim", "hf-hub:org/net", "tiles").name == "victim-hf-hub_org_net-tiles.safetensors"
    tuned = tuned_name("adversarial", "torchvision:resnet18", None)
    assert (
        cached_path("finetuner", tuned, "tiles").name
        == "finetuner-adversarial-torchvision_resnet18-none-tiles.safetensors"
    )


def test_every_classifier_of_torchvision_is_a_victim():
    assert sorted(torchvision_models()) == list_models(module=torchvision.models)


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("hf-hub:net", ConfigError, "hf-hub:ORG/NAME"),
        ("hf-hub:../../etc", ConfigError, "hf-hub:ORG/NAME"),
        ("hf-hub", ConfigError, "is a family"),
        ("torchvision:resnet19", UnknownNameError, "did you mean 'torchvision:resnet18'"),
        ("timm:resnet18.a2", UnknownNameError, "did you mean 'resnet18.a2_in1k'"),
    ],
)
def test_wrong_names_are_refused(name, error, words):
    with pytest.raises(error, match=words):
        registry().find("victim", name)


def test_show_explains_the_families():
    for name in ("torchvision:resnet18", "hf-hub:org/net"):
        (shown,) = catalogue.descriptions(registry(), name)
        assert {"pretrained", "mean", "std", "size"} <= {option["name"] for option in shown["options"]}
