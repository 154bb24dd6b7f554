"""A defence as one file that runs without this package: torch's own format (.pt2), or ONNX (.onnx).

What is written answers as `Defence.judge` does: images float32 [B,C,H,W] in [0,1], of any B, to logits [B,classes] and,
with a detector, its score [B] and whether the image is accepted (score below the threshold), a truth value [B].
Normalisation, purifier and threshold are inside; parameters are frozen, and the victim's batch norm is folded into its
convolutions where that can be done. A file holds one fixed graph, so a defence that draws random numbers or optimises
at test time cannot become one.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from defend import __version__
from defend.build import Built, build_module, build_purifiers, build_stage, build_tuned, in_sequence, open_dataset
from defend.calibrate import is_calibrated
from defend.datasets.base import ImageDataset
from defend.defence import Defence
from defend.errors import ConfigError, ContractError, DefendError, did_you_mean
from defend.files import atomic
from defend.gradients import differentiates_inside
from defend.plugins import Found, registry
from defend.speed import cause_of, copied, folded_victim
from defend.stages import Stage, Task
from defend.values import split_names

SUFFIXES = (".pt2", ".onnx")
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
INPUT, OUTPUTS = "images", ("logits", "score", "accepted")
CARD = "defend.json"  # .pt2: this extra file; .onnx: the same JSON under the key "defend" of the metadata
TRACED = 2  # images that the graph is traced with; torch.export takes one for a constant
LARGEST_BATCH = 2**31 - 1  # without a bound, torch 2.6 asks stages to take 2**63 - 1
CHECKED = (1, 15)  # batch sizes that the file is held against the defence with
TOLERANCE = 1e-4  # of the largest value of an output, or of 1; measured: 1e-6
LONGEST_CAUSE = 200

RANDOM = "draws random numbers"
OPTIMISES = "optimises at test time (its forward pass takes gradients)"

Run = Callable[[Tensor], Sequence[Tensor]]
"""Images to the outputs of a file, in the order of `OUTPUTS`."""


@attrs.frozen
class Exported:
    """A file that was written.

    Attributes:
        path: where.
        size: bytes.
        inputs, outputs: names to shapes; the batch is the word "batch".
        parity: output to the largest absolute difference from the defence, over the images in batches of the sizes in
            `CHECKED`; `accepted` counts as 0 and 1.
        card: what the file says of itself: parts, options, data set and classes, versions, hashes of weights.
        batches: those sizes.
    """

    path: Path
    size: int
    inputs: Mapping[str, Sequence[int | str]]
    outputs: Mapping[str, Sequence[int | str]]
    parity: Mapping[str, float]
    card: Mapping[str, Any]
    batches: tuple[int, ...] = CHECKED

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON has it."""
        return {**attrs.asdict(self), "path": str(self.path)}


def export_defence(
    out: Path,
    *,
    victim: str,
    purifier: str | None = None,
    detector: str | None = None,
    finetune: str | None = None,
    dataset: str = "digits",
    data_dir: str | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    weights: Mapping[str, str] | None = None,
) -> Exported:
    """Write a defence named by its parts to a file, once it was found to answer as the defence does.

    Args:
        out: a file ending in .pt2 (`torch.export.load`) or .onnx; replaced if it exists.
        dataset: whose test images the file is checked on.
        See `defend.load` for the others.

    Raises:
        ConfigError: another suffix, packages that are missing, a part whose answer is no fixed graph (the message names
            what to use instead), a detector without a threshold, or a graph that torch cannot trace or convert.
        ContractError: the file answered otherwise than the defence; nothing is written.
        DefendError: whatever else is wrong with a name, an option or the weights.
    """
    check_path(out)
    options, weights = dict(options or {}), dict(weights or {})
    names = split_names(purifier)
    known = {"victim", "dataset", *names, *(["purifier"] if names else []),
             *(["detector"] if detector else []), *(["finetuner"] if finetune else [])}  # fmt: skip
    for kind, stages in (("options", options), ("weights", weights)):
        for stage in stages:
            if stage not in known:
                raise ConfigError(f"{kind} for {stage!r}, which is not in this defence: {did_you_mean(stage, known)}")
    images = open_dataset(dataset, data_dir, options.get("dataset"))
    task = images.task()
    bare = build_stage("victim", victim, task, options.get("victim"), weights.get("victim"))
    purifiers = build_purifiers(names, task, options, weights)
    built = {"victim": bare, **purifiers}
    last, screen = bare.module, None
    if finetune:
        built["finetuner"] = build_tuned(
            finetune, task, victim, last, purifier, options.get("finetuner"), weights.get("finetuner")
        )
        last = built["finetuner"].module
    if detector:
        built["detector"] = build_stage("detector", detector, task, options.get("detector"), weights.get("detector"))
        screen = built["detector"].module
    whole = Defence(last, in_sequence(purifiers), screen)
    sample, _ = images.tensors("test", limit=sum(CHECKED))
    _check_fixed(whole, {"victim": victim, **{name: name for name in names}, "detector": detector}, built, task, sample)
    if whole.detector is not None and not is_calibrated(whole.detector):
        behind = f" --purifier {purifier}" if purifier else ""
        raise ConfigError(
            f"detector {detector} has no threshold for {dataset}, and would accept every image: "
            f"run `defend calibrate --detector {detector}{behind} --dataset {dataset}` first"
        )
    parts = {"victim": victim, "purifier": purifier, "detector": detector, "finetune": finetune}
    return write_file(out, whole, sample, {**parts, **_described(built, images, options)})


