"""The command `windtunnel`.

Results go to stdout, progress and mistakes to stderr. Exit codes: 0 done, 2 a mistake in the input (every problem listed, no
traceback), 130 stopped by Ctrl-C, 143 by a polite kill; a stopped command leaves no half-written file.
"""

import signal
import sys
from types import FrameType
from typing import NoReturn

import typer

from simcore.commands.calibrate import calibrate
from simcore.commands.catalog import catalog
from simcore.commands.check import check
from simcore.commands.checkpoint import checkpoint
from simcore.commands.compare import compare
from simcore.commands.describe import describe
from simcore.commands.export import export
from simcore.commands.plan import plan
from simcore.commands.rounds import rounds
from simcore.commands.run import run
from simcore.commands.schema import schema
from simcore.commands.sweep import sweep
from simcore.commands.trace_model import trace_model
from simcore.commands.validate import validate
from simcore.errors import WindtunnelError

app = typer.Typer(
    help="Predict what a training plan does on a cluster, then run the same plan for real.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    plan,
    check,
    run,
    rounds,
    compare,
    sweep,
    calibrate,
    validate,
    catalog,
    schema,
    trace_model,
    describe,
    export,
):
    app.command(context_settings={"help_option_names": ["-h", "--help"]})(command)
app.add_typer(checkpoint, name="checkpoint")


def main() -> NoReturn:
    """Run the command in `sys.argv` and exit."""
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)
    try:
        app(prog_name="windtunnel")
    except WindtunnelError as mistake:
        _fail(str(mistake))
    except OSError as error:
        if error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}")
    raise SystemExit(0)


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    """A signal as an ordinary exit, so that temporary files are removed on the way out."""
    raise SystemExit(128 + number)


def _fail(message: str) -> NoReturn:
    sys.stderr.write(f"windtunnel: {message}\n")
    raise SystemExit(2)
