"""A head that chooses within each slice of the vocabulary, as ``--argmax`` of Anemll 0.3.5 makes it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from milopt.mil import Function, Var, building_in, mb, shape_of
from milopt.package import Model
from milopt.sets.anemll_running import ARGMAX
from milopt.sets.renaming import claim, free
from milopt.signature_head import HeadSignature

__all__ = ["chosen_sizes", "give_largest"]

_PASSED_ON = frozenset({"cast", "reshape", "squeeze", "expand_dims", "identity", "transpose"})


def give_largest(head: Model, split: HeadSignature) -> None:
    """logits1, logits2, ... (1, 1, words) -> ``argmax_idx`` int32 and ``argmax_val`` fp16, both (slices,).

    The place of each slice's largest logit, counted from the slice's beginning, and that logit; of equal ones it is
    the first. (llama_converter.py of Anemll 0.3.5, convert_part_3.)
    """
    function = head.function()
    given = {var.name: var for var in function.outputs}
    slices = [given[name] for name in split.names]
    rank = slices[0].rank
    with building_in(function):
        places = [mb.reduce_argmax(x=each, axis=-1, keep_dims=True, name=_free(function, "place")) for each in slices]
        values = [mb.reduce_max(x=each, axes=[-1], keep_dims=True, name=_free(function, "value")) for each in slices]
        made: list[Var] = []
        for name, parts in zip(ARGMAX, (places, values), strict=True):
            claim(function, name)
            joined = mb.concat(values=parts, axis=rank - 1, name=_free(function, "joined"))
            made.append(mb.reshape(x=joined, shape=np.array([len(parts)], np.int32), name=name))
    function.set_outputs(made)
    function.output_types = None


def _free(function: Function, stem: str) -> str:
    return free(function, f"argmax_{stem}")


def chosen_sizes(function: Function) -> tuple[int, ...]:
    """The sizes of the slices that ``argmax_idx`` is chosen from, in order; empty where that can't be seen."""
    output = next((var for var in function.outputs if var.name == ARGMAX[0]), None)
    return tuple(_sizes(output)) if output is not None else ()


def _sizes(var: Var) -> Iterator[int]:
    op = var.op
    if op is None:
        return
    if op.op_type == "reduce_argmax":
        size = shape_of(op.inputs["x"])[int(op.inputs["axis"].val)]
        yield int(size) if isinstance(size, int) else 0
    elif op.op_type == "concat":
        for each in op.inputs["values"]:
            yield from _sizes(each)
    elif op.op_type in _PASSED_ON:
        yield from _sizes(op.inputs["x"])
