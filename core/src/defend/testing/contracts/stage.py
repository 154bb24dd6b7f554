"""What holds for every stage, and for every one that is a network."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from defend.assembly.stage import build_module
from defend.errors import ConfigError
from defend.options import describe
from defend.plugins import Found, registry
from defend.randomness import keyed
from defend.stages import Stage, Task
from defend.testing.toys import SEED, TASK, images

LOOK = """
import json, sys
from defend.plugins import registry
print(json.dumps([[[entry.stage, entry.spec.name] for entry in registry().all_entries()], "torch" in sys.modules]))
"""


@functools.cache
def _look_at_hooks(_: str) -> tuple[list[list[str]], bool]:
    """Return what all hooks offer in a process of its own, and whether it has loaded torch; once for a path."""
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    offered, loaded = json.loads(done.stdout)
    return offered, loaded


class StageContract:
    """What holds for every stage."""

    stage: ClassVar[Stage]
    name: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = {}
    task: ClassVar[Task] = TASK

    def found(self) -> Found:
        """Return the stage as the registry finds it."""
        return registry().find(self.stage, self.name)

    def test_hook_imports_no_torch(self) -> None:
        offered, loaded = _look_at_hooks(os.environ.get("PYTHONPATH", ""))
        assert [self.stage, self.found().spec.name] in offered, f"no hook offers {self.stage} {self.name}"
        assert not loaded, "a hook module imports torch: import it in the module that builds"

    def test_every_option_has_help(self) -> None:
        for option in describe(self.found().spec.config):
            assert option.help, f"option {option.name} has no help: declare it with defend.option(default, help=...)"

    def test_unknown_option_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="no_such_option"):
            self.found().config({"no_such_option": 1})

    def test_references_resolve(self) -> None:
        spec = self.found().spec
        for reference in filter(None, (spec.build, spec.train, spec.members)):
            assert callable(spec.resolve(reference)), f"{reference} is not callable"


class ModuleContract(StageContract):
    """What holds for every stage that is a network."""

    def stage_module(self) -> nn.Module:
        """Build the stage, untrained, in eval mode."""
        found = self.found()
        torch.manual_seed(SEED)
        return build_module(found, found.config(self.options), self.task).eval()

    def run(self, module: nn.Module, batch: Tensor, keys: Tensor | None = None) -> Tensor:
        """Call the stage on images, its random draws keyed."""
        identity = torch.arange(len(batch)) if keys is None else keys
        with keyed(identity, seed=SEED, stream="contract"):
            answer: Tensor = module(batch)
        return answer

    def test_state_dict_round_trip(self) -> None:
        first, second = self.stage_module(), self.stage_module()
        second.load_state_dict(first.state_dict())
        batch = images(self.task, 2)
        assert torch.equal(self.run(first, batch), self.run(second, batch)), "the state_dict does not hold everything"

    def test_input_is_left_alone(self) -> None:
        batch = images(self.task, 2)
        before = batch.clone()
        self.run(self.stage_module(), batch)
        assert torch.equal(batch, before), "the stage changed its input in place"

    def test_batch_size_and_order_change_nothing(self) -> None:
        module, batch, keys = self.stage_module().double(), images(self.task, 5).double(), torch.arange(10, 15)
        with torch.no_grad():
            whole = self.run(module, batch, keys)
            singles = torch.cat([self.run(module, batch[i : i + 1], keys[i : i + 1]) for i in range(5)])
            turned = self.run(module, batch.flip(0), keys.flip(0)).flip(0)
        message = "images influence each other: draw with defend.randomness, and use no statistics of the batch"
        torch.testing.assert_close(whole, singles, atol=1e-6, rtol=0, msg=message)
        torch.testing.assert_close(whole, turned, atol=1e-6, rtol=0, msg=message)

    def test_randomness_is_declared(self) -> None:
        module, batch = self.stage_module(), images(self.task, 3)
        torch.manual_seed(0)
        with torch.no_grad():
            same = torch.equal(module(batch), module(batch))
        if not getattr(module, "random", False):
            assert same, "two passes differ: set `random = True` on the module"

    def test_differentiable(self) -> None:
        module, batch = self.stage_module(), images(self.task, 2).requires_grad_()
        answer = self.run(module, batch)
        assert answer.requires_grad, "the output carries no gradient: a purifier must not detach"
        (gradient,) = torch.autograd.grad(answer.square().sum(), batch)
        assert torch.isfinite(gradient).all(), "the gradient is not finite"
        assert gradient.abs().sum() > 0, "the gradient is zero everywhere: an adaptive attack would be blind"
