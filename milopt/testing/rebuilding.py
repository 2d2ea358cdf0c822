"""A program built again op by op, with some of it changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from milopt.mil import Block, Function, Operation, Program, Var, flat, is_state, mb, shape_of
from milopt.testing.naming import rename_all
from milopt.testing.tidying import forget_lost

__all__ = ["Edit", "rebuilt"]


@dataclass(frozen=True)
class Edit:
    """One change. ``inputs``: (op, input name) -> a value, or a function that makes one of the new value there.

    ``op_types``: op -> another type; ``shapes``: input -> another shape; ``outputs``: values to return as well.
    """

    label: str
    inputs: Mapping[tuple[Operation, str], Any] = field(default_factory=dict[tuple[Operation, str], Any])
    op_types: Mapping[Operation, str] = field(default_factory=dict[Operation, str])
    shapes: Mapping[str, tuple[Any, ...]] = field(default_factory=dict[str, tuple[Any, ...]])
    outputs: tuple[Var, ...] = ()


def rebuilt(program: Program, edit: Edit) -> Program:
    """The program with the change. Raises what MIL raises where it does not allow it."""
    made = Program()
    for name, function in program.functions.items():
        specs = {key: _placeholder(var, edit.shapes.get(key)) for key, var in function.inputs.items()}
        with Function(specs, opset_version=function.opset_version) as new:
            known = {var: new.inputs[key] for key, var in function.inputs.items()}
            _replay(function, known, edit)
            kept = [*function.outputs, *(var for var in edit.outputs if var not in function.outputs)]
            forget_lost(new)
            new.set_outputs(list(dict.fromkeys(known[var] for var in kept)))
        rename_all(new)
        made.add_function(name, new)
    made.validate()
    return made


def _placeholder(var: Var, shape: tuple[Any, ...] | None) -> Any:
    if is_state(var):
        return mb.state_tensor_placeholder(shape=shape_of(var), dtype=var.dtype)
    return mb.placeholder(shape=shape_of(var) if shape is None else shape, dtype=var.dtype)


def _replay(block: Block, known: dict[Var, Var], edit: Edit) -> None:
    for op in block.operations:
        if op.op_type == "const":
            known[op.outputs[0]] = mb.const(val=op.outputs[0].val)
            continue
        outputs = flat(getattr(mb, edit.op_types.get(op, op.op_type))(**_inputs(op, known, edit)))
        known.update(zip(op.outputs, outputs, strict=True))


def _inputs(op: Operation, known: dict[Var, Var], edit: Edit) -> dict[str, Any]:
    inputs: dict[str, Any] = {}
    for name, value in op.inputs.items():
        if value is None or name.startswith("_"):
            continue
        inputs[name] = known[value] if isinstance(value, Var) else tuple(known[each] for each in value)
    for (place, name), value in edit.inputs.items():
        if place is op:
            inputs[name] = value(inputs) if callable(value) else value
    if op.op_type == "cond":
        inputs |= {
            name: _function(block, known, edit)
            for name, block in zip(("_true_fn", "_false_fn"), op.blocks, strict=True)
        }
    elif op.op_type == "while_loop":
        inputs |= {
            name: _function(block, known, edit) for name, block in zip(("_cond", "_body"), op.blocks, strict=True)
        }
    return inputs


def _function(block: Block, known: dict[Var, Var], edit: Edit) -> Any:
    def build(*arguments: Var) -> Any:
        inner = {**known, **dict(zip(block.inputs, arguments, strict=True))}
        _replay(block, inner, edit)
        results = tuple(inner[var] for var in block.outputs)
        return results[0] if len(results) == 1 else results

    return build
