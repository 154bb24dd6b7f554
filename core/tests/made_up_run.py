"""A run folder with every part that a run can record, from made-up outcomes of made-up images.

Loaded by path: the tests of the page and those in a browser share it.
"""

import csv
from pathlib import Path

import attrs
import numpy as np
from safetensors.numpy import save_file

from defend.records.document import to_json
from defend.util.statistics import wilson
from defend.values.report import ArmResult, Calibration, Check, Cost, DatasetInfo, LeastRow, Report, Row, WorstCase
from defend.values.run_config import RunConfig
from defend.values.toml import to_toml

N, PASSES, CLASSES, SIDE = 80, 10, 10, 12
COLUMNS = (
    "attack",
    "threat",
    "variant",
    "eps",
    "image",
    "label",
    "linf",
    "l2",
    "queries",
    "arm",
    "predicted",
    "confidence",
    "accepted",
    "score",
    "passes",
)
# attack, threat, variant, norm, eps, steps, undefended and defended accuracy, mean score, headline
ROWS = (
    ("none", "none", "", "none", 0.0, None, 0.99, 0.97, 0.0, True),
    ("noise", "noise", "", "linf", 0.1, None, 0.98, 0.97, 0.2, True),
    ("pgd", "transfer", "resnet20", "linf", 0.1, 20, 0.35, 0.9, 0.6, True),
    ("pgd", "transfer", "resnet20 behind dae", "linf", 0.1, 20, 0.4, 0.75, 0.5, True),
    ("fgsm", "oblivious", "", "linf", 0.1, 1, 0.1, 0.85, 1.1, True),
    ("pgd", "oblivious", "", "linf", 0.02, 20, 0.7, 0.95, 0.2, False),
    ("pgd", "oblivious", "", "linf", 0.05, 20, 0.2, 0.93, 0.5, False),
    ("pgd", "oblivious", "", "linf", 0.1, 20, 0.0, 0.9, 0.9, True),
    ("square", "query", "", "linf", 0.1, 200, 0.5, 0.5, 0.7, True),
    ("pgd", "bpda", "identity", "linf", 0.1, 20, 0.3, 0.45, 0.5, True),
    ("pgd", "adaptive", "", "linf", 0.02, 10, 0.9, 0.85, 0.1, False),
    ("pgd", "adaptive", "", "linf", 0.05, 10, 0.8, 0.55, 0.2, False),
    ("pgd", "adaptive", "", "linf", 0.1, 10, 0.7, 0.3, 0.4, True),
    ("cw", "adaptive", "", "l2", None, 50, 0.6, 0.2, 0.4, False),
    ("pgd_joint", "detector-aware", "", "linf", 0.1, 20, 0.7, 0.25, 0.1, True),
)


