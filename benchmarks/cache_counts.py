"""What is counted in a program: attentions, the copies that keys and values go through, and arithmetic on sizes."""

from __future__ import annotations

from collections.abc import Iterator

from milopt.mil import Operation, Var, arguments, constant, dtype_name, operations
from milopt.package import Model

__all__ = ["copies", "fused", "sizes", "written"]

_PRODUCTS = frozenset({"matmul", "einsum"})
# what scores go through on the way to the softmax, and weights behind it
_ON_SCORES = frozenset(
    {"add", "cast", "concat", "mul", "real_div", "reshape", "select", "slice_by_index", "sub", "tanh", "transpose"}
)
# what keeps keys and values as they are, or repeats them
_MOVES = frozenset(
    {
        "cast", "concat", "expand_dims", "gather", "identity", "reshape", "slice_by_index", "slice_by_size", "split",
        "squeeze", "tile", "transpose",
    }
)  # fmt: skip
_ON_SIZES = frozenset({"equal", "floor_div", "real_div", "select"})


def fused(model: Model) -> int:
    return sum(op.op_type == "scaled_dot_product_attention" for op in _operations(model))


def written(model: Model) -> int:
    """Attentions that are written out: softmaxes between two products of activations, so no router's and no head's."""
    return len(list(_written(model)))


def copies(model: Model) -> int:
    """Ops that repeat the keys or values of some attention: ``tile``, or ``concat`` of one value with itself."""
    found = dict[Operation, None]()
    for op in _operations(model):
        if op.op_type == "scaled_dot_product_attention":
            for side in ("key", "value"):
                found.update(dict.fromkeys(_repeats(op.inputs[side])))
    for first, second in _written(model):
        for _, var in (*arguments(first), *arguments(second)):
            found.update(dict.fromkeys(_repeats(var)))
    return len(found)


def sizes(model: Model) -> int:
    """Ops that choose and divide sizes, as torch's ``expand`` does where shapes are flexible."""
    return sum(
        op.op_type in _ON_SIZES and dtype_name(op.outputs[0]) in ("bool", "int32") and any(map(_is_size, _given(op)))
        for op in _operations(model)
    )


def _operations(model: Model) -> Iterator[Operation]:
    for function in model.functions.values():
        yield from operations(function)


def _given(op: Operation) -> list[Var]:
    return [var for _, var in arguments(op)]


def _written(model: Model) -> Iterator[tuple[Operation, Operation]]:
    """The two products of each attention that is written out."""
    for op in _operations(model):
        if op.op_type == "softmax":
            first, second = _product_before(op.inputs["x"]), _product_after(op.outputs[0])
            if first is not None and second is not None:
                yield first, second


def _is_product(op: Operation) -> bool:
    """Whether it multiplies two values that depend on inputs."""
    return op.op_type in _PRODUCTS and all(_depends(var) for var in _given(op) if constant(var) is None or var.rank > 1)


def _depends(var: Var) -> bool:
    todo, seen = [var], set[Var]()
    while todo:
        if (each := todo.pop()) in seen or constant(each) is not None:
            continue
        seen.add(each)
        if each.op is None:
            return True
        todo += _given(each.op)
    return False


def _product_before(var: Var) -> Operation | None:
    todo, seen = [var], set[Var]()
    while todo:
        if (each := todo.pop()) in seen or each.op is None:
            continue
        seen.add(each)
        if _is_product(each.op):
            return each.op
        if each.op.op_type in _ON_SCORES:
            todo += _given(each.op)
    return None


def _product_after(var: Var) -> Operation | None:
    for user in dict.fromkeys(var.child_ops):
        if _is_product(user):
            return user
        if user.op_type in _ON_SCORES and (found := _product_after(user.outputs[0])) is not None:
            return found
    return None


def _repeats(var: Var) -> Iterator[Operation]:
    """The repetitions that a value comes from, through moves alone."""
    op = var.op
    if op is None or op.op_type not in _MOVES:
        return
    given: list[Var] = list(op.inputs["values"]) if op.op_type == "concat" else [op.inputs["x"]]
    if op.op_type == "tile" or (len(given) > 1 and len(set(given)) == 1):
        yield op
    for each in dict.fromkeys(given):
        yield from _repeats(each)


def _is_size(var: Var) -> bool:
    """Whether it is made of the shape of something."""
    todo, seen = [var], set[Var]()
    while todo:
        each = todo.pop()
        if each in seen or each.op is None or not dtype_name(each).startswith(("bool", "int", "uint")):
            continue
        seen.add(each)
        if each.op.op_type == "shape":
            return True
        todo += _given(each.op)
    return False
