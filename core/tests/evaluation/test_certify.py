"""Certificates: the bound by hand, the radius by a victim whose own is known, noise that is not what it says."""

import contextlib
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import defend
from defend.checks import check_run
from defend.datasets.base import SPLITS, Batch, MemoryDataset
from defend.defence import Defence, PurifierSequence
from defend.errors import ConfigError, ContractError
from defend.evaluation.certify import Certifier, certify, radii_of, smoothing_of, summarise
from defend.evaluation.plan import ArmNames
from defend.evaluation.smoothed import VotePgd, attack_vote, odds_against
from defend.evaluation.votes import ALPHA, decide, enough, radius_of
from defend.randomness import normal_like, uniform_like
from defend.records.journal import Journal
from defend.records.rows import REJECTED
from defend.records.watcher import Watcher
from defend.report.page import render_page
from defend.stages import Task
from defend.testing import TASK, TinyVictim, images
from defend.util.statistics import lower_bound
from defend.values.report import CertifiedImage

SIGMA = 0.1
TINY = Task("tiny", 1, 4, 4, 2)
LABELS = dict.fromkeys(SPLITS, torch.arange(6) % 2)


class Noise(nn.Module):
    random, smoothing_sigma = True, SIGMA

    def forward(self, batch):
        return (batch + SIGMA * normal_like(batch)).clamp(0, 1)


class Half(nn.Module):
    """Class 1 where the mean is above a half: of an image of P pixels the vote changes at |mean - 1/2| sqrt(P)."""

    def forward(self, batch):
        margin = batch.flatten(1).mean(1) - 0.5
        return torch.stack([-margin, margin], 1)


def batches(*means, size=4, first=0):
    grey = torch.tensor(means).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    keys = torch.arange(first, first + len(means))
    labels = (torch.tensor(means) > 0.5).long()
    for some in keys.sub(first).split(size):
        yield Batch(grey[some], labels[some], keys[some])


def certified(*means, draws=2000, purifier=None, batch_size=500, **how):
    found = certify(
        Defence(Half(), purifier or Noise()), batches(*means, **how), draws=draws, seed=0, batch_size=batch_size
    )
    return list(found)


@pytest.mark.parametrize(("successes", "n"), [(1, 10), (99, 100), (100, 100), (60, 100)])
def test_at_the_bound_so_many_come_with_a_chance_of_alpha(successes, n):
    bound = lower_bound(successes, n, ALPHA)
    chance = sum(math.comb(n, k) * bound**k * (1 - bound) ** (n - k) for k in range(successes, n + 1))
    assert chance == pytest.approx(ALPHA, rel=1e-6)
    assert lower_bound(0, n, ALPHA) == 0


def test_the_largest_radius_is_the_papers():
    # 100,000 draws that all agree certify about 3.8 standard deviations (Cohen et al. 2019, section 3.2.2)
    assert radius_of(100_000, 100_000, 0.5) == pytest.approx(0.5 * 3.81, abs=0.01)
    assert radius_of(500, 1000, 0.5) == 0


def test_what_is_certified_is_true_and_nearly_all_that_is():
    means = (0.52, 0.47, 0.56, 0.44)
    found = certified(*means)
    for mean, each in zip(means, found, strict=True):
        true = abs(mean - 0.5) * 4
        assert each.predicted == each.label == (mean > 0.5)
        assert 0.7 * true < each.radius < true


def test_cut_off_it_goes_on_to_the_same(tmp_path):
    class Impatient(Watcher):
        def preparing(self, what):
            if what.startswith("certifying: 2"):
                raise KeyboardInterrupt

    config = defend.RunConfig(victim="v", certify=80, limit=4, adaptive_limit=3)
    data = MemoryDataset("tiny", ["0", "1"], dict.fromkeys(SPLITS, (images(TINY, 6) * 255).byte()), LABELS)
    judge = SimpleNamespace(names=ArmNames(config, {"defended": "d"}, {}), arms={"d": Defence(Half(), Noise())})

    def run(watcher, folder):
        certifier, journal = Certifier([judge], data), Journal(folder)
        journal.announce([])
        with contextlib.suppress(KeyboardInterrupt):
            certifier.run(journal, watcher, 256, torch.device("cpu"))
        return certifier.found(judge)

    whole = run(Watcher(), tmp_path / "whole")
    assert run(Impatient(), tmp_path / "cut").images == whole.images[:2]
    assert run(Watcher(), tmp_path / "cut") == whole and whole.n == 3


def test_where_draws_disagree_it_abstains():
    (found,) = certified(0.5001)
    assert (found.predicted, found.radius) == (REJECTED, 0.0)


def test_draws_belong_to_the_image():
    means = (0.51, 0.52, 0.48)
    whole = certified(*means, draws=90)
    assert certified(*means, draws=90, size=1, batch_size=64) == whole
    assert certified(*means[1:], draws=90, first=1) == whole[1:]
    assert certified(0.52, draws=90, first=5)[0].radius != whole[1].radius


