"""`defend calibrate`."""

from __future__ import annotations

import shlex
from typing import Any

import attrs

from defend.cli.flags import (
    DATA_DIR,
    DETECTOR_WEIGHTS,
    DEVICE,
    JSON,
    PURIFIER_WEIGHTS,
    QUIET,
    SEED,
    SET,
    WEIGHTS_OUT,
    given,
    print_json,
    take_source,
    take_weights,
)
from defend.cli.say import say
from defend.cli.usage import OUTPUT, command, option
from defend.report.progress import open_console, show_count, show_waiting
from defend.values.shares import in_percent


@command(
    "calibrate",
    {
        "What is calibrated": [
            option("--detector NAME", "Detector, for example puvae.", required=True),
            DETECTOR_WEIGHTS,
            option("--fpr RATE", "Clean images to reject.", type=float, default=0.01, show_default=True),
            option("--purifier NAME[,NAME]", "The purifier that will stand before the victim."),
            PURIFIER_WEIGHTS,
            option(
                "--dataset NAME",
                "Name, folder or file whose validation split is scored.",
                default="digits",
                show_default=True,
            ),
            DATA_DIR,
            SET,
            SEED,
        ],
        OUTPUT: [WEIGHTS_OUT, JSON, QUIET],
        "Machine": [DEVICE],
    },
)
def calibrate_command(
    detector: str,
    fpr: float,
    purifier: str | None,
    dataset: str,
    data_dir: str | None,
    settings: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    device: str | None,
    **values: Any,
) -> None:
    """Set a detector's threshold for a false-positive rate on held-out clean images, and keep it.

    Writes the detector's weights with the new threshold, where the next run finds them; of a detector of your own it
    says how to take them. `defend run --fpr` does the same for one run.
    """
    from defend.plugins import registry
    from defend.values.toml import parse_settings

    dataset, data_dir = take_source(dataset, data_dir)
    registry().find("detector", detector)
    options, weights = parse_settings(settings), take_weights(values)
    console = open_console(stderr=True)
    with show_waiting(console, quiet):
        from defend.assembly.calibrate import calibrate_part, is_found
        from defend.assembly.composition import Composition
        from defend.assembly.load import open_dataset

        composition = Composition.of(
            purifier=purifier,
            detector=detector,
            options=options,
            weights=weights,
        )
        composition.check_keys("options", options, {"dataset"}, "this defence")
        composition.check_keys("weights", weights, (), "this defence")
        images = open_dataset(dataset, data_dir, options.get("dataset"))
    with show_count(console, f"scoring {dataset}", len(images.labels("val")), quiet) as progress:
        path, calibration = calibrate_part(
            composition, images, fpr, device=device or "auto", progress=progress, **given(values)
        )
    if as_json:
        print_json({"path": str(path), **attrs.asdict(calibration)})
        return
    say(
        f"Threshold {calibration.threshold:.5g}: rejects {in_percent(calibration.measured, 2)} % of {calibration.n} "
        f"held-out clean images (asked: at most {100 * fpr:g} %). Written to {path}"
    )
    if not is_found(composition, path, images.filed_as):
        say(f"Take it with {shlex.join(('--detector-weights', str(path)))}")
