"""What a run will take: from two batches a row, and what fits a budget."""

import pytest
import torch

from defend.errors import ConfigError
from defend.evaluation.forecast import Forecast, RowForecast, choose_for, forecast
from defend.records.rows import PlannedRow
from defend.values.durations import parse_duration, say_duration
from defend.values.threats import Threat

CPU = torch.device("cpu")


def row(images=100, steps=10, kind="adaptive"):
    keys = torch.arange(images)
    return PlannedRow("pgd", Threat(kind, "linf", 0.1), None, keys, steps, "defended", ("undefended", "defended"))


class Machine:
    """An evaluator of which a batch takes a second and an image a quarter, after two seconds of warming up."""

    def __init__(self):
        self.now, self.cold, self.asked = 0.0, 2.0, []

    def row(self, plan):
        self.asked.append(plan.keys.tolist())
        self.now += self.cold + 1 + 0.25 * len(plan.keys)
        self.cold = 0.0


def test_a_batch_and_an_image_are_told_apart_from_two_batches():
    machine = Machine()
    found = forecast(machine, [row(100), row(3)], batch_size=8, device=CPU, ready=5.0, clock=lambda: machine.now)
    assert machine.asked == [[0], [0], [1, 2, 3, 4], [0], [1, 2]], "two batches a row, of different images"
    assert [(each.per_batch, each.per_image) for each in found.rows] == [(1.0, 0.25)] * 2
    assert found.seconds == 5 + (13 + 25) + (1 + 0.75)


def test_one_image_and_a_batch_that_got_cheaper_are_taken_at_their_share():
    machine = Machine()
    found = forecast(machine, [row(1)], batch_size=8, device=CPU, ready=0.0, clock=lambda: machine.now)
    assert found.seconds == 1.25
    times = iter([0.0, 9.0, 9.0, 11.0])  # the first batch was disturbed
    found = forecast(Machine(), [row(8)], batch_size=8, device=CPU, ready=0.0, clock=lambda: next(times))
    assert found.rows[0].per_image == 0.5
    assert found.rows[0].per_batch == 0.0


def test_memory_grows_with_the_batch_and_not_beyond_the_row():
    each = RowForecast(row(20), 0.0, 1.0, base=1000, each=10)
    assert [each.memory(size) for size in (8, 64)] == [1080, 1200]
    assert Forecast([each], 8, 0.0).to_dict()["memory_bytes"] == 1080


def test_processes_share_batches_and_no_images_of_one():
    each = RowForecast(row(20), 2.0, 1.0)
    # three batches of 8, 8 and 4: one after the other, in two turns, in one
    seconds = [Forecast([each], 8, 0.0, world).seconds for world in (1, 2, 3)]
    assert seconds == [26.0, 20.0, 10.0]
    assert Forecast([each], 64, 0.0, 4).seconds == Forecast([each], 64, 0.0).seconds == 22.0


def planned(steps=10):
    """Ten seconds of cheap rows, and an adaptive one of a tenth of a second an image and ten steps."""
    return Forecast([RowForecast(row(100, None, "none"), 0, 0.1), RowForecast(row(25, steps), 0, 0.1)], 64, 0.0)


@pytest.mark.parametrize(
    ("budget", "images", "steps"),
    [(13.05, 20, 10), (19.05, 40, 20), (40.05, 72, 40), (1000.0, 100, 40)],
)
def test_steps_come_before_images(budget, images, steps):
    chosen = choose_for(budget / 0.9, planned(), {1: 40}, spent=1.0, most=100)
    assert (chosen.images, chosen.steps) == (images, steps)
    assert chosen.seconds <= budget


def test_what_is_given_is_kept_and_what_cannot_fit_is_said():
    chosen = choose_for(60, planned(), {1: 40}, spent=1.0, most=100, images=10)
    assert (chosen.images, chosen.steps) == (10, 40)
    chosen = choose_for(60, planned(), {1: 40}, spent=1.0, most=100, steps=10)
    assert (chosen.images, chosen.steps) == (100, 10)
    with pytest.raises(ConfigError, match=r"a budget of 11 s is too short: 8 images with 10 steps .* take 13 s"):
        choose_for(11, planned(), {1: 40}, spent=1.0, most=100)
    with pytest.raises(ConfigError, match=r"too short: its rows take .*, and none of them is an adaptive one"):
        choose_for(1, planned(), {}, spent=1.0, most=100)


def test_spans_of_time():
    assert [parse_duration(text) for text in ("90s", "10m", "1.5h")] == [90, 600, 5400]
    for wrong in ("10", "m", "", "-1m", "nanm", "infs", "1d"):
        with pytest.raises(ConfigError, match="no span of time"):
            parse_duration(wrong)
    assert [say_duration(seconds) for seconds in (0.2, 8, 700, 12600)] == ["1 s", "8 s", "12 min", "3.5 h"]
