"""What benchmarks/movement.py counts, op by op, and the anchor figures of a Llama layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from benchmarks.layout_anchors import anchor, layer_of
from benchmarks.movement import Movement, movement, per_layer
from milopt.mil import mb, target, types


def counted(body: Callable[[Any], Any], *shapes: tuple[int, ...], dtype: type = types.fp16) -> Movement:
    return _counted(body, shapes, dtype)


def counted_two(body: Callable[[Any, Any], Any], *shapes: tuple[int, ...], dtype: type = types.fp16) -> Movement:
    return _counted(body, shapes, dtype)


def _counted(body: Any, shapes: tuple[tuple[int, ...], ...], dtype: type) -> Movement:
    specs = [mb.TensorSpec(shape, dtype) for shape in shapes]
    program = mb.program(input_specs=specs, opset_version=target.iOS18)(body)
    return movement(program.functions["main"])


def test_transposes_and_reshapes() -> None:
    assert counted(lambda x: mb.transpose(x=x, perm=[0, 2, 1]), (1, 3, 4)) == Movement(
        ops=1, transposes=1, real_transposes=1, transposed=12, bytes=48, net_bytes=48
    )
    assert counted(lambda x: mb.transpose(x=x, perm=[0, -1, 1]), (3, 1, 4)).real_transposes == 0
    assert counted(lambda x: mb.reshape(x=x, shape=[3, 2, 2]), (3, 4)) == Movement(
        ops=1, reshapes=1, regrouping=1, regrouped=12, bytes=48
    )
    assert counted(lambda x: mb.reshape(x=x, shape=[3, 1, 4]), (3, 4)) == Movement(ops=1, reshapes=1, bytes=48)
    assert counted(lambda x: mb.expand_dims(x=x, axes=[0]), (3, 4)) == Movement(ops=1, views=1, bytes=48)


def test_what_is_copied() -> None:
    assert counted(lambda x: mb.tile(x=x, reps=[2, 1]), (3, 4)) == Movement(
        ops=1, tiles=1, tiled=24, bytes=72, net_bytes=72
    )
    assert counted_two(lambda x, y: mb.concat(values=[x, y], axis=0), (3, 4), (1, 4)) == Movement(
        ops=1, concats=1, concatenated=16, bytes=64, net_bytes=64
    )
    integers = counted_two(lambda x, y: mb.concat(values=[x, y], axis=0), (3,), (1,), dtype=types.int32)
    assert integers == Movement(ops=1, index_concats=1, bytes=32, net_bytes=32)
    assert counted(lambda x: mb.split(x=x, num_splits=2, axis=1), (3, 4)) == Movement(
        ops=1, slices=1, sliced=12, bytes=48, net_bytes=48
    )
    table: Any = np.zeros((100, 4), np.float16)
    assert counted(lambda i: mb.gather(x=table, indices=i, axis=0), (3,), dtype=types.int32).bytes == 12 + 24


def test_states_are_written_in_place() -> None:
    @mb.program(
        input_specs=[mb.StateTensorSpec((8, 4), types.fp16), mb.TensorSpec((2, 4), types.fp16)],
        opset_version=target.iOS18,
    )
    def program(state: Any, x: Any) -> Any:
        written = mb.slice_update(x=mb.read_state(input=state), update=x, begin=[0, 0], end=[2, 4])
        return mb.relu(x=mb.coreml_update_state(state=state, value=written))

    assert movement(program.functions["main"]) == Movement(ops=4, updates=2, bytes=32 + 128, net_bytes=32 + 128)


def test_layers() -> None:
    weight: Any = np.zeros((4, 4), np.float16)
    found = counted(lambda x: mb.softmax(x=mb.matmul(x=mb.linear(x=x, weight=weight), y=x)), (1, 4, 4))
    assert (found.ops, found.linear, found.matmul, found.softmaxes) == (3, 1, 1, 1)
    kernel: Any = np.zeros((4, 4, 1), np.float16)
    found = counted(lambda x: mb.scaled_dot_product_attention(query=mb.conv(x=x, weight=kernel), key=x, value=x),
                    (1, 4, 4))  # fmt: skip
    assert (found.conv, found.sdpa, found.bytes) == (1, 1, 64 + 96)  # a value given twice is read once


def test_a_layer_is_the_difference() -> None:
    small, large = Movement(ops=10, bytes=7), Movement(ops=16, bytes=9)
    assert per_layer(large, small, 2) == Movement(ops=3, bytes=1)
    with pytest.raises(ValueError, match="ops: 7 for 2 layers"):
        per_layer(replace(large, ops=17), small, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("query", "moved", "bytes_moved", "net"), [(1, 657_280, 3_514_648, 1_938_712), (64, 778_240, 160_024, 132_376)]
)
def test_the_plain_conversion_is_the_anchor(query: int, moved: int, bytes_moved: int, net: int) -> None:
    """The row `plain HF` of layout-anchors: the same config, the same counting, the same program."""
    layer = layer_of({layers: anchor(query, layers) for layers in (4, 2)})
    assert (layer.ops, layer.linear, layer.matmul, layer.transposes) == (58, 7, 2, 4)
    assert (layer.moved, layer.bytes / query, layer.net_bytes / query) == (moved, bytes_moved, net)
