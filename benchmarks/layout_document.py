"""Writes docs/layout.md: one decoder layer before and after layout-bc1s, as text and as a drawing.

python -m benchmarks.layout_document
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from benchmarks.layout import decoder
from milopt.mil import Operation, arguments, shape_of
from milopt.package import Model, load
from milopt.passes.convolution import LinearToConv
from milopt.passes.layout import LayoutBc1s
from milopt.passes.layout_axes import MOVES
from milopt.pipeline import Pipeline
from milopt.text import text

FUSED_LAYERS = 4
DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "layout.md"

HEAD = """# One decoder layer before and after `layout-bc1s`

`linear-to-conv` gives every `linear` the transposes it needs, layer by layer. `layout-bc1s` then sees the whole program
at once: a layout is a property of each value, ops say in which layouts they can work
(`milopt.passes.layout_ops.ENTRIES`), constants are laid out anew, and a value that is needed in another layout is moved
once, however many ops need it there. Of all choices one that moves the fewest elements is taken.

* A *layout* is a tuple of axes, each a run of *pieces*: the axes of the program, cut wherever a reshape cuts them.
  (B, S, H·D), (B, H·D, 1, S), (B, S, H, D), (B, H, S, D) and (B, H, D, S) are five layouts of one tensor.
* A *move* is what transposes and reshapes do. It costs the elements moved: a transpose moves all, a reshape that cuts
  or joins axes longer than 1 too, and to add, remove or shift axes of length 1 costs next to nothing.
* The choice is a problem of small tables, one for each tensor. It is solved exactly: choices that are never cheaper
  than another go, and one variable after another is eliminated; where tables would grow too large, by a minimum cut if
  there are two layouts and the tables are submodular, else by branch and bound. That one ends at a limit of work, which
  is counted, so that results repeat: the report then says how many elements above the minimum the choice may be. Of a
  tensor that many ops use (a mask, a table of cosines) layouts that differ in axes of length 1 alone count as one.
* What stays as it is: ops that the table does not know, or whose types disagree about a size; parts without a 1x1
  convolution, and parts where nothing moves less than what is there. Inputs, outputs and states stay too, unless
  `io=free` lets those of fixed shape have the layouts they are used in. A state has one for all functions, its first
  axis stays the first, and an input that comes back as an output (`past_x`, `present_x`) has that output's order. The
  package's metadata `milopt.layout` give for each the shape it had, that shape cut into pieces, their order now, and
  the shape it has: `x.reshape(cut).transpose(order).reshape(now)`. `milopt verify`, `milopt generate` and sessions read
  it and go on in the old layouts; a client of one's own has to do the same.

The layer below has {heads}. It is the layer of `benchmarks/layout.py` (64 wide, 4 heads, 2 key/value heads, 8 tokens, a
past of 32); this page is written by `python -m benchmarks.layout_document`, and a test compares the two.

| | before | after | after, `io=free` |
|---|---|---|---|
"""

FUSED = """
## With one op for attention

| {layers} layers | before | after | after, `decompose-sdpa` first | the same, `io=free` |
|---|---|---|---|---|
{rows}

`scaled_dot_product_attention` takes queries, keys and values as (..., S, D) and gives (..., S, D) back; convolutions
take and give (B, C, 1, S), with the positions last. So each of four tensors, q, k, v and the result, has to be turned
on its way between a convolution and the op: four transposes a layer are the least, unless one turns several of them, of
one projection. Packed groups (`pack-gqa`) change the reshape of q and not its transpose. Of matmuls either operand, and
the result too, may be turned for nothing, so that two transposes are left, of what is written beside a past given as
(S, D), and none where that is a state or input that may be (D, S). The report of `layout-bc1s` says how many elements
`decompose-sdpa` would save; `--attention matmul` puts it into a pipeline, and `LAID_OUT` in
`milopt.passes.attention_policy` for the Neural Engine, with its sources.

The same of a layer with states, counted as hand-written conversions were, and of every family:
[benchmarks/results/layout.md](../benchmarks/results/layout.md).
"""

COLOURS = """classDef move fill:#d9534f,color:#fff,stroke:#a33
classDef bc1s fill:#cfe8cf,stroke:#4a8
classDef heads fill:#fde2b8,stroke:#c93
classDef conv fill:#2e8b57,color:#fff,stroke:#174"""


