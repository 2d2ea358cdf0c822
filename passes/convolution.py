"""Linear layers -> 1x1 convolutions in the (B, C, 1, S) layout of the Neural Engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from milopt.building import Builder
from milopt.matching import Match
from milopt.mil import Operation, Var, constant, dtype_name, is_compressed, is_constant, is_output, shape_of
from milopt.package import Model
from milopt.passes.channels import Form, require_form, to_channels, to_form
from milopt.passes.kernels import Reform, reformed
from milopt.passes.moves import MOVE_RULES
from milopt.passes.refining import refined
from milopt.passes.rows import lift_rows
from milopt.passes.sharing import share_moves
from milopt.passes.tying import share_kernels, tie
from milopt.pattern import Const, Ops, Value, Weight
from milopt.pipeline import RulePass
from milopt.reports import Report, require
from milopt.rules import Rule, apply

__all__ = ["EinsumAsConv", "LinearAsConv", "LinearToConv", "MatmulAsConv"]

# constraints L6: Core ML takes no axis longer than this on the Neural Engine up to A15
_LONGEST_AXIS = 16384


@dataclass(frozen=True)
class LinearToConv(RulePass):
    """``linear``, ``matmul`` and ``einsum`` with a constant  ->  ``conv`` with a 1x1 kernel, and the moves around it.

    Each gets the transposes it needs; equal ones of one value are shared, neighbours that undo each other go, and so do
    reshapes of (B, S, C) to rows of channels and back. Weights are not computed anew: compressed ones stay compressed,
    and the bytes of any are only rewritten where a ``matmul`` has its output channels last. A table that is looked up
    in too gets a second constant of the kernel's shape, which a package stores in the same bytes; with
    ``tied="gather"`` the look-up reads the kernel instead, and its rows lose two unit axes.
    """

    name: ClassVar[str] = "linear-to-conv"
    after: ClassVar[tuple[str, ...]] = ("canonicalize", "fuse-sdpa", "kv-to-state")

    tied: Literal["copy", "gather"] = "copy"

    def rules(self) -> tuple[Rule[Any], ...]:
        return (LinearAsConv(), MatmulAsConv(), EinsumAsConv())

    def run(self, model: Model) -> Report:
        full = model.rewrites is not None and model.rewrites.full
        lifted = 0 if full else sum(lift_rows(function) for function in model.functions.values())
        report = super().run(model)
        report.applied += lifted
        if report.applied:
            share_moves(model.program)
            apply(MOVE_RULES, model)
            share_kernels(model.functions)
            report.notes += tie(model.functions, gather=self.tied == "gather")
        return report


class LinearAsConv(Rule[Form]):
    """``linear(x, w, b)``  ->  ``conv`` of x as (B, C, 1, S) with w as (O, I, 1, 1), and back.

    It stays away from

    1. integer linears: ``conv`` is for fp16 and fp32;
    2. weights whose compressed form is not known;
    3. values of rank 5 and more with sizes that are not known.
    """

    def pattern(self, op: Ops, /, x: Value, weight: Weight, bias: Value) -> Any:
        return op.linear(x=x, weight=weight, bias=bias)

    def check(self, m: Match, /) -> Form:
        return _checked(m.x, Form("rows", m.x.rank))

    def rewrite(self, op: Builder, m: Match, facts: Form, /) -> Var:
        kernel = reformed(op, m.weight, Reform(2, (0, 1), 2), f"{m.weight.name}_1x1")
        zero = is_constant(m.bias) and not np.any(constant(m.bias))
        columns = to_channels(op, m.x, facts)
        return to_form(op, _conv(op, columns, kernel, None if zero else m.bias), facts, shape_of(m.root.outputs[0]))


@dataclass(frozen=True)
class _Product:
    """How a product with a constant is one with a kernel: where x and the result have their channels, and the weight.

    ``bias`` is what is added to each output channel. x gets as many unit axes in front as ``added`` says before.
    """

    given: Form
    made: Form
    reform: Reform
    bias: Any = None
    added: int = 0


class MatmulAsConv(Rule[_Product]):
    """``matmul(x, w) + b`` or ``matmul(w, x) + b``  ->  ``conv`` of x as (B, C, 1, S), and back.

    It stays away from integers, from weights that are vectors or have several matrices, from products of two constants,
    and from outer products (one input channel).
    """

    def pattern(self, op: Ops, /, x: Value, weight: Weight, bias: Const | None) -> Any:
        product = op.one_of(
            "side",
            right=op.matmul(x=x, y=weight, transpose_x=..., transpose_y=...),
            left=op.matmul(x=weight, y=x, transpose_x=..., transpose_y=...),
        )
        return op.one_of("sum", biased=op.add(x=product, y=bias), plain=product)

    def check(self, m: Match, /) -> _Product:
        product = m.ops[-1]
        result = product.outputs[0]
        rank = result.rank
        require(not (is_constant(m.x) or is_compressed(m.x)), "both of its operands are weights", at=product)
        leading = shape_of(m.weight)[:-2]
        require(all(size == 1 for size in leading), "its weight has {} matrices", int(np.prod(leading)), at=m.weight)
        require(m.weight.rank >= 2, "its weight is a vector", at=m.weight)
        own, other = ("transpose_y", "transpose_x") if m.side == "right" else ("transpose_x", "transpose_y")
        turned, turned_x = (bool(constant(product.inputs.get(key))) for key in (own, other))
        last = m.weight.rank - 1
        order = (last - 1, last) if turned == (m.side == "right") else (last, last - 1)
        left = m.side == "left"
        # a weight of higher rank puts its unit axes before the batch; below rank 3 the forms have them anyway
        added = rank - m.x.rank if m.x.rank == 3 and m.x.shape[0] != 1 else 0
        given = Form("columns" if turned_x != left else "rows", m.x.rank + added)
        made = Form("columns" if left else "rows", rank)
        inputs, outputs = (int(m.weight.shape[axis]) for axis in reversed(order))
        require(inputs > 1, "an outer product", at=product)
        _checked(m.x, given)
        bias = None
        if m.sum == "biased":
            bias = _bias_of(m.bias, result, m.root.outputs[0], made, outputs)
            require(bias is not None, "what is added to it is no bias", at=m.bias)
        else:
            require(_added(product, made, outputs) is None, "its bias comes behind it", at=product)
        return _Product(given, made, Reform(m.weight.rank, order, 2), bias, added)

    def rewrite(self, op: Builder, m: Match, facts: _Product, /) -> Var:
        return _product(op, m, facts)


class EinsumAsConv(Rule[_Product]):
    """``einsum("chw,wkr->chr")`` of x and a constant, either first  ->  ``conv``, and back.

    MIL has this equation alone (and with a batch axis). It stays away from integers, from weights with a matrix for
    each ``h`` or batch, and from other equations.
    """

    def pattern(self, op: Ops, /, x: Value, weight: Weight, equation: Const) -> Any:
        return op.one_of(
            "side",
            right=op.einsum(values=(x, weight), equation=equation),
            left=op.einsum(values=(weight, x), equation=equation),
        )

    def check(self, m: Match, /) -> _Product:
        rank = m.x.rank
        require(not (is_constant(m.x) or is_compressed(m.x)), "both of its operands are weights", at=m.root)
        shape = shape_of(m.weight)
        shared = shape[rank - 2] if rank == 3 else shape[0] * shape[rank - 2]
        require(shared == 1, "its weight has {} matrices", shared, at=m.weight)
        require(_is_product(str(constant(m.equation))), "its equation is {}", constant(m.equation), at=m.equation)
        first, last = rank - 3, rank - 1
        if m.side == "right":
            form = _checked(m.x, Form("rows", rank))
            return _Product(form, form, Reform(rank, (last, first), 2))
        form = _checked(m.x, Form("channels", rank))
        return _Product(form, form, Reform(rank, (first, last), 2))

    def rewrite(self, op: Builder, m: Match, facts: _Product, /) -> Var:
        return _product(op, m, facts)


def _is_product(equation: str) -> bool:
    """Whether it is ``chw,whr->chr``, or that with a batch axis in front, in any letters."""
    operands, _, result = equation.replace(" ", "").partition("->")
    first, _, second = operands.partition(",")
    *batch, c, h, w = list(first)
    *others, w2, h2, r = list(second)
    return (others, w2, h2) == (batch, w, h) and result == "".join([*batch, c, h, r])


def _product(op: Builder, m: Match, facts: _Product) -> Var:
    kernel = reformed(op, m.weight, facts.reform, f"{m.weight.name}_1x1")
    if facts.reform.moves:
        op.note("weights with their output channels last are transposed: those bytes are written anew")
    x = op.expand_dims(x=m.x, axes=list(range(facts.added))) if facts.added else m.x
    products = _conv(op, to_channels(op, x, facts.given), kernel, facts.bias)
    return to_form(op, products, facts.made, shape_of(m.root.outputs[0]))


def _checked(x: Var, form: Form) -> Form:
    kind = dtype_name(x)
    require(kind in ("fp16", "fp32"), "conv takes no {}", kind, at=x)  # 1
    require_form(x, form)  # 3
    return form


def _conv(op: Builder, columns: Var, kernel: Var, bias: Any) -> Var:
    outputs = int(kernel.shape[0])
    if outputs > _LONGEST_AXIS:
        op.note(f"a conv has {outputs} output channels; some Neural Engines end at {_LONGEST_AXIS}")
    products: Var = op.conv(x=columns, weight=kernel, **({} if bias is None else {"bias": bias}))
    # a 1x1 kernel keeps every position; conv's type inference would invent a new symbol for their number
    return refined(products, (columns.shape[0], outputs, *columns.shape[2:]), columns)


def _added(product: Operation, made: Form, outputs: int) -> Any:
    """The bias that an ``add`` puts on a product, which nothing else uses; ``None`` where there is none."""
    result = product.outputs[0]
    users = result.child_ops
    if len(users) != 1 or users[0].op_type != "add" or is_output(result):
        return None
    if users[0].enclosing_block is not product.enclosing_block:
        return None  # in a nested block it may not run: it stays there
    other = users[0].inputs["y" if users[0].inputs["x"] is result else "x"]
    return _bias_of(other, result, users[0].outputs[0], made, outputs)


def _bias_of(added: Var, product: Var, total: Var, made: Form, outputs: int) -> Any:
    """What is added to each of ``outputs`` channels, ``(outputs,)``; ``None`` where it is another sum."""
    value = constant(added)
    if value is None or shape_of(total) != shape_of(product):
        return None
    array: Any = np.asarray(value)
    if any(size != 1 for axis, size in enumerate(array.shape, -array.ndim) if axis != made.axis):
        return None
    return np.ascontiguousarray(np.broadcast_to(np.ravel(array), (outputs,)))
