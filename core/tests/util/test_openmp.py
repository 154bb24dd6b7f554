"""How OpenMP's threads wait: asleep beside other work, unless the user has said how, and as they come otherwise."""

import os
import subprocess
import sys

import pytest

from defend.util import openmp


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    for name in (openmp.THREADS, *openmp.CHOSEN_BY_USERS):
        monkeypatch.setenv(name, "")  # so that what is set here is undone
        monkeypatch.delenv(name)
    monkeypatch.setattr(openmp, "count_cores", lambda: 2)
    monkeypatch.setattr(openmp, "count_granted", lambda: openmp.count_cores())


def test_threads_sleep_beside_a_neighbour_and_spin_alone():
    openmp.prepare(0)
    assert openmp.POLICY not in os.environ and openmp.THREADS not in os.environ
    openmp.prepare(1)
    assert os.environ[openmp.POLICY] == "PASSIVE" and openmp.THREADS not in os.environ


@pytest.mark.parametrize(("threads", "neighbours", "sleep"), [("1", 5, False), ("2", 1, True), ("many", 1, True)])
def test_only_threads_that_share_cores_sleep(monkeypatch, threads, neighbours, sleep):
    monkeypatch.setenv(openmp.THREADS, threads)
    openmp.prepare(neighbours)
    assert (openmp.POLICY in os.environ) is sleep and os.environ[openmp.THREADS] == threads


@pytest.mark.parametrize(("neighbours", "sleep"), [(1, False), (2, True)])
def test_a_core_left_free_is_room_for_a_neighbour(monkeypatch, neighbours, sleep):
    monkeypatch.setattr(openmp, "count_cores", lambda: 4)
    monkeypatch.setenv(openmp.THREADS, "3")
    openmp.prepare(neighbours)
    assert (openmp.POLICY in os.environ) is sleep


@pytest.mark.parametrize("name", openmp.CHOSEN_BY_USERS)
def test_what_the_user_has_said_stays(monkeypatch, name):
    monkeypatch.setenv(name, "ACTIVE")
    openmp.prepare(9)
    assert {each: os.environ.get(each) for each in openmp.CHOSEN_BY_USERS} == {
        each: "ACTIVE" if each == name else None for each in openmp.CHOSEN_BY_USERS
    }


@pytest.mark.parametrize(
    ("granted", "asked", "threads", "sleep"),
    [(3, None, "3", False), (1, None, "1", False), (16, None, None, False), (2, "4", "4", True)],
)
def test_a_container_has_as_many_threads_as_its_quota_of_cores(monkeypatch, granted, asked, threads, sleep):
    monkeypatch.setattr(openmp, "count_cores", lambda: 16)
    monkeypatch.setattr(openmp, "count_granted", lambda: granted)
    if asked is not None:
        monkeypatch.setenv(openmp.THREADS, asked)
    openmp.prepare(0)
    assert os.environ.get(openmp.THREADS) == threads and (openmp.POLICY in os.environ) is sleep


def test_the_program_asks_before_torch_comes():
    # torch reads the variable once, so a later one would be in vain
    script = """if True:
        import sys
        from defend import __main__
        from defend.util import cores, openmp
        cores.count_neighbours = lambda: 99
        openmp.prepare = lambda n: print(n, "torch" in sys.modules)
        sys.argv = ["defend", "--version"]
        __main__.start()
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == "99 False"
