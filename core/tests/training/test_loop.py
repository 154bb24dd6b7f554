"""The training loop: resume, several optimisers, precision, errors, the weights file that comes out."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time

import attrs
import pytest
import torch
from rich.console import Console
from torch import nn

from defend.datasets.base import MemoryDataset
from defend.errors import ConfigError, ContractError, DataError, WriteError
from defend.records.watcher import TrainingWatcher
from defend.report.progress import TrainingBar
from defend.train import Loss, Optimiser, Training
from defend.training import loop, stage
from defend.training.checkpoint import Best, Checkpoint, Keeper, Length, mark_written
from defend.training.loop import FitSettings, fit, fit_in_course
from defend.training.stage import train_stage
from defend.util.processes import Processes
from defend.util.tensors import content_hash
from defend.weights.card import read_card


def tiny_dataset():
    generator = torch.Generator().manual_seed(0)
    images = {s: torch.randint(0, 256, (n, 1, 8, 8), generator=generator, dtype=torch.uint8) for s, n in SIZES.items()}
    labels = {split: torch.arange(count) % 2 for split, count in SIZES.items()}
    return MemoryDataset("tiny", ("a", "b"), images, labels)


SIZES = {"train": 44, "val": 6, "test": 6}


class Denoise(Training):
    """A small network with batch norm and random noise: everything that resuming must restore."""

    def __init__(self, epochs=3, stop_at=None):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 1, 3, padding=1)
        )
        super().__init__(network, {"network": network}, epochs=epochs, batch_size=8)
        self.stop_at, self.seen = stop_at, 0

    def optimisers(self, steps):
        adam = torch.optim.Adam(self.stage.parameters(), lr=1e-2)
        return {"network": Optimiser(adam, torch.optim.lr_scheduler.OneCycleLR(adam, 1e-2, total_steps=steps))}

    def losses(self, batch):
        self.seen += 1
        if self.seen == self.stop_at:
            raise KeyboardInterrupt
        restored = self.modules["network"](batch.images + 0.1 * torch.randn_like(batch.images))
        yield Loss("network", (restored - batch.images).square().mean(), {"bright": batch.images.mean()})


def train(folder, training, seconds=0.0):
    settings = FitSettings(seed=5, folder=folder, checkpoint_seconds=seconds)
    fit(training, tiny_dataset(), settings, {"what": "test"})
    return content_hash(training.stage.state_dict())


@pytest.mark.parametrize("stop_at", [1, 2, 5, 6, 7, 12, 15])
def test_an_interrupted_training_ends_as_an_uninterrupted_one(tmp_path, stop_at):
    expected = train(tmp_path / "whole", Denoise())
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", Denoise(stop_at=stop_at))
    assert train(tmp_path / "cut", Denoise()) == expected
    lines = [json.loads(line) for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert lines == [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]


def test_resuming_does_not_start_over(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, Denoise(stop_at=12))
    again = Denoise()
    train(tmp_path, again)
    assert again.seen == 15 - 11


def test_a_checkpoint_of_another_training_is_not_resumed(tmp_path):
    train(tmp_path, Denoise())
    other = Denoise()
    fit(other, tiny_dataset(), FitSettings(seed=5, folder=tmp_path), {"what": "another"})
    assert other.seen == 15


def test_other_code_goes_on_with_a_checkpoint_and_says_so(tmp_path):
    def go_on(version, training):
        settings = FitSettings(seed=5, folder=tmp_path, checkpoint_seconds=0.0)
        return fit_in_course(training, tiny_dataset(), settings, {"what": "test"}, version)

    with pytest.raises(KeyboardInterrupt):
        go_on("1", Denoise(stop_at=4))
    with pytest.warns(UserWarning, match=r"goes on from step 3, which another version of defend"):  # noqa: SIM117
        with pytest.raises(KeyboardInterrupt):
            go_on("2", Denoise(stop_at=4))
    with pytest.warns(UserWarning, match=r"goes on from step 6.*To begin anew, remove"):
        assert list(go_on("3", Denoise()).code_changed_at) == [3, 6]
    whole = go_on("3", Denoise())  # nothing is left to do, and nobody is warned again
    assert list(whole.code_changed_at) == [3, 6] and whole.figures == {}


def test_other_code_trains_anew_what_was_written(tmp_path):
    first, second, third = Denoise(), Denoise(), Denoise()
    settings = FitSettings(seed=5, folder=tmp_path, checkpoint_seconds=0.0)
    fit_in_course(first, tiny_dataset(), settings, {"what": "test"}, "1")
    mark_written(tmp_path)
    assert fit_in_course(second, tiny_dataset(), settings, {"what": "test"}, "2").code_changed_at == ()
    assert second.seen == 15
    with pytest.warns(UserWarning, match="goes on from step 15"):  # the second's weights were written nowhere
        fit_in_course(third, tiny_dataset(), settings, {"what": "test"}, "3")
    assert third.seen == 0


def test_what_was_written_is_not_taken_for_another_codes(tmp_path, monkeypatch):
    """Not even where that could not write its first checkpoint, as the disk was full."""
    settings = FitSettings(seed=5, folder=tmp_path, checkpoint_seconds=0.0)

    def go_on(version, training):
        return fit_in_course(training, tiny_dataset(), settings, {"what": "test"}, version)

    go_on("1", Denoise())
    mark_written(tmp_path)
    again, third = Denoise(), Denoise()
    go_on("1", again)
    with monkeypatch.context() as full:
        full.setattr("defend.training.checkpoint.write_bytes", lambda *about: (_ for _ in ()).throw(WriteError("full")))
        with pytest.warns(UserWarning, match="no checkpoint is kept"), pytest.raises(KeyboardInterrupt):
            go_on("2", Denoise(stop_at=4))
    assert go_on("2", third).code_changed_at == ()
    assert (again.seen, third.seen) == (0, 15)


def test_a_training_does_not_go_on_in_processes_that_take_another_number_of_steps(tmp_path):
    state = Checkpoint({}, {})
    one, cpu = Processes(), torch.device("cpu")
    Keeper(state, tmp_path, 0, {}, one, "", Length(1, 136)).keep(7, {}, Best(), always=True)
    assert Keeper(state, tmp_path, 0, {}, one, "", Length(2, 136)).load(cpu)[0] == 7
    with pytest.raises(ConfigError, match="begun in 1 process, and takes 136 steps so, but 144 in 3 processes"):
        Keeper(state, tmp_path, 0, {}, one, "", Length(3, 144)).load(cpu)


def test_a_split_that_a_training_lacks_is_told_before_its_first_step():
    whole = tiny_dataset()
    images = {split: whole.pixels(split, torch.device("cpu")) for split in ("train", "test")}
    alone = MemoryDataset("alone", whole.classes, images, {split: whole.labels(split) for split in images})
    with pytest.raises(DataError, match="data set alone has no val images"):
        train_stage("victim", "mlp", alone, settings=FitSettings(device="cpu"))


def test_a_victim_is_measured_on_the_splits_that_there_are(tmp_path):
    whole = tiny_dataset()
    images = {split: whole.pixels(split, torch.device("cpu")) for split in ("train", "val")}
    alone = MemoryDataset("alone", whole.classes, images, {split: whole.labels(split) for split in images})
    _, card = train_stage(
        "victim",
        "resnet10t",
        alone,
        options={"epochs": 1},
        settings=FitSettings(device="cpu"),
        out=tmp_path / "w.safetensors",
    )
    assert set(card.figures) == {"val_accuracy"}


def test_a_damaged_checkpoint_is_not_resumed(tmp_path):
    expected = train(tmp_path / "whole", Denoise())
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "checkpoint.safetensors").write_bytes(b"\x80\x04 no")
    with pytest.warns(UserWarning, match=r"is damaged or cut short: the training begins anew"):
        assert train(tmp_path / "cut", Denoise()) == expected


class Slow(Denoise):
    """Makes its images for a while."""

    def data(self, dataset, device):
        for done in (0, 3, 10):
            self.making(done, 10)
        return dataset


def test_images_in_the_making_are_told_of_before_the_steps(tmp_path):
    console = Console(file=io.StringIO(), width=120)
    shown = TrainingBar(console, "a training", quiet=False)
    told = []

    class Both(TrainingWatcher):
        def making(self, *counts):
            told.append(counts)
            shown.making(*counts)

        def step(self, done, total, losses):
            told.append((done, total, bool(losses)))
            shown.step(done, total, losses)

        def measuring(self):
            told.append("measuring")

    fit(Slow(), tiny_dataset(), FitSettings(folder=tmp_path, progress=Both()), {})
    assert told[:4] == [(0, 10), (3, 10), (10, 10), (1, 15, False)]
    assert told[-2:] == [(15, 15, True), "measuring"]
    lines = console.file.getvalue().splitlines()
    assert lines[0] == "a training: making the images to train on, 10"
    assert [line.split(":")[1] for line in lines[1:]] == [f" step {step} of 15" for step in (5, 10, 15)]


def test_the_bar_is_gone_whatever_ends_the_training():
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    progress = TrainingBar(console, "a training", quiet=False)

    def begin():
        with progress:
            progress.step(1, 5, {})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        begin()
    shown = console.file.getvalue()
    assert "a training" in shown and shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1, "the cursor is back"


KILLED = """
import os, sys
from defend.datasets.base import ImageDataset
from defend.assembly.load import open_dataset
from defend.training.loop import FitSettings
from defend.training.stage import train_stage
from defend.records.watcher import TrainingWatcher
class Printed(TrainingWatcher):
    def step(self, done, total, losses):
        print(done, total, flush=True)
