"""Core ML packages in and out."""

from __future__ import annotations

from milopt.package.loading import load
from milopt.package.model import Model

__all__ = ["Model", "load"]
