"""From what a user gave to what a function takes; and numbers for what the user left out."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from milopt.cli.reading import Given
from milopt.errors import MiloptError
from milopt.interpreter import Plan, ValueInfo
from milopt.interpreter.values import is_float
from milopt.package import Model
from milopt.prediction import Predictor
from milopt.prediction.images import MODES, ImageInput
from milopt.verify.drawing import Style, draw
from milopt.verify.roles import roles_of

__all__ = ["arrays_for"]

Array = npt.NDArray[Any]


def arrays_for(model: Model, predictor: Predictor, given: Given, *, seed: int | None) -> dict[str, Array]:
    """What ``predictor.plan`` takes: what was given, defaults, and with a ``seed`` random values for what is missing.

    Unlike Core ML, floats are not cut to integers. Images are brought into the colour space of the description; their
    size must be right. MiloptError says what was expected.
    """
    known = {name: _fitting(predictor, name, value) for name, value in given.items() if name in predictor.inputs}
    missing = [name for name, each in predictor.inputs.items() if name not in given and not each.optional]
    if seed is None or not missing or len(known) < len(given):
        return predictor.arrays({**given, **known})
    arrays = {
        name: each.read(known[name]) if name in known else each.default() for name, each in predictor.inputs.items()
    }
    return {**arrays, **_random(model, predictor, arrays, missing, known, seed)}


def _fitting(predictor: Predictor, name: str, value: Any) -> Any:
    port = predictor.inputs[name]
    array: Array | None = None if hasattr(value, "getbands") else value  # as PIL images have
    if isinstance(port, ImageInput):
        if array is None:
            return _converted(name, value, MODES[port.colors])
        wanted = str(port).removeprefix(f"{name} ")
        raise MiloptError(f"input {name!r} must be a .png or .jpg file, {wanted}; got {_described(array)}")
    info = predictor.plan.inputs[name]
    if array is None or not _is_kind(info, array):
        raise MiloptError(f"input {name!r} must be {info}, got {'an image' if array is None else _described(array)}")
    return array


def _described(array: Array) -> str:
    return f"{array.dtype}{list(array.shape)}"


def _is_kind(info: ValueInfo, value: Array) -> bool:
    if is_float(info.dtype):
        return value.dtype.kind in "fiu"
    if info.dtype == "bool":
        return value.dtype.kind == "b" or (value.dtype.kind in "iu" and bool(np.isin(value, (0, 1)).all()))
    return value.dtype.kind in "iu"


def _converted(name: str, image: Any, mode: str) -> Any:
    if image.mode == mode:
        return image
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            raise MiloptError(f"input {name!r}: the image is transparent in places, which the model can't take")
    return image.convert(mode)


def _random(
    model: Model, predictor: Predictor, arrays: dict[str, Array], missing: list[str], known: Given, seed: int
) -> dict[str, Array]:
    """Values that suit each input's role; of the described default shape, but for symbols that given inputs fix."""
    plan = predictor.plan
    images = frozenset(name for name, each in predictor.inputs.items() if isinstance(each, ImageInput))
    roles = roles_of(model.functions[plan.function], images)
    sizes = _sizes(plan, arrays, known)
    shapes = {name: _shape(plan.inputs[name], arrays[name].shape, sizes) for name in missing}
    columns = [shapes.get(name, arrays[name].shape) for name, role in roles.items() if role.kind == "mask"]
    context = max((shape[-1] for shape in columns if shape), default=None)
    rng = np.random.default_rng(seed)
    return {
        name: draw(plan.inputs[name], shapes[name], roles[name], rng, Style(ordinary=True), context) for name in missing
    }


def _sizes(plan: Plan, arrays: dict[str, Array], known: Given) -> dict[str, int]:
    """The sizes of symbols in the inputs that were given."""
    return {
        dim: size
        for name in known
        for dim, size in zip(plan.inputs[name].shape or (), arrays[name].shape, strict=False)
        if isinstance(dim, str)
    }


def _shape(info: ValueInfo, default: tuple[int, ...], sizes: dict[str, int]) -> tuple[int, ...]:
    dims = info.shape or ()
    return tuple(
        sizes.get(dim, size) if isinstance(dim, str) else size for dim, size in zip(dims, default, strict=True)
    )
