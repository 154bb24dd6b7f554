"""A defence as one graph, traced by torch's exporter."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from defend.defence import Defence
from defend.errors import ConfigError

TRACED = 2  # images that the graph is traced with; torch.export takes one for a constant
LARGEST_BATCH = 2**31 - 1  # without a bound, torch 2.6 asks stages to take 2**63 - 1
LONGEST_CAUSE = 200
BY_VALUE = "; what looks at values is no graph, as torchvision's Normalize: pass --mean and --std in its place"


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
        return logits, score, score < torch.as_tensor(whole.detector.threshold)


def trace(answers: Answers, sample: Tensor) -> torch.export.ExportedProgram:
    """Trace with a batch of any size; the example that the file keeps is black images, not the data set's.

    Torch's usual way first; it takes a batch size that Python asked for with `len` for a constant, dynamo does not.
    """
    first: Exception | None = None
    for strict in (False, True):
        try:
            with torch.no_grad(), quiet():
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
    raise ConfigError(f"the defence cannot be traced as one graph: {explain(first)}") from first


@contextlib.contextmanager
def quiet() -> Iterator[None]:
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


def explain(error: BaseException) -> str:
    """Return one line of an exporter's message: the one that says what became a constant, else the first."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip(" -\t") for line in str(error).splitlines() if line.strip(" -\t")]
    line = next((line for line in lines if "constant (" in line), lines[0] if lines else "no message")
    by_value = type(error).__name__ == "GuardOnDataDependentSymNode"
    return f"{type(error).__name__}: {line[:LONGEST_CAUSE]}{BY_VALUE if by_value else ''}"
