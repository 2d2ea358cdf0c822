"""What milopt raises when the fault lies in what it was given."""

from __future__ import annotations

__all__ = [
    "EvaluationError",
    "MiloptError",
    "PackageError",
    "PassError",
    "PatternError",
    "UnsupportedOps",
    "VerificationError",
]

_LONGEST = 1500  # characters of a message about a package


class MiloptError(ValueError):
    """Bad input. The message is one line: which file or op, what is wrong, what to do.

    The command line prints it and exits with status 2; anything else that escapes is a bug in milopt.
    """


class PackageError(MiloptError):
    """A package can't be read or written."""

    def __init__(self, message: str) -> None:
        # names in a damaged package may be of any length
        super().__init__(message if len(message) <= _LONGEST else f"{message[:_LONGEST]}...")


class PassError(MiloptError):
    """A pass is unknown, has wrong options, or can't run on this program."""


class PatternError(PassError, TypeError):
    """A rule's pattern is not one; the message names the rule, and the file and line."""


class EvaluationError(MiloptError):
    """A program can't be evaluated on the given inputs."""


class UnsupportedOps(EvaluationError):
    """The program holds ops the interpreter has no implementation of; ``ops`` maps op type to op names."""

    def __init__(self, ops: dict[str, list[str]]) -> None:
        self.ops = ops
        listed = ", ".join(f"{kind} ({len(names)}x, e.g. {names[0]!r})" for kind, names in sorted(ops.items()))
        super().__init__(f"the interpreter has no implementation of: {listed}")


class VerificationError(MiloptError):
    """A rewritten program differs from the original; ``verdict`` says where, ``report`` what was done until then."""

    def __init__(self, message: str, verdict: object, report: object = None) -> None:
        self.verdict = verdict
        self.report = report
        super().__init__(message)
