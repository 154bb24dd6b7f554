"""Every stage on the pretend device, in a process of its own, as the device must be there before the first gradient.

Prints a JSON object a line: what was done, to how often the host waited (twice, of few and of more steps where there
are any), and how far the result is from the CPU's; or the error.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests import pretend_device

from defend.assembly.stage import build_module
from defend.attacks.host import craft
from defend.attacks.target import Target
from defend.defence import Defence
from defend.evaluation.evaluate import EvaluationSettings, Evaluator
from defend.options import describe, make
from defend.plugins import Found, registry
from defend.randomness import keyed
from defend.records.rows import PlannedRow
from defend.stages import Stage
from defend.testing.toys import TASK, Negative, TinyVictim, images, tiny_dataset
from defend.training import loop
from defend.values.threats import Threat

SMALL: dict[str, dict[str, Any]] = {
    "apudae": {"depth": 3, "width": 8},
    "puvae": {"width": 4, "hidden": 16, "latent": 6},
    "unet_gan": {"width": 8},
    "vaegan": {"width": 0.125, "latent": 6},
}
STEPS = ("steps", "queries")  # what the options end in that say how long
ONCE = {"binary_search_steps": 1, "targets": 1, "candidates": 2, "starts": 2, "initial_evals": 2, "max_evals": 4}
FEW, MORE = 2, 4
NAMED = {"apudae_a": "apudae", "apudae_b": "apudae", "vaegan_straight": "vaegan"}  # attacks on one purifier alone
TRAINED: tuple[tuple[Stage, str], ...] = (
    ("finetuner", "adversarial"),
    ("purifier", "vaegan"),
)  # one, several optimisers
WITH_DETECTOR = ("_rejecting", "_joint", "_selective", "_orthogonal")
Case = tuple[str, Callable[[int, torch.device], Tensor]]


def options_of(found: Found, steps: int) -> dict[str, Any]:
    known = {option.name for option in describe(found.spec.config)}
    chosen = {name: steps for name in known if name.endswith(STEPS)}
    return chosen | {name: value for name, value in ONCE.items() if name in known}


def module_of(stage: Stage, name: str, steps: int = FEW) -> nn.Module:
    found = registry().find(stage, name)
    torch.manual_seed(0)
    options = {**options_of(found, steps), **SMALL.get(name, {})}
    return build_module(found, found.config(options), TASK).eval()


class Normalised(TinyVictim):
    """A victim that says how it normalises."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, 1, 1, 1))
        self.register_buffer("std", torch.ones(1, 1, 1, 1))

    def forward(self, batch: Tensor) -> Tensor:
        return super().forward((batch - self.mean) / self.std)


def attacks() -> Iterator[Case]:
    for entry in registry().entries("attack"):
        if entry.spec.is_family:  # another library's, or a file's
            continue
        name = entry.spec.name

        def attack(steps: int, device: torch.device, name: str = name) -> Tensor:
            found = registry().find("attack", name)
            purifier = module_of("purifier", NAMED[name]) if name in NAMED else None
            detector = module_of("detector", "puvae") if name.endswith(WITH_DETECTOR) else None
            defence = Defence(Normalised(), purifier, detector).to(device)
            target = Target(defence, threshold=0.5 if detector is not None else None)
            batch, keys = images(TASK, 2).to(device), torch.arange(2).to(device)
            made = found.call("build", found.config(options_of(found, steps)))
            return craft(made, target, batch, keys % 10, eps=0.1, keys=keys, name=name)

        yield f"attack {name}", attack


def purifiers() -> Iterator[Case]:
    for entry in registry().entries("purifier"):
        name = entry.spec.name

        def purify(steps: int, device: torch.device, name: str = name) -> Tensor:
            module, batch = module_of("purifier", name, steps).to(device), images(TASK, 2).to(device).requires_grad_()
            with keyed(torch.arange(2).to(device), seed=0, stream="pretend"):
                purified = module(batch)
            (slope,) = torch.autograd.grad(purified.square().sum(), batch)
            return torch.stack([purified, slope])

        yield f"purifier {name}", purify


