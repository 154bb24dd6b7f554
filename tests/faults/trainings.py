"""Trainings that go wrong, weights of every type, and weights that stand in the place of others."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from pathlib import Path

from tests.faults.harness import LOST, Injection, run_command
from tests.faults.toys import PURIFIER, with_plugin

TRAIN = ("train", "purifier", "toy", "--quiet", "--json")
RUN = ("run", "--victim", "resnet18", "--purifier", "toy", "--limit", "2", "--attack", "noise", "--threat", "noise")
RUN = (*RUN, "--checks", "none", "--no-store", "--quiet", "--out", "r")
LOSS = 'yield Loss("o", (self.modules["m"](batch.images) - batch.images).square().mean())'
ADAM = 'return {"o": Optimiser(torch.optim.Adam(self.modules["m"].parameters(), 1e-3))}'
CONV = "self.mix = nn.Conv2d(1, 1, 3, padding=1)"
FORWARD = "return self.mix(images).sigmoid()"
METHOD = "\n\ndef train(config, recipe, task):"


def injections() -> Iterable[Injection]:
    """Return them all."""
    yield from _refused()
    yield from _trained_all_the_same()
    yield from _kept()
    yield from _types()
    yield from _own_weights()


def _refused() -> Iterable[Injection]:
    """Yield trainings of which no weights may come."""
    kind = "trainings that train nothing"
    losses = {
        "no loss": "return; yield",
        "no generator": "return None",
        "a tensor": 'yield self.modules["m"](batch.images).mean()',
        "no gradient": LOSS.replace(".mean())", ".mean().detach())"),
        "of a constant": 'yield Loss("o", torch.tensor(1.0))',
        "not one number": LOSS.replace(".mean())", ")"),
        "a plain number": 'yield Loss("o", 1.0)',
        "of whole numbers": 'yield Loss("o", torch.tensor(1))',
        "NaN": LOSS.replace(".mean())", ".mean() * float('nan'))"),
        "infinite": LOSS.replace(".mean())", ".mean() / 0)"),
        "another optimiser": LOSS.replace('"o"', '"other"'),
        "no optimiser's name": LOSS.replace('"o"', "None"),
        "a metric that is text": LOSS.replace(".mean())", '.mean(), {"x": "high"})'),
        "a metric of an image": LOSS.replace(".mean())", '.mean(), {"x": batch.images})'),
        "twice through one graph": f"loss = {LOSS.removeprefix('yield ')}; yield loss; yield loss",
        "an exception": "yield 1 / 0",
        "StopIteration": "raise StopIteration; yield",
    }
    for name, line in losses.items():
        yield _case(
            kind, f"losses: {name}", PURIFIER.replace(LOSS, line), quick=name in ("no gradient", "an exception")
        )
    optimisers = {
        "none": "return {}",
        "nothing": "return None",
        "of torch, bare": 'return {"o": torch.optim.Adam(self.modules["m"].parameters())}',
        "of nothing": 'return {"o": Optimiser(None)}',
        "of other parameters": 'return {"o": Optimiser(torch.optim.Adam(Toy().parameters(), 1e-3))}',
        "without a rate": ADAM.replace("1e-3", "0.0"),
        "a rate that is infinite": ADAM.replace("Adam", "SGD").replace("1e-3", "1e999"),
        "without parameters": 'return {"o": Optimiser(torch.optim.Adam([]))}',
        "a schedule that is none": ADAM.replace("1e-3))", "1e-3), 5)"),
        "a schedule that ends early": 'a = torch.optim.SGD(self.modules["m"].parameters(), 1e-3); '
        'return {"o": Optimiser(a, torch.optim.lr_scheduler.OneCycleLR(a, 1e-3, total_steps=2))}',
    }
    for name, line in optimisers.items():
        yield _case(kind, f"optimisers: {name}", PURIFIER.replace(ADAM, line))
    settings = {"epochs=3": ("epochs=0", "epochs=-1", "epochs=None", "epochs=2.5")}
    settings["batch_size=300"] = ("batch_size=0", "batch_size=-5", "batch_size=None", "batch_size='all'")
    for old, others in settings.items():
        for new in others:
            yield _case(kind, new, PURIFIER.replace(old, new), quick=new == "epochs=0")
    for size in ("0", "-3", "None", "10**6", "2.5", "1 / 0"):
        yield _method(kind, "epoch_size(self, epoch, size)", f"return {size}")
    orders = ("torch.arange(size) + 1", "torch.arange(size) - 1", "torch.arange(3)", "list(range(size))", "None")
    for order in (*orders, "torch.arange(size).float()", "torch.arange(size)[:, None]", "1 / 0", "torch.arange(0)"):
        yield _method(kind, "order(self, epoch, size, seed)", f"return {order}")
    for data in ("None", "1 / 0", "[]", "_Empty()"):
        yield _method(kind, "data(self, dataset, device)", f"return {data}")
    buffer = 'self.register_buffer("b", torch.tensor([float("nan")]))'
    yield _case(kind, "a buffer of NaN", PURIFIER.replace(CONV, f"{CONV}; {buffer}"))
    for line in ("return None", "return 1 / 0", "raise SystemExit(0)"):
        yield _case(kind, f"train: {line}", PURIFIER.replace(METHOD, f"{METHOD}\n    {line}"))


def _trained_all_the_same() -> Iterable[Injection]:
    """Yield trainings that are odd, and nonetheless give weights."""
    kind = "odd trainings"
    yield _case(
        kind, "losses in a list", PURIFIER.replace(LOSS, LOSS.replace("yield Loss", "return [Loss") + "]"), code=0
    )
    metric = LOSS.replace(".mean())", '.mean(), {"x": 1.5})')
    yield _case(kind, "a metric that is a plain number", PURIFIER.replace(LOSS, metric), code=0)
    infinite = f'{CONV}; self.register_buffer("threshold", torch.tensor(float("inf")))'
    yield _case(kind, "a buffer that is infinite", PURIFIER.replace(CONV, infinite), code=0)
    for result in ("0.5", "torch.tensor(0.5)", "1", "None"):
        yield _method(kind, "score(self, dataset, device)", f"return {result}", code=0)
    for result in ('{"x": torch.tensor(0.5)}', '{"x": 1}', "{}"):
        yield _method(kind, "finish(self, dataset, device)", f"return {result}", code=0)


def _kept() -> Iterable[Injection]:
    """Yield stages that fail when their weights are trained: these must not be lost."""
    kind = "failures when all is trained"
    bad = ("1 / 0", '{}["x"]', 'float("nan")', '"high"', "torch.rand(3)")
    for line in (*bad, "[0.5]"):
        yield _rescued(kind, "score", line, quick=line == "1 / 0")
    for line in (*bad, "None", '{"x": "high"}', '{"x": float("nan")}', '{"x": torch.rand(3)}', '{"x": None}'):
        yield _rescued(kind, "finish", line)


def _types() -> Iterable[Injection]:
    """Yield weights of every type, which go to a file and back, or are refused before the training."""
    kind = "types of weights"
    held = {
        "bfloat16": (f"{CONV}.bfloat16()", "return self.mix(images.bfloat16()).float().sigmoid()"),
        "float16": (f"{CONV}.half()", "return self.mix(images.half()).float().sigmoid()"),
        "float64": (f"{CONV}.double()", "return self.mix(images.double()).float().sigmoid()"),
        "complex64": (
            "self.w = nn.Parameter(torch.ones(1, dtype=torch.complex64))",
            "return (images * self.w.abs()).sigmoid()",
        ),
        "tied": (f"{CONV}; self.again = self.mix", FORWARD),
        "tied, by weight": (
            f"{CONV}; self.other = nn.Conv2d(1, 1, 3, padding=1); self.other.weight = self.mix.weight",
            "return self.other(self.mix(images)).sigmoid()",
        ),
        "a scalar": (
            f"{CONV}; self.s = nn.Parameter(torch.tensor(1.0))",
            "return (self.s * self.mix(images)).sigmoid()",
        ),
        "an empty buffer": (f'{CONV}; self.register_buffer("none", torch.empty(0))', FORWARD),
        "whole numbers and bools": (
            f'{CONV}; self.register_buffer("i", torch.arange(3)); self.register_buffer("b", torch.ones(2) > 0)',
            FORWARD,
        ),
        "a conjugated buffer": (
            f'{CONV}; self.register_buffer("c", torch.ones(2, dtype=torch.complex64).conj())',
            FORWARD,
        ),
        "a weight norm": ("self.mix = nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 1, 3, padding=1))", FORWARD),
    }
    for name, (make, use) in held.items():
        source = PURIFIER.replace(CONV, make).replace(FORWARD, use)
        yield Injection(kind, name, functools.partial(_there_and_back, source=source), quick=name == "bfloat16")
    refused = {
        "sparse": f'{CONV}; self.register_buffer("s", torch.eye(3).to_sparse())',
        "sparse, by rows": f'{CONV}; self.register_buffer("s", torch.eye(3).to_sparse_csr())',
        "quantised": f'{CONV}; self.register_buffer("q", torch.quantize_per_tensor(torch.ones(2), 1, 0, torch.qint8))',
        "complex128": f'{CONV}; self.register_buffer("c", torch.ones(2, dtype=torch.complex128))',
        "without memory": f'{CONV}; self.register_buffer("m", torch.empty(2, device="meta"))',
        "expanded": f'{CONV}; self.register_buffer("e", torch.ones(1).expand(9))',
        "lazy": "self.mix = nn.LazyConv2d(1, 3, padding=1)",
    }
    for name, make in refused.items():
        yield _case(kind, name, PURIFIER.replace(CONV, make))


def _case(kind: str, name: str, source: str, *, code: int = 2, quick: bool = False) -> Injection:
    assert source != PURIFIER, name
    return Injection(kind, name, functools.partial(_train, source=source, code=code), quick=quick)


def _method(kind: str, method: str, line: str, *, code: int = 2) -> Injection:
    return _case(kind, f"{method.partition('(')[0]}: {line}", _with_method(method, line), code=code)


def _with_method(method: str, line: str) -> str:
    empty = """
