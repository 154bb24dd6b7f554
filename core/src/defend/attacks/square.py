"""Square Attack (Andriushchenko et al. 2020, arXiv:1912.00049): random search that asks for answers alone."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from defend.attacks.balls import wide
from defend.attacks.options import SquareOptions
from defend.attacks.proposals import propose_l2, propose_linf, stripes, tiles
from defend.attacks.target import Target
from defend.errors import ContractError
from defend.randomness import keyed

SCHEDULE = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries: after each, p halves
SCALE = 10_000
COMPACT_ON_GPU = 64  # queries between two looks at which images are done


def share_of_pixels(query: int, queries: int, p_init: float) -> float:
    """Return p, the share of pixels that proposal number `query` (from 0) changes, out of `queries` proposals."""
    progress = query * SCALE // max(queries, 1)
    return float(p_init / 2 ** sum(progress > bound for bound in SCHEDULE))


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
        self.unusable = torch.zeros((), dtype=torch.int64, device=images.device)

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
            if (query + 1) % every == 0 or query + 1 == queries:  # the only waits for the device
                self._check()
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
        self.unusable = torch.maximum(self.unusable, (~torch.isfinite(logits)).any(1).sum())
        own = F.one_hot(self.labels, logits.shape[1]).bool()
        half = logits / 2  # so that no difference of large logits is infinite, where nothing would be better
        margin = half.gather(1, self.labels[:, None])[:, 0] - half.masked_fill(own, -torch.inf).amax(1)
        fooled = accepted & (logits.argmax(1) != self.labels)
        # a random defence may be fooled once by luck
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

    def _check(self) -> None:
        """Refuse answers that cannot be compared: no proposal would ever be better, and every image look robust."""
        bad = int(self.unusable)
        if bad:
            raise ContractError(
                f"attack square: the model answered {bad} of {len(self.keys)} images with logits that are not finite: "
                "expected finite numbers [B,classes]"
            )

    def _keep(self, keep: Tensor) -> None:
        for name in (
            "place",
            "images",
            "labels",
            "eps",
            "keys",
            "point",
            "asked",
            "margin",
            "accepted",
            "done",
            "waiting",
        ):
            setattr(self, name, getattr(self, name)[keep])

    def _start(self) -> Tensor:
        return stripes(self.images, self.eps) if self.norm == "linf" else tiles(self.images, self.eps)

    def _propose(self, share: float) -> Tensor:
        if self.norm == "linf":
            return propose_linf(self.images, self.point, self.eps, share)
        return propose_l2(self.images, self.point, self.eps, share)


def linf(config: SquareOptions) -> SquareAttack:
    """Build the L-inf attack."""
    return SquareAttack(config, "linf")


def l2(config: SquareOptions) -> SquareAttack:
    """Build the L2 attack."""
    return SquareAttack(config, "l2")
