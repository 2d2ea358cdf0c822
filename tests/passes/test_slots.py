"""Where the slots of a cache go: the axis they are in after every kind of op, and each reason to stay away."""

# The bodies of programs are lambdas of as many parameters as they have inputs, for which no one type can be written.
# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from milopt.interpreter import evaluate
from milopt.mil import Function, Program, Var, get_new_symbol, mb, target, types
from milopt.passes.slots import Slots, follow
from milopt.reports import NoMatch, place_of

B, H, S, D, Q = 1, 2, 6, 4, 3
SHAPES: dict[str, tuple[Any, ...]] = {
    "q": (B, H, Q, D),
    "k": (B, H, S, D),
    "v": (B, H, S, D),
    "mask": (B, 1, Q, S),
    "row": (S,),
    "tall": (B, 1, S, 1),
}
COLUMNS = get_new_symbol()
Body = Callable[..., Any]


def traced(body: Body, sources: dict[str, int], **shapes: tuple[Any, ...]) -> tuple[Slots, dict[str, int]]:
    """Follow ``sources`` through ``body``: what was found, and the axis of the slots by name."""
    known = {**SHAPES, **shapes}
    kinds: dict[str, Any] = dict.fromkeys(("flags", "few"), types.bool)
    specs = {name: mb.placeholder(shape, kinds.get(name, types.fp16)) for name, shape in known.items()}
    with Function(specs, opset_version=target.iOS18) as function:
        made = body(**function.inputs)
        # outputs are another matter: what the body made ends in a sum over everything
        several: Any = made if isinstance(made, (list, tuple)) else [made]
        function.set_outputs([mb.reduce_sum(x=mb.cast(x=each, dtype="fp32"), keep_dims=False) for each in several])
    slots = follow({function.inputs[name]: axis for name, axis in sources.items()}, function.inputs, set())
    return slots, {var.name: axis for var, axis in slots.axes.items()}


def refusal(body: Body, sources: dict[str, int], **shapes: tuple[Any, ...]) -> tuple[str, str]:
    """Where the slots can't be followed, and why."""
    with pytest.raises(NoMatch) as why:
        traced(body, sources, **shapes)
    return place_of(why.value.at), str(why.value)


# --- element by element

UNARY: dict[str, dict[str, Any]] = {
    "abs": {},
    "cast": {"dtype": "fp32"},
    "ceil": {},
    "clip": {"alpha": np.float16(0), "beta": np.float16(1)},
    "cos": {},
    "cosh": {},
    "erf": {},
    "exp": {},
    "exp2": {},
    "floor": {},
    "gelu": {},
    "identity": {},
    "inverse": {},
    "leaky_relu": {"alpha": np.float16(0.5)},
    "log": {},
    "relu": {},
    "relu6": {},
    "round": {},
    "rsqrt": {},
    "scaled_tanh": {"alpha": np.float16(2), "beta": np.float16(3)},
    "sigmoid": {},
    "sigmoid_hard": {"alpha": np.float16(0.1), "beta": np.float16(0.2)},
    "sign": {},
    "silu": {},
    "sin": {},
    "sinh": {},
    "softplus": {},
    "softsign": {},
    "sqrt": {},
    "square": {},
    "tan": {},
    "tanh": {},
    "threshold": {"alpha": np.float16(0.5)},
    "logical_not": {},
}


@pytest.mark.parametrize("kind", UNARY)
def test_unary_ops(kind: str) -> None:
    source = "flags" if kind == "logical_not" else "k"

    def body(**given: Any) -> Any:
        return getattr(mb, kind)(x=given[source], name="y", **UNARY[kind])

    assert traced(body, {source: 2}, flags=SHAPES["k"])[1]["y"] == 2


FLOATS = ("add", "floor_div", "maximum", "minimum", "mod", "mul", "pow", "real_div", "sub")
COMPARISONS = ("equal", "greater", "greater_equal", "less", "less_equal", "not_equal")
LOGICAL = ("logical_and", "logical_or", "logical_xor")


