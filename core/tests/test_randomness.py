"""Draws that belong to an image: what they depend on, and that they are as random as they claim."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from defend.errors import ContractError
from defend.randomness import keyed, normal_like, permutation, sign_like, step_seed, uniform_like, uniform_per_image

DRAWS = {"uniform": uniform_like, "normal": normal_like, "sign": sign_like, "per image": uniform_per_image}


@pytest.fixture(params=DRAWS)
def draw(request):
    return DRAWS[request.param]


@pytest.fixture
def _own_generator():
    with torch.random.fork_rng():
        yield


def drawn(draw, keys, seed=0, stream="test", shape=(3, 4)):
    keys = torch.as_tensor(keys)
    with keyed(keys, seed=seed, stream=stream):
        return draw(torch.empty(len(keys), *shape))


# What a draw depends on


def test_same_key_seed_and_stream_draw_the_same(draw):
    assert torch.equal(drawn(draw, range(16)), drawn(draw, range(16)))


@pytest.mark.parametrize("other", [{"seed": 1}, {"stream": "other"}, {"keys": range(100, 116)}])
def test_another_key_seed_or_stream_draws_other_numbers(draw, other):
    assert not torch.equal(drawn(draw, **{"keys": range(16)} | other), drawn(draw, range(16)))


def test_images_of_one_batch_draw_different_numbers(draw):
    numbers = drawn(draw, range(8), shape=(8, 8)).flatten(1) if draw is not uniform_per_image else drawn(draw, range(8))
    assert len(numbers.unique(dim=0)) == 8


def test_draws_of_one_block_differ_and_repeat_in_their_order(draw):
    images = torch.empty(16, 3, 4)
    runs = []
    for _ in range(2):
        with keyed(torch.arange(16), seed=0, stream="test"):
            runs.append((draw(images), draw(images)))
    assert not torch.equal(runs[0][0], runs[0][1])
    assert torch.equal(runs[0][0], runs[1][0]) and torch.equal(runs[0][1], runs[1][1])


@given(keys=st.lists(st.integers(0, 2**62), min_size=1, max_size=12), data=st.data())
@settings(deadline=None, max_examples=30)
def test_batch_order_and_part_change_no_bit(keys, data):
    part = data.draw(st.lists(st.sampled_from(range(len(keys))), min_size=1, max_size=12))
    for draw in DRAWS.values():
        whole = drawn(draw, keys)
        assert torch.equal(drawn(draw, [keys[i] for i in part]), whole[part])


def test_what_surrounds_a_block_neither_changes_it_nor_is_changed(draw):
    images = torch.empty(4, 5)
    with keyed(torch.arange(4), seed=0, stream="outer"):
        expected = [draw(images), draw(images)]
    with keyed(torch.arange(4), seed=0, stream="outer"):
        first = draw(images)
        inner = drawn(draw, range(4), stream="inner", shape=(5,))
        second = draw(images)
    assert torch.equal(first, expected[0]) and torch.equal(second, expected[1])
    assert torch.equal(inner, drawn(draw, range(4), stream="inner", shape=(5,)))


def test_a_block_ends_with_its_error():
    with pytest.raises(RuntimeError, match="halted"), keyed(torch.arange(3), seed=0, stream="test"):
        raise RuntimeError("halted")
    assert uniform_like(torch.empty(7, 2)).shape == (7, 2), "draws for another batch are free again"


@pytest.mark.usefixtures("_own_generator")
def test_keyed_draws_leave_torchs_generator_alone(draw):
    torch.manual_seed(1)
    first = drawn(draw, range(4))
    assert torch.equal(torch.get_rng_state(), torch.Generator().manual_seed(1).get_state())
    torch.manual_seed(2)
    assert torch.equal(drawn(draw, range(4)), first)


# Without keys


@pytest.mark.usefixtures("_own_generator")
def test_without_keys_draws_follow_torchs_generator(draw):
    images = torch.empty(4, 3, 2)
    torch.manual_seed(5)
    first, second = draw(images), draw(images)
    torch.manual_seed(5)
    assert torch.equal(draw(images), first)
    assert not torch.equal(first, second)


def test_another_batch_than_the_keyed_one_is_refused(draw):
    with (
        keyed(torch.arange(4), seed=0, stream="test"),
        pytest.raises(ContractError, match="draws for 3 images inside a block keyed for 4"),
    ):
        draw(torch.empty(3, 2))


# Distributions: 64 images of 1,000 numbers; the numbers are fixed, so these cannot fail by chance

MANY = {"keys": range(64), "shape": (10, 100)}


def test_uniform_is_uniform():
    numbers = drawn(uniform_like, **MANY)
    assert numbers.min() >= 0 and numbers.max() < 1
    assert stats.kstest(numbers.flatten().numpy(), "uniform").pvalue > 0.01


def test_uniform_keeps_to_its_bounds():
    numbers = drawn(lambda images: uniform_like(images, -0.2, 0.6), **MANY)
    assert numbers.min() >= -0.2 and numbers.max() < 0.6
    assert stats.kstest(numbers.flatten().numpy(), stats.uniform(-0.2, 0.8).cdf).pvalue > 0.01


def test_normal_is_normal():
    numbers = drawn(normal_like, **MANY)
    assert torch.isfinite(numbers).all()
    assert stats.kstest(numbers.flatten().numpy(), "norm").pvalue > 0.01


def test_signs_are_balanced():
    signs = drawn(sign_like, **MANY)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert stats.binomtest(int((signs > 0).sum()), signs.numel()).pvalue > 0.01


def test_numbers_per_image_are_uniform_over_the_images():
    numbers = drawn(lambda images: uniform_per_image(images, 2, 4), range(20_000), shape=(1,))
    assert numbers.shape == (20_000,) and numbers.min() >= 2 and numbers.max() < 4
    assert stats.kstest(numbers.numpy(), stats.uniform(2, 2).cdf).pvalue > 0.01


def test_neighbours_are_unrelated():
    numbers = drawn(uniform_like, **MANY).flatten(1).double()
    with keyed(torch.arange(64), seed=0, stream="test"):
        later = [uniform_like(torch.empty(64, 1000)).double() for _ in range(2)][1]
    pairs = {
        "pixels": (numbers[:, 1:], numbers[:, :-1]),
        "images": (numbers[1:], numbers[:-1]),
        "draws": (numbers, later),
    }
    for name, (first, second) in pairs.items():
        correlation = float(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1])
        assert abs(correlation) < 4 / 63_000**0.5, f"{name} correlate by {correlation:.4f}"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_draws_have_the_images_type_and_shape(dtype):
    with keyed(torch.arange(2), seed=0, stream="test"):
        for draw in (uniform_like, normal_like, sign_like):
            numbers = draw(torch.empty(2, 3, 4, 5, dtype=dtype))
            assert numbers.dtype == dtype and numbers.shape == (2, 3, 4, 5)


# Permutations and seeds


@given(size=st.integers(0, 300), seed=st.integers(0, 2**40))
@settings(deadline=None, max_examples=50)
def test_a_permutation_has_every_number_once(size, seed):
    order = permutation(size, seed=seed, stream="split")
    assert order.dtype == torch.int64
    assert torch.equal(order.sort().values, torch.arange(size))


def test_a_permutation_depends_on_seed_and_stream_alone():
    first = permutation(50, seed=0, stream="a")
    torch.rand(1)
    assert torch.equal(permutation(50, seed=0, stream="a"), first)
    for other in ({"seed": 1, "stream": "a"}, {"seed": 0, "stream": "b"}):
        assert not torch.equal(permutation(50, **other), first)


def test_a_permutation_moves_every_part():
    middles = torch.stack([permutation(100, seed=seed, stream="a")[:10].double() for seed in range(200)])
    assert abs(float(middles.mean()) - 49.5) < 3


def test_step_seeds_suit_torch_and_differ():
    seeds = {step_seed(seed, "train", epoch) for seed in range(20) for epoch in range(20)}
    assert len(seeds) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert step_seed(3, "train", 4) == step_seed(3, "train", 4)
    torch.Generator().manual_seed(max(seeds))
