"""What crosses from one part to another: the stream, what else is provably needed, and shared values.

A value that depends neither on the stream nor on what was written to a state (masks, rotary angles, positions) may be
computed by each part that needs it, or by the first and handed over. Which is smaller is a minimum vertex cut: handing
over costs the value's bytes, computing the bytes of the inputs and constants that the part would not need otherwise,
and a constant that several functions need is stored once. Of equal cuts the one nearest to the inputs is taken.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal, TypeAlias

from milopt.mil import Function, Operation, Var, dtype_name, is_constant_like, is_state, shape_of
from milopt.package.tensors import box_of, bytes_of, stored_key
from milopt.sets.errors import SetError
from milopt.sets.places import can_pass, room_of
from milopt.sets.states import Contents, contents_of
from milopt.sets.stream import READERS, Stream, reads

__all__ = ["Shared", "Slice", "slices_of"]

networkx: Any = importlib.import_module("networkx")  # it carries no types

Shared: TypeAlias = Literal["smaller", "recompute", "pass"]

_ALL, _NOTHING = "all", "nothing"
# Smaller constants are axes, scales and the like, which cost no more than the op that takes them.
_FEWEST_ELEMENTS = 10


@dataclass(eq=False)
class Slice:
    """One part of one function: the ``ops`` it keeps, constants included, all of the function that is divided.

    ``taken`` are values of earlier parts, the stream's first, and ``given`` those that later parts or the caller get.
    ``reread`` are values of earlier parts that a state holds. ``inputs`` are the function's own, states included.
    """

    ops: set[Operation] = field(default_factory=set[Operation])
    inputs: set[Var] = field(default_factory=set[Var])
    taken: list[Var] = field(default_factory=list[Var])
    reread: list[Var] = field(default_factory=list[Var])
    given: list[Var] = field(default_factory=list[Var])


def slices_of(
    streams: Mapping[str, Stream], cuts: Mapping[str, Sequence[Var]], shared: Shared = "smaller"
) -> list[dict[str, Slice]]:
    """The parts in order, each a slice of every function; ``cuts`` are values of each function's stream."""
    flows = {name: _Flow(stream, tuple(cuts[name])) for name, stream in streams.items()}
    count = len(next(iter(cuts.values()))) + 1
    parts = [_slices(flows, part, shared) for part in range(count)]
    for name, flow in flows.items():
        _hand_over([part[name] for part in parts], flow)
    return parts


class _Flow:
    """One function: who makes what, and which shared values have been computed by the parts so far."""

    def __init__(self, stream: Stream, cuts: tuple[Var, ...]) -> None:
        self.function: Function = stream.function
        self.cuts = cuts
        self.made = stream.made_in(cuts)
        self.contents: Contents = contents_of(self.function, self.made)
        self.order = {op: at for at, op in enumerate(self.function.operations)}
        self.inside: dict[int, list[Operation]] = {}
        for op, part in self.made.items():
            self.inside.setdefault(part, []).append(op)
        self.known: set[Var] = set()

    def part_of(self, var: Var) -> int | None:
        """The part that makes the value; ``None`` for an input, a constant, and what any part may make."""
        return None if var.op is None else self.made.get(var.op)

    def wanted(self, part: int) -> list[Var]:
        """What the part's own ops, and the function's outputs that no part in particular makes, are made of."""
        found = [var for op in self.inside.get(part, ()) for var in reads(op)]
        if part == 0:
            found += [var for var in self.function.outputs if self.part_of(var) is None]
        return [var for var in dict.fromkeys(found) if self.part_of(var) != part and _is_value(self, var)]

    def is_shared(self, var: Var) -> bool:
        op = var.op
        return op is not None and op not in self.made and not is_constant_like(op) and op.op_type not in READERS


def _is_value(flow: _Flow, var: Var) -> bool:
    """Whether it is a value of the function itself, not one of a nested block or of PyMIL's own."""
    return var.op in flow.order if var.op is not None else flow.function.inputs.get(var.name) is var


def _slices(flows: Mapping[str, _Flow], part: int, shared: Shared) -> dict[str, Slice]:
    passed = {name: set[Var]() for name in flows}
    if part:
        for name, var in _passed(flows, part, shared):
            passed[name].add(var)
    found: dict[str, Slice] = {}
    for name, flow in flows.items():
        found[name] = each = _collected(flow, part, passed[name])
        flow.known.update(var for op in each.ops if op not in flow.made for var in op.outputs)
    return found


def _collected(flow: _Flow, part: int, passed: set[Var]) -> Slice:
    """The slice that takes ``passed`` and computes all other shared values it needs."""
    result, todo = Slice(ops=set(flow.inside.get(part, ()))), flow.wanted(part)
    result.inputs.update(var for op in result.ops for var in reads(op) if flow.function.inputs.get(var.name) is var)
    seen, taken = set(todo), set[Var]()
    while todo:
        var = todo.pop()
        op, made = var.op, flow.part_of(var)
        if op is None:
            result.inputs.add(var)
        elif op.op_type in READERS and made is not None:
            flow.contents.check(op, part)
            result.reread.append(var)
            result.inputs.add(flow.contents.state[op])
        elif made is not None or var in passed:
            taken.add(var)
        else:
            if op.op_type in READERS:
                flow.contents.check(op, part)
            result.ops.add(op)
            more = [each for each in reads(op) if _is_value(flow, each) and flow.part_of(each) != part]
            todo += [each for each in dict.fromkeys(more) if each not in seen]
            seen.update(more)
    stream = flow.cuts[part - 1] if part else None
    result.taken = sorted(taken, key=lambda var: (var is not stream, flow.order[_maker(var)]))
    result.reread.sort(key=lambda var: flow.order[_maker(var)])
    return result