@pytest.mark.parametrize("kind", [*FLOATS, *COMPARISONS, *LOGICAL, "select"])
def test_binary_ops(kind: str) -> None:
    """With one number for all slots; with a mask along them; the slots are counted from the end."""
    number: Any = np.bool_(True) if kind in LOGICAL else np.float16(0.5)

    def combined(x: Any, y: Any, name: str) -> Any:
        if kind == "select":
            return mb.select(cond=mb.greater(x=x, y=np.float16(0)), a=x, b=y, name=name)
        return getattr(mb, kind)(x=x, y=y, name=name)

    def body(k: Any, row: Any, flags: Any, few: Any, **_: Any) -> Any:
        if kind in LOGICAL:
            return combined(flags, number, "y"), combined(few, flags, "wider")
        thin = mb.reduce_mean(x=k, axes=[3], keep_dims=False, name="thin")  # (B, H, S)
        return combined(k, number, "y"), combined(thin, row, "wider")

    shapes = {"flags": (B, H, S), "few": (S,)}
    sources = {"flags": 2, "few": 0} if kind in LOGICAL else {"k": 2}
    slots, axes = traced(body, sources, **shapes)
    assert (axes["y"], axes["wider"]) == (2, 2)
    assert list(slots.masks) == ([] if kind in LOGICAL else ["row"])


REDUCTIONS = ("l1_norm", "l2_norm", "log_sum", "log_sum_exp", "max", "mean", "min", "prod", "sum", "sum_square")


@pytest.mark.parametrize("kind", REDUCTIONS)
def test_reductions(kind: str) -> None:
    def body(k: Any, **_: Any) -> Any:
        reduce = getattr(mb, f"reduce_{kind}")
        return (
            reduce(x=k, axes=[1], keep_dims=False, name="before"),
            reduce(x=k, axes=[-1], keep_dims=False, name="behind"),
            reduce(x=k, axes=[0, 1], keep_dims=True, name="kept"),
            reduce(x=k, axes=[0, -3], keep_dims=False, name="both"),
            reduce(x=k, axes=[-2], keep_dims=True, name="over"),
            reduce(x=k, keep_dims=True, name="all"),
        )

    axes = traced(body, {"k": 2})[1]
    assert {name: axes.get(name) for name in ("before", "behind", "kept", "both", "over", "all")} == {
        "before": 1,
        "behind": 2,
        "kept": 2,
        "both": 0,
        "over": None,
        "all": None,
    }


@pytest.mark.parametrize("kind", [*UNARY, *(f"reduce_{kind}" for kind in REDUCTIONS)])
def test_these_ops_do_not_care_for_the_order(kind: str) -> None:
    """What following them relies on: the op of permuted columns is the permuted op, or the same sum."""
    dtype = types.bool if kind == "logical_not" else types.fp32

    @mb.program(input_specs=[mb.TensorSpec((S, D), dtype)], opset_version=target.iOS18)
    def program(x: Any) -> Any:
        given = UNARY.get(kind, {}).items()
        options = {name: each if isinstance(each, str) else np.float32(each) for name, each in given}
        over = {"axes": [0], "keep_dims": True} if kind.startswith("reduce") else {}
        return getattr(mb, kind)(x=x, name="y", **options, **over)

    numbers = np.random.default_rng(0).uniform(0.1, 2, (S, D))
    x: Any = numbers > 1 if kind == "logical_not" else numbers
    order = np.array([3, 0, 5, 1, 4, 2])
    straight, turned = (evaluate(program, {"x": each}, precision="float64")["y"] for each in (x, x[order]))
    # 1e-12: the same numbers in float64, added in another order
    np.testing.assert_allclose(turned, straight if kind.startswith("reduce") else straight[order], rtol=1e-12)


# --- attention


def attention(q: Any, k: Any, v: Any, mask: Any, **_: Any) -> Any:
    scores = mb.matmul(x=q, y=k, transpose_y=True, name="scores")
    weights = mb.softmax(x=mb.add(x=scores, y=mask, name="masked"), axis=-1, name="weights")
    return mb.matmul(x=weights, y=v, name="mixed")


