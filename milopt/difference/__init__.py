"""What differs between two packages."""

from __future__ import annotations

from milopt.difference.comparing import diff
from milopt.difference.result import Change, Difference

__all__ = ["Change", "Difference", "diff"]
