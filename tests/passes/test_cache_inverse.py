"""state-to-kv: back to where kv-to-state began, in what it computes, its names and its descriptions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import pytest

from milopt.mil import Function, Program, dtype_name, mb, shape_of, target, types
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
            found[f"{name}: {var.name}"] = shape_of(var), dtype_name(var), made.text_of(name, var.name)
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


def test_flexible_shapes_are_refused() -> None:
    made = flexible()
    assert KvToState().run(made)
    before = text(made)
    report = StateToKv().run(made)
    assert [miss.reason for miss in report.misses] == ["its shapes are flexible, and a past has a fixed one"]
    assert text(made) == before


def test_some_functions_alone_are_refused() -> None:
    made = model()
    assert KvToState().run(made)
    with made.only(["q1"]):
        report = StateToKv().run(made)
    assert [miss.reason for miss in report.misses] == ["the pass runs on some functions only, and the cache is of all"]


def test_nothing_to_do() -> None:
    assert StateToKv().run(model()).notes == ["there are no states"]
