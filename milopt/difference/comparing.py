"""``diff``: all that differs between two packages, by kind."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from milopt.difference.facts import changes, feature_changes, flatten, quoted
from milopt.difference.graph import Constant, Graph, Value, read_graph, type_text
from milopt.difference.opening import Opened, Source, opened
from milopt.difference.ops import Compared, compare_graphs, compression, op_counts
from milopt.difference.result import SECTIONS, Change, Difference
from milopt.difference.tensors import Tensor
from milopt.difference.weights import compare_constants, compare_sharing

__all__ = ["diff"]

_FEATURES = ("input", "output", "state", "trainingInput")
_PREDICTED = ("predictedFeatureName", "predictedProbabilitiesName")
_APART = frozenset({*_FEATURES, *_PREDICTED, "functions", "defaultFunctionName", "metadata", "name"})
Found = Iterator[tuple[str, Change]]


def diff(before: Source, after: Source) -> Difference:
    """Compare two packages: paths, or models in memory, which are saved for it.

    Ops are told apart by what they do and use, not by names; weights by content, read where they lie. Where tensors
    lie within their file does not count. PackageError where one of them can't be read.
    """
    with opened(before) as old, opened(after) as new:
        return _Comparison(old, new).run()


class _Comparison:
    def __init__(self, old: Opened, new: Opened) -> None:
        self.old = old
        self.new = new

    def run(self) -> Difference:
        graphs = [
            {name: read_graph(package, name) for name in sorted(package.spec.mlProgram.functions)}
            for package in (self.old, self.new)
        ]
        found = [*self.described(), *self.program(), *self.files(), *self.graphs(*graphs)]
        if all(section == "files" for section, _ in found):
            found += self.encoding()
        sections = {name: tuple(each for section, each in found if section == name) for name in SECTIONS}
        counts = {name: op_counts(graph, graphs[1][name]) for name, graph in graphs[0].items() if name in graphs[1]}
        sizes = {
            name: (self.old.sizes.get(name, 0), self.new.sizes.get(name, 0))
            for name in dict.fromkeys([*self.old.sizes, *self.new.sizes])
        }
        return Difference(
            self.old.name,
            self.new.name,
            {name: each for name, each in sections.items() if each},
            {name: each for name, each in counts.items() if each},
            sizes,
        )

    def described(self) -> Found:
        """The description: what Core ML shows of the model."""
        old, new = self.old.spec.description, self.new.spec.description
        yield from _in("metadata", changes(flatten(old.metadata), flatten(new.metadata)))
        yield from _interface("", old, new)
        before, after = ({each.name: each for each in one.functions} for one in (old, new))
        for name in sorted(before.keys() & after.keys()):
            yield from _interface(f"{name}: ", before[name], after[name])
        for name in _PREDICTED:
            yield from _in("classifier", changes(_field(old, name), _field(new, name)))
            for function in sorted(before.keys() & after.keys()):
                fields = (_field(one[function], name, f"{function}: ") for one in (before, after))
                yield from _in("classifier", changes(*fields))
        facts = [
            {"default function": quoted(one.defaultFunctionName or "main"), "described": ", ".join(names)}
            for one, names in ((old, before), (new, after))
        ]
        yield from _in("functions", changes(*facts))

    def program(self) -> Found:
        """What the specification says around the ops."""
        old, new = self.old.spec, self.new.spec
        facts = [
            {
                "specification version": str(spec.specificationVersion),
                "updatable": str(spec.isUpdatable).lower(),
                "program version": str(spec.mlProgram.version),
            }
            for spec in (old, new)
        ]
        yield from _in("specification", changes(*facts))
        yield from _in(
            "functions",
            changes(
                *(
                    {f"function {quoted(name)}": name for name in sorted(spec.mlProgram.functions)}
                    for spec in (old, new)
                )
            ),
        )
        yield from _in("docs", changes(*({"program": quoted(spec.mlProgram.docString)} for spec in (old, new))))
        yield from _in(
            "attributes", changes(*(_attributes("program", spec.mlProgram.attributes) for spec in (old, new)))
        )
        for name in sorted(set(old.mlProgram.functions) & set(new.mlProgram.functions)):
            one, other = old.mlProgram.functions[name], new.mlProgram.functions[name]
            yield from _in("opsets", changes({name: one.opset}, {name: other.opset}))
            yield from _in("interface", changes(*(_signature(name, each) for each in (one, other))))
            order = [", ".join(each.name for each in function.inputs) for function in (one, other)]
            if order[0] != order[1] and sorted(order[0]) == sorted(order[1]):
                yield "interface", Change("changed", f"{name}: order of the program's inputs", order[0], order[1])
            yield from _in("attributes", changes(*(_function_attributes(name, each) for each in (one, other))))

    def files(self) -> Found:
        before, after = ({name: _content(held) for name, held in each.files.items()} for each in (self.old, self.new))
        yield from _in("files", changes(before, after))
        yield from _in("files", changes(*(_items(each) for each in (self.old, self.new))))

    def graphs(self, before: Mapping[str, Graph], after: Mapping[str, Graph]) -> Found:
        common = [name for name in before if name in after]
        parts = [compare_graphs(name, before[name], after[name]) for name in common]
        alone = Compared(
            gone=[slot for name in before if name not in after for slot in _slots(name, before[name])],
            come=[slot for name in after if name not in before for slot in _slots(name, after[name])],
        )
        for part in parts:
            yield from part.found
        yield from compare_constants([*parts, alone])
        yield from compare_sharing(_tensors(before), _tensors(after))
        yield from _in(
            "compression",
            changes(*(_merged(compression(name, graph) for name, graph in each.items()) for each in (before, after))),
        )
        yield from _in(
            "classifier",
            changes(*(_merged(_labels(name, graph) for name, graph in each.items()) for each in (before, after))),
        )

    def encoding(self) -> Found:
        """Whether the specifications differ in a way that nothing else has told, but for the places of tensors."""
        texts: list[bytes] = []
        for package in (self.old, self.new):
            for function in package.spec.mlProgram.functions.values():
                for block in function.block_specializations.values():
                    _forget_offsets(block)
            texts.append(package.spec.SerializeToString(deterministic=True))
        if texts[0] != texts[1]:
            sizes = [f"{len(each)} bytes" for each in texts]
            yield "encoding", Change("changed", "the specification, which holds the same", sizes[0], sizes[1])


def _in(section: str, found: Iterable[Change]) -> Found:
    return ((section, change) for change in found)


def _field(message: Any, name: str, prefix: str = "") -> dict[str, str]:
    value = getattr(message, name)
    return {f"{prefix}{name}": quoted(value)} if value else {}


def _interface(prefix: str, old: Any, new: Any) -> Found:
    for kind in _FEATURES:
        if kind in old.DESCRIPTOR.fields_by_name:
            yield from _in("interface", feature_changes(f"{prefix}{kind}", getattr(old, kind), getattr(new, kind)))
    facts = [
        {f"{prefix}{key}": text for key, text in flatten(one).items() if key.split(".")[0] not in _APART}
        for one in (old, new)
    ]
    yield from _in("interface", changes(*facts))


def _signature(name: str, function: Any) -> dict[str, str]:
    """The program's own inputs and outputs."""
    (block,) = function.block_specializations.values()
    facts = {f"{name}: program input {quoted(each.name)}": _type(each) for each in function.inputs}
    return {**facts, f"{name}: program outputs": ", ".join(block.outputs)}


