"""Packages of others: their inputs are understood, and each is equal to itself and not to a neighbour of it."""

from __future__ import annotations

from pathlib import Path

from milopt.building import Builder
from milopt.metrics import Lossy
from milopt.mil import operations
from milopt.package import load
from milopt.verify import compare, freeze


def test_ranged_sizes(shared: Path) -> None:
    """crepe takes 1 to 4096 frames: the default first, then others."""
    model = load(shared / "models/real/crepe_tiny.mlpackage")
    verdict = compare(model, model, trials=3)
    assert verdict
    assert verdict.tried[0] == "ordinary random inputs of 1x1024 for main"
    assert len(set(verdict.tried)) == 3


def test_two_ranges_that_must_agree(shared: Path) -> None:
    """The package does not say that there are as many labels as points."""
    model = load(shared / "models/real/SAM2TinyPromptEncoderFLOAT16.mlpackage")
    assert compare(model, model, trials=2)


def test_magnitudes(shared: Path) -> None:
    """dtln takes the logarithm of its inputs: of normal numbers, every output would be NaN."""
    model = load(shared / "models/real/dtln128_part1.mlpackage")
    verdict = compare(model, model, trials=2)
    assert verdict
    assert verdict.nan == 0


def test_token_ids_and_masks(shared: Path) -> None:
    model = load(shared / "models/stories260K/stories260K_ios18_multifunction.mlpackage")
    roles = freeze(model).roles
    assert roles.keys() == {"prefill64", "decode"}
    for each in roles.values():
        assert (each["input_ids"].kind, each["input_ids"].high) == ("index", 512)
        assert each["causal_mask"].kind == "mask"
    assert compare(model, model, trials=2)


def test_a_palettized_twin(shared: Path) -> None:
    """A real compressed package against its original: 4 bits in groups of 16 are some 15 dB, and never exact."""
    folder = shared / "models/stories260K"
    before, after = (load(folder / f"stories260K_ios18_{name}.mlpackage") for name in ("stateful", "stateful_pal4g16"))
    assert not compare(before, after, trials=1)
    verdict = compare(before, after, trials=1, metric=Lossy(min_snr_db=5))
    assert verdict
    assert verdict.snr_db is not None
    assert 5 < verdict.snr_db < 40


def test_an_epsilon_that_changed(shared: Path) -> None:
    model = load(shared / "models/stories260K/stories260K_ios18_prefill64.mlpackage")
    other = model.clone()
    op = next(op for op in operations(other.function()) if op.op_type == "rsqrt")
    old = op.inputs["epsilon"].val
    op.set_inputs(epsilon=Builder(op, set()).const(val=type(old)(1e-3)))
    verdict = compare(model, other, trials=1)
    assert not verdict
    assert "first value that differs: " in str(verdict)
    assert "(by rsqrt)" in str(verdict)
