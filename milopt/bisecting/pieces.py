"""Smaller programs made of a larger one. Each function returns a new model, or ``None`` where the cut is impossible."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY

from milopt.mil import (
    Function,
    Operation,
    Var,
    add_input,
    arguments,
    dtype_name,
    is_constant_like,
    is_state,
    is_symbolic,
    remove_if_dead,
    remove_input,
    remove_ops,
    replace_uses,
    shape_of,
    target,
)
from milopt.nesting import holder, needs, nested
from milopt.package import Model

__all__ = ["bypassed", "cut", "function_alone", "region", "with_outputs", "with_sizes"]

_SIZED = "milopt_sized"


def function_alone(model: Model, name: str) -> Model:
    """The model with one of its functions only."""
    made = model.clone()
    made.program.functions = {name: made.program.functions[name]}
    made.default_function = made.program.default_function_name = name
    return made


def _ops(function: Function) -> list[Operation]:
    """The ops of the function's own block, constants left out."""
    return [op for op in function.operations if not is_constant_like(op)]


def region(function: Function, names: Iterable[str], radius: int) -> set[str]:
    """The names of the ops within ``radius`` steps of the named ones, along values."""
    wanted = set(names)
    frontier = {op for op in _ops(function) if any(wanted & _names(each) for each in nested(op))}
    found = set(frontier)
    for _ in range(radius):
        near = {holder(user, function) for op in frontier for var in op.outputs for user in var.child_ops}
        near |= {holder(var.op, function) for op in frontier for var in needs(op) if var.op is not None}
        frontier = {op for op in near if not is_constant_like(op)} - found
        found |= frontier
    return {op.name for op in found}


def _names(op: Operation) -> set[str]:
    return {op.name, *(var.name for var in op.outputs)}


def cut(model: Model, function: str, names: set[str]) -> Model | None:
    """The program of the named ops alone: what others computed is an input, what others used is an output."""
    made = model.clone()
    graph = made.functions[function]
    kept = [op for op in _ops(graph) if op.name in names]
    inside = set(kept)
    outputs = [var for op in kept for var in op.outputs if _leaves(var, inside, graph)]
    edge = dict.fromkeys(
        var
        for op in kept
        for var in needs(op)
        if var.op is not None
        and var.op.enclosing_block is graph
        and not is_constant_like(var.op)
        and var.op not in inside
    )
    if not outputs or not all(_may_be_outside(var, graph) for var in outputs):
        return None
    if not all(_may_be_input(var, graph) for var in edge):
        return None
    graph.set_outputs(outputs)
    for var in edge:
        replace_uses(var, add_input(graph, var.name, shape_of(var), dtype_name(var)))
    remove_ops([op for op in _ops(graph) if op not in inside])
    return made if _tidied(graph) else None


def _leaves(var: Var, inside: set[Operation], graph: Function) -> bool:
    return var in graph.outputs or any(holder(user, graph) not in inside for user in var.child_ops) or not var.child_ops


def _may_be_outside(var: Var, graph: Function) -> bool:
    """Whether Core ML takes such an input or output."""
    kinds = {"fp32", "int32", *(["fp16"] if graph.opset_version >= target.iOS16 else [])}
    return var in graph.outputs or (not is_state(var) and dtype_name(var) in kinds and 1 <= var.rank <= 5)


def _may_be_input(var: Var, graph: Function) -> bool:
    """An input of unknown size would need a range, which is not known."""
    return _may_be_outside(var, graph) and not any(map(is_symbolic, shape_of(var)))


def with_sizes(model: Model, function: str, size: int) -> Model | None:
    """The function alone, every unknown dimension of its inputs being ``size``. Its description would say otherwise."""
    made = model.clone()
    shapes = {
        name: tuple(size if is_symbolic(dim) else dim for dim in shape_of(var))
        for name, var in made.functions[function].inputs.items()
        if not is_state(var) and any(map(is_symbolic, shape_of(var)))
    }
    if not shapes:
        return None
    step: Any = PASS_REGISTRY["common::materialize_symbolic_shape_program"]
    step.function_name_to_materialization_map = {_SIZED: shapes}
    step.source_function_name = function
    try:
        step(made.program)
    except Exception:  # coremltools infers all types anew, and may refuse this size
        return None
    made.program.functions = {function: made.program.functions[_SIZED]}
    made.default_function = made.program.default_function_name = function
    made.description = None
    return made


def _tidied(graph: Function) -> bool:
    """Remove constants and inputs that nothing uses; whether an input is left."""
    remove_if_dead([op for op in graph.operations if is_constant_like(op)])
    for name, var in list(graph.inputs.items()):
        if not var.child_ops and var not in graph.outputs:
            remove_input(graph, name)
    return bool(graph.inputs)


def with_outputs(model: Model, function: str, names: list[str]) -> Model | None:
    """The program that computes the named values only."""
    made = model.clone()
    graph = made.functions[function]
    values = {var.name: var for op in _ops(graph) for var in op.outputs}
    outputs = [values[name] for name in names if name in values]
    if len(outputs) != len(names) or not all(_may_be_outside(var, graph) for var in outputs):
        return None
    graph.set_outputs(outputs)
    remove_if_dead(_ops(graph))
    return made if _tidied(graph) else None


def bypassed(model: Model, function: str, name: str) -> Iterator[Model]:
    """The program without the named op: whatever used its only output uses an operand of the same type instead."""
    graph = model.functions[function]
    op = next((op for op in _ops(graph) if op.name == name), None)
    if op is None or len(op.outputs) != 1 or op.blocks:
        return
    wanted = dtype_name(op.outputs[0]), shape_of(op.outputs[0])
    for argument, var in arguments(op):
        if (
            is_state(var)
            or (dtype_name(var), shape_of(var)) != wanted
            or (var.op is None and op.outputs[0] in graph.outputs)
        ):
            continue
        if var.op is not None and is_constant_like(var.op):
            continue
        if (made := _without(model.clone(), function, name, argument, var.name)) is not None:
            yield made


def _without(made: Model, function: str, name: str, argument: str, operand: str) -> Model | None:
    graph = made.functions[function]
    op = next(op for op in _ops(graph) if op.name == name)
    var = next(var for key, var in arguments(op) if key == argument and var.name == operand)
    old = op.outputs[0]
    if old in graph.outputs:
        if var in graph.outputs:
            return None
        graph.set_outputs([var if each is old else each for each in graph.outputs])
    replace_uses(old, var)
    remove_if_dead([op])
    return made if _tidied(graph) else None
