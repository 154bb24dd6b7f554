"""Options and budgets: what is accepted, what is refused, and in which words."""

import contextlib
from fractions import Fraction

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from defend.errors import ConfigError
from defend.options import describe, make, option, options, parse
from defend.values.budgets import parse_eps


@options
class Blur:
    """One field of every type that an option may have."""

    steps: int = option(15, help="how many steps", at_least=1, at_most=100, architecture=True)
    rate: float = option(0.1, help="step size", at_least=0)
    width: float = option(0.5, help="a width", above=0)
    share: float = option(0.5, help="a share", above=0, at_most=1)
    tilt: float = option(0.0, help="any number")
    soft: bool = option(False, help="soft edges")
    mode: str = option("fast", help="how", choices=("fast", "slow"))
    seed: int | None = option(None, help="seed, or none", at_least=0)
    sizes: tuple[int, ...] = option((3, 5), help="kernel sizes", at_least=1, at_most=9)
    layers: tuple[str, ...] = option(("a",), help="layer names")


def blur(**values):
    return make(Blur, values, "purifier blur")


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (int, "12", 12),
        (int, 12, 12),
        (int, 12.0, 12),
        (int, "-3", -3),
        (int, str(2**63 + 1), 2**63 + 1),
        (float, "0.03", 0.03),
        (float, "1e-3", 0.001),
        (float, "8/255", 8 / 255),
        (float, " 8 / 255 ", 8 / 255),
        (float, 2, 2.0),
        (bool, "true", True),
        (bool, "Yes", True),
        (bool, "on", True),
        (bool, 1, True),
        (bool, "0", False),
        (bool, "off", False),
        (bool, False, False),
        (str, "fast", "fast"),
        (tuple[int, ...], "3, 5,7", (3, 5, 7)),
        (tuple[int, ...], [3, 5], (3, 5)),
        (tuple[float, ...], "8/255,1", (8 / 255, 1.0)),
        (tuple[str, ...], "one,two", ("one", "two")),
        (int | None, "7", 7),
        (int | None, "None", None),
        (int | None, None, None),
        (str | None, "text", "text"),
    ],
)
def test_strings_and_typed_values_become_the_fields_type(kind, value, expected):
    found = parse(value, kind)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (int, "1.5", "a whole number"),
        (int, 1.5, "a whole number"),
        (int, Fraction(3, 2), "a whole number"),
        (int, "8/255", "a whole number"),
        (int, True, "a whole number"),
        (int, float("nan"), "a whole number"),
        (int, float("inf"), "a whole number"),
        (int, None, "a whole number"),
        (float, "fast", "a number"),
        (float, "1/0", "a number"),
        (float, "1/2/3", "a number"),
        (float, "9" * 400 + "/1", "a number"),
        (float, 10**400, "a number"),
        (float, True, "a number"),
        (float, [0.1], "a number"),
        (bool, "maybe", "true or false"),
        (bool, 2, "true or false"),
        (bool, None, "true or false"),
        (str, 5, "text"),
        (tuple[int, ...], "3,x", "a whole number"),
        (tuple[int, ...], "", "a whole number"),
        (tuple[int, ...], 5, "a list"),
        (tuple[str, ...], {"a": 1}, "a list"),
        (int | None, "nothing", "a whole number"),
    ],
)
def test_values_of_another_type_are_refused(kind, value, expected):
    with pytest.raises(ValueError, match=expected):
        parse(value, kind)


