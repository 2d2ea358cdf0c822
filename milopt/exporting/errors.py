"""What is raised when an export can't be made, or its folder holds what is not its own."""

from __future__ import annotations

from milopt.errors import MiloptError

__all__ = ["ExportError"]


class ExportError(MiloptError):
    """An export can't begin or go on; the message is one line."""