import accelerate, timm  # what takes seconds to import, once
for line in sys.stdin:  # "cache": train with it, in a process of its own
    child = os.fork()
    if child == 0:
        os.environ["DEFEND_CACHE_DIR"] = line.strip()
        path, card = train_stage("victim", "mobilenetv3_small_050", open_dataset("digits"),
            options={"epochs": 1, "batch_size": 256},
            settings=FitSettings(device="cpu", checkpoint_seconds=0.0, progress=Printed()))
        print(card.content_sha256, flush=True)
        os._exit(0)
    print(child, flush=True)
    os.waitpid(child, 0)
    print("end", flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills processes as POSIX has them")
def test_kill_nine_and_run_again_gives_the_same_weights(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", KILLED]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as trainer:

        def train(cache, until="end"):
            """Return the process and what it printed, up to a line; an "end" more follows any other."""
            trainer.stdin.write(f"{tmp_path / cache}\n")
            trainer.stdin.flush()
            child, said = int(trainer.stdout.readline()), []
            while not said or said[-1] != until:
                said.append(trainer.stdout.readline().strip())
                assert said[-1] != "end" or until == "end", said
            return child, said

        _, whole = train("whole")
        child, _ = train("cut", until="1 4")
        time.sleep(0.05)
        os.kill(child, signal.SIGKILL)
        while trainer.stdout.readline().strip() != "end":
            pass
        _, again = train("cut")
        trainer.stdin.close()
    assert again[0] != "1 4"
    assert len(whole[-2]) == 64
    assert again[-2] == whole[-2]


class Adversaries(Training):
    """Two networks, two losses a batch, the second after the first's step."""

    def __init__(self):
        self.maker, self.critic = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)
        super().__init__(self.maker, {"maker": self.maker, "critic": self.critic}, epochs=1, batch_size=44)
        self.snapshots = []

    def optimisers(self, steps):
        return {
            "maker": Optimiser(torch.optim.SGD(self.maker.parameters(), lr=0.1)),
            "critic": Optimiser(torch.optim.SGD(self.critic.parameters(), lr=0.1)),
        }

    def snapshot(self):
        self.snapshots.append((float(self.maker.weight.detach().sum()), float(self.critic.weight.detach().sum())))

    def losses(self, batch):
        self.snapshot()
        yield Loss("critic", self.modules["critic"](self.modules["maker"](batch.images).detach()).mean())
        self.snapshot()
        yield Loss("maker", -self.modules["critic"](self.modules["maker"](batch.images)).mean())
        self.snapshot()


def test_each_loss_moves_its_own_optimisers_parameters_before_the_next():
    training = Adversaries()
    fit(training, tiny_dataset(), FitSettings(), {})
    (maker_0, critic_0), (maker_1, critic_1), (maker_2, critic_2) = training.snapshots
    assert maker_0 == maker_1 != maker_2
    assert critic_0 != critic_1 == critic_2


def test_divergence_is_an_error_that_says_what_to_try():
    class Diverging(Denoise):
        def losses(self, batch):
            yield Loss("network", self.modules["network"](batch.images).mean() * float("nan"))

    with pytest.raises(ContractError, match=r"diverged in epoch 1.*learning rate"):
        fit(Diverging(), tiny_dataset(), FitSettings(), {})


def test_a_training_without_a_loss_is_refused():
    class Idle(Denoise):
        def losses(self, batch):
            yield from ()

    with pytest.raises(ContractError, match="yielded no loss"):
        fit(Idle(), tiny_dataset(), FitSettings(), {})


def test_weights_that_are_no_numbers_are_refused():
    class Spoilt(Denoise):
        def losses(self, batch):
            yield from super().losses(batch)
            if self.seen == 15:
                self.stage[3].bias.data[0] = float("nan")

    with pytest.raises(ContractError, match=r"'3.bias' is not finite.*learning rate"):
        fit(Spoilt(), tiny_dataset(), FitSettings(), {})


class Tied(Denoise):
    """A layer under two names, and an optimiser that keeps its rate as a tensor."""

    def __init__(self, **known):
        super().__init__(**known)
        self.stage.shared = self.stage[0]

    def optimisers(self, steps):
        return {"network": Optimiser(torch.optim.Adam(self.stage.parameters(), lr=torch.tensor(1e-2)))}


def test_a_training_of_shared_layers_is_kept_and_goes_on(tmp_path):
    expected = train(tmp_path / "whole", Tied())
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", Tied(stop_at=7))
    again = Tied()
    assert train(tmp_path / "cut", again) == expected
    assert again.seen < 15 and again.stage.shared is again.stage[0]


def test_a_checkpoint_that_cannot_be_written_costs_no_training(tmp_path):
    class Stubborn(Denoise):
        def optimisers(self, steps):
            chosen = super().optimisers(steps)
            chosen["network"].optimizer.param_groups[0]["note"] = object()
            return chosen

    expected = train(None, Denoise())
    with pytest.warns(UserWarning, match="no checkpoint is kept of this training: .* hold a object"):
        assert train(tmp_path, Stubborn()) == expected


def test_a_loss_for_an_unknown_optimiser_is_refused():
    class Lost(Denoise):
        def losses(self, batch):
            yield Loss("generator", self.modules["network"](batch.images).mean())

    with pytest.raises(ContractError, match=r"'generator', which is none of \['network'\]"):
        fit(Lost(), tiny_dataset(), FitSettings(), {})


def test_bf16_trains(tmp_path):
    training = Denoise(epochs=1)
    fit(training, tiny_dataset(), FitSettings(precision="bf16"), {})
    assert all(torch.isfinite(value).all() for value in training.stage.state_dict().values())
    assert training.stage[0].weight.dtype == torch.float32


class Rounded(Denoise):
    """Notes what fp32 would be computed in on a GPU while it is trained, scored and measured."""

    def __init__(self):
        super().__init__(epochs=2)
        self.noted = {"losses": set(), "score": set(), "finish": set()}

    def note(self, when):
        self.noted[when].add((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))

    def losses(self, batch):
        self.note("losses")
        yield from super().losses(batch)

    def score(self, dataset, device):
        self.note("score")

    def finish(self, dataset, device):
        self.note("finish")
        return {}


def test_a_training_rounds_to_tf32_and_its_figures_do_not(monkeypatch):
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    fast = loop.fast_fp32
    monkeypatch.setattr(loop, "fast_fp32", lambda device: fast(torch.device("cuda")))  # there is none here
    training = Rounded()
    fit(training, tiny_dataset(), FitSettings(), {})
    assert training.noted == {"losses": {("high", True)}, "score": {("highest", False)}, "finish": {("highest", False)}}
    after = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    assert after == before


class Judged(Denoise):
    """Notes what its network answers in while it is trained, and what it answers when it is scored and measured."""

    def __init__(self):
        super().__init__(epochs=1)
        self.answered, self.inside, self.judged = [], [], []
        self.stage.register_forward_hook(lambda _, __, answer: self.answered.append(answer.dtype))
        self.stage[3].register_forward_hook(lambda _, __, answer: self.inside.append(answer.dtype))

    def data(self, dataset, device):
        self.answered.clear(), self.inside.clear()  # a copy was tried before
        return dataset

    def score(self, dataset, device):
        self.judged.append(self.see(dataset))
        return 1.0

    def finish(self, dataset, device):
        self.judged.append(self.see(dataset))
        return {}

    def see(self, dataset):
        state = {key: value.clone() for key, value in self.stage.state_dict().items()}
        return state, self.modules["network"](dataset.tensors("val")[0]).detach()


def test_what_is_trained_in_bf16_is_scored_and_measured_in_fp32():
    training, plain = Judged(), Denoise()
    fit(training, tiny_dataset(), FitSettings(seed=5, precision="bf16"), {})
    assert set(training.answered) == {torch.float32}
    assert set(training.inside[:5]) == {torch.bfloat16} and set(training.inside[5:]) == {torch.float32}
    assert "forward" not in vars(training.stage) and len(training.stage._forward_hooks) == 1, "it is left as it was"
    plain.stage.eval()
    for state, answer in training.judged:
        plain.stage.load_state_dict(state)
        torch.testing.assert_close(plain.stage(tiny_dataset().tensors("val")[0]).detach(), answer)


def test_an_unknown_training_option_offers_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown option 'epoch'.*did you mean 'epochs'"):
        train_stage("victim", "resnet18", tiny_dataset(), options={"epoch": "3"})


def test_the_card_tells_how_the_weights_were_made(tmp_path, monkeypatch):
    monkeypatch.setenv("DEFEND_CACHE_DIR", str(tmp_path))
    options = {"epochs": "1", "batch_size": "22", "stem": "strided"}
    path, card = train_stage(
        "victim", "resnet10t", tiny_dataset(), options={**options, "stem": "auto"}, settings=FitSettings(seed=3)
    )
    assert path == tmp_path / "weights" / "victim-resnet10t-tiny.safetensors"
    assert read_card(path) == card
    assert card.recipe["epochs"] == 1
    assert card.recipe["seed"] == 3
    assert card.config["model"] == "resnet10t"
    assert card.dataset["name"] == "tiny"
    assert card.dataset["classes"] == ["a", "b"]
    assert set(card.figures) == {"val_accuracy", "test_accuracy"}


def test_held_out_images_that_are_trained_on_are_told_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.setenv("DEFEND_CACHE_DIR", str(tmp_path))

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, "fit_in_course", stop)
    whole = tiny_dataset()
    images = {split: whole.pixels(split, torch.device("cpu")) for split in SIZES}
    images |= {"val": images["train"][:6], "test": torch.cat([images["train"][:1], images["test"][1:]])}
    twice = MemoryDataset("twice", whole.classes, images, {split: whole.labels(split) for split in SIZES})
    with pytest.raises(KeyboardInterrupt), pytest.warns(UserWarning, match="in train") as told:
        train_stage("victim", "resnet10t", twice)
    test, val = (str(each.message) for each in told)
    assert test.startswith("1 test image stands in train or val too: ")
    assert val.startswith("6 val images stand in train too, so that thresholds and selection are by images that were")


