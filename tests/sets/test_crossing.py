"""What crosses from part to part, and nothing else does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import milopt
from milopt.mil import Program, Var, mb, operations, target, types
from milopt.package import Model
from milopt.sets import SetError, chunk, verify
from tests.sets.programs import SIZE, Transformer

STREAM = "hidden_states"


def _takes(made: Any, part: str, function: str = "decode") -> dict[str, str]:
    return dict(made.part(part).steps[function].takes)


def _ops(made: Any, part: str) -> list[str]:
    model = made.files[made.part(part).file]
    assert isinstance(model, Model)
    return [op.op_type for op in operations(model.function())]


def test_the_first_chunk_takes_the_callers_inputs_and_the_others_the_stream() -> None:
    made = chunk(Transformer().model(), count=3, embedding="package", head="package")
    assert _takes(made, "embeddings") == {"input_ids": "input_ids"}
    caller = {name: name for name in ("position_ids", "causal_mask", "current_pos")}
    assert _takes(made, "chunk_01of03") == {**caller, STREAM: "embeddings/hidden_states"}
    assert _takes(made, "chunk_02of03")[STREAM] == "chunk_01of03/output_hidden_states"
    assert _takes(made, "head") == {STREAM: "chunk_03of03/output_hidden_states"}


def test_looked_up_angles_are_handed_over_where_the_table_is_larger() -> None:
    made = chunk(Transformer(table=12).model(), count=2)
    second = _takes(made, "chunk_02of02")
    assert "position_ids" not in second
    angles = [name for name in second if name.startswith("gather")]
    assert [second[name] for name in angles] == [f"chunk_01of02/{name}" for name in angles]
    assert len(angles) == 2
    assert "gather" not in _ops(made, "chunk_02of02")


def test_angles_from_a_table_are_looked_up_again_where_it_is_smaller() -> None:
    """Eight tokens' cosines and sines are more than a table of 8 rows and the positions."""
    made = chunk(Transformer(table=4).model((8,)), count=2)
    assert "position_ids" in _takes(made, "chunk_02of02", "prefill8")
    assert _ops(made, "chunk_02of02").count("gather") == 2


def test_a_table_that_functions_share_counts_once() -> None:
    """For each function alone the table is the larger: 2 x 6 x 8 numbers against 2 x 4 x 8. For both together not."""
    queries = (3, 4)
    for query in queries:
        alone = chunk(Transformer(table=6).model((query,)), count=2)
        assert "position_ids" not in _takes(alone, "chunk_02of02", f"prefill{query}")
    made = chunk(Transformer(table=6).model(queries), count=2)
    for query in queries:
        assert "position_ids" in _takes(made, "chunk_02of02", f"prefill{query}")


def test_the_smallest_value_on_the_way_is_handed_over() -> None:
    """Positions are int32, and computed angles fp16 numbers of which one cast is enough."""
    made = chunk(Transformer(table=0).model(), count=2)
    second = _takes(made, "chunk_02of02")
    (cast,) = (name for name in second if name.startswith("cast"))
    assert second[cast] == f"chunk_01of02/{cast}"
    assert "position_ids" not in second
    assert "cos" in _ops(made, "chunk_02of02")


def test_always_computed_again_or_always_handed_over() -> None:
    model = Transformer(table=0).model()
    again = chunk(model, count=2, shared="recompute")
    assert set(_takes(again, "chunk_02of02")) == {STREAM, "position_ids", "causal_mask", "current_pos"}
    passed = chunk(model, count=2, shared="pass")
    assert "cos" not in _ops(passed, "chunk_02of02")
    for made in (again, passed):
        assert (verdict := verify(model, made, trials=1)), verdict


def test_what_one_chunk_alone_needs_is_computed_there() -> None:
    @mb.program(
        input_specs=[mb.TensorSpec((1, 4), types.fp32), mb.TensorSpec((1, 4), types.fp32)], opset_version=target.iOS15
    )
    def program(x: Any, y: Any) -> Any:
        weight = np.eye(4, dtype=np.float32)
        late = mb.exp(x=y)
        first = mb.linear(x=x, weight=weight)
        return mb.mul(x=mb.linear(x=first, weight=weight), y=late, name="out")

    made = chunk(milopt.load(program), count=2, shared="pass")
    assert "exp" not in _ops(made, "chunk_01of02")
    assert _takes(made, "chunk_02of02", "main")["y"] == "y"
    assert list(made.part("chunk_01of02").steps["main"].gives) == ["output_hidden_states"]


