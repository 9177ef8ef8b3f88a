"""The typer application, its exit codes, and how errors reach the user.

Exit codes: 0 done, 1 something failed (such as one unreadable image among good ones), 2 wrong usage or
input, 130 Ctrl-C.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from trt_moe.errors import BundleError, DataError, InputError, TrtMoeError

FAILED = 1
WRONG_INPUT = 2
INTERRUPTED = 130


class _Group(TyperGroup):
    """Turns expected errors into one message and an exit code; unexpected ones keep their traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return self._invoke(ctx)
        except (InputError, BundleError, DataError) as error:
            _complain(str(error))
            raise typer.Exit(WRONG_INPUT) from None
        except TrtMoeError as error:
            _complain(str(error))
            raise typer.Exit(FAILED) from None
        except KeyboardInterrupt:
            _complain("interrupted; no half-written files are left")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            # The reader (head, less) has seen enough.
            _settle_stdout()
            raise typer.Exit(FAILED) from None
        except OSError as error:
            _complain_of_system(error)
            raise typer.Exit(FAILED) from None

    def _invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ImportError as error:
            cause: BaseException | None = error
            while cause is not None:
                # Modules in C turn Ctrl-C while they are loaded into an ImportError.
                if isinstance(cause, KeyboardInterrupt):
                    raise cause from None
                cause = cause.__cause__ or cause.__context__
            raise


app = typer.Typer(
    name="trt-moe",
    cls=_Group,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Route images between cheap and dear expert classifiers under a latency limit.",
)


def main() -> None:
    """Entry point of the command."""
    if sys.stdout is None:
        _complain("standard output is closed, and results go there; send them to a file, or to /dev/null")
        sys.exit(FAILED)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # File names may hold what the terminal's encoding lacks.
            stream.reconfigure(errors="backslashreplace")
    # Too large images are refused in our own words; Pillow's warning would come first.
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit")
    try:
        app()
    except OSError as error:  # of --help and --version, which run no verb
        _complain_of_system(error)
        sys.exit(FAILED)


def _complain_of_system(error: OSError) -> None:
    place = f"{error.filename}: " if error.filename else ""
    _complain(f"{place}{error.strerror or error}")
    _settle_stdout()


def _settle_stdout() -> None:
    """Where what was printed cannot be written, have Python's last flush at exit write it nowhere."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(message: str) -> None:
    from trt_moe.console import clean

    # Lists of files have a line for each.
    lines = [clean(line) for line in message.expandtabs(2).splitlines()]
    if sys.stderr is not None:
        sys.stderr.write("trt-moe: error: " + "\n".join(lines) + "\n")


def _print_version(show: bool) -> None:
    if show:
        from trt_moe import __version__

        typer.echo(f"trt-moe {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    del version


# They register their verbs, in the order of the help text.
from trt_moe.cli import run, serve  # noqa: E402, F401, I001
from trt_moe.cli import build, look, make, study, sweep  # noqa: E402, F401