def test_attention_tells_keys_from_values() -> None:
    slots, axes = traced(attention, {"k": 2, "v": 2})
    assert axes == {"k": 2, "v": 2, "scores": 3, "masked": 3, "weights": 3, "mask": 3}
    assert ([var.name for var in slots.keys], [var.name for var in slots.values]) == (["k"], ["v"])
    assert (slots.size, list(slots.masks), slots.hidden) == (S, ["mask"], True)


def test_attention_the_other_way_round() -> None:
    """Scores as columns (S, Q), the softmax along axis 2, and values from the left."""

    def body(q: Any, k: Any, v: Any, **_: Any) -> Any:
        scores = mb.matmul(x=k, y=q, transpose_y=True, name="scores")
        weights = mb.softmax(x=scores, axis=2, name="weights")
        return mb.matmul(x=v, y=weights, transpose_x=True, name="mixed")

    slots, axes = traced(body, {"k": -2, "v": -2})
    assert axes == {"k": 2, "v": 2, "scores": 2, "weights": 2}
    assert ([var.name for var in slots.keys], [var.name for var in slots.values]) == (["k"], ["v"])
    assert slots.masks == {}


def test_attention_of_rank_3() -> None:
    def body(thin: Any, wide: Any, **_: Any) -> Any:
        scores = mb.matmul(x=thin, y=wide, transpose_y=True, name="scores")
        turned = mb.matmul(x=wide, y=thin, transpose_y=True, name="turned")
        return (
            mb.matmul(x=mb.softmax(x=scores, axis=-1), y=wide),
            mb.matmul(x=wide, y=mb.softmax(x=turned, axis=1), transpose_x=True),
        )

    axes = traced(body, {"wide": 1}, thin=(H, Q, D), wide=(H, S, D))[1]
    assert (axes["scores"], axes["turned"]) == (2, 1)


def test_attention_with_keys_as_columns() -> None:
    def body(q: Any, k: Any, v: Any, **_: Any) -> Any:
        columns = mb.transpose(x=k, perm=[0, 1, -1, 2], name="columns")
        weights = mb.softmax(x=mb.matmul(x=q, y=columns, name="scores"), axis=-1, name="weights")
        turned = mb.transpose(x=weights, perm=[0, 1, 3, 2], name="turned")
        return mb.matmul(x=turned, y=v, transpose_x=True)

    axes = traced(body, {"k": 2, "v": 2})[1]
    assert axes == {"k": 2, "v": 2, "columns": 3, "scores": 3, "weights": 3, "turned": 2}


def test_a_softmax_over_something_else_is_no_attention() -> None:
    def body(k: Any, v: Any, **_: Any) -> Any:
        return mb.matmul(x=mb.softmax(x=k, axis=-1, name="soft"), y=v, transpose_x=True)

    slots, axes = traced(body, {"k": 2, "v": 2})
    assert axes["soft"] == 2
    assert not slots.keys
    assert {var.name for var in slots.values} == {"k", "v"}


def fused(q: Any, k: Any, v: Any, mask: Any, **_: Any) -> Any:
    return mb.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=mask, name="mixed")


def test_the_fused_op() -> None:
    slots, axes = traced(fused, {"k": 2, "v": 2})
    assert axes == {"k": 2, "v": 2, "mask": 3}
    assert ([var.name for var in slots.keys], [var.name for var in slots.values]) == (["k"], ["v"])
    assert (list(slots.masks), slots.hidden) == (["mask"], True)


def test_the_fused_op_without_a_mask_hides_nothing() -> None:
    def body(q: Any, k: Any, v: Any, **_: Any) -> Any:
        return mb.scaled_dot_product_attention(query=q, key=k, value=v)

    assert not traced(body, {"k": 2, "v": 2})[0].hidden


