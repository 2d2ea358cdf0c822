"""The second route: a torch module through ``torch.export`` into what coremltools converts.

Importing this module imports torch; milopt does so only while it converts.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from milopt.huggingface.errors import ConversionError
from milopt.huggingface.features import Shape, Signature, Sizes
from milopt.huggingface.locations import node_location, raised_at
from milopt.huggingface.quiet import exporting_quietly
from milopt.huggingface.repairs import coremltools_repaired, kind_of, registry

__all__ = ["export"]

# The sum of two other sizes, which torch finds out by itself; a dimension with a name would have to be free.
_SUMS = frozenset({"columns"})
_END = 3  # in slice(x, axis, start, end, step)
_ASSERTIONS = ("aten._assert_", "aten.sym_constrain_range")
_VIEWS = frozenset(f"aten.{name}.default" for name in ("_unsafe_view", "reshape", "view"))


def export(wrapper: torch.nn.Module, feeds: Sequence[torch.Tensor], signature: Signature | None = None) -> Any:
    """``wrapper`` as a ``torch.export.ExportedProgram`` of aten ops that coremltools has converters for.

    ``feeds`` are the positional inputs to export with, of the shapes that ``signature`` gives its inputs, in their
    order; sizes that it leaves open stay open, and none without one. An op that coremltools does not know is replaced
    by what torch says it consists of. :class:`ConversionError` names the line of the model's source where something
    can't be exported.
    """
    untyped: Any = torch
    with torch.no_grad(), exporting_quietly():
        try:
            program = untyped.export.export(
                wrapper, tuple(feeds), dynamic_shapes=_dynamic_shapes(wrapper, signature), strict=False
            )
            # the form coremltools wants: functional, and no op taken apart that it has a converter for
            program = program.run_decompositions({})
        except Exception as problem:  # torch raises whatever the model's code meets
            reason = next(iter(str(problem).strip().splitlines()), type(problem).__name__)
            place = f" at {where}" if (where := raised_at(problem)) else ""
            raise ConversionError(f"torch can't export the model{place}: {reason}") from problem
        program = _decomposed(program)
    _remove_assertions(program)
    _open_slices(program)
    _keep_sizes(program)
    _name_weights(program)
    if signature is not None:
        _require_shapes(program, signature)
    return program


def _dynamic_shapes(wrapper: torch.nn.Module, signature: Signature | None) -> Any:
    """Which sizes stay open, in the form of ``wrapper.forward``'s parameters; ``None`` for none."""
    if signature is None or not signature.is_flexible:
        return None
    dimensions: dict[str, Any] = {}
    each = [_dimensions(feature.shape, dimensions) for feature in signature.inputs.values()]
    kinds = [parameter.kind for parameter in inspect.signature(wrapper.forward).parameters.values()]
    several = inspect.Parameter.VAR_POSITIONAL
    named = kinds.index(several) if several in kinds else len(each)
    # torch counts no parameter that takes nothing
    return (*each[:named], tuple(each[named:])) if each[named:] else tuple(each)


def _dimensions(shape: Shape, known: dict[str, Any]) -> dict[int, Any]:
    """Axis -> torch's dimension; sizes of one name are one dimension."""
    dim: Any = torch.export.Dim
    for size in shape:
        if isinstance(size, Sizes) and size.name not in known:
            bounds = {"min": size.lower, "max": size.upper}
            known[size.name] = dim.DYNAMIC(**bounds) if size.name in _SUMS else dim(size.name, **bounds)
    return {axis: known[size.name] for axis, size in enumerate(shape) if isinstance(size, Sizes)}


def _decomposed(program: Any) -> Any:
    """``program`` with the ops that coremltools lacks replaced by others; :class:`ConversionError` for what is left."""
    if lacking := list(_unknown(program)):
        table: Any = torch.export.default_decompositions()
        known = {node.target: table[node.target] for node in lacking if node.target in table}
        program = program.run_decompositions(known) if known else program
    if lacking := list(_unknown(program)):
        named = {str(node.target): node_location(node.meta) for node in reversed(lacking)}
        ops = "; ".join(f"{op} at {place}" for op, place in sorted(named.items()))
        raise ConversionError(f"coremltools has no converter for {ops}")
    return program


