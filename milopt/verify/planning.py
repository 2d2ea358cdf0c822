"""Makes trials: which functions are called, in which order, with what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from milopt.cachedrive import CacheLayout
from milopt.errors import MiloptError
from milopt.interpreter import Plan
from milopt.verify.drawing import MASKED, Style, causal, draw, numpy_dtype
from milopt.verify.freezing import Flexible
from milopt.verify.roles import Role
from milopt.verify.sizes import ATTEMPTS, choose, is_flexible
from milopt.verify.trials import Array, Arrays, Call, Trial

__all__ = ["Planner"]

# How often a function with states is called on the same states in one trial.
_STEPS = 3


@dataclass(frozen=True)
class Planner:
    """Draws the trials of one comparison, for the program before. The same seed gives the same trials.

    ``anything`` says that every second trial may pass anything the types allow, not only what a caller would.
    ``layout`` is the program's cache, if it has one; ``others`` are the roles that inputs have in the program after.
    With ``counted``, positions are counted from a sequence's first token and not from slot 0.
    """

    plans: Mapping[str, Plan]
    roles: Mapping[str, Mapping[str, Role]]
    others: Mapping[str, Mapping[str, Role]]
    flexible: Mapping[str, Mapping[str, Flexible]]
    layout: CacheLayout | None
    anything: bool
    seed: int
    counted: bool = False

    def attempts(self, function: str | None) -> int:
        """How many different draws of one trial are worth trying, where the program refuses the first."""
        several = self.layout is None and function is not None and is_flexible(self.plans[function])
        return ATTEMPTS if several else 1

    def functions(self) -> list[str | None]:
        """What is tried one by one: each function, or all of them together on one cache (``None``)."""
        return [*self.plans] if self.layout is None else [None]

    def random(
        self, index: int, function: str | None, attempt: int = 0, *, positive: bool = False, large: bool = False
    ) -> Trial:
        """Trial number ``index``; other attempts at it draw other sizes, ``positive`` ones numbers above zero."""
        rng = np.random.default_rng([self.seed, index, attempt])
        ordinary = not self.anything or index % 2 == 0
        style = Style(ordinary, positive, large)
        if function is None:
            assert self.layout is not None
            return self._sequence(self.layout, index, rng, style)
        plan = self.plans[function]
        last = attempt == ATTEMPTS - 1 or (index == 0 and attempt == 0)
        shapes = choose(plan, self.flexible[function], rng, ATTEMPTS - 1 if last else attempt)
        calls = [Call(function, self._inputs(plan, shapes, rng, style)) for _ in range(_STEPS if plan.states else 1)]
        contents = (
            {} if ordinary else {name: _normal(info.shape, info.dtype, rng) for name, info in plan.states.items()}
        )
        kind = "large" if large else "ordinary" if ordinary else "arbitrary"
        sizes = f" of {', '.join(map(_times, shapes.values()))}" if is_flexible(plan) else ""
        return Trial(f"{kind} random inputs{sizes} for {function}", tuple(calls), contents)

    def has_numbers(self, function: str | None) -> bool:
        """Whether an input of the function, or of any, can be large."""
        roles = self.roles.values() if function is None else [self.roles[function]]
        return any(role.kind == "number" for each in roles for role in each.values())

    def given(self, inputs: Mapping[str, Any] | Sequence[int], function: str) -> Trial:
        """A trial on what the caller passed: one call's inputs by name, or a prompt's token ids."""
        if not isinstance(inputs, Mapping):
            return self._prompt(inputs)
        arrays = {name: np.asarray(value) for name, value in inputs.items()}
        if self.layout is not None and (own := [name for name in arrays if name in self.layout.own_names()]):
            raise MiloptError(
                f"input {own[0]!r} follows from the cache: leave it out, and give masks over the cache's "
                f"{self.layout.context} slots"
            )
        return Trial("the inputs given", (Call(function, arrays),))

    def _inputs(
        self, plan: Plan, shapes: Mapping[str, tuple[int, ...]], rng: np.random.Generator, style: Style
    ) -> Arrays:
        roles = self.roles[plan.function]
        return {
            name: draw(info, shapes[name], roles[name], rng, style, self._positions(plan, name))
            for name, info in plan.inputs.items()
        }

    def _positions(self, plan: Plan, name: str) -> int | None:
        """How many positions there are: as many as a mask has columns. Where no mask tells, a rewrite may set a limit
        by looking angles up in a table.
        """
        masks = [plan.inputs[each].shape for each, role in self.roles[plan.function].items() if role.kind == "mask"]
        columns = [shape[-1] for shape in masks if shape and isinstance(shape[-1], int)]
        other = self.others[plan.function].get(name)
        return max(columns, default=other.high if other is not None else None)

    def _lengths(self, layout: CacheLayout) -> dict[int, Plan]:
        """Query length -> function, longest first."""
        found = {length: plan for plan in self.plans.values() for length in layout.query_lengths(plan)}
        return dict(sorted(found.items(), reverse=True))

    def _sequence(self, layout: CacheLayout, index: int, rng: np.random.Generator, style: Style) -> Trial:
        """A run of tokens through all functions: from the first slot, to the last one, or between."""
        lengths = self._lengths(layout)
        queries = [*lengths, min(lengths)] if index % 2 == 0 else [*reversed(lengths)]
        if layout.flexible:  # any length will do: three portions show as much as all of them
            queries = [int(each) for each in rng.choice(list(lengths), 3)]
        while sum(queries) > layout.context:
            queries.pop()
        room = layout.context - sum(queries)
        start = [0, int(rng.integers(0, room + 1)), room][index % 3]
        calls: list[Call] = []
        position = start
        for query in queries:
            calls.append(self._step(layout, lengths[query], query, position, start, rng, style))
            position += query
        contents: Arrays = {}
        if not style.ordinary:
            plan = next(iter(self.plans.values()))
            for slot in layout.signature.slots:
                # numbers that states, which are fp16, hold as well as a past of fp32 that is cast to it
                held = _normal(layout.shape(slot, plan), "fp16", rng)
                contents[slot.present] = held.astype(numpy_dtype(layout.dtype(slot, plan)))
        steps = " + ".join(map(str, queries))
        what = "random tokens" if style.ordinary else "arbitrary inputs, masks and cache"
        what = f"{what}, large numbers" if style.large else what
        return Trial(f"{what}, {steps} at slot {start} of {layout.context}", tuple(calls), contents)

    def _step(
        self,
        layout: CacheLayout,
        plan: Plan,
        query: int,
        position: int,
        start: int,
        rng: np.random.Generator,
        style: Style,
    ) -> Call:
        inputs: Arrays = {}
        roles = self.roles[plan.function]
        for name, info in plan.inputs.items():
            if name in layout.own_names():
                continue
            shape = layout.call_shape(info, query)
            ring = name in dict(layout.signature.rings)  # has lost what a mask can't show any more
            if (style.ordinary or ring) and name in layout.signature.masks:
                inputs[name] = _slot_mask(shape, info.dtype, position, start, layout.windows.get(name))
            elif name == layout.signature.counts or (style.ordinary and roles[name].kind == "position"):
                first = position - start if self.counted else position
                count = np.arange(first, first + shape[-1])
                inputs[name] = np.broadcast_to(count, shape).astype(numpy_dtype(info.dtype))
            else:
                inputs[name] = draw(info, shape, roles[name], rng, style, layout.context)
        return Call(plan.function, inputs, position)

    def _prompt(self, tokens: Sequence[int]) -> Trial:
        """A prompt as a caller feeds it: in the longest blocks, the last one filled up where the context allows."""
        if self.layout is None:
            raise MiloptError("token lists can only be tried on a model with a key/value cache; give inputs by name")
        layout, lengths = self.layout, self._lengths(self.layout)
        rng = np.random.default_rng(self.seed)
        calls: list[Call] = []
        position = 0
        while position < len(tokens):
            fitting = [query for query in lengths if position + query <= layout.context]
            if not fitting:
                raise MiloptError(f"a prompt of {len(tokens)} tokens does not fit a context of {layout.context}")
            query = min((q for q in fitting if q >= len(tokens) - position), default=fitting[0])
            call = self._step(layout, lengths[query], query, position, 0, rng, Style(ordinary=True))
            ids = [name for name, role in self.roles[call.function].items() if role.kind == "index"]
            if len(ids) != 1 or call.inputs[ids[0]].shape[-1] != query:
                raise MiloptError(f"function {call.function!r} has no single input of {query} token ids")
            block = list(tokens[position : position + query])
            padded: Any = np.array(block + [0] * (query - len(block)), np.int32)
            call.inputs[ids[0]] = np.array(np.broadcast_to(padded, call.inputs[ids[0]].shape))
            calls.append(call)
            position += len(block)
        return Trial(f"a prompt of {len(tokens)} tokens", tuple(calls))


def _slot_mask(shape: tuple[int, ...], dtype: str, position: int, start: int, window: int | None) -> Array:
    """A causal mask in slot order, for a sequence whose first token is in slot ``start``; perhaps a sliding one."""
    seen = np.array(causal(shape, position, window))
    seen[..., :start] = False
    return seen if dtype == "bool" else np.where(seen, 0.0, MASKED).astype(numpy_dtype(dtype))


def _normal(shape: Sequence[int | str] | None, dtype: str, rng: np.random.Generator) -> Array:
    sizes = tuple(dim for dim in shape or () if isinstance(dim, int))
    return rng.standard_normal(sizes).astype(numpy_dtype(dtype))


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
