"""Programs whose inputs, outputs or states are laid out anew, run as if they were not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from milopt.interpreter import Plan, State, ValueInfo
from milopt.interpreter.state import Cell
from milopt.signature_layout import LayoutSignature, Relaid

__all__ = ["public_plans"]


def public_plans(plans: Mapping[str, Plan], signature: LayoutSignature | None) -> dict[str, Plan]:
    """``plans`` with the inputs, outputs and states that ``signature`` says they had before ``layout-bc1s{io=free}``.

    What it says of names that are gone, or of other shapes, is passed over.
    """
    if signature is None:
        return dict(plans)
    return {name: _public(plan, signature.of(name)) for name, plan in plans.items()}


def _public(plan: Plan, relaid: Mapping[str, Relaid]) -> Plan:
    infos = {**plan.inputs, **plan.outputs, **plan.states}
    known = {name: each for name, each in relaid.items() if name in infos and infos[name].shape == each.stored}
    if not known:
        return plan
    held: dict[str, Any] = {field.name: getattr(plan, field.name) for field in fields(Plan)}
    for part in ("inputs", "outputs", "states"):
        held[part] = {name: _shown(info, known) for name, info in held[part].items()}
    return _Public(**held, inner=plan, relaid=known)


def _shown(info: ValueInfo, relaid: Mapping[str, Relaid]) -> ValueInfo:
    return replace(info, shape=relaid[info.name].public) if info.name in relaid else info


@dataclass(frozen=True, kw_only=True)
class _Public(Plan):
    """A plan whose inputs are laid out before it runs, and whose outputs are laid back behind it."""

    inner: Plan
    relaid: Mapping[str, Relaid]

    def run(
        self, inputs: Mapping[str, Any], state: State | None = None, listeners: Iterable[object] = ()
    ) -> dict[str, torch.Tensor]:
        stored = {name: self._stored(name, value) for name, value in inputs.items()}
        kept = None if state is None else _Stored(state, self.relaid)
        given = self.inner.run(stored, kept, listeners)
        return {name: self.relaid[name].show(value) if name in self.relaid else value for name, value in given.items()}

    def _stored(self, name: str, value: Any) -> Any:
        if name not in self.relaid or tuple(value.shape) != self.relaid[name].public:
            return value  # the program itself refuses another shape
        return self.relaid[name].store(value if isinstance(value, torch.Tensor) else torch.as_tensor(np.array(value)))


class _Stored(State):
    """A state as a program with other layouts sees it; the numbers lie in the public one."""

    def __init__(self, public: State, relaid: Mapping[str, Relaid]) -> None:
        self._public = public
        self._relaid = relaid

    def bind(self, infos: Mapping[str, ValueInfo], precision: Any, device: torch.device | None = None) -> Any:
        shown = {name: _shown(info, self._relaid) for name, info in infos.items()}
        cells = self._public.bind(shown, precision, device)
        return {
            name: _StoredCell(cell, self._relaid[name]) if name in self._relaid else cell
            for name, cell in cells.items()
        }


class _StoredCell(Cell):
    """Its values are views of the public state's, or laid back into it."""

    __slots__ = ("_cell", "_one")

    def __init__(self, cell: Cell, one: Relaid) -> None:
        self._cell = cell
        self._one = one

    def read(self) -> torch.Tensor:
        tensor: torch.Tensor = self._one.store(self._cell.read())
        return tensor

    def write(self, value: torch.Tensor, own: bool) -> None:
        self._cell.write(self._one.show(value), own)
