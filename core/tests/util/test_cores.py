"""Who wants the machine's cores, and how many of them a container grants."""

import math
import os
import subprocess
import sys

import pytest

from defend.util import cores


@pytest.mark.parametrize(
    ("said", "neighbours"),
    [("0.05 0.1 0.2 1/89 17938\n", 0), ("2.11 2.05 1.89 3/89 17938\n", 2), ("0 0 0 0/89 1\n", 0), ("nonsense\n", 0)],
)
def test_who_runs_beside_us_is_counted(tmp_path, said, neighbours):
    load = tmp_path / "loadavg"
    load.write_text(said)
    assert cores.count_neighbours(load) == neighbours


def test_a_machine_that_does_not_say_is_quiet(tmp_path):
    assert cores.count_neighbours(tmp_path / "none") == 0


@pytest.mark.skipif(not cores.LOAD.exists(), reason="Linux says who runs")
def test_a_busy_process_is_seen():
    busy = subprocess.Popen([sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE)
    try:
        busy.stdout.readline()
        assert cores.count_neighbours() >= 1
    finally:
        busy.kill()
        busy.communicate()


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        (
            "0::/a/b\n",
            {"cpu.max": "max 100000\n", "a/cpu.max": "200000 100000\n", "a/b/cpu.max": "400000 100000\n"},
            2.0,
        ),
        ("0::/\n", {"cpu.max": "max 100000\n"}, math.inf),
        (
            "5:memory:/x\n4:cpu,cpuacct:/x\n0::/\n",
            {"cpu,cpuacct/x/cpu.cfs_quota_us": "50000\n", "cpu,cpuacct/x/cpu.cfs_period_us": "100000\n"},
            0.5,
        ),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        ("1:cpu:/gone\n", {"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3.0),
        ("2:cpuset:/\n", {"cpuset/cpu.max": "1 1\n"}, math.inf),
        ("0::/\n", {"cpu.max": "nonsense\n"}, math.inf),
        ("no group\n\n0::/a:b\n", {"a:b/cpu.max": "100000 100000\n"}, 1.0),
        ("0::/\udcff\n", {"cpu.max": "200000 100000\n"}, 2.0),
    ],
)
def test_the_least_quota_around_a_process_holds(tmp_path, own, files, quota):
    (tmp_path / "own").write_bytes(os.fsencode(own))  # a group's name may be any bytes
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(text)
    assert cores.find_quota(tmp_path / "groups", tmp_path / "own") == quota


def test_without_groups_there_is_no_quota(tmp_path):
    assert cores.find_quota(tmp_path, tmp_path / "none") == math.inf


@pytest.mark.parametrize(("quota", "granted"), [(math.inf, 8), (2.5, 3), (0.2, 1), (64.0, 8)])
def test_a_quota_of_cores_is_rounded_up(monkeypatch, quota, granted):
    monkeypatch.setattr(cores, "count_cores", lambda: 8)
    monkeypatch.setattr(cores, "find_quota", lambda: quota)
    assert cores.count_granted() == granted
