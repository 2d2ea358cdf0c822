"""Shapes written with letters, symbolic ones included."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from milopt.engine.shapes import same_size, unify_shapes
from milopt.errors import PatternError
from milopt.mil import Var, get_new_symbol, mb
from milopt.reports import NoMatch

from .support import program

sympy: Any = importlib.import_module("sympy")  # it carries no types
N, M = get_new_symbol(), get_new_symbol()


def var(*shape: Any) -> Var:
    return program(lambda a: mb.relu(x=a), shape).functions["main"].inputs["a"]


def test_a_star_stands_in_any_place() -> None:
    x = var(2, 3, 4, 5)
    assert unify_shapes({"x": (x, "*B E")}) == {"B": (2, 3, 4), "E": 5}
    assert unify_shapes({"x": (x, "A *B E")}) == {"A": 2, "B": (3, 4), "E": 5}
    assert unify_shapes({"x": (x, "A B C E *R")}).R == ()
    assert unify_shapes({"x": (x, "*_ E")}) == {"E": 5}


def test_numbers_and_anything() -> None:
    x = var(1, 7, 4)
    assert unify_shapes({"x": (x, "1 _ E")}) == {"E": 4}
    with pytest.raises(NoMatch, match=r"^x: a dimension is 7, not 1$"):
        unify_shapes({"x": (x, "1 1 E")})
    with pytest.raises(NoMatch, match=f"^x: a dimension is {N}, not 1$"):
        unify_shapes({"x": (var(N, 2), "1 E")})


def test_letters_are_one_size_across_values() -> None:
    sizes = unify_shapes({"q": (var(2, 3, 4), "*B L E"), "k": (var(2, 6, 4), "*B S E")})
    assert (sizes.B, sizes.L, sizes.S, sizes.E) == ((2,), 3, 6, 4)
    with pytest.raises(NoMatch, match=r"^k: \*B is \(3,\), but \(2,\) before$"):
        unify_shapes({"q": (var(2, 3, 4), "*B L E"), "k": (var(3, 6, 4), "*B S E")})
    with pytest.raises(NoMatch, match=r"^k: rank 1 is too small for \*B S E$"):
        unify_shapes({"k": (var(4), "*B S E")})
    with pytest.raises(AttributeError, match="no shape has a 'Z'; there are B, L, E, S"):
        _ = sizes.Z


def test_each_of_several_values_fits() -> None:
    both = (var(2, 3), var(2, 3))
    assert unify_shapes({"parts": (both, "A B")}) == {"A": 2, "B": 3}
    with pytest.raises(NoMatch, match="parts: B is 4, but 3 before"):
        unify_shapes({"parts": ((*both, var(2, 4)), "A B")})


def test_symbols_are_equal_to_themselves_and_to_what_is_proved_equal() -> None:
    assert unify_shapes({"x": (var(N, N), "A A")}).A == N
    with pytest.raises(NoMatch, match="but"):
        unify_shapes({"x": (var(N, M), "A A")})
    with pytest.raises(NoMatch, match="but"):
        unify_shapes({"x": (var(N, 4), "A A")})
    with pytest.raises(NoMatch, match="but"):
        unify_shapes({"x": (var(4, N), "A A")})


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (N + N, 2 * N, True),
        (2 * (N + 1), 2 * N + 2, True),
        ((N + 1) ** 2, N**2 + 2 * N + 1, True),
        (N - N + 4, 4, True),
        (N + M, M + N, True),
        (N, M, False),
        (N + 1, N, False),
        (N, 4, False),
        (4, 4, True),
        (4, 5, False),
        (sympy.floor(N / 2), sympy.floor((N + N) / 4), True),
        (sympy.floor(N / 2), sympy.floor(M / 2), False),
        (sympy.floor(N / 2), N / 2, False),
        ((N**2 - 1) / (N - 1), N + 1, True),
    ],
)
def test_expressions(one: Any, other: Any, same: bool) -> None:
    assert same_size(one, other) == same
    assert same_size(other, one) == same


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ({"x": "*A *B"}, "shapes(x='*A *B'): two words are starred, and no shape says where to part them"),
        ({"x": "A -1"}, "shapes(x='A -1'): '-1' is no letter, *letter, number or _"),
        ({"x": "A, B"}, "shapes(x='A, B'): 'A,' is no letter, *letter, number or _"),
        ({"x": "A * B"}, "shapes(x='A * B'): '*' is no letter, *letter, number or _"),
        ({"x": "*A A"}, "shapes(x='*A A'): A is starred in one place and not in another"),
    ],
)
def test_malformed_patterns_are_the_author_s_error(patterns: dict[str, str], message: str) -> None:
    x = var(2, 3)
    with pytest.raises(PatternError) as caught:
        unify_shapes({name: (x, pattern) for name, pattern in patterns.items()})
    assert str(caught.value) == message


def test_what_has_no_shape() -> None:
    with pytest.raises(PatternError, match="a variable that the match leaves unbound has no shape"):
        unify_shapes({"mask": (None, "A B")})
    with pytest.raises(PatternError, match="a float has no shape"):
        unify_shapes({"s": (1.0, "")})
