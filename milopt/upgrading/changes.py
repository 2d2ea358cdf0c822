"""What changed between the opsets of MIL, op by op: every op type of which coremltools 9.0 has several classes.

A row says since which opset the op is another one, and in which way. ``source`` is the file below coremltools'
``converters/mil/mil/ops/defs`` whose classes say so in their documentation and ``input_spec``; where the documentation
leaves something open, the row says what else it was taken from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from milopt.mil import Target

__all__ = ["CHANGES", "Change", "Kind", "changes_of"]


class Kind(Enum):
    """In which way an op differs from that of the opset before; the second item: whether it must be translated."""

    WIDER = "takes more element types", False
    INPUTS = "has more inputs, which left out mean what it did before", False
    WRITTEN = "has its inputs written another way", True
    STRICTER = "no longer takes all it took", True
    MEANING = "means something else", True
    INTERFACE = "has other inputs or outputs", True
    SUCCESSOR = "is still there, but another op took its place", True

    @property
    def translated(self) -> bool:
        return self.value[1]


@dataclass(frozen=True)
class Change:
    """One row: the op types, the opset since which they differ, how, in words, and who says so."""

    since: Target
    op_types: tuple[str, ...]
    kind: Kind
    text: str
    source: str


def _row(since: Target, op_types: str, kind: Kind, text: str, source: str) -> Change:
    return Change(since, tuple(op_types.split()), kind, text, f"{since.name}/{source}")


_16, _17, _18 = Target.iOS16, Target.iOS17, Target.iOS18

CHANGES: tuple[Change, ...] = (
    _row(_16, "gather gather_nd", Kind.INPUTS, "batch_dims (0); also 16-bit indices", "scatter_gather.py"),
    _row(_16, "gather_along_axis", Kind.WIDER, "also 16-bit indices", "scatter_gather.py"),
    _row(_16, "topk", Kind.INPUTS, "sort (true), return_indices (true)", "tensor_operation.py"),
    _row(_16, "resample", Kind.WIDER, "also fp16 coordinates", "image_resizing.py"),
    _row(
        *(_16, "upsample_bilinear", Kind.INPUTS),
        "half_pixel_centers, which left out is the opposite of align_corners, as the op samples without it",
        "image_resizing.py",
    ),
    _row(
        *(_16, "crop_resize", Kind.INPUTS),
        "pad_value (0): what lies outside the image; the op without it doesn't say, TensorFlow's that it was made for "
        "has 0 there",
        "image_resizing.py",
    ),
    _row(
        *(_17, "clamped_relu elu leaky_relu linear_activation prelu scaled_tanh sigmoid_hard", Kind.WIDER),
        "alpha and beta may be of another float type than x",
        "activation.py",
    ),
    _row(
        *(_17, "softplus_parametric thresholded_relu", Kind.WIDER),
        "alpha and beta may be of another float type than x",
        "activation.py",
    ),
    _row(
        *(_17, "batch_norm instance_norm l2_norm layer_norm local_response_norm", Kind.WIDER),
        "the other inputs may be of another float type than x",
        "normalization.py",
    ),
    _row(_17, "conv", Kind.WIDER, "weight and bias may be of another float type than x", "conv.py"),
    _row(
        *(_17, "conv_transpose", Kind.WIDER),
        "weight and bias may be of another float type than x, and the weight need not be constant",
        "conv.py",
    ),
    _row(_17, "linear", Kind.WIDER, "weight and bias may be of another type than x", "linear.py"),
    _row(_17, "matmul", Kind.WIDER, "a constant operand may be of another type than the other one", "linear.py"),
    _row(_17, "inverse log rsqrt", Kind.WIDER, "epsilon may be of another float type than x", "elementwise_unary.py"),
    _row(_17, "cast", Kind.WIDER, "also from and to 8 and 16-bit integers", "elementwise_unary.py"),
    _row(
        *(_17, "clip", Kind.STRICTER),
        "alpha must be below beta; before, min(max(x, alpha), beta) whatever they are",
        "elementwise_unary.py",
    ),
    _row(
        *(_17, "crop_resize", Kind.INTERFACE),
        "boxes and box_indices instead of roi, and a result without the dimension of the images",
        "image_resizing.py",
    ),
    _row(_17, "resample", Kind.WIDER, "also coordinates of 8 and 16-bit integers", "image_resizing.py"),
    _row(_17, "gru lstm rnn", Kind.WIDER, "also fp16", "recurrent.py"),
    _row(_17, "reduce_argmax reduce_argmin", Kind.INPUTS, "output_dtype (int32)", "reduction.py"),
    _row(
        *(_17, "gather gather_along_axis gather_nd scatter scatter_along_axis scatter_nd", Kind.MEANING),
        "indices below zero are out of bounds, and no longer count from the end",
        "scatter_gather.py",
    ),
    _row(
        *(_17, "gather gather_along_axis gather_nd", Kind.INPUTS),
        "validate_indices (false); also 8-bit indices, and x of 8 and 16-bit integers",
        "scatter_gather.py",
    ),
    _row(*(_17, "scatter scatter_along_axis scatter_nd", Kind.INPUTS), "validate_indices (false)", "scatter_gather.py"),
    _row(
        *(_17, "non_maximum_suppression", Kind.INTERFACE),
        "boxes and scores with the boxes last, no score_threshold, and no count of the boxes (the places left over "
        "have index -1: coremltools' own lowering, frontend/torch/ops.py, counts the others)",
        "tensor_operation.py",
    ),
    _row(
        *(_17, "topk", Kind.INPUTS),
        "output_indices_dtype (int32); also 8 and 16-bit integers; k = -1 takes all",
        "tensor_operation.py",
    ),
    _row(
        *(_17, "reshape", Kind.MEANING),
        "a 0 in shape is the dimension of x as far from the end; before, 0 was only allowed where shape is as long as "
        "x has dimensions, which is the same",
        "tensor_transformation.py",
    ),
    _row(
        *(_17, "reshape_like expand_dims squeeze transpose reverse sliding_windows", Kind.WIDER),
        "also 8 and 16-bit integers",
        "tensor_transformation.py",
    ),
    _row(
        *(_17, "reverse_sequence slice_by_index slice_by_size", Kind.WIDER),
        "also 8 and 16-bit integers, for lengths and places too",
        "tensor_transformation.py",
    ),
    _row(
        *(_18, "gru", Kind.INPUTS),
        "reset_after (false), input_bias (none): false and none are what the op did before",
        "recurrent.py",
    ),
    _row(
        *(_18, "constexpr_affine_dequantize", Kind.SUCCESSOR),
        "constexpr_blockwise_shift_scale, with a scale and an offset of data's rank",
        "compression.py",
    ),
    _row(
        *(_18, "constexpr_lut_to_dense", Kind.INTERFACE),
        "indices of their own small type and of the result's shape, instead of bytes and a shape; a table of their "
        "rank and two more",
        "compression.py",
    ),
    _row(
        *(_18, "constexpr_sparse_to_dense", Kind.INTERFACE),
        "a mask of 1-bit elements of the result's shape, instead of bytes and a shape",
        "compression.py",
    ),
    _row(
        *(_18, "constexpr_cast", Kind.WRITTEN),
        "its inputs are inputs, and no longer attributes",
        "compression.py",
    ),
)


def changes_of(op_type: str, before: int, after: int) -> Iterator[Change]:
    """The rows of the op type that lie between two opsets, the oldest first."""
    return (row for row in CHANGES if op_type in row.op_types and before < row.since <= after)
