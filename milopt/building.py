"""The builder a rule writes its replacement with."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from milopt.engine.counters import Counters
from milopt.errors import PassError
from milopt.mil import (
    Block,
    Operation,
    Var,
    building_in,
    first_opset,
    flat,
    mb,
    new_ops,
    op_inputs,
    opset_of,
    preceding,
    remove_ops,
)
from milopt.reports import NoMatch, require_opset

__all__ = ["Builder"]

_REFUSALS = (ValueError, TypeError, AssertionError, NotImplementedError, IndexError)


class Builder:
    """Builds MIL ops before an anchor op: ``op.mul(x=q, y=np.float16(2))``.

    An attribute is a MIL op type; calling it builds one and returns its output (a tuple where it has several). Inputs
    may be values, numbers, strings or numpy arrays. New ops get unique names derived from the anchor's, and its scopes;
    they stand before ``before``, which is the anchor itself unless given. What MIL's type inference refuses, or the
    function's opset does not have, becomes a :class:`NoMatch`, so that the rewrite is taken back; PassError where the
    op has no such input in any opset.
    """

    def __init__(self, anchor: Operation, taken: set[str], before: Operation | None = None) -> None:
        self.anchor = anchor
        self.before = before or anchor
        self.built: list[Operation] = []
        self.notes: list[str] = []
        self._taken = taken
        self._names: list[str] = []
        self._counters = Counters()

    def __getattr__(self, op_type: str) -> Callable[..., Any]:
        if op_type.startswith("_") or not hasattr(mb, op_type):
            raise AttributeError(f"MIL has no op {op_type!r}")

        def call(**inputs: Any) -> Any:
            return self._build(op_type, inputs)

        return call

    def _build(self, op_type: str, inputs: dict[str, Any]) -> Any:
        if (first := first_opset(op_type)) is not None:
            require_opset(opset_of(self.anchor), first)
        known = op_inputs(op_type) or {}
        if wrong := [each for each in inputs if known and each not in known and each != "name"]:
            raise PassError(f"{op_type} has no input {wrong[0]!r}; its inputs are: {', '.join(known)}")
        since = preceding(self.before)
        name = self.unique(inputs.pop("name", f"{self.anchor.name}_{op_type}"))
        given = {var: len(var.child_ops) for value in inputs.values() for var in _values(value)}
        block = self.before.enclosing_block
        with self._counters.counting(block):
            nested: list[Block] = []
            try:
                with building_in(block) as nested:
                    result = getattr(mb, op_type)(**inputs, name=name, before_op=self.before)
            except BaseException as error:
                for inner in reversed(nested):  # one that was not finished belongs to no op yet
                    inner.set_outputs([])
                    remove_ops(_detached(list(inner.operations)))
                remove_ops(_detached(new_ops(self.before, since)))
                for var, users in given.items():
                    del var.child_ops[users:]  # an op that got no further than its inputs is in no block
                if not isinstance(error, _REFUSALS):
                    raise
                raise NoMatch("MIL refuses the {} it would build: {}", op_type, str(error).strip()) from error
        made = new_ops(self.before, since)
        for op in made:
            if not op.scopes:  # inside a conversion coremltools marks new ops, and hands scopes on itself
                op.scopes = copy.copy(self.anchor.scopes)
            self._take(op.name)
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
        self._take(name)
        return name

    def _take(self, name: str) -> None:
        if name not in self._taken:
            self._taken.add(name)
            self._names.append(name)

    def undo(self) -> None:
        """Remove everything built, so that the program, and what coremltools counts, is as it was before."""
        remove_ops(self.built)
        self._counters.drop(self.built)
        self._taken.difference_update(self._names)
        self.built, self._names = [], []


def _values(value: Any) -> Iterator[Var]:
    yield from (each for each in flat(value) if isinstance(each, Var))


def _detached(ops: list[Operation]) -> list[Operation]:
    """``ops`` of a refused build: the op itself may have no outputs yet, which coremltools can't remove."""
    for op in ops:
        unfinished: Any = op
        if unfinished.outputs is None:
            unfinished._output_vars = []
    return ops
