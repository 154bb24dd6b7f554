"""A purifier of thirty steps that looks robust where its loop keeps no graph, and is attacked through all of them.

`defend.gradients.unroll` gives that gradient in the memory of five steps.
"""

import torch
from torch import nn

import defend
from defend.gradients import inner_gradients, unroll, whole_graph
from my_model import load


class Smooth(nn.Module):
    """Descend the roughness of an image, and the distance to what came in."""

    random = False

    def __init__(self, steps=30):
        super().__init__()
        self.steps = steps

    def forward(self, images):
        with inner_gradients(images) as (x, outer):
            # the image that came in is part of the state: what a step closes over gets no gradient
            return unroll(descend, (x, x), self.steps, attached=outer)[0].clamp(0, 1)


class Detached(Smooth):
    """The same images, made without a graph, as one does where the graph of all steps does not fit into memory."""

    def forward(self, images):
        with torch.no_grad():
            return super().forward(images)


def descend(_, state, attached):
    x, given = state
    at = x if attached else x.detach().requires_grad_()
    loss = 2 * at.diff(dim=2).square().sum() + 2 * at.diff(dim=3).square().sum() + (at - given).square().sum()
    (slope,) = torch.autograd.grad(loss, at, create_graph=attached)
    return x - 0.04 * slope, given


model, data = load(), defend.dataset("digits").tensors("test", limit=25)
settings = {"threats": ["adaptive"], "attacks": ["pgd"], "eps": 0.1, "progress": False, "checks": "none"}

images = data[0][:4].requires_grad_()
(ours,) = torch.autograd.grad(model(Smooth()(images)).square().sum(), images)
with whole_graph():
    (naive,) = torch.autograd.grad(model(Smooth()(images)).square().sum(), images)
print(f"the gradient differs from the naive one by {(ours - naive).abs().max() / naive.abs().max():.0e} of its size")

blind = defend.evaluate(model, data, purifier=Detached(), **settings)
exact = defend.evaluate(model, data, purifier=Smooth(), **settings)
print(f"without a graph the attacker leaves {100 * blind.worst_case.accuracy:.0f} %")
print(f"through all steps {100 * exact.worst_case.accuracy:.0f} %")
