"""The command line: ``milopt convert``, ``optimize``, ``verify``, ``run``, ``inspect``, ``diff``, ``explain``,
``passes``, ``chunk``, ``export``, ``extract-embedding``, ``extract-function``, ``multifunction``,
``generate``, ``calibrate``, ``contract``, ``check-contract`` and ``demo``.

Exit status: 0 when all is well, 1 when a verification failed, an overflow was found, packages differ or a contract is
broken, 2 for bad input, 130 after Ctrl-C, 70 for a fault of milopt itself.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType

import typer

from milopt.cli.app import command
from milopt.cli.console import Settings, complain
from milopt.errors import MiloptError, VerificationError

__all__ = ["main"]

_INTERRUPTED = 128 + signal.SIGINT


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line with ``arguments`` (the process's own by default) and return the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if threading.current_thread() is not threading.main_thread():
        return _run(given, Settings())
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        return _run(given, Settings())
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(arguments: list[str], settings: Settings) -> int:
    try:
        status = command().main(args=arguments, prog_name="milopt", standalone_mode=False, obj=settings)
    except typer.TyperException as error:
        complain(f"{error.format_message().rstrip('.')} (see `milopt --help`)")
        return error.exit_code
    except BrokenPipeError:
        # whoever read our output has seen enough; what is still buffered must not fail again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        status = _INTERRUPTED
    except Exception as error:
        if settings.debug:
            raise
        return _explain(error)
    if status == _INTERRUPTED:  # typer itself turns a Ctrl-C into this status
        print("interrupted", file=sys.stderr, flush=True)
    return int(status or 0)


def _explain(error: Exception) -> int:
    """One line for ``error``, and the exit status that goes with it."""
    if isinstance(error, VerificationError):
        complain(str(error), lines=True)
        return 1
    if isinstance(error, MiloptError):
        complain(str(error))
        return 2
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        complain(f"{where}{error.strerror or error}")
        return 2
    if isinstance(error, MemoryError):
        complain("not enough memory")
        return 2
    complain(f"{type(error).__name__}: {error}; this is a fault of milopt: --debug shows where")
    return 70


def _terminate(number: int, _: FrameType | None) -> None:
    """Leave as after Ctrl-C: what is being written is taken back first."""
    print("terminated", file=sys.stderr, flush=True)
    raise SystemExit(128 + number)
