"""Programs near the shapes that coremltools' passes look for: with constants, axes and operands a little off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from hypothesis import reject
from hypothesis import strategies as st

from milopt.mil import Function, Program, Target, Var, flat, get_new_symbol, mb, target, types
from milopt.testing.naming import rename_all
from milopt.testing.scope import REFUSALS, Draw

__all__ = ["NEAR", "near"]

# (inputs by name as (shape, dtype), what to build of them)
Build: TypeAlias = Callable[..., Any]


@dataclass
class Drawn:
    """Random choices in the words that the drawings below use."""

    draw: Draw

    def pick(self, *options: Any) -> Any:
        return self.draw(st.sampled_from(options))

    def number(self, low: int, high: int) -> int:
        made: int = self.draw(st.integers(low, high))
        return made

    def rarely(self) -> bool:
        return self.number(0, 4) == 4

    def off(self, value: float) -> Any:
        """The number, or one near it."""
        return np.float32(value * self.pick(1, 1, 1, 1, 1, 1 + 1e-5, 1 + 1e-4, 1 + 1e-3, 1 - 4e-4, 2, -1))

    def array(self, *shape: int) -> Any:
        source = np.random.default_rng(self.number(0, 999))
        return (source.integers(-8, 9, shape) / 4).astype(np.float32)

    def order(self, op: str, x: Any, y: Any) -> Any:
        """A binary op with its operands in either order."""
        x, y = (x, y) if self.pick(True, True, False) else (y, x)
        return getattr(mb, op)(x=x, y=y)

    def shape(self, rank: int, *, low: int = 1, high: int = 4) -> tuple[int, ...]:
        return tuple(self.number(low, high) for _ in range(rank))

    def program(self, build: Build, *, opset: Target | None = None, **inputs: Any) -> Program:
        """``inputs`` are shapes, or (shape, dtype); ``build`` gives the outputs, of which more may be made ones."""
        specs: dict[str, Any] = {}
        for name, given in inputs.items():
            shape, dtype = given if given and isinstance(given[-1], str) else (given, "fp32")
            specs[name] = mb.placeholder(shape=shape, dtype=types.string_to_builtin(dtype))
        made = Program()
        with Function(specs, opset_version=opset or self.pick(target.iOS15, target.iOS17, target.iOS18)) as function:
            outputs = list(flat(build(**function.inputs)))
            if self.rarely():  # a value on the way is needed elsewhere too
                between = [op.outputs[0] for op in function.operations if op.op_type != "const"]
                extra = self.pick(*between)
                outputs.append(mb.relu(x=extra) if extra.dtype == types.fp32 and self.pick(True, False) else extra)
            function.set_outputs([var for var in dict.fromkeys(outputs) if isinstance(var, Var)])
        rename_all(function)
        made.add_function("main", function)
        return made


def gelu_exact(d: Drawn) -> Program:
    def build(x: Var) -> Any:
        inner = mb.real_div(x=x, y=d.off(2**0.5)) if d.pick(True, False) else d.order("mul", x, d.off(2**-0.5))
        one = d.order("add", mb.erf(x=inner), d.off(1.0))
        half = d.off(0.5)
        form = d.pick("a", "b", "c")
        if form == "a":
            return d.order("mul", d.order("mul", one, half), x)
        if form == "b":
            return d.order("mul", d.order("mul", one, x), half)
        return d.order("mul", d.order("mul", x, half), one)

    return d.program(build, x=d.shape(d.number(1, 3)))


def gelu_tanh(d: Drawn) -> Program:
    def build(x: Var) -> Any:
        cube = mb.pow(x=x, y=d.off(3.0))
        inner = d.order("add", x, d.order("mul", cube, d.off(0.044715)))
        scaled = d.order("mul", inner, d.off(0.7978845834732056))
        one = d.order("add", mb.tanh(x=scaled), d.off(1.0))
        if d.pick(True, False):
            return d.order("mul", d.order("mul", one, d.off(0.5)), x)
        return d.order("mul", d.order("mul", x, d.off(0.5)), one)

    return d.program(build, x=d.shape(3))


def leaky_relu(d: Drawn) -> Program:
    def build(x: Var) -> Any:
        alpha = np.float32(d.pick(0.25, 0.5, 0.0, 1.0, 1.5, -0.5))
        alpha = d.pick(alpha, alpha, np.full((1,) * d.number(1, 3), alpha, np.float32))
        return d.order("maximum", d.order("mul", x, alpha), x)

    return d.program(build, x=d.shape(d.number(1, 3)))


def prelu(d: Drawn) -> Program:
    channels = d.number(1, 3)
    last = d.pick(True, False)

    def build(x: Var) -> Any:
        root = mb.transpose(x=x, perm=d.pick([0, 2, 3, 1], [0, 2, 3, 1], [0, 3, 2, 1])) if last else x
        shape = d.pick((channels,), (1, 1, 1, channels)) if last else d.pick((1, channels, 1, 1), (channels, 1, 1))
        alpha = d.array(*shape)
        negative = mb.relu(x=d.order("mul", root, d.off(-1.0)))
        return d.order("add", d.order("mul", negative, alpha), mb.relu(x=root))

    side = d.number(1, 3)
    return d.program(build, x=(d.number(1, 2), channels, side, d.pick(side, channels)))


def prelu_op(d: Drawn) -> Program:
    channels = d.number(1, 3)

    def build(x: Var) -> Any:
        alpha: Any = np.full(channels, d.pick(0.25, -0.5), np.float32)
        alpha[-1] = d.off(float(alpha[-1]))
        return mb.prelu(x=x, alpha=alpha)

    return d.program(build, x=(1, channels, 2, 2))


def layer_norm(d: Drawn) -> Program:
    rank = d.number(3, 4)
    shape = d.shape(rank, low=2, high=3)
    axes: list[int] = d.pick([-1], [rank - 1], [2, 3][: rank - 2], [-2, -1], [1], [1, 2])
    gamma_shape: Any = d.pick(tuple(shape[a] for a in axes), (1, shape[1], *[1] * (rank - 2)), (shape[-1],), ())

    def build(x: Var) -> Any:
        keep = d.pick(True, True, True, True, False)
        epsilon = np.float32(d.pick(1e-5, 1e-3, 0.25))
        mean = mb.reduce_mean(x=x, axes=axes, keep_dims=True)
        middle = mb.sub(x=x, y=mean) if not d.rarely() else mb.sub(x=mean, y=x)
        power = d.pick("square", "pow", "mul")
        base = middle if d.pick(True, False) else mb.sub(x=x, y=mean)
        squares = (
            mb.square(x=base)
            if power == "square"
            else mb.pow(x=base, y=d.off(2.0))
            if power == "pow"
            else mb.mul(x=base, y=base)
        )
        variance = mb.reduce_mean(x=squares, axes=axes if not d.rarely() else [-1], keep_dims=keep)
        total = d.order("add", variance, epsilon)
        gamma, beta = d.array(*gamma_shape), d.array(*gamma_shape)
        form = d.pick("rsqrt", "sqrt", "pow", "tf")
        if form == "tf":
            scale = d.order("mul", mb.rsqrt(x=total), gamma)
            shift = mb.sub(x=beta, y=d.order("mul", mean, scale))
            return d.order("add", d.order("mul", x, scale), shift)
        if form == "rsqrt":
            normal = d.order("mul", middle, mb.rsqrt(x=total))
        elif form == "pow":
            normal = mb.real_div(x=middle, y=mb.pow(x=total, y=d.off(0.5)))
        else:
            normal = mb.real_div(x=middle, y=mb.sqrt(x=total))
        if d.rarely():
            return normal
        return d.order("add", d.order("mul", normal, gamma), beta)

    return d.program(build, x=shape)


def _conv(d: Drawn, x: Any, rank: int, inner: int, outer: int) -> Var:
    """A convolution or its transpose of ``x``, of ``inner`` to ``outer`` channels."""
    kernel = d.shape(rank, low=1, high=2)
    groups = d.pick(1, 1, inner) if inner == outer else 1
    given: dict[str, Any] = {"bias": d.array(outer)} if d.pick(True, False) else {}
    given["pad_type"] = d.pick("valid", "same")
    given["strides"] = [d.number(1, 2)] * rank
    if d.pick(True, False):
        made: Var = mb.conv(x=x, weight=d.array(outer, inner // groups, *kernel), groups=groups, **given)
        return made
    turned: Var = mb.conv_transpose(x=x, weight=d.array(inner, outer // groups, *kernel), groups=groups, **given)
    return turned


def conv_batch_norm(d: Drawn) -> Program:
    inner, outer, rank = d.number(1, 3), d.number(1, 3), d.number(1, 2)

    def build(x: Var) -> Any:
        y = _conv(d, x, rank, inner, outer)
        given: dict[str, Any] = {"mean": d.array(outer), "variance": np.abs(d.array(outer)) + np.float32(0.5)}
        if d.pick(True, False):
            given |= {"gamma": d.array(outer), "beta": d.array(outer)}
        return mb.batch_norm(x=y, epsilon=np.float32(d.pick(1e-5, 0.25)), **given)

    return d.program(build, x=(d.number(1, 2), inner, *d.shape(rank, low=2)))


def conv_then_binary(d: Drawn) -> Program:
    inner, outer, rank = d.number(1, 3), d.number(1, 3), d.number(1, 2)
    size = d.pick(1, outer, 2, 3)

    def build(x: Var) -> Any:
        y = _conv(d, x, rank, inner, outer)
        op = d.pick("mul", "real_div", "add", "sub")
        ones = [1] * rank
        shape = d.pick(
            (), (1,), (1, outer, *ones), (outer, *ones), (outer,), (1, *ones), (1, 1, *ones), (1, 1, size)[: rank + 1]
        )
        number = d.array(*shape)
        number = np.where(number == 0, np.float32(1), number).astype(np.float32)
        if rank == 1 and d.rarely():
            y = mb.transpose(x=y, perm=[0, 2, 1])
        return d.order(op, y, number if number.ndim else np.float32(number))

    return d.program(
        build, x=(d.number(1, 2), inner, *([size] * rank if d.pick(True, False) else d.shape(rank, low=2)))
    )


def pad_conv(d: Drawn) -> Program:
    channels = d.number(1, 2)

    def build(x: Var) -> Any:
        mode = d.pick("constant", "constant", "reflect", "replicate")
        pad = d.pick([0, 0, 1, 1, 1, 1, 0, 0], [1, 0, 0, 1], [0, 0, 0, 1, 1, 0, 0, 1], [1, 1, 1, 0, 0, 0])
        padded = mb.pad(x=x, pad=pad, mode=mode, constant_val=np.float32(d.pick(0, 0, 1)))
        moved = mb.transpose(x=padded, perm=d.pick([0, 3, 1, 2], [0, 3, 2, 1], [3, 0, 1, 2]))
        return mb.conv(x=moved, weight=d.array(2, moved.shape[1], 1, 1))

    return d.program(build, x=(1, d.number(2, 3), d.number(2, 3), channels + 1))


def paddings(d: Drawn) -> Program:
    def build(x: Var) -> Any:
        y: Any = x
        for _ in range(2):
            mode = d.pick("constant", "constant", "reflect", "replicate")
            axes = d.number(1, 2)
            pad = [d.number(0, 2) for _ in range(2 * axes)]
            given = {"constant_val": np.float32(d.pick(0, 0, 1))} if mode == "constant" else {}
            y = mb.pad(x=y, pad=pad, mode=mode, **given)
        return y

    return d.program(build, x=d.shape(3, low=3, high=4))


def reflection(d: Drawn) -> Program:
    """Slices of the edges, put around a value."""

    def build(x: Var) -> Any:
        axis, width = d.pick(-1, 3, -2, 2), x.shape[-1]
        at = axis % 4
        pieces: list[Any] = []
        for place in d.pick([1, None, -2], [2, 1, None, -2, -3], [1, None], [0, None, -1], [-2, None, 1]):
            if place is None:
                pieces.append(x)
                continue
            begin, end = [0] * 4, list(x.shape)
            begin[at], end[at] = place % width, place % width + 1
            masks = [i != at for i in range(4)]
            pieces.append(mb.slice_by_index(x=x, begin=begin, end=end, begin_mask=masks, end_mask=masks))
        return mb.concat(values=pieces, axis=axis)

    side = d.number(3, 4)
    return d.program(build, x=(1, d.number(1, 2), side, side))


def repeated(d: Drawn) -> Program:
    """One op twice or more, with a parameter of its own each time."""
    rank = d.number(2, 4)
    shape = d.shape(rank)

    def build(x: Var) -> Any:
        y: Any = x
        kind = d.pick("relu", "reshape", "transpose", "cast", "squeeze")
        for _ in range(d.number(2, 3)):
            if kind == "relu":
                y = getattr(mb, d.pick("relu", "relu", "relu6"))(x=y)
            elif kind == "reshape":
                y = mb.reshape(x=y, shape=d.pick([-1], list(shape), list(shape[::-1]), [1, -1], [0, -1]))
            elif kind == "transpose":
                y = mb.transpose(x=y, perm=list(d.draw(st.permutations(range(rank)))))
            elif kind == "cast":
                y = mb.cast(x=y, dtype=d.pick("int32", "fp32", "bool"))
            else:
                y = mb.expand_dims(x=y, axes=[d.pick(0, 1, -1)])
                y = mb.squeeze(x=y, axes=[d.pick(0, 1, -1)]) if d.pick(True, False) else y
        return y

    return d.program(build, x=shape)


def squeeze_expand(d: Drawn) -> Program:
    def build(x: Var) -> Any:
        y = mb.squeeze(x=x, axes=d.pick([0], [2], [0, 2]))
        return mb.expand_dims(x=y, axes=d.pick([0], [2], [1], [0, 2], [-1]))

    return d.program(build, x=(1, d.pick(1, 2), 1, d.pick(1, 2)))


def transposed(d: Drawn) -> Program:
    """Transposes around ops that a transpose can be pushed through."""
    shape = d.pick((2, 3, 4), (1, 2, 3, 2), (2, 2, 2), (2, 2, 2, 2))
    rank = len(shape)

    def build(x: Var) -> Any:
        perm = list(d.draw(st.permutations(range(rank))))
        back = [perm.index(i) for i in range(rank)]
        y: Any = mb.transpose(x=x, perm=perm)
        for _ in range(d.number(1, 3)):
            y = _through(d, y, rank)
        if y.rank != rank:
            return y
        return mb.transpose(x=y, perm=back if not d.rarely() else perm)

    return d.program(build, x=shape)


def _through(d: Drawn, y: Any, rank: int) -> Any:
    kind = d.pick("relu", "add", "mul", "concat", "split", "pad", "reduce", "softmax", "self", "leaky", "instance")
    axis = d.pick(*range(-y.rank, y.rank))
    if kind in ("add", "mul"):
        shape = d.pick(tuple(y.shape), (), (y.shape[-1],), (1,) * y.rank, tuple(y.shape[1:]))
        number = d.array(*shape)
        return d.order(kind, y, number if number.ndim else np.float32(number))
    if kind == "self":
        return d.order(d.pick("add", "maximum"), y, mb.tanh(x=y))
    if kind == "concat":
        return mb.concat(values=[y, mb.relu(x=y)], axis=axis)
    if kind == "split" and y.shape[axis] % 2 == 0:
        parts = mb.split(x=y, num_splits=2, axis=axis)
        return mb.sub(x=parts[0], y=parts[1]) if d.pick(True, False) else mb.concat(values=parts[::-1], axis=axis)
    if kind == "pad":
        return mb.pad(x=y, pad=[d.number(0, 1) for _ in range(2 * d.pick(1, y.rank))])
    if kind == "reduce":
        given: dict[str, Any] = d.pick({"keep_dims": True}, {"keep_dims": True}, {"keep_dims": False})
        return getattr(mb, d.pick("reduce_mean", "reduce_mean", "reduce_sum"))(x=y, axes=[axis], **given)
    if kind == "softmax":
        return mb.softmax(x=y, axis=axis)
    if kind == "leaky":
        return mb.leaky_relu(x=y, alpha=np.float32(0.25))
    return mb.relu(x=y)


def stack_split(d: Drawn) -> Program:
    shape = d.shape(2)

    def build(x: Var, z: Var) -> Any:
        axis = d.number(0, 2)
        stacked = mb.stack(values=[x, z] if not d.rarely() else [z, x, x], axis=axis)
        along = axis if not d.rarely() else d.number(0, 2)
        count = stacked.shape[along]
        if count < 2:
            return mb.relu(x=stacked)
        sizes = [1] * count if not d.rarely() else [count - 1, 1]
        parts = mb.split(x=stacked, split_sizes=sizes, axis=along)
        return [mb.squeeze(x=each, axes=[along]) if each.shape[along] == 1 else each for each in parts]

    return d.program(build, x=shape, z=shape)


def stack_reshape(d: Drawn) -> Program:
    shape = d.shape(d.number(2, 4))

    def build(x: Var, z: Var) -> Any:
        axis = d.pick(*range(-len(shape) - 1, len(shape) + 1))
        stacked = mb.stack(values=[x, z], axis=axis)
        at = d.number(0, len(shape) - 1)
        joined = list(shape)
        joined[at] *= 2
        return mb.reshape(x=stacked, shape=joined)

    return d.program(build, x=shape, z=shape)


def interleaved(d: Drawn) -> Program:
    n, (b, c, h, w) = d.number(2, 3), d.shape(4, high=3)

    def build(**inputs: Var) -> Any:
        joined = mb.concat(values=list(inputs.values()), axis=d.pick(1, -3, -3, 2))
        first = [b, n, c, h, w] if not d.rarely() else [b, c, n, h, w]
        split = mb.reshape(x=joined, shape=first)
        moved = mb.transpose(x=split, perm=[0, 2, 1, 3, 4] if not d.rarely() else [0, 1, 2, 4, 3])
        return mb.reshape(x=moved, shape=d.pick([b, n * c, h, w], [b, -1, h, w], [b, n * c, w, h]))

    inputs: dict[str, Any] = {f"x{i}": (b, c, h, w) for i in range(n)}
    return d.program(build, **inputs)


def pixel_shuffle(d: Drawn) -> Program:
    shape = d.shape(4, high=3)

    def build(x: Var, z: Var) -> Any:
        flags = [not d.rarely() for _ in range(3)]
        values = [[d.pick(x, z), d.pick(x, z)] for _ in range(2)]
        rows = [
            mb.concat(values=each, axis=2 if not d.rarely() else -2, interleave=flag)
            for each, flag in zip(values, flags, strict=False)
        ]
        return mb.concat(values=rows, axis=3 if not d.rarely() else -1, interleave=flags[2])

    return d.program(build, x=shape, z=shape)


def one_hot(d: Drawn) -> Program:
    rank = d.number(1, 2)
    depth = d.number(1, 3)
    shape = d.pick((depth,) * rank, d.shape(rank))

    def build(ids: Var) -> Any:
        axis = d.pick(-1, -1, rank, rank - 1, -2)
        hot = mb.one_hot(
            indices=ids,
            one_hot_vector_size=depth,
            axis=axis,
            on_value=d.off(1.0),
            off_value=np.float32(d.pick(0, 0, 5e-4)),
        )
        return mb.matmul(x=hot, y=d.array(hot.shape[-1], 2))

    return d.program(build, ids=(shape, "int32"))


def batch_norm_of_elements(d: Drawn) -> Program:
    channels = d.number(1, 3)

    def build(x: Var) -> Any:
        shapes = [d.pick((1, channels, 1, 1), (channels, 1, 1), (1, 1, 1, channels)) for _ in range(2)]
        return d.order("add", d.order("mul", x, d.array(*shapes[0])), d.array(*shapes[1]))

    return d.program(build, x=(d.pick(1, 2), d.pick(1, channels), 2, d.pick(1, channels)))


def mean_as_sum(d: Drawn) -> Program:
    shape = d.shape(d.number(2, 4), low=1)

    def build(x: Var) -> Any:
        axis = d.pick(*range(-len(shape), len(shape)))
        axes = [axis] if not d.rarely() else [0, 1]
        total = mb.reduce_sum(x=x, axes=axes, keep_dims=d.pick(True, False))
        count = float(np.prod([shape[each] for each in axes]))
        if d.pick(True, False):
            return d.order("mul", total, d.off(1 / count))
        return d.order("real_div", total, d.off(count))

    return d.program(build, x=shape)


def divisions(d: Drawn) -> Program:
    def build(x: Var) -> Any:
        shape = d.pick((), tuple(x.shape), (x.shape[-1],))
        number = d.array(*shape)
        number = np.where(number == 0, np.float32(3), number).astype(np.float32)
        return d.order("real_div", x, number if number.ndim else np.float32(number))

    return d.program(build, x=d.shape(2))


def selections(d: Drawn) -> Program:
    shape = d.shape(2, high=3)

    def build(x: Var, z: Var) -> Any:
        cond: Any = np.array(d.draw(st.lists(st.booleans(), min_size=shape[1], max_size=shape[1])))
        cond = d.pick(cond, np.full(shape, True), np.full(shape, False), np.tile(cond, (shape[0], 1)))
        infinite = np.full(d.pick(shape, (1, 1), shape[1:]), d.pick(np.inf, -np.inf), np.float32)
        a, b = d.pick((x, z), (infinite, x), (x, infinite), (x, d.array(*shape)))
        return mb.select(cond=cond, a=a, b=b)

    return d.program(build, x=d.pick(shape, (1, shape[1])), z=shape)


def scalars(d: Drawn) -> Program:
    def build(x: Var) -> Any:
        y = mb.reduce_sum(x=x, axes=[0], keep_dims=False)
        y = d.order(d.pick("add", "sub", "mul", "real_div"), y, np.float32(d.pick(2, -0.5)))
        made: list[Any] = [mb.expand_dims(x=y, axes=[0])]
        if d.pick(True, False):
            made.append(mb.relu(x=y))
        if d.rarely():
            made.append(mb.expand_dims(x=y, axes=[0]))
        return made

    return d.program(build, x=d.shape(1))


def conv1d(d: Drawn) -> Program:
    inner, outer = d.number(1, 2), d.number(1, 2)

    def build(x: Var) -> Any:
        wide = mb.expand_dims(x=x, axes=[d.pick(-2, 2, -1, 3)])
        weight = d.array(outer, inner, *d.pick((1, 2), (1, 1), (2, 1)))
        given: dict[str, Any] = {"bias": d.array(outer)} if d.pick(True, False) else {}
        given["strides"] = d.pick([1, 1], [1, 2], [2, 1])
        y = mb.conv(x=wide, weight=weight, pad_type=d.pick("valid", "same"), **given)
        y = mb.relu(x=y) if d.rarely() else y
        return mb.squeeze(x=y, axes=[d.pick(-2, -2, 2)])

    return d.program(build, x=(1, inner, d.number(2, 4)))


def dilated(d: Drawn) -> Program:
    """A convolution between ``space_to_batch`` and ``batch_to_space``, as TensorFlow writes a dilated one."""
    factor = [d.number(1, 2), d.number(1, 2)]
    kernel = [d.number(1, 3), d.number(1, 3)]
    size = [d.number(2, 4), d.number(2, 4)]
    taps = [f * (k - 1) + 1 for f, k in zip(factor, kernel, strict=True)]
    same = d.pick(True, False)
    pads: list[list[int]] = []
    crops: list[list[int]] = []
    for n, f, t in zip(size, factor, taps, strict=True):
        start, end = ((t - 1) // 2, t - 1 - (t - 1) // 2) if same else (0, 0)
        start += d.rarely()
        extra = -(n + start + end) % f
        pads.append([start, end + extra])
        crops.append([0, extra if not d.rarely() else 0])

    def build(x: Var) -> Any:
        y = mb.space_to_batch(x=x, block_shape=factor, paddings=pads)
        y = mb.conv(x=y, weight=d.array(2, 2, *kernel), pad_type="valid" if not d.rarely() else "same")
        return mb.batch_to_space(x=y, block_shape=factor, crops=crops)

    return d.program(build, x=(d.number(1, 2), 2, *size))


def linear_bias(d: Drawn) -> Program:
    width, inner = d.number(1, 3), d.number(1, 3)

    def build(x: Var) -> Any:
        given = {"bias": d.array(width)} if d.pick(True, False) else {}
        y = mb.linear(x=x, weight=d.array(width, inner), **given)
        shape = d.pick((width,), (1, width), (1, 1, width), (1,))
        return d.order(d.pick("add", "sub"), y, d.array(*shape))

    return d.program(build, x=(*d.shape(d.number(1, 2)), inner))


def matmul_bias(d: Drawn) -> Program:
    side, other = d.number(1, 3), d.number(1, 3)
    other = d.pick(side, other)

    def build(x: Var) -> Any:
        weight = d.array(*d.pick((side, other), (other, side), (side, side)))
        flips = {"transpose_x": d.pick(False, False, True), "transpose_y": d.pick(False, False, True)}
        y = mb.matmul(x=x, y=weight, **flips) if d.pick(True, True, False) else mb.matmul(x=weight, y=x, **flips)
        number = d.array(*d.pick((y.shape[-1],), (1, y.shape[-1]), (y.shape[-2], 1), (side,)))
        return d.order(d.pick("add", "sub"), y, number)

    return d.program(build, x=(*d.shape(d.number(0, 1)), d.pick(side, other), side))


def transposed_matmul(d: Drawn) -> Program:
    rank = d.number(2, 3)
    side = d.number(2, 3)

    def build(x: Var, z: Var) -> Any:
        operands: list[Any] = []
        for each in (x, z):
            perm = d.draw(st.permutations(range(rank)))
            operands.append(mb.transpose(x=each, perm=list(perm)) if d.pick(True, False) else each)
        flips = {"transpose_x": d.pick(False, True), "transpose_y": d.pick(False, True)}
        return mb.matmul(x=operands[0], y=operands[1], **flips)

    return d.program(build, x=(side,) * rank, z=(side,) * rank)


def integers(d: Drawn) -> Program:
    def build(x: Var, n: Var) -> Any:
        y = mb.gather(x=x, indices=n, axis=d.pick(0, -1, 1))
        z = getattr(mb, d.pick("add", "floor_div", "mod", "sub", "mul", "real_div"))(
            x=n, y=np.int32(d.pick(1, 2, 0, -1))
        )
        return [y, mb.cast(x=mb.cast(x=z, dtype=d.pick("fp32", "bool", "int32")), dtype="int32")]

    return d.program(build, x=(3, 3), n=((d.number(1, 3),), "int32"))


def quantized(d: Drawn) -> Program:
    opset = d.pick(target.iOS17, target.iOS18)
    kind = d.pick("int8", "uint8")
    per_axis = d.pick(True, False)

    def scales(axis: int | None, size: int) -> dict[str, Any]:
        shape = (size,) if axis is not None else ()
        given: dict[str, Any] = {"scale": np.full(shape, d.pick(0.25, 0.5, 1.0), np.float32)}
        if axis is not None:
            given["axis"] = np.int32(axis)
        if d.pick(True, False):
            given["zero_point"] = np.full(shape, d.pick(0, 0, 1, 3), kind)
        return given

    def build(x: Var, z: Var) -> Any:
        axis = d.pick(0, 1, -1) if per_axis else None
        first = scales(axis, 2)
        code = mb.quantize(input=x, output_dtype=kind, **first)
        second = first if not d.rarely() else scales(axis, 2)
        back = mb.dequantize(input=code, **second)
        form = d.pick("pair", "again", "binary")
        if form == "pair":
            return mb.relu(x=back)
        if form == "again":
            return mb.dequantize(input=mb.quantize(input=back, output_dtype=kind, **second), **second)
        other = scales(None, 2)
        right = mb.dequantize(input=mb.quantize(input=z, output_dtype=kind, **other), **other)
        total = d.order(d.pick("add", "sub", "mul"), back, right)
        last = scales(None, 2)
        return mb.dequantize(input=mb.quantize(input=total, output_dtype=kind, **last), **last)

    return d.program(build, opset=opset, x=(2, 2), z=(2, 2))


def dequantized_constant(d: Drawn) -> Program:
    def build(x: Var) -> Any:
        data = np.array([[-3, 0, 7], [1, 2, -128]], np.int8)
        axis = d.pick(None, 0, 1, -1)
        shape = () if axis is None else (data.shape[axis],)
        given: dict[str, Any] = {"scale": np.abs(d.array(*shape)) + np.float32(0.25)}
        given["scale"] = given["scale"].astype(np.float32) if axis is not None else np.float32(given["scale"])
        if axis is not None:
            given["axis"] = np.int32(axis)
        if d.pick(True, False):
            given["zero_point"] = np.full(shape, d.pick(0, 2, -5), np.int8)
        dense = mb.dequantize(input=data, **given)
        if d.pick(True, False):
            dense = mb.transpose(x=dense, perm=[1, 0])
        return d.order(d.pick("mul", "add"), x, dense) if dense.shape == (2, 3) else mb.matmul(x=x, y=dense)

    return d.program(build, opset=d.pick(target.iOS17, target.iOS18), x=(2, 3))


def high_rank(d: Drawn) -> Program:
    shape = d.shape(6, high=2)

    def build(x: Var) -> Any:
        y = mb.reshape(x=x, shape=list(shape))
        y = mb.transpose(x=y, perm=list(d.draw(st.permutations(range(6)))))
        return mb.reshape(x=y, shape=d.pick([-1], [1, -1], [-1, int(y.shape[-1])]))

    return d.program(build, x=(int(np.prod(shape)),))


def no_ops(d: Drawn) -> Program:
    shape = d.shape(2)

    def build(x: Var) -> Any:
        kind = d.pick("elementwise", "linear_activation", "slice", "pad", "tile", "clip", "pow", "band", "upsample")
        if kind == "elementwise":
            value = np.float32(d.pick(0, 1, 1e-4, 1 + 1e-4))
            form = d.pick((), (1,), shape, (2, *shape), (1, 1, 1))
            number = np.full(form, value, np.float32)
            op = d.pick("add", "sub", "mul", "real_div", "floor_div", "pow")
            return d.order(op, x, number if form else value) if value or op in ("add", "sub", "mul") else mb.relu(x=x)
        if kind == "linear_activation":
            return mb.linear_activation(x=x, alpha=d.off(1.0), beta=np.float32(d.pick(0, 0, 1e-4)))
        if kind == "slice":
            return mb.slice_by_index(
                x=x,
                begin=[0, 0],
                end=list(shape),
                stride=d.pick([1, 1], [1, 1], [-1, 1]),
                begin_mask=[True, True],
                end_mask=[True, True],
            )
        if kind == "pad":
            return mb.pad(x=x, pad=d.pick([0, 0], [0, 0, 0, 0], [0, 1]))
        if kind == "tile":
            return mb.tile(x=x, reps=d.pick([1, 1], [1, 2]))
        if kind == "clip":
            return mb.clip(x=x, alpha=np.float32(d.pick(-np.inf, -1e9)), beta=np.float32(1e9))
        if kind == "pow":
            return mb.pow(x=mb.abs(x=x), y=d.off(1.0))
        if kind == "band":
            return mb.band_part(x=x, lower=d.pick(-1, 0), upper=-1)
        return mb.reshape(x=x, shape=d.pick(list(shape), [shape[0], -1]))

    def behind(x: Var) -> Any:
        return mb.tanh(x=build(x))

    return d.program(behind, x=shape)


def constants(d: Drawn) -> Program:
    """Ops on constants alone, next to values."""

    def build(x: Var) -> Any:
        held: Any = d.array(2, 3)
        held = mb.const(val=held)
        for _ in range(d.number(1, 3)):
            kind = d.pick("add", "tile", "concat", "reduce", "slice", "cast", "cumsum", "argsort", "resize", "softmax")
            if kind == "add":
                held = mb.mul(x=held, y=np.float32(0.5))
            elif kind == "tile":
                held = mb.tile(x=held, reps=[2, 1])
            elif kind == "concat":
                held = mb.concat(values=[held, held], axis=d.pick(0, -2), interleave=d.pick(False, True))
            elif kind == "slice":
                held = mb.slice_by_index(
                    x=held, begin=[-1, 0], end=[0, 3], stride=[-1, 1], begin_mask=[False, True], end_mask=[True, True]
                )
            elif kind == "cast":
                held = mb.cast(x=mb.cast(x=held, dtype="int32"), dtype="fp32")
            elif kind == "cumsum":
                held = mb.cumsum(x=held, axis=d.pick(0, -1), reverse=d.pick(False, True))
            elif kind == "softmax":
                held = mb.softmax(x=held, axis=d.pick(0, -1))
            elif kind == "argsort":
                held = mb.gather_along_axis(x=held, indices=mb.argsort(x=held, axis=0, ascending=True), axis=0)
            elif kind == "reduce":
                total = mb.reduce_mean(x=held, axes=[d.pick(0, -2)], keep_dims=True)
                held = mb.sub(x=held, y=total)
        held = mb.reduce_sum(x=held, axes=[0], keep_dims=True)
        return mb.add(x=x, y=held)

    return d.program(build, x=(2, 3))


def twice_the_same(d: Drawn) -> Program:
    """Equal ops on one value, and ops that are nearly equal."""

    def build(x: Var) -> Any:
        def one() -> Any:
            kind = d.pick("reduce", "transpose", "softmax", "mul", "topk")
            if kind == "reduce":
                return mb.reduce_sum(x=x, axes=[d.pick(0, 1, -1)], keep_dims=True)
            if kind == "transpose":
                return mb.transpose(x=x, perm=d.pick([0, 1], [1, 0]))
            if kind == "softmax":
                return mb.softmax(x=x, axis=d.pick(0, 1, -1))
            if kind == "mul":
                return d.order("sub", x, np.float32(d.pick(1, 2)))
            return mb.topk(x=x, k=2, axis=d.pick(0, 1), ascending=d.pick(True, False))[0]

        return [mb.tanh(x=one()) for _ in range(d.number(2, 4))]

    return d.program(build, x=(3, 3))


def loops(d: Drawn) -> Program:
    def build(x: Var) -> Any:
        start = mb.const(val=np.int32(0))

        def body(count: Var, y: Var, z: Var) -> Any:
            following = d.pick(y, mb.relu(x=y), mb.add(x=y, y=z))
            return mb.add(x=count, y=np.int32(1)), following, d.pick(z, z, y)

        def more(count: Var, y: Var, z: Var) -> Any:
            return mb.less(x=count, y=np.int32(2))

        made = mb.while_loop(_cond=more, _body=body, loop_vars=(start, x, mb.tanh(x=x)))
        return list(made[1:])

    return d.program(build, x=(2, 3))


def dynamic_linear(d: Drawn) -> Program:
    """A linear whose weight is computed, from constants as MIL demands."""

    def build(x: Var) -> Any:
        weight = mb.transpose(x=d.array(3, 2), perm=[1, 0])
        weight = mb.mul(x=weight, y=np.float32(2)) if d.pick(True, False) else weight
        given = {"bias": d.array(2)} if d.pick(True, False) else {}
        return mb.linear(x=x, weight=weight, **given)

    return d.program(build, x=(d.number(1, 2), 3))


def states(d: Drawn) -> Program:
    made = Program()
    specs: dict[str, Any] = {
        "x": mb.placeholder(shape=(2, 3), dtype=types.fp16),
        "s": mb.state_tensor_placeholder(shape=(2, 3), dtype=types.fp16),
    }
    with Function(specs, opset_version=target.iOS18) as function:
        x, s = function.inputs["x"], function.inputs["s"]
        outputs: list[Any] = []
        values: list[Any] = [x, mb.read_state(input=s)]
        for _ in range(d.number(1, 4)):
            kind = d.pick("read", "update", "slice", "add")
            if kind == "read":
                values.append(mb.read_state(input=s))
            elif kind == "update":
                values.append(mb.coreml_update_state(state=s, value=d.pick(*values)))
            elif kind == "slice":
                part = mb.slice_by_index(x=d.pick(*values), begin=[0, 0], end=[1, 3])
                values.append(mb.slice_update(x=d.pick(*values), update=part, begin=[1, 0], end=[2, 3]))
            else:
                values.append(mb.add(x=d.pick(*values), y=d.pick(*values)))
        outputs = [var for var in values[1:] if not var.child_ops] or [mb.relu(x=values[-1])]
        function.set_outputs(outputs)
    rename_all(function)
    made.add_function("main", function)
    return made


def symbolic_reshape(d: Drawn) -> Program:
    symbol = get_new_symbol()

    def build(x: Var) -> Any:
        shape = mb.shape(x=x)
        first = mb.slice_by_index(x=shape, begin=[0], end=[1])
        wanted = mb.concat(values=[first, np.array([d.pick(-1, 6)], np.int32)], axis=0)
        y = mb.reshape(x=x, shape=wanted)
        return mb.reshape(x=y, shape=d.pick([-1], [-1, 2, 3]))

    return d.program(build, x=(symbol, 2, 3))


NEAR: dict[str, Callable[[Drawn], Program]] = {
    each.__name__: each
    for each in (
        gelu_exact, gelu_tanh, leaky_relu, prelu, prelu_op, layer_norm, conv_batch_norm, conv_then_binary, pad_conv,
        paddings, reflection, repeated, squeeze_expand, transposed, stack_split, stack_reshape, interleaved,
        pixel_shuffle, one_hot, batch_norm_of_elements, mean_as_sum, divisions, selections, scalars, conv1d, dilated,
        linear_bias, matmul_bias, transposed_matmul, integers, quantized, dequantized_constant, high_rank, no_ops,
        constants, twice_the_same, loops, dynamic_linear, states, symbolic_reshape,
    )
}  # fmt: skip
"""By name, each drawing of a family of programs."""


def _attempt(draw: Draw, name: str) -> Program | None:
    try:
        return NEAR[name](Drawn(draw))
    except REFUSALS:
        return None


@st.composite
def near(draw: Draw, name: str) -> Program:
    """Programs of one family."""
    made = next((each for each in (_attempt(draw, name) for _ in range(3)) if each is not None), None)
    if made is None:
        reject()
    return made
