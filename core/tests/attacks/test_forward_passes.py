"""What an attack's options say it asks of an image is what it asks of one that nothing fools."""

import pytest
import torch

import defend
from defend.attacks.options import GRADIENT, count_forward_passes
from defend.plugins import registry

FEW = {
    "pgd": {"steps": 6, "restarts": 2},
    "bim": {"steps": 6},
    "vmi_fgsm": {"steps": 4, "samples": 5},
    "mi_fgsm": {"steps": 6},
    "apgd_ce": {"steps": 10, "restarts": 2},
    "apgd_t": {"steps": 10, "targets": 2, "order": "rank"},
    "fab_t": {"steps": 10, "targets": 2, "order": "rank"},
    "standard": {"apgd_steps": 10, "fab_steps": 10, "square_queries": 30, "targets": 2, "order": "rank"},
    "fmn": {"steps": 12},
    "cw": {"steps": 8, "binary_search_steps": 2},
    "square": {"queries": 30, "restarts": 2},
}


class Sure(torch.nn.Module):
    """Right about every image of its class, whatever happens to it; with a slope. Counts images forwards and back."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(0.1, 0.3, 48).view(3, 16), requires_grad=False)
        self.passes = 0

    def forward(self, images):
        self.passes += len(images)
        logits = images.flatten(1) @ self.weight.T + torch.tensor([100.0, 0.0, 0.0])
        if logits.requires_grad:
            logits.register_hook(self.count_back)
        return logits

    def count_back(self, gradient):
        self.passes += (GRADIENT - 1) * len(gradient)


@pytest.mark.parametrize("name", FEW)
def test_what_an_attack_asks_of_an_image_is_known_before(name):
    found = registry().find("attack", name)
    settings, victim = found.config(FEW[name]), Sure()
    images = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    attack = found.call("build", settings)
    defend.craft(attack, defend.Target(victim), images, torch.zeros(2, dtype=torch.int64), eps=0.1)
    asked = victim.passes / len(images)
    assert 0.5 * asked <= count_forward_passes(settings) <= 2 * asked


def test_options_that_say_nothing_of_it_are_counted_by_their_steps_or_queries():
    class Steps:
        steps = 4

    class Queries:
        steps, queries = None, 7

    assert count_forward_passes(Steps()) == 4 * GRADIENT
    assert count_forward_passes(Queries()) == 7
    assert count_forward_passes(None) == GRADIENT
