"""Flags and TOML become one frozen `RunConfig`, and it is written back without loss."""

import copy

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from defend.errors import ConfigError
from defend.values.run_config import RunConfig
from defend.values.toml import default_out, parse_settings, run_config, to_toml

EVERYTHING = """
victim = "resnet18"
dataset = "mnist"
purifier = "apudae"
attacks = ["fgsm", "pgd"]
threats = ["oblivious"]
eps = "8/255"
limit = 100
thorough = true
draws = 5
seed = 3
precision = "fp32"
data_dir = "images"

[options.purifier]
steps = 15

[weights]
victim = "mine.safetensors"
"""

AS_FLAGS = {
    "victim": "resnet18",
    "dataset": "mnist",
    "purifier": "apudae",
    "attacks": "fgsm,pgd",
    "threats": "oblivious",
    "eps": "8/255",
    "limit": "100",
    "thorough": True,
    "draws": "5",
    "seed": "3",
    "precision": "fp32",
    "data_dir": "images",
    "options": {"purifier": {"steps": 15}},
    "weights": {"victim": "mine.safetensors"},
    "out": None,
}


@pytest.fixture
def toml(tmp_path):
    def write(text):
        path = tmp_path / "config.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def refusal(flags, file=None):
    with pytest.raises(ConfigError) as caught:
        run_config(flags, file)
    return str(caught.value)


def test_flags_and_file_give_the_same_config(toml):
    from_file = run_config({}, toml(EVERYTHING))
    assert from_file == run_config(AS_FLAGS)
    assert (from_file.eps, from_file.limit, from_file.attacks) == (8 / 255, 100, ("fgsm", "pgd"))


def test_a_config_is_frozen():
    config = run_config(AS_FLAGS)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        config.seed = 4


def test_only_a_victim_is_needed():
    assert run_config({"victim": "resnet18"}) == RunConfig(victim="resnet18")


def test_flags_win_over_the_file(toml):
    config = run_config({"seed": "7", "thorough": False, "attacks": ("cw",)}, toml(EVERYTHING))
    assert (config.seed, config.thorough, config.attacks) == (7, False, ("cw",))
    assert config.dataset == "mnist"


def test_flags_that_were_not_given_leave_the_file_alone(toml):
    flags = dict.fromkeys(field.name for field in attrs.fields(RunConfig))
    assert run_config(flags, toml(EVERYTHING)) == run_config(AS_FLAGS)


def test_options_are_merged_one_by_one(toml):
    file = toml(
        'victim = "resnet18"\n[options.purifier]\nsteps = 15\nrate = 0.1\n[options.pgd]\nsteps = 40\n'
        '[weights]\nvictim = "v"\npurifier = "p"\n'
    )
    flags = {"options": {"purifier": {"steps": "3"}, "cw": {"c": "1"}}, "weights": {"purifier": "q"}}
    kept = copy.deepcopy(flags)
    config = run_config(flags, file)
    assert config.options == {"purifier": {"steps": "3", "rate": 0.1}, "pgd": {"steps": 40}, "cw": {"c": "1"}}
    assert config.weights == {"victim": "v", "purifier": "q"}
    assert flags == kept


def test_an_unknown_key_offers_the_nearest_and_names_the_file(toml):
    file = toml('victim = "resnet18"\npurifer = "apudae"\n')
    message = refusal({}, file)
    assert "unknown key 'purifer'" in message
    assert "did you mean 'purifier'?" in message
    assert str(file) in message


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('limit = "few"', "limit='few' is not a whole number"),
        ("limit = 1.5", "limit=1.5 is not a whole number"),
        ("limit = true", "limit=True is not a whole number"),
        ("batch_size = 1979-05-27", "is not a whole number"),
        ("attacks = 5", "attacks=5 is not a list"),
        ("attacks = [1]", "attacks=[1] is not text"),
        ("dataset = 5", "dataset=5 is not text"),
        ('thorough = "maybe"', "thorough='maybe' is not true or false"),
        ("options = 3", "options must hold [options.STAGE] tables"),
        ("[options]\npurifier = 3", "options must hold [options.STAGE] tables"),
        ("[weights]\npurifier = 3", 'weights must hold STAGE = "FILE" lines'),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_its_file(toml, line, expected):
    file = toml(f'victim = "resnet18"\n{line}\n')
    message = refusal({}, file)
    assert expected in message
    assert str(file) in message


@pytest.mark.parametrize("line", ["options = 3", "[options]\npurifier = 3"])
def test_a_file_with_wrong_options_is_refused_beside_flags_too(toml, line):
    file = toml(f'victim = "resnet18"\n{line}\n')
    assert "options must hold [options.STAGE] tables" in refusal({"options": {"purifier": {"steps": "3"}}}, file)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"eps": "8"}, "did you mean 8/255?"),
        ({"eps": "nan"}, "out of range"),
        ({"limit": "0"}, "limit is 0: expected at least 1"),
        ({"adaptive_limit": "-1"}, "adaptive_limit is -1: expected at least 1"),
        ({"draws": "0"}, "draws is 0"),
        ({"batch_size": "0"}, "batch_size is 0"),
        ({"seed": "-1"}, "seed is -1: expected 0 to 9223372036854775807"),
        ({"workers": "-1"}, "workers is -1"),
        ({"precision": "fp23"}, "unknown precision 'fp23': did you mean 'fp32'?"),
        ({"attacks": []}, "attacks is empty"),
        ({"threats": ""}, "threats is empty"),
        ({"steps": 3}, "unknown key 'steps'"),
    ],
)
def test_a_value_out_of_range_is_refused(flags, expected):
    assert expected in refusal({"victim": "resnet18", **flags})


