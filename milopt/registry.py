"""Names of passes. Nothing is imported, and nothing registered anywhere, before it is asked for."""

from __future__ import annotations

import difflib
import importlib
import re
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points

from milopt.errors import PassError
from milopt.pipeline import Pass
from milopt.spec import parse_options

__all__ = ["create", "names", "pass_class"]

_NAME = re.compile(r"[A-Za-z][\w.-]*")
_COREMLTOOLS = "ct:"

# name -> module of milopt.passes, class
_OWN = {
    "canonicalize": "canonical:Canonicalize",
    "fp16-safe-norm": "norms:Fp16SafeNorm",
    "rope-table": "rope:RopeTable",
    "finite-mask": "masks:FiniteMask",
    "scale-residual": "residual:ScaleResidual",
    "fp32-islands": "islands:Fp32Islands",
    "fuse-sdpa": "attention:FuseSdpa",
    "pack-gqa": "gqa:PackGqa",
    "decompose-sdpa": "decomposition:DecomposeSdpa",
    "kv-to-state": "cache:KvToState",
    "state-to-kv": "cache_inverse:StateToKv",
    "contract": "contract:ClientContract",
    "linear-to-conv": "convolution:LinearToConv",
    "conv1x1-to-linear": "convolution_inverse:Conv1x1ToLinear",
    "layout-bc1s": "layout:LayoutBc1s",
    "split-head": "head:SplitHead",
    "dma-notch": "notch:DmaNotch",
    "palettize": "compression:Palettize",
    "budget": "budget:Budget",
    "quantize": "quantization:Quantize",
    "decompress": "decompression:Decompress",
}


@lru_cache(maxsize=1)
def _others() -> dict[str, EntryPoint]:
    """Passes of other packages, from the entry point group ``milopt.passes``."""
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group="milopt.passes"):
        if not _NAME.fullmatch(entry.name):
            raise PassError(f"{_origin(entry)} offers a pass named {entry.name!r}, which a pipeline's text can't say")
        if entry.name in _OWN or entry.name in found:
            first = _origin(found[entry.name]) if entry.name in found else "milopt"
            raise PassError(f"two packages offer a pass named {entry.name!r}: {first} and {_origin(entry)}")
        found[entry.name] = entry
    return found


def _origin(entry: EntryPoint) -> str:
    return f"{entry.value} of {entry.dist.name}" if entry.dist is not None else entry.value


def names() -> tuple[str, ...]:
    """Every pass name, milopt's own first."""
    return (*_OWN, *sorted(_others()))


def pass_class(name: str) -> type[Pass]:
    """The class registered under ``name``, or made for a pass of coremltools (``ct:common::const_elimination``).

    Raises PassError, naming what comes near; also where another package's entry point can't be imported, or is no pass
    of that name.
    """
    if name.startswith(_COREMLTOOLS):
        from milopt.coremltools_steps import step_class

        return step_class(name)
    if name in _OWN:
        module, _, attribute = _OWN[name].partition(":")
        found: type[Pass] = getattr(importlib.import_module(f"milopt.passes.{module}"), attribute)
        return found
    if name in _others():
        return _loaded(_others()[name])
    near = difflib.get_close_matches(name, names(), n=2)
    hint = f"did you mean {' or '.join(near)}?" if near else "`milopt passes` lists them"
    raise PassError(f"there is no pass named {name!r}; {hint}")


def _loaded(entry: EntryPoint) -> type[Pass]:
    try:
        found: object = entry.load()
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise PassError(f"the pass {entry.name!r} can't be imported from {_origin(entry)}: {why}") from error
    if not isinstance(found, type) or not issubclass(found, Pass):
        raise PassError(f"{_origin(entry)}, offered as the pass {entry.name!r}, is no subclass of milopt.Pass")
    if getattr(found, "name", None) != entry.name:
        said = getattr(found, "name", None)
        raise PassError(f"{_origin(entry)} is offered as the pass {entry.name!r}, but calls itself {said!r}")
    return found


def create(name: str, options: dict[str, str] | None = None) -> Pass:
    """A pass from its name and its options as text."""
    cls = pass_class(name)
    try:
        return cls(**parse_options(cls, name, options or {}))
    except (ValueError, TypeError) as error:
        if isinstance(error, PassError):
            raise
        raise PassError(f"{name}: {error}") from error
