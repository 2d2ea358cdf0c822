"""A model as it is now, ready to be run, whatever passes do to it afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from milopt.interpreter import Plan, Precision, compile
from milopt.mil import Function, dtype_name, is_state, shape_of
from milopt.package import Model
from milopt.verify.lending import LentWeights
from milopt.verify.roles import Role, roles_of

__all__ = ["Flexible", "Frozen", "freeze"]


@dataclass(frozen=True)
class Flexible:
    """The sizes an input may take: one default shape, and either a range per dimension or a list of shapes."""

    default: tuple[int, ...]
    ranges: tuple[tuple[int, int], ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Frozen:
    """What :func:`compare` needs of a model: plans, and what its inputs mean. The weights are shared, not copied.

    ``rounded`` holds the same in other precisions.
    """

    plans: dict[str, Plan]
    default_function: str
    metadata: dict[str, str]
    roles: dict[str, dict[str, Role]]
    flexible: dict[str, dict[str, Flexible]]
    argmax: dict[str, frozenset[str]]
    opsets: dict[str, str]
    weights: LentWeights
    rounded: Mapping[Precision, Frozen] = field(default_factory=dict["Precision", "Frozen"])

    @property
    def precision(self) -> Precision:
        return self.weights.precision


def freeze(model: Model, *, precision: Precision = "float64", also: Iterable[Precision] = ()) -> Frozen:
    """A snapshot of ``model`` that later passes don't change; ``also`` adds snapshots in other precisions.

    It holds no copies of weights but while it is compared, so that many snapshots of a large model fit in memory.
    """
    functions, (plans, weights) = model.functions, _plans(model, precision)
    frozen = Frozen(
        plans=plans,
        default_function=model.default_function,
        metadata=dict(model.metadata),
        roles={name: roles_of(each, _images(model, name)) for name, each in functions.items()},
        flexible={name: _flexible(model, name, each) for name, each in functions.items()},
        argmax={name: _indices_of_largest(each) for name, each in functions.items()},
        opsets={name: f"CoreML{int(each.opset_version) - 1}" for name, each in functions.items()},
        weights=weights,
    )
    others = {each: _plans(model, each) for each in also}
    return replace(
        frozen,
        rounded={each: replace(frozen, plans=plans, weights=weights) for each, (plans, weights) in others.items()},
    )


def _plans(model: Model, precision: Precision) -> tuple[dict[str, Plan], LentWeights]:
    weights = LentWeights(precision)
    return {name: compile(model, name, precision=precision, weights=weights) for name in model.functions}, weights


def _features(model: Model, function: str) -> Iterable[Any]:
    """The input descriptions of a function, where the package has some."""
    if (description := model.description) is None:
        return ()
    for section in description.functions:
        if section.name == function:
            return tuple(section.input)
    return tuple(description.input) if function == model.default_function else ()


def _images(model: Model, function: str) -> frozenset[str]:
    return frozenset(each.name for each in _features(model, function) if each.type.WhichOneof("Type") == "imageType")


def _flexible(model: Model, function: str, graph: Function) -> dict[str, Flexible]:
    described = {each.name: _described(each) for each in _features(model, function)}
    declared = {each.name: _declared(each.shape) for each in graph.input_types or ()}
    found = {name: described.get(name) or declared.get(name) for name in graph.inputs}
    ranks = {name: len(shape_of(var)) for name, var in graph.inputs.items() if not is_state(var)}
    return {name: each for name, each in found.items() if each is not None and len(each.default) == ranks.get(name)}


def _described(feature: Any) -> Flexible | None:
    if feature.type.WhichOneof("Type") != "multiArrayType":
        return None
    array = feature.type.multiArrayType
    return Flexible(
        tuple(array.shape),
        # an upper bound of -1 means none
        tuple((each.lowerBound, each.upperBound) for each in array.shapeRange.sizeRanges),
        tuple(tuple(each.shape) for each in array.enumeratedShapes.shapes),
    )


def _declared(shape: Any) -> Flexible | None:
    """The same of a coremltools ``Shape`` or ``EnumeratedShapes``, which programs in a conversion carry."""
    if shape is None or any(not isinstance(size, int) for size in shape.default):
        return None
    default = tuple(shape.default)
    if hasattr(shape, "shapes"):
        return Flexible(default, shapes=tuple(tuple(each.shape) for each in shape.shapes))
    bounds = tuple((getattr(dim, "lower_bound", dim), getattr(dim, "upper_bound", dim)) for dim in shape.shape)
    return Flexible(default, ranges=bounds) if all(isinstance(b, int) for pair in bounds for b in pair) else None


def _indices_of_largest(function: Function) -> frozenset[str]:
    """Outputs that say where something is largest: close to a tie, they may differ between good programs."""
    makers = ("reduce_argmax", "reduce_argmin", "topk", "argsort")
    found: set[str] = set()
    for var in function.outputs:
        op = var.op
        while op is not None and op.op_type in ("cast", "expand_dims", "squeeze", "reshape", "identity"):
            op = op.inputs["x"].op
        label = op is not None and op.op_type == "classify" and var is op.outputs[0]
        if label or (op is not None and op.op_type in makers and dtype_name(var).startswith(("int", "uint"))):
            found.add(var.name)
    return frozenset(found)
