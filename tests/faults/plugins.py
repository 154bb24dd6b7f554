"""Plugins that misbehave: at import, in a hook, in every method that the host calls, and by what they return."""

from __future__ import annotations

import functools
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

from tests.faults.harness import Injection, run_command

RAISED = {
    "an error": "raise RuntimeError('odd')",
    "SystemExit": "raise SystemExit(0)",
    "sys.exit": "import sys; sys.exit()",
    "KeyboardInterrupt": "raise KeyboardInterrupt",
    "BaseException": "raise BaseException('odd')",
    "GeneratorExit": "raise GeneratorExit",
    "StopIteration": "raise StopIteration",
    "an error without words": "raise type('Mute', (Exception,), {'__str__': lambda self: 1 / 0})()",
    "a missing file": "open('/nowhere/at/all')",
    "a recursion": "def again(): again()\nagain()",
}

SOURCE = '''
from defend import StageSpec, hookimpl

AT_IMPORT

@hookimpl
def defend_HOOKs():
    AT_ASKING
    return [StageSpec(name="mine", summary="misbehaves", build="p_mine:build"TRAINED)]

class Parts:
    """What is built, by stage; each hole is filled with a fault or passes."""

def build(config, *task):
    IN_BUILD
    return parts()["HOOK"](*task)

def train(config, recipe, task):
    IN_TRAIN
    return parts()["training"](task)

def parts():
    import torch
    from torch import nn
    from defend.datasets.base import Batch, ImageDataset
    from defend.train import Loss, Optimiser, Training

    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(context, images):
            return images.clone()
        @staticmethod
        def backward(context, outer):
            IN_BACKWARD
            return outer

    class Purifier(nn.Module):
        random = False
        def __init__(self, task):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))
        def forward(self, images):
            IN_FORWARD
            images = Backward.apply(images)
            return (images * self.scale).clamp(0, 1)
        def prepared(self):
            IN_PREPARED
            return self
        def surrogates(self):
            IN_SURROGATES
            return {}
        def __deepcopy__(self, memo):
            IN_DEEPCOPY
            other = type(self)(None)
            other.stage_name = getattr(self, "stage_name", "mine")
            return other

    class Victim(nn.Module):
        def __init__(self, task):
            super().__init__()
            self.head = nn.Linear(task.channels * task.height * task.width, task.classes)
        def forward(self, images):
            IN_FORWARD
            logits = self.head(Backward.apply(images).flatten(1))
            return ANSWER

    class Detector(nn.Module):
        random = False
        def __init__(self, task):
            super().__init__()
            self.register_buffer("threshold", torch.tensor(float("inf")))
        def forward(self, images, purified):
            IN_FORWARD
            score = (images - purified).flatten(1).abs().sum(1)
            return ANSWER
        def beside(self, purifier):
            IN_BESIDE
            return self

    class Attack:
        norm = "linf"
        def __init__(self):
            pass
        def __call__(self, target, images, labels, *, eps, keys):
            IN_FORWARD
            slope = target.slope(images, labels, keys, 0).gradient
            found = (images + eps[:, None, None, None] * slope.sign()).clamp(0, 1)
            return ANSWER

    class Data(ImageDataset):
        name, classes, shape, flips = "mine", tuple("0123456789"), (1, 28, 28), False
        def labels(self, split):
            IN_LABELS
            return torch.arange(40) % 10
        def batches(self, split, keys, batch_size, device):
            IN_BATCHES
            for part in keys.split(batch_size):
                images = torch.rand(len(part), 1, 28, 28, generator=torch.Generator().manual_seed(0))
                yield Batch(IMAGES, LABELS, KEYS)
        def sha256(self, split):
            IN_SHA
            return "0" * 64
        def statistics(self):
            IN_STATISTICS
            return (0.5,), (0.2,)

    class Trained(Training):
        def __init__(self, task):
            module = Purifier(task)
            super().__init__(module, {"module": module}, epochs=1, batch_size=300)
        def optimisers(self, steps):
            IN_OPTIMISERS
            return {"one": Optimiser(torch.optim.SGD(self.stage.parameters(), 1e-3))}
        def losses(self, batch):
            IN_LOSSES
            yield Loss("one", (self.modules["module"](batch.images) - batch.images).square().mean())
        def order(self, epoch, size, seed):
            IN_ORDER
            return super().order(epoch, size, seed)
        def score(self, dataset, device):
            IN_SCORE
            return 1.0
        def finish(self, dataset, device):
            IN_FINISH
            return {}

    return {"purifier": Purifier, "victim": Victim, "detector": Detector, "attack": Attack, "dataset": Data,
            "training": Trained}
'''

