"""The journal of an unfinished run: what is kept comes back to the bit, what is damaged does not come back."""

import importlib
import json
import sys

import attrs
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from defend.errors import ConfigError
from defend.fingerprints.code import code_of
from defend.records.journal import Journal
from defend.records.rows import EXAMPLES, ArmRecord, Example, Part, Trimmed, merge
from defend.records.unfinished import find_unfinished, is_unfinished
from defend.values.run_config import RunConfig
from defend.values.toml import to_toml

CONFIG = RunConfig(victim="resnet18", purifier="apudae", out="elsewhere", options={"pgd": {"steps": 3}})
FINGERPRINT = {"data": "abc", "weights file": [{"victim": "1"}]}


def made_up_part(first=0, size=3, failures=1, others=2, *, passes=False, queries=False, fooled=False, arms=("a", "b")):
    torch.manual_seed(first)
    images = failures + others

    def arm():
        said = torch.randint(0, 10, (size, 4)) if passes else None
        return ArmRecord(
            torch.randint(0, 10, (size,)),
            torch.rand(size),
            torch.rand(size) < 0.5,
            torch.rand(size),
            said,
            torch.rand(size) if passes else None,
        )

    example = Example(
        torch.rand(images, 1, 4, 4),
        torch.rand(images, 1, 4, 4),
        torch.arange(images),
        torch.arange(first, first + images),
        {name: torch.rand(images, 1, 4, 4) for name in arms},
        {name: torch.randint(0, 10, (images,)) for name in arms},
        {name: torch.rand(images) < 0.5 for name in arms},
    )
    return Part(
        keys=torch.arange(first, first + size),
        labels=torch.randint(0, 10, (size,)),
        arms={name: arm() for name in arms},
        linf=torch.rand(size),
        l2=torch.rand(size),
        overshoot=torch.rand(size),
        queries=torch.randint(0, 99, (size,)) if queries else None,
        attack_seconds=0.1 + first,
        judge_seconds=dict.fromkeys(arms, 1 / 3),
        judge_ms=dict.fromkeys(arms, 0.7),
        example=example,
        failures=failures,
        fooled=(torch.arange(2), torch.rand(2, 1, 4, 4)) if fooled else None,
        reused=first,
    )


def same(one, other):
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if attrs.has(type(one)):
        return all(same(getattr(one, a.name), getattr(other, a.name)) for a in attrs.fields(type(one)))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@given(st.booleans(), st.booleans(), st.booleans(), st.integers(0, 2), st.integers(0, 2), st.integers(1, 4))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_part_comes_back_to_the_bit(tmp_path_factory, passes, queries, fooled, failures, others, size):
    journal = Journal(tmp_path_factory.mktemp("run"))
    journal.begin([to_toml(CONFIG)], FINGERPRINT)
    part = made_up_part(0, size, failures, others, passes=passes, queries=queries, fooled=fooled)
    shared = attrs.evolve(part, arms={"a": part.arms["a"], "b": part.arms["a"]})  # two arms may be one
    journal.keep(3, 0, shared)
    (back,) = journal.parts(3)
    assert same(back, shared)
    assert journal.parts(2) == []


def test_parts_end_at_the_first_that_is_missing_or_damaged(tmp_path):
    journal = Journal(tmp_path)
    journal.begin([to_toml(CONFIG)], FINGERPRINT)
    for place in range(5):
        journal.keep(0, place, made_up_part(place))
    files = sorted((tmp_path / "unfinished").glob("000-*.safetensors"))
    assert [int(part.keys[0]) for part in journal.parts(0)] == [0, 1, 2, 3, 4]
    for damage in (files[3].read_bytes()[:-5], b"", b"not safetensors"):
        files[3].write_bytes(damage)
        assert len(journal.parts(0)) == 3
    files[1].unlink()
    assert len(journal.parts(0)) == 1


def test_seconds_go_on_where_they_stopped(tmp_path):
    journal = Journal(tmp_path)
    journal.begin([to_toml(CONFIG)], FINGERPRINT)
    journal._earlier = 1000.0
    journal.keep(0, 0, made_up_part())
    again = Journal(tmp_path)
    again.begin([to_toml(CONFIG)], FINGERPRINT)
    assert again.seconds < 100
    again.parts(0)
    assert 1000 <= again.seconds < 1100


@pytest.mark.parametrize(
    "other", [{"data": "xyz", "weights file": [{"victim": "1"}]}, {"data": "abc", "weights file": [{"victim": "2"}]}]
)
def test_what_was_begun_with_something_else_is_not_continued(tmp_path, other):
    Journal(tmp_path).begin([to_toml(CONFIG)], FINGERPRINT)
    Journal(tmp_path).begin([to_toml(CONFIG)], FINGERPRINT)
    (changed,) = [key for key in other if other[key] != FINGERPRINT[key]]
    with pytest.raises(ConfigError, match=f"was begun with another {changed}"):
        Journal(tmp_path).begin([to_toml(CONFIG)], other)


def test_a_choice_is_kept(tmp_path):
    journal = Journal(tmp_path)
    journal.begin([to_toml(CONFIG)], FINGERPRINT)
    assert journal.choice("crafting") is None
    journal.choose("crafting", {"name": "bf16", "figures": {"time": 0.5}})
    assert Journal(tmp_path).choice("crafting") == {"name": "bf16", "figures": {"time": 0.5}}


