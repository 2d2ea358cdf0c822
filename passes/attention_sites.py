"""What a match of written-out attention is: queries, keys, values, a scale and a mask."""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

from milopt.axes import axes_of
from milopt.engine.shapes import same_size
from milopt.matching import Match
from milopt.mil import Operation, Var, constant, dtype_name, is_symbolic, shape_of
from milopt.passes.attention_masks import Scores, fits, read_scores
from milopt.passes.attention_products import Axes, operand, read_operand, read_result
from milopt.passes.repeats import known_size
from milopt.reports import require

__all__ = ["Seen", "Site", "read_site"]


class Seen(NamedTuple):
    """A value and the order in which its axes are (batch…, rows, features); axes count from the end."""

    var: Var
    order: tuple[int, ...]

    @property
    def shape(self) -> tuple[Any, ...]:
        """The dimensions in this order, those of the batch as numbers where that can be told."""
        batch = tuple(known_size(self.var, axis) for axis in self.order[:-2])
        return (*batch, *(shape_of(self.var)[axis] for axis in self.order[-2:]))


class Site(NamedTuple):
    """One attention. ``order`` are the axes of masks that are batch…, queries, keys, and ``out`` those of the result.

    ``batch`` are the batch dimensions, ``regrouped`` says that q, k and v have others, of the same number. ``dead`` is
    a condition on rows, and whether their weights are 0 where it holds or where it does not.
    """

    query: Seen
    key: Seen
    value: Seen
    scores: Scores
    scale: float
    batch: tuple[Any, ...]
    order: tuple[int, ...]
    out: tuple[int, ...]
    regrouped: bool
    dead: tuple[Var, bool] | None

    @property
    def size(self) -> int:
        """E, which the op takes the root of."""
        size: int = self.query.shape[-1]
        return size

    @property
    def keys(self) -> Any:
        return self.key.shape[-2]

    @property
    def masks(self) -> tuple[Var, ...]:
        return self.scores.masks

    def columns(self) -> tuple[Any, ...]:
        """The mask's columns, as a shape of one dimension: as many as keys, if any of its parts has so many."""
        axis = self.order[-1]
        found = [shape_of(mask)[axis] for mask in self.masks if mask.rank >= -axis]
        keys = [dim for dim in found if dim != 1]  # a size that is unknown may be theirs
        return (self.keys,) if keys else tuple(found[:1])


def read_site(m: Match) -> Site:
    """The attention that was matched; NoMatch where it is none, or none that can be told in these terms."""
    second = m.root
    first = next(op for op in m.ops if op is not second and op.op_type in ("matmul", "einsum"))
    scores = m.scoring[-1].outputs[0] if m.scoring else first.outputs[0]
    keys = _softmax_axis(m) % scores.rank - scores.rank

    side = "x" if m.order == "weights" else "y"
    weights, values = read_operand(second, side), read_operand(second, _other(side))
    result = read_result(first)
    require(keys in (result.x, result.y), "the softmax runs over axis {}, which has no keys", keys, at=first)
    key_side = "x" if keys == result.x else "y"
    queries = result.y if key_side == "x" else result.x
    require((weights.outer, weights.inner) == (queries, keys), "the weights are not summed over the keys")

    read = read_scores(first.outputs[0], m.scoring, keys)
    regrouped = _regrouped(m, operand(second, side))
    key = Seen(_source(m, key_side), read_operand(first, key_side).order)
    query = Seen(_source(m, _other(key_side)), read_operand(first, _other(key_side)).order)
    value = Seen(operand(second, _other(side)), Axes(values.batch, values.inner, values.outer).order)
    require(not is_symbolic(query.shape[-1]), "the head size is not known", at=query.var)
    kinds = {dtype_name(each.var) for each in (query, key, value)}
    require(len(kinds) == 1, "q, k and v are {}", sorted(kinds))
    for mask in read.masks:
        whole = shape_of(scores if regrouped else first.outputs[0])
        require(fits(mask, whole), "a mask of shape {} may make the scores larger", shape_of(mask), at=mask)
    batch_axes = tuple(range(-scores.rank, -2)) if regrouped else result.batch
    batch = tuple(shape_of(scores)[axis] for axis in batch_axes)
    require(len(batch) > 0, "rank 2 has no batch dimension", at=query.var)
    _check_batches(query, key, value, batch, regrouped)
    made = read_result(second)
    out = (*made.batch, made.x if side == "x" else made.y, made.y if side == "x" else made.x)
    scale = read.scale * _number(m, "scaled_query", "qs") * _number(m, "scaled_key", "ks")
    return Site(
        query, key, value, read, scale, batch, (*batch_axes, queries, keys), out, regrouped, _dead_rows(m, keys)
    )


