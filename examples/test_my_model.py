"""A test for your own suite: `pytest examples/test_my_model.py`, or run as a script.

It fails where less is left than was asked for, where a sanity check fails, and where nothing could be measured. Take a
budget at which the model loses images: where the attack finds nothing, nobody knows whether it works (check 9).
"""

import defend
from defend.testing import assert_robust
from my_model import load


def test_my_model_is_as_robust_as_it_was() -> None:
    data = defend.dataset("digits").tensors("test", limit=60)
    assert_robust(load(), data, at_least=0.1, eps=0.1)


if __name__ == "__main__":
    test_my_model_is_as_robust_as_it_was()
    print("as robust as it was")