def rigged(noise, **kept):
    attributes = {"random": True, "smoothing_sigma": SIGMA, **kept}
    return type("Rigged", (nn.Module,), {**attributes, "forward": lambda _, batch: noise(batch).clamp(0, 1)})()


ROW = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
RIGGED = {
    "smaller": rigged(lambda x: x + 0.9 * SIGMA * normal_like(x)),
    "larger than it says": rigged(lambda x: x + 0.5 * normal_like(x), smoothing_sigma=1.0),
    "uniform": rigged(lambda x: x + uniform_like(x, -SIGMA, SIGMA) * 3**0.5),
    "the same for all": rigged(lambda x: x + SIGMA * ROW),
    "one draw an image": rigged(lambda x: x + SIGMA * normal_like(x[:, :, :1, :1])),
    "by the image": rigged(lambda x: x + SIGMA * normal_like(x) + 0.1 * (x - 0.5)),
    "none": rigged(lambda x: x),
}


@pytest.mark.parametrize("name", RIGGED)
def test_noise_that_is_not_what_it_says_is_refused(name):
    with pytest.raises(ContractError, match=r"says that it adds Gaussian noise .* a certificate would be wrong"):
        certified(0.6, 0.7, purifier=RIGGED[name])


def test_noise_that_begins_anew_with_every_batch_is_refused():
    def again(batch):
        return batch + SIGMA * torch.randn(batch.shape, generator=torch.Generator().manual_seed(0))

    with pytest.raises(ContractError, match="draws the same noise again, so a vote over its draws counts one several"):
        certified(0.6, 0.7, purifier=rigged(again))


def test_what_is_no_vote_over_noise_is_not_certified():
    first, later = PurifierSequence([Noise(), nn.Identity()]), PurifierSequence([nn.Identity(), Noise()])

    class Watch(nn.Module):
        threshold = torch.tensor(1.0)

    assert isinstance(smoothing_of(Defence(Half(), first))[0], Noise)
    for defence in (Defence(Half()), Defence(Half(), nn.Identity()), Defence(Half(), later)):
        assert smoothing_of(defence) == (
            None,
            "the first purifier adds no Gaussian noise, and what is certified is a vote over it",
        )
    assert "a detector sees images without the noise" in smoothing_of(Defence(Half(), Noise(), Watch()))[1]


def test_accuracy_falls_with_the_radius():
    largest = radius_of(1000, 1000, SIGMA)
    said = [(0, 0, largest), (1, 1, 0.6 * largest), (1, 0, largest), (1, REJECTED, 0.0)]
    found = summarise([CertifiedImage(place, *each) for place, each in enumerate(said)], SIGMA, 1000)
    assert [point["accuracy"] for point in found.curve] == [0.5, 0.5, 0.5, 0.25, 0.25]
    assert (found.n, found.abstained, found.largest, found.alpha) == (4, 0.25, largest, ALPHA)


def evaluated(**settings):
    batch = images(TASK, 12)
    labels = TinyVictim()(batch).argmax(1)
    how = {"attacks": ["fgsm"], "threats": ["oblivious"], "checks": "none", "progress": False, "store": False}
    return defend.evaluate(TinyVictim(), (batch, labels), **{**how, **settings})


def test_a_run_reports_it_apart_from_its_rows(tmp_path):
    found = evaluated(purifier=Noise(), certify=60, adaptive_limit=3, out=tmp_path / "run")
    assert found.report.certified.n == 3 and found.report.certified.draws == 60
    assert {row.attack for row in found.report.rows} == {"none", "fgsm"}
    assert "Certified, apart from the rows" in str(found) and "threat smoothed" in " ".join(str(found).split())
    assert {check.number: check.status for check in found.report.checks} == {}
    assert all(len(each.attacked) == 5 for each in found.report.certified.images)
    assert defend.records.reading.read_report(found.folder).certified == found.report.certified
    page = render_page(found.folder)
    assert "What no attacker changes" in page and "left by an attack" in page


def test_asked_for_where_it_fits_nothing_it_is_an_error():
    with pytest.raises(ConfigError, match="nothing can be certified: the first purifier adds no Gaussian noise"):
        evaluated(certify=60)


# The attack on the vote


def test_the_odds_are_those_of_the_mean_over_draws_and_do_not_saturate():
    logits, labels = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 3, 1])
    share = logits.softmax(2).mean(0).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(odds_against(logits, labels), ((1 - share) / share).log())
    sure = torch.tensor([[[60.0, 0.0, -1.0]]], requires_grad=True)
    odds_against(sure, torch.tensor([0])).sum().backward()
    assert sure.grad[0, 0, 0] == -1, "the cross-entropy's own slope is zero there"


def test_it_takes_as_many_draws_for_a_clear_vote_as_the_bound_says():
    for draws in (5, 20, 100, 1000):
        needed = enough(draws)
        assert radius_of(needed - 1, draws, 1.0) == 0
        assert needed == draws + 1 or radius_of(needed, draws, 1.0) > 0
    assert enough(5) == 6, "five draws can show nothing"


