"""Square Attack (Andriushchenko et al. 2020, arXiv:1912.00049): random search that asks for answers alone."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor
from torch.nn import functional as F

from defend.attacks.balls import wide
from defend.attacks.keeping import count_repeats
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

    A random defence answers each query with new draws, one a query. There a proposal that fools is asked about again,
    `count_repeats` times or until it cannot beat what was found before. The share of these answers that were fooled is
    what it counts for; its first answer is not among them, and its margin is the mean of those that were not. What
    comes back is what fooled most; an image is done once all these answers were. Other proposals are taken at their
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
        share = torch.zeros_like(eps)
        left = torch.arange(len(images), device=images.device)
        for restart in range(self._config.restarts):
            search = _Search(
                target,
                self.norm,
                images[left],
                labels[left],
                eps[left],
                keys[left],
                stream=f"square/{self.norm}/{restart}",
                queries=self._config.queries,
            )
            done = search.run(self._config.p_init)
            # of a random defence what fools most counts, else the last
            better = search.share >= share[left]
            best[left] = torch.where(wide(better), search.best, best[left])
            share[left] = torch.where(better, search.share, share[left])
            queries[left] += search.queries
            left = left[~done]
            if len(left) == 0:
                break
        target.queries = queries
        return best


@attrs.frozen
class _Answers:
    """What was answered to the same question of each image, [B] each.

    How often, how often fooled and how often accepted; `margins` is the sum of the margins that did not fool.
    """

    asked: Tensor
    fooled: Tensor
    accepted: Tensor
    margins: Tensor

    @classmethod
    def none(cls, like: Tensor) -> _Answers:
        return cls(*(torch.zeros_like(like) for _ in attrs.fields(cls)))

    def add(self, again: Tensor, fooled: Tensor, accepted: Tensor, margin: Tensor) -> _Answers:
        """Count an answer where it was asked `again` [B]; elsewhere begin anew."""
        now = (torch.ones_like(margin), fooled, accepted, torch.where(fooled, 0, margin))
        before = attrs.astuple(self, recurse=False)
        return _Answers(*(torch.where(again, old + new, 0) for old, new in zip(before, now, strict=True)))

    def part(self, keep: Tensor) -> _Answers:
        return _Answers(*(each[keep] for each in attrs.astuple(self, recurse=False)))


class _Search:
    """One restart: where the search of every image stands.

    `best`, `queries` and `share` are of all images, the rest of those left, and `place` says which those are. `point`
    is an image's best so far, with its `margin` and whether `accepted`. A proposal that fools a random defence is
    `waiting` in `asked` while its answers are counted (`again`), and what fooled most of them, `most`, is `chosen`.
    """

    def __init__(
        self,
        target: Target,
        norm: str,
        images: Tensor,
        labels: Tensor,
        eps: Tensor,
        keys: Tensor,
        *,
        stream: str,
        queries: int,
    ) -> None:
        self.target, self.norm, self.stream = target, norm, stream
        self.total, self.times = queries, count_repeats(target.draws, queries)
        self.best, self.queries, self.share = images.clone(), torch.zeros_like(labels), torch.zeros_like(eps)
        self.place = torch.arange(len(images), device=images.device)
        self.images, self.labels, self.eps, self.keys = images, labels, eps, keys
        self.point = self.asked = images
        self.margin = torch.full_like(eps, torch.inf)
        self.accepted = self.done = torch.zeros_like(labels, dtype=torch.bool)
        self.waiting = self.done
        self.chosen, self.most, self.again = images, torch.zeros_like(eps), _Answers.none(eps)
        self.unusable = torch.zeros((), dtype=torch.int64, device=images.device)

    def run(self, p_init: float) -> Tensor:
        """Search with all queries; return who is done, bool [all images]."""
        queries = self.total
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
                self._settle()
                finished[self.place] = self.done
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
        certain = fooled
        if self.target.random:  # which may be fooled once by luck
            self.again = self.again.add(again, fooled, accepted, margin)
            certain, judged = self._count(shown)
            # lucky answers may have margins of any size
            missed = self.again.asked - self.again.fooled
            margin = torch.where(again & (missed > 0), self.again.margins / missed.clamp_min(1), margin)
            accepted = torch.where(again, 2 * self.again.accepted > self.again.asked, accepted)
            self.waiting = torch.where(again, ~judged, fooled) & ~certain & ~self.done
        same = accepted == self.accepted
        better = (accepted & ~self.accepted) | (same & (margin < self.margin))
        # the starting perturbation replaces the image itself whatever it does to the margin, unless it is rejected
        better = (better | (same if query == 1 else certain)) & ~self.waiting & ~self.done
        self.asked = shown
        self.point = torch.where(wide(better), shown, self.point)
        self.margin, self.accepted = torch.where(better, margin, self.margin), self.accepted | (better & accepted)
        self.done = self.done | certain

    def _count(self, shown: Tensor) -> tuple[Tensor, Tensor]:
        """Return what of the asked again [B,C,H,W] fooled every time, and what is judged, bool [B] each."""
        times, seen = self.times, self.again
        # those that are still to come might all be fooled
        hopeless = (seen.fooled + (times - seen.asked)) / times <= self.most
        judged = (seen.asked > 0) & ((seen.asked == times) | hopeless)
        self._choose(shown, judged)
        return judged & (seen.fooled == times), judged

    def _choose(self, shown: Tensor, which: Tensor) -> None:
        """Keep of proposals those `which` [B] fooled more than all before."""
        share = self.again.fooled / self.times
        better = which & (share > self.most)
        self.chosen = torch.where(wide(better), shown, self.chosen)
        self.most = torch.where(better, share, self.most)

    def _settle(self) -> None:
        """Write down what the search would answer with now: what fools most, else the point."""
        self._choose(self.asked, self.waiting)  # what is still waiting counts for what it has fooled
        self.best[self.place] = torch.where(wide(self.most > 0), self.chosen, self.point)
        self.share[self.place] = self.most

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
            "chosen",
            "most",
        ):
            setattr(self, name, getattr(self, name)[keep])
        self.again = self.again.part(keep)

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
