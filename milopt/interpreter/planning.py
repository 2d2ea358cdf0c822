"""One function of a program becomes a plan: steps with numbered slots, and constants to be prepared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from operator import itemgetter
from typing import Any

from milopt import mil
from milopt.errors import EvaluationError
from milopt.interpreter.delivery import PYTHON, as_callables, as_dtype, as_ints, as_number, as_tuple, python_value
from milopt.interpreter.grouping import with_sources
from milopt.interpreter.impls import Impl, Impls, Kind, Parameter
from milopt.interpreter.instructions import lowered
from milopt.interpreter.ops import core
from milopt.interpreter.plan import Plan
from milopt.interpreter.result import Result
from milopt.interpreter.rounding import Rounding
from milopt.interpreter.sharing import Sharing
from milopt.interpreter.steps import BORROWED, Body, Fetch, Step
from milopt.interpreter.strict import strict
from milopt.interpreter.values import ValueInfo, held_dtype, info_of, is_float
from milopt.interpreter.weights import Constant, Decoded, Weight, Weights
from milopt.package.weights import packed_of

__all__ = ["Planner"]

# From iOS17 on their constants may be integers where the rest are floats, or the other way round.
_MIXED = frozenset({"linear", "matmul"})


class Planner:
    """Makes the plan of one function."""

    def __init__(self, impls: Impls, weights: Weights) -> None:
        self.impls = impls
        self.weights = weights
        self.slots: dict[mil.Var, int] = {}
        self.constants: dict[mil.Var, Constant] = {}

    def plan(self, name: str, function: mil.Function) -> Plan:
        states = {key: var for key, var in function.inputs.items() if mil.is_state(var)}
        inputs = {key: var for key, var in function.inputs.items() if not mil.is_state(var)}
        body, sharing = self._body(function, tuple(function.inputs.values()))
        outputs = {var.name: var for var in function.outputs}
        if len(outputs) != len(function.outputs):
            raise EvaluationError(f"function {name!r} returns two values of one name")
        return Plan(
            function=name,
            precision=self.weights.precision,
            inputs={key: info_of(var) for key, var in inputs.items()},
            outputs={key: info_of(var) for key, var in outputs.items()},
            states={key: info_of(var) for key, var in states.items()},
            device=self.weights.device,
            body=replace(body, inputs=()),
            slots=len(self.slots),
            input_slots={key: self.slots[var] for key, var in inputs.items()},
            state_slots={key: self.slots[var] for key, var in states.items()},
            copied_outputs=frozenset(
                key for key, var in outputs.items() if var not in self.slots or sharing.is_borrowed(self.slots[var])
            ),
        )

    def _impl(self, op: mil.Operation) -> Impl | None:
        impl = self.impls.get(op.op_type)
        if self.weights.precision != "declared-strict" or impl is not core.get(op.op_type):
            return impl
        refined = strict.get(op.op_type)
        return refined if refined is not None and is_float(mil.dtype_name(op.outputs[0])) else impl

    def _slot(self, var: mil.Var) -> int:
        return self.slots.setdefault(var, len(self.slots))

    def _body(self, block: mil.Block, inputs: tuple[mil.Var, ...]) -> tuple[Body, Sharing]:
        """The block's steps; values of outer blocks are read where they are and freed there."""
        own = [self._slot(var) for var in inputs]
        steps: list[Step] = []
        for op in block.operations:
            impl = self._impl(op)
            if impl is None:
                self.constants[op.outputs[0]] = _constant(op.outputs[0])
            elif impl.decodes:
                self._decode(op, impl)
            else:
                steps.append(self._step(op, impl))
        outputs = tuple(self._value(var) for var in block.outputs)
        kept = [self.slots[var] for var in block.outputs if var in self.slots]
        states = [self.slots[var] for var in inputs if mil.is_state(var)]
        steps = with_sources(steps)
        sharing = Sharing(steps, [slot for slot in own if slot not in states], states, kept)
        if isinstance(block, mil.Function):
            steps = sharing.improved()
        mine = set(own).union(result.slot for step in steps for result in step.results)
        read = frozenset(kept).union(*(step.reads for step in steps))
        steps = _freeing(steps, mine, kept)
        instructions = lowered(steps, mine, kept, numbers=self.weights.device.type == "cpu")
        return Body(tuple(own), tuple(steps), instructions, outputs, read - mine), sharing

    def _decode(self, op: mil.Operation, impl: Impl) -> None:
        known = {parameter.name: parameter for parameter in impl.parameters}
        arguments: dict[str, Any] = {}
        for name, var in _inputs(op, known).items():
            constant = self.constants.get(var)
            if constant is None:
                raise EvaluationError(
                    f"{op.op_type} {op.name!r}: {name} is computed by the program, it must be constant"
                )
            arguments[name] = (
                constant if known[name].kind is Kind.ARRAY else python_value(constant.value, known[name].kind)
            )
        for index, var in enumerate(op.outputs):
            info = info_of(var)
            shape = tuple(dim for dim in info.shape or () if isinstance(dim, int))
            self.constants[var] = Decoded(op.op_type, impl.function, arguments, index, info.dtype, shape)

    def _step(self, op: mil.Operation, impl: Impl) -> Step:
        fixed: dict[str, Any] = {}
        fetched: list[tuple[str, Fetch]] = []
        known = {parameter.name: parameter for parameter in impl.parameters}
        slots: list[tuple[str, int]] = []
        for name, var in _inputs(op, known).items():
            vars_of = mil.flat(var)
            slots += [(name, self.slots[each]) for each in vars_of if each in self.slots]
            kind = known[name].kind
            if kind in PYTHON and all(each in self.constants for each in vars_of):
                values = [self.constants[each].value for each in vars_of]
                fixed[name] = python_value(values if isinstance(var, (list, tuple)) else values[0], kind)
            else:
                fetch = self._fetch(var, kind)
                if op.op_type in _MIXED and var in self.constants:
                    fetch = self._as_result(fetch, var, op)
                fetched.append((name, fetch))
        bodies = tuple(self._body(block, tuple(block.inputs))[0] for block in op.blocks)
        fetched += [
            (parameter.name, partial(as_callables, bodies))
            for parameter in impl.parameters
            if parameter.kind is Kind.BLOCKS
        ]
        fixed |= {
            parameter.name: Rounding(mil.dtype_name(op.outputs[0]), self.weights.precision)
            for parameter in impl.parameters
            if parameter.kind is Kind.ROUNDING
        }
        return Step(
            op_type=op.op_type,
            name=op.name,
            call=partial(impl.function, **fixed),
            arguments=tuple(fetched),
            results=tuple(
                Result(
                    self._slot(var),
                    _declared(op, var),
                    self.weights.precision,
                    rounds=not impl.moves and not impl.exact,
                    fresh=not impl.shares and not bodies,
                )
                for var in op.outputs
            ),
            many=len(op.outputs) > 1 or bool(bodies),
            slots=tuple(slots),
            reads=frozenset(slot for _, slot in slots).union(*(body.reads for body in bodies)),
            shared=self._shared(op, impl, bodies),
            moves=impl.moves,
            bodies=bodies,
        )

    def _shared(self, op: mil.Operation, impl: Impl, bodies: tuple[Body, ...]) -> frozenset[int]:
        if bodies:  # what a nested block returns may be anything it can see
            return frozenset({BORROWED}).union(*(body.reads for body in bodies), self._slots_of(mil.arguments(op)))
        return self._slots_of((name, var) for name, var in mil.arguments(op) if name in impl.shares)

    def _slots_of(self, arguments: Iterable[tuple[str, mil.Var]]) -> frozenset[int]:
        return frozenset(self.slots.get(var, BORROWED) for _, var in arguments)

    def _as_result(self, fetch: Fetch, var: mil.Var, op: mil.Operation) -> Fetch:
        """A constant in the type of the op's result, if it isn't of that type."""
        wanted = mil.dtype_name(op.outputs[0])
        held = held_dtype(wanted, self.weights.precision)
        return fetch if mil.dtype_name(var) == wanted or held is None else partial(as_dtype, fetch, held)

    def _value(self, var: mil.Var) -> Fetch:
        if var in self.constants:
            return Weight(self.constants[var], self.weights)
        if var not in self.slots:
            raise EvaluationError(f"{var.name!r} is used before it is computed")
        return itemgetter(self.slots[var])

    def _fetch(self, var: Any, kind: Kind) -> Fetch:
        if isinstance(var, (list, tuple)):
            return partial(as_tuple, tuple(self._value(each) for each in mil.flat(var)))
        fetch = self._value(var)
        if kind is Kind.TENSORS:
            return partial(as_tuple, (fetch,))
        if kind is Kind.INTS:
            return partial(as_ints, fetch)
        if kind is Kind.NUMBER:
            return partial(as_number, fetch)
        return fetch