def detectors() -> Iterator[Case]:
    for entry in registry().entries("detector"):
        name = entry.spec.name

        def detect(steps: int, device: torch.device, name: str = name) -> Tensor:
            defence = Defence(TinyVictim(), Negative(), module_of("detector", name, steps)).to(device)
            with keyed(torch.arange(2).to(device), seed=0, stream="pretend"):
                return defence.screen(images(TASK, 2).to(device)).score

        yield f"detector {name}", detect


def trainings() -> Iterator[Case]:
    for stage, name in TRAINED:

        def train(_: int, device: torch.device, stage: Stage = stage, name: str = name) -> Tensor:
            found = registry().find(stage, name)
            spec = found.spec
            known = {option.name for option in describe(spec.recipe)}
            short = {key: value for key, value in {"epochs": 1, "batch_size": 16, "steps": 1}.items() if key in known}
            recipe: Any = make(spec.recipe, short, "recipe")
            around = (TinyVictim(), Negative()) if stage == "finetuner" else ()
            torch.manual_seed(0)
            training = found.call("train", found.config(SMALL.get(name, {})), recipe, TASK, *around)
            loop.fit(training, tiny_dataset(TASK), loop.FitSettings(device=str(device)), {})
            weights = list(training.stage.parameters())
            assert all(each.device == device for each in weights), "it ran where it was asked to"
            return torch.cat([each.detach().flatten().float() for each in weights])

        yield f"training {stage} {name}", train


def exported() -> Iterator[Case]:
    def export(_: int, device: torch.device) -> Tensor:
        from torch.export.passes import move_to_device_pass

        from defend.deploy.tracing import Answers, trace

        defence = Defence(TinyVictim(), module_of("purifier", "dae")).eval()
        program = move_to_device_pass(trace(Answers(defence), images(TASK, 2)), device)
        answer = program.module()(images(TASK, 3).to(device))
        return answer if isinstance(answer, Tensor) else answer[0]

    yield "export dae", export


def rows() -> Iterator[Case]:
    def row(_: int, device: torch.device) -> Tensor:
        found = registry().find("attack", "fgsm")
        defence = Defence(TinyVictim(), Negative()).to(device)
        arms = {"undefended": Defence(TinyVictim()).to(device), "defended": defence}
        plan = PlannedRow(
            "fgsm",
            Threat("adaptive", "linf", 0.1),
            found.call("build", found.config({})),
            torch.arange(4),
            None,
            "defended",
            tuple(arms),
            carry=("one", "defended"),
        )
        record = Evaluator(arms, tiny_dataset(TASK), EvaluationSettings(device=device)).row(plan)
        assert record is not None
        said = record.arms["defended"]
        return torch.cat([said.confidence, record.linf, record.example.attacked.flatten()])

    yield "a row", row


def main() -> None:
    torch.set_num_threads(1)
    found: dict[str, dict[str, Any]] = {}
    with pretend_device.watch():  # before the first gradient
        pass
    wanted = sys.argv[1:]
    for kind in (attacks, purifiers, detectors, trainings, exported, rows):
        for name, work in kind():
            if wanted and not name.startswith(tuple(wanted)):
                continue
            try:
                counts, places = [], []
                for steps in (FEW, MORE) if name.startswith(("attack", "purifier", "detector")) else (FEW,):
                    with pretend_device.watch() as (device, seen):
                        there = work(steps, device)
                    counts.append(sum(seen.waits.values()))
                    places = seen.waits.most_common(12)
                here = work(steps, torch.device("cpu"))
                away = float((there.detach().cpu() - here.detach()).abs().max())
                found[name] = {"waits": counts, "away": away, "places": dict(places)}
            except Exception as error:
                found[name] = {"error": f"{type(error).__name__}: {error}"[:600]}
            sys.stdout.write(json.dumps({name: found[name]}) + "\n")


if __name__ == "__main__":
    main()