USUAL = {"ANSWER": {"victim": "logits", "detector": "score", "attack": "found"}, "IMAGES": "images", "KEYS": "part"}
RUN = ("--limit", 6, "--adaptive-limit", 2, "--precision", "fp32", "--no-store", "--quiet", "--threat", "oblivious")
ATTACKED = ("--attack", "fgsm")
COMMANDS = {
    "purifier": ("run", "--victim", "resnet18", "--purifier", "mine", *ATTACKED, "--threat", "adaptive", *RUN),
    "victim": ("run", "--victim", "mine", *ATTACKED, *RUN),
    "detector": ("run", "--victim", "resnet18", "--detector", "mine", *ATTACKED, *RUN),
    "attack": ("run", "--victim", "resnet18", "--attack", "mine", *RUN),
    "dataset": ("train", "purifier", "apudae", "--dataset", "mine", "--set", "epochs=1", "--quiet"),
    "training": ("train", "purifier", "mine", "--dataset", "digits", "--quiet"),
}
PLACES = {
    "purifier": ("BUILD", "FORWARD", "BACKWARD", "DEEPCOPY"),
    "victim": ("BUILD", "FORWARD", "BACKWARD"),
    "detector": ("BUILD", "FORWARD", "BESIDE"),
    "attack": ("BUILD", "FORWARD"),
    "dataset": ("BUILD", "LABELS", "BATCHES", "SHA", "STATISTICS"),
    "training": ("TRAIN", "OPTIMISERS", "LOSSES", "ORDER", "SCORE", "FINISH"),
}
FALLS_BACK = ("PREPARED", "DEEPCOPY")
"""Places whose failure costs speed alone: the run goes on without."""

RETURNED = {
    "purifier": {
        "nothing": "return None",
        "another shape": "return images[:, :, 1:]",
        "too few images": "return images[:1]",
        "NaN": "return images * float('nan')",
        "values above 1": "return images + 2",
        "bool": "return images > 0.5",
        "complex": "return images + 1j",
        "a tuple": "return (images,)",
        "numpy": "return images.detach().numpy()",
    },
    "victim": {
        "nothing": "return None",
        "twenty classes": "logits = self.head(images.flatten(1)); return torch.cat([logits, logits], 1)",
        "one number an image": "return self.head(images.flatten(1))[:, 0]",
        "classes": "return self.head(images.flatten(1)).argmax(1)",
        "NaN": "return self.head(images.flatten(1)) * float('nan')",
        "bool": "return self.head(images.flatten(1)) > 0",
        "complex": "return self.head(images.flatten(1)) + 1j",
        "a dict without logits": "return {'out': self.head(images.flatten(1))}",
    },
    "detector": {
        "nothing": "return None",
        "a column": "return images.flatten(1).sum(1)[:, None]",
        "one score": "return images.sum()",
        "NaN": "return images.flatten(1).sum(1) * float('nan')",
        "bool": "return images.flatten(1).sum(1) > 0",
        "complex": "return images.flatten(1).sum(1) + 1j",
    },
    "attack": {
        "nothing": "return None",
        "another shape": "return images[:, :, 1:]",
        "NaN": "return images * float('nan')",
        "bool": "return images > 0.5",
        "complex": "return images + 1j",
    },
}
ACCEPTED = {
    "victim": {
        "float64": "return self.head(images.flatten(1)).double()",
        "half": "return self.head(images.flatten(1)).half()",
        "a tuple": "return self.head(images.flatten(1)), images",
    },
    "purifier": {"float64": "return images.double()", "half": "return images.half()"},
    "detector": {"float64": "return images.flatten(1).sum(1).double()"},
    "attack": {"float64": "return images.double()", "half": "return images.half()"},
}
DATA = {
    "NaN in images": {"IMAGES": "images * float('nan')"},
    "images above 1": {"IMAGES": "images * 255"},
    "bytes": {"IMAGES": "(images * 255).byte()"},
    "images of another shape": {"IMAGES": "images[:, :, 1:]"},
    "too few images": {"IN_BATCHES": "keys = keys[:-3]"},
    "too many images": {"IN_BATCHES": "keys = torch.cat([keys, keys])"},
    "one image short a batch": {"IMAGES": "images[:-1]", "KEYS": "part[:-1]"},
    "another order": {"KEYS": "part.flip(0)"},
    "labels beside them": {"LABELS": "(self.labels(split)[part] + 1) % 10"},
    "labels out of range": {"IN_LABELS": "return torch.arange(40)"},
    "negative labels": {"IN_LABELS": "return torch.arange(40) - 1"},
    "float labels": {"IN_LABELS": "return torch.zeros(40)"},
    "labels as a list": {"IN_LABELS": "return [0] * 40"},
    "NaN in statistics": {"IN_STATISTICS": "return (float('nan'),), (0.2,)"},
    "statistics of three channels": {"IN_STATISTICS": "return (0.5,) * 3, (0.2,) * 3"},
}
QUICK = {("purifier", "FORWARD", "SystemExit"), ("attack", "FORWARD", "an error"), ("training", "FINISH", "SystemExit")}


