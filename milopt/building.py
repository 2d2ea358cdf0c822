"""The builder a rule writes its replacement with."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from milopt.mil import Operation, building_in, mb, new_ops, preceding, remove_ops
from milopt.reports import NoMatch

__all__ = ["Builder"]

_REFUSALS = (ValueError, TypeError, AssertionError, NotImplementedError, IndexError)


class Builder:
    """Builds MIL ops before an anchor op: ``op.mul(x=q, y=np.float16(2))``.

    An attribute is a MIL op type; calling it builds one and returns its output (a tuple where it has several). Inputs
    may be values, numbers, strings or numpy arrays. New ops get unique names derived from the anchor's, and its scopes.
    What MIL's type inference refuses becomes a :class:`NoMatch`, so that the rewrite is taken back.
    """

    def __init__(self, anchor: Operation, taken: set[str]) -> None:
        self.anchor = anchor
        self.built: list[Operation] = []
        self.notes: list[str] = []
        self._taken = taken

    def __getattr__(self, op_type: str) -> Callable[..., Any]:
        if op_type.startswith("_") or not hasattr(mb, op_type):
            raise AttributeError(f"MIL has no op {op_type!r}")

        def call(**inputs: Any) -> Any:
            return self._build(op_type, inputs)

        return call

    def _build(self, op_type: str, inputs: dict[str, Any]) -> Any:
        since = preceding(self.anchor)
        name = self.unique(inputs.pop("name", f"{self.anchor.name}_{op_type}"))
        try:
            with building_in(self.anchor.enclosing_block):
                result = getattr(mb, op_type)(**inputs, name=name, before_op=self.anchor)
        except _REFUSALS as error:
            remove_ops(_detached(new_ops(self.anchor, since)))
            raise NoMatch("MIL refuses the {} it would build: {}", op_type, str(error).strip()) from error
        made = new_ops(self.anchor, since)
        for op in made:
            if not op.scopes:  # inside a conversion coremltools marks new ops, and hands scopes on itself
                op.scopes = copy.copy(self.anchor.scopes)
            self._taken.add(op.name)
        self.built += made
        return result

    def note(self, text: str) -> None:
        """Tell the report something about this rewrite; it is said once however often the rule fires."""
        self.notes.append(text)

    def unique(self, stem: str) -> str:
        """A name that no value of the function has yet."""
        name, count = stem, 0
        while name in self._taken:
            count += 1
            name = f"{stem}_{count}"
        self._taken.add(name)
        return name

    def undo(self) -> None:
        """Remove everything built, so that the program is as it was before."""
        remove_ops(self.built)
        self.built = []


def _detached(ops: list[Operation]) -> list[Operation]:
    """``ops`` of a refused build: the op itself may have no outputs yet, which coremltools can't remove."""
    for op in ops:
        unfinished: Any = op
        if unfinished.outputs is None:
            unfinished._output_vars = []
    return ops
