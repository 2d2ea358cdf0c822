"""The stream of a function: the values through which everything must pass that gets from a source to an output.

In a transformer these are the residual stream's, whatever the ops are called: between two of them the stream and the
branch beside it are two ways, so nothing there is a value that all must pass. Two kinds of edges are no such ways: what
is read from a state is there in the next part too, and a shape is known without its tensor's elements.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod

from milopt.mil import Function, Operation, Var, arguments, is_constant_like, is_output, is_state, operations

__all__ = ["READERS", "WRITERS", "Stream", "reads", "stream_of"]

WRITERS = frozenset({"coreml_update_state", "write_state"})
READERS = frozenset({"coreml_update_state", "read_state"})

# Sources that are tried: those from which most ops of the way to the output are reached.
_TRIED = 6


@dataclass(frozen=True)
class Stream:
    """``cuts`` are the values, in order, that lie on every way from ``source`` to ``output``; the output is the last.

    ``reached`` are the ops that the source reaches on such ways.
    """

    function: Function
    source: Var | None
    output: Var
    cuts: tuple[Var, ...]
    reached: frozenset[Operation] = field(default=frozenset(), repr=False)

    def made_in(self, cuts: tuple[Var, ...]) -> dict[Operation, int]:
        """For ``cuts``, some of the stream's, the number of the part that makes each op's values.

        Part ``k`` begins behind cut ``k - 1``. Ops that depend neither on the source nor on what a state was given
        are left out: they may be in any part. What is computed of a state's contents alone is where it is used first.
        """
        ends = {cut: number for number, cut in enumerate(cuts)}
        known: dict[Var, int] = {} if self.source is None else {self.source: 0}
        made: dict[Operation, int] = {}
        for op in self.function.operations:
            parts = [known[var] for var in reads(op) if var in known]
            if op.op_type == "shape" and self.source is not None and op.inputs["x"] is self.source:
                continue
            if not parts and not (self.source is not None and self.source.op is op):
                continue
            made[op] = max(parts, default=0)
            for var in op.outputs:
                known[var] = made[op] + (ends.get(var) == made[op])
        self._postpone(made, ends)
        return made

    def _postpone(self, made: dict[Operation, int], kept: Mapping[Var, int]) -> None:
        """Let ops that take a state's contents, and nothing else that is made, be in the first part that needs them."""
        taking: list[Operation] = []
        values: set[Var] = set()
        for op in self.function.operations:
            if op not in made or op.op_type in READERS | WRITERS:
                values.update(var for var in op.outputs if op in made and op.op_type in READERS)
                continue
            sources = [var for var in reads(op) if var.op in made]
            if sources and values.issuperset(sources):
                taking.append(op)
                values.update(op.outputs)
        for op in reversed(taking):
            users = [user for var in op.outputs for user in var.child_ops]
            if users and all(user in made for user in users) and not any(_stays(var, kept) for var in op.outputs):
                made[op] = min(made[user] for user in users)


def _stays(var: Var, kept: Mapping[Var, int]) -> bool:
    return var in kept or is_output(var)


def reads(op: Operation) -> Iterator[Var]:
    """Every value that the op, or an op nested in it, uses; once for each use."""
    yield from (var for _, var in arguments(op))
    for block in op.blocks:
        yield from block.outputs
        for inner in operations(block):
            yield from (var for _, var in arguments(inner))


def stream_of(function: Function) -> Stream:
    """The stream that most of the function's weights are on; its source is an input, or what is looked up for one."""
    ops = [op for op in function.operations if not is_constant_like(op)]
    output = _deepest(function, ops)
    sources = [var for var in function.inputs.values() if not is_state(var)]
    sources += [op.outputs[0] for op in ops if op.op_type == "gather" and _is_table(op)]
    best, found = (0, 0), Stream(function, None, output, (output,))
    for source in _furthest(ops, sources, output):
        stream = _stream(function, ops, source, output)
        if (rank := (_weighed(stream), len(stream.cuts))) > best:
            best, found = rank, stream
    return found


def _weighed(stream: Stream) -> int:
    """How many elements the weights on the stream have; one that is used twice, by a tied head too, counts twice."""
    on_it = stream.reached if stream.source is None or stream.source.op is None else {*stream.reached, stream.source.op}
    weights = (var for op in on_it for var in reads(op) if var.op is not None and is_constant_like(var.op))
    return sum(prod(var.shape) for var in weights)


def _is_table(op: Operation) -> bool:
    table = op.inputs["x"].op
    return table is not None and is_constant_like(table)


def _ways(op: Operation) -> Iterator[Var]:
    """The values that reach what the op makes."""
    if op.op_type == "shape":
        return
    for var in reads(op):
        if var.op is None or var.op.op_type not in READERS:
            yield var


def _deepest(function: Function, ops: list[Operation]) -> Var:
    """The output that most ops lead to."""
    leads: dict[Var, int] = {}
    for number, var in enumerate(function.outputs):
        leads[var] = leads.get(var, 0) | 1 << number
    counts = [0] * len(function.outputs)
    for op in reversed(ops):
        bits = 0
        for var in op.outputs:
            bits |= leads.get(var, 0)
        if not bits:
            continue
        for number in range(len(counts)):
            counts[number] += bits >> number & 1
        for var in _ways(op):
            leads[var] = leads.get(var, 0) | bits
    return function.outputs[max(range(len(counts)), key=counts.__getitem__)]


def _furthest(ops: list[Operation], sources: list[Var], output: Var) -> list[Var]:
    """The sources that reach most of the ops that lead to the output."""
    wanted = {output}
    leading: set[Operation] = set()
    for op in reversed(ops):
        if any(var in wanted for var in op.outputs):
            leading.add(op)
            wanted.update(_ways(op))
    bits = {var: 1 << number for number, var in enumerate(sources)}
    counts = [0] * len(sources)
    for op in ops:
        reached = 0
        for var in _ways(op):
            reached |= bits.get(var, 0)
        for var in op.outputs:
            bits[var] = bits.get(var, 0) | reached
        if op in leading and reached:
            for number in range(len(sources)):
                counts[number] += reached >> number & 1
    order = sorted((number for number in range(len(sources)) if counts[number]), key=lambda number: -counts[number])
    return [sources[number] for number in order[:_TRIED]]


def _stream(function: Function, ops: list[Operation], source: Var, output: Var) -> Stream:
    reached, values = list[Operation](), {source}
    for op in ops:
        if any(var in values for var in _ways(op)):
            reached.append(op)
            values.update(op.outputs)
    useful, wanted = list[Operation](), {output}
    for op in reversed(reached):
        if any(var in wanted for var in op.outputs):
            useful.append(op)
            wanted.update(_ways(op))
    useful.reverse()
    last: dict[Var, int] = {}
    for at, op in enumerate(useful):
        for var in _ways(op):
            if var in values:
                last[var] = at
    last[output] = len(useful)
    cuts: list[Var] = [source] if source.op is not None else []
    furthest = last.get(source, 0)
    for at, op in enumerate(useful):
        going = [var for var in op.outputs if var in last]
        if furthest <= at and len(going) == 1:
            cuts.append(going[0])
        furthest = max([furthest, *(last[var] for var in going)])
    return Stream(function, source, output, tuple(cuts), frozenset(useful))