def test_a_training_with_flips_does_not_go_on_with_one_without(tmp_path, monkeypatch):
    monkeypatch.setenv("DEFEND_CACHE_DIR", str(tmp_path))
    folders = []

    def stop(training, dataset, settings, *_):
        folders.append(settings.folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, "fit_in_course", stop)
    for flips in (False, True, False):
        dataset = tiny_dataset()
        dataset.flips = flips
        with pytest.raises(KeyboardInterrupt):
            train_stage("victim", "resnet10t", dataset)
    assert folders[0] == folders[2] != folders[1]


TWO_PROCESSES = """
import atexit, json, os, sys, torch
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_loop import Denoise, Staged, tiny_dataset
from defend.errors import DefendError
from defend.report.progress import TrainingBar
from defend.train import FitSettings, fit
from defend.training import stage
from defend.util.tensors import content_hash
here, rank = Path(sys.argv[1]), int(os.environ["RANK"])
said = {}
# whoever registers first is called last
atexit.register(lambda: (here / f"left{rank}").write_text(str(not torch.distributed.is_initialized())))

def note(what, training):
    said[what] = content_hash(training.stage.state_dict())

plain = Denoise(epochs=1)
fit(plain, tiny_dataset(), FitSettings(seed=5), {})
note("plain", plain)

class Scored(Staged):
    # each process likes another epoch, measures something else and calibrates for itself
    def finish(self, dataset, device):
        self.stage[0].bias.data += rank
        return {"rank": rank}

# cut off, and gone on with where the second process does not see what was kept
def go_on(training, folder):
    try:
        fit(training, tiny_dataset(), FitSettings(seed=5, folder=folder, checkpoint_seconds=0.0), {})
    except KeyboardInterrupt:
        pass
    return training

for wholly, name in ((True, "whole"), (False, "cut")):
    folder = here / f"{name}{rank}"
    if not wholly:
        go_on(Staged(stop_at=7), folder)
    training = go_on(Staged(), folder)
    note(name, training)
    said[f"steps of {name}"] = len(training.seen_keys)

scored = Scored((0.1, 0.9, 0.5) if rank == 0 else (0.9, 0.1, 0.5))
said["figures"] = fit(scored, tiny_dataset(), FitSettings(seed=5), {})
note("scored", scored)

saved, save = [], stage.save
stage.save = lambda path, *about: saved.append(str(path)) or save(path, *about)
out = here / "shared.safetensors"
how = FitSettings(device="cpu")
stage.train_stage("victim", "resnet10t", tiny_dataset(), options={"epochs": 1}, settings=how, out=out)
said["saved"] = list(saved)
own = here / f"own{rank}.safetensors"  # what two machines have
_, card = stage.train_stage(
    "victim", "resnet10t", tiny_dataset(), options={"epochs": 1}, settings=how, out=own
)
said["card"], said["kept"] = card.content_sha256, stage.read_card(own).content_sha256
broken = here / "file" / "shared.safetensors"
(here / "file").touch()
try:
    stage.train_stage("victim", "resnet10t", tiny_dataset(), settings=how, out=broken)
except DefendError as error:
    said["refused"] = f"{type(error).__name__}: {error}"
(here / f"{rank}.json").write_text(json.dumps(said))
"""


