"""Training: who learns from which loss, who waits, and that a training can be taken up again."""

import pytest
import torch

from defend.datasets.base import Batch, MemoryDataset
from defend.records.watcher import TrainingWatcher
from defend.stages import Task
from defend.training.loop import FitSettings, fit
from defend_vaegan.config import VaeganOptions, VaeganRecipe
from defend_vaegan.model import gan_costs, gaussian_nll, prior_loss
from defend_vaegan.training import VaeganTraining, train

TASK = Task("tiny", 1, 12, 12, 2)
PARTS = ("encoder", "decoder", "discriminator")


def training(**recipe):
    torch.manual_seed(0)
    return train(VaeganOptions(width=0.125, latent=5), VaeganRecipe(**{"batch_size": 8, "epochs": 2, **recipe}), TASK)


def tiny_dataset(size=24):
    generator = torch.Generator().manual_seed(1)
    splits = {"train": size, "val": 6, "test": 6}
    pixels = {k: torch.randint(0, 256, (n, 1, 12, 12), generator=generator).byte() for k, n in splits.items()}
    return MemoryDataset("tiny", ["a", "b"], pixels, {k: torch.arange(n) % 2 for k, n in splits.items()})


def batch(size=8):
    images = torch.rand(size, 1, 12, 12, generator=torch.Generator().manual_seed(2))
    return Batch(images, torch.zeros(size, dtype=torch.int64), torch.arange(size))


def gradients(**recipe):
    """The gradient that each optimiser would step along, and the losses by name."""
    own, given = training(margin=100.0, **recipe), {}
    own.optimisers(1)
    torch.manual_seed(5)
    values = {}
    for loss in own.losses(batch()):
        own.stage.zero_grad()
        loss.value.backward()
        values[loss.optimiser] = float(loss.value.detach())
        given[loss.optimiser] = [parameter.grad.clone() for parameter in own.modules[loss.optimiser].parameters()]
    return given, values


def expected(gamma, pixel_weight=0.0, fakes="samples"):
    """The same by plain automatic differentiation, a graph for each loss."""
    own = training()
    networks = own.stage.networks
    torch.manual_seed(5)
    x = networks.pad(batch().images)
    mu, logvar = networks.encoder(x)
    z = mu + (0.5 * logvar).exp() * torch.randn_like(mu)
    decoded = networks.decoder(torch.cat([z, torch.randn_like(mu)]))
    logits, features = networks.discriminator(torch.cat([x, decoded]))
    llike = gaussian_nll(features[8:16], features[:8]) + pixel_weight * gaussian_nll(decoded[:8], x)
    real, fake = gan_costs(logits[:8], logits[8:] if fakes == "both" else logits[16:])
    values = {
        "encoder": prior_loss(mu, logvar) + llike,
        "decoder": gamma * llike - real - fake,
        "discriminator": real + fake,
    }
    return {
        name: torch.autograd.grad(value, list(getattr(networks, name).parameters()), retain_graph=True)
        for name, value in values.items()
    }, {name: float(value.detach()) for name, value in values.items()}


