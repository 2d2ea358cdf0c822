"""A residual stream that nears the end of fp16 -> the same, times a power of two."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import ceil, log2
from typing import Any, ClassVar, TypeAlias

import numpy as np

from milopt.building import Builder
from milopt.errors import PassError
from milopt.matching import Match, Matcher
from milopt.metrics import Exact, Metric
from milopt.mil import (
    Function,
    Operation,
    Var,
    arguments,
    constant,
    dtype_name,
    is_output,
    operations,
    remove_if_dead,
    value_names,
)
from milopt.package import Model
from milopt.passes.masks import shared_array
from milopt.passes.norms import norm_pattern, safe_norm_pattern
from milopt.pattern import Const, Ops, Value, build
from milopt.pipeline import Pass
from milopt.reports import NoMatch, Report, require

__all__ = ["Plan", "ScaleResidual", "plans"]

Array: TypeAlias = np.ndarray[Any, Any]

# what takes s x to s times what it takes x to
_LINEAR = frozenset(
    {
        "cast", "expand_dims", "gather", "identity", "reduce_mean", "reshape", "slice_by_index", "slice_by_size",
        "split", "squeeze", "transpose",
    }
)  # fmt: skip
_SUMS = frozenset({"add", "sub"})
_LAYERS = frozenset({"linear", "conv"})
# A weight is scaled where what fp16's subnormal numbers lose of it is below this share of its norm: a fifth of what the
# comparison of the pass can see.
_LOST = 2e-6


@dataclass(frozen=True)
class ScaleResidual(Pass):
    """``x + f(norm(x))``  ->  ``s x + s f(norm'(s x))`` with ``s = 2**-k``, so that ``|s x|`` stays below ``limit``.

    Only where a run of the program in float64 shows the need: a fp16 sum beyond ``limit``. It runs on ``trials`` random
    inputs, and on the inputs in the .npz file ``inputs``. s goes into the weights and biases of the layers
    that end in the stream, or into a ``mul`` where fp16 would lose bits of them, and behind anything else, as the
    embedding. A norm of s x is the norm of x where its epsilon becomes ``eps s²`` (constraints L11). The pass stays
    away, and says why, unless

    1. every value of the stream flows into sums, norms (RMSNorm, spelled-out LayerNorm, what ``fp16-safe-norm`` makes
       of them, ``layer_norm``) and changes of shape alone, and is no output;
    2. the epsilons times s² are numbers of their own type: those of plain fp16 norms seldom are, so that
       ``fp16-safe-norm`` comes first.
    """

    limit: float = 32768.0
    trials: int = 1
    seed: int = 0
    inputs: str | None = None

    name: ClassVar[str] = "scale-residual"
    after: ClassVar[tuple[str, ...]] = ("canonicalize", "fp16-safe-norm")
    # Scaled weights lose up to 2e-6 of their norm, each on its own; one fp16 rounding would be 5e-4.
    metric: ClassVar[Metric] = Exact(rtol=1e-5, safe_in=("declared",))

    def __post_init__(self) -> None:
        if not self.limit > 0:
            raise PassError(f"scale-residual: limit is above 0, not {self.limit:g}")

    def run(self, model: Model) -> Report:
        from milopt.numerics.ranges import value_ranges

        report = Report(self.name)
        given = [_read(self.inputs)] if self.inputs else []
        ranges = value_ranges(model, inputs=given, trials=self.trials, seed=self.seed)
        made: dict[object, Array] = {}
        for name, function in model.functions.items():
            largest = {value: each.largest for (owner, value), each in ranges.items() if owner == name}
            self._scale(name, function, largest, made, report)
        if not report.tried:
            sums = [each.largest for each in ranges.values() if each.op_type in _SUMS and each.dtype == "fp16"]
            report.notes.append(
                f"no need: no fp16 sum is beyond {max(sums, default=0.0):.4g}, the limit {self.limit:g}"
            )
        return report

    def _scale(
        self, name: str, function: Function, largest: Mapping[str, float], made: dict[object, Array], report: Report
    ) -> None:
        for each in plans(function, largest, self.limit):
            report.tried += 1
            if each.why is not None:
                report.decline(name, each.why.at or each.var, each.why.text, *each.why.arguments)
                continue
            _Scaling(2.0**-each.power, value_names(function), made).apply(each.stream, each.epsilons)
            report.applied += 1
            report.notes.append(
                f"{name}: the stream of {len(each.stream.values)} values around {each.var.name!r} reaches "
                f"{each.peak:.4g}, scaled by 2**-{each.power}"
            )


def _read(path: str) -> dict[str, Array]:
    try:
        with np.load(path) as held:
            return {name: held[name] for name in held.files}
    except (OSError, ValueError, AttributeError) as error:
        raise PassError(f"scale-residual: can't read {path}: {error}") from error


class _Patterns:
    """Norms with their constants as values of the program, so that they can be replaced."""

    def plain(self, op: Ops, /, x: Value, axes: Const, eps: Const, inside: Const, outside: Const) -> Any:
        return norm_pattern(op, x, axes, eps, inside, outside)

    def safe(self, op: Ops, /, x: Value, axes: Const, peak: Const, clamp: Const, a: Const, g: Const) -> Any:
        return safe_norm_pattern(op, x, axes, peak, clamp, a, g)


@dataclass(frozen=True)
class _Norm:
    """A norm of ``x``; ``powers`` says with which power of the scale of x each constant goes."""

    match: Match
    powers: tuple[tuple[Var | None, int], ...]

    @property
    def root(self) -> Operation:
        return self.match.root

    def changes(self, scale: float) -> Iterator[tuple[Operation, str, Any]]:
        powers = {id(var): power for var, power in self.powers}
        for op in self.match.ops:
            for name, var in arguments(op):
                if id(var) in powers and np.any(constant(var)):
                    yield op, name, _scaled(var, scale ** powers[id(var)])


class _Norms:
    """The norms of a function: ``members`` are the ops that take a normed value, ``ops`` all that norms consist of."""

    def __init__(self, function: Function) -> None:
        self.members: dict[tuple[Operation, Var], _Norm] = {}
        self.ops: set[Operation] = set()
        found = _Patterns()
        plain, safe = Matcher(*build(found.plain)), Matcher(*build(found.safe))
        for op in operations(function):
            if (match := next(plain.matches(op), None)) is not None:
                self._add(_Norm(match, ((match.eps, 2), (match.inside, 2), (match.outside, 1))))
            elif (match := next(safe.matches(op), None)) is not None:
                self._add(_Norm(match, ((match.a, 1),)))

    def _add(self, norm: _Norm) -> None:
        self.ops.update(norm.match.ops)
        for each in norm.match.ops:
            for _, var in arguments(each):
                self.members[each, var] = norm


@dataclass
class _Stream:
    """The values that are scaled together: sums, what only changes their shape, and the norms that take them."""

    norms: _Norms
    values: dict[Var, None] = field(default_factory=dict[Var, None])
    leaves: dict[tuple[Operation, str], Var] = field(default_factory=dict[tuple[Operation, str], Var])
    found: dict[Operation, _Norm] = field(default_factory=dict[Operation, _Norm])
    layer_norms: dict[Operation, None] = field(default_factory=dict[Operation, None])

    def take(self, var: Var) -> None:
        """Add a value, what it is the sum of, and what takes it; NoMatch where something else does."""
        todo = [var]
        while todo:
            each = todo.pop()
            if each in self.values:
                continue
            self.values[each] = None
            require(not is_output(each), "the stream is an output", at=each)
            op = each.op
            assert op is not None
            for name, source in arguments(op):
                if name in ("x", "y"):
                    if self._is_sum(source):
                        todo.append(source)
                    else:
                        self.leaves[op, name] = source
            todo += [out for user in dict.fromkeys(each.child_ops) for out in self._behind(user, each)]

    def _is_sum(self, var: Var) -> bool:
        """Whether it is a sum, or one whose shape has changed since."""
        while var.op is not None and var.op.op_type in _LINEAR:
            var = var.op.inputs["x"]
        return var.op is not None and var.op.op_type in _SUMS

    def _behind(self, user: Operation, var: Var) -> Iterator[Var]:
        norm = self.norms.members.get((user, var))
        if norm is not None:
            self.found[norm.root] = norm
        elif user.op_type == "layer_norm":
            self.layer_norms[user] = None
        elif user.op_type in _SUMS or user.op_type in _LINEAR:
            yield from user.outputs
        else:
            require(False, "the stream flows into {}, which is no norm", user.op_type, at=user)  # 1

    def epsilons(self, scale: float) -> list[tuple[Operation, str, Any]]:
        """The inputs of norms that change with the scale, and what they become; NoMatch where they can't."""
        found = [change for norm in self.found.values() for change in norm.changes(scale)]
        return [*found, *((op, "epsilon", _scaled(op.inputs["epsilon"], scale**2)) for op in self.layer_norms)]


@dataclass
class Plan:
    """How the stream around ``var`` is scaled, by ``2**-power``; or ``why`` not."""

    var: Var
    stream: _Stream
    peak: float = 0.0
    power: int = 0
    epsilons: list[tuple[Operation, str, Any]] = field(default_factory=list[tuple[Operation, str, Any]])
    why: NoMatch | None = None

    def repaired(self) -> Iterator[Var]:
        """The values that are scaled: those of the stream, and what its layers give to it."""
        if self.why is not None:
            return
        yield from self.stream.values
        for var in self.stream.leaves.values():
            while layer_of(var, self.stream) is not None:
                yield var
                assert var.op is not None
                if var.op.op_type in _LAYERS:
                    break
                var = var.op.inputs["x"]


def plans(function: Function, largest: Mapping[str, float], limit: float) -> Iterator[Plan]:
    """One for every stream with a fp16 sum beyond ``limit``; ``largest`` are the magnitudes by name.

    The program may be changed as the plan says before the next one is made.
    """
    norms = _Norms(function)
    done: set[Var] = set()
    for op in list(operations(function)):
        if op.op_type not in _SUMS:
            continue
        var = op.outputs[0]
        if var in done or dtype_name(var) != "fp16":
            continue
        if largest.get(var.name, 0.0) <= limit or op in norms.ops:
            continue
        made = Plan(var, _Stream(norms))
        try:
            made.stream.take(var)
            made.peak = max(largest.get(each.name, 0.0) for each in made.stream.values)
            made.power = ceil(log2(made.peak / limit))
            made.epsilons = made.stream.epsilons(2.0**-made.power)
        except NoMatch as why:
            made.why = why
        done.update(made.stream.values)
        yield made


def layer_of(var: Var, stream: _Stream) -> Operation | None:
    """The linear layer that a leaf of the stream comes from, if nothing but the stream uses what it gives."""
    while var.op is not None and not is_output(var):
        users = set(var.child_ops)
        if len(users) > 1 and any(out not in stream.values for user in users for out in user.outputs):
            return None
        if var.op.op_type in _LAYERS:
            return var.op if constant(var.op.inputs["weight"]) is not None else None
        if var.op.op_type not in _LINEAR:
            return None
        var = var.op.inputs["x"]
    return None


def _scaled(var: Var, factor: float) -> Any:
    array: Array = np.asarray(constant(var))
    new = (array.astype(np.float64) * factor).astype(array.dtype)
    exact = np.array_equal(new.astype(np.float64), array.astype(np.float64) * factor)
    require(
        exact,  # 2
        "its epsilon {:.4g} times {:g} is no {} number: run fp16-safe-norm first",
        float(array.ravel()[0]),
        factor,
        dtype_name(var),
        at=var,
    )
    return new[()]


@dataclass(frozen=True)
class _Scaling:
    """Writes the scaled program; ``made`` are the arrays made so far, which functions share."""

    scale: float
    taken: set[str]
    made: dict[object, Array]

    def apply(self, stream: _Stream, epsilons: list[tuple[Operation, str, Any]]) -> None:
        for op, name, value in epsilons:
            old = op.inputs[name]
            _give(op, name, self._const(op, value, f"{op.name}_{name}_scaled"))
            remove_if_dead([old.op])
        folded: set[Operation] = set()
        for (op, name), var in stream.leaves.items():
            origin = layer_of(var, stream)
            if origin is None:
                _give(op, name, self._times_scale(op, var))
                if var.op is not None:  # a constant that has become another
                    remove_if_dead([var.op])
            elif origin not in folded:
                folded.add(origin)
                self._fold(origin)

    def _times_scale(self, anchor: Operation, var: Var) -> Var:
        array = constant(var)
        if array is not None:
            return self._const(anchor, self._times(np.asarray(array)), f"{var.name}_scaled")
        made: Var = Builder(anchor, self.taken).mul(x=var, y=_number(self.scale, var), name=f"{var.name}_scaled")
        return made

    def _fold(self, op: Operation) -> None:
        weight: Var = op.inputs["weight"]
        array: Array = constant(weight)
        new = self._times(array)
        exact = array.astype(np.float64) * self.scale
        lost = np.linalg.norm(new.astype(np.float64) - exact)
        if len(set(weight.child_ops)) == 1 and lost <= _LOST * np.linalg.norm(exact):
            op.set_inputs(weight=self._const(op, new, f"{weight.name}_scaled"))
            assert weight.op is not None
            remove_if_dead([weight.op])
        else:  # a tied weight, or one that would lose bits
            op.set_inputs(x=self._times_scale(op, op.inputs["x"]))
        bias: Var | None = op.inputs.get("bias")
        if bias is not None and np.any(constant(bias)):
            op.set_inputs(bias=self._const(op, self._times(constant(bias)), f"{bias.name}_scaled"))
            assert bias.op is not None
            remove_if_dead([bias.op])

    def _times(self, array: Array) -> Array:
        new = (array.astype(np.float32) * np.float32(self.scale)).astype(array.dtype)
        return shared_array(self.made, new)

    def _const(self, anchor: Operation, value: Any, name: str) -> Var:
        made: Var = Builder(anchor, self.taken).const(val=value, name=name)
        return made


def _give(op: Operation, name: str, value: Var) -> None:
    inputs: Any = {name: value}
    op.set_inputs(**inputs)


def _number(value: float, like: Var) -> Any:
    return np.float16(value) if dtype_name(like) == "fp16" else np.float32(value)
