"""A language model with a key/value cache, ready to run: which input is what, and where the logits come out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from milopt.cachecolumns import ring_tokens
from milopt.cachedrive import CacheLayout, recognise, recognise_flexible
from milopt.errors import MiloptError
from milopt.head_logits import logits_plans
from milopt.interpreter import Plan, Precision, ValueInfo, compile_all
from milopt.interpreter.values import is_float
from milopt.package import Model
from milopt.public_layouts import public_plans
from milopt.signature import CacheSignature, outer
from milopt.signature_head import HeadSignature
from milopt.signature_layout import LayoutSignature

if TYPE_CHECKING:
    from milopt.sets import ClientSet, DeploymentSet

__all__ = ["Plans"]

# What a mask adds where a query may not look. Finite in fp16, and exp(-1e4) is 0 in every format (constraint L10).
_MASKED = -1e4
# The names under which converters hand over token ids and positions.
_TOKENS = ("input_ids", "inputIds", "tokens")
_POSITIONS = ("position_ids", "positionIds", "positions")


class Plans:
    """A language model ready to run: shared by all its sessions, which only keep a cache each.

    The model has a cache in one of two forms, in all its functions: inputs ``past_*`` with outputs ``present_*``, or
    the states that ``kv-to-state`` makes of them. Each function takes token ids (1, Q) under a usual name
    (``input_ids``), an additive or boolean mask over the context's slots (..., Q, context), and perhaps the tokens'
    positions (``position_ids``); it returns ``logits`` (1, Q, V). MiloptError says what is missing. What ``split-head``
    took apart is whole again; logits that are not given back are minus infinity, and ``candidates`` are how many are.

    A :class:`~milopt.sets.ClientSet` is fed as its client does it: functions that give nothing take a prompt's tokens
    but the last.
    """

    def __init__(
        self,
        model: Model | DeploymentSet | ClientSet,
        *,
        precision: Precision = "declared",
        keep_weights: bool = True,
        device: str = "cpu",
    ) -> None:
        relaid, metadata = LayoutSignature.from_metadata(model.metadata), model.metadata
        plans = public_plans(_compiled(model, precision, keep_weights, device), relaid)
        if relaid is not None:
            metadata = relaid.public_metadata(metadata)
        self.head = HeadSignature.from_metadata(metadata)
        plans = logits_plans(plans, self.head)
        layout = recognise(plans, CacheSignature.from_metadata(metadata), metadata)
        if layout is None and len(plans) == 1:
            layout = recognise_flexible(next(iter(plans.values())), metadata)
        if layout is None:
            first = plans[model.default_function] if model.default_function in plans else next(iter(plans.values()))
            raise MiloptError(
                f"the model has no key/value cache that milopt knows: function {first.function!r} takes "
                f"{', '.join([*first.inputs, *first.states]) or 'nothing'}"
            )
        self.layout: CacheLayout = layout
        self.window = int(getattr(model, "window", 0))
        self.plans = plans
        self.functions: dict[int, _Function] = {}
        for plan in plans.values():
            if not _of_context(plan, layout):
                continue
            for length in layout.query_lengths(plan):
                function = _Function(plan, layout, length)
                if length not in self.functions or plan.function == model.default_function:
                    self.functions[length] = function

    @property
    def context(self) -> int:
        return self.layout.context

    @property
    def query_lengths(self) -> tuple[int, ...]:
        return tuple(sorted(self.functions))

    @property
    def telling(self) -> tuple[int, ...]:
        """The query lengths of the functions that return logits, in ascending order."""
        return tuple(each for each in self.query_lengths if self.functions[each].logits)

    @property
    def vocabulary(self) -> int:
        return next(function.vocabulary for function in self.functions.values() if function.logits)

    @property
    def candidates(self) -> int:
        """How many logits of a row are given back: all, or the likeliest."""
        if self.head is None or self.head.kind == "slices":
            return self.vocabulary
        return 1 if self.head.kind == "argmax" else self.head.k

    @property
    def only_last(self) -> bool:
        """Whether logits come out for the last row of a call only."""
        return any(function.only_last for function in self.functions.values())


def _of_context(plan: Plan, layout: CacheLayout) -> bool:
    """Whether a function looks at all slots: of those for several contexts (milopt.contexts) the longest are used."""
    signature = layout.signature
    if not layout.stateful or layout.flexible or signature.rings:
        return True
    shapes = [plan.inputs[name].shape or () for name in signature.masks if name in plan.inputs]
    return all(not isinstance(shape[-1], int) or shape[-1] >= signature.context for shape in shapes if shape)


def _compiled(
    model: Model | DeploymentSet | ClientSet, precision: Precision, keep_weights: bool, device: str
) -> dict[str, Plan]:
    if isinstance(model, Model):
        return compile_all(model, precision=precision, keep_weights=keep_weights, device=device)
    from milopt.sets.client import ClientSet, compile_client
    from milopt.sets.running import compile_set

    if isinstance(model, ClientSet):
        return compile_client(model, precision=precision, keep_weights=keep_weights, device=device)
    return compile_set(model, precision=precision, keep_weights=keep_weights, device=device)


class _Function:
    """One function's roles: which input is what, and where the logits come out. ``length`` tokens go in.

    ``logits`` is empty where the function returns nothing but what it writes to the cache.
    """

    def __init__(self, plan: Plan, layout: CacheLayout, length: int) -> None:
        self.plan = plan
        self.length = length
        self._layout = layout
        self.masks = [plan.inputs[name] for name in layout.signature.masks if name in plan.inputs]
        known = layout.own_names().union(info.name for info in self.masks)
        rest = {name: info for name, info in plan.inputs.items() if name not in known}
        self.tokens = self._named(rest, _TOKENS)
        self.positions = self._named(rest, _POSITIONS) if len(rest) > 1 else None
        unknown = [name for name in rest if rest[name] not in (self.tokens, self.positions)]
        if unknown:
            raise MiloptError(f"function {plan.function!r} has an input {unknown[0]!r} that a session can't provide")
        self.only_last, self.rows, self.vocabulary = False, 0, 0
        self.logits = "" if not plan.outputs else self._read_from(plan, layout)

    def _read_from(self, plan: Plan, layout: CacheLayout) -> str:
        """The output with the logits, whose shape is noted."""
        logits, length = "logits" if "logits" in plan.outputs else self._only_output(plan, layout), self.length
        shape = plan.outputs[logits].shape or ()
        rows = shape[-2] if len(shape) > 1 else None
        open_rows = layout.flexible and not isinstance(rows, int)
        if len(shape) < 2 or not isinstance(shape[-1], int) or (rows not in (length, 1) and not open_rows):
            raise MiloptError(f"output {logits!r} of {plan.function!r} is not (1, {length}, vocabulary)")
        self.only_last = rows == 1 and length > 1
        self.rows = 1 if self.only_last else length
        self.vocabulary = shape[-1]
        return logits

    def _shape(self, info: ValueInfo) -> tuple[int, ...]:
        return self._layout.call_shape(info, self.length)

    def _named(self, inputs: dict[str, ValueInfo], names: Sequence[str]) -> ValueInfo:
        for name in names:
            if name in inputs and self._shape(inputs[name])[-1:] == (self.length,):
                return inputs[name]
        raise MiloptError(
            f"function {self.plan.function!r} has no input {names[0]!r} of {self.length} entries; it takes "
            f"{', '.join(f'{name} {info}' for name, info in inputs.items()) or 'nothing else'}"
        )

    @staticmethod
    def _only_output(plan: Plan, layout: CacheLayout) -> str:
        presents = {outer(slot.present) for slot in layout.signature.slots}
        outputs = [name for name in plan.outputs if name not in presents]
        if len(outputs) != 1:
            raise MiloptError(f"function {plan.function!r} has no output 'logits'; it returns {', '.join(outputs)}")
        return outputs[0]

    def inputs(self, tokens: Sequence[int], position: int, *, turned: bool = False) -> dict[str, npt.NDArray[Any]]:
        """The function's inputs for tokens at ``position`` and following, in the slots of that number, and padding.

        A function of several sequences is given the same one several times. ``turned`` says that the context is a ring
        which the token, one alone, may have gone round: slot ``j`` holds the newest token whose remainder is ``j``.
        """
        padded: Any = np.zeros(self.length, np.int32)
        padded[: len(tokens)] = tokens
        slots: Any = np.arange(position, position + self.length, dtype=np.int32)
        made: dict[str, npt.NDArray[Any]] = {self.tokens.name: np.broadcast_to(padded, self._shape(self.tokens))}
        if self.positions is not None:
            made[self.positions.name] = np.broadcast_to(slots, self._shape(self.positions))
        for info in self.masks:
            shape = self._shape(info)
            columns: Any = ring_tokens(shape[-1], position + 1) if turned else np.arange(shape[-1])
            seen = (columns >= 0) & (columns <= slots[:, None])
            if (window := self._layout.windows.get(info.name)) is not None:
                seen &= columns > slots[:, None] - window
            seen = np.broadcast_to(seen, shape)
            made[info.name] = seen if info.dtype == "bool" else np.where(seen, 0.0, _MASKED).astype(_numpy(info))
        return made


def _numpy(info: ValueInfo) -> Any:
    if not is_float(info.dtype):
        raise MiloptError(f"mask {info.name!r} is {info}: it must be a float that is added, or bool")
    return np.float16 if info.dtype == "fp16" else np.float32
