"""Runs that were cut off: killed at random moments they go on, and end as if nothing had happened."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills processes as POSIX has them")

DRIVER = """
import os, pathlib, sys
from defend import RunConfig
from defend.evaluation.runner import run_arms
from defend.records.unfinished import find_unfinished

OPTIONS = dict(
    victim="resnet20", purifier="dae", limit=24, adaptive_limit=12, batch_size=6, device="cpu", store=False,
    attacks=("noise", "pgd", "square"), threats=("noise", "oblivious", "query", "adaptive"), sweep=(0.05,),
    options={"pgd": {"steps": 3}, "square": {"queries": 6}}, checks="basic",
    precision="fp32",  # where bfloat16 is there, its time decides, which is another one each time
)
run_arms([RunConfig(out=sys.argv[1], **{**OPTIONS, "limit": 2, "checks": "none"})])  # imports what takes seconds, once
for line in sys.stdin:  # "out": run it; "resume out": go on; each in a process of its own
    verb, out = line.split()
    child = os.fork()
    if child == 0:
        configs = find_unfinished(pathlib.Path(out)) if verb == "resume" else [RunConfig(out=out, **OPTIONS)]
        if configs:
            run_arms(configs, resume=verb == "resume")
        os._exit(0)
    print(child, flush=True)
    _, status = os.waitpid(child, 0)
    print(status, flush=True)
"""


@pytest.fixture
def driver(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path / "first")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:

        def tell(verb, out):
            process.stdin.write(f"{verb} {out}\n")
            process.stdin.flush()
            return int(process.stdout.readline())

        yield tell, lambda: int(process.stdout.readline())
        process.stdin.close()


def outcome(folder):
    """A run's report without what time decides, and its records."""
    report = json.loads((folder / "report.json").read_text())
    for key in ("seconds", "cost", "digests"):
        del report[key]
    del report["config"]["out"]
    for row in report["rows"]:
        del row["seconds"]
    return report, (folder / "records.csv").read_bytes()


def test_a_run_killed_at_random_moments_ends_with_the_same_report(driver, tmp_path):
    start, wait = driver
    start("run", tmp_path / "whole")
    began = time.monotonic()
    assert wait() == 0
    whole = time.monotonic() - began
    expected = outcome(tmp_path / "whole")
    assert not expected[0]["partial"]

    draw = random.Random(int.from_bytes(os.urandom(4), "little"))
    killed, kept = 0, []
    folder = tmp_path / "killed"
    for _ in range(40):
        child = start("resume" if folder.is_dir() else "run", folder)
        time.sleep(draw.uniform(0.1, 0.6) * whole)
        if killed < 3:
            with contextlib.suppress(ProcessLookupError):  # what was left may have been done by now
                os.kill(child, signal.SIGKILL)
        if wait() == 0:
            if killed:
                break
            shutil.rmtree(folder)  # done before it could be killed, as other work slowed the first one down
            whole /= 2
            continue
        killed += 1
        kept.append(len(list((folder / "unfinished").glob("*.safetensors"))) if folder.is_dir() else 0)
    assert killed
    assert kept == sorted(kept), "a batch that was finished was lost"
    assert outcome(folder) == expected
    assert not (folder / "unfinished").exists()
    assert not list(folder.glob(".*"))
    assert {path.name for path in folder.iterdir()} == {path.name for path in (tmp_path / "whole").iterdir()}


def test_resuming_takes_only_the_run(defend, refused, tmp_path):
    assert "holds nothing yet" in refused("run", "--resume", tmp_path)
    assert "there is no run folder" in refused("run", "--resume", tmp_path / "missing")
    assert "leave out --victim" in refused("run", "--resume", tmp_path, "--victim", "resnet18")
    assert "leave out --batch-size" in refused("run", "--resume", tmp_path, "--batch-size", "2")
    assert "leave out --seed" in refused("run", "--resume", tmp_path, "--seed", "0")
    assert "leave out --store" in refused("run", "--resume", tmp_path, "--no-store")
    (tmp_path / "report.json").write_text("{}")
    answer = defend("run", "--resume", tmp_path)
    assert answer.code == 0
    assert "complete" in answer.out