class Two(Processes):
    """Process 0 of two; the other one says of itself what `other` makes of this one's."""

    def gather(self, value, what):
        return [value, {key: self.other.get(key, one) for key, one in value.items()}]


def test_processes_that_would_train_different_things_are_refused():
    processes = Two(0, 2)
    object.__setattr__(processes, "other", {"code": "which may be like no other"})
    stage._check_alike(processes, {"seed": 1, "frozen": {"victim": "a"}, "code": "c"})
    object.__setattr__(processes, "other", {"frozen": "another"})
    with pytest.raises(ConfigError, match="process 1 of this training has another frozen than process 0"):
        stage._check_alike(processes, {"seed": 1, "frozen": {"victim": "a"}, "code": "c"})


def test_every_training_of_a_process_runs_on_the_device_that_it_was_asked_to(monkeypatch):
    monkeypatch.setattr(loop, "resolve_device", torch.device)  # there is no such device here
    for name in ("cpu", "cuda:1", "cpu", "cuda:0", "xpu"):
        accelerator, processes = loop._start(FitSettings(device=name))
        assert (accelerator.device, processes.world) == (torch.device(name), 1)


def test_two_processes_share_the_work_and_agree(launch_two, tmp_path):
    first, second = launch_two(TWO_PROCESSES, os.path.dirname(__file__))
    left = [(tmp_path / f"left{rank}").read_text() for rank in (0, 1)]
    assert left == ["True", "True"], "what does not part from the others may be aborted by torch as it ends"
    assert first["plain"] == second["plain"], "running statistics too"
    assert first["scored"] == second["scored"] and first["figures"] == second["figures"] == {"rank": 0}
    assert (len(first["saved"]), len(second["saved"])) == (1, 0), "one process writes"
    assert first["cut"] == second["cut"] == first["whole"] == second["whole"]
    assert first["steps of whole"] == second["steps of whole"] == 8
    assert first["steps of cut"] == second["steps of cut"] == 2
    assert first["card"] == second["card"] == first["kept"] == second["kept"]
    assert first["refused"] == second["refused"] and first["refused"].startswith("WriteError: ")


