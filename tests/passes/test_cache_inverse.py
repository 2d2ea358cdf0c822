"""state-to-kv: back to where kv-to-state began, in what it computes, its names and its descriptions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import pytest

from milopt.mil import Function, Program, dtype_name, get_new_symbol, is_symbolic, mb, shape_of, target, types
from milopt.package import Model, load
from milopt.passes.cache import KvToState
from milopt.passes.cache_inverse import StateToKv
from milopt.signature import METADATA_KEY
from milopt.text import text
from milopt.verify import compare

from .cache_programs import CONTEXT, GROUPS, SIZE, Layer, flexible, model
from .test_cache import decoder
from .test_cache_forms import FORMS, MIXED, ROLLING, SLIDING


def features(made: Model) -> dict[str, Any]:
    """All inputs and outputs with their types and descriptions."""
    found: dict[str, Any] = {}
    for name, function in made.functions.items():
        for var in (*function.inputs.values(), *function.outputs):
            shape = tuple("any" if is_symbolic(dim) else dim for dim in shape_of(var))
            found[f"{name}: {var.name}"] = shape, dtype_name(var), made.text_of(name, var.name)
    return found


def there_and_back(before: Model, **options: Any) -> None:
    made = before.clone()
    for name, function in made.functions.items():
        for each in (*function.inputs, *(var.name for var in function.outputs)):
            if not each.startswith("past_value"):
                made.describe(name, each, f"what {each} is")
    wanted = features(made)
    forth = KvToState(**options).run(made)
    assert forth, str(forth)
    stateful = made.clone()
    back = StateToKv().run(made)
    assert back.applied == forth.applied, str(back)
    made.program.validate()
    assert features(made) == wanted
    assert METADATA_KEY not in made.metadata
    for one in (before, stateful):
        verdict = compare(one, made, signature=forth.signature if one is stateful else None)
        assert verdict, str(verdict)
    assert not StateToKv().run(made)


@pytest.mark.parametrize("update", ["slice", "mask"])
@pytest.mark.parametrize("layout", ["pair", "unified", "per-layer"])
def test_layouts(layout: str, update: str) -> None:
    there_and_back(model(), layout=layout, update=update)


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str) -> None:
    there_and_back(model(layers=FORMS[form]), layout="per-layer")


@pytest.mark.parametrize("update", ["ring", "mask"])
@pytest.mark.parametrize("layers", [ROLLING, MIXED, SLIDING], ids=["rolling", "mixed", "sliding"])
def test_rings(layers: list[Layer], update: str) -> None:
    there_and_back(model(layers=layers, window=4), update=update)


def test_inputs_of_another_type() -> None:
    there_and_back(load(decoder(casts=True)))


def test_the_program_is_the_same_to_the_letter() -> None:
    """But for the names of constants: where nothing else is left of the states, nothing else is different."""
    made = model((2,))
    before = text(made)
    assert KvToState().run(made)
    assert StateToKv().run(made)
    assert text(made) == before


Body: TypeAlias = Callable[[Any, Any, Any], list[Any]]


def stateful(body: Body) -> Model:
    """A program by others: one attention with its states, of which ``body`` says what else is done with them."""
    shape = (1, GROUPS, CONTEXT, SIZE)
    inputs = {
        "x": mb.placeholder((1, GROUPS, 1, SIZE), types.fp16),
        "mask": mb.placeholder((1, 1, 1, CONTEXT), types.fp16),
        "place": mb.placeholder((1,), types.int32),
        **{name: mb.state_tensor_placeholder(shape, types.fp16) for name in ("keys", "values")},
    }
    with Function(inputs, opset_version=target.iOS18) as function:
        args, held, extra = function.inputs, dict[str, Any](), list[Any]()
        end = mb.add(x=args["place"], y=np.array([1], np.int32))
        for name in ("keys", "values"):
            begin = mb.concat(values=[np.array([0, 0], np.int32), args["place"], np.array([0], np.int32)], axis=0)
            last = mb.concat(values=[np.array([1, GROUPS], np.int32), end, np.array([SIZE], np.int32)], axis=0)
            new = mb.mul(x=args["x"], y=np.float16(0.5 if name == "keys" else 2))
            old = mb.read_state(input=args[name])
            written = mb.slice_update(x=old, update=new, begin=begin, end=last)
            held[name] = mb.coreml_update_state(state=args[name], value=written)
            extra += body(args, old, held[name])
        mixed = mb.scaled_dot_product_attention(
            query=args["x"], key=held["keys"], value=held["values"], attn_mask=args["mask"], name="mixed"
        )
        function.set_outputs([mixed, *extra])
    program = Program()
    program.add_function("main", function)
    return load(program)


def test_a_program_that_says_nothing_of_itself() -> None:
    before = stateful(lambda args, old, held: [])
    made = before.clone()
    report = StateToKv().run(made)
    assert report.applied == 2, str(report)
    assert list(made.function().inputs) == ["x", "mask", "past_key_0", "past_value_0"]
    assert [var.name for var in made.function().outputs] == ["mixed", "present_key_0", "present_value_0"]
    verdict = compare(before, made, signature=report.signature)
    assert verdict, str(verdict)
    assert made.text_of(None, "mask") == f"Mask over the columns [past | new] of the cache: {CONTEXT}."


def test_what_others_said_of_a_mask_is_kept() -> None:
    made = stateful(lambda args, old, held: [])
    made.describe("main", "mask", "What may be seen.")
    assert StateToKv().run(made)
    text_ = f"What may be seen. Mask over the columns [past | new] of the cache: {CONTEXT}."
    assert made.text_of(None, "mask") == text_


@pytest.mark.parametrize("said", ["the keys", ""])
def test_a_mask_of_which_nothing_was_said(said: str) -> None:
    """Where other inputs have texts nothing is said of it again, where none has, what its columns are."""
    made = model()
    if said:
        made.describe("q1", "past_key_0", said)
    assert KvToState().run(made)
    assert StateToKv().run(made)
    columns = f"Mask over the columns [past | new] of the cache: {CONTEXT}."
    assert made.text_of("q1", "causal_mask") == ("" if said else columns)
    assert made.text_of("q1", "past_key_0") == said


REFUSALS: dict[str, tuple[Body, str]] = {
    "the position is used": (
        lambda args, old, held: [mb.add(x=args["place"], y=np.array([3], np.int32))],
        "add also uses the position",
    ),
    "what was read is used": (
        lambda args, old, held: [mb.relu(x=old)],
        "state keys is read and used in another way",
    ),
    "the order of the slots is used": (
        lambda args, old, held: [mb.cumsum(x=held, axis=2)],
        "cumsum may depend on the order of the cache's columns",
    ),
    "the state is read again": (
        lambda args, old, held: [mb.relu(x=mb.read_state(input=args["keys"]))],
        "state keys is read 3 times",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refuses_with_its_reason(case: str) -> None:
    body, reason = REFUSALS[case]
    made = stateful(body)
    before = text(made)
    report = StateToKv().run(made)
    assert not report
    assert [miss.reason for miss in report.misses] == [reason]
    assert text(made) == before


@pytest.mark.parametrize("layout", ["pair", "unified", "per-layer"])
@pytest.mark.parametrize("position", ["current_pos", "position_ids", "causal_mask"])
def test_flexible_shapes(position: str, layout: str) -> None:
    there_and_back(flexible(), position=position, layout=layout)


@pytest.mark.parametrize("form", ["keys transposed", "keys and values together", "only the new columns go out"])
def test_flexible_forms(form: str) -> None:
    there_and_back(flexible(FORMS[form]), layout="per-layer")


def test_a_past_of_any_length_says_which() -> None:
    made = flexible()
    assert KvToState().run(made)
    assert not made.function().input_types
    assert StateToKv().run(made)
    declared = {each.name: each.shape.shape for each in made.function().input_types}
    assert list(declared) == ["past_key_0", "past_value_0", "past_key_1", "past_value_1"]
    for shape in declared.values():
        assert (shape[0], shape[1], shape[3]) == (1, GROUPS, SIZE)
        assert (shape[2].lower_bound, shape[2].upper_bound, shape[2].default) == (1, CONTEXT - 1, 1)
    made = flexible(context=100)
    assert KvToState().run(made)
    assert StateToKv().run(made)
    sizes = [each.shape.shape[2] for each in made.function().input_types]
    assert [(size.upper_bound, size.default) for size in sizes] == [(99, 36)] * 4  # 64 new tokens behind it


def test_a_prefix_by_others() -> None:
    """It says nothing of itself, and reads the slots up to the new tokens, whose number is open."""
    made = flexible()
    assert KvToState().run(made)
    made.metadata.clear()
    before = made.clone()
    report = StateToKv().run(made)
    assert report.applied == 4, str(report)
    assert report.signature is not None
    assert (report.signature.prefix, report.signature.masks) == (True, ("causal_mask",))
    verdict = compare(before, made, signature=report.signature)
    assert verdict, str(verdict)


Reading: TypeAlias = Callable[[Any, Any, Any], Any]


def read_by_others(reading: Reading) -> Model:
    """One attention on the slots up to the new token, which ``reading`` takes from (args, state, end)."""
    shape = (1, GROUPS, CONTEXT, SIZE)
    columns: Any = get_new_symbol()
    inputs = {
        "x": mb.placeholder((1, GROUPS, 1, SIZE), types.fp16),
        "mask": mb.placeholder((1, 1, 1, columns), types.fp16),
        "place": mb.placeholder((1,), types.int32),
        **{name: mb.state_tensor_placeholder(shape, types.fp16) for name in ("keys", "values")},
    }
    with Function(inputs, opset_version=target.iOS18) as function:
        args, held = function.inputs, dict[str, Any]()
        end = mb.add(x=args["place"], y=np.array([1], np.int32))
        for name in ("keys", "values"):
            begin = mb.concat(values=[np.array([0, 0], np.int32), args["place"], np.array([0], np.int32)], axis=0)
            last = mb.concat(values=[np.array([1, GROUPS], np.int32), end, np.array([SIZE], np.int32)], axis=0)
            old = mb.read_state(input=args[name])
            written = mb.slice_update(x=old, update=mb.relu(x=args["x"]), begin=begin, end=last)
            held[name] = reading(args, mb.coreml_update_state(state=args[name], value=written), end)
        mixed = mb.scaled_dot_product_attention(
            query=args["x"], key=held["keys"], value=held["values"], attn_mask=args["mask"], name="mixed"
        )
        function.set_outputs([mixed])
    program = Program()
    program.add_function("main", function)
    return load(program)


def _sliced(held: Any, end: Any, *, features: int = SIZE, **options: Any) -> Any:
    last = mb.concat(values=[np.array([1, GROUPS], np.int32), end, np.array([features], np.int32)], axis=0)
    return mb.slice_by_index(x=held, begin=[0, 0, 0, 0], end=last, **options)


def test_slots_up_to_the_new_token_by_others() -> None:
    before = read_by_others(lambda args, held, end: _sliced(held, end))
    made = before.clone()
    report = StateToKv().run(made)
    assert report.applied == 2, str(report)
    assert report.signature is not None
    assert (report.signature.prefix, report.signature.masks, report.signature.context) == (True, ("mask",), CONTEXT)
    verdict = compare(before, made, signature=report.signature)
    assert verdict, str(verdict)


READINGS: dict[str, Reading] = {
    "up to another slot": lambda args, held, end: _sliced(held, mb.add(x=end, y=np.array([0], np.int32))),
    "up to a computed place": lambda args, held, end: mb.slice_by_index(
        x=held, begin=[0, 0, 0, 0], end=mb.mul(x=np.array([1, GROUPS, 1, SIZE], np.int32), y=end)
    ),
    "with a mask of ends": lambda args, held, end: _sliced(held, end, end_mask=[False, False, True, False]),
    "with a mask of begins": lambda args, held, end: _sliced(held, end, begin_mask=[False, False, True, False]),
    "every second": lambda args, held, end: _sliced(held, end, stride=[1, 1, 2, 1]),
    "from the second": lambda args, held, end: mb.slice_by_index(
        x=held, begin=[0, 0, 1, 0], end=mb.concat(values=[np.array([1, GROUPS], np.int32), end, [SIZE]], axis=0)
    ),
}


@pytest.mark.parametrize("case", READINGS)
def test_other_slots_are_refused(case: str) -> None:
    made = read_by_others(READINGS[case])
    before = text(made)
    report = StateToKv().run(made)
    assert not report, case
    assert text(made) == before


def test_keys_up_to_the_new_token_and_all_values_are_refused() -> None:
    def reading(args: Any, held: Any, end: Any) -> Any:
        whole = held.op.state.name == "values"
        return mb.identity(x=held) if whole else _sliced(held, end)

    report = StateToKv().run(read_by_others(reading))
    assert [miss.reason for miss in report.misses] == ["some states are read whole, some to the new tokens"]


def test_some_functions_alone_are_refused() -> None:
    made = model()
    assert KvToState().run(made)
    with made.only(["q1"]):
        report = StateToKv().run(made)
    assert [miss.reason for miss in report.misses] == ["the pass runs on some functions only, and the cache is of all"]


def test_nothing_to_do() -> None:
    assert StateToKv().run(model()).notes == ["there are no states"]