from defend.datasets.base import MemoryDataset
def _Empty():
    splits = {each: torch.zeros(0, 1, 8, 8, dtype=torch.uint8) for each in ("train", "val", "test")}
    return MemoryDataset("toy", ("a", "b"), splits, {each: torch.zeros(0, dtype=torch.int64) for each in splits})
"""
    return PURIFIER.replace(METHOD, f"\n    def {method}:\n        {line}\n{empty}{METHOD}")


def _train(folder: Path, source: str, code: int) -> str:
    answer = run_command(folder, *TRAIN, arrange=with_plugin(source))
    made = list((folder / "cache").glob("weights/*"))
    if code and made:
        return f"exit {answer.code}, and weights were written all the same"
    if code and answer.code in (1, 2) and "asked to exit" in answer.error:
        return ""
    return answer.misbehaved(code=code, words=("toy",) if code == 2 and "module's state" not in answer.error else ())


def _rescued(kind: str, method: str, line: str, *, quick: bool = False) -> Injection:
    source = _with_method(f"{method}(self, dataset, device)", f"return {line}")
    return Injection(kind, f"{method}: {line}", functools.partial(_rescue, source=source, method=method), quick=quick)


def _rescue(folder: Path, source: str, method: str) -> str:
    """Train a stage that fails at last; the line names weights that a run takes."""
    answer = run_command(folder, *TRAIN, arrange=with_plugin(source))
    words = ("purifier toy", f"{method}()", "--purifier-weights")
    if wrong := answer.misbehaved(code=2, words=words):
        kept = list((folder / "cache").rglob("checkpoint.safetensors"))
        return wrong if kept else f"{LOST}the training ({wrong})"
    file = answer.line.partition("--purifier-weights ")[2].split()[0]
    run = run_command(folder, *RUN, "--purifier-weights", file, arrange=with_plugin(source))
    return run.misbehaved(code=0, words=("are of a training that failed before its end",))


def _there_and_back(folder: Path, source: str) -> str:
    """Train weights, in one go and in two; load them, and compare."""
    answer = run_command(folder, *TRAIN, arrange=with_plugin(source))
    if wrong := answer.misbehaved(code=0):
        return wrong
    made = json.loads(answer.out)
    whole = made["card"]["content_sha256"]
    again = run_command(folder, *TRAIN, arrange=with_plugin(source))  # goes on from the checkpoint of the last epoch
    if wrong := again.misbehaved(code=0):
        return wrong
    if json.loads(again.out)["card"]["content_sha256"] != whole:
        return f"{LOST}a training that went on gave other weights"
    if "no checkpoint" in answer.error:
        return f"{LOST}no checkpoint was kept: {answer.error}"
    run = run_command(folder, *RUN, arrange=with_plugin(source))
    if wrong := run.misbehaved(code=0):
        return wrong
    used = json.loads((folder / "r" / "report.json").read_text())["weights"]["purifier"]["sha256"]
    return "" if used == whole else "the run took other weights"


def _own_weights() -> Iterable[Injection]:
    """Yield weights of the user's own in the place of shipped ones: every command says so, and how to go back."""
    kind = "weights in the place of others"
    for command in (("list",), ("show", "dae"), ("cache",)):
        yield Injection(
            kind, " ".join(command), functools.partial(_says_own, command=command), quick=command == ("list",)
        )
    yield Injection(kind, "run, page, and back", _runs_own)
    yield Injection(kind, "a file that was named", _runs_named)
    yield Injection(kind, "damaged ones", _damaged_own)
    for name in ("../weights/x", "/etc/passwd", "", ".", "purifier-dae-digits", "x\n"):
        yield Injection(kind, f"--forget {name!r}", functools.partial(_forgets_nothing, name=name))


