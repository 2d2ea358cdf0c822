"""How the ops of two functions differ, and which of their constants are to be compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest

from milopt.difference.aligning import align
from milopt.difference.facts import quoted
from milopt.difference.graph import Constant, Graph, Node, Value
from milopt.difference.result import Change
from milopt.mil import is_constexpr

__all__ = ["Compared", "compare_graphs", "compression", "op_counts"]

_DATA = frozenset({"indices", "data", "quantized_data", "nonzero_data", "nonzero_mask", "mask"})


@dataclass
class Compared:
    """What was found in the ops; ``constants`` are pairs that play the same part, with a name for messages."""

    found: list[tuple[str, Change]] = field(default_factory=list[tuple[str, Change]])
    constants: list[tuple[str, Constant, Constant]] = field(default_factory=list[tuple[str, Constant, Constant]])
    gone: list[tuple[str, Constant]] = field(default_factory=list[tuple[str, Constant]])
    come: list[tuple[str, Constant]] = field(default_factory=list[tuple[str, Constant]])


def compare_graphs(function: str, before: Graph, after: Graph) -> Compared:
    """Compare two functions whose inputs are paired by name, or by position where the names differ."""
    return _Comparer(function).run(before, after)


class _Comparer:
    """``partner`` is the value after of a value before; ``outer`` holds names that are the function's interface."""

    def __init__(self, function: str) -> None:
        self.function = function
        self.result = Compared()
        self.partner: dict[Value, Value] = {}
        self.outer: set[Value] = set()

    def run(self, before: Graph, after: Graph) -> Compared:
        names = {each.name: each for each in after.inputs}
        if set(names) == {each.name for each in before.inputs}:
            self.partner.update({each: names[each.name] for each in before.inputs})
        else:
            self.partner.update(zip(before.inputs, after.inputs, strict=False))
        self.outer |= {*before.inputs, *before.outputs, *after.inputs, *after.outputs}
        self.compare(before, after, f"function {self.function}")
        return self.result

    def add(self, section: str, kind: str, what: str, before: str = "", after: str = "") -> None:
        self.result.found.append((section, Change(kind, f"{self.function}: {what}", before, after)))

    def compare(self, before: Graph, after: Graph, where: str) -> None:
        pairs = align(before.nodes, after.nodes)
        paired = [*pairs.same, *pairs.moved, *pairs.changed]
        for old, new in paired:
            self.partner.update(zip(old.outputs, new.outputs, strict=False))
        for old, new in pairs.changed:
            self.changed(old, new)
        for old, new in [*pairs.same, *pairs.moved]:
            if not self.same_arguments(old, new):
                self.changed(old, new)
        for old, new in pairs.moved:
            self.add("order", "changed", f"place of {quoted(new.name)}", str(old), str(new))
        for node in pairs.removed:
            self.lone(node, "removed", self.result.gone)
        for node in pairs.added:
            self.lone(node, "added", self.result.come)
        for old, new in paired:
            self.inside(old, new)
        for old, new in [*pairs.same, *pairs.moved]:
            self.names(old, new)
        if len(before.outputs) != len(after.outputs) or any(
            self.partner.get(old) is not new for old, new in zip(before.outputs, after.outputs, strict=True)
        ):
            self.add("ops", "changed", f"what {where} returns", *map(_listed, (before.outputs, after.outputs)))

    def changed(self, old: Node, new: Node) -> None:
        self.add("ops", "changed", quoted(old.name), str(old), str(new))

    def lone(self, node: Node, kind: str, constants: list[tuple[str, Constant]]) -> None:
        self.add(
            "ops",
            kind,
            f"{node.type} {quoted(node.name)}",
            *((str(node), "") if kind == "removed" else ("", str(node))),
        )
        for each in (node, *(inner for block in node.blocks for inner in block.all_nodes())):
            constants += [(_slot(self.function, each, label), held) for label, held in _constants(each)]

    def same_arguments(self, old: Node, new: Node) -> bool:
        """Whether ops of equal keys use the same values; their constants are compared later."""
        if len(old.arguments) != len(new.arguments):
            return False
        for (label, one), (other_label, other) in zip(old.arguments, new.arguments, strict=True):
            if label != other_label or isinstance(one, Value) is not isinstance(other, Value):
                return False
            if isinstance(one, Value) and self.partner.get(one) is not other:
                return False
        return True

    def inside(self, old: Node, new: Node) -> None:
        """What a pair of ops holds: constants, attributes of types, blocks."""
        held, other = dict(_constants(old)), dict(_constants(new))
        for label in dict.fromkeys([*held, *other]):
            slot = _slot(self.function, new, label)
            if label in held and label in other:
                self.result.constants.append((slot, held[label], other[label]))
            elif label in held:
                self.result.gone.append((slot, held[label]))
            else:
                self.result.come.append((slot, other[label]))
        for one, two in zip(old.outputs, new.outputs, strict=False):
            if one.type == two.type and _type_notes(one) != _type_notes(two):
                self.add("attributes", "changed", f"type of {quoted(two.name)}", _type_notes(one), _type_notes(two))
        for index, (inner, outer) in enumerate(zip_longest(old.blocks, new.blocks)):
            if inner is None or outer is None:
                self.add("ops", "removed" if outer is None else "added", f"block {index} of {quoted(new.name)}")
                continue
            self.partner.update(zip(inner.inputs, outer.inputs, strict=False))
            for one, two in zip(inner.inputs, outer.inputs, strict=False):
                self.renamed(one, two)
            if len(inner.inputs) != len(outer.inputs):
                self.add("ops", "changed", f"inputs of block {index} of {quoted(new.name)}",
                         *map(_listed, (inner.inputs, outer.inputs)))  # fmt: skip
            self.compare(inner, outer, f"block {index} of {quoted(new.name)}")

    def names(self, old: Node, new: Node) -> None:
        one, two = (_own_name(each) for each in (old, new))
        if one != two:
            self.add("names", "changed", f"op {new.type}", one, two)
        for before, after in zip(old.outputs, new.outputs, strict=False):
            self.renamed(before, after)

    def renamed(self, before: Value, after: Value) -> None:
        if before.name != after.name and before not in self.outer and after not in self.outer:
            self.add("names", "changed", "value", before.name, after.name)


