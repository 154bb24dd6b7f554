"""What fp32 is computed in: set for a block, nested too, and put back."""

import pytest
import torch

from defend.util.fp32 import fast_fp32, ieee_fp32

CUDA = torch.device("cuda")  # whose settings can be made where there is none
backends = torch.backends
OPERATIONS = (
    (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul)
    if hasattr(backends.cudnn, "conv")
    else ()
)
newer = pytest.mark.skipif(not OPERATIONS, reason="this torch has one setting for everything")


def settings():
    found = [
        torch.get_float32_matmul_precision(),
        backends.cudnn.allow_tf32,
        backends.cuda.matmul.allow_tf32,
        backends.cudnn.benchmark,
    ]
    return found + operations()


def operations():
    return [one.fp32_precision for one in OPERATIONS]


def test_blocks_set_it_and_put_it_back():
    before = settings()
    with ieee_fp32():
        assert settings()[:4] == ["highest", False, False, False]
        inside = settings()
        with fast_fp32(CUDA):
            assert settings()[:4] == ["high", True, True, True]
        assert settings() == inside
    assert settings() == before


def test_it_is_put_back_when_a_block_fails():
    before = settings()
    with pytest.raises(ZeroDivisionError), fast_fp32(CUDA):
        raise ZeroDivisionError
    assert settings() == before


def test_on_other_devices_a_training_changes_nothing():
    before = settings()
    with fast_fp32(torch.device("cpu")):
        assert settings() == before


@newer
def test_what_was_set_for_everything_does_not_reach_a_run():
    known, older = (backends.fp32_precision, operations()), settings()
    backends.fp32_precision = "tf32"
    backends.cuda.matmul.fp32_precision = "none"  # as everything
    backends.cudnn.conv.fp32_precision = "ieee"  # after which torch refuses to read its older settings
    try:
        asked = operations()
        with ieee_fp32():
            assert operations()[:3] == ["ieee"] * 3
        assert operations() == asked
    finally:
        torch.set_float32_matmul_precision(older[0])
        backends.cudnn.allow_tf32, backends.fp32_precision = older[1], known[0]
        for one, value in zip(OPERATIONS, known[1], strict=True):
            one.fp32_precision = value
    assert settings() == older, "torch reads its older settings again"
