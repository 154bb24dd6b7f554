"""APuDAE's 15 steps on digits: as built, and as `defend.speed.prepare` leaves them; also against 15 bare gradients.

Tried and left out: the stride-1 transposed convolutions computed as the convolutions they equal, which gains 4 % in
the contiguous layout and nothing in channels-last.
"""

from __future__ import annotations

import torch

import defend
from benchmarks.timing import compare
from defend.speed import prepare

IMAGES = 32
STEPS = 15


def main() -> None:
    """Compare the floor (15 bare forward and input-gradient passes of the autoencoder) with the purifier."""
    plain = defend.load("resnet18", purifier="apudae", options={"purifier": {"steps": STEPS}})
    images, _ = defend.dataset("digits").tensors("test", limit=IMAGES)
    exact, fast = (prepare(plain, precision, images[:4])[0].purifier for precision in ("exact", "fp32"))
    assert exact is not None and fast is not None

    def floor() -> None:
        for _ in range(STEPS):
            point = images.clone().requires_grad_()
            torch.autograd.grad((exact.dae(point) - point).square().sum(), point)

    def purified(module: torch.nn.Module) -> torch.Tensor:
        with torch.no_grad():
            result: torch.Tensor = module(images)
        return result

    compare(
        {
            f"floor: {STEPS} bare gradients": floor,
            "frozen (--precision exact)": lambda: purified(exact),
            "frozen, channels-last (auto)": lambda: purified(fast),
        },
        IMAGES,
    )


if __name__ == "__main__":
    main()
