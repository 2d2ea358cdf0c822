"""Functions: their interface, what their ops are, and the blocks nested in them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from milopt.census import op_counts
from milopt.inspection.features import Feature, feature_of
from milopt.mil import Block, Function, constant, is_state, operations
from milopt.opaque import Opaque
from milopt.package import Model
from milopt.package.describing import section_of

__all__ = ["BlockFacts", "Classifier", "FunctionFacts", "Nested", "facts_of"]


@dataclass(frozen=True)
class BlockFacts:
    """A block inside an op; ``ops`` counts by type, deeper blocks included and constants left out."""

    inputs: int
    outputs: int
    ops: dict[str, int]
    nested: tuple[Nested, ...]


@dataclass(frozen=True)
class Nested:
    """An op that holds blocks."""

    name: str
    type: str
    blocks: tuple[BlockFacts, ...]


@dataclass(frozen=True)
class Classifier:
    """What a classifier predicts: its labels, and the names of the outputs that hold the best and all of them."""

    labels: tuple[str | int, ...]
    label_output: str
    probabilities_output: str


@dataclass(frozen=True)
class FunctionFacts:
    """One function. ``ops`` counts by type as in :class:`BlockFacts`; ``opaque`` those that coremltools can't build."""

    name: str
    opset: str
    inputs: tuple[Feature, ...]
    outputs: tuple[Feature, ...]
    states: tuple[Feature, ...]
    ops: dict[str, int]
    nested: tuple[Nested, ...]
    opaque: dict[str, int]
    classifier: Classifier | None


def facts_of(model: Model, name: str) -> FunctionFacts:
    """What there is to say of the function ``name``."""
    function, section = model.function(name), section_of(model, name)
    described = {
        part: {each.name: each for each in getattr(section, part, ())} for part in ("input", "output", "state")
    }
    inputs = [var for var in function.inputs.values() if not is_state(var)]
    states = [var for var in function.inputs.values() if is_state(var)]
    return FunctionFacts(
        name,
        function.opset_version.name,
        tuple(feature_of(var, described["input"].get(var.name)) for var in inputs),
        tuple(feature_of(var, described["output"].get(var.name)) for var in function.outputs),
        tuple(feature_of(var, described["state"].get(var.name)) for var in states),
        dict(op_counts(function).most_common()),
        _nested(function),
        dict(Counter(op.op_type for op in operations(function) if isinstance(op, Opaque)).most_common()),
        _classifier(function, section),
    )


def _nested(block: Block) -> tuple[Nested, ...]:
    return tuple(Nested(op.name, op.op_type, tuple(map(_block, op.blocks))) for op in block.operations if op.blocks)


def _block(block: Block) -> BlockFacts:
    counts = Counter(op.op_type for op in operations(block) if op.op_type != "const")
    return BlockFacts(len(block.inputs), len(block.outputs), dict(counts.most_common()), _nested(block))


def _classifier(function: Function, section: Any) -> Classifier | None:
    label = str(getattr(section, "predictedFeatureName", ""))
    every = str(getattr(section, "predictedProbabilitiesName", ""))
    found = [op for op in operations(function) if op.op_type == "classify"]
    if not (found or label or every):
        return None
    classes: Any = constant(found[0].inputs.get("classes")) if found else None
    items: list[Any] = [] if classes is None else list(classes)
    labels = tuple(str(each) if isinstance(each, str) else int(each) for each in items)
    return Classifier(labels, label, every)