def _weights(scores: Any) -> Any:
    powers = mb.exp(x=mb.sub(x=scores, y=mb.reduce_max(x=scores, axes=[-1], keep_dims=True)))
    return mb.real_div(x=powers, y=mb.reduce_sum(x=powers, axes=[-1], keep_dims=True))


def _softmax(scores: Any) -> Any:
    return mb.softmax(x=scores, axis=-1)


def _scaled(scores: Any) -> Any:
    return mb.mul(x=scores, y=np.float16(0.5))


# what becomes of scores and a mask, and whether the mask hides columns
MASKINGS: dict[str, tuple[Callable[[Any, Any, Any], Any], bool]] = {
    "added": (lambda scores, mask, flags: _softmax(mb.add(x=scores, y=mask)), True),
    "added, from the left, and scaled": (lambda scores, mask, flags: _softmax(_scaled(mb.add(x=mask, y=scores))), True),
    "subtracted": (lambda scores, mask, flags: _softmax(mb.sub(x=scores, y=_scaled(mask))), True),
    "chosen": (
        lambda scores, mask, flags: _softmax(mb.select(cond=flags, a=scores, b=np.float16(-1e4))),
        True,
    ),
    "added, written out": (lambda scores, mask, flags: _weights(mb.add(x=scores, y=mask)), True),
    "none": (lambda scores, mask, flags: _softmax(_scaled(scores)), False),
    "none, written out": (lambda scores, mask, flags: _weights(_scaled(scores)), False),
    "a number added": (lambda scores, mask, flags: _softmax(mb.add(x=scores, y=np.float16(1))), False),
    "multiplied": (lambda scores, mask, flags: _softmax(mb.mul(x=scores, y=mask)), False),
    "behind the softmax": (lambda scores, mask, flags: mb.add(x=_softmax(scores), y=mask), False),
    "behind one written out": (lambda scores, mask, flags: mb.add(x=_weights(scores), y=mask), False),
}


@pytest.mark.parametrize("case", MASKINGS)
def test_which_masks_hide_columns(case: str) -> None:
    weigh, hides = MASKINGS[case]

    def body(q: Any, k: Any, v: Any, mask: Any, flags: Any, **_: Any) -> Any:
        return mb.matmul(x=weigh(mb.matmul(x=q, y=k, transpose_y=True), mask, flags), y=v)

    assert traced(body, {"k": 2, "v": 2}, flags=(B, 1, Q, S))[0].hidden is hides


def test_every_attention_needs_a_mask() -> None:
    def body(k2: Any, v2: Any, **given: Any) -> Any:
        bare = mb.matmul(x=_softmax(mb.matmul(x=given["q"], y=k2, transpose_y=True)), y=v2)
        return attention(**given), bare

    slots, _ = traced(body, {"k": 2, "v": 2, "k2": 2, "v2": 2}, k2=(B, H, S, D), v2=(B, H, S, D))
    assert not slots.hidden


def test_what_is_added_to_keys_masks_no_scores() -> None:
    """A bias of each slot, as long as there are slots."""

    def body(q: Any, k: Any, v: Any, tall: Any, **_: Any) -> Any:
        moved = mb.add(x=k, y=tall)
        return mb.matmul(x=_softmax(mb.matmul(x=q, y=moved, transpose_y=True)), y=v)

    with pytest.raises(NoMatch):
        traced(body, {"k": 2, "v": 2})

    def transposed(q: Any, k: Any, v: Any, row: Any, **_: Any) -> Any:
        moved = mb.add(x=mb.transpose(x=k, perm=[0, 1, 3, 2]), y=row)
        return mb.matmul(x=_softmax(mb.matmul(x=q, y=moved)), y=v)

    assert not traced(transposed, {"k": 2, "v": 2})[0].hidden


def test_two_attentions_of_one_mask() -> None:
    def body(**given: Any) -> Any:
        return attention(**given), fused(**{**given, "k": given["k2"], "v": given["v2"]})

    slots, _ = traced(body, dict.fromkeys(("k", "v", "k2", "v2"), 2), k2=SHAPES["k"], v2=SHAPES["v"])
    assert {var.name for var in slots.keys} == {"k", "k2"}
    assert {var.name for var in slots.values} == {"v", "v2"}


