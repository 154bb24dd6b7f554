"""Per-image records to a `Report`: every figure is computed here, from what was recorded."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from defend import metrics
from defend.build import Built
from defend.checks import HARMLESS, check_records
from defend.datasets.base import ImageDataset
from defend.evaluate import RowRecord, worst_case
from defend.threats import DEFENDED, UNDEFENDED
from defend.values import Calibration, Cost, DatasetInfo, Report, Row, RunConfig, WorstCase

RATES = (0.01, 0.05)


@attrs.frozen(kw_only=True)
class Circumstances:
    """What a report says beside its records; `parameters` are those that the defence adds to the victim."""

    dataset: ImageDataset
    plugins: Mapping[str, str]
    device: torch.device
    precision: Mapping[str, str]
    seconds: float
    batch_size: int
    built: Mapping[str, Built]
    parameters: int
    threshold: float | None = None
    calibration: Calibration | None = None
    partial: bool = False


def assemble(config: RunConfig, records: Sequence[RowRecord], known: Circumstances) -> Report:
    """Return the report of one defence; its records have the arms "undefended", "defended" and perhaps others."""
    rows = tuple(_row(record, config.seed) for record in records)
    common, right = worst_case(list(records), DEFENDED)
    _, bare = worst_case(list(records), UNDEFENDED)
    worst = None
    if len(common) and len(rows) > 1:
        worst = WorstCase(
            accuracy=float(right.double().mean()),
            ci95=metrics.wilson(int(right.sum()), len(right)),
            n=len(right),
            over=tuple(row.key for row in rows),
            undefended=float(bare.double().mean()),
        )
    clean = records[0].judge_ms
    weights = {
        part: {"file": value.path.name, "sha256": value.card.content_sha256, "figures": dict(value.card.figures)}
        for part, value in known.built.items()
        if value.path is not None and value.card is not None
    }
    return Report(
        versions={"defend-core": _version("defend-core"), "python": platform.python_version(),
                  "torch": torch.__version__, "timm": _version("timm")},
        plugins=dict(known.plugins),
        config=config,
        seed=config.seed,
        device=_device_name(known.device),
        precision=dict(known.precision),
        seconds=known.seconds,
        dataset=DatasetInfo(config.dataset, "test", max(row.n for row in rows), known.dataset.sha256("test")),
        rows=rows,
        worst_case=worst,
        detector=None if known.threshold is None else _detector(records, known.threshold, known.calibration),
        checks=check_records(records),
        cost=Cost(clean[UNDEFENDED], clean[DEFENDED], known.parameters, known.batch_size),
        weights=weights,
        partial=known.partial,
    )  # fmt: skip


def _row(record: RowRecord, seed: int) -> Row:
    attacked = record.plan.attack is not None
    arms = {
        name: metrics.arm(said.predicted, record.labels, said.accepted, attacked) for name, said in record.arms.items()
    }
    return Row(
        attack=record.plan.name,
        threat=record.plan.threat.kind,
        norm=record.plan.threat.norm,
        eps=record.plan.threat.eps,
        n=len(record.labels),
        steps=record.plan.steps,
        seed=seed,
        undefended=arms.pop(UNDEFENDED),
        defended=arms.pop(DEFENDED),
        mean_linf=float(record.linf.double().mean()),
        mean_l2=float(record.l2.double().mean()),
        seconds={"attack": record.attack_seconds, "purify": record.judge_seconds[DEFENDED]},
        partial=record.partial,
        arms=arms,
    )


def _detector(records: Sequence[RowRecord], threshold: float, calibration: Calibration | None) -> dict[str, Any]:
    """Return the detector's figures: for every attacked row, and for the one that it tells apart worst."""
    clean = next((record for record in records if record.plan.threat.kind == "none"), records[0])
    scores = clean.arms[DEFENDED].score
    rows = {
        f"{record.plan.name}/{record.plan.threat.kind}": _separation(scores, record.arms[DEFENDED].score)
        for record in records
        if record.plan.threat.kind not in HARMLESS
    }
    worst = min(rows, key=lambda key: rows[key]["auroc"]) if rows else None
    return {
        "auroc": rows[worst]["auroc"] if worst else None,
        "auroc_row": worst,
        "threshold": threshold,
        "fpr": calibration.fpr if calibration else None,
        "calibration": attrs.asdict(calibration) if calibration else None,
        "clean_rejected": float((~clean.arms[DEFENDED].accepted).double().mean()),
        "tpr_at_fpr": rows[worst]["tpr_at_fpr"] if worst else {},
        "rows": rows,
    }


def _separation(clean: Tensor, attacked: Tensor) -> dict[str, Any]:
    return {
        "auroc": metrics.auroc(clean, attacked),
        "tpr_at_fpr": {f"{rate:g}": metrics.tpr_at(clean, attacked, rate) for rate in RATES},
    }


def _version(distribution: str) -> str:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(distribution)
    return "unknown"


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({torch.get_num_threads()} threads)"
