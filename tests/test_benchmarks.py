"""The frame of `benchmarks/`, with made-up contenders, and its smallest workload at a tiny scale."""

import io
import json
import math

import attrs
import pytest
import torch
from benchmarks import __main__ as command
from benchmarks import cw, peers, pgd, square, victims
from benchmarks.contest import Bar, Result, Scale, Timing, alone, compete, find_installed, ratio
from rich.console import Console

CPU = torch.device("cpu")
TINY = Scale(rounds=1, images=4, quick=True, device=CPU, peers=("torchattacks", "foolbox"))
MADE_UP = Result(
    "0 made up",
    "two sleepers",
    "ms a nap",
    (Timing("floor", (1, 2)), Timing("ours", (0.5, 1))),
    (Bar("as fast", 0.5, 1.0, "at most"), Bar("as strong", math.nan, 0.0, "at least")),
    {"accuracy": {"ours": 0.25, "theirs": math.inf}},
    ("slept [well]",),
)


# The contest


def test_contenders_run_in_turn_after_a_warm_up():
    calls = []
    work = {name: (lambda name=name: calls.append(name)) for name in "ABC"}
    timings = compete(work, per=1, rounds=2, device=CPU, warm_up=1)
    assert "".join(calls) == "ABC" * 3
    assert [(one.name, len(one.rounds)) for one in timings] == [("A", 2), ("B", 2), ("C", 2)]


def test_times_are_milliseconds_of_the_unit(monkeypatch):
    seconds = iter([9.0, 9.0, 0.1, 0.4, 0.3, 0.2])
    monkeypatch.setattr("benchmarks.contest.timed", lambda work, device: (None, next(seconds)))
    first, second = compete({"A": print, "B": print}, per=100, rounds=2, device=CPU)
    assert first.rounds == pytest.approx((1, 3)) and second.rounds == pytest.approx((4, 2))
    assert (first.median, first.least, first.most) == pytest.approx((2, 1, 3))


@pytest.mark.parametrize(("contenders", "rounds"), [({}, 1), ({"A": print}, 0)])
def test_a_contest_of_nothing_is_refused(contenders, rounds):
    with pytest.raises(ValueError, match="measures nothing"):
        compete(contenders, per=1, rounds=rounds, device=CPU)


def test_a_ratio_is_the_median_of_the_rounds_own():
    timings = (Timing("ours", (1, 10, 100)), Timing("theirs", (1, 5, 200)))
    assert ratio(timings, "ours", "theirs") == 1  # 1, 2 and 0.5; the medians' own ratio is 2
    assert ratio(timings, "theirs", "ours") == 1
    with pytest.raises(KeyError, match="'floor' among ours, theirs"):
        ratio(timings, "ours", "floor")


@pytest.mark.parametrize(
    ("figure", "kind", "met"),
    [
        (1.0, "at most", True),
        (1.01, "at most", False),
        (1.0, "at least", True),
        (0.99, "at least", False),
        (math.nan, "at most", False),
        (math.nan, "at least", False),
    ],
)
def test_a_bar_holds_its_promise_or_not(figure, kind, met):
    assert Bar("it", figure, 1.0, kind).met is met


def test_a_bar_is_of_one_of_two_kinds():
    with pytest.raises(ValueError, match="at about"):
        Bar("it", 1.0, 1.0, "at about")


def test_a_process_of_its_own_returns_what_it_prints_last(tmp_path):
    (tmp_path / "told.py").write_text(
        "import json, os, sys\nprint('first')\nprint(json.dumps({'got': sys.argv[1:], 'set': os.environ['TOLD']}))\n"
    )
    (tmp_path / "broken.py").write_text("raise SystemExit('it is broken')\n")
    env = {"PYTHONPATH": str(tmp_path), "TOLD": "yes"}
    assert alone("told", "a", "b", env=env) == {"got": ["a", "b"], "set": "yes"}
    with pytest.raises(RuntimeError, match=r"broken .*ended with 1.*it is broken"):
        alone("broken", env=env)


# The command


