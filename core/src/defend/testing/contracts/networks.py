"""What holds for purifiers, victims and detectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from defend.defence import Defence
from defend.evaluation.certify import examine_noise
from defend.gradients import whole_graph
from defend.randomness import keyed
from defend.testing.contracts.stage import ModuleContract
from defend.testing.toys import SEED, images
from defend.training.denoising import find_fault
from defend.weights.find import available


class PurifierContract(ModuleContract):
    """Images [B,C,H,W] in [0,1] to the same; see `defend.stages.Purifier`.

    Attributes:
        claims: the noise that it claims to take away, a standard deviation in 255ths (`denoising.SIGMAS`); None: 8 of
            colour images and 25 of grey ones, which is as large as the usual attacks.
        not_denoising: data sets whose shipped weights do not (yet), and why. One that does by now is an error too.
    """

    stage = "purifier"
    claims: ClassVar[int | None] = None
    not_denoising: ClassVar[Mapping[str, str]] = {}

    def test_shipped_weights_take_noise_away(self) -> None:
        found = self.found()
        shipped = [one for one in available(self.stage, self.name, found.packages) if one.shipped]
        faults = {one.filed_for: fault for one in shipped if (fault := find_fault(one.card, self.claims))}
        new = {dataset: fault for dataset, fault in faults.items() if dataset not in self.not_denoising}
        assert not new, f"shipped weights that are worse than a blur, or than doing nothing: {new}"
        mended = sorted(set(self.not_denoising) - set(faults))
        assert not mended, f"the shipped weights of {', '.join(mended)} denoise: take them out of `not_denoising`"

    def test_shape_and_range(self) -> None:
        for count in (1, 3):
            batch = images(self.task, count)
            purified = Defence(nn.Identity(), self.stage_module()).purify(batch)
            assert torch.isfinite(purified).all(), "purified images are not finite"
            low, high = purified.min().item(), purified.max().item()
            assert low >= 0 and high <= 1, f"purified images reach from {low:.3g} to {high:.3g}: clamp to [0,1]"

    def test_black_and_white_images(self) -> None:
        for value in (0.0, 1.0):
            batch = torch.full((1, self.task.channels, self.task.height, self.task.width), value)
            assert torch.isfinite(self.run(self.stage_module(), batch)).all(), f"not finite on an image of {value}"

    def test_works_without_gradients(self) -> None:
        module, batch = self.stage_module(), images(self.task, 2)
        expected = self.run(module, batch.clone().requires_grad_()).detach()
        with torch.no_grad():
            without = self.run(module, batch)
        assert not without.requires_grad
        message = "gradients on or off must not change the result"
        torch.testing.assert_close(without, expected, atol=1e-5, rtol=0, msg=message)
        with torch.inference_mode():
            torch.testing.assert_close(self.run(module, batch), expected, atol=1e-5, rtol=0, msg=message)

    def test_noise_that_is_to_be_certified_is_what_it_says(self) -> None:
        module = self.stage_module()
        sigma = getattr(module, "smoothing_sigma", 0)
        if sigma:
            examine_noise(module, sigma, images(self.task, 1))

    def test_unrolled_steps_have_the_naive_gradient(self) -> None:
        """Of a purifier that unrolls its steps by `defend.gradients.unroll`; there is nothing to compare of others."""
        module, batch = self.stage_module().requires_grad_(False), images(self.task, 2).requires_grad_()

        def differentiate(answer: Tensor) -> tuple[Tensor, Tensor]:
            return answer.detach(), torch.autograd.grad(answer.square().sum(), batch)[0]

        with whole_graph() as calls:
            whole = self.run(module, batch)
        if not calls:
            return
        for ours, naive in zip(differentiate(self.run(module, batch)), differentiate(whole), strict=True):
            message = (
                f"through {sum(calls)} steps the gradient is not that of the whole graph, by up to "
                f"{(ours - naive).abs().max():.3g} of {naive.abs().max():.3g}: an adaptive attack would be misled; "
                "draw through defend.randomness, and carry what depends on the images in the state"
            )
            atol = 1e-4 * float(naive.abs().max())
            torch.testing.assert_close(ours, naive, atol=atol, rtol=1e-3, msg=message)

    def test_parameters_keep_no_gradient(self) -> None:
        module = self.stage_module()
        with torch.no_grad():
            self.run(module, images(self.task, 2))
        assert all(parameter.grad is None for parameter in module.parameters()), "a pass left gradients behind"


class VictimContract(ModuleContract):
    """Images [B,C,H,W] in [0,1] to logits [B,classes]; normalisation inside."""

    stage = "victim"

    def test_logits(self) -> None:
        with torch.no_grad():
            logits = self.stage_module()(images(self.task, 3))
        assert logits.shape == (3, self.task.classes), f"logits have shape {list(logits.shape)}"
        assert torch.isfinite(logits).all()

    def test_not_probabilities(self) -> None:
        with torch.no_grad():
            logits = self.stage_module()(images(self.task, 3))
        sums = logits.sum(1)
        assert not torch.allclose(sums, torch.ones_like(sums), atol=1e-4), "these are probabilities: return logits"


class DetectorContract(ModuleContract):
    """(images, purified) to scores [B], with a threshold; see `defend.stages.Detector`."""

    stage = "detector"

    def run(self, module: nn.Module, batch: Tensor, keys: Tensor | None = None) -> Tensor:
        identity = torch.arange(len(batch)) if keys is None else keys
        with keyed(identity, seed=SEED, stream="contract"):
            answer: Tensor = module(batch, batch)
        return answer

    def test_randomness_is_declared(self) -> None:
        module, batch = self.stage_module(), images(self.task, 3)
        with torch.no_grad():
            same = torch.equal(module(batch, batch), module(batch, batch))
        assert same or getattr(module, "random", False), "two passes differ: set `random = True` on the module"

    def test_scores(self) -> None:
        module = self.stage_module()
        scores = self.run(module, images(self.task, 3))
        assert scores.shape == (3,), f"scores have shape {list(scores.shape)}, expected [B]"
        assert torch.isfinite(scores).all()
        assert torch.as_tensor(module.threshold).numel() == 1, "a detector needs one `threshold`"
