"""What holds for attacks."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from defend.attacks.target import Target
from defend.defence import Defence
from defend.stages import Attack
from defend.testing.contracts.stage import StageContract
from defend.testing.toys import SEED, TinyVictim, images


class AttackContract(StageContract):
    """Adversarial images within a budget; see `defend.stages.Attack`. `eps` is in the attack's norm."""

    stage = "attack"
    eps: ClassVar[float] = 0.1

    def attack(self) -> Attack:
        """Build the attack."""
        found = self.found()
        built = found.spec.resolve(found.spec.build)(found.config(self.options))
        assert isinstance(built, Attack), f"{type(built).__name__} is no defend.stages.Attack: norm and __call__"
        return built

    def target(self) -> Target:
        """Return what is attacked."""
        return Target(Defence(TinyVictim(self.task)), seed=SEED)

    def craft(self, batch: Tensor, eps: Tensor | None = None, keys: Tensor | None = None) -> Tensor:
        """Run the attack itself, without the host's clipping."""
        target = self.target()
        labels = target.logits(batch, torch.arange(len(batch)), "labels").argmax(1)
        budget = torch.full((len(batch),), self.eps, dtype=batch.dtype) if eps is None else eps
        identity = torch.arange(len(batch)) if keys is None else keys
        return self.attack()(target, batch, labels, eps=budget, keys=identity)

    def test_keeps_to_shape_range_and_budget(self) -> None:
        batch = images(self.task, 4)
        found = self.craft(batch)
        assert found.shape == batch.shape and torch.isfinite(found).all()
        assert found.min() >= 0 and found.max() <= 1, "adversarial images leave [0,1]"
        if self.has_budget():
            budget = self.eps + getattr(self.attack(), "excess", 0.0)
            most = self.distances(found, batch).max().item()
            assert most <= budget + 1e-6, f"adversarial images are {most:.4g} away, the budget is {budget:.4g}"

    def test_every_image_has_its_own_budget(self) -> None:
        if not self.has_budget():
            return
        batch, eps = images(self.task, 4), self.eps * torch.tensor([0.0, 0.1, 0.5, 2.0])
        most = self.distances(self.craft(batch, eps), batch)
        excess = getattr(self.attack(), "excess", 0.0)
        assert (most <= eps + excess + 1e-6).all(), f"budgets {eps.tolist()} were exceeded: {most.tolist()}"

    def has_budget(self) -> bool:
        """Whether the attack keeps to a budget, rather than minimise the distance."""
        return not getattr(self.attack(), "minimal", False)

    def distances(self, found: Tensor, batch: Tensor) -> Tensor:
        """Return how far each image is from where it was, in the attack's norm: [B]."""
        difference = (found - batch).flatten(1)
        return difference.norm(dim=1) if self.attack().norm == "l2" else difference.abs().amax(1)

    def test_batch_size_and_order_change_nothing(self) -> None:
        batch, keys = images(self.task, 5), torch.arange(20, 25)
        whole = self.craft(batch, keys=keys)
        singles = torch.cat([self.craft(batch[i : i + 1], keys=keys[i : i + 1]) for i in range(5)])
        turned = self.craft(batch.flip(0), keys=keys.flip(0)).flip(0)
        message = "an image's attack depends on the others in its batch"
        torch.testing.assert_close(whole, singles, atol=1e-4, rtol=0, msg=message)
        torch.testing.assert_close(whole, turned, atol=1e-4, rtol=0, msg=message)

    def test_target_and_images_are_left_alone(self) -> None:
        target, batch = self.target(), images(self.task, 2)
        before, state = batch.clone(), {k: v.clone() for k, v in target.module.state_dict().items()}
        self.attack()(target, batch, torch.tensor([0, 1]), eps=torch.full((2,), self.eps), keys=torch.arange(2))
        assert torch.equal(batch, before), "the attack changed the images in place"
        assert all(torch.equal(v, state[k]) for k, v in target.module.state_dict().items())
        assert all(parameter.grad is None for parameter in target.module.parameters()), "gradients were left behind"
