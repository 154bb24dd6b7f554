"""A defence as one graph, in a file of torch.export or ONNX that is held against the defence itself."""

from __future__ import annotations

import importlib
import io
import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from defend.assembly.prepare import cause_of, fold_victim
from defend.boundary.answers import threshold_of
from defend.boundary.copies import copy_module
from defend.defence import Defence
from defend.deploy.tracing import Answers, explain, quiet, trace
from defend.errors import ConfigError, ContractError
from defend.util.files import sweep, write_bytes

INPUT, OUTPUTS = "images", ("logits", "score", "accepted")
SUFFIXES = (".pt2", ".onnx")
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
CARD = "defend.json"  # .pt2: this extra file; .onnx: the same JSON under the key "defend" of the metadata
CHECKED = (1, 15)  # batch sizes that the file is held against the defence with
TOLERANCE = 1e-4  # of the largest value of an output, as only that says what is small; measured: 4e-6
DISTURBANCE = 8 / 255  # of the images that a file is checked with
Runner = Callable[[Tensor], Sequence[Tensor]]
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
        card: what the file says of itself: parts, options, data set and classes, versions, hashes of weights, and how
            the threshold was set.
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


def write_file(out: Path, defence: Defence, sample: Tensor, card: Mapping[str, Any]) -> Exported:
    """Write any defence that is one fixed graph to a file.

    Args:
        out: as for `export_defence`.
        defence: on the CPU; left as it is.
        sample: images [N,C,H,W] in [0,1] to check the file with, see `_disturb`; repeated or cut to sum(CHECKED).
        card: what the file is to say of itself, as JSON has it; interface and threshold are added.

    Raises:
        ConfigError, ContractError: see `export_defence`.
    """
    check_path(out)
    count = sum(CHECKED)
    sample = _disturb(sample[torch.arange(count) % len(sample)])
    verdict = defence.judge(sample)
    expected, threshold = {"logits": verdict.logits}, math.inf
    if defence.detector is not None:
        expected |= {"score": verdict.score, "accepted": verdict.accepted}
        threshold = float(threshold_of(defence.detector))
    try:
        ready = copy_module(defence).eval().requires_grad_(False)
    except Exception as error:
        raise ConfigError(
            f"the defence cannot be copied, which tracing it needs ({cause_of(error)}): it cannot be exported"
        ) from error
    ready.victim, how, why = fold_victim(ready.victim, sample)
    shapes: dict[str, list[int | str]] = {name: ["batch", *value.shape[1:]] for name, value in expected.items()}
    interface: dict[str, Any] = {
        "inputs": {INPUT: ["batch", *sample.shape[1:]]},
        "outputs": shapes,
        "threshold": threshold if math.isfinite(threshold) else None,
        "range": [0, 1],
        "batch_norm": "folded" if how == "batch norm folded" else f"{how}: {why}" if why else how,
    }
    card = {"format": 1, **card, **interface}
    program = trace(Answers(ready), sample)
    data, run = (_as_onnx if out.suffix == ".onnx" else _as_pt2)(program, json.dumps(card), tuple(expected))
    parity = compare(run, sample, expected, threshold)
    sweep(out.parent, of=out.name)
    write_bytes(out, data, "exported defence")
    return Exported(out, len(data), interface["inputs"], shapes, parity, card)


def _disturb(sample: Tensor) -> Tensor:
    """Return images of which a third is as it was, a third disturbed and a third noise: a defence is there for these.

    Tracing takes one way through its code, and other images may take another.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(sample.shape, generator=generator)
    kinds = [sample, (sample + DISTURBANCE * (noise - 0.5).sign()).clamp(0, 1), noise.to(sample.dtype)]
    return torch.stack([kinds[place % len(kinds)][place] for place in range(len(sample))])


def check_path(out: Path) -> None:
    """Refuse a file that cannot be written as asked, before anything slow.

    Raises:
        ConfigError: another suffix than `SUFFIXES`, a missing folder, none for temporary files, or packages that .onnx
            needs.
    """
    if out.suffix not in SUFFIXES:
        raise ConfigError(f"--out {str(out)!r} ends in {out.suffix!r}: expected one of {', '.join(SUFFIXES)}")
    if not out.parent.is_dir() or out.is_dir():
        cause = "is a folder" if out.is_dir() else f"lies in {str(out.parent)!r}, which does not exist"
        raise ConfigError(f"--out {str(out)!r} {cause}: expected a file in a folder that exists")
    try:
        tempfile.gettempdir()
    except OSError as error:
        raise ConfigError(
            f"no folder for temporary files can be written, as torch's tracing needs one ({error.strerror}): set TMPDIR"
        ) from None
    if out.suffix == ".onnx":
        for name in ONNX_PACKAGES:
            _import(name)


def _as_pt2(program: torch.export.ExportedProgram, card: str, _: Sequence[str]) -> tuple[bytes, Runner]:
    """Return a file's bytes, and how the file answers."""
    buffer = io.BytesIO()
    with quiet():
        try:
            torch.export.save(program, buffer, extra_files={CARD: card})
        except Exception as error:
            raise ConfigError(f"the graph cannot be written as .pt2: {explain(error)}") from error
        buffer.seek(0)
        loaded = torch.export.load(buffer).module()

    def run(images: Tensor) -> Sequence[Tensor]:
        with torch.no_grad():
            found = loaded(images)
        return (found,) if isinstance(found, Tensor) else tuple(found)

    return buffer.getvalue(), run


