"""Programs for the passes that repair fp16: masked attention scores, residual streams, angles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from milopt.mil import Function, Program, Var, mb, target, types
from milopt.testing.naming import rename_all
from milopt.testing.notes import noted
from milopt.testing.scope import Draw, Scope

__all__ = ["broken_masks", "broken_streams", "half_angles", "masked", "streams"]

F16 = np.float16
_FILLS = (-np.inf, -65504.0, -5e4, -4e4)
_MASKINGS = ("add", "select", "where", "table", "product", "attention")
_BREAKS = ("output", "relu", "row", "no fp16", "kept", "factor")


def masked() -> st.SearchStrategy[Program]:
    """Scores and a mask that fp16 can't hold, or can't add up, in one of the spellings in use."""
    return _masked(False)


def broken_masks() -> st.SearchStrategy[Program]:
    """The same, but for something that makes the fill more than a mask, or harmless."""
    return _masked(True)


@st.composite
def _masked(draw: Draw, broken: bool) -> Program:
    how = draw(st.sampled_from(_MASKINGS))
    odd: str = draw(st.sampled_from(_BREAKS)) if broken else ""
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(2, 5))
    fill = draw(st.sampled_from(_FILLS))
    wide = odd == "no fp16"
    number: Any = np.float32 if wide else F16
    kind = types.fp32 if wide else types.fp16
    fill = 0.0 if odd == "kept" else fill
    seen = np.tri(rows, columns, columns - rows, dtype=bool)
    seen[:, 0] = odd != "row"
    fixed = np.where(seen & (odd != "row"), 0, fill).astype(number)[None, None]
    specs = {"x": mb.placeholder(shape=(1, 2, rows, columns), dtype=kind)}
    if how in ("select", "where"):
        specs["mask"] = mb.placeholder(shape=(1, 1, rows, columns), dtype=types.bool)
    if how == "product":
        specs["mask"] = mb.placeholder(shape=(1, 1, 1, columns), dtype=types.int32)
    program = Program()
    with Function(specs, opset_version=target.iOS18) as function:
        x, mask = function.inputs["x"], function.inputs.get("mask")
        outputs: list[Var] = []
        if how == "select":
            scores = mb.select(cond=mask, a=x, b=number(fill))
        elif how == "where":
            full = np.full((1, 1, rows, columns), fill if wide else max(fill, -3e38), np.float32)
            choice = mb.select(cond=mask, a=np.zeros_like(full), b=full)
            scores = mb.add(x=x, y=choice if wide else mb.cast(x=choice, dtype="fp16"))
        elif how == "table":
            held = mb.const(val=np.concatenate([fixed, np.zeros_like(fixed)], 2))
            scores = mb.add(x=x, y=mb.slice_by_index(x=held, begin=[0, 0, 0, 0], end=[1, 1, rows, columns]))
        elif how == "product":
            kept = mb.sub(x=number(1), y=mb.cast(x=mask, dtype="fp32" if wide else "fp16"))
            kept = mb.add(x=kept, y=number(0.5)) if odd == "factor" else kept
            # 0 * -inf is NaN, with which nothing can be compared
            scores = mb.add(x=x, y=mb.mul(x=kept, y=number(max(fill, -5e4))))
        else:
            scores = mb.add(x=x, y=fixed)
        if odd == "relu":
            outputs.append(mb.relu(x=scores))
        if odd == "output":
            outputs.append(mb.identity(x=scores))
        if how == "attention" and not wide:
            outputs.append(mb.scaled_dot_product_attention(query=x, key=x, value=x, attn_mask=_square(fixed, rows)))
        outputs.append(mb.softmax(x=scores, axis=-1))
        function.set_outputs(outputs)
    rename_all(function)
    program.add_function("main", function)
    return noted(program, f"changed: {odd}") if odd else program


def _square(fixed: Any, rows: int) -> Any:
    """A mask of keys as many as queries; each may see the first."""
    mask = np.repeat(fixed[..., :1], rows, -1)
    mask[..., 1:] = fixed.min()
    return mask


def streams() -> st.SearchStrategy[Program]:
    """Sums that reach 30,000 and more, and flow into norms: their limit is 16384."""
    return _stream(False)


def broken_streams() -> st.SearchStrategy[Program]:
    """The same with something that is no norm, or numbers of ordinary size."""
    return _stream(True)


@st.composite
def _stream(draw: Draw, broken: bool) -> Program:
    rng = np.random.default_rng(draw(st.integers(0, 9999)))
    odd: str = draw(st.sampled_from(["small", "output", "relu", "epsilon"])) if broken else ""
    width, last = 16, draw(st.booleans())
    norm = _layer_norm if draw(st.booleans()) else _safe_norm
    table = rng.standard_normal((8, width)).astype(F16)
    table[:, 3] = 1 if odd == "small" else draw(st.sampled_from([3e4, 5e4, -6e4]))
    program = Program()

    def weight() -> Any:
        return (rng.standard_normal((width, width)) / 4).astype(F16)

    with Function({"ids": mb.placeholder(shape=(1, 3), dtype=types.int32)}, opset_version=target.iOS17) as function:
        x = mb.gather(x=table, indices=function.inputs["ids"], axis=0)
        outputs: list[Var] = []
        for _ in range(draw(st.integers(1, 3))):
            hidden = mb.relu(x=mb.linear(x=norm(x, odd), weight=weight()))
            made = mb.linear(x=hidden, weight=weight(), bias=rng.standard_normal(width).astype(F16))
            spelling = draw(st.sampled_from(["plain", "moved", "shared", "scaled", "bias"]))
            if spelling == "moved":
                made = mb.reshape(x=mb.reshape(x=made, shape=[3, width]), shape=[1, 3, width])
            if spelling == "shared":
                outputs.append(mb.tanh(x=made))
            if spelling == "scaled":
                made = mb.mul(x=made, y=np.linspace(0.5, 1.5, width).astype(F16))
            if spelling == "bias":
                made = mb.add(x=made, y=np.linspace(-1, 1, width).astype(F16))
            x = mb.add(x=x, y=made)
        if odd == "relu":
            outputs.append(mb.relu(x=x))
        if last:
            x = mb.slice_by_index(x=x, begin=[0, 1, 0], end=[1, 3, width])
        outputs.append(x if odd == "output" else norm(x, odd))
        function.set_outputs(outputs)
    rename_all(function)
    program.add_function("main", function)
    return noted(program, f"changed: {odd}") if odd else program


def _layer_norm(x: Var, odd: str) -> Var:
    # a fourth of the second is no fp16 number
    made: Var = mb.layer_norm(x=x, axes=[-1], epsilon=F16(3 * 2.0**-24 if odd == "epsilon" else 2.0**-10))
    return made


def _safe_norm(x: Var, odd: str) -> Var:
    """What fp16-safe-norm writes, with an epsilon of (2**-9)²."""
    if odd == "epsilon":
        return _layer_norm(x, odd)
    largest = mb.maximum(x=mb.reduce_max(x=mb.abs(x=x), axes=[-1], keep_dims=True), y=F16(2.0**-9))
    scale = mb.real_div(x=F16(4), y=largest)
    scaled = mb.mul(x=x, y=scale)
    part = mb.mul(x=scale, y=F16(2.0**-9))
    mean = mb.reduce_mean(x=mb.mul(x=scaled, y=scaled), axes=[-1], keep_dims=True)
    root = mb.rsqrt(x=mb.add(x=mean, y=mb.mul(x=part, y=part)), epsilon=F16(0))
    made: Var = mb.mul(x=x, y=mb.mul(x=scale, y=root))
    return made


def half_angles(draw: Draw, values: Sequence[Var]) -> Var:
    """fp16 positions times powers of two, which fp16 holds: what is restored of them is what they are."""
    assert isinstance(values, Scope)
    length, half = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    positions = values.input((1, length), "int32")
    column = mb.cast(x=mb.expand_dims(x=positions, axes=[-1]), dtype="fp16")
    angles = mb.mul(x=column, y=np.array([2.0**-each for each in range(half)], F16))
    if draw(st.booleans()):
        angles = mb.add(x=angles, y=F16(0.5))
    if draw(st.booleans()):
        angles = mb.transpose(x=angles, perm=[0, 2, 1])
    made: Var = mb.concat(values=[angles, angles], axis=-1) if angles.shape[-1] == half else angles
    return made
