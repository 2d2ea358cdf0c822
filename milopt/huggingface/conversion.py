"""``convert``: a transformers model becomes a milopt model, one function per query length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from milopt.huggingface.errors import ConversionError
from milopt.huggingface.interface import function_names
from milopt.huggingface.lowering import Precision, lower
from milopt.huggingface.sources import ModelSource, Progress, Source, open_source
from milopt.huggingface.tokenizer import attach_tokenizer
from milopt.huggingface.tracing import in_float32, require_lengths, trace
from milopt.multifunction import merge
from milopt.package import Model

__all__ = ["baseline", "convert"]


def convert(
    model_or_dir: ModelSource,
    *,
    context: int = 512,
    query_lengths: Sequence[int] = (1, 64),
    dtype: Literal["float16", "float32"] = "float16",
    tokenizer: Any | None = None,
    progress: Progress | None = None,
) -> Model:
    """A transformers model, a directory or a ``.gguf`` file -> a :class:`~milopt.package.Model` for iOS 18.

    Every query length ``Q`` becomes a function (see :func:`~milopt.huggingface.interface.function_names`; the shortest
    is the default) with inputs ``input_ids`` and ``position_ids`` int32 (1, Q), ``causal_mask`` (1, 1, Q, context) and
    per layer ``past_key_i``, ``past_value_i`` (1, Hkv, context - Q, D); and outputs ``logits`` (1, Q, V),
    ``present_key_i``, ``present_value_i`` (1, Hkv, context, D). Floats are of ``dtype``. The mask's columns are
    [past | new].

    The functions share their weights. The tokenizer, where there is one, travels as attachments that
    :class:`~milopt.huggingface.tokenizer.Tokenizer` reads. Nothing is downloaded, and a model given in memory is as
    before afterwards. In ``float16`` the program still needs milopt's ``fp16-safe-norm``. ``progress`` is told every
    step.

    :class:`~milopt.huggingface.errors.ConversionError` when the model is absent, damaged or unsupported, or the
    options don't fit it; its :class:`~milopt.huggingface.errors.SelfCheckError` when a trace computes something else
    than the unmodified model.
    """
    if dtype not in ("float16", "float32"):
        raise ConversionError(f"unknown dtype {dtype!r}: float16 or float32")
    return _convert(model_or_dir, context, tuple(query_lengths), dtype, tokenizer, progress)


def baseline(
    model_or_dir: ModelSource,
    *,
    context: int = 512,
    query_lengths: Sequence[int] = (64,),
    tokenizer: Any | None = None,
    progress: Progress | None = None,
) -> Model:
    """The same interface with coremltools' own fp16 conversion, as a measure of what milopt's care is worth."""
    return _convert(model_or_dir, context, tuple(query_lengths), "default-float16", tokenizer, progress)


def _convert(
    model_or_dir: ModelSource,
    context: int,
    query_lengths: tuple[int, ...],
    precision: Precision,
    tokenizer: Any | None,
    progress: Progress | None,
) -> Model:
    require_lengths(context, query_lengths)
    tell = progress or _say_nothing
    source = open_source(model_or_dir, context=context, tokenizer=tokenizer, progress=progress)
    names = function_names(query_lengths)
    model = in_float32(source.model)
    functions: dict[str, Model] = {}
    for length, name in names.items():
        tell(f"trace and check {name} ({length} of {context} tokens)")
        traced = trace(model, context=context, query_length=length)
        tell(f"convert {name} (the trace differs from the model by {traced.difference:.1g} of the largest value)")
        functions[name] = lower(traced, precision)
        del traced
    tell("share the weights")
    merged = merge(functions, default=names[query_lengths[0]])
    _sign(merged, source, context, query_lengths)
    if source.tokenizer is None:
        tell("no tokenizer found: the model carries none")
    else:
        attach_tokenizer(merged, source.tokenizer, source.model)
    return merged


def _sign(model: Model, source: Source, context: int, query_lengths: tuple[int, ...]) -> None:
    model.metadata |= {
        "milopt.architecture": source.architecture,
        "milopt.context": str(context),
        "milopt.query_lengths": ",".join(map(str, query_lengths)),
        "milopt.source": source.name,
    }


def _say_nothing(_: str) -> None:
    pass
