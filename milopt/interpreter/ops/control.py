"""Branches, loops and lists."""

from __future__ import annotations

from typing import Any

import torch

from milopt.interpreter.impls import Blocks, Elements, Impls, Ints, Labels, Tensor, Tensors

__all__ = ["control"]

control = Impls("control")


@control("cond")
def _(pred: bool, blocks: Blocks) -> list[Any]:
    true, false = blocks
    return true() if pred else false()


@control("while_loop")
def _(loop_vars: Tensors, blocks: Blocks) -> list[Any]:
    condition, body = blocks
    values = list(loop_vars)
    while condition(*values)[0].item():
        values = body(*values)
    return values


# Lists of floats are made in float64; what is read from them is put into the dtype of the run.
_DTYPES = {"bool": torch.bool, "int32": torch.int32}


@control("make_list")
def _(elem_shape: Labels, init_length: int = 1, dynamic_length: bool = True, dtype: str = "fp32") -> Elements:
    """Strings in ``elem_shape`` name dimensions that are known when the program runs."""
    shape = tuple(int(size) if not isinstance(size, str) else None for size in elem_shape)
    return Elements((None,) * init_length, shape, _DTYPES.get(dtype, torch.float64))


@control("list_length")
def _(ls: Elements) -> Tensor:
    return torch.tensor(len(ls.items), dtype=torch.int32)


@control("list_read", moves=True, shares="ls")
def _(ls: Elements, index: int) -> Tensor:
    return ls.read(index)


@control("list_gather", moves=True)
def _(ls: Elements, indices: Ints) -> Tensor:
    return torch.stack([ls.read(index) for index in indices])


@control("list_write", moves=True, shares="ls value")
def _(ls: Elements, index: int, value: Tensor) -> Elements:
    return ls.written({index: value})


@control("list_scatter", moves=True, shares="ls value")
def _(ls: Elements, indices: Ints, value: Tensor) -> Elements:
    return ls.written(dict(zip(indices, value, strict=True)))


@control("classify")
def _(probabilities: Tensor, classes: Labels) -> tuple[str | Tensor, Tensor]:
    """The label of the greatest probability, and the probabilities in the order of the classes.

    Core ML gives the second as a dictionary from label to probability.
    """
    flat = probabilities.reshape(-1)
    label = classes[int(flat.argmax())]
    return (label if isinstance(label, str) else torch.tensor(label)), flat