def _other(side: str) -> str:
    return "y" if side == "x" else "x"


def _softmax_axis(m: Match) -> int:
    for op in m.ops:
        if op.op_type == "softmax":
            return int(constant(op.inputs["axis"]))
    found, *others = {axes_of(op, "axes") for op in m.ops if op.op_type in ("reduce_max", "reduce_sum")}
    require(not others and found is not None and len(found) == 1, "the softmax runs over several axes")
    assert found is not None
    return found[0]


def _source(m: Match, side: str) -> Var:
    """An operand of the first product without the scale that was matched on it."""
    found: Var = m.q if side == "x" else m.k
    return found


def _number(m: Match, tag: str, name: str) -> float:
    chosen = getattr(m, tag)
    if chosen == "none":
        return 1.0
    number = float(getattr(m, name))
    require(chosen == "mul" or number != 0, "a scale divides by zero")
    return number if chosen == "mul" else 1 / number


def _regrouped(m: Match, weights: Var) -> bool:
    """Whether reshapes regroup the batch between the products: their rows and columns stay, and masks come after."""
    require(m.weighting != "slice", "some of the weights are not used", at=weights)
    masked = False
    for op in m.scoring:
        masked |= op.op_type in ("add", "sub", "select")
        require(not masked or op.op_type != "reshape", "a mask comes before its batch is regrouped", at=op)
    reshapes = [op for op in reversed(m.ops) if op.op_type == "reshape"]
    for op in reshapes:
        require(_keeps_rows(op), "a reshape mixes rows and columns of the scores", at=op)
        require(m.scored == "matmul", "the batch of an einsum is regrouped", at=op)
    return bool(reshapes)


def _keeps_rows(op: Operation) -> bool:
    """Whether a reshape of batches of known size leaves rows and columns alone.

    Where one is as long as before, so is the other, which may have another symbol.
    """
    made = op.outputs[0]
    pairs = zip(shape_of(op.x)[-2:], shape_of(made)[-2:], strict=True)
    if not all(same_size(one, other) or (is_symbolic(one) and is_symbolic(other)) for one, other in pairs):
        return False
    return any(same_size(known_size(op.x, axis), known_size(made, axis)) for axis in (-2, -1))


def _check_batches(query: Seen, key: Seen, value: Seen, batch: tuple[Any, ...], regrouped: bool) -> None:
    ours, theirs, last = (each.shape[:-2] for each in (query, key, value))
    if regrouped:
        known = not any(map(is_symbolic, (*batch, *ours, *theirs, *last)))
        require(known, "a batch of unknown size is regrouped")
        require(len({prod(each) for each in (batch, ours, theirs, last)}) == 1, "a batch is broadcast and regrouped")
        return
    require(_broadcast(ours, theirs), "k: *B is {}, but {} before", theirs, ours, at=key.var)
    require(all(map(same_size, last, theirs)), "v: *B is {}, but {} before", last, theirs, at=value.var)


def _broadcast(query: tuple[Any, ...], key: tuple[Any, ...]) -> bool:
    """Whether the batches are the same, but for the last axes of ``key``: those of size 1 serve all of ``query``."""
    at = len(query)
    while at and key[at - 1] == 1:
        at -= 1
    return all(map(same_size, query[:at], key[:at]))


def _dead_rows(m: Match, keys: int) -> tuple[Var, bool] | None:
    """The condition under which a row's weights are all 0 (or are not), where one is written behind the softmax."""
    if m.weighting not in ("zeros_where", "zeros_but"):
        return None
    require(m.s == 0, "weights are replaced by {}, not by 0", m.s)
    cond: Var = m.keep
    rows = cond.rank < -keys or shape_of(cond)[keys] == 1
    require(rows, "some of a row's weights are replaced", at=cond)
    return cond, m.weighting == "zeros_where"
