"""Kernels that several convolutions hold -> one; and the tables of embeddings that are kernels too."""

from __future__ import annotations

from collections.abc import Mapping

from milopt.building import Builder
from milopt.mil import (
    Block,
    Function,
    Operation,
    Var,
    constant,
    is_compressed,
    is_constant,
    is_output,
    named_blocks,
    remove_if_dead,
    replace_uses,
    shape_of,
    value_names,
)
from milopt.passes.kernels import Reform, bytes_of, form_of, key_of, reformed

__all__ = ["share_kernels", "tie"]


_HOLDERS = {"conv": "weight", "linear": "weight", "gather": "x"}


def share_kernels(functions: Mapping[str, Function]) -> int:
    """Let layers whose weights are the same bytes, in the same form and shape, hold one; returns how many went."""
    removed = 0
    for _, block in named_blocks(functions):
        first: dict[object, Var] = {}
        for op in _holders(block, *_HOLDERS):
            weight: Var = op.inputs[_HOLDERS[op.op_type]]
            held = first.setdefault((form_of(weight), key_of(weight)), weight)
            if held is not weight:
                assert weight.op is not None
                replace_uses(weight, held)
                removed += remove_if_dead([weight.op])
    return removed


def _holders(block: Block, *op_types: str) -> list[Operation]:
    """Ops of the block that hold a weight, which is made there and is no output."""
    found: list[Operation] = []
    for op in block.operations:
        if op.op_type not in op_types or not _is_weight(weight := op.inputs[_HOLDERS[op.op_type]]):
            continue
        assert weight.op is not None
        if weight.op.enclosing_block is block and not is_output(weight):
            found.append(op)
    return found


def _is_weight(var: Var) -> bool:
    return is_constant(var) or is_compressed(var)


def tie(functions: Mapping[str, Function], *, gather: bool) -> list[str]:
    """Find tables (V, C) that rows are looked up in and that are kernels (V, C, 1, 1) too, and tell of their bytes.

    With ``gather`` the rows are taken from the kernel, (..., C, 1, 1), and lose the unit axes.
    """
    shared: dict[object, int] = {}
    for name, block in named_blocks(functions):
        taken = value_names(functions[name]) if gather else set[str]()
        found = [op.inputs["weight"] for op in _holders(block, "conv")]
        kernels = {(key_of(weight), form_of(weight)): weight for weight in found}
        for op in list(block.operations):
            if op.op_type != "gather" or not _looks_up_rows(op):
                continue
            key = (key_of(op.inputs["x"]), form_of(op.inputs["x"], Reform(2, (0, 1), 2)))
            if (kernel := kernels.get(key)) is not None:
                shared[key] = bytes_of(kernel)
                if gather:
                    kernels[key] = _from_kernel(op, kernel, taken)
    if not shared:
        return []
    how = "rows are looked up in the kernel" if gather else "two constants of one place in the package"
    return [f"{sum(shared.values()):,} bytes are an embedding and a kernel: {how}"]


def _looks_up_rows(op: Operation) -> bool:
    table = op.inputs["x"]
    batched = constant(op.inputs.get("batch_dims"))
    return _is_weight(table) and len(shape_of(table)) == 2 and constant(op.inputs["axis"]) == 0 and not batched


def _from_kernel(op: Operation, kernel: Var, taken: set[str]) -> Var:
    """Let ``gather`` read a kernel, made before it, and the convolutions hold that one."""
    build = Builder(op, taken)
    table: Var = op.inputs["x"]
    earlier = reformed(build, table, Reform(2, (0, 1), 2), f"{table.name}_1x1")
    assert kernel.op is not None
    replace_uses(kernel, earlier)
    remove_if_dead([kernel.op])
    rows = build.gather(**{**op.inputs, "x": earlier})
    result, rank = op.outputs[0], len(shape_of(rows))
    found: Var = build.squeeze(x=rows, axes=[rank - 2, rank - 1])
    name = result.name
    replace_uses(result, found)
    remove_if_dead([op])
    found.name = name
    assert found.op is not None
    found.op.name = name
    return earlier
