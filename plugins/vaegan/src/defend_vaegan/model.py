"""The networks of Larsen et al. (2016, arXiv:1512.09300) for 32x32 images, their losses, and three ways to purify.

Symbols are Larsen's: x an image, z its latent, x~ = Dec(z), z_p a draw from the prior, Dis_l the features of the
discriminator's layer l, gamma the weight of the reconstruction in the decoder's loss. Where the papers and the
published code leave a choice, the decision stands in the README.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defend.errors import ContractError
from defend.gradients import State, inner_gradients, smooth_sign, unroll
from defend.randomness import normal_like
from defend_vaegan.config import VaeganOptions

STRIDE = 8  # three layers of stride 2
KERNEL = 5
LATE, CUT = 0.8, 0.1  # after this share of the latent steps the learning rate is multiplied by CUT (Defense-GAN's code)


def padded_size(size: int) -> int:
    """Return the next multiple of 8, which three strides of 2 can halve: 28 becomes 32, 32 stays."""
    return -(-size // STRIDE) * STRIDE


def _scale(channels: int, width: float) -> int:
    return max(round(channels * width), 1)


def _down(channels: int, features: int) -> list[nn.Module]:
    conv = nn.Conv2d(channels, features, KERNEL, stride=2, padding=2, bias=False)
    return [conv, nn.BatchNorm2d(features), nn.ReLU()]


def _up(channels: int, features: int) -> list[nn.Module]:
    conv = nn.ConvTranspose2d(channels, features, KERNEL, stride=2, padding=2, output_padding=1, bias=False)
    return [conv, nn.BatchNorm2d(features), nn.ReLU()]


def _dense(features: int, outputs: int) -> list[nn.Module]:
    return [nn.Linear(features, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()]


class Encoder(nn.Module):
    """Three strided convolutions (64, 128, 256), a dense layer of 1,024, and two heads: mu and log variance."""

    def __init__(self, channels: int, cells: int, latent: int, width: float) -> None:
        super().__init__()
        a, b, c, dense = (_scale(count, width) for count in (64, 128, 256, 1024))
        self.body = nn.Sequential(
            *_down(channels, a), *_down(a, b), *_down(b, c), nn.Flatten(), *_dense(c * cells, dense)
        )
        self.mu, self.logvar = nn.Linear(dense, latent), nn.Linear(dense, latent)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map padded images [B,C,H,W] to (mu, log variance), [B,latent] each."""
        hidden = self.body(images)
        return self.mu(hidden), self.logvar(hidden)


class Decoder(nn.Module):
    """A dense layer to 256 small maps, three transposed convolutions (192, 128, 32), one convolution to pixels."""

    def __init__(self, channels: int, cells: tuple[int, int], latent: int, width: float) -> None:
        super().__init__()
        a, b, c, d = (_scale(count, width) for count in (256, 192, 128, 32))
        self.body = nn.Sequential(
            *_dense(latent, a * cells[0] * cells[1]),
            nn.Unflatten(1, (a, *cells)),
            *_up(a, b),
            *_up(b, c),
            *_up(c, d),
            nn.Conv2d(d, channels, KERNEL, padding=2),
            nn.Sigmoid(),
        )

    def forward(self, latents: Tensor) -> Tensor:
        """Map z [B,latent] to padded images [B,C,H,W] in (0,1)."""
        images: Tensor = self.body(latents)
        return images


