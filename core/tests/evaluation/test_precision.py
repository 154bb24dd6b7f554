"""Reduced precision for crafting: when it is taken, and that it never decides who is fooled."""

import contextlib

import pytest
import torch
from torch import nn

from defend.attacks.apgd import Apgd
from defend.attacks.host import craft
from defend.attacks.iterated import Bim, Pgd
from defend.attacks.options import ApgdOptions, BimOptions, PgdOptions
from defend.attacks.target import Target
from defend.datasets.base import Batch
from defend.defence import Defence
from defend.errors import StageError
from defend.evaluation import precision
from defend.testing.toys import TASK, TinyVictim, images

CPU = torch.device("cpu")
EPS = 0.1
FIGURES = {"images": 128, "fooled_fp32": 90, "fooled_bf16": 90, "gained_fp32": 2.0, "gained_bf16": 2.0, "time": 0.5}


def reduced():
    return torch.is_autocast_enabled("cpu")


class Clocked(TinyVictim):
    """Says how long its passes took: so much in bfloat16 for every second in fp32."""

    def __init__(self, share):
        super().__init__()
        self.share, self.seconds, self.passes = share, 0.0, 0

    def forward(self, batch):
        self.passes += 1
        self.seconds += self.share if reduced() else 1.0
        return super().forward(batch)


def rounded(values):
    """Return the values to seven bits before the point: unchanged in fp32, all but the large ones zero in bfloat16."""
    return (values + 1000.0) - 1000.0


class Vanishing(TinyVictim):
    """Hidden units that bfloat16 rounds to zero, where a ReLU lets no gradient through."""

    def forward(self, batch):
        return self.head(torch.relu(rounded(self.hidden(self.pool(batch - 0.5).flatten(1)))))


class Undefined(TinyVictim):
    """Divides what bfloat16 rounds to zero by itself."""

    def forward(self, batch):
        logits = super().forward(batch)
        return logits * rounded(logits) / rounded(logits)


class Refusing(TinyVictim):
    """Does not run in bfloat16."""

    def forward(self, batch):
        if reduced():
            raise RuntimeError("\"bessel_j0\" not implemented for 'BFloat16'\nwith more lines")
        return super().forward(batch)


class Foreign(TinyVictim):
    """Leaves torch on its way, to a library that has no bfloat16."""

    def forward(self, batch):
        logits = super().forward(batch)
        logits.detach().numpy()
        return logits


class Constant(nn.Module):
    """Says the same of every image."""

    def forward(self, batch):
        return torch.eye(10)[0].expand(len(batch), 10)


def batches(victim, sizes=(64, 64)):
    """Yield images with the labels that the victim gives them."""
    first = 0
    for number, size in enumerate(sizes):
        pixels = images(TASK, size, seed=number)
        yield Batch(pixels, victim(pixels).argmax(1), torch.arange(first, first + size))
        first += size


@pytest.fixture
def able(monkeypatch):
    """A device that has bfloat16, as far as anybody asks."""
    monkeypatch.setattr(precision, "explain_unsupported", lambda device: None)


def chosen(victim, requested="auto", given=None, eps=EPS):
    bare = Defence(victim).requires_grad_(False)
    given = list(batches(victim)) if given is None else given
    clock = lambda: getattr(victim, "seconds", 0.0)  # noqa: E731 - time is what the victim says
    return precision.choose(requested, bare, given, eps=eps, seed=0, device=CPU, clock=clock)


@pytest.mark.usefixtures("able")
def test_bfloat16_is_taken_where_it_is_as_strong_and_faster():
    found = chosen(Clocked(0.5))
    assert found.dtype == torch.bfloat16 and found.name == "bf16"
    figures = found.figures
    assert figures["time"] == pytest.approx(0.5)
    assert figures["images"] == 128
    assert figures["fooled_bf16"] >= figures["fooled_fp32"] > 10
    assert figures["gained_bf16"] == pytest.approx(figures["gained_fp32"], rel=0.05)
    assert found.why == (
        f"of 128 images PGD fooled {figures['fooled_bf16']} in bfloat16 and {figures['fooled_fp32']} in fp32, "
        "in 0.50 of its time"
    )


@pytest.mark.usefixtures("able")
@pytest.mark.parametrize("share", [0.95, 1.0, 7.0])
def test_bfloat16_that_is_hardly_faster_is_not_taken(share):
    found = chosen(Clocked(share))
    assert found.dtype is None and found.name == "fp32"
    assert found.why == f"bfloat16 took {share:.2f} of the time of fp32: too little is gained"


@pytest.mark.usefixtures("able")
def test_a_gradient_that_vanishes_in_bfloat16_is_noticed():
    found = chosen(Vanishing(), given=list(batches(Vanishing())))
    assert found.dtype is None
    assert found.figures["fooled_bf16"] < found.figures["fooled_fp32"]
    assert found.why.startswith(f"of 128 images PGD fooled {found.figures['fooled_bf16']} in bfloat16 and ")


