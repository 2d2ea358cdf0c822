"""The command line: ``milopt convert``, ``optimize``, ``verify``, ``run``, ``inspect``, ``diff``, ``explain``,
``passes``, ``chunk``, ``export``, ``extract-embedding``, ``extract-function``, ``multifunction``,
``generate``, ``calibrate``, ``contract``, ``check-contract`` and ``demo``.

Exit status: 0 when all is well, 1 when a verification failed, an overflow was found, packages differ or a contract is
broken, 2 for bad input, 130 after Ctrl-C, 143 after SIGTERM, 70 for a fault of milopt itself.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from milopt.cli import signals
from milopt.errors import MiloptError, VerificationError

__all__ = ["main"]

_WORDS = {128 + signal.SIGINT: "interrupted", 128 + signal.SIGTERM: "terminated"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line with ``arguments`` (the process's own by default) and return the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    with signals.ending() as asked:
        try:
            status = _run(given, asked)
        except (KeyboardInterrupt, signals.Terminated):
            status = 128 + (asked.number or signal.SIGINT)
        asked.forget()
    if status in _WORDS:
        print(_WORDS[status], file=sys.stderr, flush=True)
    return status


def _run(arguments: list[str], asked: signals.Ending) -> int:
    import typer  # not above: until `main` runs, Ctrl-C shows a traceback

    from milopt.cli.app import command
    from milopt.cli.console import Settings, complain

    settings = Settings()
    try:
        # typer itself turns a Ctrl-C into a status
        return int(command().main(args=arguments, prog_name="milopt", standalone_mode=False, obj=settings) or 0)
    except typer.TyperException as error:
        complain(f"{error.format_message().rstrip('.')} (see `milopt --help`)")
        return error.exit_code
    except BrokenPipeError:
        # whoever read our output has seen enough; what is still buffered must not fail again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        if asked.number:  # a library has made another error of it
            return 128 + asked.number
        if settings.debug:
            raise
        status, told = _explained(error)
        complain(told, lines=isinstance(error, VerificationError))
        return status


def _explained(error: Exception) -> tuple[int, str]:
    """The exit status that goes with ``error``, and what to say of it."""
    if isinstance(error, VerificationError):
        return 1, str(error)
    if isinstance(error, MiloptError):
        return 2, str(error)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return 2, f"{where}{error.strerror or error}"
    if isinstance(error, MemoryError):
        return 2, "not enough memory"
    return 70, f"{type(error).__name__}: {error}; this is a fault of milopt: --debug shows where"