class Staged(Denoise):
    """Epochs of two sizes, scores for each, a frozen network beside the trained one."""

    def __init__(self, scores=(0.1, 0.9, 0.5), stop_at=None):
        super().__init__(stop_at=stop_at)
        self.frozen = {"teacher": nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))}
        self.scores, self.seen_keys, self.after = scores, [], []

    def epoch_size(self, epoch, size):
        return 16 if epoch == 0 else 24

    def order(self, epoch, size, seed):
        return torch.arange(self.epoch_size(epoch, size)) + epoch

    def losses(self, batch):
        self.seen_keys.append((self.epoch, batch.keys.tolist()))
        assert not self.frozen["teacher"].training
        assert not any(parameter.requires_grad for parameter in self.frozen["teacher"].parameters())
        yield from super().losses(batch)

    def score(self, dataset, device):
        assert not self.stage.training and not torch.is_grad_enabled()
        self.after.append(content_hash(self.stage.state_dict()))
        return self.scores[self.epoch]


def test_epochs_may_differ_in_size_and_order(tmp_path):
    training = Staged()
    train(tmp_path, training)
    assert [epoch for epoch, _ in training.seen_keys] == [0] * 2 + [1] * 3 + [2] * 3
    for epoch, count in enumerate((16, 24, 24)):
        keys = [key for seen, batch in training.seen_keys if seen == epoch for key in batch]
        assert keys == list(range(epoch, epoch + count))


