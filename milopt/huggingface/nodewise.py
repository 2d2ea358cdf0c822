"""An exported program run node by node, beside the MIL program that was made of it.

Importing this module imports torch; milopt does so only while it converts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from milopt.huggingface.locations import node_location
from milopt.huggingface.selfcheck import parts
from milopt.interpreter import Step, compile
from milopt.mil import Program, operations

__all__ = ["first_parting_node"]


def first_parting_node(exported: Any, feeds: Mapping[str, torch.Tensor], program: Program) -> str | None:
    """Where in the model's source the two programs part on ``feeds``; ``None`` if no value tells.

    ``program`` is fresh from its conversion: its ops know their nodes. It is the first node, in the order in which they
    run, whose value is that of none of the ops which coremltools made of it.
    """
    nodes = _Nodes(exported)
    with torch.no_grad():
        nodes.run(*feeds.values())
    watch = _Watch(program, nodes.values)
    plan = compile(program, precision="float64", keep_weights=False)
    plan.run({name: feeds[name].numpy() for name in plan.inputs}, listeners=[watch])
    found = next((name for name in nodes.values if watch.same.get(name) is False), None)
    return None if found is None else f"{nodes.places[found] or 'the model'}, torch's {nodes.kinds[found]}"


class _Nodes(torch.fx.Interpreter):
    """Keeps the float tensors that nodes give, in the order in which they run."""

    def __init__(self, exported: Any) -> None:
        super().__init__(exported.module())
        self.values: dict[str, torch.Tensor] = {}
        self.places: dict[str, str] = {}
        self.kinds: dict[str, str] = {}

    def run_node(self, n: torch.fx.Node) -> Any:
        result = super().run_node(n)
        if n.op == "call_function" and isinstance(result, torch.Tensor) and result.is_floating_point():
            self.values[n.name] = result
            self.places[n.name], self.kinds[n.name] = node_location(n.meta), str(n.target)
        return result


class _Watch:
    """Listens to a run: of each node, was one of the values of its ops the node's, or was none of them?"""

    def __init__(self, program: Program, wanted: Mapping[str, torch.Tensor]) -> None:
        self.same: dict[str, bool] = {}
        self._wanted = wanted
        self._nodes = {op.name: _node(op) for function in program.functions.values() for op in operations(function)}

    def after(self, step: Step, outputs: Mapping[str, torch.Tensor]) -> None:
        name = self._nodes.get(step.name)
        if name is None or name not in self._wanted or self.same.get(name):
            return
        for value in outputs.values():
            if (differs := parts(self._wanted[name], value.float())) is not None:
                self.same[name] = not differs


def _node(op: Any) -> str | None:
    """The node that the op was converted from; ``None`` for what passes made, whose values may be laid out anew."""
    scopes: dict[str, list[str]] = {source.name: names for source, names in op.scopes.items()}
    if "COREMLTOOLS_GRAPH_PASS" in scopes or "EXIR_STACK_TRACE" not in scopes:
        return None
    return next(iter(scopes.get("TORCHSCRIPT_MODULE_NAME", [])[-1:]), None)