def _maker(var: Var) -> Operation:
    assert var.op is not None
    return var.op


def _hand_over(parts: Sequence[Slice], flow: _Flow) -> None:
    """Have each value that is taken given by the part that first makes it, and outputs of the function returned."""
    outputs = [*flow.function.outputs]
    taken = dict.fromkeys(var for each in parts for var in each.taken)
    for number, each in enumerate(parts):
        own = [*([flow.cuts[number]] if number < len(flow.cuts) else []), *taken, *outputs]
        for var in dict.fromkeys(own):
            if var.op in each.ops and not any(var in earlier.given for earlier in parts[:number]):
                if var in taken and not can_pass(var):
                    raise SetError(
                        f"{var.name}, {dtype_name(var)} {list(shape_of(var))}, would have to be handed from part to "
                        "part, which Core ML can't: cut elsewhere"
                    )
                each.given.append(var)
        each.given = [var for var in each.given if var in taken or var in outputs]
    for var in outputs:
        if not any(var in each.given for each in parts):
            raise SetError(f"output {var.name!r} is an input of the program: no part makes it")


def _passed(flows: Mapping[str, _Flow], part: int, shared: Shared) -> Iterator[tuple[str, Var]]:
    """Which shared values the part is handed: those that cut it off from inputs and constants for the fewest bytes."""
    if shared == "pass":
        for name, flow in flows.items():
            yield from ((name, var) for var in _handed(flow, part))
        return
    graph = networkx.DiGraph()
    graph.add_nodes_from((_ALL, _NOTHING))
    free = {key for flow in flows.values() for key, _ in _stored(_direct(flow, part))}
    for name, flow in flows.items():
        wanted = flow.wanted(part)
        todo = [var for var in wanted if flow.is_shared(var)]
        _add(graph, flow, name, todo, set(wanted), part, shared, free)
    if not graph.number_of_edges():
        return
    try:
        _, (_, near) = networkx.minimum_cut(graph.reverse(), _ALL, _NOTHING)
    except networkx.NetworkXUnbounded as error:
        raise SetError(f"part {part + 1} needs a value that it can neither compute nor be handed") from error
    for key, which, end in (node for node in graph.nodes if node not in (_ALL, _NOTHING)):
        cut = end == "in" and (key, which, "in") in near and (key, which, "out") not in near
        if cut and key is not None and flows[key].is_shared(which):
            yield key, which


def _handed(flow: _Flow, part: int) -> Iterator[Var]:
    """Every shared value that was computed before, as near to where it is used as can be."""
    todo = [var for var in flow.wanted(part) if flow.is_shared(var)]
    seen = set(todo)
    while todo:
        var = todo.pop()
        if var in flow.known and can_pass(var):
            yield var
            continue
        more = [each for each in reads(_maker(var)) if flow.is_shared(each) and each not in seen]
        todo += dict.fromkeys(more)
        seen.update(more)


def _direct(flow: _Flow, part: int) -> Iterator[Var]:
    """The constants that the part's own ops use."""
    return (var for var in flow.wanted(part) if var.op is not None and is_constant_like(var.op))


def _stored(weights: Iterable[Var]) -> Iterator[tuple[object, int]]:
    """The constants that make the weights, as ``(key, bytes)``; equal keys are stored once."""
    todo, seen = list(weights), set[Var]()
    while todo:
        var = todo.pop()
        if var in seen or var.op is None:
            continue
        seen.add(var)
        if var.op.op_type != "const":
            todo += reads(var.op)
        elif (box := box_of(var)) is not None and prod(shape_of(var)) >= _FEWEST_ELEMENTS:
            yield stored_key(box), bytes_of(shape_of(var), dtype_name(var))


def _add(
    graph: Any,
    flow: _Flow,
    name: str,
    wanted: Sequence[Var],
    direct: set[Var],
    part: int,
    shared: Shared,
    free: set[object],
) -> None:
    """Put what the shared values ``wanted`` are made of into the graph, up to inputs, constants and earlier parts."""

    def vertex(key: object, which: object, capacity: int | None) -> tuple[Any, Any]:
        ends = (key, which, "in"), (key, which, "out")
        graph.add_edge(*ends, **({} if capacity is None else {"capacity": capacity}))
        return ends

    def leaf(key: object, which: object, capacity: int | None, user: Any) -> None:
        entry, out = vertex(key, which, capacity)
        graph.add_edge(_NOTHING, entry)
        graph.add_edge(out, user)

    for var in wanted:
        graph.add_edge((name, var, "out"), _ALL)
    todo, seen = list(wanted), set(wanted)
    while todo:
        var = todo.pop()
        entry, _ = vertex(name, var, _price(var, flow, shared))
        for each in dict.fromkeys(reads(_maker(var))):
            if not _is_value(flow, each) or is_state(each) or flow.part_of(each) == part:
                continue
            op = each.op
            if op is None:
                leaf(name, each, 0 if each in direct else room_of(each), entry)
            elif is_constant_like(op):
                for key, size in _stored([each]):
                    leaf(None, key, 0 if key in free else size, entry)
            elif op.op_type in READERS:
                flow.contents.check(op, part)
            elif op in flow.made:
                leaf(name, each, 0 if each in direct else room_of(each), entry)
            else:
                graph.add_edge((name, each, "out"), entry)
                if each not in seen:
                    seen.add(each)
                    todo.append(each)


def _price(var: Var, flow: _Flow, shared: Shared) -> int | None:
    """What handing the value over costs; ``None`` where it can't be, or is not to be."""
    return room_of(var) if var in flow.known and can_pass(var) and shared == "smaller" else None
