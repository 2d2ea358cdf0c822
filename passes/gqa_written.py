"""Written-out attention of any number of queries on any number of repeated keys -> the same with an axis for groups."""

from __future__ import annotations

from typing import NamedTuple

from milopt.building import Builder
from milopt.matching import Match
from milopt.mil import Operation, Var, arguments, constant, is_symbolic, shape_of
from milopt.passes.attention import WrittenOut
from milopt.passes.attention_masks import once
from milopt.passes.attention_products import reshaped
from milopt.passes.gqa_shared import Shared, shared_heads
from milopt.reports import require

__all__ = ["NOTHING", "PackAttention"]

NOTHING = "its keys and values are not repeated"

# Ops on scores that do the same with one more axis in front; what else they take broadcasts to it
_STEPS = frozenset({"add", "cast", "mul", "real_div", "sub", "tanh"})


class Grouped(NamedTuple):
    """The first product, its repeated operand before it is, and so for the second; ops on scores between them."""

    first: Operation
    key: Shared
    value: Shared
    steps: tuple[Operation, ...]


class PackAttention(WrittenOut[Grouped]):
    """``softmax(f(q @ repeat(k)ᵀ)) @ repeat(v)``  ->  the same with q as (B, Hkv, G, L, E) and k as (B, Hkv, 1, S, E).

    The products repeat keys and values by broadcasting, nothing else does. It is for scores of which neither L nor S is
    known: no shape of constants says both, so the two products can't be packed one by one, but no reshape of scores is
    needed here. It stays away where k and v are not both repeated, equally often; where the scores are reshaped or
    chosen; where masks differ from head to head, or in a batch.
    """

    def check(self, m: Match, /) -> Grouped:
        second = m.root
        first = next(op for op in m.ops if op is not second and op.op_type in ("matmul", "einsum"))
        softmax = next((op for op in m.ops if op.op_type == "softmax"), None)
        plain = first.op_type == second.op_type == "matmul" and m.order == "weights" and softmax is not None
        require(plain and m.weighting in ("plain", "cast"), "its products are in another layout")
        assert softmax is not None
        key, value = shared_heads(first.y), shared_heads(second.y)
        require(key is not None and value is not None, NOTHING)
        assert key is not None
        assert value is not None
        require(key.groups == value.groups, "keys are repeated {} times, values {}", key.groups, value.groups)
        rows, keys = shape_of(first.outputs[0])[2:]
        require(is_symbolic(rows) and is_symbolic(keys), "its products can be packed one by one", at=first)
        turned = constant(first.transpose_x) or constant(second.transpose_x) or constant(softmax.axis) not in (-1, 3)
        require(not turned, "its keys come first", at=first)
        query, heads = shape_of(first.x), shape_of(first.y)[1]
        require(query[1] == heads and not is_symbolic(query[3]), "its queries are of shape {}", query, at=first.x)
        for step in m.scoring:
            require(step.op_type in _STEPS, "{} may need the scores as they are", step.op_type, at=step)
            for _, other in arguments(step):
                ours = other.op in (first, *m.scoring)
                require(ours or all(dim == 1 for dim in shape_of(other)[:-2]), "a mask has heads or a batch", at=other)
        return Grouped(first, key, value, m.scoring)

    def rewrite(self, op: Builder, m: Match, facts: Grouped, /) -> Var:
        first, second = facts.first, m.root
        batch, heads, rows, size = shape_of(first.x)
        groups = facts.key.groups
        query = reshaped(op, first.x, (batch, heads // groups, groups, rows, size))
        made = _product(op, first, query, facts.key)
        before = first.outputs[0]
        for step in facts.steps:
            inputs = {name: made if each is before else each for name, each in step.inputs.items()}
            made, before = getattr(op, step.op_type)(**inputs), step.outputs[0]
        made = op.softmax(x=made, axis=-1)
        if m.weighting == "cast":
            made = op.cast(x=made, dtype=constant(second.x.op.dtype))
        made = _product(op, second, made, facts.value)
        return reshaped(op, made, shape_of(second.outputs[0]))


def _product(op: Builder, matmul: Operation, x: Var, shared: Shared) -> Var:
    source = shared.source
    y = source if source.rank == 5 else once(op, "expand_dims", x=source, axes=[2])
    made: Var = op.matmul(x=x, y=y, transpose_y=bool(constant(matmul.transpose_y)))
    return made
