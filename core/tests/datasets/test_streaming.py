"""An image folder larger than memory: streamed, while the plain way does not fit. Workers come, stay and go.

What needs memory of its own to measure runs in a process of its own: this file, as a script.
"""

import contextlib
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import attrs
import pytest
import torch
from PIL import Image

import defend
from defend.assembly.load import open_dataset
from defend.errors import DataError
from defend.hookspecs import hookimpl
from defend.plugins import Registry
from defend.stages import StageSpec
from defend.testing.toys import TinyVictim
from defend.util.cores import count_granted

SIDE, IMAGES, BATCH = 128, 400, 32
MEGABYTE = 2**20
NEEDED = IMAGES * 3 * SIDE * SIDE * 4 / MEGABYTE  # as float32: 75 MB
ALLOWED = 32  # MB
GROWTH = 40  # MB by which a run on five times the images may peak higher: pages half used come and go
CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and measures memory as Linux does")


def write_images(root, count):
    """Write `count` test images and a few for training, of two classes; the first pixel says which image it is."""
    for split, number in (("train", 10), ("test", count)):
        for index in range(number):
            folder = root / split / "ab"[index % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (SIDE, SIDE), (index % 256, index // 256, 0)).save(folder / f"{index:05d}.png")


def open_images(root, workers):
    return open_dataset("imagefolder", str(root), {"image_size": SIDE, "workers": workers})


def numbers(batch):
    """Return which images of `write_images` a batch has."""
    pixels = (batch.images[:, :2, 0, 0] * 255).round().int()
    return (pixels[:, 0] + 256 * pixels[:, 1]).tolist()


def everything(dataset):
    """Stream through the test split; return the images' numbers in its order."""
    found = {}
    for batch in dataset.batches("test", dataset.keys("test"), BATCH, CPU):
        found.update(zip(batch.keys.tolist(), numbers(batch), strict=True))
    return [found[key] for key in range(len(found))]


def in_order(count):
    return [*range(0, count, 2), *range(1, count, 2)]


@attrs.frozen
class Offered:
    """What an entry point would load: a victim that is built in no time."""

    name: str = "tiny"
    dist: None = None

    def load(self):
        return self

    @hookimpl
    def defend_victims(self):
        return [StageSpec(name="tiny", summary="a test's", build="__main__:build_victim")]


def build_victim(_, task):
    return TinyVictim(task)


def status(field):
    """Return a figure of this process in MB, as /proc has it."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def say(found):
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


def children():
    return {child.pid for child in multiprocessing.active_children()}


def measure(root):
    """Say, as JSON, what streaming and a whole run take; then stream on until interrupted."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are born deaf to it
    found = {}
    sets = {workers: open_images(root, workers) for workers in (0, 2)}
    config = defend.RunConfig(
        victim="tiny",
        dataset="imagefolder",
        data_dir=str(root),
        options={"dataset": {"image_size": SIDE}},
        attacks=("fgsm",),
        threats=("oblivious",),
        batch_size=BATCH,
        workers=0,
        checks="none",
        store=False,
        device="cpu",
    )
    plugins = Registry([Offered()])
    for name, limit in (("warm", IMAGES // 5), ("few", IMAGES // 5), ("all", IMAGES)):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
        report = defend.run(attrs.evolve(config, limit=limit, out=str(root / "runs" / name)), plugins=plugins)
        found[f"run {name}"] = {"images": report.rows[-1].n, "peak": status("VmHWM")}
    for dataset in sets.values():
        next(iter(dataset.batches("test", torch.arange(2 * BATCH), BATCH, CPU)))
    allowance = int((status("VmData") + ALLOWED) * MEGABYTE)
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (allowance, limits[1]))
    for workers, dataset in sets.items():
        found[f"streamed {workers}"] = everything(dataset) == in_order(IMAGES)
    try:
        sets[0].tensors("test")
        found["in memory"] = "fits"
    except RuntimeError as error:
        found["in memory"] = str(error)
    resource.setrlimit(resource.RLIMIT_DATA, limits)
    say(found)
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            everything(sets[2])
    say({"left": len(children())})


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What `measure` says, and what it said after Ctrl-C, with what it wrote to stderr."""
    root = tmp_path_factory.mktemp("images")
    write_images(root, IMAGES)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "DEFEND_CACHE_DIR": str(root / "cache"),
        "MALLOC_MMAP_THRESHOLD_": str(MEGABYTE),  # what is measured is in use: large tensors' pages go when they do
    }
    process = subprocess.Popen(
        [sys.executable, __file__, str(root)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment,
    )
    try:
        first = process.stdout.readline()
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to all processes of the command
        last, errors = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert first, errors
    return {**json.loads(first), "last": last, "errors": errors, "code": process.returncode, "group": process.pid}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_folder_that_does_not_fit_into_memory_is_streamed(measured, workers):
    assert NEEDED > 2 * ALLOWED
    assert "allocate memory" in measured["in memory"]
    assert measured[f"streamed {workers}"]


def test_a_run_on_more_images_takes_no_more_memory(measured):
    few, whole = measured["run few"], measured["run all"]
    assert (few["images"], whole["images"]) == (IMAGES // 5, IMAGES)
    assert whole["peak"] - few["peak"] < GROWTH


def test_ctrl_c_ends_the_workers(measured):
    assert json.loads(measured["last"]) == {"left": 0}
    assert "KeyboardInterrupt" not in measured["errors"]
    assert measured["code"] == 0
    with pytest.raises(ProcessLookupError):
        os.killpg(measured["group"], 0)


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path, 40)
    return tmp_path


def test_workers_that_finished_a_pass_serve_the_next(folder):
    before = children()
    dataset = open_images(folder, 2)
    assert everything(dataset) == in_order(40)
    working = children() - before
    assert len(working) == min(2, count_granted())
    assert everything(dataset) == in_order(40)
    assert [numbers(batch) for batch in dataset.batches("train", torch.arange(4), 3, CPU)] == [[2, 4, 6], [8]]
    assert children() - before == working
    del dataset
    assert children() == before


def test_a_pass_that_is_left_early_leaves_no_workers(folder):
    before = children()
    dataset = open_images(folder, 2)
    for _ in range(3):
        for batch in dataset.batches("test", torch.arange(40), 8, CPU):
            assert numbers(batch) == in_order(40)[:8]
            assert children() != before
            break
        del batch
        assert children() == before
    assert everything(dataset) == in_order(40)


def test_two_passes_at_a_time_do_not_mix(folder):
    before = children()
    dataset = open_images(folder, 2)
    forwards = dataset.batches("test", torch.arange(40), 7, CPU)
    backwards = dataset.batches("test", torch.arange(39, -1, -1), 7, CPU)
    pairs = [(numbers(one), numbers(other)) for one, other in zip(forwards, backwards, strict=True)]
    assert [number for one, _ in pairs for number in one] == in_order(40)
    assert [number for _, other in pairs for number in other] == in_order(40)[::-1]
    assert len(children() - before) <= min(2, count_granted())


def test_a_damaged_image_ends_the_workers(folder):
    before = children()
    dataset = open_images(folder, 2)
    (folder / "test" / "b" / "00039.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"00039\.png' is not an image that can be read"):
        everything(dataset)
    assert children() == before


@pytest.mark.parametrize("workers", [0, 2])
def test_streaming_leaves_torchs_generator_where_it_was(folder, workers):
    dataset = open_images(folder, workers)
    before = torch.get_rng_state()
    everything(dataset)
    assert torch.equal(torch.get_rng_state(), before)


if __name__ == "__main__":
    measure(Path(sys.argv[1]))