def _as_onnx(program: torch.export.ExportedProgram, card: str, outputs: Sequence[str]) -> tuple[bytes, Runner]:
    """Return a file's bytes, and how onnxruntime answers with them."""
    onnx, runtime = _import("onnx"), _import("onnxruntime")
    try:
        with quiet():
            converted: Any = torch.onnx.export(
                program,
                (),
                dynamo=True,
                verbose=False,
                external_data=False,
                input_names=[INPUT],
                output_names=list(outputs),
            )
        model = converted.model_proto
        _tidy(model)
        onnx.helper.set_model_props(model, {"defend": card})
        data: bytes = model.SerializeToString()
    except Exception as error:
        raise ConfigError(f"the graph cannot be written as .onnx: {explain(error)}; try --out with .pt2") from error
    try:
        session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ConfigError(f"onnxruntime cannot load the graph: {explain(error)}; try --out with .pt2") from error

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


def compare(
    run: Runner, sample: Tensor, expected: Mapping[str, Tensor], threshold: float = math.inf
) -> dict[str, float]:
    """Hold a graph against a defence that judged all images at once; see `Exported.parity`.

    Args:
        run: answers for a batch as the graph does.
        sample: sum(CHECKED) images [N,C,H,W].
        expected: the defence's outputs, by name, in the order of `OUTPUTS`.
        threshold: the detector's; scores as near to it as rounding is may fall on either side.

    Returns:
        The differences.

    Raises:
        ContractError: the graph fails on a batch, differs by more than rounding, or gives other labels; or all scores
            are at the threshold, or all logits equal, so that nothing shows what it would decide.
    """
    parts = []
    for images in sample.split(CHECKED):
        try:
            parts.append(run(images))
        except Exception as error:
            raise ContractError(
                f"the exported graph fails on a batch of {len(images)}, no file was written: {explain(error)}"
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
        rounding = 0.0 if wanted.dtype == torch.bool else TOLERANCE * float(wanted.abs().max())
        if name == "accepted":
            score = expected["score"]
            near = TOLERANCE * float(score.abs().max())
            apart = apart[(score - threshold).abs() > near]
            _check_some(len(apart), f"scores lie within {near:.3g} of the threshold {threshold:.6g}", "accepts")
        parity[name] = float(apart.max())
        if not parity[name] <= rounding:
            raise _differs(f"{name} by {parity[name]:.3g}", f", where rounding is at most {rounding:.3g}")
    _compare_labels(found["logits"], expected["logits"])
    return parity


def _compare_labels(found: Tensor, expected: Tensor) -> None:
    """Hold the classes of logits [B,K] against those expected; what all classes have in common decides none."""
    spread = TOLERANCE * float((expected.amax(1) - expected.amin(1)).max())
    first, second = expected.topk(2, 1).values.unbind(1)
    clear = first - second > 2 * spread
    _check_some(int(clear.sum()), f"largest logits lie within {2 * spread:.3g} of the second", "classifies")
    if others := int((found.argmax(1) != expected.argmax(1))[clear].sum()):
        raise _differs(f"the class of {others} of {int(clear.sum())}", "")


def _check_some(count: int, why: str, does: str) -> None:
    """Refuse a comparison of no image, which anything would pass."""
    if not count:
        raise ContractError(
            f"the exported graph cannot be held against the defence, no file was written: all {why}, so that no image "
            f"shows whether it {does} alike"
        )


def _differs(what: str, where: str) -> ContractError:
    sizes = " and ".join(map(str, CHECKED))
    return ContractError(
        f"the exported graph differs from the defence: {what} on images in batches of {sizes}{where}: no file was "
        "written; a stage uses statistics of its batch, Python state, or random numbers without saying so"
    )


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f'--out with .onnx needs {name} ({error}): run `pip install "defend-core[onnx]"`, or take .pt2'
        ) from None