def test_the_epoch_that_scores_best_is_kept(tmp_path):
    training = Staged()
    last = train(tmp_path, training)
    assert len(set(training.after)) == 3
    assert train(tmp_path / "again", Staged((0.1, 0.9, 0.0))) == last
    other = Staged((0.1, 0.2, 0.3))
    assert train(tmp_path / "last", other) != last
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["score"] for line in lines] == [0.1, 0.9, 0.5]


@pytest.mark.parametrize("stop_at", [None, 7])
def test_it_is_known_which_epoch_is_kept_of_a_training_that_was_cut_off_too(tmp_path, stop_at):
    settings = FitSettings(folder=tmp_path, checkpoint_seconds=0.0)
    if stop_at:  # in the third epoch
        with pytest.raises(KeyboardInterrupt):
            fit(Staged(stop_at=stop_at), tiny_dataset(), settings, {})
    assert fit_in_course(Staged(), tiny_dataset(), settings, {}).kept_epoch == 2
    assert fit_in_course(Denoise(), tiny_dataset(), FitSettings(), {}).kept_epoch is None


class Seldom(Denoise):
    """Yields a second loss, and a metric, in every third step alone: the values are the steps' numbers."""

    def losses(self, batch):
        for loss in super().losses(batch):
            extra = {"seldom": torch.tensor(float(self.seen))} if self.seen % 3 == 0 else {}
            yield attrs.evolve(loss, metrics={"always": torch.tensor(float(self.seen)), **extra})


