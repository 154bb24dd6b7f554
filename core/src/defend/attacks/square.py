"""Square Attack (Andriushchenko et al. 2020, arXiv:1912.00049): random search that asks for answers alone."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from defend.attacks.balls import project_l2, project_linf, unit, wide
from defend.attacks.options import SquareOptions
from defend.attacks.target import Target
from defend.errors import ContractError
from defend.randomness import keyed, sign_like, uniform_like, uniform_per_image

SCHEDULE = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries: after each, p halves
SCALE = 10_000
TILES = 5  # bumps along each side of the L2 attack's first perturbation
SMALLEST = 3  # side of the L2 attack's windows, in pixels
COMPACT_ON_GPU = 64  # queries between two looks at which images are done


def share_of_pixels(query: int, queries: int, p_init: float) -> float:
    """Return p, the share of pixels that proposal number `query` (from 0) changes, out of `queries` proposals."""
    progress = query * SCALE // max(queries, 1)
    return float(p_init / 2 ** sum(progress > bound for bound in SCHEDULE))


def bump(side: int) -> Tensor:
    """Return the L2 attack's bump [side,side] of length 1, the paper's eta: two halves of opposite sign.

    Each half is largest at its middle and falls off with the distance d from there as the sum over k from d to n of
    1 / (k + 1)^2, with n half its longer side.
    """
    top = _half(side // 2, side)
    whole = torch.cat((top, -_half(side - side // 2, side)))
    eta: Tensor = whole / whole.norm()
    return eta


def _half(height: int, width: int) -> Tensor:
    down = (torch.arange(height) - height // 2).abs()
    across = (torch.arange(width) - width // 2).abs()
    terms = 1 / torch.arange(1, max(height, width) // 2 + 2, dtype=torch.float32).square()
    tails = terms.flip(0).cumsum(0).flip(0)
    half = tails[torch.maximum(down[:, None], across[None])]
    return half / half.norm() if half.numel() else half


class SquareAttack:
    """Propose changes of one square window, keep what helps; the published schedule rescaled to `queries`.

    The attacker sees what the whole system answers: logits, and whether the image is accepted. A point is better
    than another if it is accepted and the other is not; between two of the same kind, if its margin (the true
    class's logit less the largest other) is smaller. So a rejected proposal never takes an accepted point's place,
    and from a rejected point the search may wander until it is accepted. An image is done once misclassified and
    accepted, and asks no more.

    A random defence answers each query with new draws, one a query. There a fooled proposal is asked about once more
    and counts only if it fools again; if not, it is judged by its second answer. Other proposals are taken at their
    first answer, lucky or not.

    `target.queries` gets the number of queries of each image: one for the image itself, one for the starting
    perturbation, one for each proposal or repeated question.
    """

    def __init__(self, config: SquareOptions, norm: str) -> None:
        self._config, self.norm = config, norm

    def __call__(self, target: Target, images: Tensor, labels: Tensor, *, eps: Tensor, keys: Tensor) -> Tensor:
        """See `defend.stages.Attack`."""
        best = images.clone()
        queries = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        left = torch.arange(len(images), device=images.device)
        for restart in range(self._config.restarts):
            search = _Search(
                target, self.norm, images[left], labels[left], eps[left], keys[left], f"square/{self.norm}/{restart}"
            )
            done = search.run(self._config.queries, self._config.p_init)
            best[left], queries[left] = search.best, queries[left] + search.queries
            left = left[~done]
            if len(left) == 0:
                break
        target.queries = queries
        return best


class _Search:
    """One restart: where the search of every image stands. `best`, `queries` are of all images, the rest of those left.

    `place` says which those are; `point` is an image's best so far, with its `margin` and whether `accepted`; a
    fooled proposal of a random defence waits in `asked` to be confirmed.
    """

    def __init__(
        self, target: Target, norm: str, images: Tensor, labels: Tensor, eps: Tensor, keys: Tensor, stream: str
    ) -> None:
        self.target, self.norm, self.stream = target, norm, stream
        self.best, self.queries = images.clone(), torch.zeros_like(labels)
        self.place = torch.arange(len(images), device=images.device)
        self.images, self.labels, self.eps, self.keys = images, labels, eps, keys
        self.point = self.asked = images
        self.margin = torch.full_like(eps, torch.inf)
        self.accepted = self.done = torch.zeros_like(labels, dtype=torch.bool)
        self.waiting = self.done

    def run(self, queries: int, p_init: float) -> Tensor:
        """Search with so many queries an image; return who is done, bool [all images]."""
        every = self.target.compact_every or (1 if self.images.device.type == "cpu" else COMPACT_ON_GPU)
        finished = torch.zeros_like(self.labels, dtype=torch.bool)
        for query in range(queries):
            with keyed(self.keys, seed=self.target.seed, stream=f"{self.stream}/{query}"):
                if query == 0:
                    proposed = self.images
                elif query == 1:
                    proposed = self._start()
                else:
                    proposed = self._propose(share_of_pixels(query - 2, max(queries - 2, 1), p_init))
            self._ask(proposed, query)
            if (query + 1) % every == 0 or query + 1 == queries:
                self.best[self.place], finished[self.place] = self.point, self.done
                keep = (~self.done).nonzero()[:, 0]
                if len(keep) == 0:
                    break
                if len(keep) < len(self.place):
                    self._keep(keep)
        return finished

    def _ask(self, proposed: Tensor, query: int) -> None:
        """Show the proposals (or what waits to be confirmed) to the target, and take over what is better."""
        again = self.waiting
        shown = torch.where(wide(again), self.asked, proposed)
        self.queries[self.place] += (~self.done).long()
        logits, accepted = self.target.answer(shown, self.keys, f"{self.stream}/{query}", draws=1)
        self._check(logits)
        own = F.one_hot(self.labels, logits.shape[1]).bool()
        half = logits / 2  # so that no difference of large logits is infinite, where nothing would be better
        margin = half.gather(1, self.labels[:, None])[:, 0] - half.masked_fill(own, -torch.inf).amax(1)
        fooled = accepted & (logits.argmax(1) != self.labels)
        certain = fooled if not self.target.random else fooled & again
        self.waiting = fooled & ~certain & ~self.done
        same = accepted == self.accepted
        better = (accepted & ~self.accepted) | (same & (margin < self.margin))
        # the starting perturbation replaces the image itself whatever it does to the margin, unless it is rejected
        better = (better | (same if query == 1 else certain)) & ~self.waiting & ~self.done
        self.asked = shown
        self.point = torch.where(wide(better), shown, self.point)
        self.margin, self.accepted = torch.where(better, margin, self.margin), self.accepted | (better & accepted)
        self.done = self.done | certain

    def _check(self, logits: Tensor) -> None:
        """Refuse answers that cannot be compared: no proposal would ever be better, and every image look robust."""
        bad = int((~torch.isfinite(logits)).any(1).sum())
        if bad:
            raise ContractError(
                f"attack square: the model answered {bad} of {len(logits)} images with logits that are not finite: "
                "expected finite numbers [B,classes]"
            )

    def _keep(self, keep: Tensor) -> None:
        for name in (
            "place", "images", "labels", "eps", "keys", "point", "asked", "margin", "accepted", "done", "waiting"
        ):  # fmt: skip
            setattr(self, name, getattr(self, name)[keep])

    def _start(self) -> Tensor:
        return stripes(self.images, self.eps) if self.norm == "linf" else tiles(self.images, self.eps)

    def _propose(self, share: float) -> Tensor:
        if self.norm == "linf":
            return propose_linf(self.images, self.point, self.eps, share)
        return propose_l2(self.images, self.point, self.eps, share)


def stripes(images: Tensor, eps: Tensor) -> Tensor:
    """Return the L-inf attack's start: every column of every channel moved by +eps or -eps [B]."""
    sign = sign_like(images[:, :, :1, :])
    return project_linf(images + sign * wide(eps), images, eps)


def propose_linf(images: Tensor, points: Tensor, eps: Tensor, share: float) -> Tensor:
    """Set one square of each channel to +eps or -eps from the image (algorithm 2); `share` of the pixels.

    A draw that would change nothing (common with one channel) turns one channel's sign, where the published code
    draws again until something changes.
    """
    batch, channels, height, width = images.shape
    side = min(max(round((share * height * width) ** 0.5), 1), height, width)
    top, left = _corner(images, side)
    window = _window(top, left, side, images)
    sign = sign_like(images[:, :, :1, :1])
    turn = F.one_hot(_integer(images, channels), channels).view(batch, channels, 1, 1).bool()

    def moved(signs: Tensor) -> Tensor:
        return torch.where(window, project_linf(images + signs * wide(eps), images, eps), points)

    proposed = moved(sign)
    same = (proposed == points).flatten(1).all(1)
    return torch.where(wide(same), moved(torch.where(turn, -sign, sign)), proposed)


def tiles(images: Tensor, eps: Tensor) -> Tensor:
    """Return the L2 attack's start: a grid of bumps, of random sign a channel, of length eps [B] in all."""
    batch, channels, height, width = images.shape
    side = max(min(height, width) // TILES, 1)
    rows, columns = height // side, width // side
    shape = bump(side).to(images)
    turned = uniform_like(images.new_zeros(batch, 1, rows, 1, columns, 1)) < 0.5
    sign = sign_like(images.new_zeros(batch, channels, rows, 1, columns, 1))
    grid = torch.where(turned, shape.T.view(1, 1, 1, side, 1, side), shape.view(1, 1, 1, side, 1, side)) * sign
    delta = torch.zeros_like(images)
    above, before = (height - rows * side) // 2, (width - columns * side) // 2
    delta[:, :, above : above + rows * side, before : before + columns * side] = grid.reshape(
        batch, channels, rows * side, columns * side
    )
    return _scaled(images, delta, eps)


def propose_l2(images: Tensor, points: Tensor, eps: Tensor, share: float) -> Tensor:
    """Move the change of one window into another, on top of a new bump there (algorithm 3); `share` of the pixels.

    The new bump gets, channel by channel, the length of what was in both windows and what the budget eps [B] had left.
    """
    batch, channels, height, width = images.shape
    side = max(round((share * height * width) ** 0.5), SMALLEST)
    side = min(side + (side % 2 == 0), height, width)
    side = side if side >= SMALLEST else 1  # in a smaller image single pixels, or half of all changes are out of reach
    delta = points - images
    to, source = _corner(images, side), _corner(images, side)
    window = _window(*to, side, images)
    both = window | _window(*source, side, images)
    there = _cut(delta, *to, side)
    spare = (eps.square() - delta.square().flatten(1).sum(1)).clamp_min(0) / channels
    length = (spare[:, None] + (delta.square() * both).flatten(2).sum(2)).sqrt()

    shape = bump(side).to(images)
    turned = wide(uniform_per_image(images) < 0.5)
    fresh = torch.where(turned, shape.T, shape) * sign_like(images[:, :, :1, :1])
    fresh = _unit_channels(_unit_channels(there) + fresh) * length.view(batch, channels, 1, 1)
    return _scaled(images, _paste(torch.where(both, 0, delta), fresh, *to), eps)


def _scaled(images: Tensor, delta: Tensor, eps: Tensor) -> Tensor:
    """Add a change scaled to the length eps [B]; the box may shorten it."""
    return project_l2(images + wide(eps) * unit(delta), images, eps)


def _unit_channels(windows: Tensor) -> Tensor:
    """Scale each channel of windows [B,C,H,W] to length 1 in L2; one of zeros stays."""
    return unit(windows.flatten(0, 1)[:, None]).view_as(windows)


def _integer(images: Tensor, below: int) -> Tensor:
    """Draw a whole number from 0 to below - 1 for each image, int64 [B]."""
    return uniform_per_image(images, 0, below).long().clamp_max(below - 1)


def _corner(images: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Draw the top left corner of a window for each image, int64 [B] each."""
    height, width = images.shape[2:]
    return _integer(images, height - side + 1), _integer(images, width - side + 1)


def _window(top: Tensor, left: Tensor, side: int, images: Tensor) -> Tensor:
    """Return bool [B,1,H,W]: what lies in each image's window."""
    rows = torch.arange(images.shape[2], device=images.device) - top[:, None]
    columns = torch.arange(images.shape[3], device=images.device) - left[:, None]
    inside = ((rows >= 0) & (rows < side))[:, :, None] & ((columns >= 0) & (columns < side))[:, None, :]
    return inside[:, None]


def _places(images: Tensor, top: Tensor, left: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the indices of every pixel of every window: image, channel, row, column, for [B,C,side,side]."""
    span = torch.arange(side, device=images.device)
    return (
        torch.arange(len(images), device=images.device).view(-1, 1, 1, 1),
        torch.arange(images.shape[1], device=images.device).view(1, -1, 1, 1),
        (top[:, None] + span).view(len(images), 1, -1, 1),
        (left[:, None] + span).view(len(images), 1, 1, -1),
    )


def _cut(images: Tensor, top: Tensor, left: Tensor, side: int) -> Tensor:
    return images[_places(images, top, left, side)]


def _paste(images: Tensor, windows: Tensor, top: Tensor, left: Tensor) -> Tensor:
    pasted = images.clone()
    pasted[_places(images, top, left, windows.shape[-1])] = windows
    return pasted


def linf(config: SquareOptions) -> SquareAttack:
    """Build the L-inf attack."""
    return SquareAttack(config, "linf")


def l2(config: SquareOptions) -> SquareAttack:
    """Build the L2 attack."""
    return SquareAttack(config, "l2")