def _unknown(program: Any) -> Iterator[Any]:
    """Nodes whose op coremltools has no converter for, with milopt's repairs."""
    with coremltools_repaired():
        known = frozenset(registry())
    return (node for node in program.graph.nodes if node.op == "call_function" and kind_of(node.target) not in known)


def _remove_assertions(program: Any) -> None:
    """Take out what raises when the program is fed with other shapes or dtypes: MIL checks those itself."""
    graph = program.graph_module.graph
    for node in reversed(graph.nodes):
        if node.op == "call_function" and not node.users and str(node.target).startswith(_ASSERTIONS):
            graph.erase_node(node)
    program.graph_module.recompile()


def _open_slices(program: Any) -> None:
    """Let a slice to the end have no end, as in a trace, where torch.export writes the largest integer."""
    for node in program.graph.nodes:
        if node.target is torch.ops.aten.slice.Tensor and node.args[_END:][:1] == (sys.maxsize,):
            node.update_arg(_END, None)


def _keep_sizes(program: Any) -> None:
    """Let expansions and views keep the open sizes that they do not change, instead of computing them."""
    for node in program.graph.nodes:
        if node.target is torch.ops.aten.expand.default and len(node.args[1]) == node.args[0].meta["val"].dim():
            old, new = (each.meta["val"].shape for each in (node.args[0], node))
            same = [
                isinstance(size, torch.SymInt) and str(size) == str(other) for size, other in zip(new, old, strict=True)
            ]
            node.update_arg(1, [-1 if keeps else size for keeps, size in zip(same, node.args[1], strict=True)])
        if str(node.target) in _VIEWS:
            node.update_arg(1, _told(node.args[1], node.meta["val"].shape))
    program.graph_module.graph.eliminate_dead_code()


def _told(wanted: Sequence[Any], shape: Sequence[Any]) -> list[Any]:
    """What a view is asked for, in numbers where it has open sizes, and -1 for such a size if it is the only one.

    MIL can't know that the sizes of two inputs are one, and so not what is left for the -1 beside a computed size.
    """
    still_open = [isinstance(size, torch.SymInt) for size in shape]
    if sum(still_open) == 1:
        return [-1 if unknown else int(size) for unknown, size in zip(still_open, shape, strict=True)]
    if any(still_open):
        return [given if unknown else int(size) for unknown, size, given in zip(still_open, shape, wanted, strict=True)]
    return list(wanted)


def _name_weights(program: Any) -> None:
    """Name weights as a trace names them: by their path in the module, and one that is used under two by the first."""
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    first: dict[int, Any] = {}
    for spec in program.graph_signature.input_specs:
        if spec.target is None:  # an input of the wrapper
            continue
        node = placeholders[spec.arg.name]
        value = program.state_dict.get(spec.target, program.constants.get(spec.target))
        if value is not None and (known := first.setdefault(id(value), node)) is not node:
            node.replace_all_uses_with(known)
        node._rename(spec.target.replace(".", "_"))
        spec.arg.name = node.name
    program.graph_module.recompile()


def _require_shapes(program: Any, signature: Signature) -> None:
    """:class:`ConversionError` unless the program's inputs are as ``signature`` says, equal sizes being one symbol."""
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    symbols: dict[str, str] = {}
    for (name, feature), given in zip(signature.inputs.items(), program.graph_signature.user_inputs, strict=True):
        shape = tuple(placeholders[given].meta["val"].shape)
        for size, got in zip(feature.shape, shape, strict=True):
            wanted = symbols.setdefault(size.name, str(got)) if isinstance(size, Sizes) else str(size)
            if str(got) != wanted or (isinstance(size, Sizes) and isinstance(got, int)):
                raise ConversionError(f"torch's export of the model takes {name} of shape {shape}, not {feature.shape}")
    if len(set(symbols.values())) < len(symbols):
        raise ConversionError(f"torch's export of the model takes sizes for equal that are not: {symbols}")
