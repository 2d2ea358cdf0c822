"""coremltools, torch and transformers, kept quiet for the length of a conversion.

The patches below are module attributes of coremltools, transformers and gguf: one conversion holds them at a time (a
lock), other threads that use these libraries meanwhile see the patched ones, and everything is put back at the end.
Python's warning filters are global too, so a thread that changes them during a conversion may find its change undone.
"""

from __future__ import annotations

import functools
import importlib
import logging
import threading
import warnings
from collections.abc import Generator, Iterable
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from milopt.huggingface.extras import extra

__all__ = [
    "PATCHING",
    "coremltools_quiet",
    "exporting_quietly",
    "gguf_read_once",
    "replaced",
    "tracing_quietly",
    "transformers_quiet",
]

_Item = TypeVar("_Item")
PATCHING = threading.RLock()
"""Held by whoever has changed another library."""
_EXPECTED = (
    # A wrapper has to return a tuple (torch can't trace transformers' output classes), and milopt names every output.
    "Tuple detected at graph output. This will be flattened in the converted model.",
    # The padding token matters to training only: its row of the embedding is looked up as any other.
    "Core ML embedding (gather) layer does not support any inputs besides the weights and indices.",
    # MIL's integers are of 32 bits; those of exported programs are of 64, as torch's are by default.
    "Saving value type of int64 into a builtin type of int32, might lose precision!",
    # milopt's own error says the same, with the reason.
    "\n\nERROR - ",
)


@contextmanager
def coremltools_quiet() -> Generator[None]:
    """coremltools without progress bars and without what it says of every model that milopt converts."""
    ops = importlib.import_module("coremltools.converters.mil.frontend.torch.ops")
    passes = importlib.import_module("coremltools.converters.mil.mil.passes.pass_pipeline")
    logger = logging.getLogger("coremltools")
    with PATCHING, ExitStack() as patches:
        patches.enter_context(warnings.catch_warnings())
        _ignore_retirement()
        # one of coremltools' passes compares the ranges of casts by casting fp32's largest number to fp16
        warnings.filterwarnings("ignore", message="overflow encountered in cast", module=r"coremltools\.")
        # its reader of exported programs asks its registry in a way that it has retired itself
        warnings.filterwarnings("ignore", message="Function _TORCH_OPS_REGISTRY", category=DeprecationWarning)
        patches.enter_context(replaced(ops, "_tqdm", _without_bar))
        patches.enter_context(replaced(passes, "tqdm", _without_bar))
        logger.addFilter(_is_news)
        patches.callback(logger.removeFilter, _is_news)
        yield


@contextmanager
def replaced(module: Any, name: str, value: object) -> Generator[None]:
    """``module.name`` is ``value`` for as long as this lasts, also where the module has no such name."""
    absent = object()
    original = getattr(module, name, absent)
    setattr(module, name, value)
    try:
        yield
    finally:
        if original is absent:
            delattr(module, name)
        else:
            setattr(module, name, original)


def _without_bar(iterable: Iterable[_Item], **_: object) -> Iterable[_Item]:
    return iterable


def _ignore_retirement() -> None:
    # torch announces the retirement of TorchScript, the form that coremltools reads best, on every use of it
    warnings.filterwarnings("ignore", message=r".*torch\.jit\.", category=DeprecationWarning)


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_EXPECTED)


@contextmanager
def tracing_quietly() -> Generator[None]:
    """torch's tracer without the warnings that a static trace of a transformers model is known to give."""
    with transformers_quiet(), warnings.catch_warnings():
        # Shapes are static on purpose, so values the tracer bakes in are meant; the self-check runs the result.
        warnings.filterwarnings("ignore", category=importlib.import_module("torch").jit.TracerWarning)
        _ignore_retirement()
        # The tracer reads every property of a module, also deprecated ones.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        yield


@contextmanager
def exporting_quietly() -> Generator[None]:
    """torch.export without what torch warns of in its own code, nor the graph that it prints before an exception."""
    tracing = importlib.import_module("torch.export._trace")
    shapes = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    with transformers_quiet(), PATCHING, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`", category=FutureWarning)
        with replaced(tracing, "print", _say_nothing), replaced(shapes, "disabled", True):
            yield


def _say_nothing(*_: object, **__: object) -> None:
    pass


@contextmanager
def transformers_quiet() -> Generator[None]:
    """transformers without progress bars and without messages below errors."""
    logs, hub = extra("transformers.utils.logging"), extra("huggingface_hub.utils")
    gguf_loading = extra("transformers.modeling_gguf_pytorch_utils")
    verbosity, bars = logs.get_verbosity(), logs.is_progress_bar_enabled()
    hub_bars = not hub.are_progress_bars_disabled()
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    try:
        # this module alone takes its bar from tqdm itself, where transformers' switch has no effect
        with PATCHING, replaced(gguf_loading, "tqdm", _without_bar):
            yield
    finally:
        logs.set_verbosity(verbosity)
        if bars:
            logs.enable_progress_bar()
        # transformers switches the hub's bars along with its own
        (hub.enable_progress_bars if hub_bars else hub.disable_progress_bars)()


@contextmanager
def gguf_read_once() -> Generator[None]:
    """gguf with a memory of the files it has read, for as long as this lasts.

    Loading a model, transformers reads the file's header anew for the config, the weights and the tokenizer, and builds
    the table of tensor names once for every module: two thirds of the time for a file of 135 M parameters.
    """
    gguf = extra("gguf")
    with (
        PATCHING,
        replaced(gguf, "GGUFReader", functools.cache(gguf.GGUFReader)),
        replaced(gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map)),
    ):
        yield
