"""Differentiating inside a forward pass: in every mode, and with a slope where sign has none."""

import math

import pytest
import torch

from defend.errors import ContractError
from defend.gradients import inner_gradients, smooth_sign, unroll, whole_graph
from defend.randomness import keyed, normal_like


def descend(images):
    """One gradient step on the fourth powers: x - 4 x^3 / 8, whose derivative is 1 - 3 x^2 / 2."""
    with inner_gradients(images) as (x, outer):
        at = x if outer else x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(at.pow(4).sum(), at, create_graph=outer)
        return x - gradient / 8


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_a_gradient_is_found_in_every_mode(mode):
    with mode():
        moved = descend(torch.tensor([[[[1.0, 0.5]]]]))
    assert moved.flatten().tolist() == [0.5, 0.4375]
    assert not moved.requires_grad


def test_images_made_in_inference_mode_are_taken_as_they_are():
    with torch.inference_mode():
        images = torch.tensor([[[[1.0]]]])
        assert descend(images).item() == 0.5
    assert images.item() == 1.0


def test_where_gradients_are_wanted_the_second_order_is_there():
    images = torch.tensor([[[[1.0, 0.5]]]], requires_grad=True)
    (gradient,) = torch.autograd.grad(descend(images).sum(), images)
    assert gradient.flatten().tolist() == pytest.approx([-0.5, 0.625])


def test_smooth_sign_is_sign_with_the_slope_of_a_tanh_as_wide_as_the_mean():
    values = torch.tensor([[[[-3.0, 0.0, 1.0]]], [[[2.0, 2.0, -2.0]]]], requires_grad=True)
    signs = smooth_sign(values)
    assert signs.flatten().tolist() == [-1, 0, 1, 1, 1, -1]
    (slope,) = torch.autograd.grad(signs.sum(), values)
    expected = [
        (1 - math.tanh(v / w) ** 2) / w for v, w in ((-3, 4 / 3), (0, 4 / 3), (1, 4 / 3), (2, 2), (2, 2), (-2, 2))
    ]
    assert slope.flatten().tolist() == pytest.approx(expected, rel=1e-5)


def test_smooth_sign_of_nothing_is_finite():
    values = torch.zeros(1, 1, 2, 2, requires_grad=True)
    (slope,) = torch.autograd.grad(smooth_sign(values).sum(), values)
    assert torch.isfinite(slope).all()


def wander(number, state, attached):
    """A step with memory and noise: x moves down the gradient of a quartic, and along its last move."""
    x, moved = state
    at = x if attached else x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad((at.pow(4) * (1 + number)).sum(), at, create_graph=attached)
    moved = 0.5 * moved - 0.05 * gradient * (1 + 0.3 * normal_like(x))
    return x + moved, moved


def walk(segment, steps, keys, seed=3):
    torch.manual_seed(seed)
    start = torch.linspace(-1, 1, 8).view(2, 1, 2, 2).double().requires_grad_()
    surroundings = keyed(torch.arange(2), seed=seed, stream="walk") if keys else torch.random.fork_rng([])
    with surroundings:
        torch.manual_seed(seed)
        with inner_gradients(start) as (x, outer):
            end = unroll(wander, (x, torch.zeros_like(x)), steps, attached=outer, segment=segment)[0]
        after = normal_like(start.detach())
    (gradient,) = torch.autograd.grad((end * torch.arange(8.0).view_as(end)).sum(), start)
    return end.detach(), gradient, after