def test_defaults_are_kept_and_options_are_frozen():
    chosen = blur(steps="20")
    assert chosen == Blur(steps=20)
    assert (chosen.rate, chosen.sizes) == (0.1, (3, 5))
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        chosen.steps = 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": "0"}, "purifier blur: steps=0 is out of range: expected 1 to 100"),
        ({"steps": 101}, "purifier blur: steps=101 is out of range: expected 1 to 100"),
        ({"rate": "-0.1"}, "purifier blur: rate=-0.1 is out of range: expected at least 0"),
        ({"rate": "nan"}, "purifier blur: rate=nan is out of range: expected at least 0"),
        ({"width": "0"}, "purifier blur: width=0.0 is out of range: expected above 0"),
        ({"share": 0}, "purifier blur: share=0.0 is out of range: expected above 0, to 1"),
        ({"share": 1.5}, "purifier blur: share=1.5 is out of range: expected above 0, to 1"),
        ({"tilt": "nan"}, "purifier blur: tilt=nan is out of range: expected a number"),
        ({"seed": -1}, "purifier blur: seed=-1 is out of range: expected at least 0"),
        ({"sizes": "3,10"}, "purifier blur: sizes=(3, 10) is out of range: expected 1 to 9"),
        ({"steps": "many"}, "purifier blur: steps='many' is not a whole number"),
        ({"sizes": 5}, "purifier blur: sizes=5 is not a list"),
        ({"mode": "fats"}, "purifier blur: mode='fats' is not accepted: did you mean 'fast'? (known: fast, slow)"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_accepted(values, message):
    with pytest.raises(ConfigError) as caught:
        blur(**values)
    assert str(caught.value) == message


def test_bounds_include_their_ends():
    assert (blur(steps=1).steps, blur(steps=100).steps, blur(rate=0).rate) == (1, 100, 0.0)


def test_no_value_passes_bounds():
    assert blur(seed="none").seed is None


@pytest.mark.parametrize(("key", "nearest"), [("step", "steps"), ("STEPS", "steps"), ("lairs", "layers")])
def test_an_unknown_option_offers_the_nearest(key, nearest):
    with pytest.raises(ConfigError, match=f"unknown option '{key}' of purifier blur: did you mean '{nearest}'"):
        blur(**{key: 1})


def test_an_unknown_option_without_a_near_name_lists_all():
    with pytest.raises(ConfigError) as caught:
        blur(zzz=1)
    assert "did you mean" not in str(caught.value)
    assert all(field.name in str(caught.value) for field in attrs.fields(Blur))


def test_python_is_held_to_the_same_bounds_as_flags():
    with pytest.raises(ConfigError, match="steps=0 is out of range: expected 1 to 100"):
        Blur(steps=0)


def test_description_has_what_show_prints():
    found = {info.name: info for info in describe(Blur)}
    assert list(found) == [field.name for field in attrs.fields(Blur)]
    assert attrs.astuple(found["steps"]) == ("steps", "int", 15, "how many steps", "1 to 100", True)
    assert (found["mode"].accepted, found["rate"].accepted, found["tilt"].accepted) == ("fast, slow", "at least 0", "")
    assert found["seed"].type == "int|None"


@given(st.integers())
def test_any_whole_number_survives_as_text(number):
    assert parse(str(number), int) == parse(number, int) == number


@given(st.floats(allow_nan=False))
def test_any_number_survives_as_text(number):
    assert parse(repr(number), float) == number


@given(st.lists(st.integers(), min_size=1))
def test_any_list_of_whole_numbers_survives_as_text(numbers):
    assert parse(",".join(map(str, numbers)), tuple[int, ...]) == tuple(numbers)


@given(st.text(), st.sampled_from([int, float, bool, int | None, tuple[int, ...], tuple[float, ...]]))
def test_any_text_is_refused_with_value_error_or_read_for_good(text, kind):
    with contextlib.suppress(ValueError):
        found = parse(text, kind)
        assert repr(parse(found, kind)) == repr(found)


@given(st.integers())
def test_accepted_steps_are_exactly_those_in_range(steps):
    if 1 <= steps <= 100:
        assert blur(steps=str(steps)).steps == steps
    else:
        with pytest.raises(ConfigError, match="1 to 100"):
            blur(steps=str(steps))


@pytest.mark.parametrize(
    ("value", "expected"),
    [("8/255", 8 / 255), ("0.03", 0.03), (0.03, 0.03), (1, 1.0), ("255/255", 1.0), ("1e-3", 0.001)],
)
def test_budgets_are_fractions_or_decimals(value, expected):
    assert parse_eps(value) == expected


@pytest.mark.parametrize("value", ["8", 8, "255", "1.5"])
def test_a_budget_in_pixel_steps_is_asked_back(value):
    with pytest.raises(ConfigError, match=f"did you mean {value}/255"):
        parse_eps(value)


@pytest.mark.parametrize("value", ["-0.1", -8, "nan", float("nan"), "inf", "256", "300/255", "-1/255"])
def test_a_budget_outside_of_0_to_1_is_refused(value):
    with pytest.raises(ConfigError, match=r"out of range: expected 0 to 1, for example 8/255 or 0\.03"):
        parse_eps(value)


@pytest.mark.parametrize("value", ["0", 0, 0.0, "0/255", "-0"])
def test_a_budget_of_nothing_is_refused(value):
    with pytest.raises(ConfigError, match="allows no attack: expected above 0"):
        parse_eps(value)


@pytest.mark.parametrize("value", ["large", "", "8/0", "8//255", "0x8", None, [0.1], True, "9" * 400 + "/1"])
def test_a_budget_that_is_no_number_is_refused(value):
    with pytest.raises(ConfigError, match="is not a number"):
        parse_eps(value)


@given(st.integers(1, 255))
def test_every_pixel_step_is_a_budget(step):
    assert parse_eps(f"{step}/255") == step / 255


@given(st.one_of(st.text(), st.floats(), st.integers(), st.none(), st.booleans()))
def test_a_budget_is_refused_or_in_range(value):
    with contextlib.suppress(ConfigError):
        assert 0 < parse_eps(value) <= 1