def write_file(out: Path, defence: Defence, sample: Tensor, card: Mapping[str, Any]) -> Exported:
    """Write any defence that is one fixed graph to a file.

    Args:
        out: as for `export_defence`.
        defence: on the CPU; left as it is.
        sample: images [N,C,H,W] in [0,1] to check the file with; repeated or cut to sum(CHECKED).
        card: what the file is to say of itself, as JSON has it; interface and threshold are added.

    Raises:
        ConfigError, ContractError: see `export_defence`.
    """
    check_path(out)
    count = sum(CHECKED)
    sample = sample[torch.arange(count) % len(sample)]
    verdict = defence.judge(sample)
    expected, threshold = {"logits": verdict.logits}, math.inf
    if defence.detector is not None:
        expected |= {"score": verdict.score, "accepted": verdict.accepted}
        threshold = float(torch.as_tensor(defence.detector.threshold))
    try:
        ready = copied(defence).eval().requires_grad_(False)
    except Exception as error:
        raise ConfigError(
            f"the defence cannot be copied, which tracing it needs ({cause_of(error)}): it cannot be exported"
        ) from error
    ready.victim, how, why = folded_victim(ready.victim, sample)
    shapes: dict[str, list[int | str]] = {name: ["batch", *value.shape[1:]] for name, value in expected.items()}
    interface: dict[str, Any] = {
        "inputs": {INPUT: ["batch", *sample.shape[1:]]},
        "outputs": shapes,
        "threshold": threshold if math.isfinite(threshold) else None,
        "range": [0, 1],
        "batch_norm": "folded" if how == "batch norm folded" else f"{how}: {why}" if why else how,
    }
    card = {"format": 1, **card, **interface}
    program = _trace(Answers(ready), sample)
    data, run = (_as_onnx if out.suffix == ".onnx" else _as_pt2)(program, json.dumps(card), tuple(expected))
    parity = compare(run, sample, expected, threshold)
    with atomic(out) as temporary:
        temporary.write_bytes(data)
    return Exported(out, len(data), interface["inputs"], shapes, parity, card)


def check_path(out: Path) -> None:
    """Refuse a file that cannot be written as asked, before anything slow.

    Raises:
        ConfigError: another suffix than `SUFFIXES`, a missing folder, or packages that .onnx needs.
    """
    if out.suffix not in SUFFIXES:
        raise ConfigError(f"--out {str(out)!r} ends in {out.suffix!r}: expected one of {', '.join(SUFFIXES)}")
    if not out.parent.is_dir() or out.is_dir():
        cause = "is a folder" if out.is_dir() else f"lies in {str(out.parent)!r}, which does not exist"
        raise ConfigError(f"--out {str(out)!r} {cause}: expected a file in a folder that exists")
    if out.suffix == ".onnx":
        for name in ONNX_PACKAGES:
            _import(name)


class Answers(nn.Module):
    """What a file answers, of a defence: images [B,C,H,W] to logits, or to (logits, score, accepted).

    The same as `Defence.judge`, without its checks, which ask for values that a graph does not know.
    """

    def __init__(self, defence: Defence) -> None:
        super().__init__()
        self.defence = defence
        self.eval()

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """See the class."""
        whole = self.defence
        purified = images if whole.purifier is None else whole.purify(images).clamp(0, 1)
        logits = whole.classify(purified).float()
        if whole.detector is None:
            return logits
        score = whole.rate(images, purified)
        threshold: Any = whole.detector.threshold
        return logits, score, score < threshold


