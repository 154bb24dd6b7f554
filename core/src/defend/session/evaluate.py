"""`defend.evaluate`: a user's own model and images, or names, to a ladder, checks and a page."""

from __future__ import annotations

import contextlib
import html
import inspect
import io
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from rich.console import Console
from torch import nn

from defend.assembly.load import as_dataset
from defend.boundary.copies import copy_module
from defend.boundary.held import eval_mode, lent
from defend.custom.build import networks_of
from defend.datasets.base import ImageDataset
from defend.defence import Defence
from defend.errors import ConfigError, DefendError
from defend.evaluation.runner import run_arms
from defend.plugins import Registry, registry, using
from defend.report.page import render_page, write_page
from defend.report.progress import RunBar, open_console
from defend.report.terminal import render
from defend.values.arguments import as_path, refuse_unknown
from defend.values.report import Check, Report, Row, WorstCase
from defend.values.run_config import RunConfig

WIDTH = 120  # of the table as text
PLAIN = ("markup", "emoji", "highlight", "force_terminal", "force_jupyter")  # what rich's console is not to do
HEIGHT = 900  # of the page in a notebook, in pixels


@attrs.frozen(eq=False, repr=False)
class Evaluation:
    """What is left of a model under attack. `print` shows the terminal's table; a notebook shows the page.

    Attributes:
        report: all figures, see `defend.Report`.
        folder: the run folder, as `defend run` writes one; it is gone with this object where none was named.
    """

    report: Report
    folder: Path
    _kept: object = None

    @property
    def rows(self) -> tuple[Row, ...]:
        """One row an attack and threat."""
        return self.report.rows

    @property
    def worst_case(self) -> WorstCase | None:
        """What the strongest attack on each image leaves: the headline."""
        return self.report.worst_case

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that failed: where there are any, the headline is not to be trusted."""
        return self.report.failed

    @property
    def partial(self) -> bool:
        """Whether the evaluation was interrupted, so that rows are missing."""
        return self.report.partial

    def page(self, path: str | Path | None = None) -> Path:
        """Write the page to share, and its figures; return where: in the run folder if `path` is None."""
        return write_page([self.folder], None if path is None else Path(path)).page

    def __str__(self) -> str:
        text = io.StringIO()
        # a notebook's kernel would have rich display it, and in colours
        plain: dict[str, bool] = dict.fromkeys(PLAIN, False)
        console = Console(file=text, width=WIDTH, **plain)  # type: ignore[arg-type]
        render(self.report, console)
        return text.getvalue()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Return the page in a frame of its own, so that a notebook's style and the page's leave each other alone."""
        page = html.escape(render_page(self.folder))
        return f'<iframe srcdoc="{page}" style="width:100%;height:{HEIGHT}px;border:0"></iframe>'


def evaluate(
    model: Any,
    data: Any,
    *,
    purifier: Any = None,
    detector: Any = None,
    finetune: str | None = None,
    val: Any = None,
    train: Any = None,
    classes: int | Sequence[str] | None = None,
    mean: Sequence[float] | float | str | None = None,
    std: Sequence[float] | float | str | None = None,
    out: str | Path | None = None,
    progress: bool = True,
    **settings: Any,
) -> Evaluation:
    """Attack a model with and without its defence, and report what is left.

    Args:
        model: an `nn.Module` or a function, images [B,C,H,W] in [0,1] to logits [B,classes]; a `Defence`, whose parts
            are taken; or a name, as on the command line ("resnet18", "my_model.py:load").
        data: what is attacked: (images, labels), a `Dataset`, a `DataLoader`, an `ImageDataset`, a name, a folder.
        purifier, detector: modules, functions (of a purifier) or names, or None. A function with one argument that has
            no default takes images, whatever the argument is called; `task`, or one annotated as a number or text, is
            of a function that makes the part.
        finetune: the fine-tuner whose tuned weights replace the model's, or None.
        val: held-out images for thresholds and trials, like `data`; None holds a seeded part of `data` out.
        train: training images, like `data`, where a part asks for them.
        classes: class names by label, or how many there are, where the data does not say; a number is refused where
            the data names fewer.
        mean, std: what to subtract from images in [0,1], and to divide by, if the model wants normalised ones: one
            number a channel, one for all, or a name (imagenet, cifar10, half, none). Gradients pass through that.
        out: the run folder; None keeps nothing beyond the returned object.
        progress: whether to show a bar.
        settings: all else that `RunConfig` has: eps="8/255", threats="ladder", limit=200, attacks=["pgd"], options, ...

    Returns:
        The evaluation; a partial one, with a warning, where it was interrupted after its first batch.

    Raises:
        DefendError: what is wrong, in one line.
        KeyboardInterrupt: interrupted before the first batch was finished.
    """
    if model is None:
        raise ConfigError("the model is None: expected an nn.Module, a function, a Defence or a name")
    model, purifier, detector = _take_apart(model, purifier, detector)
    images = as_dataset(data, val=val, train=train, classes=classes)
    names, plugins = find_names({"victim": model, "purifier": purifier, "detector": detector}, images)
    own = [name for name in inspect.signature(evaluate).parameters if name != "settings"]
    others = [field.name for field in attrs.fields(RunConfig) if field.name not in {*names, *own}]
    refuse_unknown(settings, [*own, *others], "evaluate")
    folder, kept = _make_folder(out)
    # an empty folder of its own is no run folder yet
    asked: dict[str, Any] = {**names, **settings}
    config = RunConfig(**asked, finetune=finetune, out=str(folder / "run" if kept else folder))
    config = _normalise(config, mean, std)
    watcher = RunBar(open_console(stderr=True), quiet=not progress)
    try:
        with using(plugins), contextlib.ExitStack() as stack:
            for part in (model, purifier, detector):
                if isinstance(part, nn.Module):  # one that cannot be copied is used itself
                    stack.enter_context(lent(part))
                elif callable(part):
                    for network in networks_of(part):
                        stack.enter_context(eval_mode(network))
            (outcome,) = run_arms([config], watcher, plugins, dataset=images)
    finally:
        watcher.end()
    if outcome.report.partial:  # a notebook goes on with its next cell, and shows no traceback
        warnings.warn("the evaluation was interrupted: rows are missing, and there may be no worst case", stacklevel=2)
    return Evaluation(outcome.report, Path(str(config.out)), kept)


