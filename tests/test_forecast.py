"""A plan is printed and nothing is done; a budget is kept in the settings, and said in the report."""

import json
import tomllib

RUN = (
    *("run", "--victim", "resnet20", "--purifier", "jpeg", "--limit", "12", "--batch-size", "4", "--no-store"),
    *("--attack", "pgd", "--threat", "oblivious", "--threat", "adaptive", "--checks", "none", "--quiet"),
)


def test_a_plan_is_told_and_leaves_nothing(defend, refused, tmp_path):
    answer = defend(*RUN, "--plan", "--json")
    assert answer.code == 0, answer.error
    rows = answer.json["rows"]
    assert [(row["attack"], row["images"]) for row in rows] == [("none", 12), ("pgd", 12), ("pgd", 12)]
    assert 0 < sum(row["seconds"] for row in rows) < answer.json["seconds"]
    assert not (tmp_path / "runs").exists()
    assert "leave it out" in refused(*RUN, "--plan", "--train-missing")
    for gate in (("--gate",), ("--at-least", "0.5"), ("--junit", "checks.xml"), ("--log", "csv")):
        assert f"{gate[0]} is of a run, and --plan runs nothing" in refused(*RUN, "--plan", *gate)
    assert "shards cannot agree" in refused(*RUN, "--shard", "1/2", "--budget", "10m")
    assert "too short" in refused(*RUN, "--budget", "0.1s")
    assert not list(tmp_path.glob("runs/*"))


def test_a_budget_chooses_images_and_steps_and_says_so(defend, tmp_path):
    answer = defend(*RUN, "--budget", "10h", "--json", "--out", "run")
    assert answer.code == 0, answer.error
    adaptive = answer.json["rows"][-1]
    assert (adaptive["n"], adaptive["steps"]) == (12, 20), "all images, and the attack's own steps"
    assert any("To fit a budget of 10h" in note and "12 images" in note for note in answer.json["notes"])
    kept = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    assert (kept["budget"], kept["adaptive_limit"], kept["adaptive_steps"]) == ("10h", 12, 20)
    assert json.loads((tmp_path / "run" / "report.json").read_text())["config"]["budget"] == "10h"
