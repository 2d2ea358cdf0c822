"""coremltools and transformers, kept quiet and repaired for the length of a conversion.

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

__all__ = ["coremltools_repaired", "gguf_read_once", "tracing_quietly", "transformers_quiet"]

_Item = TypeVar("_Item")
_LOCK = threading.RLock()
_EXPECTED = (
    # A wrapper has to return a tuple (torch can't trace transformers' output classes), and milopt names every output.
    "Tuple detected at graph output. This will be flattened in the converted model.",
    # The padding token matters to training only: its row of the embedding is looked up as any other.
    "Core ML embedding (gather) layer does not support any inputs besides the weights and indices.",
)


@contextmanager
def coremltools_repaired() -> Generator[None]:
    """coremltools without progress bars and with an ``aten::Int`` that numpy >= 2.4 accepts."""
    ops = importlib.import_module("coremltools.converters.mil.frontend.torch.ops")
    passes = importlib.import_module("coremltools.converters.mil.mil.passes.pass_pipeline")
    logger = logging.getLogger("coremltools")
    with _LOCK, ExitStack() as patches:
        patches.enter_context(warnings.catch_warnings())
        _ignore_retirement()
        # one of coremltools' passes compares the ranges of casts by casting fp32's largest number to fp16
        warnings.filterwarnings("ignore", message="overflow encountered in cast", module=r"coremltools\.")
        patches.enter_context(_replaced(ops, "_cast", _scalar_cast(ops, ops._cast)))
        patches.enter_context(_replaced(ops, "_tqdm", _without_bar))
        patches.enter_context(_replaced(passes, "tqdm", _without_bar))
        logger.addFilter(_is_news)
        patches.callback(logger.removeFilter, _is_news)
        yield


@contextmanager
def _replaced(module: Any, name: str, value: object) -> Generator[None]:
    original = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, original)


def _scalar_cast(ops: Any, original: Any) -> Any:
    """``ops._cast``, which calls ``int`` on arrays of one element: numpy >= 2.4 only converts those of rank 0."""

    def cast(context: Any, node: Any, dtype: Any, dtype_name: str) -> None:
        (x,) = ops._get_inputs(context, node, expected=1)
        if x.can_be_folded_to_const() and getattr(x.val, "size", 0) == 1:
            context.add(ops.mb.const(val=dtype(x.val.item()), name=node.name), node.name)
            return
        original(context, node, dtype, dtype_name)

    return cast


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
        with _LOCK, _replaced(gguf_loading, "tqdm", _without_bar):
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
        _LOCK,
        _replaced(gguf, "GGUFReader", functools.cache(gguf.GGUFReader)),
        _replaced(gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map)),
    ):
        yield
