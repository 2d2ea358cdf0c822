"""One attention with its cache in a few ops, for tests of every line that the passes on caches write."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from milopt.mil import Function, Program, get_new_symbol, mb, target, types
from milopt.package import Model, load
from milopt.text import text

__all__ = ["HEADS", "SIZE", "Extra", "golden", "named", "small"]

HEADS, SIZE = 2, 4

Extra = Callable[[dict[str, Any], dict[str, Any]], Sequence[Any]]


def small(
    query: Any = 1,
    past: Any = 5,
    *,
    perm: Sequence[int] = (0, 1, 2, 3),
    apart: Sequence[int] = (),
    returned: str | Sequence[str] = "all",
    kind: Any = types.fp16,
    layers: int = 1,
    counter: Sequence[Any] | None = None,
    masks: Sequence[str] = ("mask",),
    extra: Extra | None = None,
    opset: Any = target.iOS18,
) -> Model:
    """Attention of x, (1, H, Q, D), over ``past`` and Q columns, any number of them for ``None``.

    Pasts ``past_k0``, ``past_v0``... and presents ``k0``... have the axes of (1, H, S, D) in the order ``perm``, and
    axes of size 1 at ``apart`` besides;
    ``returned`` is all, new or kept. ``counter`` is the shape of another input, int32. Layers take masks in turn;
    ``past`` and ``returned`` may be of each layer.
    """
    length = get_new_symbol() if query is None else query
    open_ = get_new_symbol(), get_new_symbol()
    given: list[Any] = [*past] if isinstance(past, tuple) else [past] * layers
    pasts = [open_[0] if past is None else each for each in given]
    forms = [returned] * layers if isinstance(returned, str) else [*returned]

    def shape(slots: Any) -> list[Any]:
        turned = [(1, HEADS, slots, SIZE)[at] for at in perm]
        for at in sorted(apart):
            turned.insert(at, 1)
        return turned

    axis = next(at for at, dim in enumerate(shape("slots")) if dim == "slots")
    inputs = {"x": mb.placeholder((1, HEADS, length, SIZE), types.fp16)}
    if counter is not None:
        inputs["counter"] = mb.placeholder([length if dim == "q" else dim for dim in counter], types.int32)
    for at, before in enumerate(pasts):
        over = (1, 1, length, open_[1] if past is None else before + length)
        inputs.setdefault(masks[at % len(masks)], mb.placeholder(over, types.fp16))
    for at, before in enumerate(pasts):
        inputs |= {f"past_{what}{at}": mb.placeholder(shape(before), kind) for what in "kv"}
    with Function(inputs, opset_version=opset) as made:
        args, presents, found = dict(made.inputs), list[Any](), dict[str, Any]()
        x = args["x"]
        for layer, form in enumerate(forms):
            wholes: list[Any] = []
            for what, factor in (("k", 0.5), ("v", 2)):
                name = f"{what}{layer}"
                new = mb.mul(x=x, y=np.float16(factor), name=f"new_{name}")
                if tuple(perm) != (0, 1, 2, 3):
                    new = mb.transpose(x=new, perm=list(perm), name=f"turned_{name}")
                if apart:
                    new = mb.expand_dims(x=new, axes=list(apart), name=f"apart_{name}")
                if form == "new":
                    new = mb.identity(x=new, name=f"fresh_{name}" if kind is not types.fp16 else name)
                held = args[f"past_{name}"]
                if kind is not types.fp16:
                    held = mb.cast(x=held, dtype="fp16", name=f"narrow_{name}")
                found[f"new_{name}"] = new
                whole = found[name] = _joined(held, new, axis, name, form, wide=kind is not types.fp16)
                presents.append(_present(whole, new, axis, length, name, form, wide=kind is not types.fp16))
                if apart:
                    whole = mb.squeeze(x=whole, axes=list(apart), name=f"together_{name}")
                if tuple(perm) != (0, 1, 2, 3):
                    whole = mb.transpose(x=whole, perm=np.argsort(perm).tolist(), name=f"back_{name}")
                wholes.append(whole)
            mask = args[masks[layer % len(masks)]]
            x = mb.scaled_dot_product_attention(
                query=x, key=wholes[0], value=wholes[1], attn_mask=mask, name=f"mixed{layer}"
            )
        more = [] if extra is None else list(extra(args, found))
        made.set_outputs([x, *presents, *more])
    program = Program()
    program.add_function("main", made)
    model = load(program)
    if past is None:
        model.metadata["milopt.context"] = "6"
    return model


def _joined(held: Any, new: Any, axis: int, name: str, returned: str, *, wide: bool) -> Any:
    final = returned == "all" and not wide
    return mb.concat(values=[held, new], axis=axis, name=name if final else f"whole_{name}")


def _present(whole: Any, new: Any, axis: int, length: int, name: str, returned: str, *, wide: bool) -> Any:
    value = new if returned == "new" else whole
    if returned == "kept":
        begin, end = [0] * whole.rank, [int(dim) for dim in whole.shape]
        begin[axis] = length
        last = f"last_{name}" if wide else name
        value = mb.slice_by_index(x=whole, begin=begin, end=end, name=last)
    return mb.cast(x=value, dtype="fp32", name=name) if wide else value


def named(made: Model) -> list[str]:
    """The canonical text by the names of all values, without types of what is computed."""
    names = [var.name for op in made.function().operations if op.op_type != "const" for var in op.outputs]
    head, *body = text(made).splitlines()
    inputs = re.sub(r", (?=%)", "\n", head[head.index("(") + 1 : head.rindex(")")])
    lines = [re.sub(r"(%\d+): [^=]*?(?=, %| = )", r"\1", line).strip() for line in body if line.startswith("  %")]
    told = "\n".join([inputs, *lines, "-> " + ", ".join(var.name for var in made.function().outputs)])
    return re.sub(r"%(\d+)\b", lambda found: names[int(found[1])], told).replace("%", "").splitlines()


def golden(file: str) -> dict[str, list[str]]:
    """The sections of a file of expected texts, each under a line with its title."""
    sections = (Path(__file__).parent / file).read_text(encoding="utf-8").split("# ")[1:]
    return {title: lines for title, *lines in (section.strip().splitlines() for section in sections)}
