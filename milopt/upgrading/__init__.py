"""Upgrading a model to a newer system: the changes between MIL's opsets as a table, and what translates them."""

from __future__ import annotations

from milopt.upgrading.changes import CHANGES, Change, Kind
from milopt.upgrading.passing import Upgrade
from milopt.upgrading.targets import target_named
from milopt.upgrading.translating import upgrade

__all__ = ["CHANGES", "Change", "Kind", "Upgrade", "target_named", "upgrade"]
