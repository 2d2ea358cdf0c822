"""The model's description: kept feature by feature where it still fits the program, rebuilt where it does not.

A model with one function called ``main`` is described at the top level; any other has one ``FunctionDescription`` per
function (iOS 18).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from coremltools.proto import Model_pb2

from milopt.errors import MiloptError, PackageError
from milopt.mil import Function, Target, Var, is_state
from milopt.package.features import new_feature
from milopt.package.fitting import fits
from milopt.package.origin import function_origin

if TYPE_CHECKING:
    from milopt.package.model import Model

__all__ = ["build_description", "describe", "note_description", "section_of", "text_of"]

_PARTS = ("input", "output", "state")


def build_description(model: Model) -> Any:
    """The ``ModelDescription`` to be saved with the program as it is now; the model's own is not changed."""
    result = copy.deepcopy(model.description) or Model_pb2.ModelDescription()
    for part in (*_PARTS, "functions"):
        result.ClearField(part)
    if _is_multifunction(model):
        if model.spec_version < Target.iOS18:
            raise PackageError(
                f"functions {', '.join(map(repr, model.functions))} need iOS18 (specification version 9); below it a "
                f"model has one function, called 'main'"
            )
        result.defaultFunctionName = model.default_function
        for name, function in model.functions.items():
            _fill(_function_description(result, model, name), model, name, function)
    else:
        result.ClearField("defaultFunctionName")
        _fill(result, model, model.default_function, model.function())
    _set_metadata(result, model)
    return result


def _is_multifunction(model: Model) -> bool:
    as_loaded = model.description is not None and len(model.description.functions) > 0
    return as_loaded or list(model.functions) != ["main"]


def _function_description(result: Any, model: Model, name: str) -> Any:
    """A new entry for the function, with all that the old one holds except its features."""
    fresh = result.functions.add(name=name)
    old = section_of(model, name)
    if old is not None:
        fresh.predictedFeatureName = old.predictedFeatureName
        fresh.predictedProbabilitiesName = old.predictedProbabilitiesName
    return fresh


def section_of(model: Model, function: str) -> Any:
    """Where the function is described now: its ``FunctionDescription``, the whole description, or ``None``."""
    description = model.description
    if description is None:
        return None
    if description.functions:
        return next((each for each in description.functions if each.name == function), None)
    return description if function == model.default_function else None


def _fill(section: Any, model: Model, name: str, function: Function) -> None:
    old = section_of(model, name)
    inputs = [var for var in function.inputs.values() if not is_state(var)]
    states = [var for var in function.inputs.values() if is_state(var)]
    declared = {each.name: each for each in function.input_types}
    returned = dict(zip((var.name for var in function.outputs), function.output_types or (), strict=False))
    version, origin = model.spec_version, function_origin(function)
    as_read = {} if origin is None else origin.described
    section.input.extend(_features(inputs, old and old.input, as_read, declared, version))
    section.output.extend(_features(function.outputs, old and old.output, as_read, returned, version, output=True))
    section.state.extend(_features(states, old and old.state, as_read, {}, version))


def note_description(model: Model) -> None:
    """Remember what a package says of values: nothing else is to be said while neither changes, even if it is odd."""
    for name, function in model.functions.items():
        origin, section = function_origin(function), section_of(model, name)
        if origin is not None and section is not None:
            kinds = {var.name: var.sym_type for var in (*function.inputs.values(), *function.outputs)}
            features = [feature for part in _PARTS for feature in getattr(section, part) if feature.name in kinds]
            origin.described = {each.name: (kinds[each.name], _bytes(each)) for each in features}


def _bytes(feature: Any) -> bytes:
    """Its type; the text may change."""
    content: bytes = feature.type.SerializeToString(deterministic=True)
    return content


def _features(
    values: Iterable[Var],
    old: Any,
    as_read: Mapping[str, tuple[Any, bytes]],
    declared: Mapping[str, Any],
    version: int,
    *,
    output: bool = False,
) -> Iterator[Any]:
    known = {feature.name: feature for feature in old or ()}
    wanted = {var.name: var for var in values}
    # Those that stay keep the order they were described in.
    for name in [*(name for name in known if name in wanted), *(name for name in wanted if name not in known)]:
        feature, var = known.get(name), wanted[name]
        if feature is not None and (as_read.get(name) == (var.sym_type, _bytes(feature)) or fits(feature, var)):
            yield feature
        else:
            yield new_feature(var, feature, declared.get(name), version, output=output)


def _set_metadata(description: Any, model: Model) -> None:
    texts = (model.author, model.license, model.version, model.short_description)
    if not any((*texts, model.metadata)) and not description.HasField("metadata"):
        return
    metadata = description.metadata
    metadata.author, metadata.license = model.author, model.license
    metadata.versionString, metadata.shortDescription = model.version, model.short_description
    metadata.userDefined.clear()
    metadata.userDefined.update(model.metadata)


def text_of(model: Model, function: str, name: str) -> str:
    """See :meth:`Model.text_of`."""
    section = section_of(model, function)
    found = [feature for part in _PARTS for feature in getattr(section, part, ()) if feature.name == name]
    return next((feature.shortDescription for feature in found if feature.shortDescription), "")


def describe(model: Model, function: str, name: str, text: str) -> None:
    """See :meth:`Model.describe`. A feature that is not described yet gets a text only; ``save`` adds its type."""
    graph = model.functions[function]
    values = {
        "input": [var.name for var in graph.inputs.values() if not is_state(var)],
        "output": [var.name for var in graph.outputs],
        "state": [var.name for var in graph.inputs.values() if is_state(var)],
    }
    parts = [part for part, names in values.items() if name in names]
    if not parts:
        everything = ", ".join(each for names in values.values() for each in names)
        raise MiloptError(f"function {function!r} has no input, output or state {name!r}; it has: {everything}")
    section = _section_to_write(model, function)
    for part in parts:
        features = getattr(section, part)
        feature = next((each for each in features if each.name == name), None)
        (features.add(name=name) if feature is None else feature).shortDescription = text


def _section_to_write(model: Model, function: str) -> Any:
    if model.description is None:
        model.description = Model_pb2.ModelDescription()
    section = section_of(model, function)
    if section is not None:
        return section
    description = model.description
    if not description.functions:  # the default function's features move into an entry of their own
        first = description.functions.add(name=model.default_function)
        for part in _PARTS:
            getattr(first, part).extend(getattr(description, part))
            description.ClearField(part)
    return description.functions.add(name=function)