def document() -> str:
    """The page."""
    before = load(decoder(1))
    LinearToConv().run(before)
    after, free = before.clone(), before.clone()
    report = LayoutBc1s().run(after)
    LayoutBc1s(io="free").run(free)
    parts = [
        HEAD.format(heads="RMSNorm, RoPE, grouped queries without repeated keys, and SwiGLU"),
        _rows(before, after, free),
    ]
    parts += ["\n\nRed: moves. Dark green: 1x1 convolutions. Light green: (B, C, 1, S). Orange: heads.\n"]
    for title, model in (("Before", before), ("After", after)):
        parts += [f"\n## {title}\n\n```mermaid\n{_drawn(model)}\n```\n", f"\n```\n{_shortened(text(model))}\n```\n"]
    parts += ["\n## What remains\n\n", *(f"* {miss.reason}\n" for miss in report.misses), _fused()]
    return "".join(parts)


def _rows(*models: Model) -> str:
    """A table's rows: what each model has of each kind."""
    counts = zip(*map(_counted, models), strict=True)
    return "\n".join(f"| {row[0][0]} | {' | '.join(f'{count:,}' for _, count in row)} |" for row in counts)


def _fused() -> str:
    before = load(decoder(FUSED_LAYERS, fused=True))
    LinearToConv().run(before)
    models = [before]
    for passes in ("layout-bc1s", "decompose-sdpa,layout-bc1s", "decompose-sdpa,layout-bc1s{io=free}"):
        models.append(before.clone())
        Pipeline.parse(passes).run(models[-1])
    return FUSED.format(layers=FUSED_LAYERS, rows=_rows(*models))


def _counted(model: Model) -> list[tuple[str, int]]:
    ops = [op for op in model.function("main").operations if op.op_type != "const"]
    kinds = Counter(op.op_type for op in ops)
    moved = sum(_size(op) for op in ops if _moves(op))
    return [
        ("ops", len(ops)),
        *((kind, kinds[kind]) for kind in ("conv", "matmul", "softmax", *sorted(MOVES))),
        ("elements moved by transposes, and by reshapes that cut or join axes", moved),
    ]


def _size(op: Operation) -> int:
    size = 1
    for dim in shape_of(op.outputs[0]):
        size *= int(dim)
    return size


def _moves(op: Operation) -> bool:
    if op.op_type != "reshape":
        return op.op_type == "transpose"
    before, after = ([dim for dim in shape_of(var) if dim != 1] for var in (op.inputs["x"], op.outputs[0]))
    return before != after


def _drawn(model: Model) -> str:
    """The graph in Mermaid's language: an op is a box, coloured by the layout of what it makes."""
    lines = ["flowchart TD"]
    function = model.function("main")
    names = {var: f"i{at}[/{name}/]" for at, (name, var) in enumerate(function.inputs.items())}
    for at, op in enumerate(each for each in function.operations if each.op_type != "const"):
        shape = " x ".join(str(dim) for dim in shape_of(op.outputs[0]))
        box = f'o{at}["{op.op_type}<br/>{shape}"]:::{_class(op)}'
        for var in dict.fromkeys(var for _, var in arguments(op)):
            if var in names:
                lines.append(f"{names[var]} --> {box}")
                names[var] = names[var].partition("[")[0]
                box = f"o{at}"
        names.update(dict.fromkeys(op.outputs, f"o{at}"))
    return "\n".join([*lines, *COLOURS.splitlines()])


def _class(op: Operation) -> str:
    shape = shape_of(op.outputs[0])
    if op.op_type in MOVES:
        return "move" if _moves(op) else "unit"
    if op.op_type == "conv":
        return "conv"
    if len(shape) == 4 and shape[2] == 1:
        return "bc1s"
    return "heads" if len(shape) >= 4 else "other"


def _shortened(written: str) -> str:
    """Without the list of weights, and with long lists of numbers cut."""
    lines = [line for line in written.splitlines() if not line.startswith("w")]
    return "\n".join(line if len(line) <= 160 else f"{line[:157]}..." for line in lines)


def main() -> None:
    """Write the page."""
    DOCUMENT.write_text(document(), encoding="utf-8")
    print(DOCUMENT)


if __name__ == "__main__":
    main()