@pytest.mark.parametrize("flags", [{}, {"victim": None}, {"dataset": "mnist"}])
def test_a_missing_victim_is_asked_for(flags):
    assert "add --victim" in refusal(flags)


@pytest.mark.parametrize("content", [b"victim resnet18", b"victim = 'a'\nvictim = 'b'", b"\xff\xfe", b"\x89PNG\r\n"])
def test_a_file_that_is_not_toml_is_named(tmp_path, content):
    file = tmp_path / "broken.toml"
    file.write_bytes(content)
    message = refusal({"victim": "resnet18"}, file)
    assert f"{str(file)!r} is not TOML" in message
    assert "\n" not in message


def test_a_missing_file_is_named(tmp_path):
    assert f"'{tmp_path / 'none.toml'}' cannot be read: No such file" in refusal({}, tmp_path / "none.toml")
    assert "cannot be read: Is a directory" in refusal({}, tmp_path)


def test_one_attack_in_python_is_one_name():
    assert RunConfig(victim="resnet18", attacks="fgsm").attacks == ("fgsm",)


def test_limits_are_quick_unless_told_otherwise():
    quick, thorough = RunConfig(victim="a"), RunConfig(victim="a", thorough=True)
    few = RunConfig(victim="a", limit=30, adaptive_limit=10, thorough=True)
    assert (quick.row_limit, quick.adaptive_row_limit) == (100, 25)
    assert (thorough.row_limit, thorough.adaptive_row_limit) == (None, None)
    assert (few.row_limit, few.adaptive_row_limit) == (30, 10)


def test_defaults_are_left_out_of_the_file():
    assert to_toml(RunConfig(victim="resnet18")) == 'victim = "resnet18"\n'


def test_an_option_of_none_is_written_as_options_read_it(toml):
    config = RunConfig(victim="resnet18", options={"purifier": {"seed": None}})
    assert run_config({}, toml(to_toml(config))).options == {"purifier": {"seed": "none"}}
    assert config.options == {"purifier": {"seed": None}}


names = st.from_regex(r"[a-z][a-z0-9_]{0,9}", fullmatch=True).filter(lambda name: name != "none")
no_null = st.characters(codec="utf-8", exclude_characters="\0")  # which `RunConfig` refuses
texts = st.text(no_null, min_size=1).filter(lambda text: text.lower() != "none")
counts = st.integers(1, 10**6)
tables = st.dictionaries(
    names,
    st.one_of(
        st.integers(), st.floats(allow_nan=False), st.booleans(), st.text(no_null), st.lists(st.integers(), max_size=3)
    ),
    max_size=3,
)
configs = st.builds(
    RunConfig,
    victim=names,
    dataset=names,
    purifier=st.none() | names,
    detector=st.none() | names,
    attacks=st.lists(names, min_size=1, max_size=4),
    threats=st.lists(names, min_size=1, max_size=4),
    eps=st.floats(0, 1, exclude_min=True) | st.integers(1, 255).map("{}/255".format),
    limit=st.none() | counts,
    adaptive_limit=st.none() | counts,
    thorough=st.booleans(),
    draws=counts,
    seed=st.integers(0, 2**63 - 1),
    batch_size=counts,
    workers=st.integers(0, 64),
    device=names,
    precision=st.sampled_from(["auto", "exact", "fp32", "bf16"]),
    data_dir=st.none() | texts,
    train_missing=st.booleans(),
    options=st.dictionaries(names, tables, max_size=3),
    weights=st.dictionaries(names, st.text(no_null), max_size=3),
    out=st.none() | texts,
)


@settings(max_examples=60, deadline=None)
@given(configs)
def test_toml_round_trip(tmp_path_factory, config):
    file = tmp_path_factory.getbasetemp() / "round_trip.toml"
    file.write_text(to_toml(config), encoding="utf-8")
    assert run_config({}, file) == config


def test_settings_are_grouped_by_stage_and_the_last_wins():
    found = parse_settings(["purifier.steps=15", "pgd.steps=40", "purifier.steps=3", " purifier . mode = a=b "])
    assert found == {"purifier": {"steps": "3", "mode": "a=b"}, "pgd": {"steps": "40"}}


@pytest.mark.parametrize(
    "setting", ["", "steps=15", "purifier.steps", ".steps=1", "purifier.=1", "=1", "purifier steps"]
)
def test_a_setting_of_another_form_is_refused(setting):
    with pytest.raises(ConfigError, match=r"is not STAGE\.OPTION=VALUE, for example purifier\.steps=15") as caught:
        parse_settings([setting])
    assert repr(setting) in str(caught.value)


def test_no_two_default_folders_have_one_name(tmp_path):
    config = RunConfig(victim="resnet18", purifier="apudae")
    names = {default_out(config, root=tmp_path) for _ in range(100)}
    assert len(names) == 100 and all("-resnet18-apudae-" in name for name in names)
