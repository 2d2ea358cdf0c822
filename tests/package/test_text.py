"""The canonical text: golden, and blind to names, counters and addresses only."""

from __future__ import annotations

from typing import Any

import numpy as np
from coremltools.converters.mil.mil import get_new_symbol

from milopt.mil import Program, Target, mb, types
from milopt.text import text

from .support import counter, linear, loop, program_of, weight


def test_golden() -> None:
    assert text(linear()) == (
        "main[CoreML6](%x: fp16[1, 16]) {\n"
        "  %0: fp16[1, 8] = linear(x=%x, weight=w0)\n"
        "  %1: fp16[1, 8] = relu(x=%0)\n"
        "} -> (y=%1)\n"
        "w0: fp16[8, 16]\n"
    )


def test_golden_state() -> None:
    assert text(counter()) == (
        "main[CoreML8](%x: fp16[1, 4], %total: state<fp16[1, 4]>) {\n"
        "  %0: fp16[1, 4] = read_state(input=%total)\n"
        "  %1: fp16[1, 4] = add(x=%0, y=%x)\n"
        "  %2: fp16[1, 4] = coreml_update_state(state=%total, value=%1)\n"
        "  %3: fp16[1, 4] = mul(x=%2, y=fp16(2.0))\n"
        "} -> (y=%3)\n"
    )


def test_golden_blocks() -> None:
    assert text(loop()) == (
        "main[CoreML6](%x: fp32[1, 4]) {\n"
        "  %0: fp32[1, 1] = reduce_sum(x=%x, axes=[1], keep_dims=true)\n"
        "  %1: fp32[1, 1] = mul(x=%0, y=0.5)\n"
        "  %2: fp32[1, 4] = while_loop(loop_vars=(%x)) {\n"
        "    block(%3: fp32[1, 4]) {\n"
        "      %4: fp32[1] = reduce_sum(x=%3, axes=[1])\n"
        "      %5: bool[1] = greater(x=%4, y=1.0)\n"
        "      %6: bool = squeeze(x=%5)\n"
        "    } -> (%6)\n"
        "    block(%7: fp32[1, 4]) {\n"
        "      %8: fp32[1, 4] = mul(x=%7, y=0.5)\n"
        "      %9: fp32[1, 1] = mul(x=%1, y=0.0)\n"
        "      %10: fp32[1, 4] = add(x=%8, y=%9)\n"
        "    } -> (%10)\n"
        "  }\n"
        "  %11: fp32[1, 4] = identity(x=%2)\n"
        "} -> (y=%11)\n"
    )


def program(build: Any, *shape: Any, dtype: type = types.fp32) -> Program:
    inputs = [mb.TensorSpec(shape=shape, dtype=dtype)]
    return program_of(mb.program(input_specs=inputs, opset_version=Target.iOS18)(build))


def test_symbols_are_counted_in_the_text() -> None:
    def build(x: Any) -> Any:
        return mb.pad(x=mb.relu(x=x), pad=[0, 0, 1, 2], name="y")

    symbol = get_new_symbol()
    first = text(program(build, symbol, symbol, get_new_symbol()))
    assert "%x: fp32[s0, s0, s1]" in first
    assert "fp32[s0, s0, s1+3] = pad(x=%0, pad=[0, 0, 1, 2])" in first
    symbol = get_new_symbol()
    assert text(program(build, symbol, symbol, get_new_symbol())) == first


def test_constants() -> None:
    def build(x: Any) -> Any:
        mb.const(val=np.float32(3))
        x = mb.transpose(x=x, perm=[-1, 0])
        x = mb.slice_by_index(x=x, begin=[0, 0], end=[4, 2], end_mask=[True, False])
        return mb.cast(x=x, dtype="fp16", name="y"), mb.const(val=np.array([1, 2], np.uint8), name="z")

    assert text(program(build, 3, 4)) == (
        "main[CoreML8](%x: fp32[3, 4]) {\n"
        "  %0: fp32 = const(val=3.0)\n"
        "  %1: fp32[4, 3] = transpose(x=%x, perm=[-1, 0])\n"
        "  %2: fp32[4, 2] = slice_by_index(x=%1, begin=[0, 0], end=[4, 2], end_mask=[true, false])\n"
        '  %3: fp16[4, 2] = cast(x=%2, dtype="fp16")\n'
        "  %4: uint8[2] = const(val=uint8([1, 2]))\n"
        "} -> (y=%3, z=%4)\n"
    )


def two_linears(first: Any, second: Any) -> Program:
    def build(x: Any) -> Any:
        return mb.linear(x=mb.linear(x=x, weight=first), weight=second, name="y")

    return program(build, 1, 16, dtype=types.fp16)


def test_weights_by_place_or_by_content() -> None:
    one, same, other = weight(16, 16), weight(16, 16), weight(16, 16) + 1
    assert text(two_linears(one, one)).count("w0") == 3
    assert "w1: fp16[16, 16]" in text(two_linears(one, same))
    assert "w1" not in text(two_linears(one, same), weights="hash")
    assert text(two_linears(one, same), weights="hash") == text(two_linears(one, one), weights="hash")
    assert text(two_linears(one, other)) == text(two_linears(one, same))
    assert text(two_linears(one, other), weights="hash") != text(two_linears(one, same), weights="hash")
    assert "w1" in text(two_linears(one, one.T))  # the same memory in another order


def test_every_change_shows() -> None:
    def variant(axis: int = 1, value: float = 0.5, half: bool = False, keep: bool = True) -> str:
        def build(x: Any) -> Any:
            y = np.float16(value) if half else np.float32(value)
            return mb.reduce_sum(x=mb.mul(x=x, y=y), axes=[axis], keep_dims=keep, name="y")

        return text(program(build, 2, 2, dtype=types.fp16 if half else types.fp32))

    texts = [
        variant(),
        variant(axis=-1),
        variant(value=float(np.nextafter(np.float32(0.5), np.float32(1)))),
        variant(half=True),
        variant(keep=False),
        variant(value=-0.0),
        variant(value=0.0),
    ]
    assert len(set(texts)) == len(texts)