class Brightness(torch.nn.Module):
    """Class 1 the brighter an image is, so that FGSM darkens images of class 1 and lightens those of class 0."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = factor

    def forward(self, images):
        bright = self.factor * images.flatten(1).mean(1)
        return torch.stack([-bright, bright], 1)


@pytest.mark.parametrize("factor", [1.0, -1e4])
def test_attacked_images_are_encoded_and_clean_ones_are_what_is_decoded(factor):
    own = training()
    attacked = VaeganTraining(own.stage, VaeganRecipe(batch_size=8, eps=0.25), Brightness(factor).eval())
    networks, given, compared = own.stage.networks, [], []
    networks.encoder.register_forward_hook(lambda _, inputs, __: given.append(inputs[0]))
    networks.discriminator.register_forward_hook(lambda _, inputs, __: compared.append(inputs[0]))
    attacked.optimisers(1)
    images = batch()
    next(attacked.losses(images))
    # of -1e4 the label leads so far that the cross-entropy and its gradient are zero in float32
    change = 0.25 if factor > 0 else -0.25
    torch.testing.assert_close(given[0], networks.pad((images.images + change).clamp(0, 1)))
    assert torch.equal(compared[0][:8], networks.pad(images.images))


def test_a_source_without_a_gradient_is_told_of_once():
    attacked = VaeganTraining(training().stage, VaeganRecipe(batch_size=8, source="flat"), Brightness(0.0).eval())
    attacked.optimisers(1)
    with pytest.warns(UserWarning, match=r"FGSM on flat left 8 of 8 images as they were.*name another source"):
        next(attacked.losses(batch()))
    next(attacked.losses(batch()))


@pytest.mark.parametrize(
    ("gamma", "pixel_weight", "fakes"), [(1e-5, 0.0, "samples"), (0.3, 0.0, "both"), (0.3, 2.0, "samples")]
)
def test_each_network_learns_from_its_own_losses(gamma, pixel_weight, fakes):
    got, got_values = gradients(gamma=gamma, pixel_weight=pixel_weight, discriminate=fakes)
    wanted, wanted_values = expected(gamma, pixel_weight, fakes)
    assert got_values == pytest.approx(wanted_values, rel=1e-4)
    assert tuple(got) == PARTS
    for name in PARTS:
        for mine, theirs in zip(got[name], wanted[name], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def weights(module):
    return [parameter.detach().clone() for parameter in module.parameters()]


@pytest.mark.parametrize(
    ("equilibrium", "margin", "waiting"),
    [(0.68, 100.0, set()), (100.0, 1.0, {"discriminator"}), (1e-6, 1e-7, {"decoder"})],
)
def test_who_is_ahead_waits(equilibrium, margin, waiting):
    own = training(epochs=1, equilibrium=equilibrium, margin=margin)
    before = {name: weights(own.modules[name]) for name in PARTS}
    fit(own, tiny_dataset(), FitSettings(), {})
    distance = {
        name: max(
            float((old - new).abs().max()) for old, new in zip(before[name], weights(own.modules[name]), strict=True)
        )
        for name in PARTS
    }
    # rounding to what a file keeps moves a weight by 1e-4 of itself; three of Adam's steps by more than 4e-4
    assert {name for name in PARTS if distance[name] < 3e-4} == waiting


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("optimiser", ["adam", "rmsprop"])
def test_a_resumed_training_ends_with_the_same_weights(tmp_path, optimiser):
    data, recipe = tiny_dataset(), {"optimiser": optimiser, "lr_last": 0.1, "train_subset": 20}

    def settings(folder, stop_at=None):
        class Stopping(TrainingWatcher):
            def step(self, done, total, losses):
                if done == stop_at:
                    raise Interrupted

        return FitSettings(folder=tmp_path / folder, checkpoint_seconds=0, progress=Stopping())

    whole = training(**recipe)
    figures = fit(whole, data, settings("whole"), {})
    with pytest.raises(Interrupted):
        fit(training(**recipe), data, settings("cut", stop_at=3), {})
    resumed = training(**recipe)
    assert fit(resumed, data, settings("cut"), {}) == figures
    states = whole.stage.state_dict(), resumed.stage.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert set(figures) == {"val_rmse", "val_dis_images", "val_dis_reconstructions"}


def test_a_subset_has_its_share_of_every_class():
    data, device = tiny_dataset(), torch.device("cpu")
    size = len(data.labels("train"))
    own = training(train_subset=10)
    own.data(data, device)
    assert own.epoch_size(0, size) == 10
    first, second = own.order(0, size, 0), own.order(1, size, 0)
    assert sorted(first.tolist()) == sorted(second.tolist()) == sorted(data.keys("train", 10).tolist())
    assert first.tolist() != second.tolist()
    for whole in (training(train_subset=1000), training()):
        whole.data(data, device)
        assert whole.epoch_size(3, size) == size
        assert sorted(whole.order(3, size, 0).tolist()) == list(range(size))


def test_the_rate_falls_by_epoch_for_all_alike():
    own = training(lr=0.1, lr_last=0.2, epochs=5)
    chosen = own.optimisers(1)
    for epoch, rate in ((0, 0.1), (2, 0.06), (4, 0.02)):
        own.epoch = epoch
        list(own.losses(batch()))
        assert [optimiser.optimizer.param_groups[0]["lr"] for optimiser in chosen.values()] == pytest.approx([rate] * 3)


def test_no_network_stays_frozen_after_a_batch():
    own = training()
    list(own.losses(batch()))
    assert all(parameter.requires_grad for parameter in own.stage.parameters())


def test_training_learns_to_reconstruct():
    light = torch.arange(24) % 2
    pixels = (60 + 150 * light).byte().view(-1, 1, 1, 1).expand(-1, 1, 12, 12).contiguous()
    splits = ("train", "val", "test")
    plain = MemoryDataset("tiny", ["dark", "light"], dict.fromkeys(splits, pixels), dict.fromkeys(splits, light))
    figures = fit(training(epochs=40, lr=5e-3, pixel_weight=10.0, gamma=0.01), plain, FitSettings(), {})
    assert figures["val_rmse"] < 0.15  # the mean image is at 75/255 = 0.29
    assert 0 < figures["val_dis_images"] < 1
    assert 0 < figures["val_dis_reconstructions"] < 1