def test_one_value_of_two_sources() -> None:
    """Both tensors are keys where their sum is: they are found through the value that both reach."""

    def body(q: Any, k: Any, v: Any, extra: Any, mask: Any, **_: Any) -> Any:
        return attention(q, mb.relu(x=mb.add(x=k, y=extra, name="sum")), v, mask)

    slots, _ = traced(body, {"k": 2, "extra": 2, "v": 2}, extra=SHAPES["k"])
    assert {var.name for var in slots.keys} == {"k", "extra"}


# --- movements

MOVES: dict[str, tuple[Callable[[Any], Any], int]] = {
    "transpose": (lambda k: mb.transpose(x=k, perm=[2, 0, -1, 1], name="y"), 0),
    "expand_dims before": (lambda k: mb.expand_dims(x=k, axes=[1], name="y"), 3),
    "expand_dims behind": (lambda k: mb.expand_dims(x=k, axes=[3], name="y"), 2),
    "expand_dims at its place": (lambda k: mb.expand_dims(x=k, axes=[2], name="y"), 3),
    "expand_dims from the end": (lambda k: mb.expand_dims(x=k, axes=[-3], name="y"), 3),
    "squeeze": (lambda k: mb.squeeze(x=k, axes=[0], name="y"), 1),
    "squeeze from the end": (lambda k: mb.squeeze(x=k, axes=[-4], name="y"), 1),
    "squeeze of whatever there is": (lambda k: mb.squeeze(x=k, name="y"), 1),
    "squeeze behind": (lambda k: mb.squeeze(x=mb.transpose(x=k, perm=[2, 1, 3, 0]), axes=[3], name="y"), 0),
    "reshape": (lambda k: mb.reshape(x=k, shape=[H, S, 2, 2], name="y"), 1),
    "reshape that joins what is before": (lambda k: mb.reshape(x=k, shape=[B * H, S, D], name="y"), 1),
    "tile": (lambda k: mb.tile(x=k, reps=[1, 3, 1, 2], name="y"), 2),
    "a slice of other axes": (
        lambda k: mb.slice_by_index(x=k, begin=[0, 1, 0, 0], end=[1, 2, S, 3], stride=[1, 1, 1, 2], name="y"),
        2,
    ),
    "a slice that could drop axes": (
        lambda k: mb.slice_by_index(
            x=k, begin=[0, 0, 0, 0], end=[1, 1, S, D], squeeze_mask=[False, False, False, False], name="y"
        ),
        2,
    ),
    "a slice that drops an axis before": (
        lambda k: mb.slice_by_index(
            x=k, begin=[0, 1, 0, 0], end=[1, 2, S, D], squeeze_mask=[False, True, False, False], name="y"
        ),
        1,
    ),
    "a slice that drops an axis behind": (
        lambda k: mb.slice_by_index(
            x=k, begin=[0, 0, 0, 1], end=[B, H, S, 2], squeeze_mask=[False, False, False, True], name="y"
        ),
        2,
    ),
    "both halves of another axis": (
        lambda k: mb.concat(values=list(mb.split(x=k, num_splits=2, axis=-1))[::-1], axis=3, name="y"),
        2,
    ),
    "a whole slice": (lambda k: mb.slice_by_index(x=k, begin=[0, 0, 0, 0], end=[1, H, S, D], name="y"), 2),
}


@pytest.mark.parametrize("case", MOVES)
def test_movements(case: str) -> None:
    move, axis = MOVES[case]
    assert traced(lambda k, **_: move(k), {"k": 2})[1]["y"] == axis


def test_a_reshape_goes_by_the_elements_before_the_slots() -> None:
    """A dimension of the same size elsewhere is not that of the slots."""
    body = lambda x, **_: mb.reshape(x=x, shape=[S, 2, S, 2], name="y")  # noqa: E731
    assert traced(body, {"x": 2}, x=(2, S, S, 2))[1]["y"] == 2