def test_the_command_prints_writes_and_draws(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "results", lambda name, scale: iter([MADE_UP]))
    monkeypatch.setattr(command, "find_installed", lambda: ("foolbox",))
    json_file, plot = tmp_path / "all.json", tmp_path / "all.png"
    assert command.main(["pgd", "--quick", "--device", "cpu", "--json", str(json_file), "--plot", str(plot)]) == 0
    printed = capsys.readouterr().out
    for part in ("0 made up: two sleepers", "met as fast: 0.5, at most 1", "MISSED as strong", "1 of 2 bars met"):
        assert part in printed
    assert "slept [well]" in printed and "ours 0.25" in printed
    assert "not installed: torchattacks, adversarial-robustness-toolbox, pyautoattack" in " ".join(printed.split())
    document = json.loads(json_file.read_text())
    (result,) = document["results"]
    assert [(one["name"], one["median"], one["ratio"]) for one in result["timings"]] == [
        ("floor", 1.5, 1.0),
        ("ours", 0.75, 0.5),
    ]
    assert result["timings"][0]["rounds"] == [1, 2]
    assert [bar["met"] for bar in result["bars"]] == [True, False]
    assert result["bars"][1]["figure"] is None and result["figures"]["accuracy"] == {"ours": 0.25, "theirs": None}
    assert document["scale"] == "quick" and document["threads"] >= 1 and document["versions"]["torch"]
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_json_is_whole_after_every_result(tmp_path, monkeypatch):
    path, seen = tmp_path / "all.json", []

    def results(name, scale):
        yield MADE_UP
        seen.append(len(json.loads(path.read_text())["results"]))
        yield attrs.evolve(MADE_UP, title="three sleepers")

    monkeypatch.setattr(command, "results", results)
    assert command.main(["pgd", "--device", "cpu", "--json", str(path)]) == 0
    assert seen == [1] and len(json.loads(path.read_text())["results"]) == 2


def test_a_run_goes_on_with_what_an_earlier_one_wrote(tmp_path, monkeypatch, capsys):
    path, asked = tmp_path / "all.json", []

    def results(name, scale):
        asked.append((name, scale.kept))
        if MADE_UP.title not in scale.kept:
            yield attrs.evolve(MADE_UP, workload=name)
        if name == "others" and len(asked) == 2:
            yield attrs.evolve(MADE_UP, workload=name, title="five sleepers: left out")
            raise KeyboardInterrupt
        yield attrs.evolve(MADE_UP, workload=name, title=f"the rest of {name}")

    monkeypatch.setattr(command, "results", results)
    request = ["pgd", "others", "cw", "--device", "cpu", "--quick", "--json", str(path), "--resume"]
    with pytest.raises(KeyboardInterrupt):
        command.main(request)
    cut = json.loads(path.read_text())
    assert cut["finished"] == ["pgd"] and not cut["complete"] and len(cut["results"]) == 4
    assert command.main(request) == 0
    assert "kept from" in capsys.readouterr().out
    assert [name for name, _ in asked] == ["pgd", "others", "others", "cw"], "what had ended is not begun again"
    assert asked[0][1] == set() and asked[2][1] == {MADE_UP.title, "the rest of pgd"}
    whole = json.loads(path.read_text())
    assert whole["complete"] and whole["finished"] == ["pgd", "others", "cw"]
    assert [one["title"] for one in whole["results"]] == [
        MADE_UP.title,
        "the rest of pgd",
        MADE_UP.title,
        "the rest of others",
        "the rest of cw",
    ]
    assert whole["results"][0] == cut["results"][0], "a kept result is written as it was"


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({"threads": 999}, "was measured with threads 999"),
        ({"versions": {"torch": "1.0"}}, "was measured with versions"),
        ({"results": [{"title": "half"}]}, "is not what `python -m benchmarks --json` writes"),
        (None, "is not what `python -m benchmarks --json` writes"),
    ],
)
def test_what_was_measured_elsewhere_is_not_gone_on_with(written, said, tmp_path, monkeypatch, capsys):
    path = tmp_path / "all.json"
    monkeypatch.setattr(command, "results", lambda name, scale: iter([MADE_UP]))
    request = ["pgd", "--device", "cpu", "--json", str(path)]
    assert command.main(request) == 0
    path.write_text(json.dumps({**json.loads(path.read_text()), **written}) if written else "no JSON")
    before = path.read_text()
    assert command.main([*request, "--resume"]) == 2
    error = capsys.readouterr().err
    assert said in " ".join(error.split()) and path.read_text() == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pdg"], "'pdg': expected one of pgd, cw"),
        (["--rounds", "0"], "--rounds 0"),
        (["--device", "abacus"], "abacus"),
        (["--json", "nowhere/all.json"], "no folder nowhere"),
        (["--resume"], "--resume: expected --json FILE"),
    ],
)
def test_a_wrong_request_is_one_line_and_exit_code_2(arguments, said, capsys):
    try:
        code = command.main(arguments)
    except SystemExit as end:
        code = end.code
    assert code == 2 and said in " ".join(capsys.readouterr().err.split())


