"""`defend merge`: the shards of a run to the run's report."""

from __future__ import annotations

from pathlib import Path

import click

from defend.cli.flags import JSON, PATH, QUIET
from defend.cli.run import AT_LEAST, GATE_FLAG, read_gates, run_configs
from defend.cli.usage import OUTPUT, command, option
from defend.cli.verdicts import VERDICTS, VerdictFiles


@command(
    "merge",
    {
        OUTPUT: [
            option("--out DIR", "Run folder (default runs/TIME-VICTIM-PURIFIER)."),
            GATE_FLAG,
            AT_LEAST,
            *VERDICTS,
            JSON,
            QUIET,
        ]
    },
)
@click.argument("runs", nargs=-1, required=True, type=PATH, metavar="RUN...")
def merge_command(
    runs: tuple[Path, ...],
    out: str | None,
    gate: bool,
    at_least: tuple[str, ...],
    junit: Path | None,
    sarif: Path | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Report on a run whose shards were computed apart, as one process would have.

    RUN are the folders of all shards (`defend run --shard 2/8`). What no shard has is computed here: checks that query
    the defence, and certificates.
    """
    from defend.records.shards import read_shards
    from defend.values.toml import place_arms

    shards = read_shards(runs)
    floors = read_gates(at_least, gate, shards.configs[0])
    return run_configs(
        place_arms(shards.configs, out),
        as_json=as_json,
        quiet=quiet,
        gate=gate,
        floors=floors,
        verdicts=VerdictFiles(junit, sarif),
        shards=shards,
    )