def test_the_shape_is_the_same_in_every_order() -> None:
    def body(k: Any, **_: Any) -> Any:
        return mb.reshape(x=mb.abs(x=k, name="y"), shape=mb.slice_by_size(x=mb.shape(x=k), begin=[0], size=[4]))

    with pytest.raises(NoMatch):  # by a shape that is computed, nothing is known about the result's
        traced(body, {"k": 2}, k=(B, H, get_new_symbol(), D))
    assert "size" not in traced(lambda k, **_: mb.shape(x=k, name="size"), {"k": 2})[1]


# --- masks

MASKS: dict[str, tuple[Callable[..., Any], str, int]] = {
    "as it is": (lambda mask, **_: mask, "mask", 3),
    "of lower rank, by an op": (lambda row, **_: mb.mul(x=row, y=np.float16(-1e4)), "row", 0),
    "of lower rank": (lambda row, **_: row, "row", 0),
    "by an op": (lambda mask, **_: mb.mul(x=mb.sub(x=np.float16(1), y=mask), y=np.float16(-1e4)), "mask", 3),
    "cast": (lambda mask, **_: mb.cast(x=mb.cast(x=mask, dtype="fp32"), dtype="fp16"), "mask", 3),
    "expanded": (lambda flat, **_: mb.expand_dims(x=flat, axes=[1, 2]), "flat", 1),
    "expanded from the end": (lambda flat, **_: mb.expand_dims(x=flat, axes=[-2, -3]), "flat", 1),
    "squeezed": (lambda mask, **_: mb.squeeze(x=mask, axes=[1]), "mask", 3),
    "squeezed of whatever there is": (lambda mask, **_: mb.squeeze(x=mask), "mask", 3),
    "transposed": (lambda mask, **_: mb.transpose(x=mask, perm=[-3, 0, 2, 3]), "mask", 3),
    "repeated": (lambda mask, **_: mb.tile(x=mask, reps=[1, H, 1, 1]), "mask", 3),
    "repeated by concat": (lambda mask, **_: mb.concat(values=[mask, mask], axis=1), "mask", 3),
    "reshaped": (lambda mask, **_: mb.reshape(x=mask, shape=[1, B, Q, S]), "mask", 3),
    "both operands": (lambda mask, row, **_: mb.maximum(x=mask, y=row), "row", 0),
    "one for all slots": (lambda mask, tall, **_: mb.mul(x=tall, y=mask), "mask", 3),
}


@pytest.mark.parametrize("case", MASKS)
def test_masks(case: str) -> None:
    made, name, axis = MASKS[case]

    def body(q: Any, k: Any, v: Any, **given: Any) -> Any:
        return attention(q, k, v, made(**given))

    shapes = {"flat": (B, S), "tall": (B, 1, Q, 1)}
    slots, axes = traced(body, {"k": 2, "v": 2}, **shapes)
    assert axes[name] == axis
    assert set(slots.masks) == ({"mask", "row"} if case == "both operands" else {name})
    assert "tall" not in axes


def test_a_mask_from_nowhere_is_none() -> None:
    """An inner block's own inputs are no inputs of the function."""
    with Function({name: mb.placeholder(SHAPES[name], types.fp16) for name in "qkv"}, opset_version=target.iOS18) as f:
        f.set_outputs([mb.reduce_sum(x=mb.mul(x=f.inputs["k"], y=f.inputs["v"]))])
    with pytest.raises(NoMatch) as why:
        follow({f.inputs["k"]: 2}, {}, set())
    assert (place_of(why.value.at), str(why.value)) == ("v", "a constant meets the cache column by column")


# --- reasons


def _with_mask(made: Callable[..., Any]) -> Body:
    return lambda q, k, v, **given: attention(q, k, v, made(**given))


