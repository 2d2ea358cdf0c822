"""Which form of attention a target takes best: one table, with what each choice rests on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from milopt.errors import PassError
from milopt.pipeline import Pipeline

__all__ = [
    "LAID_OUT",
    "POLICY",
    "AttentionChoice",
    "Choice",
    "ComputeUnits",
    "attention_passes",
    "with_attention",
    "with_passes",
]

AttentionChoice = Literal["fused", "split-einsum", "matmul", "keep"]
ComputeUnits = Literal["all", "cpu-and-gpu", "cpu-and-ne", "cpu"]


@dataclass(frozen=True)
class Choice:
    """The passes for a target, why, and the constraints (ids) that say so."""

    passes: str
    why: str
    sources: tuple[str, ...]


_EINSUM = "fuse-sdpa,decompose-sdpa{style=split-einsum}"
_MATMUL = "fuse-sdpa,decompose-sdpa{style=matmul}"
_BELOW = "the op exists from iOS18 on; below, attention that is written out is brought into a style"

# (compute units, whether the opset has the op) -> the passes
POLICY: dict[tuple[ComputeUnits, bool], Choice] = {
    ("all", True): Choice(
        "fuse-sdpa,pack-gqa",
        "the op leaves the choice to the device; heads that share keys are packed, since tiles move most",
        ("L8", "L16"),
    ),
    ("cpu-and-gpu", True): Choice(
        "fuse-sdpa,pack-gqa",
        "GPUs have a fused kernel; it gives wrong numbers for a batch of 10 and more, which packing keeps out of it",
        ("L8", "L9"),
    ),
    ("cpu-and-ne", True): Choice(
        _EINSUM,
        "two and more fused ops fail to compile for the Neural Engine, which wants keys first, channels second and the "
        "softmax over channels",
        ("L9", "L21"),
    ),
    ("cpu", True): Choice(_MATMUL, "the fused op crashes in BNNS for several queries and large heads", ("L9",)),
    ("all", False): Choice("pack-gqa", _BELOW + "; matmuls are what it is written in", ("L8", "L16")),
    ("cpu-and-gpu", False): Choice("pack-gqa", _BELOW + "; matmuls are what it is written in", ("L8", "L16")),
    ("cpu-and-ne", False): Choice("decompose-sdpa{style=split-einsum}", _BELOW, ("L8", "L21")),
    ("cpu", False): Choice("pack-gqa", _BELOW + "; matmuls are what it is written in", ("L8", "L16")),
}

# The same where layout-bc1s comes behind. The op and einsums of single heads take one layout only; the operands of a
# matmul may be either way round, and heads stay one axis.
LAID_OUT: dict[ComputeUnits, Choice] = {
    "cpu-and-ne": Choice(
        _MATMUL,
        "two and more fused ops fail to compile for the Neural Engine; matmuls let the layout put keys first and "
        "channels second: two transposes a layer where the op needs four, and einsums head by head as many products "
        "as heads",
        ("L9", "L21"),
    ),
}

# What --attention writes in the place of the attention passes of a pipeline
_WRITTEN: dict[str, str] = {
    "fused": "fuse-sdpa,pack-gqa",
    "split-einsum": "fuse-sdpa,decompose-sdpa{style=split-einsum}",
    "matmul": "fuse-sdpa,decompose-sdpa{style=matmul}",
    "keep": "",
}
_OURS = ("fuse-sdpa", "pack-gqa", "decompose-sdpa")


def attention_passes(
    compute_units: ComputeUnits = "all", *, fused_exists: bool = True, laid_out: bool = False
) -> Choice:
    """The row of :data:`POLICY` for a target; with ``laid_out``, that of :data:`LAID_OUT` where there is one.

    Raises PassError for compute units that Core ML does not have.
    """
    if compute_units not in get_args(ComputeUnits):
        raise PassError(f"compute units are {', '.join(get_args(ComputeUnits))}, not {compute_units!r}")
    if laid_out and fused_exists and compute_units in LAID_OUT:
        return LAID_OUT[compute_units]
    return POLICY[compute_units, fused_exists]


def with_attention(pipeline: Pipeline, choice: AttentionChoice) -> Pipeline:
    """``pipeline`` with the passes of ``choice`` for its own attention passes.

    ``fused`` is the op with packed heads, ``split-einsum`` einsums head by head, ``matmul`` two matmuls and a softmax
    for all heads, ``keep`` what the model has.
    """
    if choice not in _WRITTEN:
        raise PassError(f"attention is {', '.join(_WRITTEN)}, not {choice!r}")
    return with_passes(pipeline, _WRITTEN[choice])


def with_passes(pipeline: Pipeline, text: str) -> Pipeline:
    """``pipeline`` with the passes that ``text`` spells for its own attention passes, such as those of a policy.

    ``fuse-sdpa`` stands where it was, or before what must come after it; the others behind ``kv-to-state``, which knows
    attention as it is then.
    """
    written = Pipeline.parse(text).passes if text else ()
    others = [each for each in pipeline.passes if each.name not in _OURS]
    names = [each.name for each in pipeline.passes]
    if "fuse-sdpa" in names:
        first = sum(each.name not in _OURS for each in pipeline.passes[: names.index("fuse-sdpa")])
    else:
        first = min((at for at, each in enumerate(others) if set(each.after) & set(_OURS)), default=len(others))
    then = max([at + 1 for at, each in enumerate(others) if each.name == "kv-to-state"], default=first)
    fuse = [each for each in written if each.name == "fuse-sdpa"]
    rest = [each for each in written if each.name != "fuse-sdpa"]
    then = max(then, first)
    return Pipeline((*others[:first], *fuse, *others[first:then], *rest, *others[then:]))