def test_a_vote_that_is_cut_short_says_what_a_whole_one_does():
    defence = Defence(Half(), Noise())
    for mean in (0.49, 0.5, 0.505, 0.6):
        image = torch.full((1, 4, 4), mean)
        said = {decide(defence, image, 7, 400, seed=0, stream="toy", batch_size=size) for size in (3, 50, 400)}
        assert len(said) == 1


def attacked(mean, radii, label=None, certified=0.0, predicted=None, victim=None, draws=500):
    label = int(mean > 0.5) if label is None else label
    return attack_vote(
        Defence(victim or Half(), Noise()),
        torch.full((1, 4, 4), mean),
        label,
        3,
        predicted=label if predicted is None else predicted,
        certified=certified,
        radii=radii,
        draws=draws,
        seed=0,
        batch_size=250,
    )


def test_the_attack_turns_the_vote_just_beyond_the_true_radius():
    # Half's vote changes at |mean - 1/2| * 4, here at 0.16
    (found, blind) = attacked(0.54, [0.0, 0.08, 0.12, 0.2, 0.3])
    assert found == [1, 1, 1, 0, 0] and not blind
    assert attacked(0.46, [0.0, 0.08, 0.12, 0.2, 0.3])[0] == [0, 0, 0, 1, 1]
    assert attacked(0.54, [0.0, 0.16])[0] == [1, REJECTED], "there the vote is even"


def test_what_is_wrong_already_is_not_attacked_and_what_is_unsure_is():
    assert attacked(0.54, [0.0, 0.1], label=0, predicted=1) == ([1, 1], False)
    assert attacked(0.5, [0.0, 0.05], label=1, predicted=REJECTED)[0] == [REJECTED, 0]


def test_an_attack_without_a_gradient_is_called_blind():
    class Stepped(Half):
        def forward(self, batch):
            return super().forward(batch.detach() + 0 * batch)

    assert attacked(0.54, [0.0, 0.3], victim=Stepped()) == ([1, 1], True)


def test_the_attack_keeps_to_its_radius_and_goes_on_from_where_it_was():
    starts = []

    class Recording(VotePgd):
        def __init__(self, start):
            starts.append(start)
            super().__init__(start)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("defend.evaluation.smoothed.VotePgd", Recording)
        attacked(0.6, [0.0, 0.1, 0.2, 0.3], certified=0.15)
    image = torch.full((1, 1, 4, 4), 0.6)
    moved = [float((start - image).norm()) for start in starts]
    # begun at the largest radius that is certified
    assert moved[0] == 0 and moved[1] == pytest.approx(0.1, rel=1e-3) and moved[2] == pytest.approx(0.2, rel=1e-3)
    assert len(moved) == 3


def test_left_is_never_less_than_certified_and_a_run_says_both():
    found = certified(0.52, 0.47, 0.56, 0.44, 0.501, draws=500)
    said = summarise(found, SIGMA, 500)
    assert [point["left"] >= point["accuracy"] for point in said.curve] == [True] * 5
    assert said.curve[0]["left"] == 1 and said.curve[-1]["left"] < 1 and said.attack["blind"] == 0
    check = check_run([], None, "basic", certified=said)[15]
    assert (check.name, check.status) == ("certificates", "pass")
    assert f"turns 0 of {check.numbers['tried']} within" in check.detail and check.numbers["tried"] >= 2


def test_a_vote_that_is_turned_within_its_radius_fails_the_check():
    radii = radii_of(1000, SIGMA)
    largest = radii[-1]
    right = [CertifiedImage(place, 1, 1, largest, (1, 1, 1, 1, 1)) for place in range(3)]
    turned = CertifiedImage(9, 1, 1, largest, (1, 1, 0, 0, 0))
    beyond = CertifiedImage(9, 1, 1, 0.4 * largest, (1, 1, 0, 0, 0))
    unsure = CertifiedImage(9, 1, 1, largest, (1, 1, 1, 1, REJECTED))

    def check(*images):
        return check_run([], None, "basic", certified=summarise(images, SIGMA, 1000))[15]

    found = check(*right, turned)
    assert found.status == "fail" and found.numbers["turned"] == [9] and "certificate or vote is wrong" in found.detail
    assert check(*right, beyond).status == check(*right, unsure).status == "pass"
    # one of many thousands is chance
    assert check(*right * 400, turned).status == "warn"
    assert check(CertifiedImage(0, 1, 1, 0.01 * largest, (1, 0, 0, 0, 0))).status == "skip"
    blind = check(*right, CertifiedImage(9, 1, 1, largest, (1,) * 5, blind=True))
    assert blind.status == "warn" and "never had a gradient" in blind.detail
    assert check_run([], None, "basic")[15].status == "skip"


@pytest.mark.parametrize("sigma", [math.nan, -0.1, math.inf])
def test_noise_of_no_size_is_not_certified(sigma):
    noise = Noise()
    noise.smoothing_sigma = sigma
    found, why = smoothing_of(Defence(Half(), noise))
    assert found is None and f"smoothing_sigma is {sigma!r}" in why
