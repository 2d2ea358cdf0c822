"""A transformers model into a checked capture of one function: a query length of a decoder, or a whole encoder."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from milopt.huggingface.encoders import EncoderInterface, ImageInterface
from milopt.huggingface.errors import ConversionError
from milopt.huggingface.families import kind_of, masks_of, require_convertible
from milopt.huggingface.features import Shape, Signature, Sizes
from milopt.huggingface.interface import Interface, Logits
from milopt.huggingface.quiet import tracing_quietly

if TYPE_CHECKING:
    import torch

    from milopt.huggingface.recording import Calls
    from milopt.huggingface.samples import Sample

__all__ = ["Traced", "as_captured", "evaluating", "in_float32", "require_lengths", "trace"]


@dataclass(frozen=True)
class Traced:
    """A trace with its signature. ``difference`` is the largest one the self-check saw, relative to the largest value.

    ``module`` shares its weights with the model it was traced from, when that one is float32 and on the CPU.
    ``samples`` are what it was checked on, and ``wrapper`` is the torch module that was traced.
    """

    module: Any
    interface: Signature
    difference: float
    samples: tuple[Sample, ...]
    wrapper: Any
    route: str = "trace"

    def calls(self, sample: Sample) -> Calls:
        """What the model's modules do when the wrapper runs on ``sample``."""
        import torch

        from milopt.huggingface.standins import real_weights

        model = self.wrapper.model
        with torch.no_grad(), tracing_quietly(), evaluating(model), as_captured(model), real_weights():
            return _calls(self.wrapper, sample.feeds)


@dataclass(frozen=True)
class _Prepared:
    """A model's wrapper (made only when the model is ready for it), its signature and what to check it on."""

    wrapper: Callable[[], Any]
    interface: Signature
    samples: tuple[Sample, ...]


def trace(
    model: Any,
    *,
    context: int,
    query_length: int | None,
    route: str = "trace",
    batch: int = 1,
    logits: Logits = "all",
) -> Traced:
    """Trace ``model``, a transformers model, with ``query_length`` new tokens of ``context`` columns.

    ``query_length=None`` leaves both sizes open. For an encoder of text, it is the length of the text. The results are
    compared in float32 with those of the unmodified model on a whole prompt; :class:`SelfCheckError` when they differ,
    with the module in which the difference begins. The model's weights, attention and training flags are as before
    afterwards, but other threads must not use it meanwhile.
    """
    import torch

    from milopt.huggingface.routes import capture
    from milopt.huggingface.standins import real_weights

    kind = kind_of(type(model).__name__, model.config)
    if kind == "decoder" and query_length is not None:
        require_lengths(context, (query_length,))
    model = in_float32(model)
    with torch.no_grad(), tracing_quietly(), evaluating(model):
        with _explained(model, "does not run as milopt runs it"), real_weights():
            prepared = _PREPARE[kind](model, context, query_length, batch, logits)
        with as_captured(model):
            wrapper = prepared.wrapper().eval()
            for sample in prepared.samples:
                with real_weights():
                    with _explained(model, "can't be run on milopt's interface"):
                        got = wrapper(*sample.feeds.values())
                    _require("milopt's wrapper of the model", wrapper, sample, got, sample.repeat)
                    _require_any_order(wrapper, sample)
            with _explained(model, f"can't be captured by {route}"):
                captured = capture(route, wrapper, prepared.samples[0].others, prepared.interface)
            with real_weights():
                differences = [
                    _require(
                        f"torch's {route} of the model",
                        wrapper,
                        sample,
                        captured.call(*sample.feeds.values()),
                        route=route,
                    )
                    for sample in prepared.samples
                ]
    return Traced(captured.form, prepared.interface, max(differences), prepared.samples, wrapper, route)


def _decoder(model: Any, context: int, query_length: int | None, batch: int, logits: Logits) -> _Prepared:
    from milopt.huggingface.samples import prompt_sample
    from milopt.huggingface.wrapper import PastPresent

    require_convertible(model.config, context)
    masks = masks_of(type(model).__name__, model.config)
    _require_causal(model)
    if query_length is None:
        # two sizes of both, none of which stands for itself elsewhere in a usual model
        sizes = [(min(context, 43), min(context - 1, 5)), (min(context, 37), 1)]
    else:
        sizes = [(context, query_length)]
    pairs = [
        prompt_sample(model, context=columns, query_length=query, masks=masks, batch=batch, logits=logits, seed=seed)
        for seed, (columns, query) in enumerate(sizes)
    ]
    sample, layers = pairs[0]
    if not layers:
        raise ConversionError(f"{type(model).__name__} keeps no cache of keys and values")
    interface = Interface(
        context=context,
        query_length=query_length,
        vocabulary=int(sample.wanted["logits"].shape[-1]),
        layers=layers,
        masks=masks,
        batch=batch,
        logits=logits,
    )
    return _Prepared(lambda: PastPresent(model, masks, logits), interface, tuple(each for each, _ in pairs))


