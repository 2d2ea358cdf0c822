"""The time layout-bc1s takes, by the number of decoder layers, and where it goes.

    python -m benchmarks.layout [LAYERS ...] [--repeat N]

Each program is a Llama of small weights, written in MIL, after linear-to-conv: its time depends on the number of ops,
not on their sizes. `read` is the program as a graph, `choose` the layouts that come into question and the minimum,
`write` what is left of `pass`; `ms/layer` is what must not grow. Times are CPU seconds of one thread, the least of the
repeats.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from milopt.mil import Program, mb, target, types
from milopt.package import load
from milopt.passes.convolution import LinearToConv
from milopt.passes.layout import LayoutBc1s
from milopt.passes.layout_reading import read

WIDTH, HEADS, KV_HEADS, HEAD, QUERY, CONTEXT, VOCABULARY = 64, 4, 2, 16, 8, 32, 96


def decoder(layers: int, *, fused: bool = False, head_norms: bool = False) -> Program:
    """A Llama decoder over a past in inputs: RMSNorm, RoPE, grouped queries, SwiGLU.

    Attention is ``scaled_dot_product_attention`` where ``fused``, else two matmuls and a softmax. With ``head_norms``
    the heads of queries and keys have norms of their own, as in Qwen3.
    """
    rng = np.random.default_rng(0)
    f16 = np.float16

    def weight(*shape: int) -> Any:
        return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(f16)

    past = [mb.TensorSpec((1, KV_HEADS, CONTEXT, HEAD), types.fp16) for _ in range(2)]
    specs = [
        mb.TensorSpec((1, QUERY), types.int32),
        mb.TensorSpec((1, QUERY, HEAD), types.fp16),
        mb.TensorSpec((1, QUERY, HEAD), types.fp16),
        mb.TensorSpec((1, 1, QUERY, CONTEXT + QUERY), types.fp16),
        *past,
    ]

    def norm(x: Any, width: int = WIDTH) -> Any:
        mean = mb.reduce_mean(x=mb.mul(x=x, y=x), axes=[-1], keep_dims=True)
        return mb.mul(x=mb.mul(x=x, y=mb.rsqrt(x=mean, epsilon=f16(1e-3))), y=weight(width))

    def heads(x: Any, count: int, *, normed: bool = False) -> Any:
        parts = mb.reshape(x=mb.linear(x=x, weight=weight(count * HEAD, WIDTH)), shape=[1, QUERY, count, HEAD])
        return mb.transpose(x=norm(parts, HEAD) if normed else parts, perm=[0, 2, 1, 3])

    def rotated(x: Any, cos: Any, sin: Any) -> Any:
        first, second = mb.split(x=x, num_splits=2, axis=-1)
        turned = mb.concat(values=[mb.mul(x=second, y=f16(-1)), first], axis=-1)
        return mb.add(x=mb.mul(x=x, y=cos), y=mb.mul(x=turned, y=sin))

    def attended(query: Any, key: Any, value: Any, mask: Any) -> Any:
        if fused:
            groups = mb.reshape(x=query, shape=[1, KV_HEADS, HEADS // KV_HEADS * QUERY, HEAD])
            rows = mb.concat(values=[mask] * (HEADS // KV_HEADS), axis=-2)
            made = mb.scaled_dot_product_attention(query=groups, key=key, value=value, attn_mask=rows)
            return mb.reshape(x=made, shape=[1, HEADS, QUERY, HEAD])
        wide = mb.reshape(x=query, shape=[1, KV_HEADS, HEADS // KV_HEADS, QUERY, HEAD])
        keys, values = (mb.expand_dims(x=each, axes=[2]) for each in (key, value))
        scores = mb.matmul(x=wide, y=keys, transpose_y=True)
        scores = mb.softmax(x=mb.add(x=scores, y=mb.expand_dims(x=mask, axes=[2])), axis=-1)
        return mb.reshape(x=mb.matmul(x=scores, y=values), shape=[1, HEADS, QUERY, HEAD])

    @mb.program(input_specs=specs, opset_version=target.iOS18)
    def program(ids: Any, cos: Any, sin: Any, mask: Any, keys: Any, values: Any) -> Any:
        x = mb.gather(x=weight(VOCABULARY, WIDTH), indices=ids, axis=0)
        cos, sin = mb.expand_dims(x=cos, axes=[1]), mb.expand_dims(x=sin, axes=[1])
        for _ in range(layers):
            y = norm(x)
            query, key = heads(y, HEADS, normed=head_norms), heads(y, KV_HEADS, normed=head_norms)
            value = heads(y, KV_HEADS)
            query, key = rotated(query, cos, sin), rotated(key, cos, sin)
            key = mb.concat(values=[keys, key], axis=2)
            value = mb.concat(values=[values, value], axis=2)
            y = mb.transpose(x=attended(query, key, value, mask), perm=[0, 2, 1, 3])
            y = mb.reshape(x=y, shape=[1, QUERY, HEADS * HEAD])
            x = mb.add(x=x, y=mb.linear(x=y, weight=weight(WIDTH, HEADS * HEAD)))
            y = norm(x)
            gate = mb.silu(x=mb.linear(x=y, weight=weight(2 * WIDTH, WIDTH)))
            y = mb.mul(x=gate, y=mb.linear(x=y, weight=weight(2 * WIDTH, WIDTH)))
            x = mb.add(x=x, y=mb.linear(x=y, weight=weight(WIDTH, 2 * WIDTH)))
        return mb.linear(x=norm(x), weight=weight(VOCABULARY, WIDTH), name="logits")

    return program


def measured(layers: int) -> dict[str, float]:
    """Ops, and CPU seconds of each part and of the pass, for a decoder of so many layers."""
    model = load(decoder(layers))
    LinearToConv().run(model)
    function = model.function("main")
    ops = sum(op.op_type != "const" for op in function.operations)
    start = time.process_time()
    reading = read(function, 64)
    read_by = time.process_time()
    reading.graph.choose()
    chosen_by = time.process_time()
    report = LayoutBc1s().run(model)
    end = time.process_time()
    assert report.applied, "nothing was laid out"
    whole, reads, chooses = end - chosen_by, read_by - start, chosen_by - read_by
    return {"ops": ops, "read": reads, "choose": chooses, "write": whole - reads - chooses, "pass": whole}


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("layers", nargs="*", type=int, default=[8, 16, 32, 64], metavar="LAYERS")
    parser.add_argument("--repeat", type=int, default=1, metavar="N")
    given = parser.parse_args()
    table = Table("layers", "ops", "read s", "choose s", "write s", "pass s", "ms/layer")
    for layers in given.layers:
        rows = [measured(layers) for _ in range(given.repeat)]
        row = min(rows, key=lambda each: each["pass"])
        times = [f"{row[name]:.2f}" for name in ("read", "choose", "write", "pass")]
        table.add_row(str(layers), f"{row['ops']:.0f}", *times, f"{row['pass'] / layers * 1e3:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