def _trace(answers: Answers, sample: Tensor) -> torch.export.ExportedProgram:
    """Trace with a batch of any size; the example that the file keeps is black images, not the data set's.

    Torch's usual way first; it takes a batch size that Python asked for with `len` for a constant, dynamo does not.
    """
    first: Exception | None = None
    for strict in (False, True):
        try:
            with torch.no_grad(), _quiet():
                program = torch.export.export(
                    answers,
                    (torch.zeros_like(sample[:TRACED]),),
                    dynamic_shapes=({0: torch.export.Dim("batch", max=LARGEST_BATCH)},),
                    strict=strict,
                )
        except Exception as error:  # whatever the stages do that no graph can hold
            first = first or error
            continue
        for part in program.graph_module.modules():
            if isinstance(part, torch.fx.GraphModule):
                for node in part.graph.nodes:
                    node.meta.pop("stack_trace", None)  # this machine's paths
        return program
    assert first is not None
    raise ConfigError(f"the defence cannot be traced as one graph: {_cause(first)}") from first


def _as_pt2(program: torch.export.ExportedProgram, card: str, _: Sequence[str]) -> tuple[bytes, Run]:
    """Return a file's bytes, and how the file answers."""
    buffer = io.BytesIO()
    with _quiet():
        try:
            torch.export.save(program, buffer, extra_files={CARD: card})
        except Exception as error:
            raise ConfigError(f"the graph cannot be written as .pt2: {_cause(error)}") from error
        buffer.seek(0)
        loaded = torch.export.load(buffer).module()

    def run(images: Tensor) -> Sequence[Tensor]:
        with torch.no_grad():
            found = loaded(images)
        return (found,) if isinstance(found, Tensor) else tuple(found)

    return buffer.getvalue(), run


def _as_onnx(program: torch.export.ExportedProgram, card: str, outputs: Sequence[str]) -> tuple[bytes, Run]:
    """Return a file's bytes, and how onnxruntime answers with them."""
    onnx, runtime = _import("onnx"), _import("onnxruntime")
    try:
        with _quiet():
            converted: Any = torch.onnx.export(
                program, (), dynamo=True, verbose=False, external_data=False,
                input_names=[INPUT], output_names=list(outputs),
            )  # fmt: skip
        model = converted.model_proto
        _tidy(model)
        onnx.helper.set_model_props(model, {"defend": card})
        data: bytes = model.SerializeToString()
    except Exception as error:
        raise ConfigError(f"the graph cannot be written as .onnx: {_cause(error)}; try --out with .pt2") from error
    try:
        session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ConfigError(f"onnxruntime cannot load the graph: {_cause(error)}; try --out with .pt2") from error

    def run(images: Tensor) -> Sequence[Tensor]:
        return [torch.from_numpy(value) for value in session.run(None, {INPUT: images.numpy()})]

    return data, run


def _tidy(model: Any) -> None:
    """Call the batch "batch" in an ONNX model, and leave out the trace of the Python it came from."""
    graph = model.graph
    traced = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.input, *graph.output, *graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param == traced:
                size.dim_param = "batch"
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info):
        del part.metadata_props[:]


def compare(run: Run, sample: Tensor, expected: Mapping[str, Tensor], threshold: float = math.inf) -> dict[str, float]:
    """Hold a graph against a defence that judged all images at once; see `Exported.parity`.

    Args:
        run: answers for a batch as the graph does.
        sample: sum(CHECKED) images [N,C,H,W].
        expected: the defence's outputs, by name, in the order of `OUTPUTS`.
        threshold: the detector's; scores as near to it as rounding is may fall on either side.

    Returns:
        The differences.

    Raises:
        ContractError: the graph fails on a batch, or differs by more than rounding.
    """
    parts = []
    for images in sample.split(CHECKED):
        try:
            parts.append(run(images))
        except Exception as error:
            raise ContractError(
                f"the exported graph fails on a batch of {len(images)}, no file was written: {_cause(error)}"
            ) from error
    found = {name: torch.cat(values) for name, values in zip(expected, zip(*parts, strict=True), strict=True)}
    parity: dict[str, float] = {}
    for name, wanted in expected.items():
        if found[name].shape != wanted.shape:
            raise ContractError(
                f"the exported graph returns {name} of shape {list(found[name].shape)}, expected {list(wanted.shape)}: "
                "no file was written"
            )
        apart = (found[name].double() - wanted.double()).abs()
        rounding = 0.0 if wanted.dtype == torch.bool else TOLERANCE * max(1.0, float(wanted.abs().max()))
        if name == "accepted":
            score = expected["score"]
            apart = apart[(score - threshold).abs() > TOLERANCE * max(1.0, float(score.abs().max()))]
        parity[name] = float(apart.max()) if len(apart) else 0.0
        if not parity[name] <= rounding:
            sizes = " and ".join(map(str, CHECKED))
            raise ContractError(
                f"the exported graph differs from the defence: {name} by {parity[name]:.3g} on images in batches of "
                f"{sizes}, where rounding is at most {rounding:.3g}: no file was written; a stage uses statistics of "
                "its batch, Python state, or random numbers without saying so"
            )
    return parity