def _text_encoder(model: Any, context: int, length: int | None, batch: int, logits: Logits) -> _Prepared:
    from milopt.huggingface.samples import text_sample
    from milopt.huggingface.wrapper import Encoding

    _require_all(logits)
    require_convertible(model.config, context)
    if length is not None and not 1 <= length <= context:
        raise ConversionError(f"texts of {length} tokens do not fit a context of {context}")
    # a bare encoder is used on single texts; a head may compare two
    pairs = (getattr(model.config, "type_vocab_size", 1) or 1) > 1 and not type(model).__name__.endswith("Model")
    lengths = [length] if length is not None else [min(context, 13), min(context, 29)]
    samples = tuple(
        text_sample(model, length=each, token_types=pairs, batch=batch, seed=seed) for seed, each in enumerate(lengths)
    )
    interface = EncoderInterface(context, length, {}, pairs, batch)
    interface = replace(interface, returns=_shapes(samples, interface.tokens))
    return _Prepared(lambda: Encoding(model, tuple(interface.returns)), interface, samples)


def _shapes(samples: Sequence[Sample], tokens: int | Sizes) -> dict[str, Shape]:
    """The shapes of the outputs: an axis that is as long as the text, in all samples, is the tokens'."""
    found: dict[str, Shape] = {}
    for name, value in samples[0].wanted.items():
        found[name] = tuple(
            tokens
            if all(each.wanted[name].shape[axis] == each.feeds["input_ids"].shape[1] for each in samples) and axis
            else size
            for axis, size in enumerate(value.shape)
        )
    return found


def _image_encoder(model: Any, context: int, length: int | None, batch: int, logits: Logits) -> _Prepared:
    from milopt.huggingface.samples import image_sample
    from milopt.huggingface.wrapper import ImageEncoding

    del context, length
    _require_all(logits)
    size: Any = model.config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    channels = int(model.config.num_channels)
    sample = image_sample(model, channels=channels, height=height, width=width, batch=batch)
    returns: dict[str, Shape] = {name: tuple(value.shape) for name, value in sample.wanted.items()}
    interface = ImageInterface(channels, height, width, returns, batch)
    return _Prepared(lambda: ImageEncoding(model, tuple(returns)), interface, (sample,))


def _require_all(logits: Logits) -> None:
    if logits != "all":
        raise ConversionError("logits of the last token alone are for causal language models")


_PREPARE: dict[str, Callable[[Any, int, int | None, int, Logits], _Prepared]] = {
    "decoder": _decoder,
    "text-encoder": _text_encoder,
    "image-encoder": _image_encoder,
}


def require_lengths(context: int, query_lengths: tuple[int, ...]) -> None:
    """:class:`ConversionError` unless the query lengths are ascending and each leaves room for a past."""
    if not query_lengths or any(length < 1 for length in query_lengths):
        raise ConversionError(
            f"query lengths {list(query_lengths)}: at least one is needed, and each must be 1 or more"
        )
    if any(b <= a for a, b in itertools.pairwise(query_lengths)):
        raise ConversionError(f"query lengths {list(query_lengths)} must be ascending, without repetition")
    if query_lengths[-1] >= context:
        raise ConversionError(f"query length {query_lengths[-1]} leaves no past in a context of {context}")


def in_float32(model: Any) -> Any:
    """``model`` itself when its weights are float32 on the CPU, else such a copy of it."""
    import torch

    fits = all(p.dtype == torch.float32 and p.device.type == "cpu" for p in model.parameters())
    return model if fits else copy.deepcopy(model).to(device="cpu", dtype=torch.float32)


def _require(
    what: str,
    wrapper: Any,
    sample: Sample,
    got: Sequence[torch.Tensor],
    reference: Callable[[], object] | None = None,
    *,
    route: str = "trace",
) -> float:
    """Compare ``got`` with what is wanted. Where it differs, the modules of ``reference`` are compared with those of
    the wrapper, or those of the wrapper with what ``route`` makes of them.
    """
    from milopt.huggingface.recording import recording
    from milopt.huggingface.selfcheck import parting_module, require_same

    def where() -> str | None:
        if reference is None:
            return parting_module(wrapper.model, _calls(wrapper, sample.feeds), _captured_calls(wrapper, sample, route))
        with recording(wrapper.model) as calls:
            reference()
        return parting_module(wrapper.model, calls, _calls(wrapper, sample.feeds))

    return require_same(what, sample.wanted, dict(zip(sample.wanted, got, strict=True)), where=where)