@pytest.mark.usefixtures("able")
def test_a_vanishing_gradient_is_noticed_where_no_image_is_fooled():
    found = chosen(Vanishing(), eps=1e-4)
    assert found.figures["fooled_bf16"] == found.figures["fooled_fp32"] == 0
    assert found.dtype is None
    assert "to the loss in bfloat16 and" in found.why


@pytest.mark.usefixtures("able")
@pytest.mark.parametrize(
    ("victim", "why"),
    [
        (Undefined, "the victim's gradient in bfloat16 is not finite"),
        (Refusing, "the victim does not run in bfloat16: \"bessel_j0\" not implemented for 'BFloat16'"),
        (Foreign, "the victim does not run in bfloat16: "),
        (Constant, "PGD does not raise this victim's loss in fp32: the trial showed nothing"),
    ],
)
def test_a_victim_that_bfloat16_does_not_suit_means_fp32(victim, why):
    found = chosen(victim())
    assert found.dtype is None
    assert found.why.startswith(why) and "\n" not in found.why


@pytest.mark.usefixtures("able")
def test_what_goes_wrong_in_fp32_is_not_hidden():
    class Broken(TinyVictim):
        def forward(self, batch):
            raise RuntimeError("no kernel for this")

    with pytest.raises(StageError, match=r"victim Broken failed in forward on .*: no kernel for this"):
        chosen(Broken(), given=list(batches(TinyVictim())))


@pytest.mark.usefixtures("able")
def test_a_trial_that_does_not_fit_into_memory_takes_smaller_batches():
    class Small(Clocked):
        def forward(self, batch):
            if len(batch) > 16:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
            return super().forward(batch)

    found = chosen(Small(0.5), given=list(batches(TinyVictim())))
    assert found.dtype == torch.bfloat16
    assert found.figures == pytest.approx(chosen(Clocked(0.5)).figures)


@pytest.mark.usefixtures("able")
def test_only_the_first_images_are_tried():
    victim, read = Clocked(0.5), []
    found = chosen(victim, given=(read.append(1) or batch for batch in batches(victim, (64,) * 5)))
    assert len(read) == 2 and found.figures["images"] == 128


@pytest.mark.usefixtures("able")
def test_a_single_small_batch_is_timed_several_times():
    assert chosen(Clocked(0.5), given=list(batches(TinyVictim(), (5,)))).figures["time"] == pytest.approx(0.5)


@pytest.mark.usefixtures("able")
def test_without_images_nothing_is_tried():
    assert chosen(Clocked(0.5), given=[]) == precision.Crafting(None, "there are no images to try bfloat16 on")


def test_a_device_without_bfloat16_is_not_tried(monkeypatch):
    monkeypatch.setattr(precision, "explain_unsupported", lambda device: "this CPU has no bfloat16 instructions")
    victim = Clocked(0.5)
    found = chosen(victim, given=(pytest.fail("an image was read") for _ in range(1)))
    assert found == precision.Crafting(None, "this CPU has no bfloat16 instructions")
    assert victim.passes == 0


@pytest.mark.parametrize(("requested", "dtype"), [("exact", None), ("fp32", None), ("bf16", torch.bfloat16)])
def test_what_is_asked_for_is_taken_untried(monkeypatch, requested, dtype):
    monkeypatch.setattr(precision, "explain_unsupported", lambda device: None)
    victim, given = Clocked(0.5), list(batches(TinyVictim()))
    assert chosen(victim, requested, given) == precision.Crafting(dtype, "as asked")
    monkeypatch.setattr(precision, "explain_unsupported", lambda device: "this GPU has no bfloat16")
    found = chosen(victim, requested, given)
    assert found.dtype == dtype
    assert found.why == "as asked" + (", though this GPU has no bfloat16" if requested == "bf16" else "")
    assert victim.passes == 0


@pytest.mark.parametrize(
    ("changed", "taken"),
    [
        ({}, True),
        ({"fooled_bf16": 91}, True),
        ({"fooled_bf16": 89}, False),
        ({"gained_bf16": 1.91}, True),
        ({"gained_bf16": 1.89}, False),
        ({"gained_bf16": float("nan")}, False),
        ({"gained_fp32": 0.0, "gained_bf16": 0.0}, False),
        ({"gained_fp32": -0.1, "gained_bf16": 0.1}, False),
        ({"time": 0.89}, True),
        ({"time": 0.91}, False),
    ],
)
def test_every_condition_must_hold(changed, taken):
    found = precision.decide({**FIGURES, **changed})
    assert (found.dtype == torch.bfloat16) == taken
    assert found.figures == {**FIGURES, **changed}


