"""Feature squeezing: the score by hand, its victim, its threshold."""

import pytest
import scipy.ndimage
import torch
from torch import nn

from defend.assembly.calibrate import calibrate
from defend.defence import Defence
from defend.errors import ContractError
from defend.testing import TASK, TinyVictim, images, tiny_dataset
from defend_classic.detector import Squeeze
from defend_classic.purifiers import Noise


def test_the_score_is_the_larger_distance_of_probabilities():
    victim, batch = TinyVictim(), images(TASK, 5)

    def answer(x):
        return victim(x).softmax(1)

    median = torch.from_numpy(scipy.ndimage.median_filter(batch.numpy(), size=(1, 1, 2, 2), mode="reflect"))
    bits, detail = ((answer(batch) - answer(x)).abs().sum(1) for x in ((batch >= 0.5).float(), median))
    judged = Defence(victim, None, Squeeze(1, 2)).judge(batch)
    torch.testing.assert_close(judged.score, torch.maximum(bits, detail))
    assert judged.accepted.all() and judged.score.min() > 0 and judged.score.max() <= 2


def test_it_scores_by_the_victim_that_it_stands_before():
    class Named(nn.Module):  # as transformers' models answer
        def __init__(self):
            super().__init__()
            self.network = TinyVictim(seed=1)

        def forward(self, batch):
            return {"logits": self.network(batch)}

    detector, batch = Squeeze(1, 2), images(TASK, 3)
    first = Defence(TinyVictim(), None, detector)
    second = Defence(Named(), None, first.detector)
    assert not torch.equal(first.judge(batch).score, second.judge(batch).score)
    expected = Defence(TinyVictim(seed=1), None, detector).judge(batch).score
    torch.testing.assert_close(second.judge(batch).score, expected)
    first.detector.threshold.fill_(0.1)
    assert second.detector.threshold == detector.threshold == 0.1


def test_without_a_victim_it_says_so():
    with pytest.raises(ContractError, match="no victim stands behind it: its threshold is of one victim"):
        Squeeze(1, 2)(images(TASK, 1), images(TASK, 1))


def test_it_is_calibrated_through_the_whole_defence():
    defence = Defence(TinyVictim(), Noise(0.1), Squeeze(1, 2))
    found = calibrate(defence, tiny_dataset(TASK), 0.1, device=torch.device("cpu"))
    assert 0 < found.threshold < 2 and found.measured <= 0.1
    assert defence.detector.threshold == torch.tensor(found.threshold)
