"""Tokens into a language model with a key/value cache, logits out; what was fed is remembered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from milopt.cachedrive import CacheLayout, recognise
from milopt.errors import MiloptError
from milopt.interpreter import Plan, Precision, ValueInfo, compile_all
from milopt.interpreter.values import is_float
from milopt.package import Model
from milopt.signature import CacheSignature

__all__ = ["Block", "Plans", "Session", "blocks"]

# What a mask adds where a query may not look. Finite in fp16, and exp(-1e4) is 0 in every format (constraint L10).
_MASKED = -1e4
# The names under which converters hand over token ids and positions.
_TOKENS = ("input_ids", "inputIds", "tokens")
_POSITIONS = ("position_ids", "positionIds", "positions")


@dataclass(frozen=True)
class Block:
    """One call: ``count`` tokens through the function that takes ``length``; the rest of its rows are padding."""

    length: int
    count: int


def blocks(lengths: Sequence[int], position: int, count: int, context: int) -> Iterator[Block]:
    """How ``count`` tokens are fed when ``position`` slots are taken: whole blocks of the longest kind first.

    What remains goes as one padded block where all its rows, padding included, stay within the context, else in
    smaller blocks. MiloptError when the last slots can't be reached because no function takes so few tokens.
    """
    while count:
        fitting = [length for length in lengths if position + length <= context]
        if not fitting:
            raise MiloptError(
                f"the last {context - position} of {context} slots can't be used: no function takes fewer than "
                f"{min(lengths)} tokens"
            )
        longest = max(lengths)
        if count >= longest and longest in fitting:
            length = longest
        else:
            length = min((each for each in fitting if each >= count), default=max(fitting))
        taken = min(length, count)
        yield Block(length, taken)
        position, count = position + taken, count - taken


class Plans:
    """A language model ready to run: shared by all its sessions, which only keep a cache each.

    The model has a cache in one of two forms, in all its functions: inputs ``past_*`` with outputs ``present_*``, or
    the states that ``kv-to-state`` makes of them. Each function takes token ids (1, Q) under a usual name
    (``input_ids``), an additive or boolean mask over the context's slots (..., Q, context), and perhaps the tokens'
    positions (``position_ids``); it returns ``logits`` (1, Q, V). MiloptError says what is missing.
    """

    def __init__(
        self, model: Model, *, precision: Precision = "declared", keep_weights: bool = True, device: str = "cpu"
    ) -> None:
        plans = compile_all(model, precision=precision, keep_weights=keep_weights, device=device)
        layout = recognise(plans, CacheSignature.from_metadata(model.metadata))
        if layout is None:
            first = plans[model.default_function] if model.default_function in plans else next(iter(plans.values()))
            raise MiloptError(
                f"the model has no key/value cache that milopt knows: function {first.function!r} takes "
                f"{', '.join([*first.inputs, *first.states]) or 'nothing'}"
            )
        self.layout: CacheLayout = layout
        self.plans = plans
        self.functions: dict[int, _Function] = {}
        for plan in plans.values():
            function = _Function(plan, layout)
            if function.length not in self.functions or plan.function == model.default_function:
                self.functions[function.length] = function

    @property
    def context(self) -> int:
        return self.layout.context

    @property
    def query_lengths(self) -> tuple[int, ...]:
        return tuple(sorted(self.functions))

    @property
    def vocabulary(self) -> int:
        return next(iter(self.functions.values())).vocabulary


class _Function:
    """One function's roles: which input is what, and where the logits come out."""

    def __init__(self, plan: Plan, layout: CacheLayout) -> None:
        self.plan = plan
        self.length = layout.query_length(plan)
        self.masks = [plan.inputs[name] for name in layout.signature.masks if name in plan.inputs]
        known = layout.own_names().union(info.name for info in self.masks)
        rest = {name: info for name, info in plan.inputs.items() if name not in known}
        self.tokens = self._named(rest, _TOKENS)
        self.positions = self._named(rest, _POSITIONS) if len(rest) > 1 else None
        unknown = [name for name in rest if rest[name] not in (self.tokens, self.positions)]
        if unknown:
            raise MiloptError(f"function {plan.function!r} has an input {unknown[0]!r} that a session can't provide")
        self.logits = "logits" if "logits" in plan.outputs else self._only_output(plan, layout)
        shape = plan.outputs[self.logits].shape or ()
        if len(shape) < 2 or not isinstance(shape[-1], int) or shape[-2] != self.length:
            raise MiloptError(f"output {self.logits!r} of {plan.function!r} is not (1, {self.length}, vocabulary)")
        self.vocabulary = shape[-1]

    def _named(self, inputs: dict[str, ValueInfo], names: Sequence[str]) -> ValueInfo:
        for name in names:
            if name in inputs and (inputs[name].shape or ())[-1:] == (self.length,):
                return inputs[name]
        raise MiloptError(
            f"function {self.plan.function!r} has no input {names[0]!r} of {self.length} entries; it takes "
            f"{', '.join(f'{name} {info}' for name, info in inputs.items()) or 'nothing else'}"
        )

    @staticmethod
    def _only_output(plan: Plan, layout: CacheLayout) -> str:
        presents = {slot.present for slot in layout.signature.slots}
        outputs = [name for name in plan.outputs if name not in presents]
        if len(outputs) != 1:
            raise MiloptError(f"function {plan.function!r} has no output 'logits'; it returns {', '.join(outputs)}")
        return outputs[0]

    def inputs(self, tokens: Sequence[int], position: int) -> dict[str, npt.NDArray[Any]]:
        """The function's inputs for tokens in slots ``position`` and following, padded with token 0."""
        padded: Any = np.zeros(self.length, np.int32)
        padded[: len(tokens)] = tokens
        slots: Any = np.arange(position, position + self.length, dtype=np.int32)
        made: dict[str, npt.NDArray[Any]] = {self.tokens.name: padded.reshape(_static(self.tokens))}
        if self.positions is not None:
            made[self.positions.name] = slots.reshape(_static(self.positions))
        for info in self.masks:
            seen = np.broadcast_to(np.arange(_static(info)[-1]) <= slots[:, None], _static(info))
            made[info.name] = seen if info.dtype == "bool" else np.where(seen, 0.0, _MASKED).astype(_numpy(info))
        return made