@pytest.mark.parametrize(
    ("machine", "bf16", "amx", "reason"),
    [
        ("x86_64", True, False, None),
        ("AMD64", False, True, None),
        ("x86_64", False, False, "this CPU has no bfloat16 instructions"),
        ("x86_64", None, None, "this CPU has no bfloat16 instructions"),
    ],
)
def test_an_x86_cpu_is_asked_for_its_instructions(monkeypatch, machine, bf16, amx, reason):
    monkeypatch.setattr(precision.platform, "machine", lambda: machine)
    for name, has in (("_is_avx512_bf16_supported", bf16), ("_is_amx_tile_supported", amx)):
        if has is None:
            monkeypatch.delattr(torch.cpu, name, raising=False)
        else:
            monkeypatch.setattr(torch.cpu, name, lambda has=has: has, raising=False)
    assert precision.explain_unsupported(CPU) == reason


@pytest.mark.parametrize(("has", "reason"), [(True, None), (False, "this CPU has no bfloat16 instructions")])
def test_an_arm_cpu_is_asked_through_onednn(monkeypatch, has, reason):
    class Operators:
        @staticmethod
        def _is_mkldnn_bf16_supported():
            return has

    monkeypatch.setattr(precision.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(torch.ops, "mkldnn", Operators)
    assert precision.explain_unsupported(CPU) == reason
    monkeypatch.setattr(torch.ops, "mkldnn", object())  # a torch without oneDNN
    assert precision.explain_unsupported(CPU) == "this CPU has no bfloat16 instructions"


@pytest.mark.parametrize(("has", "reason"), [(True, None), (False, "this GPU has no bfloat16")])
def test_a_gpu_that_only_emulates_bfloat16_has_none(monkeypatch, has, reason):
    asked = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext(asked.append(device)))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has or including_emulation)
    assert precision.explain_unsupported(torch.device("cuda", 1)) == reason
    assert asked == [torch.device("cuda", 1)]


def test_other_devices_are_not_tried():
    assert "not on mps" in precision.explain_unsupported(torch.device("mps"))


class Hasty(TinyVictim):
    """Whose predictions bfloat16 changes: most look fooled that are not."""

    def forward(self, batch):
        return rounded(super().forward(batch))


class Watched(Target):
    """A target that notes whose gradients were asked for, step by step, and who looked fooled."""

    def __init__(self, module, labels, **options):
        super().__init__(module, **options)
        self.asked, self.looked, self._labels = [], set(), labels

    def slope(self, images, labels, keys, *others, **options):
        found = super().slope(images, labels, keys, *others, **options)
        wrong = found.logits.argmax(1) != self._labels[keys]
        self.asked.append(set(keys.tolist()))
        self.looked |= set(keys[wrong].tolist())
        return found


STOPPING = [
    Pgd(PgdOptions(steps=10)),
    Pgd(PgdOptions(steps=10, restarts=2)),
    Bim(BimOptions(steps=10)),
    Apgd(ApgdOptions(steps=20), "ce"),
]
NAMES = ["pgd", "pgd with restarts", "bim", "apgd"]


@pytest.mark.parametrize("compact_every", [1, 3])
@pytest.mark.parametrize("attack", STOPPING, ids=NAMES)
def test_an_image_is_only_dropped_once_it_is_fooled_in_fp32(attack, compact_every):
    victim = Hasty().requires_grad_(False)
    (batch,) = batches(victim, (64,))
    target = Watched(victim, batch.labels, precision=torch.bfloat16, compact_every=compact_every)
    found = craft(attack, target, batch.images, batch.labels, eps=0.02, keys=batch.keys)
    fooled = set((victim(found).argmax(1) != batch.labels).nonzero()[:, 0].tolist())
    dropped = set(range(64)) - target.asked[-1]
    assert dropped and dropped <= fooled
    assert len(target.looked - fooled) > 10  # whom bfloat16 alone would have dropped


class Draws(TinyVictim):
    """Random: adds noise to its logits."""

    random = True

    def forward(self, batch):
        return super().forward(batch) + 0.01 * torch.rand(len(batch), 1)


@pytest.mark.parametrize("crafting", [None, torch.bfloat16])
@pytest.mark.parametrize("attack", STOPPING[:3:2], ids=NAMES[:3:2])
def test_against_a_random_defence_no_attack_stops_at_its_first_success(attack, crafting):
    victim = Draws().requires_grad_(False)
    (batch,) = batches(TinyVictim(), (16,))
    target = Watched(victim, batch.labels, precision=crafting, compact_every=1)
    craft(attack, target, batch.images, batch.labels, eps=EPS, keys=batch.keys)
    assert target.looked and target.asked == [set(range(16))] * 10