def _require_any_order(wrapper: Any, sample: Sample) -> None:
    """ConversionError where attention depends on which column of the past a token is in, and not on masks alone.

    Caches keep tokens in slots, among which those without a token may lie anywhere.
    """
    from milopt.huggingface.selfcheck import RELATIVE, difference, parting_module

    if sample.reordered is None:
        return
    logits = wrapper(*sample.reordered.values())[0]
    if difference(sample.wanted["logits"], logits) <= RELATIVE:
        return
    place = parting_module(wrapper.model, _calls(wrapper, sample.feeds), _calls(wrapper, sample.reordered))
    raise ConversionError(
        f"{type(wrapper.model).__name__} looks at the order of the cache's columns (in {place}), as with ALiBi or a "
        "mask of its own; milopt's caches leave it open"
    )


def _require_causal(model: Any) -> None:
    """ConversionError for a language model of which every token sees all others, as BERT's head by default."""
    import torch

    from milopt.huggingface.selfcheck import RELATIVE, difference

    # GPT-NeoX's config says the same, and means nothing by it
    if getattr(model.config, "is_decoder", None) is not False:
        return
    one, other = model(input_ids=torch.tensor([[0, 1], [0, 2]]), use_cache=False).logits[:, 0]
    if difference(one, other) > RELATIVE:
        raise ConversionError(
            f"{type(model).__name__} is no causal language model here: its config's is_decoder is false, and tokens "
            "see those behind them"
        )


def _calls(wrapper: Any, feeds: dict[str, torch.Tensor]) -> Calls:
    from milopt.huggingface.recording import recording

    with recording(wrapper.model) as calls:
        wrapper(*feeds.values())
    return calls


def _captured_calls(wrapper: Any, sample: Sample, route: str) -> Calls:
    """What the modules give when a capture runs on ``sample``: captured once more, with everything as outputs."""
    import torch

    from milopt.huggingface.recording import ModuleCall
    from milopt.huggingface.routes import capture

    seen: dict[str, tuple[bool, bool]] = {}

    class Exposed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wrapper = wrapper

        def forward(self, *feeds: torch.Tensor) -> tuple[torch.Tensor, ...]:
            calls = _calls(self.wrapper, dict(zip(sample.feeds, feeds, strict=True)))
            seen.update({path: (call.taken is not None, call.given is not None) for path, call in calls.items()})
            return tuple(each for call in calls.values() for each in (call.taken, call.given) if each is not None)

    exposed = capture(route, Exposed(), sample.others)
    values = iter(exposed.call(*sample.feeds.values()))
    return {
        path: ModuleCall(next(values) if taken else None, next(values) if given else None)
        for path, (taken, given) in seen.items()
    }


@contextmanager
def _explained(model: Any, what: str) -> Generator[None]:
    """An exception on the way through ``model`` becomes one line that names the module it came from."""
    from milopt.huggingface.recording import running

    with running(model) as stack:
        try:
            yield
        except ConversionError:
            raise
        except Exception as problem:  # foreign code of any kind
            reason = next(iter(str(problem).strip().splitlines()), type(problem).__name__)
            place = f" in {stack[-1]}" if stack and stack[-1] else ""
            raise ConversionError(
                f"{type(model).__name__} {what}{place}: {type(problem).__name__}: {reason}"
            ) from problem


@contextmanager
def evaluating(model: Any) -> Generator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def as_captured(model: Any) -> Generator[None]:
    """Attention as matmul, softmax, matmul: one op sequence for every query length (sdpa makes another one at 1).

    RoPE that depends on the length seen only in texts longer than the context is what it is in shorter ones. Experts
    see every token.
    """
    from milopt.huggingface.experts import every_expert

    before = model.config._attn_implementation
    growing = [module for module in model.modules() if getattr(module, "rope_type", None) in ("dynamic", "longrope")]
    kinds = [module.rope_type for module in growing]
    model.set_attn_implementation("eager")
    for module in growing:
        module.rope_type = "default"
    try:
        with every_expert(model):
            yield
    finally:
        model.set_attn_implementation(before)
        for module, kind in zip(growing, kinds, strict=True):
            module.rope_type = kind
