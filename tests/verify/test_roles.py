"""What inputs are for is read off the program, and random values respect it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from milopt.interpreter import ValueInfo
from milopt.mil import Program, Var, get_new_symbol, mb, target, types
from milopt.package import load
from milopt.verify import compare, freeze
from milopt.verify.drawing import MASKED, Style, causal, draw
from milopt.verify.roles import Role
from tests.verify.decoders import VOCABULARY, Decoder
from tests.verify.programs import attention

INTS = types.int32


def _roles(program: Program) -> dict[str, Role]:
    return freeze(load(program)).roles["main"]


def test_decoder() -> None:
    roles = freeze(Decoder().stateful()).roles["prefill4"]
    assert roles["input_ids"] == Role("index", VOCABULARY)
    assert roles["position_ids"].kind == "position"
    assert roles["causal_mask"].kind == "mask"
    assert roles["current_pos"] == Role("index", 12 - 4 + 1)


def test_attention() -> None:
    roles = _roles(attention())
    assert [roles[name].kind for name in ("q", "k", "v", "mask")] == ["number", "number", "number", "mask"]


def test_guarded_embedding_and_shifted_positions() -> None:
    """coremltools guards gathers against negative indices; OPT adds 2 to positions before it looks them up."""

    @mb.program(input_specs=[mb.TensorSpec((1, 3), INTS), mb.TensorSpec((1, 3), INTS)], opset_version=target.iOS18)
    def program(ids: Var, places: Var) -> Var:
        wrapped = mb.select(cond=mb.greater_equal(x=ids, y=0), a=ids, b=mb.add(x=ids, y=50))
        x = mb.gather(x=np.ones((50, 4), np.float32), indices=wrapped, axis=0)
        y = mb.gather(x=np.ones((18, 4), np.float32), indices=mb.add(x=places, y=2), axis=0)
        out: Var = mb.add(x=x, y=y)
        return out

    assert _roles(program) == {"ids": Role("index", 50), "places": Role("index", 16)}


def test_masks_of_bert() -> None:
    """``(1 - mask) * -1e4`` added to the scores: such a mask holds zeros and ones."""

    @mb.program(
        input_specs=[mb.TensorSpec((1, 4), INTS), mb.TensorSpec((1, 2, 4, 8)), mb.TensorSpec((1, 2, 4, 8))],
        opset_version=target.iOS18,
    )
    def program(keep: Var, q: Var, k: Var) -> Var:
        kept = mb.cast(x=mb.expand_dims(x=keep, axes=[1, 2]), dtype="fp32")
        added = mb.mul(x=mb.sub(x=np.float32(1), y=kept), y=np.float32(-1e4))
        scores = mb.matmul(x=q, y=k, transpose_y=True)
        out: Var = mb.softmax(x=mb.add(x=scores, y=added), axis=-1)
        return out

    assert {name: role.kind for name, role in _roles(program).items()} == {"keep": "keep", "q": "number", "k": "number"}


def test_a_residual_is_no_mask() -> None:
    @mb.program(input_specs=[mb.TensorSpec((2, 4)), mb.TensorSpec((2, 4))], opset_version=target.iOS18)
    def program(x: Var, y: Var) -> Var:
        out: Var = mb.softmax(x=mb.add(x=x, y=y), axis=-1)
        return out

    assert {role.kind for role in _roles(program).values()} == {"number"}


def _angles(rows: int | None, columns: int) -> Program:
    """Angles of positions, looked up in a table of ``rows`` or computed, and a mask of ``columns``."""
    specs = [mb.TensorSpec((1, 4), INTS), mb.TensorSpec((1, 1, 4, columns)), mb.TensorSpec((1, 1, 4, 8))]

    @mb.program(input_specs=specs, opset_version=target.iOS18)
    def program(position_ids: Var, mask: Var, x: Var) -> Var:
        if rows is None:
            angle = mb.mul(x=mb.cast(x=position_ids, dtype="fp32"), y=np.float32(0.1))
            wave = mb.sin(x=angle)
        else:
            wave = mb.gather(
                x=np.sin(np.arange(rows, dtype=np.float32) * np.float32(0.1)), indices=position_ids, axis=0
            )
        scores = mb.add(x=mb.matmul(x=x, y=np.ones((8, columns), np.float32)), y=mask)
        shares = mb.softmax(x=scores, axis=-1)
        out: Var = mb.mul(x=mb.reduce_max(x=shares, axes=[-1]), y=mb.expand_dims(x=wave, axes=[0]), name="out")
        return out

    result: Program = program
    return result


def test_positions_end_where_the_mask_ends() -> None:
    """A table that holds all of them is right; a smaller one fails, and that is a difference, not an error."""
    assert compare(_angles(None, 64), _angles(64, 64))
    verdict = compare(_angles(None, 64), _angles(32, 64))
    assert str(verdict).startswith("differs: the program after can't run on ")


def test_a_table_limits_positions_that_nothing_else_does() -> None:
    @mb.program(input_specs=[mb.TensorSpec((4,), INTS)], opset_version=target.iOS18)
    def computed(position_ids: Var) -> Var:
        out: Var = mb.sin(x=mb.cast(x=position_ids, dtype="fp32"), name="out")
        return out

    @mb.program(input_specs=[mb.TensorSpec((4,), INTS)], opset_version=target.iOS18)
    def tabulated(position_ids: Var) -> Var:
        out: Var = mb.gather(x=np.sin(np.arange(16, dtype=np.float32)), indices=position_ids, axis=0, name="out")
        return out

    assert compare(computed, tabulated)


def _drawn(role: Role, shape: tuple[int, ...], dtype: str = "fp16", *, ordinary: bool, seed: int = 0) -> Any:
    info = ValueInfo("x", shape, dtype)
    return draw(info, shape, role, np.random.default_rng(seed), Style(ordinary), 16)


@pytest.mark.parametrize("ordinary", [True, False])
def test_draws(ordinary: bool) -> None:
    ids = _drawn(Role("index", 5), (100,), "int32", ordinary=ordinary)
    assert (ids.dtype, ids.min(), ids.max()) == (np.int32, 0, 4)
    places = _drawn(Role("position"), (1, 6), "int32", ordinary=ordinary)
    assert 0 <= places.min() <= places.max() < 16
    assert not ordinary or set(np.diff(places).ravel()) == {1}
    kept = _drawn(Role("keep", 2), (8, 5), "int32", ordinary=ordinary)
    assert set(kept.ravel()) == {0, 1}
    assert set(kept[:, 0]) == {1}


def test_arbitrary_numbers_hold_a_row_of_zeros() -> None:
    x = _drawn(Role("number"), (2, 3, 8), "fp32", ordinary=False)
    sizes = np.abs(x).max(axis=-1).ravel()
    assert (sizes == 0).sum() == 1
    assert ((sizes > 0) & (sizes < 0.01)).sum() >= 1
    assert (sizes > 0.05).sum() == 4 or sizes.max() < 0.1
    ordinary = _drawn(Role("number"), (2, 3, 8), "fp32", ordinary=True)
    assert np.abs(ordinary).max(axis=-1).min() > 0.1


def test_additive_masks() -> None:
    plain = _drawn(Role("mask"), (1, 1, 3, 5), ordinary=True)
    assert (np.where(causal((1, 1, 3, 5)), 0, MASKED) == plain).all()
    assert (plain[0, 0, -1] == 0).all()
    assert plain[0, 0, 0].tolist() == [0, 0, 0, MASKED, MASKED]
    mixed = _drawn(Role("mask"), (1, 1, 30, 50), ordinary=False)
    assert (mixed == MASKED).any()
    assert ((mixed > -10) & (mixed != 0)).any()


def test_boolean_masks_let_something_through() -> None:
    assert _drawn(Role("mask"), (40, 4), "bool", ordinary=False).any(axis=-1).all()


def test_images_are_bytes() -> None:
    image = _drawn(Role("image", 256), (1, 3, 20, 20), "fp32", ordinary=True)
    assert image.dtype == np.float32
    assert set(image.ravel()) <= set(range(256))
    assert image.max() > 200


def test_symbols_are_one_size() -> None:
    """``x`` and ``y`` share a dimension; the program takes no other inputs."""
    symbol = get_new_symbol()

    @mb.program(input_specs=[mb.TensorSpec((symbol, 4)), mb.TensorSpec((symbol, 4))], opset_version=target.iOS18)
    def program(x: Var, y: Var) -> Var:
        out: Var = mb.add(x=x, y=y)
        return out

    verdict = compare(program, program, trials=4)
    assert verdict
    assert len(set(verdict.tried)) > 1


def test_sizes_that_the_program_refuses_are_drawn_again() -> None:
    """A package does not say that two of its dimensions must be equal: the program does, when it runs."""

    @mb.program(
        input_specs=[mb.TensorSpec((get_new_symbol(), 4)), mb.TensorSpec((get_new_symbol(), 4))],
        opset_version=target.iOS18,
    )
    def program(x: Var, y: Var) -> Var:
        out: Var = mb.concat(values=(x, y), axis=1)
        return out

    assert compare(program, program, trials=4)
