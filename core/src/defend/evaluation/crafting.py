"""A row's attacked images: made, taken over from a smaller budget, or taken out of the store."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import torch
from torch import Tensor, nn

from defend.attacks.given import Replay
from defend.attacks.host import craft
from defend.attacks.target import Target
from defend.datasets.base import Batch
from defend.defence import Defence
from defend.fingerprints.code import code_version, modules_of
from defend.fingerprints.values import batch_key, module_hash
from defend.randomness import switched
from defend.records.rows import Part, PlannedRow
from defend.records.seen import Seen
from defend.stages import Attack
from defend.store.store import Store
from defend.values.threats import KNOWN_DRAWS, UNDEFENDED

DEFENDER, VICTIM = "defender", "victim"
"""The streams of the judge's draws: of what stands before the victim, and of the victim itself."""


@attrs.frozen
class Crafted:
    """What an attack made of a batch: images [B,C,H,W], and the columns of `defend.records.rows.Part`."""

    images: Tensor
    overshoot: Tensor
    queries: Tensor | None = None
    reused: int = 0
    seen: Seen | None = None


class Crafter:
    """Makes the attacked images of a run's rows.

    Args:
        arms: by name, as the evaluator has them.
        dataset: its name, for the store's table.
        seed, draws: of the attacker.
        precision: a dtype for autocast while crafting, or None.
        store: where images attacked on a bare victim are kept for other runs; None keeps none.
    """

    def __init__(
        self,
        arms: Mapping[str, Defence],
        *,
        dataset: str,
        seed: int,
        draws: int,
        precision: torch.dtype | None,
        store: Store | None,
    ) -> None:
        self._arms, self._dataset, self._store = arms, dataset, store
        self._seed, self._draws, self._precision = seed, draws, precision
        self._fooled: dict[str, dict[int, Tensor]] = {}
        self._hashes: dict[str, str] = {}
        self._codes: dict[tuple[str, int], tuple[Attack, str]] = {}  # the attack too: its id is its own while it lives

    def target(self, plan: PlannedRow) -> Target:
        """Return what the row's attack faces."""
        arm = self._arms[plan.attacked]
        # reduced precision was tried on the bare victim alone; in a purifier its rounding would hide the gradient
        precision = self._precision if plan.attacked == UNDEFENDED else None
        known = ""
        if plan.chance == KNOWN_DRAWS:
            known, faced = DEFENDER, Defence(_AsJudged(arm.victim), arm.purifier)
            # as it stands there: one that asks the victim itself does so while it is judged, with the defender's draws
            faced.detector, arm = arm.detector, faced
        draws = 1 if plan.chance else self._draws
        return Target(arm, seed=self._seed, draws=draws, precision=precision, threshold=plan.aim, known=known)

    def make(self, plan: PlannedRow, attack: Attack, target: Target, batch: Batch) -> Crafted:
        """Return a batch's attacked images."""
        arm = self._arms[plan.attacked]
        bare = arm.purifier is None and arm.detector is None
        # only what is decided by victim, attack and images is shared: a row that carries over depends on smaller
        # budgets too
        there = isinstance(attack, Replay)  # already, and kept elsewhere
        # who knows the draws is told apart from others by nothing that the key holds
        alone = plan.carry is not None or bool(plan.chance)
        if self._store is None or not plan.identity or alone or not bare or there:
            return self._fresh(plan, attack, target, batch)
        key = self._key(plan, attack, target, batch, arm)
        found = self._store.get(key)
        if found is not None:
            kept = {name: value.to(batch.images.device) for name, value in found.items()}
            seen = Seen(*kept["seen"]) if "seen" in kept else None
            return Crafted(kept["images"], kept["overshoot"], kept.get("queries"), len(batch.keys), seen)
        made = self._fresh(plan, attack, target, batch)
        looks = None if made.seen is None else torch.stack(made.seen.columns())
        tensors = {"images": made.images, "overshoot": made.overshoot, "queries": made.queries, "seen": looks}
        victim = getattr(arm.victim, "stage_name", type(arm.victim).__name__)
        about = {
            "attack": plan.name,
            "victim": str(victim),
            "dataset": self._dataset,
            "eps": plan.threat.eps,
            "images": len(batch.keys),
        }
        self._store.put(key, {name: value for name, value in tensors.items() if value is not None}, about)
        return made

    def remember(self, plan: PlannedRow, part: Part) -> None:
        """Note whom a finished batch fooled, for larger budgets of the same attack."""
        if plan.carry is not None and part.fooled is not None:
            self._fooled.setdefault(plan.carry[0], {}).update(zip(part.fooled[0].tolist(), part.fooled[1], strict=True))

    def _key(self, plan: PlannedRow, attack: Attack, target: Target, batch: Batch, arm: Defence) -> str:
        # hashing reads all weights, so once an arm, not once a batch
        if plan.attacked not in self._hashes:
            self._hashes[plan.attacked] = module_hash(arm.victim)
        # and the code's files are looked at once a row
        row = (plan.attacked, id(attack))
        if row not in self._codes:
            self._codes[row] = attack, code_version(*sorted(modules_of(attack) | modules_of(arm.victim)))
        place = batch.images.device
        return batch_key(
            victim=self._hashes[plan.attacked],
            attack=plan.identity,
            built=attack,
            norm=plan.threat.norm,
            eps=plan.threat.eps,
            images=batch.images,
            labels=batch.labels,
            keys=batch.keys,
            others=target.others,
            seed=self._seed,
            draws=target.draws,
            precision=str(target.precision),
            # devices round otherwise, and sign steps answer to rounding
            device=(place.type, torch.cuda.get_device_name(place) if place.type == "cuda" else ""),
            code=self._codes[row][1],
        )

    def _fresh(self, plan: PlannedRow, attack: Attack, target: Target, batch: Batch) -> Crafted:
        """Attack the images of a batch that no smaller budget has fooled."""
        known = self._fooled.get(plan.carry[0], {}) if plan.carry is not None else {}
        # a row names the budget with what its attack goes beyond it by itself
        eps = None if plan.threat.eps is None else plan.threat.eps - getattr(attack, "excess", 0.0)
        if not known:
            images = craft(attack, target, batch.images, batch.labels, eps=eps, keys=batch.keys, name=plan.name)
            assert target.overshoot is not None
            return Crafted(images, target.overshoot, target.queries, seen=_find_seen(target))
        done = [place for place, key in enumerate(batch.keys.tolist()) if key in known]
        left = [place for place, key in enumerate(batch.keys.tolist()) if key not in known]
        made = Crafted(batch.images.clone(), batch.images.new_zeros(len(batch.images)))
        if done:
            before = torch.stack([known[int(batch.keys[place])] for place in done])
            made.images[done] = before.to(batch.images.device)
        if left:
            images, labels, keys = batch.images[left], batch.labels[left], batch.keys[left]
            made.images[left] = craft(attack, target, images, labels, eps=eps, keys=keys, name=plan.name)
            assert target.overshoot is not None
            made.overshoot[left] = target.overshoot
            if target.queries is not None:
                queries = target.queries.new_zeros(len(batch.images))
                queries[left] = target.queries
                made = attrs.evolve(made, queries=queries)
        seen = Seen.nothing(len(batch.keys), batch.images.device)
        seen.fooled_at[done] = 1  # before the first look: a smaller budget did
        if left and (own := _find_seen(target)) is not None:
            for column, values in zip(seen.columns(), own.columns(), strict=True):
                column[left] = values
        return attrs.evolve(made, seen=seen)


class _AsJudged(nn.Module):
    """A victim that draws what the judge will have it draw."""

    bounded = True  # what it holds is looked at where the attacked defence was made

    def __init__(self, victim: nn.Module) -> None:
        super().__init__()
        self.victim = victim

    def forward(self, images: Tensor) -> Tensor:
        with switched(VICTIM):
            logits: Tensor = self.victim(images)
        return logits


def _find_seen(target: Target) -> Seen | None:
    return None if target.sight is None else target.sight.seen
