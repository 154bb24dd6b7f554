"""Whether attacks on the bare victim are crafted in reduced precision: tried on the run's first images.

Only the gradients are ever reduced, and only against the bare victim; who is fooled is always judged in fp32.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import attrs
import torch
from torch import Tensor
from torch.nn import functional as F

from defend.attacks.host import craft
from defend.attacks.iterated import Pgd
from defend.attacks.options import PgdOptions
from defend.attacks.target import Target
from defend.datasets.base import Batch
from defend.defence import Defence
from defend.errors import StageError
from defend.options import make
from defend.randomness import keyed
from defend.util.memory import out_of_memory

REDUCED = torch.bfloat16
IMAGES = 128  # at least so many are tried, where there are as many: whole batches
ROUNDS = 3  # at least so many timings of each precision
STEPS = 10
KEPT = 0.95  # of the loss that PGD gains in fp32; undisturbed victims keep 0.99 and more
GAIN = 0.9  # of fp32's time at most: confirming success in fp32 takes some of what is gained, about 6 %


@attrs.frozen
class Crafting:
    """What attacks on the bare victim are crafted in, and why.

    Attributes:
        dtype: for autocast; None is fp32.
        why: one line for the report.
        figures: of the trial, empty where there was none: `images` tried; `fooled_fp32` and `fooled_bf16` of them;
            `gained_fp32` and `gained_bf16`, the mean cross-entropy (nats) that PGD added to; and `time`, that of bf16
            as a share of fp32's.
    """

    dtype: torch.dtype | None
    why: str
    figures: Mapping[str, float] = attrs.field(factory=dict)

    @property
    def name(self) -> str:
        """What the report calls it: "fp32" or "bf16"."""
        return "fp32" if self.dtype is None else "bf16"


def explain_unsupported(device: torch.device) -> str | None:
    """Return why bfloat16 is no gain on a device: it would be emulated, slower than fp32. None where it may be one."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        return None if native else "this GPU has no bfloat16"
    if device.type != "cpu":
        return f"reduced precision is tried on cpu and cuda only, not on {device.type}"
    return None if _cpu_has_bfloat16() else "this CPU has no bfloat16 instructions"


