"""The entry: all commands, and how an error becomes one line and an exit code.

A command imports whatever is slow inside its function, so that `defend --help` answers at once.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import NoReturn, TextIO

import click

from defend import __version__
from defend.boundary.calls import say_cause
from defend.cli.cache import cache_command
from defend.cli.calibrate import calibrate_command
from defend.cli.check import check_command
from defend.cli.compare import compare_command
from defend.cli.completion import answer_shell
from defend.cli.exits import INTERNAL, INTERRUPTED, WRONG_INPUT
from defend.cli.export import export_command
from defend.cli.list import list_command
from defend.cli.merge import merge_command
from defend.cli.new_plugin import new_plugin_command
from defend.cli.predict import predict_command
from defend.cli.recipe import recipe_command
from defend.cli.report import report_command
from defend.cli.reproduce import reproduce_command
from defend.cli.run import run_command
from defend.cli.say import say
from defend.cli.show import show_command
from defend.cli.train import train_command
from defend.errors import DefendError, ProcessLostError
from defend.util import interrupts
from defend.util.memory import out_of_memory
from defend.util.printable import escape

OURS = Path(__file__).parents[1]


GREETING = """\
defend attacks an image classifier with and without a defence, and says what
is left of it. Three commands to begin with:

  defend run --purifier apudae --victim resnet18    a defence attacked: a minute
  defend check my_model.py:load --dataset ./pets    is your own model ready?
  defend list                                       what is installed

defend --help lists all commands."""


@click.group(
    invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="defend")
@click.pass_context
def cli(context: click.Context) -> None:
    """Defend image classifiers against adversarial examples, and measure what an attacker leaves of it.

    Start here:  defend run --purifier apudae --victim resnet18

    Any command takes --debug (a traceback with errors). Exit codes: 0 done, 1 a fault of ours,
    2 wrong input, 3 a gate (--gate, --at-least, defend check), 130 interrupted.
    """
    if context.invoked_subcommand is None:
        say(GREETING)


for command in (
    cache_command,
    calibrate_command,
    check_command,
    compare_command,
    export_command,
    list_command,
    merge_command,
    new_plugin_command,
    predict_command,
    recipe_command,
    report_command,
    reproduce_command,
    run_command,
    show_command,
    train_command,
):
    cli.add_command(command)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line; every error becomes one line on standard error and an exit code."""
    answer_shell(cli)
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments or bool(os.environ.get("DEFEND_DEBUG"))
    arguments = [argument for argument in arguments if argument != "--debug"]
    warnings.showwarning = _one_line
    for stream in (sys.stdout, sys.stderr):
        # a name that the terminal's encoding lacks, or that is none, must not end what was computed
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = cli.main(arguments, prog_name="defend", standalone_mode=False)
    except click.ClickException as error:
        _fail(f"{' '.join(error.format_message().split())} (see {_help_for(error)})", WRONG_INPUT, debug)
    except ProcessLostError as error:
        _fail(str(error), INTERNAL, debug)
    except DefendError as error:
        _fail(str(error), WRONG_INPUT, debug)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted", INTERRUPTED, debug)
    except OSError as error:
        if error.strerror is None or out_of_memory(error):
            _unforeseen(error, debug)
        # without a name it is a stream: what is printed, or a library's own file
        named = "what is printed" if error.filename is None else repr(str(error.filename)[:300])
        _fail(f"{named} cannot be read or written: {error.strerror}", WRONG_INPUT, debug)
    except SystemExit as error:  # of a part that somebody else wrote: its 0 is not ours
        _fail(f"a part of this command asked to exit ({error.code!r}), which it may not", INTERNAL, debug)
    except Exception as error:
        _unforeseen(error, debug)
    sys.exit(code if isinstance(code, int) else 0)


def _unforeseen(error: Exception, debug: bool) -> NoReturn:
    if interrupts.was_asked():  # which something took for an error of its own
        _fail("interrupted", INTERRUPTED, debug)
    if out_of_memory(error):
        what = f"memory ran out ({say_cause(error)})"
        _fail(f"{what}: raise its limit, or take fewer images at a time (the batch size)", WRONG_INPUT, debug)
    _fail(f"internal error: {say_cause(error)} (run again with --debug for the traceback)", INTERNAL, debug)


def _one_line(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,  # noqa: ARG001 - the signature is Python's
    line: str | None = None,
) -> None:
    """Show what defend itself warns of as one line; others' warnings as Python does."""
    if category is UserWarning and Path(filename).is_relative_to(OURS):
        click.echo(f"warning: {escape(' '.join(str(message).split()))}", err=True)
    else:
        click.echo(warnings.formatwarning(message, category, filename, lineno, line), err=True, nl=False)


def _help_for(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return f"`{context.command_path} --help`" if context else "`defend --help`"


def _fail(message: str, code: int, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exc()
    which = f"process {os.environ['RANK']}: " if "RANK" in os.environ else ""  # of several, each speaks for itself
    said = escape(" ".join(message.split("\n")))
    click.echo(f"{click.style('error:', fg='red') if _colours() else 'error:'} {which}{said}", err=True)
    sys.exit(code)


def _colours() -> bool:
    return sys.stderr.isatty() and "NO_COLOR" not in os.environ
