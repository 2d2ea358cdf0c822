"""Does the finished program, fed as its users feed it, answer as the model does? Asked of every conversion.

A decoder is driven through a session from its first token on, in two portionings of the same tokens. Weights are
rounded to fp16 in the program, so they are in the model it is compared with; nothing else is, since the program runs in
float64. How far its own fp16 arithmetic leads away is measured and told, and repaired by later passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from milopt.errors import EvaluationError
from milopt.huggingface.encoders import EncoderInterface
from milopt.huggingface.errors import SelfCheckError
from milopt.huggingface.features import Signature
from milopt.huggingface.interface import Interface
from milopt.huggingface.quiet import tracing_quietly
from milopt.huggingface.samples import image_sample, text_sample
from milopt.huggingface.standins import real_weights
from milopt.huggingface.tracing import as_captured, evaluating
from milopt.interpreter import compile
from milopt.mil import dtype_name
from milopt.package import Model
from milopt.precisions import Precision
from milopt.session import Session

__all__ = ["check_program", "rounded_weights"]

Tell = Callable[[str], None]

# Float64 against torch's float32, whose weights are rounded alike: 4e-6 of the largest logit on SmolLM2-135M. In fp16
# there remain constants that are no weights (scales, 1 + w of Gemma's norms): 9e-4 in the worst case on the small
# models of tests/huggingface/families.py. A mistake moves logits by 8e-3 at least, see selfcheck.
_RELATIVE = {"fp32": 1e-4, "fp16": 3e-3}
# Two portionings in float64 differ by the order of sums.
_PORTIONS = 1e-6
# Where the declared precision is this far off, something overflows.
_SPOILT = 0.05
_TEXT = (
    "The train to the north was late, and so we sat down in the small café and talked about what 1984 had been like."
)


def check_program(
    model: Model, interfaces: Mapping[str, Signature], source: Any, tokenizer: Any | None, *, tell: Tell
) -> None:
    """Compare ``model`` with ``source``, the transformers model in float32; SelfCheckError where they differ.

    ``interfaces`` are the signatures by function name; text is tried where there is a ``tokenizer``. ``tell`` hears how
    far the declared precision is off, which is no error: in fp16 the norms still overflow.
    """
    first = next(iter(interfaces.values()))
    rounded = _floats(model) == "fp16"
    with torch.no_grad(), tracing_quietly(), evaluating(source), as_captured(source), real_weights():
        if isinstance(first, Interface):
            _check_decoder(model, first, source, tokenizer, rounded, tell)
            return
        for name, interface in interfaces.items():
            _check_encoder(model, name, interface, source, rounded, tell)


def _check_decoder(
    model: Model, interface: Interface, source: Any, tokenizer: Any | None, rounded: bool, tell: Tell
) -> None:
    # weights are prepared at every call: a float64 copy of all would take four times the package's memory
    session = Session(model, precision="float64", keep_weights=False)
    count, first = _split(session)
    vocabulary = min(interface.vocabulary, int(source.get_input_embeddings().weight.shape[0]))
    generator = torch.Generator().manual_seed(1)
    prompts = {"random tokens": torch.randint(vocabulary, (count,), generator=generator)}
    if tokenizer is not None:
        ids = [each for each in tokenizer(_TEXT)["input_ids"] if each < vocabulary][:count]
        prompts |= {"text": torch.tensor(ids)} if len(ids) > first else {}
    asked: tuple[str, list[int], npt.NDArray[Any]] = "", [], np.zeros((0, 1))
    bound = _RELATIVE["fp16" if rounded else "fp32"]
    for what, prompt in prompts.items():
        with rounded_weights(source, rounded):
            wanted = source(input_ids=prompt[None], use_cache=False).logits[0].double().numpy()
        if rounded and not np.isfinite(wanted).all():
            raise SelfCheckError(
                "with its weights rounded to fp16 the model does not answer with finite numbers: some are beyond "
                "65504; convert it with dtype float32 (--precision float32)",
                math.inf,
            )
        tokens = [int(each) for each in prompt]
        got = _fed(session, _portions(session, len(tokens)), tokens)
        _agree(f"the program on {what}", "the unmodified model", wanted, got, bound)
        other = _fed(session, _other_portions(session, len(tokens), first), tokens)
        both = _Fed(other.logits, other.known & got.known)
        _agree(
            f"the program on {what}, fed in other portions,", "what it computes otherwise", got.logits, both, _PORTIONS
        )
        asked = what, tokens, wanted
    what, tokens, wanted = asked
    declared = Session(model, keep_weights=False)
    off, _ = _difference(wanted, _fed(declared, _portions(declared, len(tokens)), tokens))
    tell(f"in its declared precision, the program is off by {off:.2g} of the largest logit, on {what}{_advice(off)}")


def _advice(off: float) -> str:
    return "" if off <= _SPOILT else ": something overflows, which fp16-safe-norm may repair"


def _split(session: Session) -> tuple[int, int]:
    """How many tokens to try, and after how many of them to pause in another portioning."""
    lengths, context = session.query_lengths, session.context
    longest = lengths[-1]
    if len(lengths) > 1 and lengths[0] + longest <= context:
        return lengths[0] + longest, lengths[0]
    if longest == 1:
        return min(context, 4), 1
    return longest, max(1, min(longest // 3, context - longest))


def _portions(session: Session, count: int) -> list[int]:
    """All at once, as far as the program can."""
    return _steps(session, count) if session.plans.only_last else [count]


def _other_portions(session: Session, count: int, first: int) -> list[int]:
    """The same tokens in portions that end elsewhere."""
    return _steps(session, count)[::-1] if session.plans.only_last else [first, count - first]


def _steps(session: Session, count: int) -> list[int]:
    """Whole blocks, the longest first."""
    steps: list[int] = []
    while fitting := [each for each in session.query_lengths if each <= count - sum(steps)]:
        steps.append(max(fitting))
    return steps


@dataclass(frozen=True)
class _Fed:
    """Logits of every token, and of which tokens the program gives any."""

    logits: npt.NDArray[np.float64]
    known: npt.NDArray[np.bool_]


def _fed(session: Session, portions: Sequence[int], tokens: list[int]) -> _Fed:
    """What ``session`` answers to ``tokens`` in these portions."""
    session.reset()
    rows: list[npt.NDArray[np.float32]] = []
    known: list[bool] = []
    done = 0
    for portion in portions:
        last = session.plans.only_last
        got = session.feed(tokens[done : done + portion], last_only=last)
        missing = portion - len(got)
        rows.append(np.concatenate((np.zeros((missing, got.shape[-1]), np.float32), got)))
        known += [False] * missing + [True] * len(got)
        done += portion
    return _Fed(np.concatenate(rows).astype(np.float64), np.array(known))


def _agree(what: str, whom: str, wanted: npt.NDArray[Any], got: _Fed, bound: float) -> None:
    off, token = _difference(wanted, got)
    if not off <= bound:
        raise SelfCheckError(
            f"{what} does not compute {whom}: the logits of token {token} differ by {off:.3g} of the largest (at most "
            f"{bound:g} is rounding); the program is not to be trusted",
            off,
        )


def _difference(wanted: npt.NDArray[Any], got: _Fed) -> tuple[float, int]:
    """The largest difference, as a share of the largest wanted, among the rows that are known, and its row.

    NaN differs from everything: infinity.
    """
    length = min(len(wanted), len(got.logits))
    rows = np.flatnonzero(got.known[:length])
    if not rows.size:
        raise EvaluationError("no row of logits can be compared")
    off = np.abs(wanted[rows] - got.logits[rows]).max(-1) / np.abs(wanted[rows]).max()
    off = np.where(np.isnan(off), np.inf, off)
    worst = int(off.argmax())
    return float(off[worst]), int(rows[worst])


def _check_encoder(model: Model, name: str, interface: Signature, source: Any, rounded: bool, tell: Tell) -> None:
    with rounded_weights(source, rounded):
        if isinstance(interface, EncoderInterface):
            length = interface.length if interface.length is not None else interface.context
            sample = text_sample(
                source, length=length, token_types=interface.token_types, batch=interface.batch, seed=1
            )
        else:
            batch, channels, height, width = interface.inputs["pixel_values"].shape
            sizes: Any = {"channels": channels, "height": height, "width": width, "batch": batch}
            sample = image_sample(source, **sizes, seed=1)
    feeds = {key: value.numpy() for key, value in sample.feeds.items()}
    precisions: tuple[Precision, ...] = ("float64", "declared")
    for precision in precisions:
        got = compile(model, name, precision=precision, keep_weights=False).run(feeds)
        worst = max(
            _difference(value.flatten(1).double().numpy(), _whole(got[key].flatten(1)))[0]
            for key, value in sample.wanted.items()
        )
        if precision == "declared":
            tell(f"in its declared precision, {name} is off by {worst:.2g} of the largest value{_advice(worst)}")
        elif not worst <= (bound := _RELATIVE["fp16" if rounded else "fp32"]):
            raise SelfCheckError(
                f"{name} does not compute what the unmodified model computes: it differs by {worst:.3g} of the largest "
                f"value (at most {bound:g} is rounding); the program is not to be trusted",
                worst,
            )


def _whole(values: torch.Tensor) -> _Fed:
    return _Fed(values.double().numpy(), np.ones(len(values), np.bool_))


def _floats(model: Model) -> str:
    return dtype_name(next(iter(model.function().outputs)))


@contextmanager
def rounded_weights(model: torch.nn.Module, rounds: bool) -> Generator[None]:
    """``model`` with the weights of each module rounded to fp16, while that module runs."""
    handles: list[Any] = []
    held: list[dict[str, torch.Tensor]] = []

    def enter(module: Any, _: object) -> None:
        held.append({})
        for kept in (module._parameters, module._buffers):
            for name, value in kept.items():
                # the frequencies of rotary positions stay float32 in the program too
                if value is not None and value.is_floating_point() and not name.endswith("inv_freq"):
                    held[-1][name] = value
                    half = value.detach().half().float()
                    kept[name] = torch.nn.Parameter(half, requires_grad=False) if kept is module._parameters else half

    def leave(module: Any, *_: object) -> None:
        for name, value in held.pop().items():
            kept = module._parameters if name in module._parameters else module._buffers
            kept[name] = value

    for module in model.modules() if rounds else ():
        handles += [
            module.register_forward_pre_hook(enter),
            module.register_forward_hook(leave, always_call=True),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