def _static(info: ValueInfo) -> tuple[int, ...]:
    return tuple(dim for dim in info.shape or () if isinstance(dim, int))


def _numpy(info: ValueInfo) -> Any:
    if not is_float(info.dtype):
        raise MiloptError(f"mask {info.name!r} is {info}: it must be a float that is added, or bool")
    return np.float16 if info.dtype == "fp16" else np.float32


class Session:
    """One sequence of tokens, fed bit by bit; the cache of what was fed is kept between calls.

    ``precision="declared"`` computes as the package says, ``"float64"`` without rounding. With
    ``keep_weights=False`` weights are prepared anew at every call: slow, but it needs little memory. Sessions made by
    :meth:`fork` share everything but the cache.
    """

    def __init__(
        self,
        model: Model | Plans,
        *,
        precision: Precision = "declared",
        keep_weights: bool = True,
        device: str = "cpu",
    ) -> None:
        if not isinstance(model, Plans):
            model = Plans(model, precision=precision, keep_weights=keep_weights, device=device)
        self.plans = plans = model
        self.position = 0
        self._caches = plans.layout.empty(plans.plans)

    @property
    def context(self) -> int:
        """How many tokens the cache has room for."""
        return self.plans.context

    @property
    def query_lengths(self) -> tuple[int, ...]:
        """How many tokens one call of each function takes, in ascending order."""
        return self.plans.query_lengths

    def fork(self) -> Session:
        """Another sequence, empty, on the same model; weights are shared."""
        return Session(self.plans)

    def reset(self) -> None:
        """Forget everything fed."""
        self.position = 0
        self._caches.reset()

    def feed(
        self,
        tokens: Sequence[int],
        *,
        last_only: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> npt.NDArray[np.float32]:
        """Append tokens; the logits (len(tokens), V), or with ``last_only`` those of the last token, (1, V).

        ``progress`` is called after every block with the number of tokens done and the number of all. MiloptError
        when they don't fit what is left of the context; then nothing was fed.
        """
        total = len(tokens)
        if self.position + total > self.context:
            used = f", of which {self.position} are used" if self.position else ""
            count = "1 token does" if total == 1 else f"{total} tokens do"
            raise MiloptError(f"{count} not fit a context of {self.context}{used}")
        if wrong := [token for token in tokens if not 0 <= token < self.plans.vocabulary]:
            raise MiloptError(f"token {wrong[0]} is not one of the vocabulary's {self.plans.vocabulary}")
        rows: list[npt.NDArray[np.float32]] = []
        done = 0
        for block in list(blocks(self.query_lengths, self.position, total, self.context)):
            rows.append(self._run(block, tokens[done : done + block.count], last_only))
            done += block.count
            if progress is not None:
                progress(done, total)
        if not rows:
            return np.zeros((0, self.plans.vocabulary), np.float32)
        return rows[-1] if last_only or len(rows) == 1 else np.concatenate(rows)

    def _run(self, block: Block, tokens: Sequence[int], last_only: bool) -> npt.NDArray[np.float32]:
        function = self.plans.functions[block.length]
        outputs = self._caches.run(function.plan, self.position, function.inputs(tokens, self.position))
        self.position += block.count
        logits = outputs[function.logits].reshape(block.length, function.vocabulary)
        first = block.count - 1 if last_only else 0
        if first == 0 and block.count == block.length:
            return np.asarray(logits.cpu().numpy(), np.float32)
        # a copy: a view would keep the other rows' logits alive
        return np.array(logits[first : block.count].cpu().numpy(), np.float32)