REFUSALS: dict[str, tuple[Body, str, str]] = {
    "an op that is not known": (
        lambda k, **_: mb.cumsum(x=k, axis=2, name="sums"),
        "sums",
        "cumsum may depend on the order of the cache's columns",
    ),
    "two axes at once": (
        lambda square, **_: mb.add(x=square, y=mb.transpose(x=square, perm=[0, 1, 3, 2]), name="sum"),
        "sum",
        "holds the slots in axis 2 and in axis 3",
    ),
    "only keys": (
        lambda q, k, keys, mask, **_: mb.scaled_dot_product_attention(
            query=q, key=k, value=keys, attn_mask=mask, name="mixed"
        ),
        "mixed",
        "only its key comes from the cache",
    ),
    "only one operand": (
        lambda k, keys, **_: mb.matmul(x=k, y=keys, transpose_x=True, name="product"),
        "product",
        "only its x comes from the cache",
    ),
    "a query": (
        lambda k, keys, mask, **_: mb.scaled_dot_product_attention(query=k, key=keys, value=keys, name="mixed"),
        "mixed",
        "a query comes from the cache",
    ),
    "keys given as columns": (
        lambda wide, square, **_: mb.scaled_dot_product_attention(
            query=wide, key=mb.transpose(x=square, perm=[0, 1, 3, 2]), value=square, name="mixed"
        ),
        "mixed",
        "the slots are not the rows of its key",
    ),
    "values given as columns": (
        lambda q, square, keys, **_: mb.scaled_dot_product_attention(
            query=q, key=keys, value=mb.transpose(x=square, perm=[0, 1, 3, 2]), name="mixed"
        ),
        "mixed",
        "the slots are not the rows of its value",
    ),
    "a mask of the cache in another direction": (
        lambda square, **_: mb.scaled_dot_product_attention(
            query=square, key=square, value=square, attn_mask=square, name="mixed"
        ),
        "mixed",
        "a query comes from the cache",
    ),
    "a mask with the slots in its rows": (
        lambda keys, square, **_: mb.scaled_dot_product_attention(
            query=keys, key=keys, value=keys, attn_mask=square, name="mixed"
        ),
        "mixed",
        "its operands hold the slots in different axes",
    ),
    "slots as a batch": (
        lambda k, **_: mb.matmul(x=mb.transpose(x=k, perm=[0, 2, 1, 3]), y=np.ones((D, 2), np.float16), name="product"),
        "product",
        "the slots are a batch dimension of a matmul",
    ),
    "one slot": (
        lambda one, **_: mb.squeeze(x=one, axes=[2], name="y"),
        "y",
        "there is one slot",
    ),
    "a reshape across the slots": (
        lambda k, **_: mb.reshape(x=k, shape=[B, H * S, D], name="y"),
        "y",
        "reshape mixes the slots with another axis",
    ),
    "a reshape that splits the slots": (
        lambda k, **_: mb.reshape(x=k, shape=[B, H, 2, 3, D], name="y"),
        "y",
        "reshape mixes the slots with another axis",
    ),
    "repetitions that are computed": (
        lambda k, **_: mb.tile(
            x=k, reps=mb.concat(values=(np.ones(2, np.int32), np.ones(2, np.int32)), axis=0), name="y"
        ),
        "y",
        "tile repeats the slots",
    ),
    "a mask that is summed up": (
        lambda q, k, v, mask, **_: (attention(q, k, v, mask), mb.cumsum(x=mask, axis=3, name="sums")),
        "sums",
        "cumsum may depend on the order of the cache's columns",
    ),
    "a mask that is summed up later": (
        lambda q, k, v, mask, **_: (
            attention(q, k, v, mask),
            mb.cumsum(x=mb.relu(x=mb.abs(x=mask)), axis=3, name="sums"),
        ),
        "sums",
        "cumsum may depend on the order of the cache's columns",
    ),
    "repeated slots": (
        lambda k, **_: mb.tile(x=k, reps=[1, 1, 2, 1], name="y"),
        "y",
        "tile repeats the slots",
    ),
    "one slot of several": (
        lambda k, **_: mb.slice_by_index(
            x=k, begin=[0, 0, 1, 0], end=[B, H, 2, D], squeeze_mask=[False, False, True, False], name="y"
        ),
        "y",
        "it takes one of the slots",
    ),
    "slots that are split": (
        lambda k, **_: mb.split(x=k, num_splits=2, axis=-2, name="y"),
        "y_0",
        "it takes some of the slots",
    ),
    "slots behind slots": (
        lambda k, keys, **_: mb.concat(values=[k, keys], axis=-2, name="y"),
        "y",
        "concat puts other columns beside the slots",
    ),
    "some of the slots": (
        lambda k, **_: mb.slice_by_index(x=k, begin=[0, 0, 1, 0], end=[1, H, S, D], name="y"),
        "y",
        "it takes some of the slots",
    ),
    "slots backwards": (
        lambda k, **_: mb.slice_by_index(
            x=k,
            begin=[0, 0, -1, 0],
            end=[1, H, 0, D],
            stride=[1, 1, -1, 1],
            end_mask=[False, False, True, False],
            name="y",
        ),
        "y",
        "it takes some of the slots",
    ),
    "a constant for each slot": (
        lambda k, **_: mb.mul(x=k, y=mb.const(val=np.ones((S, 1), np.float16), name="weights"), name="y"),
        "weights",
        "a constant meets the cache column by column",
    ),
    "a mask in the other direction": (
        lambda k, tall, **_: mb.add(x=k, y=tall, name="y"),
        "tall",
        "its slots are not in the last axis",
    ),
    "a mask of any number of columns": (
        lambda q, k, v, flexible, **_: mb.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=flexible),
        "flexible",
        f"has {COLUMNS} columns for the slots",
    ),
    "a mask that is mixed": (
        _with_mask(lambda mask, **_: mb.cumsum(x=mask, axis=3, name="sums")),
        "sums",
        "the mask is computed by cumsum: its columns can't be told apart",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_reasons(case: str) -> None:
    body, place, reason = REFUSALS[case]
    shapes = {
        "square": (B, H, S, S),
        "keys": (B, H, S, D),
        "one": (B, H, 1, D),
        "flexible": (B, 1, Q, COLUMNS),
        "wide": (B, H, Q, S),
    }
    sources = {"k": 2, "v": 2, "square": 2, "one": 2}
    assert refusal(body, sources, **shapes) == (place, reason)


def test_an_axis_added_to_a_mask_holds_no_slots() -> None:
    """With one slot alone, its size is no proof."""

    def body(q: Any, k: Any, v: Any, flat: Any, **_: Any) -> Any:
        return mb.scaled_dot_product_attention(
            query=q, key=k, value=v, attn_mask=mb.expand_dims(x=flat, axes=[3], name="expanded")
        )

    shapes = {"k": (B, H, 1, D), "v": (B, H, 1, D), "flat": (B, 1, Q)}
    assert refusal(body, {"k": 2, "v": 2}, **shapes) == ("expanded", "an added axis meets the slots")


def test_an_output_has_the_order_of_the_cache() -> None:
    with Function({"k": mb.placeholder(SHAPES["k"], types.fp16)}, opset_version=target.iOS18) as function:
        shown = mb.relu(x=function.inputs["k"], name="shown")
        function.set_outputs([shown])
    source: Var = function.inputs["k"]
    with pytest.raises(NoMatch) as why:
        follow({source: 2}, function.inputs, set())
    assert (place_of(why.value.at), str(why.value)) == (
        "shown",
        "its columns are in the order of the cache, and it is an output",
    )
    assert follow({source: 2}, function.inputs, {shown}).axes[shown] == 2


def test_a_program_of_its_own_is_not_changed() -> None:
    with Function({"k": mb.placeholder(SHAPES["k"], types.fp16)}, opset_version=target.iOS18) as function:
        function.set_outputs([mb.reduce_sum(x=function.inputs["k"])])
    program = Program()
    program.add_function("main", function)
    before = str(program)
    follow({function.inputs["k"]: 2}, function.inputs, set())
    assert str(program) == before
