"""The stages of this plugin keep to core's contracts."""

import pytest

from defend.stages import Task
from defend.testing import DetectorContract, PurifierContract, TinyVictim

COLOUR = Task("imagefolder", 3, 20, 13, 2)  # no multiple of 8, and no square


class TestJpeg(PurifierContract):
    name = "jpeg"


class TestJpegColour(PurifierContract):
    name, task = "jpeg", COLOUR


class TestJpegFullColour(PurifierContract):
    name, task, options = "jpeg", COLOUR, {"subsampling": "4:4:4", "quality": 20}


class TestBits(PurifierContract):
    name = "bits"


class TestBitsColour(PurifierContract):
    name, task = "bits", COLOUR


class TestMedian(PurifierContract):
    name = "median"


class TestMedianColour(PurifierContract):
    name, task, options = "median", COLOUR, {"size": 5}


class TestBlur(PurifierContract):
    name = "blur"


class TestBlurColour(PurifierContract):
    name, task, options = "blur", COLOUR, {"kernel": "gaussian", "size": 5}


class TestTv(PurifierContract):
    name = "tv"


class TestTvWhole(PurifierContract):
    name, task, options = "tv", COLOUR, {"drop": 0, "steps": 20}


class TestResizePad(PurifierContract):
    name = "resize_pad"


class TestResizePadColour(PurifierContract):
    name, task, options = "resize_pad", COLOUR, {"smallest": 0.2}


class TestNoise(PurifierContract):
    name = "noise"


class TestNoiseOff(PurifierContract):
    name, task, options = "noise", COLOUR, {"sigma": 0}


class TestSqueeze(DetectorContract):
    name = "squeeze"

    def stage_module(self):
        return super().stage_module().with_victim(TinyVictim(self.task)).eval()


class TestSqueezeColour(TestSqueeze):
    task, options = COLOUR, {"median": 3}


@pytest.mark.parametrize("name", ["jpeg", "bits"])
def test_what_has_no_slope_offers_a_surrogate(name):
    suite = type("Suite", (PurifierContract,), {"name": name})()
    assert set(suite.stage_module().surrogates()) == {"soft"}