def _declared(op: mil.Operation, var: mil.Var) -> ValueInfo:
    """The type of an op's result, without its shape where coremltools is known to infer a wrong one."""
    info = info_of(var)
    return replace(info, shape=None) if _is_misdeclared(op, info) else info


def _is_misdeclared(op: mil.Operation, info: ValueInfo) -> bool:
    if op.op_type == "matmul":  # a vector and a batch of matrices
        x, y = (info_of(op.inputs[name]).shape or () for name in ("x", "y"))
        return len(x) == 1 and len(y) > 2
    if op.op_type != "select":
        return False
    # its shape is taken from a and b alone: two scalars chosen by a mask are declared a scalar
    mask, shape = info_of(op.inputs["cond"]).shape or (), info.shape or ()
    return len(mask) > len(shape) or not all(
        have in (1, want) for have, want in zip(reversed(mask), reversed(shape), strict=False)
    )


def _inputs(op: mil.Operation, known: Mapping[str, Parameter]) -> dict[str, Any]:
    """The op's inputs that are given; EvaluationError for one the implementation does not know, or misses."""
    given = {name: var for name, var in op.inputs.items() if var is not None and not name.startswith("_")}
    for name in given:
        if name not in known:
            raise EvaluationError(f"{op.op_type} {op.name!r}: the interpreter does not know its input {name!r}")
    for name, parameter in known.items():
        if name not in given and not parameter.optional and parameter.kind.is_input:
            raise EvaluationError(f"{op.op_type} {op.name!r} lacks its input {name!r}")
    return given


def _constant(var: mil.Var) -> Constant:
    shape = () if mil.types.is_list(var.sym_type) else tuple(int(dim) for dim in var.shape)
    return Constant(packed_of(var) or var.val, info_of(var).dtype, shape)


def _freeing(steps: list[Step], mine: set[int], kept: list[int]) -> list[Step]:
    """The steps told which slots nobody reads after them, of those that belong to this block."""
    live = set(kept)
    freeing: list[Step] = []
    for step in reversed(steps):
        touched = step.reads.union(result.slot for result in step.results) & mine
        freeing.append(replace(step, frees=tuple(sorted(touched - live))))
        live |= step.reads
    return freeing[::-1]
