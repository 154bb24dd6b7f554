"""The reference, from the code: commands, options, the settings of a run, the Python face, report.json's schema."""

from __future__ import annotations

import inspect
import json
import re
from typing import Any

import attrs
import click

import defend
from defend.cli.entry import cli
from defend.cli.usage import Command
from defend.options import describe
from defend.plugins import registry
from defend.records.schema import report_schema
from defend.stages import STAGES
from defend.values.report import Report
from defend.values.run_config import RunConfig
from tools.manual.markdown import cell, code, table

FOR_PLUGINS = ("defend.hookspecs", "defend.stages", "defend.options", "defend.defence", "defend.train")
FOR_PLUGINS += ("defend.gradients", "defend.randomness", "defend.tables", "defend.recipes", "defend.errors")
TESTING = ("defend.testing.robust.assert_robust", "defend.testing.contracts.networks.PurifierContract")


def pages() -> dict[str, str]:
    """Return each page by its name in docs/."""
    return {
        "reference/commands.md": commands(),
        "reference/options.md": options(),
        "reference/run-config.md": run_config(),
        "reference/python.md": python(),
        "reference/report.md": report(),
        "reference/report.schema.json": json.dumps(report_schema(), indent=1) + "\n",
    }


def commands() -> str:
    """Return a page of every command, as `--help` has it."""
    lines = ["# Commands", "", "Every command takes `--debug`, for a traceback with an error, and `--help`."]
    for name, one in sorted(cli.commands.items()):
        assert isinstance(one, Command)
        context = click.Context(one, info_name=name, parent=click.Context(cli, info_name="defend"))
        usage = " ".join([context.command_path, *one.collect_usage_pieces(context)])
        lines += [f"\n## defend {name}", f"\n    {usage}\n", inspect.cleandoc(one.help or "")]
        for title, group in one.groups.items():
            records = [record for each in group if (record := each.get_help_record(context))]
            lines += [table((title, ""), ((code(flag), cell(said)) for flag, said in records))]
    return "\n".join(lines) + "\n"


def options() -> str:
    """Return a page of the options of every stage."""
    lines = [
        "# Options",
        "",
        "Of an attack: `--set ATTACK.NAME=VALUE`; of another part: `--set purifier.NAME=VALUE`, or by the part's name,",
        "`--set apudae.NAME=VALUE`. Of a training: `--set NAME=VALUE` with `defend train`. [P] stands in the paper,",
        "[C] in its code, [S] in another source, [R] is our decision.",
    ]
    for stage in STAGES:
        lines.append(f"\n## {stage}")
        for entry in registry().entries(stage):
            spec = entry.spec
            lines += [f"\n### {stage} {spec.name} {{#{stage}-{spec.name}}}", f"\n{spec.summary} ({entry.origin})"]
            lines.append(_options(spec.config))
            if spec.train:
                lines += ["Its training:", _options(spec.recipe)]
    return "\n".join(lines) + "\n"


def _options(cls: type) -> str:
    rows = []
    for one in describe(cls):
        baked = " (fixed by the weights)" if one.architecture else ""
        rows.append((code(one.name), code(one.type), code(one.default), cell(one.accepted), cell(one.help + baked)))
    return table(("name", "type", "default", "accepted", "what it is"), rows)


def run_config() -> str:
    """Return a page of the fields of `RunConfig`, which are those of config.toml."""
    said = _attributes(RunConfig)
    rows = []
    for field in attrs.fields(RunConfig):
        default = "" if field.default is attrs.NOTHING else field.default
        default = "" if isinstance(default, attrs.Factory) else default  # type: ignore[arg-type]
        rows.append((code(field.name), code(default), cell(said.get(field.name, ""))))
    head = (
        "# Settings of a run\n\nFields of `defend.RunConfig`, keys of `config.toml`, arguments of `defend.evaluate`.\n"
    )
    return head + table(("name", "default", "what it is"), rows)


def python() -> str:
    """Return a page of the Python face, and of the pages that a plugin's author imports."""
    # what is looked for stands in a page of prose, if there is one
    lines = ["---", "search: {boost: 0.3}", "---", ""]
    lines += ["# Python", "", "`import defend`; names are imported when first used.", ""]
    for name in sorted(defend.__all__, key=str.lower):
        module, attribute = defend._LAZY.get(name, ("defend.options", name))
        aim = f"{module}.{attribute}" if attribute else "defend.session.prepare.train"  # a page that can be called
        lines += [_object(aim, f"defend.{name}")]
    lines += ["# For a plugin's author\n", *(_object(module, module) for module in FOR_PLUGINS)]
    lines += ["# defend.testing\n", *(_object(name, name.rpartition(".")[2]) for name in TESTING)]
    return "\n".join(lines) + "\n"


def _object(aim: str, heading: str) -> str:
    """Return where mkdocstrings puts an object, under the name by which it is imported."""
    return f"::: {aim}\n    options:\n      heading: {heading}\n      toc_label: {heading}\n      heading_level: 2\n"


def report() -> str:
    """Return a page of report.json's keys."""
    schema = report_schema()
    lines = [
        "# report.json",
        "",
        "An interface, schema 1: keys are added, never changed. Accuracies are fractions, intervals Wilson's at 95 %.",
        "[`report.schema.json`](report.schema.json) is its JSON Schema, made from the classes that are written:",
        "",
        "    python -m jsonschema -i runs/A/report.json report.schema.json",
    ]
    for title, one in {"The file": schema, **schema["$defs"]}.items():
        said = _attributes(Report if title == "The file" else _class(title))
        rows = (
            (code(key), cell(_type(value)), cell(said.get(key) or value.get("description", "")))
            for key, value in one["properties"].items()
        )
        lines += [f"\n## {title}", f"\n{one['description']}", table(("key", "type", "what it is"), rows)]
    return "\n".join(lines) + "\n"


def _class(name: str) -> type:
    from defend.values import report, run_config

    return getattr(report, name, None) or getattr(run_config, name)  # type: ignore[no-any-return]


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(map(_type, schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return ", ".join(map(str, schema.get("enum", [schema.get("const")])))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    kind = schema.get("type", "any")
    return kind[0] if isinstance(kind, list) else kind


def _attributes(cls: type) -> dict[str, str]:
    """Return what a docstring's "Attributes:" says of each name."""
    text = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")[2]
    found: dict[str, str] = {}
    names: list[str] = []
    for line in text.splitlines():
        if match := re.match(r"    (\w+(?:, \w+)*): (.*)", line):
            names = match[1].split(", ")
            found |= dict.fromkeys(names, match[2])
        elif line.strip() and line.startswith("        "):
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
        elif line.strip():
            break
    return found