def test_what_some_steps_tell_is_logged_as_the_mean_of_these(tmp_path):
    training = Seldom(epochs=1)
    fit(training, tiny_dataset(), FitSettings(folder=tmp_path), {})
    (line,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    steps = range(1, training.seen + 1)
    assert line["always"] == pytest.approx(sum(steps) / len(steps))
    third = [step for step in steps if step % 3 == 0]
    assert line["seldom"] == pytest.approx(sum(third) / len(third))


@pytest.mark.parametrize("stop_at", [1, 3, 4, 6, 8])
def test_a_staged_training_resumes_to_the_same_weights(tmp_path, stop_at):
    expected = train(tmp_path / "whole", Staged())
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", Staged(stop_at=stop_at))
    again = Staged()
    assert train(tmp_path / "cut", again) == expected
    assert len(again.seen_keys) == 8 - (stop_at - 1)


def test_a_training_may_bring_data_of_its_own(tmp_path):
    class Own(Denoise):
        def data(self, dataset, device):
            images = {"train": dataset.pixels("train", device).repeat(2, 1, 1, 1)}
            return MemoryDataset("twice", ("a", "b"), images, {"train": dataset.labels("train").repeat(2)})

    training = Own(epochs=1)
    train(tmp_path, training)
    assert training.seen == 88 // 8


def test_a_training_beside_another_frozen_network_starts_anew(tmp_path, monkeypatch):
    """A finished checkpoint made against one victim must not pass for one made against its successor."""
    from defend import StageSpec
    from defend.plugins import Entry, Found, Registry

    monkeypatch.setenv("DEFEND_CACHE_DIR", str(tmp_path))
    made = []

    def described(config, recipe, task):
        training = Denoise(epochs=1)
        victim = nn.Conv2d(1, 1, 1).requires_grad_(False)
        nn.init.constant_(victim.weight, len(made) // 2)
        nn.init.zeros_(victim.bias)
        victim.quality = len(made) // 3  # which its state does not hold
        training.frozen = {"victim": victim}
        made.append(training)
        return training

    spec = StageSpec(name="toy", summary="toy", build="builtins:len", train="builtins:len")
    monkeypatch.setattr(StageSpec, "resolve", lambda self, reference: described)
    registry = Registry(entry_points=[])
    monkeypatch.setattr(registry, "find", lambda stage, name: Found(Entry("purifier", spec, "toy"), None))
    for _ in range(4):  # the third has another victim, and so has the fourth
        train_stage("purifier", "toy", tiny_dataset(), settings=FitSettings(device="cpu"), plugins=registry)
    assert [training.seen for training in made] == [5, 0, 5, 5]


def test_images_that_are_prepared_otherwise_are_another_training(tmp_path, monkeypatch):
    from defend import StageSpec
    from defend.plugins import Entry, Found, Registry

    class Cropped(MemoryDataset):
        cut = 32

        @property
        def prepared(self):
            return f"{super().prepared}, cut out of {self.cut}"

    monkeypatch.setenv("DEFEND_CACHE_DIR", str(tmp_path))
    made = [Denoise() for _ in range(3)]
    waiting = iter(made)
    spec = StageSpec(name="toy", summary="toy", build="builtins:len", train="builtins:len")
    monkeypatch.setattr(StageSpec, "resolve", lambda self, reference: lambda *about: next(waiting))
    registry = Registry(entry_points=[])
    monkeypatch.setattr(registry, "find", lambda stage, name: Found(Entry("purifier", spec, "toy"), None))
    tiny = tiny_dataset()
    dataset = Cropped("tiny", ("a", "b"), tiny._images, tiny._labels)
    for cut in (32, 36, 36):
        dataset.cut = cut
        train_stage("purifier", "toy", dataset, settings=FitSettings(device="cpu"), plugins=registry)
    assert [training.seen for training in made] == [15, 15, 0]


@pytest.mark.parametrize(("own", "steps", "changed"), [(False, 9, [6]), (True, 15, None)])
def test_an_upgrade_costs_no_training_but_a_stage_that_changed_begins_anew(tmp_path, monkeypatch, own, steps, changed):
    from defend import StageSpec
    from defend.plugins import Entry, Found, Registry

    monkeypatch.setenv("DEFEND_CACHE_DIR", str(tmp_path))
    made = [Denoise(stop_at=7), Denoise()]
    waiting = iter(made)
    spec = StageSpec(name="toy", summary="toy", build="builtins:len", train="builtins:len")
    monkeypatch.setattr(StageSpec, "resolve", lambda self, reference: lambda *about: next(waiting))
    registry = Registry(entry_points=[])
    monkeypatch.setattr(registry, "find", lambda stage, name: Found(Entry("purifier", spec, "toy"), None))

    def train_toy():
        settings = FitSettings(device="cpu", checkpoint_seconds=0.0)
        return train_stage("purifier", "toy", tiny_dataset(), settings=settings, plugins=registry)[1]

    with pytest.raises(KeyboardInterrupt):
        train_toy()
    monkeypatch.setattr(stage, "code_of_stage" if own else "code_version", lambda *modules: "changed")
    with contextlib.nullcontext() if own else pytest.warns(UserWarning, match="goes on from step 6"):
        card = train_toy()
    assert (made[1].seen, card.recipe.get("code_changed_at_step")) == (steps, changed)
