"""The workloads 3 to 6 of `benchmarks/`: that floors and plain versions compute what ours computes; tiny."""

import gc
import importlib.metadata
import json
import math
import sys
from pathlib import Path

import attrs
import benchmarks
import pytest
import torch
from benchmarks import (
    experiment,
    launch,
    neighbours,
    others,
    peers,
    purifiers,
    small_files,
    small_maps,
    start,
    thousand,
    unrolled,
    whole_job,
)
from benchmarks.contest import Scale, alone
from torch import nn

from defend.assembly.matrices import WholeMap
from defend.assembly.prepare import prepare
from defend.datasets import digits
from defend.defence import Defence
from defend.options import NoOptions
from defend.plugins import forget_installed
from defend.stages import Task

ROOT = Path(benchmarks.__file__).parents[1]
CPU = torch.device("cpu")
TINY = Scale(rounds=1, images=2, quick=True, device=CPU, peers=())
GREY = Task("made_up", 1, 8, 8, 3)


@pytest.fixture
def small_apudae():
    return purifiers.build("apudae", GREY, CPU, depth=4, width=4, variant="A", steps=3)


@pytest.fixture
def images():
    return purifiers.pictures(TINY, GREY)


@pytest.fixture
def garbage_stays(monkeypatch):
    """Collecting it takes long in a process with as many modules as this one."""
    monkeypatch.setattr(gc, "collect", lambda: 0)


def prepared(purifier, images):
    return prepare(Defence(nn.Identity(), purifier), "fp32", images)[0].purifier


def passes(module):
    seen = []
    module.register_forward_hook(lambda *_: seen.append(1))
    return seen


# Workload 3


def test_the_floor_of_apudae_takes_as_many_gradients_as_its_steps(small_apudae, images):
    seen = passes(small_apudae.dae)
    purifiers.gradients(small_apudae.dae, images, 3)
    floor = len(seen)
    purifiers.purify(small_apudae, images)
    assert (floor, len(seen) - floor) == (3, 3)


def test_the_floor_of_apudae_takes_the_gradient_that_a_step_follows(small_apudae, images):
    one = purifiers.build("apudae", GREY, CPU, depth=4, width=4, variant="A", steps=1, step_size=0.01)
    slope = purifiers.gradients(one.dae, images, 1)
    expected = (images - 0.01 * slope.sign()).clamp(0, 1)
    assert slope.abs().amin() > 0
    torch.testing.assert_close(purifiers.purify(one, images), expected)


@pytest.mark.parametrize("ready", [False, True])
def test_ten_naive_passes_of_puvae_are_what_it_computes(images, ready):
    plain = purifiers.build("puvae", GREY, CPU, width=4, hidden=8, latent=4)
    seen = passes(plain.network.trunk)
    torch.manual_seed(5)
    naive = purifiers.reconstructions(plain, images)
    assert len(seen) == GREY.classes
    ours = prepared(plain, images) if ready else plain
    torch.manual_seed(5)
    torch.testing.assert_close(purifiers.purify(ours, images), naive)


def test_a_contest_of_purifiers_promises_what_it_was_told(small_apudae, images, monkeypatch, garbage_stays):
    monkeypatch.setattr(purifiers, "explain_unsupported", lambda device: "it is a toaster")
    times = []
    floor = ("nothing", lambda: times.append(1))
    result = purifiers.contest(TINY, "made up", small_apudae, images, floor, 0.5, 0.25, times=3)
    assert [one.name for one in result.timings] == ["nothing", "ours"]
    assert len(times) == 6  # a warm-up and a round
    (bar,) = result.bars
    assert (bar.bound, bar.kind) == (0.5, "at most")
    assert bar.figure == pytest.approx(result.timings[1].median / result.timings[0].median)
    assert result.notes == ("bf16 left out: it is a toaster",)
    monkeypatch.setattr(purifiers, "explain_unsupported", lambda device: None)
    result = purifiers.contest(TINY, "made up", small_apudae, images, floor, 0.5, 0.25)
    assert [bar.bound for bar in result.bars] == [0.5, 0.25]


# Workload 5


@pytest.mark.parametrize("ready", [False, True])
def test_the_naive_unroll_has_the_values_and_the_gradient_of_ours(small_apudae, images, ready):
    naive = unrolled.NaiveUnroll(small_apudae)
    ours = prepared(small_apudae, images) if ready else small_apudae
    with torch.no_grad():
        torch.testing.assert_close(naive(images), ours(images))
    weights = torch.linspace(-1, 1, images.numel()).view_as(images)
    slopes = []
    for module in (naive, ours):
        point = images.clone().requires_grad_()
        slopes.append(torch.autograd.grad((module(point) * weights).sum(), point)[0])
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(slopes[0], weights, atol=1e-2)  # the steps themselves have a slope


