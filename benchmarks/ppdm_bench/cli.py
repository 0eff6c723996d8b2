"""The command line: ``ppdm-bench``. Results go to stdout, progress and errors to stderr.

PyTorch is imported inside commands, so that ``--help`` and ``--version`` start fast.
"""

import os
import signal
import sys
import warnings
from contextlib import redirect_stdout
from json import dumps
from typing import Annotated

import typer

from ppdm_bench.commands import data
from ppdm_bench.commands.ablate import ablate
from ppdm_bench.commands.claims import claims
from ppdm_bench.commands.command_names import Command, OrderedGroup
from ppdm_bench.commands.compare import compare
from ppdm_bench.commands.evaluate import evaluate
from ppdm_bench.commands.figures import figures
from ppdm_bench.commands.gpu import gpu
from ppdm_bench.commands.memory import memory
from ppdm_bench.commands.options import Columns, Methods
from ppdm_bench.commands.plan import plan
from ppdm_bench.commands.predict import predict
from ppdm_bench.commands.quality import quality
from ppdm_bench.commands.speed import speed
from ppdm_bench.commands.terminal import INTERRUPTED, fail, is_first_process, notify, show_warning, under_torchrun
from ppdm_bench.commands.train import train
from ppdm_bench.commands.translate import translate
from ppdm_bench.commands.values import or_usage_error, read_names

# Used for ``python -m ppdm_bench`` too, because shell completion refers to the installed command.
NAME = "ppdm-bench"

# Commands that may run as several processes: some share the work, the others write nothing.
DISTRIBUTED, READ_ONLY = ("train", "quality"), ("env", "methods")

# Base class of usage errors; this expression works with every version of typer.
UsageError = typer.BadParameter.__base__

app = typer.Typer(
    cls=OrderedGroup,
    help="Memory benchmark and ablation toolkit for volumetric medical image translation.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data.app, name="data")
app.command()(memory)
app.command()(train)
for command in (predict, translate, plan, evaluate, quality, ablate, speed, compare, figures, claims, gpu):
    app.command(cls=Command)(command)


def main() -> None:
    """Run the command line. Exit codes: 0 success, 1 something failed, 2 wrong usage, 130 interrupted."""
    arguments = sys.argv[1:]
    if len(arguments) == 2 and arguments[0] in ("--show-completion", "--install-completion"):
        # The user names the shell; with shell detection enabled, Typer would ignore that name.
        os.environ["_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION"] = "1"
    warnings.showwarning = show_warning
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # an exit also ends child processes
    try:
        # --debug is accepted at any position: users append it to a command that failed.
        code = app([word for word in arguments if word != "--debug"], prog_name=NAME, standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        code = fail(error, 2 if isinstance(error, UsageError) else 1, "--debug" in arguments)  # type: ignore[arg-type]
    if code == INTERRUPTED:  # some versions of typer return it, others raise
        notify("interrupted; everything written before is complete")
        # The other processes exit with 0: with another code, torchrun would end the first one while it still writes.
        code = INTERRUPTED if is_first_process() else 0
    sys.exit(code if isinstance(code, int) else 0)


def _version(asked: bool) -> None:
    if asked:
        from ppdm_bench.version import version

        print(f"ppdm-bench {version()}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    modules: Annotated[
        list[str] | None,
        typer.Option(
            "--import",
            metavar="MODULE",
            help="Module to import first, so that it can register your own types; repeatable. Default: none.",
        ),
    ] = None,
) -> None:
    """Memory benchmark and ablation toolkit for volumetric medical image translation."""
    if modules:
        from ppdm_bench.configuration import import_own

        for module in modules:
            or_usage_error(import_own, module)
    command = context.invoked_subcommand
    if under_torchrun() and command not in (*DISTRIBUTED, *READ_ONLY):
        raise typer.BadParameter(
            f"under torchrun, every process would run all of {command} and write the same files; start it without "
            f"torchrun, which is for {' and '.join(DISTRIBUTED)}"
        )


@app.command()
def methods(
    method: Methods = None,
    columns: Columns = None,
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """List the registered methods: presets, parameters, network evaluations per volume."""
    with redirect_stdout(sys.stderr):  # a user's own method may print
        from ppdm_bench.commands.methods import catalogue
        from ppdm_bench.report.tables.catalogue import catalogue_page

        rows = or_usage_error(catalogue, method)
    if json:
        print(dumps(rows, indent=1))
    else:
        print(catalogue_page(rows).to_text(read_names("--columns", columns)))


@app.command()
def env(json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False) -> None:
    """Show the environment that every record contains."""
    from ppdm_bench.environment import environment, nvml_note

    found = environment()
    if json:
        print(dumps(found, indent=1))
        return
    width = max(map(len, found))
    print("\n".join(f"{key:{width}}  {value}" for key, value in found.items()))
    if note := nvml_note():
        print(f"note: {note}")