def _constants(node: Node) -> Iterator[tuple[str, Constant]]:
    return ((label, each) for label, each in node.arguments if isinstance(each, Constant))


def _slot(function: str, node: Node, label: str) -> str:
    return f"{function}: {label} of {quoted(node.name)}"


def _own_name(node: Node) -> str:
    if "name" not in node.proto.attributes:
        return "none"
    return ", ".join(map(quoted, node.proto.attributes["name"].immediateValue.tensor.strings.values))


def _type_notes(value: Value) -> str:
    kind = value.proto.type
    tensor = kind.stateType.wrappedType.tensorType if kind.HasField("stateType") else kind.tensorType
    names = sorted(tensor.attributes)
    return ", ".join(f"{name}=#{tensor.attributes[name].SerializeToString(deterministic=True).hex()}" for name in names)


def _listed(values: list[Value]) -> str:
    return ", ".join(f"%{each.name}" for each in values)


def op_counts(before: Graph, after: Graph) -> dict[str, tuple[int, int]]:
    """Ops by type where their numbers differ, constants that something uses apart."""
    old, new = (Counter(node.type for node in graph.all_nodes()) for graph in (before, after))
    return {kind: (old[kind], new[kind]) for kind in sorted({*old, *new}) if old[kind] != new[kind]}


def compression(function: str, graph: Graph) -> dict[str, str]:
    """How many weights are compressed by which op, with which type of data."""
    counts: Counter[str] = Counter()
    for node in graph.all_nodes():
        if is_constexpr(node.type):
            data = sorted({each.text.split("[")[0] for label, each in _constants(node) if label in _DATA})
            counts[f"{function}: {' '.join([node.type, *data])}"] += 1
    return {kind: str(count) for kind, count in counts.items()}
