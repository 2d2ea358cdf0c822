"""A pattern that is none is refused when it is built, in one line that names the rule and the place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from milopt.building import Builder
from milopt.errors import PassError, PatternError
from milopt.matching import Match
from milopt.mil import mb
from milopt.pattern import Ops, Scalar, Value, Values, Weight, build
from milopt.rules import Rule, apply

from .support import Unbound, X, program


def unknown_op(op: Ops, x: Value) -> Any:
    return op.rellu(x=x)


def unknown_input(op: Ops, x: Value) -> Any:
    return op.softmax(x=x, axes=-1)


def unsaid_input(op: Ops, x: Value) -> Any:
    return op.add(x=x)


def unused_variable(op: Ops, x: Value, y: Value) -> Any:
    return op.relu(x=x)


def unknown_kind(op: Ops, x: int) -> Any:
    return op.relu(x=x)


def no_op(op: Ops, x: Value) -> Any:
    return x


def one_alternative_is_no_op(op: Ops, x: Value) -> Any:
    return op.one_of("there", yes=op.relu(x=x), no=x)


def nothing(op: Ops, x: Value) -> Any:
    return None


def tag_is_a_variable(op: Ops, x: Value, y: Value) -> Any:
    return op.relu(x=op.one_of("y", a=x, b=op.exp(x=y)))


def tags_differ(op: Ops, x: Value) -> Any:
    return op.add(x=op.one_of("t", a=x, b=op.exp(x=x)), y=op.one_of("t", a=x, c=op.exp(x=x)))


def chains_of_one_name(op: Ops, x: Value) -> Any:
    def moved() -> Any:
        return op.optional("moves", x, lambda v: op.identity(x=v))

    return op.add(x=moved(), y=moved())


def chain_and_tag(op: Ops, x: Value) -> Any:
    return op.relu(x=op.optional("t", op.one_of("t", a=x, b=op.exp(x=x)), lambda v: op.identity(x=v)))


def reserved(op: Ops, root: Value) -> Any:
    return op.relu(x=root)


def constant(op: Ops, x: Value) -> Any:
    return op.add(x=x, y=op.const(val=1.0))


def star_where_one_is(op: Ops, xs: Values) -> Any:
    return op.relu(x=xs)


def one_where_several_are(op: Ops, x: Value) -> Any:
    return op.concat(values=x, axis=0)


def sequence_where_one_is(op: Ops, x: Value) -> Any:
    return op.relu(x=(x,))


def one_alternative(op: Ops, x: Value) -> Any:
    return op.relu(x=op.one_of("t", only=x))


def no_link(op: Ops, x: Value) -> Any:
    return op.relu(x=op.optional("t", x))


def shared_root(op: Ops, x: Value) -> Any:
    return op.shared(op.relu(x=x))


def some_output(op: Ops, x: Value) -> Any:
    return op.split(x=x, num_splits=2, axis=0)[...]


def unpacked(op: Ops, x: Value) -> Any:
    first, _ = op.split(x=x, num_splits=2, axis=0)
    return op.relu(x=first)


def strangers(op: Ops, x: Value, y: Value) -> Any:
    return op.relu(x=x), op.relu(x=y)


def only_a_constant_in_common(op: Ops, x: Value, y: Value, w: Weight) -> Any:
    return op.add(x=x, y=w), op.add(x=y, y=w)


def any_variables(op: Ops, *xs: Value) -> Any:
    return op.relu(x=xs[0])


WRONG: dict[Callable[..., Any], str] = {
    unknown_op: "MIL has no op 'rellu'; did you mean relu or relu6?",
    unknown_input: "softmax has no input 'axes'; did you mean axis?",
    unsaid_input: "add always has y, of which the pattern says nothing",
    unused_variable: "nothing in the pattern is y",
    unknown_kind: "x: a pattern variable is one of Value, Scalar, Const, Weight, Values, not int",
    no_op: "a pattern must return an op",
    one_alternative_is_no_op: "a pattern must return an op",
    nothing: "a pattern must return an op",
    tag_is_a_variable: "'y' is a tag and something else too",
    tags_differ: "two one_of('t') have different alternatives",
    chains_of_one_name: "two chains are optional('moves')",
    chain_and_tag: "'t' is a tag and something else too",
    reserved: "'root' can't be read from a match: choose another name",
    constant: "a constant is written as a literal",
    star_where_one_is: "relu's x is one value, not the variable xs",
    one_where_several_are: "concat's values are several values, not the variable x",
    sequence_where_one_is: "relu's x is one value, not a sequence of patterns",
    one_alternative: "one_of('t') needs at least two alternatives",
    no_link: "optional('t') needs at least one op that may be there",
    shared_root: "the op that is replaced can't be shared",
    some_output: "which output is replaced is a number",
    strangers: "a root has no value and no op in common with the roots before it",
    only_a_constant_in_common: "a root has no value and no op in common with the roots before it",
    unpacked: "how many outputs split has is not known here: write [0], [1]...",
    any_variables: "the variables of a pattern are named one by one, not *xs: 'Value'",
}


@pytest.mark.parametrize("pattern", WRONG, ids=lambda pattern: pattern.__name__)
def test_wrong_patterns_are_refused(pattern: Callable[..., Any]) -> None:
    with pytest.raises(PatternError) as caught:
        build(Unbound(pattern))
    message = str(caught.value)
    assert message.startswith(f"{pattern.__name__}: {WRONG[pattern]}")
    assert "\n" not in message
    first = pattern.__code__.co_firstlineno
    at = message.rpartition("(")[2].removesuffix(")")
    file, _, line = at.rpartition(":")
    assert file == __file__
    assert first <= int(line) < first + 6


def test_a_variable_that_may_be_out() -> None:
    def pattern(op: Ops, x: Value, s: Scalar | None) -> Any:
        return op.relu(x=x)

    assert build(Unbound(pattern))[1] == ("x", "s")


class Broken(Rule[None]):
    """A rule with a typing error in it."""

    def pattern(self, op: Ops, /, x: Value) -> Any:
        return op.rellu(x=x)

    def check(self, m: Match, /) -> None: ...

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Any:
        return m.x


def test_applying_a_wrong_rule_names_it() -> None:
    with pytest.raises(PassError, match=r"^Broken: MIL has no op 'rellu'.*test_pattern_errors.py:\d+\)$"):
        apply(Broken(), program(lambda a: mb.relu(x=a), X))


def test_the_shapes_of_a_match_are_checked_too() -> None:
    class Malformed(Broken):
        def pattern(self, op: Ops, /, x: Value) -> Any:
            return op.relu(x=x)

        def check(self, m: Match, /) -> None:
            m.shapes(x="*A *B")

    with pytest.raises(PatternError, match=r"shapes\(x='\*A \*B'\): two words are starred"):
        apply(Malformed(), program(lambda a: mb.relu(x=a), X))