DAE = (*RUN[:4], "dae", *RUN[5:])
FILE = "purifier-dae-digits.safetensors"


def _put_own(folder: Path) -> Path:
    import importlib.resources
    import shutil

    own = folder / "cache" / "weights" / FILE
    own.parent.mkdir(parents=True)
    shutil.copy(str(importlib.resources.files("defend_dae_finetune.weights") / FILE), own)
    return own


def _says_own(folder: Path, command: tuple[str, ...]) -> str:
    _put_own(folder)
    words = ("yours",) if command == ("list",) else ("defend_dae_finetune", "defend cache --forget", FILE)
    text, machine = (run_command(folder, *command, *flag) for flag in ((), ("--json",)))
    return text.misbehaved(code=0, words=words) or machine.misbehaved(code=0)


def _runs_own(folder: Path) -> str:
    own = _put_own(folder)
    answer = run_command(folder, *DAE)
    if wrong := answer.misbehaved(code=0, words=("purifier your own since 20", f"defend cache --forget {FILE}")):
        return wrong
    report = json.loads((folder / "r" / "report.json").read_text())
    if report["weights"]["purifier"].get("origin") != "cache" or not any(
        "your own" in each for each in report["notes"]
    ):
        return "report.json does not say whose weights were taken"
    if wrong := run_command(folder, "report", "r").misbehaved(code=0):
        return wrong
    if "your own since" not in (folder / "r" / "report.html").read_text():
        return "the page does not say whose weights were taken"
    if wrong := run_command(folder, "cache", "--forget", FILE).misbehaved(code=0):
        return wrong
    back = run_command(folder, *DAE[:-1], "again")
    return back.misbehaved(code=0, words=("purifier shipped with defend_dae_finetune",)) or (
        "it is there yet" if own.exists() else ""
    )


def _runs_named(folder: Path) -> str:
    named = _put_own(folder).rename(folder / "mine.safetensors")
    answer = run_command(folder, *DAE, "--purifier-weights", named)
    return answer.misbehaved(code=0, words=("purifier the file mine.safetensors of 20",))


def _damaged_own(folder: Path) -> str:
    own = _put_own(folder)
    own.write_bytes(own.read_bytes()[:100])
    wrong = run_command(folder, *DAE).misbehaved(code=2, words=(str(own),))
    wrong = wrong or run_command(folder, "cache").misbehaved(code=0, words=(FILE, "damaged"))
    return wrong or run_command(folder, "cache", "--forget", FILE).misbehaved(code=0)


def _forgets_nothing(folder: Path, name: str) -> str:
    own = _put_own(folder)
    answer = run_command(folder, "cache", "--forget", name)
    return answer.misbehaved(code=2, words=(FILE,)) or ("" if own.exists() else f"{LOST}weights")
