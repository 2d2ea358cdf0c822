"""Programs of the older opsets that use what changed, with inputs at the edges of what the ops define."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from milopt.mil import Function, Program, flat, get_new_symbol, mb, target, types

Arrays = dict[str, Any]
Build = Callable[[Any], Any]  # of a namespace with the program's inputs, and what is fixed in it


@dataclass(frozen=True)
class Case:
    """A program, and inputs for it; ``translated`` are the op types that have to be translated in it.

    ``build`` is given the values of the inputs, and what is ``fixed``.
    """

    name: str
    opset: target
    inputs: Arrays
    build: Build
    translated: tuple[str, ...] = ()
    symbolic: tuple[str, ...] = ()
    fixed: Arrays = field(default_factory=dict[str, Any])

    def program(self) -> Program:
        """A new program; of the inputs in ``symbolic`` all dimensions are open."""
        specs = {
            name: mb.placeholder(
                shape=tuple(get_new_symbol() for _ in each.shape) if name in self.symbolic else each.shape,
                dtype=types.numpy_type_to_builtin_type(each.dtype),
            )
            for name, each in self.inputs.items()
        }
        with Function(specs, opset_version=self.opset) as function:
            made = self.build(SimpleNamespace(**function.inputs, **self.fixed))
            function.set_outputs(list(flat(made)))
        program = Program()
        program.add_function("main", function)
        return program


CASES: list[Case] = []


def _add(
    name: str,
    build: Build,
    *,
    opset: target = target.iOS15,
    changes: str = "",
    free: str = "",
    fixed: Arrays | None = None,
    **inputs: Any,
) -> None:
    CASES.append(Case(name, opset, inputs, build, tuple(changes.split()), tuple(free.split()), fixed or {}))


def numbers(*shape: int, dtype: Any = np.float32, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def name_of(kind: Any) -> str:
    found: Any = np.dtype(kind)
    return str(found.name)


def ints(values: Any, dtype: Any = np.int32) -> Any:
    return np.array(values, dtype)


# Indices: the least and the largest there are, -1, 0.
_ROWS = ints([[-1, 0], [3, -4], [2, 2]])

for _axis, _rows in ((0, _ROWS), (-1, ints([-3, 2, -1]))):
    _add(
        f"gather along {_axis}",
        lambda v: mb.gather(x=v.x, indices=v.i, axis=v.axis),
        fixed={"axis": _axis},
        changes="gather",
        x=numbers(4, 3),
        i=_rows,
    )
_add(
    "gather of constant places",
    lambda v: mb.gather(x=v.x, indices=ints([-1, 2, -4]), axis=0),
    changes="gather",
    x=numbers(4, 3),
)
_add(
    "gather of a scalar place",
    lambda v: mb.gather(x=v.x, indices=mb.squeeze(x=v.i, axes=[0]), axis=1),
    changes="gather",
    x=ints([[1, -2, 3]]),
    i=ints([-3]),
)
_add("gather of constants from the start", lambda v: mb.gather(x=v.x, indices=ints([3, 0])), x=numbers(4, 3))
_add(
    "gather where a maximum was",
    lambda v: mb.gather(x=v.x, indices=mb.reduce_argmax(x=v.x, axis=0), axis=0),
    x=numbers(4, 3),
)
_add(
    "gather twice with the same indices",
    lambda v: (mb.gather(x=v.x, indices=v.i), mb.gather(x=v.y, indices=v.i)),
    changes="gather gather",
    x=numbers(4, 3),
    y=numbers(4, 2),
    i=_ROWS,
)
_add(
    "gather in batches",
    lambda v: mb.gather(x=v.x, indices=v.i, axis=1, batch_dims=1),
    opset=target.iOS16,
    changes="gather",
    x=numbers(2, 4, 3),
    i=ints([[-1, 0, -4], [3, -2, 1]]),
)
_add(
    "gather of 16 bits",
    lambda v: mb.gather(x=v.x, indices=v.i, axis=0),
    opset=target.iOS16,
    changes="gather",
    x=numbers(40000, 1),
    i=ints([-1, -32768, 32767], np.int16),
)
_add(
    "gather of unsigned 16 bits",
    lambda v: mb.gather(x=v.x, indices=v.i, axis=0),
    opset=target.iOS16,
    x=numbers(40000, 1),
    i=ints([39999, 0], np.uint16),
)
_add(
    "gather of an open size",
    lambda v: mb.gather(x=v.x, indices=v.i, axis=1),
    changes="gather",
    free="x i",
    x=numbers(2, 5),
    i=ints([-1, -5, 4]),
)
_add(
    "gather inside cond",
    lambda v: mb.cond(
        pred=mb.greater(x=mb.reduce_sum(x=v.i, axes=[0]), y=0),
        _true_fn=lambda: mb.gather(x=v.x, indices=v.i, axis=0),
        _false_fn=lambda: mb.gather(x=mb.relu(x=v.x), indices=v.i, axis=0),
    ),
    changes="gather gather",
    x=numbers(4, 3),
    i=ints([-1, 0]),
)
_add(
    "gather_along_axis",
    lambda v: mb.gather_along_axis(x=v.x, indices=v.i, axis=1),
    changes="gather_along_axis",
    x=numbers(2, 3),
    i=ints([[-1, -3, 2, 0], [1, -2, 0, -1]]),
)
_add(
    "gather_nd",
    lambda v: mb.gather_nd(x=v.x, indices=v.i),
    changes="gather_nd",
    x=numbers(4, 3, 2),
    i=ints([[-1, 2], [0, -3], [-4, -1]]),
)
_add(
    "gather_nd of an open size",
    lambda v: mb.gather_nd(x=v.x, indices=mb.reshape(x=v.i, shape=[3, 2])),
    changes="gather_nd",
    free="x",
    x=numbers(4, 3, 2),
    i=ints([[-1, 2], [0, -3], [-4, -1]]),
)
_add(
    "gather_nd in batches",
    lambda v: mb.gather_nd(x=v.x, indices=v.i, batch_dims=1),
    opset=target.iOS16,
    changes="gather_nd",
    x=numbers(2, 4, 3),
    i=ints([[[-1, 2], [0, -3]], [[3, 0], [-4, -1]]]),
)
for _mode in ("add", "update", "mul", "max"):
    _add(
        f"scatter {_mode}",
        lambda v: mb.scatter(data=v.x, indices=v.i, updates=v.u, axis=-1, mode=v.mode),
        fixed={"mode": _mode},
        changes="scatter",
        x=numbers(2, 5),
        i=ints([-1, 0, -3]),
        u=numbers(2, 3, seed=1),
    )
_add(
    "scatter_along_axis",
    lambda v: mb.scatter_along_axis(data=v.x, indices=v.i, updates=v.u, axis=0, mode="add"),
    changes="scatter_along_axis",
    x=ints([[1, 2], [3, 4], [5, 6]]),
    i=ints([[-1, 0], [-1, -3]]),
    u=ints([[7, 8], [9, 10]]),
)
_add(
    "scatter_nd",
    lambda v: mb.scatter_nd(data=v.x, indices=v.i, updates=v.u, mode="update"),
    changes="scatter_nd",
    x=numbers(4, 3),
    i=ints([[-1, 2], [0, -3]]),
    u=numbers(2, seed=1),
)


def _as_documented(crops: Any, roi: Any) -> Any:
    """The type of a ``crop_resize`` with numbered boxes: coremltools 9.0 infers it as if each box were cut from all."""
    if roi.shape[2] == 5:
        crops._sym_type = types.tensor(crops.dtype, (crops.shape[0], 1, *crops.shape[2:]))
    return crops


for _opset in (target.iOS15, target.iOS16):
    _pad: Arrays = {} if _opset == target.iOS15 else {"pad_value": 2.5}
    for _case, _roi in {
        "numbered": [[1, 0.0, 0.5, 2.5, 3.0], [0, -1.0, 1.0, 1.0, 5.5], [1, 1.0, 1.0, 1.0, 1.0]],
        "of every image": [[0.0, 0.5, 2.5, 3.0], [-1.0, 1.0, 1.0, 5.5]],
    }.items():
        for _sampling in ("ALIGN_CORNERS", "UNALIGN_CORNERS"):
            _add(
                f"crop_resize {_case}, {_sampling}, {_opset.name}",
                lambda v: _as_documented(
                    mb.crop_resize(
                        x=v.x,
                        roi=v.roi,
                        target_height=3,
                        target_width=2,
                        sampling_mode=v.mode,
                        spatial_scale=0.5,
                        **v.pad,
                    ),
                    v.roi,
                ),
                fixed={"pad": _pad, "mode": _sampling},
                opset=_opset,
                changes="crop_resize",
                x=numbers(2, 3, 4, 5),
                roi=np.reshape(np.array(_roi, np.float32), (len(_roi), 1, -1, 1, 1)),
            )

_BOXES = np.array(
    [
        [[1, 1, 2, 2], [1, 1, 2, 2.1], [5, 5, 1, 1], [9, 9, 1, 1]],
        [[1, 1, 2, 2], [4, 4, 2, 2], [7, 7, 1, 1], [7, 7, 1, 1]],
    ],
    np.float32,
)
_SCORES = np.array(
    [[[0.9, 0.1], [0.2, 0.8], [0.5, 0.3], [0.4, 0.4]], [[0.1, 0.2], [0.3, 0.1], [0.5, 0.5], [0.5, 0.5]]], np.float32
)
# 0.5 is a score: it is not above itself. Above 2 there is none, below 0 there are all, and places left over.
for _threshold in (0.45, 0.5, 2.0, -1.0):
    for _per_class in (False, True):
        _add(
            f"non_maximum_suppression above {_threshold}, {'per class' if _per_class else 'of all'}",
            lambda v: mb.non_maximum_suppression(
                boxes=v.b,
                scores=v.s,
                iou_threshold=0.5,
                score_threshold=v.threshold,
                max_boxes=5,
                per_class_suppression=v.per_class,
            ),
            fixed={"threshold": _threshold, "per_class": _per_class},
            changes="non_maximum_suppression",
            b=_BOXES,
            s=_SCORES,
        )

for _low, _high in ((-0.5, 0.5), (0.25, 0.25), (0.5, -0.5)):
    _add(
        f"clip to {_low}..{_high}",
        lambda v: mb.clip(x=v.x, alpha=np.float32(v.low), beta=np.float32(v.high)),
        fixed={"low": _low, "high": _high},
        changes="clip" if _low >= _high else "",
        x=np.array([-np.inf, -1, -0.5, 0.0, 0.3, 1, np.inf], np.float32),
    )
_add("reshape with zeros", lambda v: mb.reshape(x=v.x, shape=[0, -1, 0]), x=numbers(2, 3, 4))
_add("reshape", lambda v: mb.reshape(x=v.x, shape=[4, -1]), x=numbers(2, 3, 4))

# The other ops mean the same; what they are given includes ties, defaults and integers.
_TIES = ints([[1, 3, 3, -2], [0, 0, 0, 0]])
for _x in (_TIES, _TIES.astype(np.float32)):
    _name = name_of(_x.dtype)
    _add(f"topk of {_name}", lambda v: mb.topk(x=v.x, k=3, axis=1), x=_x)
    _add(f"topk of {_name}, ascending", lambda v: mb.topk(x=v.x, k=1, axis=0, ascending=True), x=_x)
    _add(f"reduce_argmax of {_name}", lambda v: mb.reduce_argmax(x=v.x, axis=1), x=_x)
    _add(f"reduce_argmin of {_name}", lambda v: mb.reduce_argmin(x=v.x, axis=0, keep_dims=True), x=_x)
_add(
    "topk of values alone", lambda v: mb.topk(x=v.x, k=2, sort=True, return_indices=False), opset=target.iOS16, x=_TIES
)
for _corners in (True, False):
    _add(
        f"upsample_bilinear, align_corners={_corners}",
        lambda v: mb.upsample_bilinear(x=v.x, scale_factor_height=2, scale_factor_width=3, align_corners=v.corners),
        fixed={"corners": _corners},
        x=numbers(1, 2, 3, 4),
    )
for _kind in (np.float32, np.float16):
    _add(
        f"resample at {name_of(_kind)}",
        lambda v: mb.resample(
            x=v.x,
            coordinates=v.c,
            sampling_mode="bilinear",
            padding_mode="constant",
            padding_value=np.float32(6.0),
            coordinates_mode="normalized_minus_one_to_one",
            align_corners=True,
        ),
        opset=target.iOS15 if _kind is np.float32 else target.iOS16,
        x=numbers(1, 2, 3, 4),
        c=numbers(1, 2, 2, 2, dtype=_kind),
    )

_UNARY: dict[str, Arrays] = {
    "clamped_relu": {"alpha": 0.3, "beta": 0.8},
    "elu": {"alpha": 0.7},
    "leaky_relu": {"alpha": 0.1},
    "linear_activation": {"alpha": 1.5, "beta": -0.25},
    "scaled_tanh": {"alpha": 1.1, "beta": 0.6},
    "sigmoid_hard": {"alpha": 0.2, "beta": 0.5},
    "thresholded_relu": {"alpha": 0.4},
    "inverse": {},
    "log": {},
    "rsqrt": {},
}
for _type, _given in _UNARY.items():
    for _kind in (np.float32, np.float16):
        _add(
            f"{_type} of {name_of(_kind)}",
            lambda v: getattr(mb, v.op)(x=v.x, **{name: v.kind(value) for name, value in v.given.items()}),
            fixed={"op": _type, "given": _given, "kind": _kind},
            x=np.array([0.0, 1e-7, 0.4, 0.6, 1.0, 3.0], _kind),
        )
for _type in ("inverse", "log", "rsqrt"):
    _add(
        f"{_type} with its epsilon",
        lambda v: getattr(mb, v.op)(x=v.x, epsilon=0.5),
        fixed={"op": _type},
        x=np.ones(3, np.float32),
    )

for _kind in (np.float32, np.float16):
    _image, _row = numbers(2, 3, 4, 5, dtype=_kind), numbers(3, dtype=_kind, seed=1)
    _name = name_of(_kind)
    _same: dict[str, Build] = {
        "prelu": lambda v: mb.prelu(x=v.x, alpha=np.full_like(v.row, 0.25)),
        "softplus_parametric": lambda v: mb.softplus_parametric(x=v.x, alpha=v.row, beta=v.row * 2),
        "batch_norm": lambda v: mb.batch_norm(x=v.x, mean=v.row, variance=v.row**2, gamma=v.row, beta=v.row),
        "instance_norm": lambda v: mb.instance_norm(x=v.x, gamma=v.row, beta=v.row),
        "l2_norm": lambda v: mb.l2_norm(x=v.x),
        "layer_norm": lambda v: mb.layer_norm(x=v.x, axes=[-1]),
        "local_response_norm": lambda v: mb.local_response_norm(x=v.x, size=3),
        "conv": lambda v: mb.conv(x=v.x, weight=numbers(2, 3, 1, 2, dtype=v.k), bias=numbers(2, dtype=v.k)),
        "conv_transpose": lambda v: mb.conv_transpose(x=v.x, weight=numbers(3, 2, 2, 2, dtype=v.k), strides=[2, 1]),
        "matmul": lambda v: mb.matmul(x=v.x, y=v.x, transpose_y=True),
        "cast": lambda v: mb.cast(x=v.x, dtype="int32"),
        "expand_dims": lambda v: mb.expand_dims(x=v.x, axes=[-1]),
        "transpose": lambda v: mb.transpose(x=v.x, perm=[0, -1, 1, 2]),
        "reverse": lambda v: mb.reverse(x=v.x, axes=[-1]),
        "sliding_windows": lambda v: mb.sliding_windows(x=v.x, axis=-1, size=2),
        "reverse_sequence": lambda v: mb.reverse_sequence(x=v.x, lengths=[2, 0], seq_axis=3, batch_axis=0),
        "slice_by_index": lambda v: mb.slice_by_index(
            x=v.x, begin=[0, -2, 3, 0], end=[1, 3, -5, 9], stride=[1, 1, -2, 2]
        ),
        "slice_by_size": lambda v: mb.slice_by_size(x=v.x, begin=[0, 1, 2, 0], size=[2, -1, 1, 5]),
        "squeeze": lambda v: mb.squeeze(x=mb.reduce_max(x=v.x, axes=[1], keep_dims=True), axes=[1]),
    }
    for _type, _build in _same.items():
        _add(f"{_type} of {_name}", _build, fixed={"row": _row, "k": _kind}, x=_image)
    _add(
        f"linear of {_name}",
        lambda v: mb.linear(x=v.x, weight=numbers(2, 3, dtype=v.k), bias=numbers(2, dtype=v.k)),
        fixed={"k": _kind},
        x=numbers(4, 3, dtype=_kind),
    )
_add(
    "reshape_like",
    lambda v: mb.reshape_like(x=v.x, ref_tensors=(v.y,), begins=(0,), ends=(2,), end_masks=(False,)),
    opset=target.iOS16,
    x=numbers(2, 6),
    y=numbers(4, 3),
)
for _type, _gates in (("rnn", 1), ("gru", 3), ("lstm", 4)):
    _state: Arrays = {"h": numbers(2, 3)} | ({"c": numbers(2, 3, seed=1)} if _type == "lstm" else {})
    for _opset, _kind in ((target.iOS15, np.float32), (target.iOS17, np.float16)):

        def _recurrent(v: Any) -> Any:
            weights = {
                "weight_ih": numbers(v.gates * 3, 4, dtype=v.kind),
                "weight_hh": numbers(v.gates * 3, 3, dtype=v.kind, seed=2),
                "bias": numbers(v.gates * 3, dtype=v.kind, seed=3),
            }
            cells = {"initial_c": v.c} if v.op == "lstm" else {}
            return getattr(mb, v.op)(x=v.x, initial_h=v.h, output_sequence=True, **cells, **weights)

        _add(
            f"{_type} of {name_of(_kind)}",
            _recurrent,
            fixed={"op": _type, "gates": _gates, "kind": _kind},
            opset=_opset,
            **{name: each.astype(_kind) for name, each in {"x": numbers(5, 2, 4), **_state}.items()},
        )
