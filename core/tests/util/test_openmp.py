"""How OpenMP's threads wait: asleep beside other work, unless the user has said how, and as they come otherwise."""

import os
import subprocess
import sys

import pytest

from defend.util import openmp


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    for name in ("OMP_NUM_THREADS", *openmp.CHOSEN_BY_USERS):
        monkeypatch.setenv(name, "")  # so that what is set here is undone
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1}, raising=False)


@pytest.mark.parametrize(
    ("said", "neighbours"),
    [("0.05 0.1 0.2 1/89 17938\n", 0), ("2.11 2.05 1.89 3/89 17938\n", 2), ("0 0 0 0/89 1\n", 0), ("nonsense\n", 0)],
)
def test_who_runs_beside_us_is_counted(tmp_path, said, neighbours):
    load = tmp_path / "loadavg"
    load.write_text(said)
    assert openmp.count_neighbours(load) == neighbours


def test_a_machine_that_does_not_say_is_quiet(tmp_path):
    assert openmp.count_neighbours(tmp_path / "none") == 0


@pytest.mark.skipif(not openmp.LOAD.exists(), reason="Linux says who runs")
def test_a_busy_process_is_seen():
    busy = subprocess.Popen([sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE)
    try:
        busy.stdout.readline()
        assert openmp.count_neighbours() >= 1
    finally:
        busy.kill()
        busy.communicate()


def test_threads_sleep_beside_a_neighbour_and_spin_alone():
    assert not openmp.wait_passively_beside(0) and "OMP_WAIT_POLICY" not in os.environ
    assert openmp.wait_passively_beside(1) and os.environ["OMP_WAIT_POLICY"] == "PASSIVE"


@pytest.mark.parametrize(("threads", "neighbours", "sleep"), [("1", 5, False), ("2", 1, True), ("many", 1, True)])
def test_only_threads_that_share_cores_sleep(monkeypatch, threads, neighbours, sleep):
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    assert openmp.wait_passively_beside(neighbours) is sleep


def test_a_core_left_free_is_room_for_a_neighbour(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(4)), raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert not openmp.wait_passively_beside(1) and openmp.wait_passively_beside(2)


@pytest.mark.parametrize("name", openmp.CHOSEN_BY_USERS)
def test_what_the_user_has_said_stays(monkeypatch, name):
    monkeypatch.setenv(name, "ACTIVE")
    assert not openmp.wait_passively_beside(9) and os.environ[name] == "ACTIVE"


def test_the_program_asks_before_torch_comes():
    # torch reads the variable once, so a later one would be in vain
    script = """if True:
        import sys
        from defend import __main__
        from defend.util import openmp
        openmp.count_neighbours = lambda: 99
        openmp.wait_passively_beside = lambda n: print(n, "torch" in sys.modules)
        sys.argv = ["defend", "--version"]
        __main__.start()
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == "99 False"
