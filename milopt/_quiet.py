"""Keeps coremltools' start-up warnings from milopt's users.

On Linux coremltools warns seven times that Core ML's runtime is absent, and once that the torch version is new to it.
Both are known and harmless to milopt, whose interpreter is the runtime there. Other messages of coremltools pass.
"""

from __future__ import annotations

import logging

__all__ = ["silence_start_up"]

_KNOWN = ("Failed to load _ML", "has not been tested with coremltools", "is not supported. Minimum required version")


def _is_news(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return not any(known in message for known in _KNOWN)


def silence_start_up() -> None:
    """Install the filter; to be called before coremltools is imported. Calling it again changes nothing."""
    logging.getLogger("coremltools").addFilter(_is_news)
