"""Names of passes. Nothing is imported, and nothing registered anywhere, before it is asked for."""

from __future__ import annotations

import difflib
import importlib
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points

from milopt.errors import PassError
from milopt.pipeline import Pass
from milopt.spec import parse_options

__all__ = ["create", "names", "pass_class"]

# name -> module of milopt.passes, class
_OWN = {
    "canonicalize": "canonical:Canonicalize",
    "fp16-safe-norm": "norms:Fp16SafeNorm",
    "rope-table": "rope:RopeTable",
    "fuse-sdpa": "attention:FuseSdpa",
    "kv-to-state": "cache:KvToState",
    "linear-to-conv": "convolution:LinearToConv",
    "palettize": "compression:Palettize",
    "quantize": "quantization:Quantize",
}


@lru_cache(maxsize=1)
def _others() -> dict[str, EntryPoint]:
    """Passes of other packages, from the entry point group ``milopt.passes``."""
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group="milopt.passes"):
        if entry.name in _OWN or entry.name in found:
            raise PassError(f"two packages offer a pass named {entry.name!r}; the second is {entry.value}")
        found[entry.name] = entry
    return found


def names() -> tuple[str, ...]:
    """Every pass name, milopt's own first."""
    return (*_OWN, *sorted(_others()))


def pass_class(name: str) -> type[Pass]:
    """The class registered under ``name``. Raises PassError, naming what comes near."""
    if name in _OWN:
        module, _, attribute = _OWN[name].partition(":")
        found: type[Pass] = getattr(importlib.import_module(f"milopt.passes.{module}"), attribute)
        return found
    if name in _others():
        other: type[Pass] = _others()[name].load()
        return other
    near = difflib.get_close_matches(name, names(), n=2)
    hint = f"did you mean {' or '.join(near)}?" if near else "`milopt passes` lists them"
    raise PassError(f"there is no pass named {name!r}; {hint}")


def create(name: str, options: dict[str, str] | None = None) -> Pass:
    """A pass from its name and its options as text."""
    cls = pass_class(name)
    try:
        return cls(**parse_options(cls, name, options or {}))
    except ValueError as error:
        if isinstance(error, PassError):
            raise
        raise PassError(f"{name}: {error}") from error
