"""The table of attention's forms, to the letter, and where its passes are put in a pipeline."""

from __future__ import annotations

from typing import Any

import pytest

from milopt.errors import PassError
from milopt.passes.attention_policy import POLICY, attention_passes, with_attention, with_passes
from milopt.pipeline import Pipeline

EINSUM = "fuse-sdpa,decompose-sdpa{style=split-einsum}"
BELOW = "the op exists from iOS18 on; below, attention that is written out is brought into a style"
MATMULS = f"{BELOW}; matmuls are what it is written in"

WANTED = {
    ("all", True): (
        "fuse-sdpa,pack-gqa",
        "the op leaves the choice to the device; heads that share keys are packed, since tiles move most",
        "L8 L16",
    ),
    ("cpu-and-gpu", True): (
        "fuse-sdpa,pack-gqa",
        "GPUs have a fused kernel; it gives wrong numbers for a batch of 10 and more, which packing keeps out of it",
        "L8 L9",
    ),
    ("cpu-and-ne", True): (
        EINSUM,
        "two and more fused ops fail to compile for the Neural Engine, which wants keys first, channels second and the "
        "softmax over channels",
        "L9 L21",
    ),
    ("cpu", True): (
        "fuse-sdpa,decompose-sdpa{style=matmul}",
        "the fused op crashes in BNNS for several queries and large heads",
        "L9",
    ),
    ("all", False): ("pack-gqa", MATMULS, "L8 L16"),
    ("cpu-and-gpu", False): ("pack-gqa", MATMULS, "L8 L16"),
    ("cpu-and-ne", False): ("decompose-sdpa{style=split-einsum}", BELOW, "L8 L21"),
    ("cpu", False): ("pack-gqa", MATMULS, "L8 L16"),
}


def test_the_table() -> None:
    found = {key: (each.passes, each.why, " ".join(each.sources)) for key, each in POLICY.items()}
    assert found == WANTED


def test_what_is_left_out() -> None:
    assert attention_passes() == POLICY["all", True]
    assert attention_passes("cpu") == POLICY["cpu", True]
    assert attention_passes("cpu", fused_exists=False) == POLICY["cpu", False]


PIPELINES = [
    ("", "fuse-sdpa,pack-gqa", "fuse-sdpa,pack-gqa"),
    ("canonicalize,fuse-sdpa,pack-gqa", "", "canonicalize"),
    ("canonicalize,decompose-sdpa{style=matmul},palettize", "", "canonicalize,palettize"),
    ("canonicalize,palettize", "pack-gqa", "canonicalize,pack-gqa,palettize"),
    ("canonicalize,fuse-sdpa,palettize", "pack-gqa", "canonicalize,pack-gqa,palettize"),
    ("canonicalize,fuse-sdpa,palettize", EINSUM, f"canonicalize,{EINSUM},palettize"),
    (
        "fuse-sdpa,kv-to-state,palettize",
        "fuse-sdpa,pack-gqa",
        "fuse-sdpa,kv-to-state,pack-gqa,palettize",
    ),
    (
        "canonicalize,kv-to-state,linear-to-conv",
        "fuse-sdpa,pack-gqa",
        "canonicalize,fuse-sdpa,kv-to-state,pack-gqa,linear-to-conv",
    ),
    (
        "canonicalize,fuse-sdpa,ct:common::const_elimination,kv-to-state",
        "fuse-sdpa,pack-gqa",
        "canonicalize,fuse-sdpa,ct:common::const_elimination,kv-to-state,pack-gqa",
    ),
    (
        "canonicalize,linear-to-conv",
        "fuse-sdpa,pack-gqa",
        "canonicalize,fuse-sdpa,pack-gqa,linear-to-conv",
    ),
]


@pytest.mark.parametrize(("before", "written", "after"), PIPELINES)
def test_where_passes_are_put(before: str, written: str, after: str) -> None:
    assert str(with_passes(Pipeline.parse(before) if before else Pipeline(()), written)) == after


def test_words_that_are_no_choice() -> None:
    words: list[Any] = ["", "Fused"]
    for word in words:
        with pytest.raises(PassError, match=rf"^attention is fused, split-einsum, (matmul, )?keep, not '{word}'$"):
            with_attention(Pipeline.parse("canonicalize"), word)
    units: Any = "ne"
    with pytest.raises(PassError, match=r"^compute units are all, cpu-and-gpu, cpu-and-ne, cpu, not 'ne'$"):
        attention_passes(units)