@pytest.mark.parametrize("keys", [True, False])
@pytest.mark.parametrize(("segment", "steps"), [(1, 7), (2, 7), (3, 7), (7, 7), (6, 7), (5, 1)])
def test_segments_change_neither_values_nor_gradients_nor_later_draws(segment, steps, keys):
    whole, cut = walk(100, steps, keys), walk(segment, steps, keys)
    for expected, found in zip(whole, cut, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def faded(unroll_it, step, *more):
    start = torch.linspace(0.1, 0.9, 6).view(2, 3).requires_grad_()
    (end, *_) = unroll_it(step, (start * 1, *more), 12, attached=True)
    return torch.autograd.grad(end.sum(), start)[0]


def test_masks_and_counts_in_the_state_have_no_gradient():
    def step(number, state, attached):
        value, mask, count = state
        return torch.where(mask, 0.9 * value, value * value), mask, count + 1

    more = torch.tensor([True, False, True]).expand(2, 3), torch.zeros((), dtype=torch.int64)
    with whole_graph():
        expected = faded(unroll, step, *more)
    torch.testing.assert_close(faded(unroll, step, *more), expected)


def test_numbers_that_a_step_keeps_elsewhere_are_refused():
    kept = [torch.zeros(2, 3)]

    def step(number, state, attached):
        kept[0] = 0.5 * kept[0] + state[0].detach()
        return (state[0] * (1 - 0.01 * kept[0]),)

    with pytest.raises(ContractError, match="computed again gives another result"):
        faded(unroll, step)


def test_a_step_that_strays_later_has_a_gradient_that_is_not_finite():
    kept, honest = [torch.zeros(2, 3)], [True]

    def step(number, state, attached):
        kept[0] = 0.5 * kept[0] + state[0].detach()
        return (state[0] * (0.99 if honest[0] else 1 - 0.01 * kept[0]),)

    assert faded(unroll, step).isfinite().all()
    kept[0], honest[0] = torch.zeros(2, 3), False
    assert faded(unroll, step).isnan().all()


def peak_of_saved_numbers(steps, segment):
    """Return how many numbers autograd holds at most, forwards and backwards."""
    live, peak = 0, 0

    class Held:
        def __init__(self, tensor):
            nonlocal live, peak
            self.tensor = tensor
            live += tensor.numel()
            peak = max(peak, live)

        def __del__(self):
            nonlocal live
            live -= self.tensor.numel()

    def deep(number, state, attached):
        (x,) = state
        at = x if attached else x.detach().requires_grad_()
        hidden = at
        for _ in range(20):
            hidden = torch.tanh(hidden)
        (gradient,) = torch.autograd.grad(hidden.sum(), at, create_graph=attached)
        return (x - 0.01 * gradient,)

    start = torch.ones(1, 1, 4, 4, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        (end,) = unroll(deep, (start,), steps, attached=True, segment=segment)
        torch.autograd.grad(end.sum(), start)
    return peak


def test_the_graph_of_a_few_steps_exists_at_a_time():
    few, many, whole = (peak_of_saved_numbers(*plan) for plan in ((10, 5), (40, 5), (40, 40)))
    assert many < 1.1 * few
    assert whole > 5 * many


def test_nothing_is_kept_where_no_gradient_is_wanted():
    with torch.no_grad(), inner_gradients(torch.ones(1, 1, 2, 2)) as (x, outer):
        end = unroll(wander, (x, torch.zeros_like(x)), 20, attached=outer)[0]
    assert not outer and not end.isnan().any()


def towards(images, carried):
    """Halve the way to a blurred image, eight times; the image to go to is carried in the state, or closed over."""
    with inner_gradients(images) as (x, outer):
        goal = x.square()

        def step(number, state, attached):
            return (state[0] + (state[1] if carried else goal)) / 2, *state[1:]

        return unroll(step, (x, goal) if carried else (x,), 8, attached=outer, segment=3)[0]


def test_what_a_step_closes_over_is_refused_where_it_depends_on_the_images():
    """Its share of the gradient is lost, without a word: the attacker would see half of the purifier."""
    images = torch.full((1, 1, 2, 2), 0.5, requires_grad=True)
    (exact,) = torch.autograd.grad(towards(images, carried=True).sum(), images)
    with whole_graph() as calls:
        (naive,) = torch.autograd.grad(towards(images, carried=False).sum(), images)
    assert calls == [8]
    torch.testing.assert_close(exact, naive)
    with pytest.raises(ContractError, match="carry it in the state"):
        torch.autograd.grad(towards(images, carried=False).sum(), images)
    frozen = images.detach().square()  # a goal that no gradient passes through may be closed over

    def step(number, state, attached):
        return ((state[0] + frozen) / 2,)

    (end,) = unroll(step, (images,), 8, attached=True, segment=3)
    assert torch.autograd.grad(end.sum(), images)[0].flatten().tolist() == pytest.approx([0.5**8] * 4)


def seek(images, start, steps, carried):
    """Descend from a latent to the one whose decoding is nearest to the images, which are carried or closed over."""
    with inner_gradients(images) as (x, outer):

        def step(number, state, attached):
            z, target = state if carried else (*state, x)
            at = z if attached else z.detach().requires_grad_()
            loss = (at.sigmoid() - target).square().sum()
            (slope,) = torch.autograd.grad(loss, at, create_graph=attached)
            return (z - slope / 2, target) if carried else (z - slope / 2,)

        return unroll(step, (start, x) if carried else (start,), steps, attached=outer)[0].sigmoid()


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("carried", [True, False])
@pytest.mark.parametrize("steps", [5, 6, 50])
def test_a_start_that_does_not_depend_on_the_images_has_the_whole_gradient(steps, carried, learned):
    images, start = torch.linspace(0, 1, 8).view(2, 1, 2, 2).requires_grad_(), torch.zeros(2, 1, 2, 2)
    start.requires_grad_(learned)
    with whole_graph():
        (expected,) = torch.autograd.grad(seek(images, start, steps, carried).sum(), images)
    (found,) = torch.autograd.grad(seek(images, start, steps, carried).sum(), images)
    torch.testing.assert_close(found, expected)


def test_a_latent_that_begins_at_what_an_encoder_made_does_not_let_the_step_close_over_the_images():
    images = torch.full((1, 1, 2, 2), 0.5, requires_grad=True)
    with pytest.raises(ContractError, match="carry it in the state"):
        torch.autograd.grad(seek(images, images.logit() / 2, 20, carried=False).sum(), images)