class Discriminator(nn.Module):
    """One plain convolution (32), three strided ones (128, 192, 256), a dense layer of 512, one logit.

    Its features Dis_l are what the third convolution answers with, before batch norm: the layer of the published
    CIFAR-10 runs.
    """

    def __init__(self, channels: int, cells: int, width: float) -> None:
        super().__init__()
        a, b, c, d, dense = (_scale(count, width) for count in (32, 128, 192, 256, 512))
        third, *after = _down(b, c)
        self.features = nn.Sequential(nn.Conv2d(channels, a, KERNEL, padding=2), nn.ReLU(), *_down(a, b), third)
        self.head = nn.Sequential(*after, *_down(c, d), nn.Flatten(), *_dense(d * cells, dense), nn.Linear(dense, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map padded images [B,C,H,W] to (logit of being real [B], features [B,192 width,H/4,W/4])."""
        features = self.features(images)
        return self.head(features)[:, 0], features


class VaeGan(nn.Module):
    """Encoder, decoder and discriminator for images of one shape, padded with zeros to multiples of 8.

    Args:
        channels, height, width: of the images.
        latent: dimensions of z.
        scale: multiplies the channels of every layer; 1 gives 12.01 M parameters for 1x28x28 and latent 128.
    """

    def __init__(self, channels: int, height: int, width: int, latent: int, scale: float = 1.0) -> None:
        super().__init__()
        self.shape = (channels, height, width)
        rows, columns = padded_size(height), padded_size(width)
        top, left = (rows - height) // 2, (columns - width) // 2
        self._margins = (left, columns - width - left, top, rows - height - top)
        cells = (rows // STRIDE, columns // STRIDE)
        self.encoder = Encoder(channels, cells[0] * cells[1], latent, scale)
        self.decoder = Decoder(channels, cells, latent, scale)
        self.discriminator = Discriminator(channels, cells[0] * cells[1], scale)

    def pad(self, images: Tensor) -> Tensor:
        """Return images [B,C,H,W] with a margin of zeros, H and W multiples of 8.

        Raises:
            ContractError: images of another shape than the networks were built for.
        """
        if tuple(images.shape[1:]) != self.shape:
            raise ContractError(
                f"images of shape {list(images.shape[1:])}, and vaegan was built for {list(self.shape)}"
            )
        return F.pad(images, self._margins)

    def crop(self, padded: Tensor) -> Tensor:
        """Undo `pad`."""
        left, _, top, _ = self._margins
        _, height, width = self.shape
        return padded[..., top : top + height, left : left + width]

    def encode(self, images: Tensor) -> Tensor:
        """Return mu(x), [B,latent]."""
        mu: Tensor = self.encoder(self.pad(images))[0]
        return mu

    def decode(self, latents: Tensor) -> Tensor:
        """Return Dec(z), [B,C,H,W]."""
        return self.crop(self.decoder(latents))

    def reconstruct(self, images: Tensor) -> Tensor:
        """Return Dec(mu(x)), [B,C,H,W]."""
        return self.decode(self.encode(images))

    def log_dis(self, images: Tensor) -> Tensor:
        """Return log Dis(x), [B]."""
        return F.logsigmoid(self.discriminator(self.pad(images))[0])


def prior_loss(mu: Tensor, logvar: Tensor) -> Tensor:
    """L_prior: KL(q(z|x) || N(0,I)), summed over z, mean over images."""
    return 0.5 * (mu.square() + logvar.exp() - logvar - 1).sum(1).mean()


def gaussian_nll(one: Tensor, other: Tensor) -> Tensor:
    """L_llike of features: half the squared distance, summed over features, mean over images; its constant left out."""
    return 0.5 * (one - other).square().flatten(1).sum(1).mean()


def gan_costs(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Return the discriminator's mean costs -log Dis(x) and -log(1 - Dis(Dec(z_p))), of logits; L_GAN is minus both."""
    return F.softplus(-real).mean(), F.softplus(fake).mean()


def steps_allowed(real_cost: float, fake_cost: float, equilibrium: float, margin: float) -> tuple[bool, bool]:
    """Return whether (decoder, discriminator) may step, as the published code balances them.

    The discriminator waits if either cost is below equilibrium - margin, the decoder if either is above
    equilibrium + margin; if both would wait, neither does.
    """
    decoder = max(real_cost, fake_cost) <= equilibrium + margin
    discriminator = min(real_cost, fake_cost) >= equilibrium - margin
    return (decoder, discriminator) if decoder or discriminator else (True, True)


def climb(images: Tensor, networks: VaeGan, config: VaeganOptions) -> Tensor:
    """Mode disc_grad before its reconstruction: at most T steps x <- clip(x + a sign grad log Dis(x)), [B,C,H,W].

    No pixel ends further than `radius` from where it began. With stop=no_gain an image takes back the first step
    that brought neither a higher log Dis(x) nor a smaller error of its reconstruction, and stays there; every image
    for itself, so a batch changes nothing.

    Works whether gradients are on or off. Where they are on and `images` requires them, the result is
    differentiable with respect to `images`: with sign_slope=smooth by second order, with the slopes that `sign_slope`
    describes for the sign and the clip. When an image stops is a constant to the gradient.
    """

    def step(_: int, state: State, attached: bool) -> State:
        start, x, before, score_before, moving = state
        if _asks(start) and not moving.any():
            return state
        twice = attached and config.sign_slope == "smooth"
        at = x if twice else x.detach().requires_grad_()
        score = networks.log_dis(at)
        (slope,) = torch.autograd.grad(score.sum(), at, create_graph=twice)
        if config.stop == "no_gain":
            moving, x = _take_back(x, before, score, score_before, moving, networks)
        free = x + config.step_size * (smooth_sign(slope) if twice else slope.sign())
        low, high = (start - config.radius).clamp_min(0), (start + config.radius).clamp_max(1)
        clipped = torch.minimum(torch.maximum(free, low), high)
        moved = torch.where(_column(moving), straight_through(free, clipped) if twice else clipped, x)
        after = (start, moved, x, score.detach(), moving)
        return after if attached else tuple(value.detach() for value in after)

    with inner_gradients(images) as (start, outer):
        ones = torch.ones_like(start[:, 0, 0, 0])
        state = unroll(step, (start, start, start, -torch.inf * ones, ones), config.steps, attached=outer)
        _, x, before, score_before, moving = state
        if config.stop == "no_gain" and not (_asks(start) and not moving.any()):
            with torch.no_grad():
                score = networks.log_dis(x)
            _, x = _take_back(x, before, score, score_before, moving, networks)
        return x


def _take_back(
    x: Tensor, before: Tensor, score: Tensor, score_before: Tensor, moving: Tensor, networks: VaeGan
) -> tuple[Tensor, Tensor]:
    """Return who still moves (1 or 0, [B]), and images of which the last step is undone where it gained nothing.

    A gain is a higher score, or else a smaller error of the reconstruction.
    """
    with torch.no_grad():
        gained = score > score_before
        doubtful = ((moving > 0) & ~gained).nonzero()[:, 0] if _asks(x) else slice(None)
        if isinstance(doubtful, slice) or len(doubtful):
            errors = [_sum_squares(some - networks.reconstruct(some)) for some in (before[doubtful], x[doubtful])]
            gained[doubtful] |= errors[1] < errors[0]
        moving = moving * gained
    return moving, torch.where(_column(moving), x, before)


def _asks(images: Tensor) -> bool:
    """Whether to ask which images still move, and to compute no others.

    On another device the host would wait for the answer twice a step, which costs more than to compute all.
    """
    return images.device.type == "cpu"


def _column(flags: Tensor) -> Tensor:
    """Turn numbers [B] into truth values [B,1,1,1]."""
    return (flags > 0).view(-1, 1, 1, 1)


def _sum_squares(differences: Tensor) -> Tensor:
    """Sum the squares of every image [B,...]: [B]."""
    return differences.square().flatten(1).sum(1)


def straight_through(source: Tensor, value: Tensor) -> Tensor:
    """Return `value`, exactly; backwards it is `source`."""
    return value.detach() + (source - source.detach())


def search(images: Tensor, networks: VaeGan, config: VaeganOptions) -> Tensor:
    """Mode latent before its decoding: from mu(x), minimise ||Dec(z) - x||^2 - lambda log Dis(Dec(z)); z [B,latent].

    The objective is divided by the number of pixels, so that the learning rate means what it means in
    Defense-GAN's code; momentum and cut are also from there. Restarts beyond the first start at a draw from the prior
    that belongs to the image; the one whose image is nearest to x is kept.

    Works whether gradients are on or off; where they are on and `images` requires them, the result is differentiable,
    second order included.
    """

    def step(number: int, state: State, attached: bool) -> State:
        z, velocity, targets = state
        at = z if attached else z.detach().requires_grad_()
        (slope,) = torch.autograd.grad(_misfit(at, targets, networks, config).sum(), at, create_graph=attached)
        velocity = config.momentum * velocity + slope
        z = z - config.latent_lr * (CUT if number >= math.ceil(LATE * config.latent_steps) else 1.0) * velocity
        return z, velocity, targets

    with inner_gradients(images) as (x, outer):
        z = networks.encode(x) if outer else networks.encode(x).detach()
        if config.restarts > 1:
            others = normal_like(z[:, None].expand(-1, config.restarts - 1, -1))
            z = torch.cat([z[:, None], others], 1).flatten(0, 1)
        targets = x.repeat_interleave(config.restarts, 0)
        z, *_ = unroll(step, (z, torch.zeros_like(z), targets), config.latent_steps, attached=outer)
        if config.restarts == 1:
            return z
        with torch.no_grad():
            errors = _sum_squares(networks.decode(z) - targets).view(len(x), config.restarts)
        nearest: Tensor = z[errors.argmin(1) + config.restarts * torch.arange(len(x), device=x.device)]
        return nearest


def _misfit(z: Tensor, targets: Tensor, networks: VaeGan, config: VaeganOptions) -> Tensor:
    """Return (||Dec(z) - x||^2 - lambda log Dis(Dec(z))) / pixels, [B]."""
    decoded = networks.decoder(z)
    total = _sum_squares(networks.crop(decoded) - targets)
    if config.dis_weight:
        total = total - config.dis_weight * F.logsigmoid(networks.discriminator(decoded)[0])
    return total / targets[0].numel()