def test_the_configs_come_back_and_nothing_is_left_in_the_end(tmp_path):
    run = tmp_path / "moved"
    run.mkdir()
    journal = Journal(run)
    journal.begin([to_toml(CONFIG)], FINGERPRINT)
    journal.keep(0, 0, made_up_part())
    (run / ".report.json.abcd1234.part").write_text("cut off")
    assert is_unfinished(run)
    assert find_unfinished(run) == [attrs.evolve(CONFIG, out=str(run))]
    journal.finish()
    (run / "report.json").write_text("{}")
    assert sorted(path.name for path in run.iterdir()) == ["report.json"]
    assert find_unfinished(run) == []


def test_several_arms_are_found_in_their_common_folder(tmp_path):
    configs = [attrs.evolve(CONFIG, purifier=name, out=f"runs/x/{name}") for name in ("dae", "apudae")]
    (tmp_path / "dae").mkdir()
    Journal(tmp_path / "dae").begin([to_toml(each) for each in configs], FINGERPRINT)
    found = find_unfinished(tmp_path)
    assert [each.purifier for each in found] == ["dae", "apudae"]
    assert [each.out for each in found] == [str(tmp_path / "dae"), str(tmp_path / "apudae")]


@pytest.mark.parametrize("keep", [Journal.announce, lambda journal, texts: journal.begin(texts, FINGERPRINT)])
def test_an_arm_that_is_not_the_first_stands_for_the_run_of_all_arms(tmp_path, keep):
    configs = [attrs.evolve(CONFIG, purifier=name, out=f"runs/x/{name}") for name in ("dae", "apudae")]
    for name in ("another", "apudae", "broken/unfinished", "dae"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "broken" / "unfinished" / "run.json").write_text("{")  # beside it, and none of its own
    keep(Journal(tmp_path / "dae"), [to_toml(each) for each in configs])
    (tmp_path / "apudae" / "config.toml").write_text(to_toml(configs[1]))
    found = find_unfinished(tmp_path / "apudae")
    assert [each.out for each in found] == [str(tmp_path / "dae"), str(tmp_path / "apudae")]
    with pytest.raises(ConfigError, match="holds nothing yet"):
        find_unfinished(tmp_path / "another")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"configs": 3, "fingerprint": {}}', json.dumps({"configs": []})])
def test_a_damaged_table_of_contents_is_one_clear_error(tmp_path, text):
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "run.json").write_text(text)
    with pytest.raises(ConfigError, match="is damaged"):
        find_unfinished(tmp_path)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds nothing yet"):
        find_unfinished(tmp_path)
    with pytest.raises(ConfigError, match="there is no run folder"):
        find_unfinished(tmp_path / "missing")


def test_examples_are_trimmed_to_those_that_the_whole_row_shows():
    parts = [made_up_part(10 * place, failures=place % 3, others=2 - place % 3) for place in range(9)]
    kept = Trimmed()
    for part in parts:
        kept.add(part)
    whole, trimmed = merge(parts), merge(kept.parts)
    assert same(whole.example, trimmed.example)
    assert whole.failures == trimmed.failures == EXAMPLES
    assert sum(len(part.example.keys) for part in kept.parts) == 2 * EXAMPLES
    assert all(len(part.example.keys) == 0 for part in kept.parts[6:])


def test_a_flipped_bit_in_a_batch_is_noticed(tmp_path):
    journal = Journal(tmp_path)
    journal.begin([to_toml(CONFIG)], FINGERPRINT)
    for place in range(2):
        journal.keep(0, place, made_up_part(place))
    path = tmp_path / "unfinished" / "000-000001.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert len(journal.parts(0)) == 1 and journal.damaged == 1


def test_a_lost_table_of_contents_does_not_make_a_run_complete(tmp_path):
    journal = Journal(tmp_path)
    journal.begin([to_toml(CONFIG)], FINGERPRINT)
    journal.keep(0, 0, made_up_part())
    (tmp_path / "config.toml").write_text(to_toml(CONFIG))
    (tmp_path / "report.json").write_text('{"partial": true}')
    (tmp_path / "unfinished" / "run.json").unlink()
    with pytest.raises(ConfigError, match=r"is not complete.*defend run --config .*config.toml"):
        find_unfinished(tmp_path)
    again = Journal(tmp_path)
    again.begin([to_toml(CONFIG)], FINGERPRINT)
    assert again.parts(0) == [], "batches of nobody knows which run were taken up"


def test_arms_that_were_only_announced_come_back_all_of_them(tmp_path):
    configs = [attrs.evolve(CONFIG, purifier=name, out=f"runs/x/{name}") for name in ("dae", "apudae")]
    Journal(tmp_path / "dae").announce([to_toml(each) for each in configs])
    (tmp_path / "dae" / "config.toml").write_text(to_toml(configs[0]))
    assert [each.purifier for each in find_unfinished(tmp_path)] == ["dae", "apudae"]


@pytest.mark.parametrize("helper", [False, True])
def test_the_code_of_a_package_is_told_apart_by_its_source(tmp_path, monkeypatch, helper):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "made_up_helper.py").write_text("def half(x):\n    return x / 2\n")
    (tmp_path / "made_up_stage.py").write_text("from made_up_helper import half\n\ndef build():\n    return half(1)\n")
    importlib.invalidate_caches()
    importlib.import_module("made_up_stage")
    before = code_of("made_up_stage")
    assert {"defend", "made_up_stage", "made_up_helper"} <= before.keys() and "torch" not in before
    changed = "made_up_helper" if helper else "made_up_stage"
    (tmp_path / f"{changed}.py").write_text("# something else\n")
    after = code_of("made_up_stage")
    assert [name for name in before if before[name] != after[name]] == [changed]
    for name in ("made_up_helper", "made_up_stage"):
        del sys.modules[name]