def found(naive_at_six):
    one = {way: {"mib": 100.0, "seconds": 2.0} for way in ("naive", "ours")}
    return {
        ("naive", 2): [one["naive"]],
        ("ours", 2): [one["ours"]],
        ("naive", 6): [naive_at_six],
        ("ours", 6): [{"mib": 150.0, "seconds": 3.0}],
    }


def test_unrolled_memory_and_time_are_held_against_their_bars():
    both = found({"mib": 400.0, "seconds": 4.0})
    (bar,) = unrolled.compare(both, 6, 2).bars
    assert (bar.figure, bar.met) == (0.75, True)
    (bar,) = unrolled.compare(found({"mib": 400.0, "seconds": 2.0}), 6, 2).bars
    assert (bar.figure, bar.met) == (1.5, False)
    grown = unrolled.grown(both, (2, 6), 2)
    assert [bar.figure for bar in grown.bars] == [1.5]
    assert grown.figures["naive, MiB added by steps"] == {"2": 100.0, "6": 400.0}


def test_a_naive_unroll_that_does_not_fit_is_left_out():
    short = found({"mib": None, "seconds": None})
    result = unrolled.compare(short, 6, 2)
    assert [one.name for one in result.timings] == ["ours"]
    assert not result.bars
    assert "memory" in result.notes[0]
    assert unrolled.grown(short, (2, 6), 2).figures["naive, MiB added by steps"] == {"2": 100.0}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process forget its peak")
def test_the_peak_of_this_process_is_seen_and_forgotten():
    before = unrolled.forget_peak(False)
    block = torch.ones(64 * 2**20, dtype=torch.uint8)
    assert 60 < unrolled.peak(False) - before < 90
    del block
    assert unrolled.forget_peak(False) - before < 30


# Workload 4


def test_a_launched_process_is_measured_apart_from_this_one():
    held = torch.ones(300 * 2**20, dtype=torch.uint8)  # which a process started from here would seem to have held
    small = alone("benchmarks.launch", sys.executable, "-c", "print(7)", env={"PYTHONPATH": str(ROOT)})
    assert (small["code"], small["out"]) == (0, "7\n")
    assert 0 < small["mib"] < 100 < held.numel() / 2**20
    assert small["seconds"] > 0


def test_a_launched_process_that_fails_says_so(tmp_path, monkeypatch):
    ended = launch.measure([sys.executable, "-c", "import sys; sys.exit('burnt')"])
    assert (ended["code"], ended["error"]) == (1, "burnt\n")
    monkeypatch.setattr(whole_job, "alone", lambda *arguments, env: ended)
    with pytest.raises(RuntimeError, match="defend ended with 1: burnt"):
        whole_job.in_process("defend", ["list"], tmp_path)


def test_a_thousand_digits_are_the_test_digits_and_the_same_moved():
    images, labels = thousand.tensors(1000)
    assert images.shape == (1000, 1, 28, 28)
    made = thousand.build(NoOptions())
    known = digits.build(NoOptions())
    pixels, original = (one.pixels("test", CPU) for one in (made, known))
    assert torch.equal(pixels[:500], original)
    assert torch.equal(pixels[500:, ..., 1:], original[..., :-1])
    assert not pixels[500:, ..., 0].any()
    assert torch.equal(labels.bincount(), 2 * known.labels("test").bincount())
    assert made.statistics() == known.statistics()