def find_names(things: Mapping[str, Any], dataset: ImageDataset) -> tuple[dict[str, str | None], Registry]:
    """Return names of all that was given, by stage, and the registry that knows them; objects are left as they are."""
    plugins = registry()
    names: dict[str, str | None] = {}
    for stage, thing in things.items():
        if thing is None:
            names[stage] = None
            continue
        own = _copy(thing) if isinstance(thing, nn.Module) else thing
        names[stage], plugins = plugins.with_thing(stage, own)  # type: ignore[arg-type]
    names["dataset"], plugins = plugins.with_thing("dataset", dataset, dataset.name)
    return names, plugins


def _copy(module: nn.Module) -> nn.Module:
    """Return a copy, so that the caller's stays on its device and in its mode; itself where it cannot be copied."""
    with contextlib.suppress(DefendError):
        return copy_module(module)
    return module


def _take_apart(model: Any, purifier: Any, detector: Any) -> tuple[Any, Any, Any]:
    """Return victim, purifier and detector; of a `Defence` its own, so that the bare victim is attacked too."""
    if not isinstance(model, Defence):
        return model, purifier, detector
    if purifier is not None or detector is not None:
        raise ConfigError("the model is a Defence, which has parts of its own: leave purifier and detector out")
    return model.victim, model.purifier, model.detector


def _normalise(config: RunConfig, mean: Any, std: Any) -> RunConfig:
    """Return a config whose victim has mean and std among its options, as the command line's flags put them there."""
    if mean is None and std is None:
        return config
    if mean is None or std is None:
        raise ConfigError(f"{'mean' if mean is None else 'std'} is missing: pass mean and std together")
    own = dict(config.options.get("victim", {}))
    for name, value in (("mean", mean), ("std", std)):
        if name in own:
            raise ConfigError(f"{name}= is short for options={{'victim': {{{name!r}: ...}}}}: give one of the two")
        own[name] = _as_numbers(value)
        if len(own[name]) == 0:
            raise ConfigError(f"{name} is empty: expected one number a channel, one for all, or a name")
    return attrs.evolve(config, options={**config.options, "victim": own})


def _as_numbers(given: Any) -> Any:
    """Return what stands for a channel each as a list, also of a tensor or an array; a name as it is."""
    if hasattr(given, "flatten"):
        return given.flatten().tolist()
    return given if isinstance(given, (str, list, tuple)) else [given]


def _make_folder(out: str | Path | None) -> tuple[Path, object]:
    """Return where the run is written; without a folder a temporary one, and what removes it in the end."""
    if (path := as_path("out", out)) is not None:
        return Path(path), None
    folder = tempfile.mkdtemp(prefix="defend-")
    return Path(folder), _Removal(folder)


class _Removal:
    """Removes a folder when nobody holds this any more, or when the process ends."""

    def __init__(self, folder: str) -> None:
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
