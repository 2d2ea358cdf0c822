"""``convert``: a transformers model becomes a milopt model, one function per query length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from milopt.cachedrive import WINDOW_KEY
from milopt.huggingface.errors import ConversionError
from milopt.huggingface.families import Kind
from milopt.huggingface.interface import Interface, Logits, function_names
from milopt.huggingface.lowering import Precision, lower
from milopt.huggingface.programcheck import check_program
from milopt.huggingface.sources import ModelSource, Progress, Source, open_source
from milopt.huggingface.tokenizer import attach_tokenizer
from milopt.huggingface.tracing import in_float32, require_lengths, trace
from milopt.multifunction import merge, share_weights
from milopt.package import Model

if TYPE_CHECKING:
    from milopt.huggingface.kept import Kept
    from milopt.huggingface.routes import Route

__all__ = ["Quantized", "QueryLengths", "baseline", "convert"]

Quantized: TypeAlias = Literal["keep", "floats"]
"""What becomes of weights that a checkpoint has quantized: integers where that is exact, or floats all of them."""

QueryLengths: TypeAlias = "Sequence[int] | Literal['flexible'] | None"
"""How many tokens one call takes: a function for each number, one function for any number, or what suits the model."""

FLEXIBLE = "flexible"
_DECODER_LENGTHS = (1, 64)


@dataclass(frozen=True)
class _Options:
    context: int
    query_lengths: QueryLengths
    precision: Precision
    batch: int
    route: Route
    logits: Logits
    pickles: bool = False
    quantized: Quantized = "keep"


def convert(
    model_or_dir: ModelSource,
    *,
    context: int = 512,
    query_lengths: QueryLengths = None,
    dtype: Literal["float16", "float32"] = "float16",
    batch: int = 1,
    route: Route = "trace",
    logits: Logits = "all",
    tokenizer: Any | None = None,
    pickles: bool = False,
    quantized: Quantized = "keep",
    kept: Callable[[Kept], None] | None = None,
    progress: Progress | None = None,
) -> Model:
    """A transformers model, a directory or a ``.gguf`` file -> a :class:`~milopt.package.Model` for iOS 18.

    A causal language model: every query length ``Q`` becomes a function (see
    :func:`~milopt.huggingface.interface.function_names`; the shortest is the default; 1 and 64 unless others are given)
    with inputs ``input_ids`` and ``position_ids`` int32 (B, Q), ``causal_mask`` (B, 1, Q, context), perhaps
    ``sliding_mask``, and per layer ``past_key_i``, ``past_value_i`` (B, Hkv, context - Q, D); and outputs ``logits``
    (B, Q, V), or (B, 1, V) with ``logits="last"``, ``present_key_i``, ``present_value_i`` (B, Hkv, context, D). Floats
    are of ``dtype``. The masks' columns are [past | new]. Where some layers see a sliding window only, ``sliding_mask``
    is theirs; where all do, ``causal_mask`` is. The metadata ``milopt.sliding_window`` is the window's size.

    ``query_lengths="flexible"`` makes one function of any ``Q`` and any past of 1 slot or more, up to ``context``
    columns in all. (Core ML's Neural Engine wants fixed shapes.)

    An encoder of text takes ``input_ids`` and ``attention_mask`` int32 (B, S), and returns ``last_hidden_state`` and
    ``pooler_output``, or ``logits``, as the model does; ``S`` is ``context``, or every one of ``query_lengths``. An
    encoder of images takes ``pixel_values`` (B, C, H, W), as the model's own processor makes them.

    The functions share their weights. The tokenizer, where there is one, travels as attachments that
    :class:`~milopt.huggingface.tokenizer.Tokenizer` reads. Nothing is downloaded, and a model given in memory is as
    before afterwards. In ``float16`` the program still needs milopt's ``fp16-safe-norm``. ``progress`` is told every
    step.

    A directory holds safetensors, or, if ``pickles`` allows that, PyTorch's ``.bin`` files with nothing but tensors.
    A checkpoint's large matrices are not loaded into memory.

    Weights that GPTQ, AWQ, compressed-tensors, fp8 in blocks or bitsandbytes quantized, and those of a GGUF, stay small
    integers where a ``constexpr_*`` op gives the floats that they stand for, rounded to ``dtype``, bit for bit
    (:mod:`milopt.huggingface.fitting`); others become these floats, and with ``quantized="floats"`` all do. ``kept`` is
    told once what became of each.

    :class:`~milopt.huggingface.errors.ConversionError` when the model is absent, damaged or unsupported, or the
    options don't fit it; its :class:`~milopt.huggingface.errors.SelfCheckError` when the trace, the program, or the
    program fed in other portions computes something else than the unmodified model.
    """
    if dtype not in ("float16", "float32"):
        raise ConversionError(f"unknown dtype {dtype!r}: float16 or float32")
    if logits not in ("all", "last"):
        raise ConversionError(f"unknown logits {logits!r}: all or last")
    if batch < 1:
        raise ConversionError(f"the batch holds at least one sequence, not {batch}")
    if quantized not in ("keep", "floats"):
        raise ConversionError(f"unknown treatment of quantized weights {quantized!r}: keep or floats")
    options = _Options(context, query_lengths, dtype, batch, route, logits, pickles, quantized)
    return _convert(model_or_dir, options, tokenizer, progress, kept)


def baseline(
    model_or_dir: ModelSource,
    *,
    context: int = 512,
    query_lengths: Sequence[int] = (64,),
    tokenizer: Any | None = None,
    progress: Progress | None = None,
) -> Model:
    """The same interface with coremltools' own fp16 conversion, as a measure of what milopt's care is worth."""
    options = _Options(context, query_lengths, "default-float16", 1, "trace", "all", quantized="floats")
    return _convert(model_or_dir, options, tokenizer, progress)


def _convert(
    model_or_dir: ModelSource,
    options: _Options,
    tokenizer: Any | None,
    progress: Progress | None,
    kept: Callable[[Kept], None] | None = None,
) -> Model:
    from milopt.huggingface.attaching import Attached

    tell = progress or _say_nothing
    source = open_source(
        model_or_dir,
        context=options.context,
        tokenizer=tokenizer,
        pickles=options.pickles,
        stand_ins=True,
        progress=progress,
    )
    names = _functions(source.kind, options)
    model, attached = in_float32(source.model), Attached()
    functions: dict[str, Model] = {}
    interfaces: dict[str, Any] = {}
    for length, name in names.items():
        tell(f"trace and check {name} ({_what(source.kind, length, options)})")
        traced = trace(
            model,
            context=options.context,
            query_length=length,
            route=options.route,
            batch=options.batch,
            logits=options.logits,
        )
        tell(f"convert {name} (the trace differs from the model by {traced.difference:.1g} of the largest value)")
        functions[name], interfaces[name] = lower(traced, options.precision, attached), traced.interface
        del traced
    tell("share the weights")
    merged = _merged(functions)
    if source.origins:
        from milopt.huggingface.keeping import keep_quantized

        tell("keep what is quantized")
        fates = keep_quantized(merged.program, attached, source.origins, keep=options.quantized == "keep")
        if kept is not None:
            kept(fates)
    # what is not used any more lies on the disk until then
    attached.arrays.clear()
    _sign(merged, source, options, interfaces)
    if options.precision != "default-float16":
        tell("check the program")
        check_program(merged, interfaces, model, source.tokenizer, tell=tell)
    if source.kind == "image-encoder":
        return merged
    if source.tokenizer is None:
        tell("no tokenizer found: the model carries none")
    else:
        attach_tokenizer(merged, source.tokenizer, source.model)
    return merged


def _merged(functions: dict[str, Model]) -> Model:
    """One model of all. A single one stays what it is: merging would forget the ranges of flexible sizes."""
    first = next(iter(functions))
    if len(functions) > 1:
        return merge(functions, default=first)
    share_weights(functions[first].program)
    return functions[first]


def _functions(kind: Kind, options: _Options) -> dict[int | None, str]:
    """Query length -> function name."""
    lengths = options.query_lengths
    if kind == "image-encoder":
        return {None: "main"}
    if lengths == FLEXIBLE:
        if options.context < 3:
            raise ConversionError(f"a context of {options.context} leaves nothing to be flexible")
        return {None: "main"}
    if isinstance(lengths, str):
        raise ConversionError(f"query lengths are numbers or {FLEXIBLE!r}, not {lengths!r}")
    chosen = tuple(lengths) if lengths is not None else _usual_lengths(kind, options.context)
    if kind == "decoder":
        require_lengths(options.context, chosen)
        return {length: name for length, name in function_names(chosen).items()}  # noqa: C416
    # a text may fill the context
    require_lengths(max((options.context, *chosen)) + 1, chosen)
    return {length: "main" if len(chosen) == 1 else f"s{length}" for length in chosen}


def _usual_lengths(kind: Kind, context: int) -> tuple[int, ...]:
    return (context,) if kind == "text-encoder" else _DECODER_LENGTHS


def _what(kind: Kind, length: int | None, options: _Options) -> str:
    if kind == "image-encoder":
        return "one size of images"
    if length is None:
        return f"any number of {options.context} tokens"
    return f"{length} of {options.context} tokens"


def _sign(model: Model, source: Source, options: _Options, interfaces: dict[str, Any]) -> None:
    model.metadata |= {"milopt.architecture": source.architecture, "milopt.source": source.name}
    if source.kind == "image-encoder":
        return
    lengths = options.query_lengths
    model.metadata["milopt.context"] = str(options.context)
    if source.kind == "text-encoder":
        return
    model.metadata["milopt.query_lengths"] = (
        FLEXIBLE if lengths == FLEXIBLE else ",".join(map(str, lengths or _DECODER_LENGTHS))
    )
    interface = next(iter(interfaces.values()))
    if isinstance(interface, Interface) and interface.masks.window is not None:
        model.metadata[WINDOW_KEY] = str(interface.masks.window)


def _say_nothing(_: str) -> None:
    pass