def test_a_result_without_timings_is_shown():
    written = io.StringIO()
    command.show(Result("0", "memory", "MiB", figures={"peak": 12.5}), Console(file=written))
    assert "peak: 12.5" in written.getvalue()


# The workloads


@pytest.fixture(scope="module")
def network():
    return victims.build_untrained("resnet20")


def test_the_untrained_victim_is_seeded_and_has_batch_norms_at_work(network):
    again = victims.build_untrained("resnet20")
    for name, value in network.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    norms = [part for part in network.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    assert len(norms) > 10 and not network.training
    for norm in norms:
        assert norm.running_mean.std() > 0 and norm.running_var.std() > 0 and norm.weight.std() > 0
    logits = network(victims.pictures(8))
    assert torch.isfinite(logits).all() and not any(value.requires_grad for value in network.parameters())


def test_peers_get_a_copy_with_gradients_and_the_attack_they_should(network):
    images = victims.pictures(4)
    labels = network(images).argmax(1)
    counting = peers.Counting(network)
    how = peers.Pgd(eps=8 / 255, step=2 / 255, steps=2)
    found = peers.pgd(counting, victims.SHAPE, how, 4, tuple(name for name in find_installed() if name != "art"))
    for name, craft in found.items():
        counting.seen.clear()
        moved = (peers.in_batches(craft, images, labels, 2) - images).abs().amax()
        assert 0 < moved <= how.eps + 1e-6, name
        assert 2 * len(images) * how.steps >= sum(counting.seen) >= len(images) * how.steps, name
        assert set(counting.seen) == {2}, name
    assert not any(value.requires_grad for value in network.parameters())


def test_pgd_at_a_tiny_scale(monkeypatch):
    pytest.importorskip("torchattacks")
    pytest.importorskip("foolbox")
    monkeypatch.setattr(pgd, "STEPS", 2)
    monkeypatch.setattr(pgd, "HOW", peers.Pgd(pgd.EPS, pgd.EPS / 2, steps=2))
    result = pgd.time_fixed_steps("resnet20", TINY, 4)
    names = [one.name for one in result.timings]
    assert names[0] == pgd.FLOOR and {pgd.AS_BUILT, pgd.FAST, "torchattacks", "foolbox"} <= set(names)
    assert [bar.what for bar in result.bars if bar.kind == "at most"][-1].endswith("the floor")


def test_the_memory_that_an_attack_adds_is_that_of_its_own_process():
    assert alone("benchmarks.pgd", pgd.FLOOR, "resnet20", "16", "cpu")["mib"] > 5


def test_ours_takes_the_steps_of_the_floor(network):
    """What is timed as the floor and as ours is the same attack, but for the projection to ball and box."""
    images = 0.25 + victims.pictures(4) / 2
    labels = network(images).argmax(1)
    how = peers.Pgd(eps=1.0, step=1e-3, steps=3, random_start=False)
    craft = pgd.ours(network, "exact", images, how=how)
    bare = images
    for _ in range(how.steps):
        bare = bare + how.step * torch.sign(pgd.floor(network, bare, labels, 1) - bare)
    torch.testing.assert_close(craft(images, labels), bare, atol=1e-6, rtol=0)


def test_strength_is_judged_by_the_plain_module():
    class Threshold(torch.nn.Module):
        def forward(self, images):
            mean = images.flatten(1).mean(1)
            return torch.stack([0.5 - mean, mean - 0.5], 1)

    module, images, labels = Threshold(), torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64)
    moved = torch.stack([torch.ones(1, 2, 2), torch.full((1, 2, 2), 0.1)])
    distance = cw.distances(module, images, moved, labels)
    assert distance.tolist() == [2.0, math.inf]
    assert square.still_right(module, moved, labels).tolist() == [False, True]