@pytest.fixture
def thousand_installed(tmp_path, monkeypatch):
    thousand.install(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    forget_installed()
    yield
    forget_installed()


def test_defend_carries_the_experiment_out(thousand_installed, defend, tmp_path):
    assert thousand.NAME in {point.name for point in importlib.metadata.entry_points(group="defend")}
    out = tmp_path / "out"
    answer = defend(*experiment.defend_arguments(thousand.NAME, 4, "cpu", out, whole_job.weights()))
    assert answer.code == 0, answer.error
    reports = {name: json.loads((out / name / "report.json").read_text()) for name in experiment.PURIFIERS}
    right = whole_job.count(reports)
    assert tuple(right) == ("none", *experiment.ATTACKS)
    assert all(set(by) == {experiment.UNDEFENDED, *experiment.PURIFIERS} for by in right.values())
    assert right["none"][experiment.UNDEFENDED] == 4
    assert right["pgd"][experiment.UNDEFENDED] == right["cw"][experiment.UNDEFENDED] == 0


def test_the_whole_job_is_held_against_each_peer():
    measured = {
        whole_job.OURS: {"seconds": 10.0, "mib": 900.0},
        "foolbox": {"seconds": 40.0, "mib": 1000.0},
        "art": {"seconds": 20.0, "mib": 800.0},
    }
    result = whole_job.judge(measured, {}, 1000, bars=True)
    assert [(round(bar.figure, 3), bar.met) for bar in result.bars] == [
        (4.0, True),
        (0.9, True),
        (2.0, False),
        (1.125, False),
    ]
    assert result.timings[0].median == 10.0
    assert not whole_job.judge(measured, {}, 16, bars=False).bars


# Workload 6


def test_each_start_is_in_a_folder_of_its_own(tmp_path):
    work = start.process(["-c", "open('new', 'x').close()"], str(tmp_path))
    work()
    work()
    assert len(list(tmp_path.glob("*/new"))) == 2


def test_a_start_that_fails_is_no_time(tmp_path):
    with pytest.raises(RuntimeError, match="ended with 3"):
        start.process(["-c", "import sys; sys.exit(3)"], str(tmp_path))()


def test_starts_are_held_against_importing_torch(monkeypatch, garbage_stays):
    asked = []

    def process(arguments, folder, listen=None):
        asked.append(arguments)
        lines = ("row 1 of 6: clean, 100 images\n", 3.0), ("row 2 of 6: noise\n", 5.0)
        return lambda: [listen(*line) for line in lines if listen is not None]

    monkeypatch.setattr(start, "process", process)
    short, whole = start.run(TINY)
    assert [bar.bound for bar in short.bars] == [0.15, 0.1, 1.3]
    assert all(math.isfinite(bar.figure) for bar in short.bars)
    assert asked[-1][:3] == ["-m", "defend", "run"]
    assert not whole.bars  # a look is not the main command
    assert whole.figures == {"seconds until the first row is begun": 3.0}
    _, whole = start.run(attrs.evolve(TINY, quick=False))
    assert [(bar.bound, bar.figure) for bar in whole.bars[1:]] == [(8.0, 5.0)]


def test_what_a_start_says_is_heard_as_it_says_it(tmp_path):
    said = []
    code = "import sys, time; print('one', file=sys.stderr, flush=True); time.sleep(0.5); print('two', file=sys.stderr)"
    start.process(["-c", code], str(tmp_path), listen=lambda *line: said.append(line))()
    (one, after), (two, later) = said
    assert (one, two) == ("one\n", "two\n")
    assert later - after > 0.3


# Workload 14


def test_a_start_takes_what_is_added_to_its_environment(tmp_path):
    start.process(["-c", "import os; open(os.environ['MADE'], 'x')"], str(tmp_path), {"MADE": "here"})()
    assert len(list(tmp_path.glob("*/here"))) == 1


def test_the_neighbour_is_there_in_the_second_half_and_gone_after_it(monkeypatch, garbage_stays):
    kept, busy = [], []
    started = neighbours.subprocess.Popen

    def process(arguments, folder, env):
        kept.append((tuple(env), [one.poll() for one in busy]))
        return lambda: None

    def popen(command):
        busy.append(started(command))
        return busy[-1]

    monkeypatch.setattr(neighbours, "process", process)
    monkeypatch.setattr(neighbours.subprocess, "Popen", popen)
    quiet, beside = neighbours.run(attrs.evolve(TINY, quick=False))
    assert [one.name for one in quiet.timings] == ["ours", "threads that spin", "one thread"]
    three = [(), ("GOMP_SPINCOUNT",), ("OMP_NUM_THREADS",)]
    assert kept == [(names, []) for names in three] + [(names, [None]) for names in three]
    assert not quiet.bars and [bar.bound for bar in beside.bars] == [60.0, 1.05]
    assert busy[0].poll() is not None


# The standard ensemble


def test_the_standard_ensemble_is_timed_and_counted(monkeypatch):
    from benchmarks import standard

    from defend.testing.toys import TASK, TinyVictim, images

    victim, pictures = TinyVictim().requires_grad_(False), images(TASK, 6)
    labels = victim(pictures).argmax(1)
    monkeypatch.setattr(standard, "CIRCLES", 30)
    result = standard.contest("t", victim, pictures, labels, 0.02, TINY)
    assert [one.name for one in result.timings] == list(result.figures["left"]) == ["ours, malt", "ours, rank"]
    result = standard.circles("t", victim, pictures, labels, 0.015)
    assert result.figures["images that differ"] == 0 and result.timings[0].median > 0


# Workload 12


def small_network(classes=3):
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 2, 3, stride=4, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3, padding=1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(8, classes)).eval()


