# SPDX-License-Identifier: Apache-2.0
"""The command `sartor`: arguments in, one recipe called, an exit code out.

Exit codes: 0; 2 with one line on standard error for a user's mistake; 130 when stopped by Ctrl-C or SIGTERM;
1 with one line for what should not have happened.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO

import typer
from typer.main import get_group

from sartor.cli.commands import app, is_run
from sartor.cli.supernets import specialised_in

_MISTAKES = (
    ValueError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
    BlockingIOError,
)


class UsageError(ValueError):
    """The command line cannot be understood."""


def run() -> NoReturn:
    """Run the command of this process: its arguments, its signals, its exit code."""
    signal.signal(signal.SIGTERM, _as_interrupt)
    warnings.simplefilter("ignore")  # of libraries; ours follow
    warnings.filterwarnings("default", category=UserWarning, module=r"sartor\b")
    warnings.showwarning = _show_warning
    code = main(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of a pipe has left, as `head` does; nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def main(argv: Sequence[str]) -> int:
    """Run one command and return its exit code; no exception leaves, and an error is one line."""
    verb: str | None = None
    asked: Mapping[str, Any] = {}
    try:
        context = parse(argv)
        verb, asked = context.info_name, context.params
        if verb == "specialise":
            asked = {**asked, "out": specialised_in(asked["run"], asked["out"])}
        with context:
            context.command.invoke(context)
    except typer.Exit as done:  # of --help and --version
        return done.exit_code
    except KeyboardInterrupt:
        return _fail(130, _stopped(verb, asked))
    except BrokenPipeError:
        return 0
    except Exception as error:
        return _explain(error, asked)
    return 0


def parse(argv: Sequence[str]) -> typer.Context:
    """Return the command that a command line names, as a context: its name, its arguments in `params`.

    Typer alone would also run the command, within its own handling of interrupts, pipes and errors.

    Raises:
        UsageError: an argument is unknown, missing or not understood.
        typer.Exit: `--help` or `--version` was printed.
    """
    group = get_group(app)
    context = typer.Context(group, info_name="sartor", help_option_names=["-h", "--help"])
    try:
        if not argv:
            context.fail("Missing command.")
        name, command, rest = group.resolve_command(context, [*argv])  # or --help, --version
        assert command is not None
        context = typer.Context(command, info_name=name, parent=context)
        command.parse_args(context, rest)
    except typer.TyperException as error:
        # pydantic puts its own name for a ValueError before what a parser of ours says
        message = error.format_message().replace("Value error, ", "", 1)
        raise UsageError(f"{message.rstrip('.')} (see `{context.command_path} --help`)") from None
    return context


def _explain(error: Exception, asked: Mapping[str, Any]) -> int:
    if asked.get("debug"):
        traceback.print_exception(error)
    if _is_mistake(error):
        return _fail(2, _told(error))
    kind = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
    return _fail(1, f"{kind}{_told(error)}; {_kept(error, asked)}")


def _is_mistake(error: Exception) -> bool:
    """Say whether the message alone tells a user what to change."""
    if isinstance(error, ImportError):
        return "sartor[" in str(error)  # it names the extra to install
    if not isinstance(error, RuntimeError):
        return isinstance(error, _MISTAKES)
    from sartor.deploy.parity import ExportError
    from sartor.distributed import WorkerLost
    from sartor.targets.artefacts import TargetError

    return isinstance(error, ExportError | TargetError | WorkerLost)


def _told(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def _kept(error: Exception, asked: Mapping[str, Any]) -> str:
    """Write the traceback into the run folder, and say where it is."""
    folder = _run_folder(asked)
    if folder is None:
        return "--debug shows where it came from"
    log = folder / "error.log"
    try:
        log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    except OSError:
        return "--debug shows where it came from"
    return f"details in {log}"


def _stopped(verb: str | None, asked: Mapping[str, Any]) -> str:
    if verb == "profile" and asked.get("out"):
        return "stopped; the same command continues"
    folder = _run_folder(asked) if verb in ("search", "bench", "resume", "train", "specialise") else None
    return f"stopped; continue with `sartor resume {folder}`" if folder else "stopped"


def _run_folder(asked: Mapping[str, Any]) -> Path | None:
    """Return the run that a command works on, if there is one yet."""
    folder: Path | None = asked.get("out") or asked.get("run")
    return folder if folder and is_run(folder) else None


def _fail(code: int, message: str) -> int:
    line = " ".join(message.split())  # one line, whatever a library put into its message
    sys.stderr.write(f"sartor: {line}\n")
    return code


def _as_interrupt(number: int, frame: FrameType | None) -> None:
    signal.raise_signal(signal.SIGINT)  # whoever handles Ctrl-C at this moment handles this too


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    sys.stdout.write(f"warning: {message}\n")
