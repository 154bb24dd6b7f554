"""Every attack of core keeps the contract that a plugin's attack has to keep, in each of its modes."""

from defend.testing import AttackContract


class TestNoise(AttackContract):
    name = "noise"


class TestFgsm(AttackContract):
    name = "fgsm"


class TestFgsmOnPredictedLabels(AttackContract):
    name = "fgsm"
    options = {"labels": "predicted"}


class TestFgsmTowardsTheLeastLikely(AttackContract):
    name = "fgsm"
    options = {"target": "least_likely"}


class TestRfgsmTramer(AttackContract):
    name = "rfgsm"
    options = {"variant": "tramer"}


class TestRfgsmApudae(AttackContract):
    name = "rfgsm"
    options = {"variant": "apudae"}


class TestRfgsmApudaeAsItsCode(AttackContract):
    name = "rfgsm"
    options = {"variant": "apudae", "strict_code": True}


class TestBim(AttackContract):
    name = "bim"


class TestPgd(AttackContract):
    name = "pgd"
    options = {"steps": 8}


class TestPgdWithoutRandomStart(AttackContract):
    name = "pgd"
    options = {"steps": 8, "random_start": False}


class TestPgdWithRestarts(AttackContract):
    name = "pgd"
    options = {"steps": 4, "restarts": 3}


class TestPgdThatNeverStops(AttackContract):
    name = "pgd"
    options = {"steps": 8, "early_stop": False}


# A large first constant and rate, so that a few steps already fool the victim: an attack that finds nothing
# returns the images and keeps every contract.
BRISK = {"steps": 12, "binary_search_steps": 2, "initial_const": 10.0, "lr": 0.1}


class TestCwClipped(AttackContract):
    name = "cw"
    options = {"clip": "linf", **BRISK}


class TestCwMinimal(AttackContract):
    name = "cw"
    options = {"clip": "none", **BRISK}