def test_multiplied_and_convolved_maps_are_one_victim(images, garbage_stays):
    ready, _ = prepare(Defence(small_network()), "auto", images)
    plain = small_maps.convolve(ready.victim)
    assert [layer.meets for layer in plain.modules() if isinstance(layer, WholeMap)] == [(0, 0)]
    assert [layer.meets for layer in ready.modules() if isinstance(layer, WholeMap)] == [(2, 2)]
    for way in (small_maps.answer, small_maps.differentiate):
        torch.testing.assert_close(way(plain, images), way(ready.victim, images))
    result = small_maps.contest(TINY, small_network(), images)
    assert "1 layers" in result.title and len(result.timings) == 4


def test_other_logits_are_no_contest(images, monkeypatch, garbage_stays):
    monkeypatch.setattr(small_maps, "convolve", lambda network: nn.Sequential(network, nn.Softmax(1)))
    with pytest.raises(ArithmeticError, match="other logits"):
        small_maps.contest(TINY, small_network(), images)


# Workload 15


def test_small_files_are_opened_and_hashed_to_the_same_both_ways(garbage_stays, tmp_path):
    opened, small, large = small_files.run(TINY)
    assert [len(each.timings) for each in (opened, small, large)] == [2, 2, 2]
    assert "40 files of 3 kB; the other way is in threads" in small.title and "one after the other" in large.title
    files = small_files.write_images(tmp_path, 4)
    decoded = small_files.decode_in_threads(files)
    assert decoded.shape == (4, 3, 32, 32)
    assert small_files.hash_in_threads(files) == small_files.hash_in_order(files) and len(set(files)) == 4


# Workload 13


def test_others_get_what_ours_left_and_count_within_the_budget_alone(monkeypatch, garbage_stays):
    subject = others.Subject("classifier_a", "digits", 6, 0.02)
    seen = {}

    def crafts(whole, shape, eps, budget, batch, peers):
        def negative(images, labels):
            seen["images"], seen["budget"] = images, budget
            return 1 - images

        def gave_up(images, labels):
            raise ValueError("no start")

        return {"beyond": negative, "idle": lambda images, labels: images, "shy": gave_up}

    monkeypatch.setattr(peers, "white_box", crafts)
    result = others.contest(subject, TINY)
    assert len(seen["images"]) == result.figures["left by ours"] > 0
    assert seen["budget"] == result.figures["looks an image"] > 4  # of two attacks
    assert result.figures["fooled of these by"] == {"beyond": 0, "idle": 0}
    # what one of them does not answer is no promise kept
    (bar,) = result.bars
    assert result.notes == ("shy gave up: no start",) and not bar.met
    assert bar.what.endswith("that one of theirs fools (2 of 3 answered)")


def test_an_image_fooled_within_the_budget_is_counted():
    whole = Defence(nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False)))
    with torch.no_grad():
        whole.victim[1].weight.copy_(torch.tensor([[0.0], [1.0]]))
    images, labels = torch.full((2, 1, 1, 1), 0.05), torch.tensor([1, 1])
    attacked = torch.tensor([-0.05, 0.05]).view(2, 1, 1, 1)  # judged where an image can be
    assert others.count_fooled(whole, images, attacked, labels, eps=0.1) == 1
    assert others.count_fooled(whole, images, attacked, labels, eps=0.09) == 0


@pytest.mark.parametrize("library", ["foolbox", "torchattacks", "art", "pyautoattack"])
def test_every_attack_of_a_library_is_set_up_and_stays_within_its_budget(library, images):
    pytest.importorskip(library)
    network = small_network(classes=5)  # their targeted ratio takes four
    crafts = peers.white_box(network, (1, 8, 8), 0.1, budget=12, batch=2, peers=(library,))
    labels = network(images).argmax(1)
    assert crafts
    for name, craft in crafts.items():
        found = craft(images, labels)
        assert found.shape == images.shape, name
        assert float((found.detach() - images).abs().max()) <= 0.1 + 1e-5, name
