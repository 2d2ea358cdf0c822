"""Does a program care in which order its cache columns stand?

``present = concat(past, new)`` puts new columns behind the old ones; a state has them at the slot they were written
to. The two hold the same columns in another order, so they may stand for each other exactly where everything computed
from them is indifferent to that order. Attention is: K's columns become columns of the scores, the softmax runs over
them, and the sum with V's columns contracts them, as long as the mask's columns are in the same order.

:func:`follow` proves that for one program: it carries "this axis of this value holds the slots" forward from the
cached tensors, op by op, until every path ends in a contraction of two such axes, and back from masks to the inputs
they come from. An op it does not know is a reason to stay away.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from milopt.mil import Operation, Var, arguments, constant, is_output, shape_of
from milopt.passes.slots_moves import MOVES, axis_before, kept_by_reshape
from milopt.reports import require

__all__ = ["Slots", "components", "follow"]

# one value in, one value out, element by element
# fmt: off
_UNARY = frozenset(
    {
        "abs", "cast", "ceil", "clip", "cos", "cosh", "erf", "exp", "exp2", "floor", "gelu", "identity",
        "inverse", "leaky_relu", "log", "logical_not", "relu", "relu6", "round", "rsqrt", "scaled_tanh",
        "sigmoid", "sigmoid_hard", "sign", "silu", "sin", "sinh", "softplus", "softsign", "sqrt", "square",
        "tan", "tanh", "threshold",
    }
)
# fmt: on
# fmt: off
_BINARY = frozenset(
    {
        "add", "equal", "floor_div", "greater", "greater_equal", "less", "less_equal", "logical_and",
        "logical_or", "logical_xor", "maximum", "minimum", "mod", "mul", "not_equal", "pow", "real_div",
        "select", "sub",
    }
)
# fmt: on

# how a mask meets scores
_MASKING = frozenset({"add", "select", "sub"})


@dataclass
class Slots:
    """What :func:`follow` found: ``axes`` says which axis of a value holds the slots."""

    size: Any
    axes: dict[Var, int] = field(default_factory=dict[Var, int])
    masks: dict[str, None] = field(default_factory=dict[str, None])
    keys: set[Var] = field(default_factory=set[Var])
    values: set[Var] = field(default_factory=set[Var])
    hidden: bool = True


def follow(
    sources: dict[Var, int], inputs: dict[str, Var], allowed: set[Var], ignored: Collection[Operation] = ()
) -> Slots:
    """Follow cached tensors (value -> slot axis) through their function; raises NoMatch where the order matters.

    ``inputs`` are the function's inputs, among which masks may be found; ``allowed`` the outputs (the cached tensors
    themselves) whose columns the caller answers for, and so it does for ``ignored`` ops. In the result, ``keys`` and
    ``values`` tell K from V among ``sources``, and ``hidden`` is false where some attention has no mask to hide slots
    not written yet.
    """
    first = next(iter(sources))
    slots = Slots(size=shape_of(first)[sources[first]])
    walk = _Walk(slots, {id(var): name for name, var in inputs.items()}, allowed, ignored)
    for var, axis in sources.items():
        walk.mark(var, axis, origin=var)
    walk.run()
    return slots


def components(slots: Slots) -> list[set[Var]]:
    """The values that hold the slots, in sets that must hold them in one order: of attentions that share a mask or K.

    The order of each set may be chosen by itself. They come in the order in which their values were found.
    """
    parent = {var: var for var in slots.axes}

    def root(var: Var) -> Var:
        while parent[var] is not var:
            var = parent[var]
        return var

    for var in slots.axes:
        for user in var.child_ops:
            for other in (*(each for _, each in arguments(user)), *user.outputs):
                if other in parent:
                    parent[root(other)] = root(var)
    found: dict[Var, set[Var]] = {}
    for var in slots.axes:
        found.setdefault(root(var), set()).add(var)
    return list(found.values())


class _Walk:
    def __init__(self, slots: Slots, inputs: dict[int, str], allowed: set[Var], ignored: Collection[Operation]) -> None:
        self.slots = slots
        self.inputs = inputs
        self.allowed = allowed
        self.ignored = ignored
        self.todo: list[Var] = []
        self.partners: list[tuple[Operation, Var, int]] = []
        self.origin: dict[Var, set[Var]] = {}
        self.contractions: dict[Operation, set[str]] = {}
        self.scores: list[Var] = []

    def mark(self, var: Var, axis: int, origin: Var | None = None) -> None:
        """``axis`` of ``var`` holds the slots; its users are to be looked at."""
        axis %= var.rank
        known = self.slots.axes.get(var)
        require(known in (None, axis), "holds the slots in axis {} and in axis {}", known, axis, at=var)
        outside = is_output(var) and var not in self.allowed
        require(not outside, "its columns are in the order of the cache, and it is an output", at=var)
        origins = self.origin.setdefault(var, set())
        if known is None or (origin is not None and origin not in origins):
            self.todo.append(var)
        self.slots.axes[var] = axis
        if origin is not None:
            origins.add(origin)

    def run(self) -> None:
        while self.todo or self.partners:
            if self.todo:
                var = self.todo.pop()
                for user in dict.fromkeys(var.child_ops):
                    if user not in self.ignored:
                        self.step(var, user)
            else:  # only now is it known what else comes from the cache
                self.partner(*self.partners.pop())
        for op, sides in self.contractions.items():
            needed = {"key", "value"} if op.op_type == "scaled_dot_product_attention" else {"x", "y"}
            require(needed <= sides, "only its {} comes from the cache", *sides, at=op)
        if not all(map(self.is_masked, self.scores)):
            self.slots.hidden = False

    def is_masked(self, scores: Var) -> bool:
        """Whether a mask was added to the scores, or chose among them."""
        todo, seen = [scores], set[Var]()
        while todo:
            var = todo.pop()
            if var in seen or var.op is None or var.op.op_type == "matmul":
                continue
            seen.add(var)
            beside = [other for _, other in arguments(var.op) if other in self.slots.axes]
            if var.op.op_type in _MASKING and not all(self.origin[other] for other in beside):
                return True
            todo += beside
        return False

    def pass_on(self, source: Var, op: Operation, axis: int) -> None:
        origins = self.origin[source]
        for out in op.outputs:
            if not origins:
                self.mark(out, axis)
            for origin in list(origins):
                self.mark(out, axis, origin)

    def step(self, var: Var, op: Operation) -> None:
        axis = self.slots.axes[var]
        kind = op.op_type
        if kind == "exp" and self.origin[var]:  # of a softmax written out
            self.scores.append(var)
        if kind in _UNARY:
            self.pass_on(var, op, axis)
        elif kind in _BINARY:
            self.elementwise(var, op, axis)
        elif (move := MOVES.get(kind)) is not None:
            at = move(var, op, axis)
            if at is not None:
                self.pass_on(var, op, at)
        elif (handler := _HANDLERS.get(kind)) is not None:
            handler(self, var, op, axis)
        else:
            require(False, "{} may depend on the order of the cache's columns", kind, at=op)

    def elementwise(self, var: Var, op: Operation, axis: int) -> None:
        """Every operand with more than one element along the slots must hold the same slots."""
        out = op.outputs[0].rank - var.rank + axis
        for _, other in arguments(op):
            at = out - (op.outputs[0].rank - other.rank)
            if at < 0 or shape_of(other)[at] == 1:
                continue
            self.partners.append((op, other, at))
        self.pass_on(var, op, out)

    def partner(self, op: Operation, var: Var, axis: int) -> None:
        """``var`` stands beside cached columns in ``op``: from the cache too, or a mask."""
        known = self.slots.axes.get(var)
        if known is None:
            self.mask(var, axis)
        else:
            require(known == axis, "its operands hold the slots in different axes", at=op)

    def mask(self, var: Var, axis: int) -> None:
        """``var`` meets the cache along the slots: it must come, column by column, from inputs."""
        require(shape_of(var)[axis] == self.slots.size, "has {} columns for the slots", shape_of(var)[axis], at=var)
        if (name := self.inputs.get(id(var))) is not None:
            require(axis == var.rank - 1, "its slots are not in the last axis", at=var)
            self.slots.masks[name] = None
            self.mark(var, axis)
            return
        op = var.op
        require(op is not None and constant(var) is None, "a constant meets the cache column by column", at=var)
        assert op is not None
        if op.op_type in _UNARY:
            self.mask(op.inputs["x"], axis)
        elif op.op_type in ("expand_dims", "squeeze", "transpose"):
            self.mask(op.x, axis_before(op, axis))
        elif op.op_type == "tile" and shape_of(op.x)[axis] == self.slots.size:
            self.mask(op.x, axis)
        elif op.op_type == "concat" and int(constant(op.axis)) % var.rank != axis:
            for _, operand in arguments(op):
                if operand.rank == var.rank:  # the others say how it is done
                    self.mask(operand, axis)
        elif op.op_type == "reshape" and (at := kept_by_reshape(op.outputs[0], op.x, axis)) is not None:
            self.mask(op.x, at)
        elif op.op_type in _BINARY:
            for _, operand in arguments(op):
                at = axis - (var.rank - operand.rank)
                if at >= 0 and shape_of(operand)[at] != 1:
                    self.mask(operand, at)
        else:
            require(False, "the mask is computed by {}: its columns can't be told apart", op.op_type, at=op)

    def softmax(self, var: Var, op: Operation, axis: int) -> None:
        if int(constant(op.axis)) % var.rank == axis:
            self.slots.keys |= self.origin[var]
            self.scores.append(var)
        self.pass_on(var, op, axis)

    def matmul(self, var: Var, op: Operation, axis: int) -> None:
        for side in ("x", "y"):
            if op.inputs[side] is not var:
                continue
            flipped = bool(constant(op.inputs[f"transpose_{side}"]))
            inner = var.rank - 1 if (side == "x") != flipped else var.rank - 2
            if axis == inner:
                self.contractions.setdefault(op, set()).add(side)
                self.slots.values |= self.origin[var] - self.slots.keys
                continue
            rank = op.outputs[0].rank
            if axis >= var.rank - 2:
                self.pass_on(var, op, rank - 2 if side == "x" else rank - 1)
            else:
                require(False, "the slots are a batch dimension of a matmul", at=op)

    def attention(self, var: Var, op: Operation, axis: int) -> None:
        for side in ("key", "value"):
            if op.inputs[side] is var:
                require(axis == var.rank - 2, "the slots are not the rows of its {}", side, at=op)
                self.contractions.setdefault(op, set()).add(side)
                (self.slots.keys if side == "key" else self.slots.values).update(self.origin[var])
        require(op.inputs["query"] is not var, "a query comes from the cache", at=op)
        mask: Var | None = op.inputs.get("attn_mask")
        if mask is None:
            self.slots.hidden = False
        else:
            self.partners.append((op, mask, mask.rank - 1))

    def concat(self, var: Var, op: Operation, axis: int) -> None:
        """Behind one another along another axis; each must hold the same slots."""
        require(int(constant(op.axis)) % var.rank != axis, "concat puts other columns beside the slots", at=op)
        for _, other in arguments(op):
            if other.rank == var.rank:
                self.partners.append((op, other, axis))
        self.pass_on(var, op, axis)

    def metadata(self, var: Var, op: Operation, axis: int) -> None:
        """The shape is the same in every order."""


_HANDLERS: dict[str, Callable[[_Walk, Var, Operation, int], None]] = {
    "softmax": _Walk.softmax,
    "matmul": _Walk.matmul,
    "scaled_dot_product_attention": _Walk.attention,
    "concat": _Walk.concat,
    "shape": _Walk.metadata,
}
