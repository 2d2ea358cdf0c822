"""What is raised when a program can't be divided, or a set on the disk is not whole."""

from __future__ import annotations

from milopt.errors import MiloptError

__all__ = ["SetError"]


class SetError(MiloptError):
    """A deployment set can't be made, written or read; the message is one line."""
