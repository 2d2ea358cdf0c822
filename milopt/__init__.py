"""milopt: an optimizing middle-end for Core ML's MIL."""

from __future__ import annotations

from milopt._quiet import silence_start_up

__version__ = "0.1.0"

silence_start_up()
