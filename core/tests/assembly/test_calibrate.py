"""Thresholds, ROC figures, calibration through the whole defence, and McNemar's test behind the label-leak check."""

import attrs
import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score, roc_curve
from torch import nn

from defend.assembly.calibrate import calibrate, clean_scores, is_calibrated, set_threshold
from defend.assembly.load import open_dataset
from defend.checks import label_leak
from defend.defence import Defence, PurifierSequence
from defend.errors import ConfigError, ContractError
from defend.records.rows import ArmRecord, Example, PlannedRow, RowRecord
from defend.report.text import calibration_in_words
from defend.util.metrics import auroc, threshold_at, tpr_at
from defend.util.statistics import mcnemar
from defend.values.threats import DEFENDED, UNDEFENDED, Threat

scores = st.lists(st.integers(0, 12).map(lambda n: n / 4), min_size=1, max_size=40).map(torch.tensor)


@given(scores, scores)
def test_auroc_is_scikit_learns(clean, attacked):
    labels = [0] * len(clean) + [1] * len(attacked)
    assert auroc(clean, attacked) == pytest.approx(roc_auc_score(labels, torch.cat([clean, attacked])), abs=1e-12)


@given(scores, scores, st.sampled_from([0.01, 0.05, 0.1, 0.5]))
def test_tpr_is_on_scikit_learns_roc_curve(clean, attacked, fpr):
    labels = [0] * len(clean) + [1] * len(attacked)
    false, true, _ = roc_curve(labels, torch.cat([clean, attacked]), drop_intermediate=False)
    assert tpr_at(clean, attacked, fpr) == pytest.approx(max(true[false <= fpr + 1e-9]), abs=1e-12)


@given(st.lists(st.floats(0, 1, width=32), min_size=100, max_size=300, unique=True).map(torch.tensor))
def test_a_threshold_keeps_to_its_rate_and_is_the_smallest_that_does(values):
    threshold = threshold_at(values, 0.03)
    allowed = int(0.03 * len(values) + 1e-9)
    assert int((values >= threshold).sum()) == allowed
    below = torch.nextafter(torch.tensor(threshold), torch.tensor(-1.0))
    assert int((values >= below).sum()) > allowed


def test_a_rate_that_so_few_images_cannot_show_is_refused():
    values = torch.arange(200.0)
    assert int((values >= threshold_at(values, 0.01)).sum()) == 2
    with pytest.raises(ConfigError, match=r"needs at least 1000 held-out clean images, and there are 200"):
        threshold_at(values, 0.001)


@pytest.mark.parametrize(
    ("values", "words"), [(torch.ones(200), "every clean image"), (torch.full((200,), torch.nan), "finite")]
)
def test_scores_that_separate_nothing_are_refused(values, words):
    with pytest.raises(ConfigError, match=words):
        threshold_at(values, 0.05)


@pytest.mark.parametrize("fpr", [0.0, 1.0, -0.1, 2.0])
def test_a_rate_outside_its_range_is_refused(fpr):
    with pytest.raises(ConfigError, match="out of range"):
        threshold_at(torch.arange(10.0), fpr)


class Brightness(nn.Module):
    """A detector that needs nothing trained: how much the purifier changed, or the brightness without one."""

    random = False

    def __init__(self):
        super().__init__()
        self.register_buffer("threshold", torch.tensor(float("inf")))

    def forward(self, images, purified):
        return (images - purified).abs().flatten(1).mean(1) + images.flatten(1).mean(1)


class Darken(nn.Module):
    random = False

    def forward(self, images):
        return images / 2


def test_calibration_goes_through_the_purifier():
    dataset = open_dataset("digits")
    bare, behind = Defence(nn.Flatten(), None, Brightness()), Defence(nn.Flatten(), Darken(), Brightness())
    assert not is_calibrated(bare.detector)
    found = [calibrate(each, dataset, 0.05, device=torch.device("cpu")) for each in (bare, behind)]
    assert [each.n for each in found] == [200, 200]
    assert found[0].measured == 0.05
    assert found[1].threshold == pytest.approx(1.5 * found[0].threshold, rel=1e-5)
    assert is_calibrated(bare.detector) and float(bare.detector.threshold) == pytest.approx(found[0].threshold)
    images, _ = dataset.tensors("val")
    assert float((~bare.judge(images).accepted).float().mean()) == pytest.approx(0.05)


class Saturating(Brightness):
    """A score that ends at 1, as one in six of the images has."""

    def forward(self, images, purified):
        bright = super().forward(images, purified)
        return torch.sigmoid(1e3 * (bright - 0.33))


def test_a_threshold_that_rejects_no_clean_image_is_told():
    dataset, cpu = open_dataset("digits"), torch.device("cpu")
    defence = Defence(nn.Flatten(), None, Saturating())
    top = int((clean_scores(defence, dataset, device=cpu) == 1).sum())
    assert 20 < top < 100
    said = f"Saturating rejects none of 200 held-out clean images, .* 5 %: {top} of them have the highest score, 1;"
    with pytest.warns(UserWarning, match=said):
        found = calibrate(defence, dataset, 0.05, device=cpu)
    assert (found.measured, found.blunt) == (0, True)
    assert "for at most 5 %, and rejects none of them" in calibration_in_words(attrs.asdict(found))
    whole = calibrate(defence, dataset, 0.55, device=cpu)
    assert whole.measured > 0 and "none" not in calibration_in_words(attrs.asdict(whole))