def write(
    folder,
    *,
    name="puvae",
    seed=0,
    better=0.0,
    detector=True,
    checks=("pass", "warn", "skip"),
    parts=True,
    threats=None,
):
    """Write the folder and return it.

    `name` is the purifier's, `better` is added to defended accuracies, `checks` are the statuses of its checks,
    `threats` those that it is to have beside the clean row (all).
    Without `parts` it is as runs once were: no examples, no variants, no passes, no numbers in the checks.
    """
    folder = Path(folder)
    folder.mkdir(parents=True)
    draw = np.random.default_rng(seed)
    labels = np.random.default_rng(99).integers(0, CLASSES, N)
    rows, lines, tensors, scores, alive, alone = [], [], {}, {}, np.ones(N, bool), np.ones(N, bool)
    over = []
    for attack, threat, variant, norm, eps, steps, bare, whole, mean, headline in ROWS:
        if not parts and (variant or not headline or threat in ("query", "detector-aware")):
            continue
        if threats is not None and threat not in ("none", *threats):
            continue
        if not detector and threat == "detector-aware":
            continue
        n = N if threat in ("none", "noise", "oblivious", "transfer") else N // 2
        said = {
            "undefended": _answers(draw, labels[:n], bare),
            "defended": _answers(draw, labels[:n], min(whole + better * (threat != "none"), 1)),
        }
        score = draw.gamma(2, 0.3, n) + mean if detector else np.zeros(n)
        accepted = {"undefended": np.ones(n, bool), "defended": score < 2.0 if detector else np.ones(n, bool)}
        right = {arm: (said[arm] == labels[:n]) & accepted[arm] for arm in said}
        queries = draw.integers(1, 201, n) if threat == "query" else None
        again = np.where(draw.random((n, PASSES)) < 0.9, said["defended"][:, None], labels[:n, None])
        rows.append(
            Row(
                attack=attack,
                threat=threat,
                norm=norm,
                eps=eps,
                n=n,
                steps=steps,
                seed=seed,
                undefended=_arm(right["undefended"], accepted["undefended"]),
                defended=_arm(right["defended"], accepted["defended"], threat != "none"),
                mean_linf=eps or 0.2,
                mean_l2=1.5,
                seconds={"attack": 1.0, "purify": 0.1},
                variant=variant,
                headline=headline,
                queries=None
                if queries is None
                else {"mean": float(queries.mean()), "median": float(np.median(queries)), "max": float(queries.max())},
                passes=_passes(again, labels[:n], right["defended"]) if parts else None,
                success_at_fpr={"0.01": 0.6, "0.05": 0.45} if threat == "detector-aware" else None,
            )
        )
        scores[rows[-1].key] = score
        if headline:
            over.append(rows[-1].key)
            alive[:n] &= right["defended"]
            alone[:n] &= right["undefended"]
        for arm in said:
            lines += [
                [
                    attack,
                    threat,
                    variant,
                    eps,
                    image,
                    labels[image],
                    eps,
                    1.5,
                    "" if queries is None else queries[image],
                    arm,
                    said[arm][image],
                    0.9,
                    int(accepted[arm][image]),
                    f"{score[image]:.6g}",
                    " ".join(map(str, again[image])) if parts and arm == "defended" else "",
                ]
                for image in range(n)
            ]
        if threat != "none":
            tensors |= _examples(draw, len(rows) - 1, eps or 0.2, labels[:n], said, accepted, right["defended"])
    kept = alive[: N // 2]
    report = Report(
        versions={"defend-core": "0.0", "python": "3", "torch": "2", "timm": "1"},
        plugins={f"defend-{name}": "0.0"},
        config=RunConfig(victim="resnet18", purifier=name, detector=name if detector else None, seed=seed),
        seed=seed,
        device="cpu (1 threads)",
        precision={"requested": "auto", "crafting": "fp32"},
        seconds=12.0,
        dataset=DatasetInfo("digits", "test", N, "ab" * 32),
        rows=tuple(rows),
        worst_case=WorstCase(
            float(kept.mean()),
            wilson(int(kept.sum()), len(kept)),
            len(kept),
            tuple(over),
            float(alone[: N // 2].mean()),
            min((row for row in rows if row.headline), key=lambda row: row.defended.accuracy).key if parts else "",
            norms={"linf": {"accuracy": 0.625, "ci95": (0.5, 0.75)}, "l2": {"accuracy": 0.875, "ci95": (0.75, 1.0)}}
            if parts
            else None,
            steps=20,
            gradients=1040,
            least_row=_least([row for row in rows if row.headline]) if parts else None,
        ),
        detector=_detector(rows, scores) if detector else None,
        checks=tuple(_check(number, status, parts) for number, status in enumerate(checks, start=1)),
        cost=Cost(2.5, 4.0, 12345, 64),
        weights={"victim": {"file": "victim.safetensors", "sha256": "cd" * 32, "figures": {"test_accuracy": 0.99}}},
        left_out={"query": "no attack fits it"} if not parts else {},
    )
    (folder / "report.json").write_text(to_json(report))
    with (folder / "records.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        dropped = () if parts else tuple(COLUMNS.index(column) for column in ("variant", "queries", "passes"))
        for line in (COLUMNS, *lines):
            writer.writerow([value for index, value in enumerate(line) if index not in dropped])
    (folder / "config.toml").write_text(to_toml(report.config))
    if parts:
        save_file(tensors, folder / "examples.safetensors")
    return folder


def _least(rows):
    row = min(rows, key=lambda row: row.defended.accuracy)
    return LeastRow(row.key, row.defended.accuracy, row.defended.ci95, row.n)


def _answers(draw, labels, accuracy):
    """Right on the share of images that are easiest, give or take, as the same images are hard for every attack."""
    wrong = (labels + draw.integers(1, CLASSES, len(labels))) % CLASSES
    hardness = np.random.default_rng(7).permutation(N)[: len(labels)] / N
    return np.where(hardness + draw.normal(0, 0.03, len(labels)) < accuracy, labels, wrong)


def _arm(right, accepted, attacked=False):
    credit = right | (~accepted & attacked)
    return ArmResult(
        float(right.mean()), wilson(int(right.sum()), len(right)), float((~accepted).mean()), float(credit.mean())
    )


def _passes(again, labels, right):
    held = again == labels[:, None]

    def share(good):
        return {"accuracy": float(good.mean()), "ci95": wilson(int(good.sum()), len(good))}

    def point(n):
        return {"n": n, "worst": share(held[:, :n].all(1)), "majority": share(held[:, :n].mean(1) > 0.5)}

    found = {"one_shot": right, "worst": held.all(1) & right, "majority": held.mean(1) > 0.5}
    curve = [point(n) for n in (1, 2, 5, PASSES)]
    return {"n": PASSES, **{way: share(good) for way, good in found.items()}, "curve": curve, "clean": curve}


def _examples(draw, row, eps, labels, said, accepted, held):
    some = np.concatenate([np.flatnonzero(~held)[:4], np.flatnonzero(held)[:4]])
    height, width = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    clean = np.stack([np.sin(6 * height * (1 + label / 5)) * np.cos(5 * width) for label in labels[some]])[:, None]
    clean = (clean + 1) / 2
    attacked = (clean + eps * draw.choice([-1, 1], clean.shape)).clip(0, 1)
    images = {"clean": clean, "attacked": attacked, "purified": 0.7 * attacked + 0.3 * clean}
    columns = {
        "label": labels,
        "undefended": said["undefended"],
        "defended": said["defended"],
        "accepted": accepted["defended"],
        "image": np.arange(len(labels)),
    }
    found = {f"{row}/{part}": np.ascontiguousarray(pixels.astype(np.float16)) for part, pixels in images.items()}
    return found | {f"{row}/{part}": values[some].astype(np.int64) for part, values in columns.items()}


def _detector(rows, scores):
    attacked = [row.key for row in rows if row.threat not in ("none", "noise")]
    figures = {key: {"auroc": 0.9, "tpr_at_fpr": {"0.01": 0.5, "0.05": 0.7}} for key in attacked}
    calibration = Calibration(threshold=2.0, fpr=0.01, measured=0.005, n=400, split="val")
    return {
        "auroc": 0.9,
        "auroc_row": attacked[0],
        "threshold": 2.0,
        "fpr": 0.01,
        "calibration": attrs.asdict(calibration),
        "clean_rejected": rows[0].defended.rejected,
        "tpr_at_fpr": {"0.01": 0.5, "0.05": 0.7},
        "rows": figures,
    }


def _check(number, status, parts):
    numbers = {"gained": number, "rows": {"pgd/adaptive": [0.3, 0.25]}}
    if number == 1:
        axis = np.linspace(-1, 1, 15)
        loss = axis[:, None] * 2 + 0.2 * np.sin(4 * axis[None])
        numbers |= {"surface": {"axis": axis.tolist(), "loss": loss.tolist()}}
    name = ("loss surface", "attack order", "square", "convergence")[number - 1]
    detail = f"check {number} says why it is {status}, with 2 of 40 images"
    return Check(name, status, detail, number, numbers) if parts else Check(name, status, detail)
