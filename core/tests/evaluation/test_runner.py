"""What a run computes in, whatever torch was set to before."""

import torch
from torch import nn

import defend
from defend.assembly.calibrate import calibrate
from defend.defence import Defence
from defend.testing.toys import TASK, TinyVictim, images, tiny_dataset

noted = set()


def note():
    noted.add((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))


class Noting(TinyVictim):
    def forward(self, batch):
        note()
        return super().forward(batch)


class NotingDetector(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("threshold", torch.tensor(float("inf")))

    def forward(self, batch, purified):
        note()
        return batch.flatten(1).mean(1)


def test_a_run_calibrates_attacks_judges_and_checks_in_ieee_fp32():
    noted.clear()
    data, val = ((images(TASK, 16, seed), torch.arange(16) % 10) for seed in (0, 1))
    how = {"threats": ["adaptive"], "attacks": ["fgsm"], "eps": 0.1, "fpr": 0.1, "store": False, "device": "cpu"}
    before = torch.backends.cudnn.allow_tf32
    assert before, "torch's default"
    found = defend.evaluate(Noting(), data, detector=NotingDetector(), val=val, classes=10, progress=False, **how)
    assert found.report.checks
    assert noted == {("highest", False)}
    assert torch.backends.cudnn.allow_tf32 == before


def test_a_detector_is_calibrated_in_ieee_fp32():
    noted.clear()
    calibrate(Defence(Noting(), detector=NotingDetector()), tiny_dataset(TASK), 0.1, device=torch.device("cpu"))
    assert noted == {("highest", False)}