def test_what_cannot_be_calibrated_says_so():
    with pytest.raises(ConfigError, match=r"no detector.*with detector="):
        calibrate(Defence(nn.Identity()), open_dataset("digits"), 0.05, device=torch.device("cpu"))
    nameless = nn.Identity()
    nameless.stage_name = "nameless"
    with pytest.raises(ConfigError, match="nameless has no scalar buffer"):
        set_threshold(nameless, 1.0)
    with pytest.raises(ConfigError, match=r"Brightness keeps its threshold as torch\.float16, which does not reach to"):
        set_threshold(Brightness().half(), 1e6)


@pytest.mark.parametrize("held", [0.5, torch.tensor(1)])
def test_a_users_own_detector_without_a_buffer_of_floats_is_told_what_it_needs(held):
    class Own(nn.Module):
        threshold = held

        def forward(self, images, purified):
            return images.flatten(1).mean(1)

    defence = Defence(nn.Flatten(), None, Own())
    with pytest.raises(ConfigError, match=r'detector Own has no scalar buffer `threshold` .*: self.register_buffer\("'):
        calibrate(defence, open_dataset("digits"), 0.05, device=torch.device("cpu"))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_a_threshold_of_lower_precision_keeps_to_the_rate_that_is_told(kind):
    dataset = open_dataset("digits")
    defence = Defence(nn.Flatten(), None, Brightness().to(kind))
    found = calibrate(defence, dataset, 0.1, device=torch.device("cpu"))
    images, _ = dataset.tensors("val")
    assert found.threshold == float(defence.detector.threshold)
    assert float((~defence.judge(images).accepted).double().mean()) == pytest.approx(found.measured)
    assert found.measured <= 0.1


def test_a_detector_may_lighten_itself_beside_a_purifier():
    class Sharing(Brightness):
        def beside(self, purifier):
            return Brightness() if isinstance(purifier, Darken) else self

    detector = Sharing()
    assert Defence(nn.Identity(), None, detector).detector is detector
    assert type(Defence(nn.Identity(), Darken(), detector).detector) is Brightness


def test_screening_once_serves_two_victims():
    images = torch.rand(3, 1, 4, 4)
    defence = Defence(nn.Flatten(), Darken(), Brightness())
    assert torch.equal(defence.judge(images, defence.screen(images)).logits, defence.judge(images).logits)


def test_purifiers_in_sequence_apply_in_order_and_are_held_to_their_shape():
    class Raise(nn.Module):
        random = True

        def forward(self, images):
            return images + 0.25

    images = torch.zeros(2, 1, 4, 4)
    sequence = PurifierSequence([Raise(), Darken()])
    assert torch.equal(sequence(images), torch.full_like(images, 0.125))
    assert sequence.random and not PurifierSequence([Darken(), Darken()]).random
    crops = nn.AvgPool2d(2)
    crops.stage_name = "crops"
    with pytest.raises(ContractError, match=r"purifier crops returned \[2, 1, 2, 2\]"):
        PurifierSequence([Darken(), crops])(images)


def record(kind, right, accepted=None):
    count = len(right)
    labels, keys = torch.full((count,), 7), torch.arange(count)
    said = torch.where(torch.tensor(right), labels, 3)
    ok = torch.ones(count, dtype=torch.bool) if accepted is None else torch.tensor(accepted)
    zeros, nothing = torch.zeros(count), torch.empty(0)
    arm = ArmRecord(said, zeros, ok, zeros)
    plan = PlannedRow("fgsm", Threat(kind, "linf", 0.1), None, keys, None, UNDEFENDED, (UNDEFENDED, DEFENDED))
    return RowRecord(
        plan=plan,
        keys=keys,
        labels=labels,
        arms={UNDEFENDED: arm, DEFENDED: arm},
        linf=zeros,
        l2=zeros,
        attack_seconds=0.0,
        judge_seconds={},
        judge_ms={},
        partial=False,
        overshoot=zeros,
        example=Example(nothing, nothing, nothing, nothing, {}, {}, {}),
    )


def test_more_right_under_attack_than_clean_is_a_warning():
    clean = record("none", [True] * 5 + [False] * 5)
    assert label_leak([clean, record("oblivious", [True] * 5 + [False] * 5)]).status == "pass"
    found = label_leak([clean, record("oblivious", [True] * 9 + [False])])
    assert found.status == "warn"
    assert "fgsm/oblivious: 90.0 % attacked, 50.0 % clean on the same 10 images (p = 0.12)" in found.detail
    assert "labels=predicted" in found.detail


def test_noise_and_fewer_images_do_not_warn():
    clean = record("none", [True] * 5 + [False] * 5)
    assert label_leak([clean, record("noise", [True] * 10)]).status == "skip"
    assert label_leak([clean, record("adaptive", [True] * 5)]).status == "pass"  # 100 % of the five that were right


def test_a_rejected_image_is_not_right_in_the_check():
    clean = record("none", [True] * 10, accepted=[True] * 4 + [False] * 6)
    assert label_leak([clean, record("oblivious", [True] * 5 + [False] * 5)]).status == "warn"


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_exact_binomial_test(first, second):
    expected = binomtest(first, first + second, 0.5).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(expected)
