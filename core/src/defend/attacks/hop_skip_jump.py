"""HopSkipJump (Chen et al. 2020, arXiv:1904.02144): the smallest change that fools, from labels alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from defend.attacks.balls import clip, lengths, measure, steepest, wide
from defend.attacks.keeping import count_repeats
from defend.attacks.options import HopSkipJumpOptions
from defend.attacks.target import CPU_BATCH, Target
from defend.randomness import keyed, normal_like, uniform_like

HALVINGS = 12  # of a jump, until it lands on the other side
FINEST = 20  # halvings of a way to the boundary: float32 tells no finer
ACROSS = 1.001  # how much further than the boundary
RANDOM_ACROSS = (ACROSS, 1.1, 1.2, 1.4)  # of a random target, in the end; and so many of the points that came before,
RUNGS, RUNG = 4, 1.4  # each so many times as far as the next
TIMES = 3  # answers about one point where the target has fewer draws
AGAIN = 2  # more answers that must fool before a random target's point is believed: a lucky one ends a search
FIRST_PROBE = 0.1  # how far around an image is asked at first, in L2
FEWEST = 10  # questions that make a direction
COARSE = 4  # blocks a side of the coarse noise among the starts
GPU_BATCH = 512  # images asked about at once


class HopSkipJump:
    """From a point that fools, go back to the boundary, ask around which way it lies, jump along it, and so on.

    The attacker sees the label, and whether the image is accepted: a point fools if it is accepted and gets another
    label than the true one. A search begins at noise mixed into the image, or at the image turned or shifted mixed into
    itself, or at `target.others`, images of other classes: a detector that rejects all noise takes these for images.
    Where none of the starts fools, the image comes back as it was, which says nothing of the defence. What comes back
    is the nearest point that ever fooled. A random target answers each question with one draw, so the nearest of many
    points is a lucky one: there the last questions go to it, to points further along the same way and to what had
    fooled before it, and the nearest that fools half of its answers comes back.

    `target.queries` gets the number of questions asked of each image, at most `queries`.
    """

    minimal = nearest = strays = begins_elsewhere = True

    def __init__(self, config: HopSkipJumpOptions, norm: str) -> None:
        self._config, self.norm = config, norm

    def __call__(self, target: Target, images: Tensor, labels: Tensor, *, eps: Tensor, keys: Tensor) -> Tensor:
        """See `defend.stages.Attack`."""
        search = _Search(self._config, self.norm, target, images, labels, keys)
        search.run()
        target.queries = search.queries
        return search.nearest


class _Search:
    """Where the search of every image stands: `nearest` what fooled nearest, `distance` how far, `queries` asked.

    Of a random target also `rungs`, what was nearest before, each `RUNG` times as far as the next or more, and how far;
    where the search began, `start`; and whether the image itself fooled once, `suspected`.

    Methods take `place` [K], the images that are meant, and what stands for each in the same order.
    """

    def __init__(
        self, config: HopSkipJumpOptions, norm: str, target: Target, images: Tensor, labels: Tensor, keys: Tensor
    ) -> None:
        self.config, self.norm, self.target = config, norm, target
        self.images, self.labels, self.keys = images, labels, keys
        self.nearest = images.clone()
        self.distance = torch.full_like(images[:, 0, 0, 0], torch.inf)
        self.queries = torch.zeros_like(labels)
        size = images[0].numel() if len(images) else 1
        # the paper's threshold: a share of the way, d^-3/2 in L2 and d^-2 in L-inf
        share = (2 if norm == "linf" else 1.5) * math.log2(max(size, 2)) - math.log2(config.gamma)
        self.halvings = min(max(math.ceil(share), 1), FINEST)
        self.probe = config.gamma / size  # of the distance
        self.times = count_repeats(max(target.draws, TIMES), config.queries)
        self.rungs = [images] * RUNGS if target.random else []
        self.rungs_far = [torch.full_like(self.distance, torch.inf) for _ in self.rungs]
        self.start = images
        self.suspected = torch.zeros_like(labels, dtype=torch.bool)
        last = (len(RANDOM_ACROSS) + RUNGS + 2) * self.times if target.random else 1
        # what a jump, the way back (half of whose points fool) and the last questions may take
        self.reserve = HALVINGS + self.halvings * (1 + (AGAIN + 1) // 2 * target.random) + last

    def run(self) -> None:
        """Search until the questions are used up."""
        everyone = torch.arange(len(self.labels), device=self.labels.device)
        place, current = self._begin(everyone[~self._ask_as_it_is(everyone)])
        current = self._approach(place, current, "begin")
        step = 0
        while len(place):
            count = min(int(self.config.initial_evals * math.sqrt(step + 1)), self.config.max_evals)
            allowed = (self.config.queries - self.queries[place] - self.reserve).clamp_max(count)
            # a way as short as float32 can tell has nothing left to halve
            keep = (allowed >= FEWEST) & (self.distance[place] > 1e-6)
            place, current, allowed = place[keep], current[keep], allowed[keep]
            if not len(place):
                break
            far = measure(current - self.images[place], self.norm)
            # in L2 in both norms: a d-th of a length in L-inf, the paper's, is lost in the rounding of a network
            around = self.probe * lengths(current - self.images[place])
            reach = torch.full_like(far, FIRST_PROBE) if step == 0 else around
            direction = self._look_around(place, current, reach, allowed, step)
            landed, fooled = self._jump(place, current, direction, far / math.sqrt(step + 1), step)
            back = self._approach(place[fooled], landed[fooled], f"{step}")
            current = current.index_copy(0, fooled.nonzero()[:, 0], back)
            step += 1
        place = ((self.distance > 0) & self.distance.isfinite()).nonzero()[:, 0]
        if self.target.random:
            self._choose(place)
        else:
            self._step_across(place)

    def _ask_as_it_is(self, place: Tensor) -> Tensor:
        """Return which images fool as they are, bool [K]; of a random target in all of so many answers."""
        images = self.images[place]
        fooled = self._ask(place, images, "start", keep=not self.target.random)
        if self.target.random:  # one that is wrong by luck is attacked as any other
            self.suspected[place] = fooled
            for time in range(self.times):
                left = fooled.nonzero()[:, 0]
                fooled[left] = self._ask(place[left], images[left], f"start/again/{time}", keep=False)
            self.distance[place[fooled]] = 0
        return fooled

    def _beyond(self, place: Tensor, factor: float) -> Tensor:
        """Return points in the direction of the nearest, so many times as far."""
        images = self.images[place]
        return (images + factor * (self.nearest[place] - images)).clamp(0, 1)

    def _step_across(self, place: Tensor) -> None:
        """Move what was found a little further: so near the boundary, rounding would decide what a judge says."""
        further = self._beyond(place, ACROSS)
        fooled = self._ask(place, further, "across", keep=False)
        self.nearest[place[fooled]] = further[fooled]

    def _choose(self, place: Tensor) -> None:
        """Answer with the nearest candidate that fools half of so many answers, or with what fools most of them."""
        found, most, reach = self.nearest[place], torch.full_like(place, -1), self.distance[place]
        itself = [(self.images[place], torch.where(self.suspected[place], 0, torch.inf).to(reach))]
        along = [(self._beyond(place, factor), factor * reach) for factor in RANDOM_ACROSS]
        # what was nearest before lies another way; only what is farther than all those along this one is of use
        least = RANDOM_ACROSS[-1] * reach
        before = [(points[place], far[place]) for points, far in zip(self.rungs, self.rungs_far, strict=True)]
        before.append((self.start[place], measure(self.start[place] - self.images[place], self.norm)))
        for number, (points, far) in enumerate(itself + along + before):
            fits = far.isfinite() & (2 * most < self.times) & ((number <= len(along)) | (far > least))
            wins = self._count(place, points, fits, f"choose/{number}")
            better = fits & (wins > most)
            found, most = torch.where(wide(better), points, found), torch.where(better, wins, most)
        self.nearest[place] = found

    def _count(self, place: Tensor, points: Tensor, which: Tensor, stream: str) -> Tensor:
        """Return how many of `times` answers fool about the points `which` [K], int64 [K].

        No more is asked once it is certain that half of them do, or that fewer will.
        """
        half = -(-self.times // 2)
        wins, missed = torch.zeros_like(place), torch.zeros_like(place)
        for time in range(self.times):
            open_ = (which & (wins < half) & (missed <= self.times - half)).nonzero()[:, 0]
            if len(open_) == 0:
                break
            fooled = self._ask(place[open_], points[open_], f"{stream}/{time}", keep=False)
            wins[open_] += fooled.long()
            missed[open_] += (~fooled).long()
        return wins

    def _ask(self, place: Tensor, points: Tensor, stream: str, keep: bool = True) -> Tensor:
        """Ask about points [K,C,H,W]; return which fool, bool [K]. Images that may ask no more do not.

        What fools nearer than all before is kept, unless told otherwise; of a random target only if `_confirm` says so.
        """
        some = (self.queries[place] < self.config.queries).nonzero()[:, 0]
        fooled = torch.zeros_like(place, dtype=torch.bool)
        if len(some) == 0:
            return fooled
        who, shown = place[some], points[some]
        self.queries.index_add_(0, who, torch.ones_like(who))
        logits, accepted = self.target.answer(shown, self.keys[who], f"hsj/{stream}", draws=1)
        fooled[some] = accepted & (logits.argmax(1) != self.labels[who])
        if keep:
            self._keep_nearest(who, shown, fooled[some], stream)
        return fooled

    def _ask_surely(self, place: Tensor, points: Tensor, stream: str) -> Tensor:
        """As `_ask`, of points that the search goes on from: of a random target who fools has to be confirmed."""
        fooled = self._ask(place, points, stream, keep=not self.target.random)
        if self.target.random:
            fooled = self._confirm(place, points, fooled, stream)
            self._keep_nearest(place, points, fooled)
        return fooled

    def _confirm(self, place: Tensor, points: Tensor, fooled: Tensor, stream: str) -> Tensor:
        """Return which of the points [K,C,H,W] that `fooled` do so `AGAIN` times more, bool [K]."""
        for time in range(AGAIN):
            left = fooled.nonzero()[:, 0]
            again = self._ask(place[left], points[left], f"{stream}/sure/{time}", keep=False)
            fooled = fooled.index_copy(0, left, again)
        return fooled

    def _keep_nearest(self, place: Tensor, points: Tensor, fooled: Tensor, stream: str | None = None) -> None:
        """Take points in that fool; of a random target those at the image itself are none, and others are confirmed.

        They are confirmed already where there is no `stream`.
        """
        distance = measure(points - self.images[place], self.norm)
        if self.target.random:
            fooled = fooled & (distance > 0)
        # an image may be there several times: its nearest is taken
        least = self.distance.scatter_reduce(0, place, torch.where(fooled, distance, torch.inf), "amin")
        better = (fooled & (distance < self.distance[place]) & (distance <= least[place])).nonzero()[:, 0]
        if self.target.random and len(better):
            if stream is not None:
                sure = self._confirm(place[better], points[better], torch.ones_like(better, dtype=torch.bool), stream)
                better = better[sure]
            self._remember(place[better])
        self.distance[place[better]] = distance[better]
        self.nearest[place[better]] = points[better]

    def _remember(self, place: Tensor) -> None:
        """Put the nearest of images that now have a nearer on their first rung, if the one there is far enough off."""
        far = self.distance
        push = torch.zeros_like(far, dtype=torch.bool).index_fill(0, place, True)
        push &= far.isfinite() & (RUNG * far <= self.rungs_far[0])
        shifted, lengths = [self.nearest, *self.rungs[:-1]], [far, *self.rungs_far[:-1]]
        self.rungs = [torch.where(wide(push), new, old) for new, old in zip(shifted, self.rungs, strict=True)]
        self.rungs_far = [torch.where(push, new, old) for new, old in zip(lengths, self.rungs_far, strict=True)]

    def _begin(self, place: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images that some start fools, and the start of each.

        Of a random target a start should fool half of its answers, as from a lucky one the search would see no other
        kind of point; where none does, the first lucky one is taken.
        """
        start, waiting = self.images.clone(), place
        ever = torch.zeros_like(self.labels, dtype=torch.bool)
        for attempt in range(self.config.starts):
            if not len(waiting):
                break
            images = self.images[waiting]
            with keyed(self.keys[waiting], seed=self.target.seed, stream=f"hsj/start/{attempt}"):
                points = self._start(images, attempt)
            fooled = self._ask(waiting, points, f"start/{attempt}", keep=not self.target.random)
            sure = fooled
            if self.target.random:
                sure = self._confirm(waiting, points, fooled, f"start/{attempt}")
                self._keep_nearest(waiting, points, sure)
                # of many starts one may well be confirmed by luck
                sure = sure & (2 * self._count(waiting, points, sure, f"start/{attempt}") >= self.times)
            taken = sure | (fooled & ~ever[waiting])
            start[waiting[taken]] = points[taken]
            ever[waiting[taken]] = True
            waiting = waiting[~sure]
        self.start = start
        found = place[ever[place]]
        return found, start[found]

    def _start(self, images: Tensor, attempt: int) -> Tensor:
        """Return a start of each image: a little of something else in it, then more, then another image altogether."""
        others = self.target.others
        known = 0 if others is None else len(others)
        if others is not None and FIRST_STARTS <= attempt < FIRST_STARTS + known:
            return others[attempt - FIRST_STARTS].to(images).expand_as(images)
        number = attempt if attempt < FIRST_STARTS else attempt - known
        other = STARTS[number % len(STARTS)](images)
        return images + SHARES[number // len(STARTS) % len(SHARES)] * (other - images)

    def _approach(self, place: Tensor, points: Tensor, stream: str) -> Tensor:
        """Halve the way from points that fool to their images; return the nearest on it that fool."""
        far = measure(points - self.images[place], self.norm)
        low, high, best = torch.zeros_like(far), far, points
        for halving in range(self.halvings):
            middle = (low + high) / 2
            tried = self._between(place, points, middle, far)
            fooled = self._ask_surely(place, tried, f"{stream}/back/{halving}")
            best = torch.where(wide(fooled), tried, best)
            low, high = torch.where(fooled, low, middle), torch.where(fooled, middle, high)
        return best

    def _between(self, place: Tensor, points: Tensor, middle: Tensor, far: Tensor) -> Tensor:
        """Return the points at the distance `middle` of those at `far`: cut off in L-inf, in L2 on a straight line."""
        images = self.images[place]
        if self.norm == "linf":
            return clip(points, images, middle, "linf")
        return images + wide(torch.where(far > 0, middle / far, 0)) * (points - images)

    def _look_around(self, place: Tensor, current: Tensor, reach: Tensor, allowed: Tensor, step: int) -> Tensor:
        """Return where fooling lies, from answers `reach` [K] around: a direction of length 1 in the norm.

        The answers' mean is taken off first (the paper's eq. 16), unless they are all the same.
        """
        total, answered = torch.zeros_like(current), torch.zeros_like(current)
        votes = torch.zeros_like(reach)
        batch = CPU_BATCH if current.device.type == "cpu" else GPU_BATCH
        # a random target's draws are an image's own by its key: one question an image at a time
        together = 1 if self.target.random else max(batch // max(len(place), 1), 1)
        probes = int(allowed.max())
        for first in range(0, probes, together):
            rounds = range(first, min(first + together, probes))
            around, who = [], []
            for number in rounds:
                some = (allowed > number).nonzero()[:, 0]
                around.append(self._probe(place[some], current[some], reach[some], f"{step}/around/{number}"))
                who.append(some)
            asking = torch.cat(who)
            points = torch.cat(around)
            moved = (points - current[asking]) / wide(reach[asking])
            fooled = self._ask(place[asking], points, f"{step}/around/{first}")
            vote = torch.where(fooled, 1.0, -1.0).to(current.dtype)
            total.index_add_(0, asking, moved)
            answered.index_add_(0, asking, wide(vote) * moved)
            votes.index_add_(0, asking, vote)
        mean = votes / allowed
        mean = torch.where(mean.abs() == 1, 0, mean)
        return steepest(answered - wide(mean) * total, self.norm)

    def _probe(self, place: Tensor, current: Tensor, reach: Tensor, stream: str) -> Tensor:
        with keyed(self.keys[place], seed=self.target.seed, stream=f"hsj/{stream}"):
            drawn = uniform_like(current, -1, 1) if self.norm == "linf" else normal_like(current)
        return (current + wide(reach) * steepest(drawn, "l2")).clamp(0, 1)

    def _jump(
        self, place: Tensor, current: Tensor, direction: Tensor, size: Tensor, step: int
    ) -> tuple[Tensor, Tensor]:
        """Jump along directions, half as far until the point fools; return the points, and which do."""
        landed, fooled = current.clone(), torch.zeros_like(place, dtype=torch.bool)
        for halving in range(HALVINGS):
            left = (~fooled).nonzero()[:, 0]
            if len(left) == 0:
                break
            tried = (current[left] + wide(size[left] / 2**halving) * direction[left]).clamp(0, 1)
            now = self._ask_surely(place[left], tried, f"{step}/jump/{halving}")
            landed[left[now]], fooled[left[now]] = tried[now], True
        return landed, fooled


def _coarse_noise(images: Tensor) -> Tensor:
    """Draw noise in blocks, a quarter of the image a side."""
    return F.interpolate(uniform_like(images[:, :, :COARSE, :COARSE]), size=images.shape[2:], mode="nearest")


STARTS: tuple[Callable[[Tensor], Tensor], ...] = (
    uniform_like,
    _coarse_noise,
    lambda images: images.flip(3),
    lambda images: images.flip(2),
    lambda images: images.flip(2, 3),
    lambda images: images.roll(images.shape[2] // 4, 2),
    lambda images: images.roll(images.shape[3] // 4, 3),
)
SHARES = (0.2, 0.4, 0.6, 0.8, 1.0, 0.3, 0.5, 0.7, 0.9)  # of a start in the image
FIRST_STARTS = 5 * len(STARTS)  # before other images are taken, which are farther off


def linf(config: HopSkipJumpOptions) -> HopSkipJump:
    """Build the L-inf attack."""
    return HopSkipJump(config, "linf")


def l2(config: HopSkipJumpOptions) -> HopSkipJump:
    """Build the L2 attack."""
    return HopSkipJump(config, "l2")
