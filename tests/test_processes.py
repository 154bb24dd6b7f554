"""A run shared by two processes on gloo: the same records as one process makes, and what happens when one dies."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from defend.records.unfinished import is_unfinished

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the launcher's processes as Linux has them")

PATIENCE = 300  # seconds; beside other work two interpreters alone take a minute to begin
RUN = (
    "run",
    "--victim",
    "resnet20",
    "--purifier",
    "dae",
    "--limit",
    "16",
    "--adaptive-limit",
    "8",
    "--batch-size",
    "4",
    "--threat",
    "oblivious",
    "--threat",
    "query",
    "--threat",
    "adaptive",
    "--attack",
    "pgd",
    "--attack",
    "square",
    "--set",
    "pgd.steps=3",
    "--set",
    "square.queries=10",
    "--eps",
    "0.05,0.1",
    "--no-store",
    "--precision",
    "exact",
    "--checks",
    "none",
)


def launched(*arguments):
    """Start a command in two processes that share its work."""
    torchrun = (
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        "0",
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        "localhost:0",
    )
    return subprocess.Popen(
        [*torchrun, "-m", "defend", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def alone(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "defend", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=True)


def process(launcher, rank):
    """Find the launcher's child of a rank."""
    for folder in Path("/proc").iterdir():
        try:
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if parent == str(launcher) and f"RANK={rank}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                return int(folder.name)
        except (OSError, IndexError):
            continue
    return None


def test_two_processes_share_a_run_and_one_that_is_killed_ends_it_with_a_message(tmp_path):
    alone(*RUN, "--out", tmp_path / "one", "--quiet")
    expected = (tmp_path / "one" / "records.csv").read_bytes()

    out = tmp_path / "two"
    with launched(*RUN, "--out", out) as both:
        begun = time.monotonic()
        while not list(out.glob("unfinished/001-*")):  # the second row has begun
            assert time.monotonic() - begun < PATIENCE
            assert both.poll() is None, both.communicate()
            time.sleep(0.02)
        victim = process(both.pid, 1)
        assert victim is not None
        os.kill(victim, signal.SIGKILL)
        _, error = both.communicate(timeout=PATIENCE)
    assert both.returncode == 1
    (line,) = [line for line in error.splitlines() if line.startswith("error:")]
    assert f"what was finished is kept: defend run --resume {out}" in line
    assert is_unfinished(out)
    kept = {path.name: path.stat().st_mtime_ns for path in (out / "unfinished").glob("*.safetensors")}
    assert len(kept) >= 4  # the first row has four batches

    with launched("run", "--resume", out) as both:
        printed, error = both.communicate(timeout=PATIENCE)
    assert both.returncode == 0, error
    assert printed.count("Written to") == 1, "one process speaks"
    assert (out / "records.csv").read_bytes() == expected
    assert not is_unfinished(out)
