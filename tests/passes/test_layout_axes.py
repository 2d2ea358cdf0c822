"""Dimensions as numbers: which are the same, and which are multiples of each other."""

from __future__ import annotations

from math import isqrt

from milopt.mil import get_new_symbol
from milopt.passes.layout_axes import Numbering


def test_numbers_are_themselves_and_symbols_are_not() -> None:
    numbering = Numbering()
    first, second = get_new_symbol(), get_new_symbol()
    one = numbering.number(first)
    assert numbering.number(7) == 7
    assert numbering.number(first) == one
    assert numbering.number(second) not in (one, 7)
    assert numbering.symbols == {one: first, numbering.number(second): second}


def test_multiples_are_multiples_and_parts_are_others() -> None:
    numbering = Numbering()
    symbol = get_new_symbol()
    one = numbering.number(symbol)
    assert numbering.number(3 * symbol) == 3 * one
    half = numbering.number(symbol / 2)
    assert half != one
    assert half == numbering.number(symbol / 2)
    assert half != numbering.number(symbol / 4)
    assert numbering.number(symbol + 1) not in (one, half)
    assert len(numbering.symbols) == 4


def test_symbols_have_no_factor_in_common_with_a_dimension() -> None:
    numbering = Numbering()
    numbers = [numbering.number(get_new_symbol()) for _ in range(20)]
    assert len(set(numbers)) == 20
    for number in numbers:
        assert number > 1 << 30
        assert all(number % factor for factor in range(2, isqrt(number) + 1))