def choose(
    requested: str,
    bare: Defence,
    batches: Iterable[Batch],
    *,
    eps: float,
    seed: int,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> Crafting:
    """Decide what attacks on a victim are crafted in.

    "exact" and "fp32" are fp32, "bf16" is bf16. "auto" attacks the first images with PGD in both, judges both in fp32,
    and takes bf16 only if all of this holds:

    - It fools no fewer images than fp32. The counts themselves are compared: a significance test would let a loss of
      several images in a hundred pass as chance. A refusal by chance costs time, but makes no figure wrong.
    - It gains at least `KEPT` of the loss that fp32 gains, since where everything is fooled, or nothing, counts say
      nothing. Steps are fixed, so that the loss goes on rising.
    - It takes at most `GAIN` of the time, the median of interleaved rounds after a warm-up.

    Time decides, so two processes may come to different answers: one decides for all.

    Args:
        requested: as in `RunConfig.precision`.
        bare: the victim alone, prepared (frozen, on the device).
        batches: of the run's images and its batch size; read no further than needed.
        eps: the L-inf budget that the run attacks with.
        seed: of the attacker.
        device: where all this is.
        clock: seconds, for the timing.
    """
    if requested != "auto":
        reason = explain_unsupported(device) if requested == "bf16" else None
        why = f"as asked, though {reason}" if reason else "as asked"
        return Crafting(REDUCED if requested == "bf16" else None, why)
    reason = explain_unsupported(device)
    if reason is not None:
        return Crafting(None, reason)
    first = _first(batches)
    if not first:
        return Crafting(None, "there are no images to try bfloat16 on")
    trial = _Trial(bare, eps, seed, lambda: _now(device, clock))
    while True:
        try:
            return decide(trial.measure(first))
        except _ReducedError as failure:
            return Crafting(None, str(failure))
        except (RuntimeError, MemoryError) as error:
            largest = max(len(batch.keys) for batch in first)
            if largest == 1 or not out_of_memory(error):
                raise
            first = [part for batch in first for part in batch.split(largest // 2)]


def decide(figures: Mapping[str, float]) -> Crafting:
    """Turn a trial's figures into the decision, see `choose`."""
    share = figures["time"]
    counts = "of {images:.0f} images PGD fooled {fooled_bf16:.0f} in bfloat16 and {fooled_fp32:.0f} in fp32"
    if not figures["gained_fp32"] > 0:
        return Crafting(None, "PGD does not raise this victim's loss in fp32: the trial showed nothing", figures)
    if figures["fooled_bf16"] < figures["fooled_fp32"]:
        return Crafting(None, counts.format_map(figures), figures)
    if not figures["gained_bf16"] >= KEPT * figures["gained_fp32"]:
        losses = "PGD added {gained_bf16:.3g} to the loss in bfloat16 and {gained_fp32:.3g} in fp32"
        return Crafting(None, losses.format_map(figures), figures)
    if not share <= GAIN:
        return Crafting(None, f"bfloat16 took {share:.2f} of the time of fp32: too little is gained", figures)
    return Crafting(REDUCED, f"{counts.format_map(figures)}, in {share:.2f} of its time", figures)


class _Trial:
    """PGD against the bare victim in both precisions.

    The attacker is the one that the run will have, down to its random starts.
    """

    def __init__(self, bare: Defence, eps: float, seed: int, now: Callable[[], float]) -> None:
        self._bare, self._eps, self._seed, self._now = bare, eps, seed, now
        self._targets = {"fp32": Target(bare, seed=seed), "bf16": Target(bare, seed=seed, precision=REDUCED)}

    def measure(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Return `Crafting.figures`. Whatever goes wrong in fp32 is raised: it would go wrong in the run.

        Raises:
            _ReducedError: reduced precision does not work with this victim.
        """
        images = sum(len(batch.keys) for batch in batches)
        fooled, gained = {"fp32": 0, "bf16": 0}, {"fp32": 0.0, "bf16": 0.0}
        for target in self._targets.values():
            self._warm_up(target, batches[0])
        times = []
        for number in range(max(len(batches), ROUNDS)):
            batch = batches[number % len(batches)]
            seconds = {}
            # the two take turns at being first, so that a machine that slows down slows both alike
            for name in sorted(self._targets, reverse=number % 2 == 0):
                begin = self._now()
                adversarial = self._attack(self._targets[name], batch)
                seconds[name] = self._now() - begin
                # further rounds repeat batches for the clock alone, and would count their images twice
                if number < len(batches):
                    before, _ = self._losses(batch.images, batch)
                    after, wrong = self._losses(adversarial, batch)
                    fooled[name] += int(wrong.sum())
                    gained[name] += float((after - before).sum()) / images
            times.append(seconds["bf16"] / max(seconds["fp32"], 1e-9))
        counts = {f"fooled_{name}": count for name, count in fooled.items()}
        losses = {f"gained_{name}": nats for name, nats in gained.items()}
        return {"images": images, **counts, **losses, "time": statistics.median(times)}

    def _warm_up(self, target: Target, batch: Batch) -> None:
        """Take one gradient.

        Raises:
            _ReducedError: reduced precision does not work with this victim.
        """
        target.watch(batch.keys, batch.labels)
        try:
            target.slope(batch.images, batch.labels, batch.keys, "trial")
        except (StageError, RuntimeError, TypeError, MemoryError) as error:
            if target.precision is None or out_of_memory(error):
                raise
            known = error.__cause__ or error
            cause = (str(known).strip().splitlines() or [type(known).__name__])[0]
            raise _ReducedError(f"the victim does not run in bfloat16: {cause}") from None
        seen = None if target.sight is None else target.sight.seen
        if target.precision is not None and seen is not None and bool((seen.broken + seen.mended).any()):
            raise _ReducedError("the victim's gradient in bfloat16 is not finite")

    def _attack(self, target: Target, batch: Batch) -> Tensor:
        options = make(PgdOptions, {"steps": STEPS, "early_stop": False}, "attack pgd")
        return craft(Pgd(options), target, batch.images, batch.labels, eps=self._eps, keys=batch.keys)

    def _losses(self, images: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return cross-entropy [B] and who is misclassified, bool [B], in fp32."""
        with keyed(batch.keys, seed=self._seed, stream="victim"):
            verdict = self._bare.judge(images)
        return F.cross_entropy(verdict.logits, batch.labels, reduction="none"), verdict.labels != batch.labels


class _ReducedError(Exception):
    """Why a trial in reduced precision ended early."""


def _first(batches: Iterable[Batch]) -> list[Batch]:
    found: list[Batch] = []
    for batch in batches:
        found.append(batch)
        if sum(len(each.keys) for each in found) >= IMAGES:
            break
    return found


def _now(device: torch.device, clock: Callable[[], float]) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock()


def _cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 itself: AVX-512 BF16 or AMX on x86, the BF16 extension on ARM.

    torch asks the CPU and keeps the answers in helpers of its own, not all of which every version has.
    """
    if platform.machine().lower() in {"x86_64", "amd64"}:
        helpers = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
        return any(bool(helper()) for helper in helpers if helper is not None)
    try:  # on ARM this asks for the extension; on x86 for AVX-512 alone, which only emulates
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):  # a torch without oneDNN has no fast bfloat16 either
        return False