def injections() -> Iterator[Injection]:
    """Yield all that a plugin may do."""
    for name, fault in RAISED.items():
        for hole in ("AT_IMPORT", "AT_ASKING"):
            quick = name == "SystemExit"
            yield Injection("plugin raises", f"{name}, {hole}", functools.partial(_list, hole, fault), quick)
    for stage, places in PLACES.items():
        for place in places:
            for name, fault in RAISED.items():
                inject = functools.partial(_use, stage, {f"IN_{place}": fault}, place in FALLS_BACK)
                yield Injection("plugin raises", f"{stage}, {place}: {name}", inject, (stage, place, name) in QUICK)
    for stage, answers in RETURNED.items():
        for name, text in answers.items():
            inject = functools.partial(_use, stage, {"IN_FORWARD": text}, False)
            quick = (stage, name) in (("victim", "twenty classes"), ("purifier", "complex"))
            yield Injection("plugin returns", f"{stage}: {name}", inject, quick)
    for stage, answers in ACCEPTED.items():
        for name, text in answers.items():
            inject = functools.partial(_use, stage, {"IN_FORWARD": text}, True)
            yield Injection("plugin returns what can be taken", f"{stage}: {name}", inject)
    for name, holes in DATA.items():
        inject = functools.partial(_use, "dataset", holes, False)
        yield Injection("data set of a plugin", name, inject, name in ("NaN in images", "too few images"))


def _list(hole: str, fault: str, folder: Path) -> str:
    """Expect `defend list` and another stage's run to work, and the list to tell of the plugin."""
    arrange = _install(folder, "purifier", {hole: fault})
    listed = run_command(folder, "list", arrange=arrange)
    wrong = listed.misbehaved(code=0, words=("defend-mine", "not loaded"))
    named = run_command(folder, "run", "--victim", "resnet18", "--purifier", "mine", arrange=arrange)
    return wrong or named.misbehaved(code=2, words=("defend-mine",))


def _use(stage: str, holes: dict[str, str], works: bool, folder: Path) -> str:
    """Expect a command that uses the stage to name it in its one line; or to work."""
    arrange = _install(folder, stage, holes)
    answer = run_command(
        folder, *COMMANDS[stage], *(() if stage in ("dataset", "training") else ("--out", "r")), arrange=arrange
    )
    return answer.misbehaved(code=0 if works else 2, words=() if works else ("mine",))


def _install(folder: Path, stage: str, holes: dict[str, str]) -> functools.partial[None]:
    """Write a plugin with faults in its holes, as pip would lay it out; return what makes it known to a process."""
    hook = "purifier" if stage == "training" else stage
    text = SOURCE.replace("HOOK", hook).replace("TRAINED", ', train="p_mine:train"' if stage == "training" else "")
    usual = {
        "ANSWER": USUAL["ANSWER"].get(stage, "None"),
        "IMAGES": "images",
        "KEYS": "part",
        "LABELS": "self.labels(split)[part]",
    }
    lines = []
    for line in text.splitlines():
        word = line.strip()
        if word.startswith(("IN_", "AT_")):
            filled = textwrap.indent(holes.get(word, "pass"), line[: len(line) - len(word)])
            lines.append(filled)
            continue
        if "yield Batch(" in line:
            for name in ("IMAGES", "LABELS", "KEYS"):
                line = line.replace(name, holes.get(name, usual[name]))
        lines.append(line.replace("return ANSWER", f"return {usual['ANSWER']}"))
    site = folder / "site"
    info = site / "defend_mine-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (site / "p_mine.py").write_text("\n".join(lines) + "\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: defend-mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[defend]\nmine = p_mine\n")
    return functools.partial(_know, str(site))


def _know(site: str) -> None:
    sys.path.insert(0, site)