def _type(value: Any) -> str:
    tensor = value.type.tensorType
    names = sorted(tensor.attributes)
    notes = "".join(f" {each}=#{tensor.attributes[each].SerializeToString(deterministic=True).hex()}" for each in names)
    return f"{type_text(value.type)}{notes}"


def _attributes(where: str, attributes: Mapping[str, Any]) -> dict[str, str]:
    return {
        f"{where}: {name}{f', {key}' if key else ''}": text
        for name in sorted(attributes)
        for key, text in (flatten(attributes[name]) or {"": "set"}).items()
    }


def _function_attributes(name: str, function: Any) -> dict[str, str]:
    (block,) = function.block_specializations.values()
    return {
        **_attributes(f"function {name}", function.attributes),
        **_attributes(f"block of {name}", block.attributes),
    }


def _content(content: bytes) -> str:
    return f"{len(content)} bytes #{hashlib.blake2b(content, digest_size=8).hexdigest()}"


def _items(package: Opened) -> dict[str, str]:
    data = package.container.root / "Data"
    entries = {
        f"manifest entry {item.path}": f"{item.name}, {item.author}, {item.description}"
        for item in package.container.items
        if any(each.is_file() for each in (data / item.path, *(data / item.path).rglob("*")))
    }
    spec = package.container.spec
    return {"specification": f"{spec.path}, {spec.name}, {spec.author}, {spec.description}", **entries}


def _slots(name: str, graph: Graph) -> Iterator[tuple[str, Constant]]:
    for node in graph.all_nodes():
        for label, each in node.arguments:
            if not isinstance(each, Value):
                yield f"{name}: {label} of {quoted(node.name)}", each


def _tensors(graphs: Mapping[str, Graph]) -> Iterator[tuple[str, Tensor]]:
    for name, graph in graphs.items():
        for slot, constant in _slots(name, graph):
            if constant.tensor is not None:
                yield slot, constant.tensor


def _labels(name: str, graph: Graph) -> dict[str, str]:
    """The class labels that ``classify`` knows, one by one."""
    facts: dict[str, str] = {}
    for node in graph.all_nodes():
        for label, each in node.arguments if node.type == "classify" else ():
            if label == "classes" and isinstance(each, Constant):
                facts |= {f"{name}: label {index}": str(held) for index, held in enumerate(_held(each))}
    return facts


def _held(constant: Constant) -> list[Any]:
    value: Any = constant.held
    return list(value) if not hasattr(value, "tolist") else list(value.tolist())


def _merged(facts: Iterable[Mapping[str, str]]) -> dict[str, str]:
    return {key: text for each in facts for key, text in each.items()}


def _forget_offsets(block: Any) -> None:
    for op in block.operations:
        values = [*op.attributes.values(), *(each.value for held in op.inputs.values() for each in held.arguments)]
        for value in values:
            if value.WhichOneof("value") == "blobFileValue":
                value.blobFileValue.offset = 0
        for inner in op.blocks:
            _forget_offsets(inner)
