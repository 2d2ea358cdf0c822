"""The layout of every value of a program, such that the fewest elements are moved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from milopt.errors import PassError
from milopt.layout.forms import Layout, plan
from milopt.mil import Operation, is_symbolic
from milopt.package import Model
from milopt.passes.layout_advice import moved_if_written_out
from milopt.passes.layout_choice import Settled, settle
from milopt.passes.layout_reading import Reading, read, read_free
from milopt.passes.layout_writing import Writing
from milopt.pipeline import Pass
from milopt.reports import NoMatch, Report
from milopt.signature import METADATA_KEY, CacheSignature
from milopt.signature_layout import LAYOUT_KEY, LayoutSignature, Relaid

__all__ = ["LayoutBc1s"]


@dataclass(frozen=True)
class LayoutBc1s(Pass):
    """Transposes and reshapes around 1x1 convolutions  ->  values in (B, C, 1, S), and the fewest moves.

    Each op works in the layouts that :data:`milopt.passes.layout_ops.ENTRIES` allows it; constants are laid out anew,
    and a value is moved once for every layout that it is needed in. Of all choices the pass takes one that moves the
    fewest elements; it is a minimum of this model, which :mod:`milopt.layout` describes, and the report says by which
    method it was found. Each move that remains is among the report's misses, with its elements and its reason.

    With ``io="public"`` inputs, outputs and states keep their layouts. With ``"free"`` those of fixed shape get the
    ones that the program uses them in, where that saves moves: states one for all functions, with all axes but the
    first in another order, and so an input that an output is handed back as, such as ``past_x`` and ``present_x``.
    Images keep theirs. The metadata ``milopt.layout`` say how each was and is, which :func:`milopt.compare` and
    sessions know.

    A part of the program stays to the letter

    1. where it has no 1x1 convolution;
    2. where no choice moves fewer elements than the transposes and reshapes that are there (but their spelling changes
       where coremltools' ``common::compose_conv1d`` would make a convolution of rank 3 of them).

    A dimension that is only known when the program runs is counted as ``sequence``.
    """

    name: ClassVar[str] = "layout-bc1s"
    after: ClassVar[tuple[str, ...]] = (
        "canonicalize",
        "fuse-sdpa",
        "kv-to-state",
        "pack-gqa",
        "decompose-sdpa",
        "linear-to-conv",
    )

    sequence: int = 64
    io: Literal["public", "free"] = "public"

    def __post_init__(self) -> None:
        if self.sequence < 1:
            raise PassError(f"{self.name}: sequence is a length of at least 1, not {self.sequence}")

    def run(self, model: Model) -> Report:
        report = Report(self.name)
        if self.io == "free" and (why := _not_free(model)):
            report.decline(model.default_function, "", "{}: inputs, outputs and states keep their layouts", why)
        elif self.io == "free":
            _declare(
                model, self._lay_out(model, read_free(model.functions, self.sequence, _kept(model)), report), report
            )
            return report
        for name, function in model.functions.items():
            self._lay_out(model, {name: read(function, self.sequence)}, report)
        return report

    def _lay_out(self, model: Model, readings: Mapping[str, Reading], report: Report) -> dict[str, list[Relaid]]:
        """Lay out functions that are one graph; the inputs, outputs and states that have another layout then."""
        report.tried += sum(len(each.moves) for each in readings.values())
        for name, reading in readings.items():
            for op, why in reading.disputed.items():
                report.decline(name, op, "its types disagree, so it keeps its layouts: {}", why)
        graph = next(iter(readings.values())).graph
        settled = settle([*readings.values()])
        if not settled.touched:
            return {}
        advice = [note for name in readings for note in self._advice(model, name, settled.moved(graph))]
        writings: dict[str, Writing] = {}
        for name, reading in readings.items():
            writings[name] = Writing(reading, settled.modes, settled.touched)
            try:
                writings[name].build()
            except NoMatch as why:
                report.decline(name, why.at, why.text, *why.arguments)
                for other in list(writings.values())[:-1]:
                    other.undo()
                return {}
        for name, reading in readings.items():
            self._tell(name, reading, settled, report)
            writings[name].put()
        counts = f"{settled.before:,.0f} elements moved are {settled.after:,.0f} now"
        report.notes.append(f"{', '.join(readings)}: {counts}, {settled.proof}")
        report.notes += advice
        changed = sum(mode != each.original for mode, each in zip(settled.modes, graph.relations, strict=True))
        report.applied += max(changed, 1)
        return {name: writing.relaid for name, writing in writings.items() if writing.relaid}

    def _advice(self, model: Model, name: str, moved: int) -> list[str]:
        """What writing attention out would save, where that can be said: of one function, in public layouts."""
        if self.io == "free":
            return []
        other = moved_if_written_out(model, name, self.sequence)
        if other is None or other >= moved:
            return []
        return [
            f"{name}: scaled_dot_product_attention takes and gives (..., S, D) only; decompose-sdpa before this pass "
            f"would save {moved - other:,} of {moved:,} elements"
        ]

    def _tell(self, name: str, reading: Reading, settled: Settled, report: Report) -> None:
        """Note each move that remains, what it costs, and which ops it stands between."""
        graph, own = reading.graph, {tensor for tensor, _ in reading.places.values()}
        for tensor, start, end, users in graph.moves(settled.modes):
            steps = plan(start, end)
            elements = graph.tensors[tensor].elements * sum(step.moves for step in steps)
            if tensor not in settled.touched.intersection(own) or not elements:
                continue
            producer = graph.tensors[tensor].producer
            assert producer is not None
            maker = reading.nodes[producer[0]].op
            where = maker or _first_of(reading, tensor)
            kinds = dict.fromkeys(_kind(reading, user) for user in users)
            report.decline(
                name,
                where,
                "{:,.0f} elements move by {}: {} makes {}, {} needs {}",
                elements,
                " and ".join(step.kind for step in steps),
                _maker(where),
                _shape(reading, tensor, start),
                " and ".join(kinds),
                _shape(reading, tensor, end),
                rule="move",
            )


def _kind(reading: Reading, number: int | None) -> str:
    if any(each.relation == number for each in reading.accesses.values()):
        return "a state"
    op = None if number is None else reading.nodes[number].op
    return "an output" if op is None else op.op_type


def _first_of(reading: Reading, tensor: int) -> Any:
    return next(var for var, (number, _) in reading.places.items() if number == tensor)


def _maker(where: Any) -> str:
    if isinstance(where, Operation):
        return where.op_type
    return "an input" if where.op is None else "a state"


def _not_free(model: Model) -> str | None:
    """Why a model's inputs, outputs and states can't change."""
    if model.aside:
        return "the pass runs on some functions only"
    if LAYOUT_KEY in model.metadata:
        return "some have other layouts already"
    cache = CacheSignature.from_metadata(model.metadata)
    if cache is not None and (cache.stacked or cache.combined):
        return "several tensors of the cache are one"
    return None


def _kept(model: Model) -> dict[str, frozenset[str]]:
    """The names of images, by function: their layout is Core ML's."""
    if model.description is None:
        return {}
    sections: dict[str, Any] = {each.name: each for each in model.description.functions}
    sections.setdefault(model.default_function, model.description)
    return {
        name: frozenset(
            each.name for each in (*section.input, *section.output) if each.type.WhichOneof("Type") != "multiArrayType"
        )
        for name, section in sections.items()
    }


def _declare(model: Model, relaid: Mapping[str, list[Relaid]], report: Report) -> None:
    """Say in the metadata what is laid out otherwise."""
    if not relaid:
        return
    signature = LayoutSignature({name: tuple(several) for name, several in relaid.items()})
    cache = CacheSignature.from_metadata(model.metadata)
    if cache is not None:
        model.metadata[METADATA_KEY] = signature.stored_cache(cache).to_json()
    model.metadata[LAYOUT_KEY] = signature.to_json()
    for name, several in relaid.items():
        for each in several:
            before, after = (" x ".join(map(str, shape)) for shape in (each.public, each.stored))
            report.notes.append(f"{name}: {each.name} is {after}, no longer {before}")


def _shape(reading: Reading, tensor: int, layout: Layout) -> str:
    """A layout as a reader knows it: (1, 256, 1, 64)."""
    shape: list[str] = []
    for axis in layout:
        size: Any = 1
        for piece in axis:
            size = size * reading.dims[tensor][piece]
        shape.append("s" if is_symbolic(size) else str(size))
    return f"({', '.join(shape)})"