class _Scored(nn.Module):
    """A detector on images that no purifier changed: [B,C,H,W] to scores [B]."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector, self.random = detector, bool(getattr(detector, "random", False))

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        score: Tensor = self.detector(images, images)
        return score


def _obstacle(module: nn.Module, images: Tensor) -> str | None:
    """Say what keeps a stage's answer from being a fixed graph, if anything."""
    if getattr(module, "random", False):
        return RANDOM
    return OPTIMISES if differentiates_inside(module, images) else None


def _check_fixed(
    whole: Defence, named: Mapping[str, str | None], built: Mapping[str, Built], task: Task, sample: Tensor
) -> None:
    """Refuse a defence with a part whose answer is no fixed graph.

    Raises:
        ConfigError: it names the part, the reason, and what to use instead.
    """
    few = sample[:TRACED]
    for part, name in named.items():
        if name is None:
            continue
        stage: Stage = "victim" if part == "victim" else "detector" if part == "detector" else "purifier"
        module = whole.victim if part == "victim" else built[part].module
        if stage == "detector":
            assert whole.detector is not None
            module = _Scored(whole.detector)
        why = _obstacle(module, few)
        if why is None:
            continue
        ways = []
        setting = None if stage == "victim" else _setting(registry().find(stage, name), built[part], task, few)
        if setting is not None:
            ways.append(f"add --set {part}.{setting}")
        if stage == "purifier" and (others := _fixed_purifiers(task, few)):
            ways.append(f"take a single-pass purifier ({', '.join(others)})")
        ways.append("use the defence in Python (defend.load)")
        raise ConfigError(f"{stage} {name} {why}, which no exported graph can hold: {', or '.join(ways)}")


def _setting(found: Found, built: Built, task: Task, images: Tensor) -> str | None:
    """Find one option of a stage with which it is a fixed graph, as OPTION=VALUE: a choice, or noise of size 0."""
    for field in attrs.fields(type(built.config)):
        if field.metadata.get("architecture"):
            continue
        current = getattr(built.config, field.name)
        still = (0.0,) if isinstance(current, float) and current > 0 and getattr(built.module, "random", False) else ()
        for value in field.metadata.get("choices") or still:
            with contextlib.suppress(DefendError):  # a value out of range
                module = build_module(found, attrs.evolve(built.config, **{field.name: value}), task).eval()
                if found.entry.stage == "detector":
                    module = _Scored(module)
                if _obstacle(module, images) is None:
                    return f"{field.name}={value:g}" if isinstance(value, float) else f"{field.name}={value}"
    return None


def _fixed_purifiers(task: Task, images: Tensor) -> list[str]:
    """Return the installed purifiers that are fixed graphs and need no training for this data set, by name."""
    names = []
    for entry in registry().entries("purifier"):
        with contextlib.suppress(DefendError):  # a family, or no weights
            if _obstacle(build_stage("purifier", entry.spec.name, task).module, images) is None:
                names.append(entry.spec.name)
    return names


def _described(built: Mapping[str, Built], dataset: ImageDataset, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a file says of where it comes from."""
    hashes = {part: each.card.content_sha256 for part, each in built.items() if each.card is not None}
    return {
        "options": {stage: dict(chosen) for stage, chosen in options.items()},
        "dataset": dataset.name,
        "classes": list(dataset.classes),
        "weights": hashes,
        "versions": {"defend": __version__, "torch": torch.__version__, **registry().versions},
    }


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f'--out with .onnx needs {name} ({error}): run `pip install "defend-core[onnx]"`, or take .pt2'
        ) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep to ourselves what torch's exporters warn, log and print of their own insides; errors are raised as ever."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    sink = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _cause(error: BaseException) -> str:
    """Return one line of an exporter's message: the one that says what became a constant, else the first."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip(" -\t") for line in str(error).splitlines() if line.strip(" -\t")]
    line = next((line for line in lines if "constant (" in line), lines[0] if lines else "no message")
    return f"{type(error).__name__}: {line[:LONGEST_CAUSE]}"
