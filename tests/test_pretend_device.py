"""Every stage on a device that is not the CPU: nothing mixes devices, and nobody waits for it once a step.

The device is pretended (`pretend_device`): what CUDA refuses is refused there, and what CUDA waits for is counted.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests import pretend_cases, pretend_device

from defend.plugins import registry

pytestmark = pytest.mark.skipif(not pretend_device.available, reason="this torch takes no backend written in Python")
A_STEP = 1.0  # waits a step, at most: an attack looks now and then for whom it may leave
SEVERAL = {"standard": 3.0, "standard_l2": 3.0, "hsj": 3.0, "hsj_l2": 3.0}  # attacks in turn; searches within a step
FIXED = 16  # waits of an attack whatever its steps: what goes in and what comes out is checked
# by parameters, that a network is left as it was; the starts of who asks for labels alone; attacks in turn, of which
# each asks at its second look again whether its gradients are finite
CHECKED = {"apudae_a": 36, "apudae_b": 36, "vaegan_straight": 56, "hsj": 48, "hsj_l2": 48, "standard_l2": 22}
OTHERS = {"detector": 4, "export": 0, "a row": 16, "training finetuner": 64, "training purifier": 280}


def run_code(code):
    """Run code in a process of its own, as the device is pretended for ever; return the words that it prints."""
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def of(seen, kind):
    found = {name.removeprefix(f"{kind} "): said for name, said in seen.items() if name.startswith(kind)}
    assert found
    return found


def test_every_stage_computes_there_what_the_cpu_computes_and_hardly_waits():
    done = subprocess.run([sys.executable, pretend_cases.__file__], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seen = {name: said for line in done.stdout.splitlines() for name, said in json.loads(line).items()}
    assert {name: said["error"] for name, said in seen.items() if "error" in said} == {}
    assert {name: said["away"] for name, said in seen.items() if said["away"] > 0} == {}
    for kind in ("attack", "purifier", "detector"):
        every = {entry.spec.name for entry in registry().entries(kind) if not entry.spec.is_family}
        assert set(of(seen, kind)) == every
    for name, said in of(seen, "attack").items():
        (few, more), a_step = said["waits"], SEVERAL.get(name, A_STEP)
        assert (more - few) / (pretend_cases.MORE - pretend_cases.FEW) <= a_step, (name, said)
        assert few <= CHECKED.get(name, FIXED) + a_step * pretend_cases.FEW, (name, said)
    assert {name: said for name, said in of(seen, "purifier").items() if any(said["waits"])} == {}
    for kind, most in OTHERS.items():
        for name, said in of(seen, kind).items():
            assert max(said["waits"]) <= most, (name, said)
            assert said["waits"][0] == said["waits"][-1], (name, said)


def test_what_mixes_devices_is_refused_and_what_waits_is_counted():
    code = (
        "import torch; from tests import pretend_device\n"
        "with pretend_device.watch() as (device, seen):\n"
        "    there = torch.ones(3).to(device)\n"
        "    try: there + torch.ones(3); print('mixed')\n"
        "    except RuntimeError as error: print('same device' in str(error))\n"
        "    there.sum().item(), there.cpu(), there[there > 0], there.nonzero()\n"
        "    print(sum(seen.waits.values()), sum(seen.copies.values()))\n"
    )
    assert run_code(code) == ["True", "4", "1"]


def test_a_gradient_lost_at_the_boxs_edge_is_noted_and_mended_there_too():
    # BIM comes to the edge with its first step, and the root's gradient is infinite there
    code = (
        "import torch, defend; from tests import pretend_device\n"
        "from defend.attacks.iterated import Pgd\n"
        "from defend.attacks.options import PgdOptions\n"
        "class Root(torch.nn.Module):\n"
        "    def forward(self, images): return images.sqrt().square().flatten(1)[:, :8].reshape(-1, 2, 4).sum(2)\n"
        "torch.manual_seed(0)\n"
        "images = 0.06 + 0.05 * torch.rand(16, 1, 4, 4)\n"
        "labels = Root()(images).argmax(1)\n"
        "attack = Pgd(PgdOptions(steps=10, random_start=False, step_size=0.1))\n"
        "keys = torch.arange(16)\n"
        "def fool(device):\n"
        "    target = defend.Target(Root().to(device))\n"
        "    there = [each.to(device) for each in (images, labels, keys)]\n"
        "    target.watch(there[2], there[1])\n"
        "    found = defend.craft(attack, target, *there[:2], eps=0.12, keys=there[2]).cpu()\n"
        "    seen = target.sight.seen.cpu()\n"
        "    return (Root()(found).argmax(1) == labels).sum().item(), int((seen.mended + seen.broken > 0).sum())\n"
        "with pretend_device.watch() as (device, seen): there = fool(device)\n"
        "print(*fool('cpu'), *there)\n"
    )
    left, noted, left_there, noted_there = map(int, run_code(code))
    assert noted == noted_there == 16 and left_there == left