def test_outputs_are_returned_by_the_part_that_makes_them_under_their_names() -> None:
    @mb.program(input_specs=[mb.TensorSpec((1, 4), types.fp32)], opset_version=target.iOS15)
    def program(x: Any) -> Any:
        weight = np.eye(4, dtype=np.float32)
        first = mb.linear(x=x, weight=weight, name="first")
        return mb.linear(x=mb.relu(x=first), weight=weight, name="last"), first, mb.square(x=x, name="side")

    model = milopt.load(program)
    made = chunk(model, count=2)
    assert set(made.part("chunk_01of02").steps["main"].gives) >= {"first", "side"}
    assert made.outputs == {"main": ("last", "first", "side")}
    assert (verdict := verify(model, made, trials=1)), verdict


def _late_reader() -> Model:
    """The second layer uses what the state held before the first wrote to it."""

    @mb.function(
        input_specs=[mb.TensorSpec((1, SIZE), types.fp16), mb.StateTensorSpec((1, SIZE), types.fp16)],
        opset_version=target.iOS18,
    )
    def main(x: Any, kept: Any) -> Any:
        weight = np.eye(SIZE, dtype=np.float16)
        before = mb.read_state(input=kept)
        for layer in range(2):
            x = mb.linear(x=x, weight=weight)
            mb.coreml_update_state(state=kept, value=x)
            x = mb.linear(x=mb.relu(x=x), weight=weight)
            x = mb.add(x=x, y=before) if layer else x
        return x

    program = Program()
    program.add_function("main", main)
    return Model(program, 9)


def test_what_a_state_held_earlier_is_not_read_later() -> None:
    with pytest.raises(SetError, match="part 2 uses what state 'kept' held before part 1 changed it"):
        chunk(_late_reader(), at=(0,))


def test_a_state_is_read_anew_where_an_earlier_part_wrote_it() -> None:
    """The updated value of the first layer goes into the second's update: no tensor is handed over for it."""

    @mb.function(
        input_specs=[mb.TensorSpec((1, SIZE), types.fp16), mb.StateTensorSpec((2, SIZE), types.fp16)],
        opset_version=target.iOS18,
    )
    def main(x: Any, kept: Any) -> Any:
        weight = np.eye(SIZE, dtype=np.float16)
        value = mb.read_state(input=kept)
        for row in range(2):
            x = mb.linear(x=x, weight=weight)
            new = mb.slice_update(x=value, update=x, begin=[row, 0], end=[row + 1, SIZE])
            value = mb.coreml_update_state(state=kept, value=new)
            x = mb.add(x=x, y=mb.reduce_sum(x=value, axes=[0], keep_dims=True))
        return x

    program = Program()
    program.add_function("main", main)
    model = Model(program, 9)
    made = chunk(model, at=(0,), after="attention")
    assert _takes(made, "chunk_02of02", "main") == {STREAM: "chunk_01of02/output_hidden_states"}
    assert _ops(made, "chunk_02of02").count("read_state") == 1
    assert (verdict := verify(model, made, trials=2)), verdict


class _Chained(Transformer):
    """Every layer goes on with what the layer before it left in the state, as ``kv-to-state`` writes it."""

    def _held(self, given: dict[str, Var], state: str) -> Var:
        return given.get(f"{state} now") or super()._held(given, state)


def test_what_is_cut_out_of_a_state_is_read_anew_where_it_is_used() -> None:
    """A ring is put together of what the state held and the new tokens: the slice of it is no value to hand over."""
    model = _Chained(states="unified", window=3, sliding=(0, 1, 2), ring=6).model()
    made = chunk(model, count=3, shared="recompute", embedding="package", head="package")
    for part in ("chunk_02of03", "chunk_03of03"):
        takes = _takes(made, part, "prefill4")
        assert [name for name, source in takes.items() if "/" in source] == [STREAM]
    assert verify(model, made, trials=1)
