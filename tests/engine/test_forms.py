"""Chains, alternatives, variadic inputs, outputs, weights and repeated variables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from milopt.mil import Program, mb
from milopt.pattern import Const, Ops, Scalar, Value, Values, Weight

from .support import X, find, program, reason


class TestChains:
    @staticmethod
    def pattern(op: Ops, x: Value) -> Any:
        moved = op.optional(
            "moves",
            op.relu(x=x),
            lambda v: op.transpose(x=v, perm=...),
            lambda v: op.expand_dims(x=v, axes=...),
            most=2,
        )
        return op.exp(x=moved)

    @staticmethod
    def body(*steps: str) -> Program:
        def made(a: Any) -> Any:
            x = mb.relu(x=a)
            for step in steps:
                perm = list(range(x.rank))[::-1]
                x = mb.transpose(x=x, perm=perm) if step == "transpose" else mb.expand_dims(x=x, axes=[0])
            return mb.exp(x=x)

        return program(made, X)

    @pytest.mark.parametrize(
        "steps", [(), ("transpose",), ("expand_dims",), ("transpose", "expand_dims"), ("expand_dims", "transpose")]
    )
    def test_the_ops_in_between_are_on_the_match_from_the_value_on(self, steps: tuple[str, ...]) -> None:
        (match,), _ = find(self.pattern, self.body(*steps))
        assert tuple(op.op_type for op in match.moves) == steps
        assert match.x.name == "a"

    def test_there_are_no_more_than_said(self) -> None:
        matches, matcher = find(self.pattern, self.body("transpose", "transpose", "transpose"))
        assert not matches
        assert reason(matcher) == "wanted relu, found transpose"
        assert matcher.depth == 3

    def test_the_longest_chain_comes_first(self) -> None:
        def pattern(op: Ops, x: Value) -> Any:
            return op.exp(x=op.optional("casts", x, lambda v: op.cast(x=v, dtype=...), most=2))

        twice = program(lambda a: mb.exp(x=mb.cast(x=mb.cast(x=a, dtype="fp16"), dtype="fp32")), X)
        matches, _ = find(pattern, twice)
        assert [len(match.casts) for match in matches] == [2, 1, 0]

    def test_a_chain_used_twice_is_the_same_chain(self) -> None:
        def pattern(op: Ops, x: Value) -> Any:
            wide = op.optional("casts", x, lambda v: op.cast(x=v, dtype=...))
            return op.mul(x=op.exp(x=wide), y=op.sin(x=wide))

        def body(a: Any) -> Any:
            wide = mb.cast(x=a, dtype="fp32")
            return mb.mul(x=mb.exp(x=wide), y=mb.sin(x=wide))

        (match, *_), _ = find(pattern, program(body, X))
        assert len(match.casts) == 1
        # on one side only: x is not the same value
        one = program(lambda a: mb.mul(x=mb.exp(x=a), y=mb.sin(x=mb.cast(x=a, dtype="fp32"))), X)
        assert not find(pattern, one)[0]

    def test_a_chain_that_was_not_met_is_none(self) -> None:
        def pattern(op: Ops, x: Value, s: Scalar) -> Any:
            cast = op.optional("casts", x, lambda v: op.cast(x=v, dtype=...))
            return op.one_of("kind", add=op.add(x=cast, y=s), exp=op.exp(x=x))

        assert find(pattern, program(lambda a: mb.exp(x=a), X))[0][0].casts is None
        assert find(pattern, program(lambda a: mb.add(x=a, y=np.float32(2)), X))[0][0].casts == ()

    def test_a_chain_may_end_the_pattern(self) -> None:
        def pattern(op: Ops, x: Value) -> Any:
            return op.optional("casts", op.relu(x=x), lambda v: op.cast(x=v, dtype=...))

        (match,), _ = find(pattern, program(lambda a: mb.cast(x=mb.relu(x=a), dtype="fp16"), X))
        assert [op.op_type for op in match.ops] == ["cast", "relu"]
        (match,), _ = find(pattern, program(lambda a: mb.relu(x=a), X))
        assert match.casts == ()

    def test_what_lies_in_a_chain_may_not_be_used_elsewhere_unless_shared(self) -> None:
        def alone(op: Ops, x: Value) -> Any:
            return op.exp(x=op.optional("casts", op.relu(x=x), lambda v: op.cast(x=v, dtype=...)))

        def shared(op: Ops, x: Value) -> Any:
            link = op.optional("casts", op.shared(op.relu(x=x)), lambda v: op.shared(op.cast(x=v, dtype=...)))
            return op.exp(x=link)

        def body(a: Any) -> Any:
            cast = mb.cast(x=mb.relu(x=a), dtype="fp16")
            return mb.exp(x=cast), mb.sin(x=cast)

        assert reason(find(alone, program(body, X))[1]) == "a matched value is also used outside the match"
        assert find(shared, program(body, X))[0]


class TestAlternatives:
    def test_alternatives_in_alternatives(self) -> None:
        def pattern(op: Ops, x: Value) -> Any:
            inner = op.one_of("inner", relu=op.relu(x=x), exp=op.exp(x=x))
            return op.one_of("outer", sin=op.sin(x=inner), cos=op.cos(x=op.sqrt(x=inner)), bare=inner)

        (match,), _ = find(pattern, program(lambda a: mb.cos(x=mb.sqrt(x=mb.exp(x=a))), X))
        assert (match.outer, match.inner) == ("cos", "exp")
        (match,), _ = find(pattern, program(lambda a: mb.relu(x=a), X))
        assert (match.outer, match.inner) == ("bare", "relu")

    def test_one_tag_is_one_choice(self) -> None:
        def pattern(op: Ops, x: Value, y: Value) -> Any:
            left = op.one_of("way", a=op.sin(x=x), b=op.cos(x=x))
            return op.sub(x=left, y=op.one_of("way", a=op.sin(x=y), b=op.cos(x=y)))

        assert find(pattern, program(lambda a: mb.sub(x=mb.cos(x=a), y=mb.cos(x=mb.abs(x=a))), X))[0]
        matches, matcher = find(pattern, program(lambda a: mb.sub(x=mb.sin(x=a), y=mb.cos(x=a)), X))
        assert not matches
        assert reason(matcher) == "wanted sin, found cos"

    def test_alternatives_of_literals_and_of_nothing(self) -> None:
        def pattern(op: Ops, x: Value, y: Value, mask: Value) -> Any:
            flip = op.one_of("flip", yes=True, no=False)
            scores = op.matmul(x=x, y=y, transpose_y=flip)
            given = op.one_of("masked", no=None, yes=mask)
            return op.scaled_dot_product_attention(query=scores, key=x, value=x, attn_mask=given)

        def body(a: Any, b: Any) -> Any:
            scores = mb.matmul(x=a, y=a, transpose_y=True)
            return mb.scaled_dot_product_attention(query=scores, key=a, value=a, attn_mask=b)

        (match,), _ = find(pattern, program(body, (1, 4, 4), (4, 4)))
        assert (match.flip, match.masked, match.mask.name) == ("yes", "yes", "b")

    def test_backtracking_goes_on_where_a_use_outside_refuses(self) -> None:
        """The longer alternative matches, but one of its values is needed elsewhere: the shorter one remains."""

        def pattern(op: Ops, x: Value) -> Any:
            return op.sin(x=op.one_of("kind", long=op.exp(x=op.relu(x=x)), short=op.exp(x=x)))

        def body(a: Any) -> Any:
            relu = mb.relu(x=a)
            return mb.sin(x=mb.exp(x=relu)), mb.cos(x=relu)

        (match,), _ = find(pattern, program(body, X))
        assert match.kind == "short"


class TestVariadicInputs:
    @staticmethod
    def joined(*kinds: str) -> Program:
        def body(a: Any) -> Any:
            values = [getattr(mb, kind)(x=a, name=f"{kind}_{at}") for at, kind in enumerate(kinds)]
            return mb.concat(values=values, axis=1)

        return program(body, X)

    def test_any_number_of_values(self) -> None:
        def pattern(op: Ops, xs: Values) -> Any:
            return op.concat(values=xs, axis=1)

        for count in (1, 4):
            (match,), _ = find(pattern, self.joined(*["relu"] * count))
            assert [var.name for var in match.xs] == [f"relu_{at}" for at in range(count)]

    def test_a_star_between_values(self) -> None:
        def pattern(op: Ops, x: Value, y: Value, rest: Values) -> Any:
            return op.concat(values=(op.exp(x=x), *rest, op.sin(x=y)), axis=1)

        (match,), _ = find(pattern, self.joined("exp", "relu", "cos", "sin"))
        assert [var.name for var in match.rest] == ["relu_1", "cos_2"]
        (match,), _ = find(pattern, self.joined("exp", "sin"))
        assert match.rest == ()
        matches, matcher = find(pattern, self.joined("exp"))
        assert not matches
        assert reason(matcher) == "concat has 1 values, not 2 or more"

    def test_two_stars_backtrack(self) -> None:
        def pattern(op: Ops, before: Values, x: Value, after: Values) -> Any:
            return op.concat(values=(*before, op.exp(x=x), *after), axis=1)

        matches, _ = find(pattern, self.joined("exp", "relu", "exp"))
        assert [(len(match.before), len(match.after)) for match in matches] == [(0, 2), (2, 0)]

    def test_a_repeated_star_is_the_same_values(self) -> None:
        def pattern(op: Ops, xs: Values) -> Any:
            return op.add(x=op.concat(values=xs, axis=1), y=op.concat(values=xs, axis=1))

        def body(a: Any, b: Any) -> Any:
            return mb.add(x=mb.concat(values=(a, b), axis=1), y=mb.concat(values=(a, b), axis=1))

        def other(a: Any, b: Any) -> Any:
            return mb.add(x=mb.concat(values=(a, b), axis=1), y=mb.concat(values=(b, a), axis=1))

        assert find(pattern, program(body, X, X))[0]
        matches, matcher = find(pattern, program(other, X, X))
        assert not matches
        assert reason(matcher) == "xs are not the same values as before"


class TestOutputs:
    @staticmethod
    def body(index: int) -> Program:
        return program(lambda a: mb.relu(x=mb.split(x=a, num_splits=4, axis=2)[index]), X)

    def test_from_the_end_and_any(self) -> None:
        def last(op: Ops, x: Value) -> Any:
            return op.relu(x=op.split(x=x, num_splits=4, axis=2)[-1])

        def some(op: Ops, x: Value) -> Any:
            return op.relu(x=op.split(x=x, num_splits=4, axis=2)[...])

        assert find(last, self.body(3))[0]
        assert not find(last, self.body(0))[0]
        assert all(find(some, self.body(index))[0] for index in range(4))

    def test_two_outputs_of_one_op(self) -> None:
        def pattern(op: Ops, x: Value) -> Any:
            halves = op.split(x=x, num_splits=2, axis=2)
            return op.mul(x=halves[0], y=op.sigmoid(x=halves[1]))

        def body(a: Any) -> Any:
            x, y = mb.split(x=a, num_splits=2, axis=2)
            return mb.mul(x=x, y=mb.sigmoid(x=y))

        def of_two(a: Any) -> Any:
            x, _ = mb.split(x=a, num_splits=2, axis=2)
            _, y = mb.split(x=a, num_splits=2, axis=2)
            return mb.mul(x=x, y=mb.sigmoid(x=y))

        assert find(pattern, program(body, X))[0]
        assert not find(pattern, program(of_two, X))[0]


class TestWeights:
    WEIGHT = np.full((3, 4), 0.5, np.float32)

    @staticmethod
    def pattern(op: Ops, x: Value, w: Weight) -> Any:
        return op.linear(x=x, weight=w, bias=...)

    @staticmethod
    def only_const(op: Ops, x: Value, w: Const) -> Any:
        return op.linear(x=x, weight=w, bias=...)

    @staticmethod
    def compressed() -> Any:
        return mb.constexpr_lut_to_dense(
            indices=np.array([[0, 1, 0, 1]] * 3, np.uint8), lut=np.ones((1, 1, 256, 1), np.float32)
        )

    def test_constants_and_compressed_constants(self) -> None:
        plain = program(lambda a: mb.linear(x=a, weight=self.WEIGHT), X)
        small = program(lambda a: mb.linear(x=a, weight=self.compressed()), X)
        (match,), _ = find(self.pattern, plain)
        np.testing.assert_array_equal(match.w.val, self.WEIGHT)
        (match,), _ = find(self.pattern, small)
        assert match.w.op.op_type == "constexpr_lut_to_dense"
        assert match.w.val is None, "nothing is decompressed on the way"
        assert find(self.only_const, plain)[0]
        assert reason(find(self.only_const, small)[1]) == "w is computed, not a constant"

    def test_computed_weights_are_none(self) -> None:
        def pattern(op: Ops, x: Value, w: Weight) -> Any:
            return op.matmul(x=x, y=w)

        matches, matcher = find(pattern, program(lambda a, b: mb.matmul(x=a, y=b), X, (4, 5)))
        assert not matches
        assert reason(matcher) == "w is computed, not a weight"


class TestRepeatedVariables:
    @staticmethod
    def pattern(op: Ops, x: Value, w: Value) -> Any:
        return op.sub(x=op.mul(x=x, y=w), y=w)

    @pytest.mark.parametrize(
        ("one", "other", "same"),
        [
            (np.arange(4, dtype=np.float32), np.arange(4, dtype=np.float32), True),
            (np.arange(4, dtype=np.float32), np.arange(1, 5, dtype=np.float32), False),
            (np.ones(4, np.float32), np.ones((1, 4), np.float32), False),
            (np.float32(0), np.float32(-0.0), False),
            (np.float32(np.nan), np.float32(np.nan), True),
        ],
    )
    def test_two_constants_alike_to_the_bit_are_one_value(self, one: Any, other: Any, same: bool) -> None:
        body = program(lambda a: mb.sub(x=mb.mul(x=a, y=one), y=other), X)
        assert bool(find(self.pattern, body)[0]) == same

    def test_compressed_weights_alike_are_one_value(self) -> None:
        def body(last: float) -> Program:
            def made(a: Any) -> Any:
                luts = [np.ones((1, 1, 256, 1), np.float32) for _ in range(2)]
                luts[1][..., 255, 0] = last
                first, second = (
                    mb.constexpr_lut_to_dense(indices=np.array([[0, 1, 0, 1]], np.uint8), lut=lut) for lut in luts
                )
                return mb.sub(x=mb.mul(x=a, y=first), y=second)

            return program(made, X)

        assert find(self.pattern, body(1.0))[0]
        assert not find(self.pattern, body(2.0))[0]

    def test_equal_computations_are_two_values(self) -> None:
        body = program(lambda a: mb.sub(x=mb.mul(x=a, y=mb.exp(x=a)), y=mb.exp(x=a)), X)
        assert not find(self.pattern, body)[0]

    @pytest.mark.parametrize(
        ("one", "other", "same"), [(2, 2, True), (2, 2.0000002, False), (0.0, -0.0, False), (np.nan, np.nan, True)]
    )
    def test_scalars_are_one_number_exactly(self, one: float, other: float, same: bool) -> None:
        def pattern(op: Ops, x: Value, s: Scalar) -> Any:
            return op.add(x=op.mul(x=x, y=s), y=s)

        body = program(lambda a: mb.add(x=mb.mul(x=a, y=np.float32(one)), y=np.float32(other)), X)
        assert bool(find(pattern, body)[0]) == same


def test_a_commuted_constant_enlarges_as_well() -> None:
    """The constant stands at x: what it makes larger is the operand at y."""

    def pattern(op: Ops, x: Value) -> Any:
        return op.mul(x=x, y=2.0)

    assert find(pattern, program(lambda a: mb.mul(x=np.full((1, 4), 2, np.float32), y=a), X))[0]
    assert not find(pattern, program(lambda a: mb.mul(x=np.full((5, 1, 1, 1), 2, np.float32), y=a), X))[0]


@pytest.mark.parametrize(
    "kind",
    ["add", "mul", "maximum", "minimum", "equal", "not_equal", "logical_and", "logical_or", "logical_xor"],
)
def test_every_op_that_commutes(kind: str) -> None:
    def pattern(op: Ops, x: Value, y: Value) -> Any:
        inner = op.logical_not(x=x) if kind.startswith("logical") else op.relu(x=x)
        return getattr(op, kind)(x=inner, y=y)

    def body(a: Any, b: Any) -> Any:
        if not kind.startswith("logical"):
            return getattr(mb, kind)(x=b, y=mb.relu(x=a))
        flags = [mb.cast(x=each, dtype="bool") for each in (a, b)]
        return getattr(mb, kind)(x=flags[1], y=mb.logical_not(x=flags[0]))

    assert find(pattern, program(body, X, X))[0]
