"""A program's weights that come from quantized matrices become the ``constexpr_*`` ops that give the very same floats.

The conversion knows of every weight which elements of which parameter it has. The parameter's scales are arranged
likewise, :mod:`milopt.huggingface.fitting` looks for a form, and what has none stays as it is, with the reason.

Importing this module imports torch; milopt does so only while it converts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from milopt.building import Builder
from milopt.huggingface.attaching import Attached
from milopt.huggingface.bands import bands
from milopt.huggingface.fitting import best_form
from milopt.huggingface.forms import Form
from milopt.huggingface.kept import Fate, Kept
from milopt.huggingface.origins import Grid, Origin, Quantized
from milopt.huggingface.standins import View
from milopt.huggingface.viewing import blocks_of
from milopt.mil import Operation, Program, Var, constant, dtype_name, operations, value_names, weight_key
from milopt.package.packing import pack
from milopt.passes.compressing import constant_of, put_in_place, spread
from milopt.passes.uses import Place
from milopt.reports import NoMatch
from milopt.spool import Slot, Spool

__all__ = ["keep_quantized"]

Array: TypeAlias = Any  # numpy.ndarray; its generic form is more than pyright strict can follow

_MOVED = "its blocks do not stay whole in the model"
_ELSEWHERE = "the program has no weight of its elements alone"


@dataclass
class _Weight:
    """Elements of a quantized matrix in a program, and where they are."""

    elements: Quantized
    view: View
    array: Array
    places: list[Place] = field(default_factory=list[Place])
    slots: dict[str, tuple[Slot, tuple[int, ...]]] = field(default_factory=dict[str, tuple[Slot, tuple[int, ...]]])
    text: str = ""
    reason: str = ""
    nbytes: int = 0
    rounded: int = 0


def keep_quantized(program: Program, attached: Attached, origins: Sequence[Origin], *, keep: bool = True) -> Kept:
    """Put the forms of all weights into ``program``, and tell what became of the matrices ``origins``.

    With ``keep=False`` all stay floats. One weight at a time is in memory, on each core; forms lie in a file without a
    name.
    """
    weights = _weights(program, attached)
    spool = Spool()
    sizes = [each.array.nbytes for each in weights]
    for weight, (form, reason) in zip(weights, spread("keep", _jobs(weights, keep), sizes), strict=True):
        weight.nbytes, weight.reason = weight.array.nbytes, reason
        if form is None:
            weight.rounded = _rounded(weight)
            continue
        weight.text, weight.nbytes = form.text, form.nbytes
        weight.slots = {name: (_stored(spool, each), each.array.shape) for name, each in form.tensors.items()}
    spool.finish()
    taken = {name: value_names(function) for name, function in program.functions.items()}
    for weight in weights:
        if weight.slots:
            _write(weight, spool, taken)
    return Kept(tuple(_fates(origins, weights)))


def _weights(program: Program, attached: Attached) -> list[_Weight]:
    known = {weight_key(array): (View(*key), array) for key, array in attached.arrays.items()}
    found: dict[object, _Weight] = {}
    for name, function in program.functions.items():
        for op in operations(function):
            if op.op_type != "const" or not _is_float(op):
                continue
            key = weight_key(constant(op.outputs[0])) if np.ndim(constant(op.outputs[0])) else None
            view, array = known.get(key, (None, None)) if key is not None else (None, None)
            if view is None or not isinstance(view.parameter.elements, Quantized):
                continue
            weight = found.setdefault(key, _Weight(view.parameter.elements, view, array))
            weight.places.append(Place(name, op))
    return sorted(found.values(), key=lambda each: -each.array.size)


def _is_float(op: Operation) -> bool:
    return hasattr(op.outputs[0], "dtype") and dtype_name(op.outputs[0]) in ("fp16", "fp32")


def _jobs(weights: Iterable[_Weight], keep: bool) -> Any:
    for weight in weights:
        yield (_form_of, (weight.view, weight.elements.origin, weight.array)) if keep else (_none, ())


def _none() -> tuple[None, str]:
    return None, "floats were asked for"


def _form_of(view: View, origin: Origin, array: Array) -> tuple[Form | None, str]:
    """The form, and why it is not one that takes less."""
    if origin.grid is None:
        return None, origin.beyond or _MOVED
    grid = origin.grid
    tables = blocks_of(view, grid.tables)
    if tables is None:
        return None, _MOVED
    scales, levels = _scales(view, grid), None if grid.levels is None else np.asarray(grid.levels, np.float32)
    form, reason = best_form(array, scales, levels, tables.counts)
    return form, "; ".join(filter(None, (origin.beyond, reason))) if form is None else ""


def _scales(view: View, grid: Grid) -> Array:
    if grid.scales is None:
        return None
    scales: Any = grid.scales()
    rows, columns = scales.shape
    blocks = blocks_of(view, (rows, columns))
    return None if blocks is None else blocks.taken(np.asarray(scales.numpy()))


def _rounded(weight: _Weight) -> int:
    """How many numbers the type of the program has no place for."""
    real: Any = weight.view.real()
    count, array = 0, weight.array
    for band in bands(array.shape, (1,) * array.ndim):
        exact: Array = real[band.rows].float().numpy()
        count += int(np.count_nonzero(array[band.rows].astype(np.float32) != exact))
    return count


def _stored(spool: Spool, tensor: Any) -> Slot:
    bits = int("".join(filter(str.isdigit, tensor.dtype)))
    data = tensor.array.reshape(-1) if bits >= 8 else pack(tensor.array.reshape(-1), bits)
    return spool.add(data, tensor.dtype, int(tensor.array.size))


def _write(weight: _Weight, spool: Spool, taken: dict[str, set[str]]) -> None:
    tensors = {name: (spool.flat(slot), shape) for name, (slot, shape) in weight.slots.items()}
    for place in weight.places:
        op = Builder(place.op, taken[place.function])
        try:
            made = _built(op, tensors)
        except NoMatch as why:
            op.undo()
            weight.text, weight.nbytes, weight.reason = "", weight.array.nbytes, str(why)
            return
        put_in_place(place, made)


def _built(op: Builder, tensors: dict[str, tuple[Any, tuple[int, ...]]]) -> Var:
    given = {name: constant_of(op, name, tensor, shape) for name, (tensor, shape) in tensors.items()}
    if "indices" not in given:
        made: Var = op.constexpr_blockwise_shift_scale(**given)
        return made
    dense: Var = op.constexpr_lut_to_dense(indices=given["indices"], lut=given["lut"])
    if "scale" not in given:
        return dense
    scaled: Var = op.constexpr_blockwise_shift_scale(data=dense, scale=given["scale"])
    return scaled


def _fates(origins: Sequence[Origin], weights: Sequence[_Weight]) -> Iterable[Fate]:
    of: dict[int, list[_Weight]] = {}
    twins: dict[int, int] = {}
    for weight in weights:
        first = id(weight.elements.origin)
        of.setdefault(first, []).append(weight)
        twins.update({id(each): first for each in weight.elements.twins})
    for origin in origins:
        # what two matrices share counts with the first
        own, made = of.get(id(origin), []), of.get(twins.get(id(origin), id(origin)), [])
        floats = next((each for each in made if not each.text), None)
        yield Fate(
            origin.name,
            origin.kind,
            origin.nbytes,
            sum(each.nbytes for each in own),
            made[0].text if made and floats is None else "",
            _ELSEWHERE if not made else floats.reason if floats is not None else "",
            sum(each.rounded for each in own),
            sum(int(each.array.size) for each in own),
        )
