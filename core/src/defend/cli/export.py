"""`defend export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from defend.cli.flags import FPR, JSON, ONE_VICTIM, PARTS, PATH, SET, print_json, resolve_defence
from defend.cli.say import say
from defend.cli.usage import OUTPUT, command, option
from defend.report.progress import open_console, show_waiting

OUT = option("--out FILE", "model.pt2 (torch.export) or model.onnx; replaced if it exists.", type=PATH, required=True)


@command("export", {"What is defended": [ONE_VICTIM, *PARTS, FPR, SET], OUTPUT: [OUT, JSON]})
def export_command(
    victim: str, out: Path, fpr: float | None, settings: tuple[str, ...], as_json: bool, **values: Any
) -> None:
    """Write a defence as one file that runs without defend: images in [0,1] to logits.

    With a detector also its score, and whether an image is accepted. Batches may be of any size. The file is first
    held against the defence on test images. Only for defences without random numbers or optimisation at test time.
    """
    with show_waiting(open_console(stderr=True), quiet=as_json, what="exporting"):
        from defend.deploy.export import export_defence

        made = export_defence(out, *resolve_defence(victim, settings, values), fpr)
    if as_json:
        print_json(made.as_dict())
        return
    shapes = {name: str(shape).replace("'", "") for name, shape in {**made.inputs, **made.outputs}.items()}
    outputs = ", ".join(f"{name} {shapes[name]}" for name in made.outputs)
    found = ", ".join(f"{name} {most:.2g}" for name, most in made.parity.items())
    say(f"Written to {made.path} ({made.size / 1e6:.1f} MB): images {shapes['images']} in [0,1] to {outputs}")
    sizes = " and ".join(map(str, made.batches))
    say(f"Largest difference from the defence, on test images in batches of {sizes}: {found}")
