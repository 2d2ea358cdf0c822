"""Passes as text: what is written parses back, and what can't be read is told."""

from __future__ import annotations

import dataclasses
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milopt.errors import PassError
from milopt.pipeline import Pass, Pipeline
from milopt.registry import names, pass_class
from milopt.spec import split_spec

# What texts of options are made of: names of inputs and the like.
_NAMES = st.from_regex(r"[a-z][a-z0-9_.-]{0,8}", fullmatch=True).filter(lambda text: text != "None")


def values(hint: Any) -> st.SearchStrategy[Any]:
    origin, choices = get_origin(hint), get_args(hint)
    if origin is Literal:
        return st.sampled_from(choices)
    if origin in (Union, UnionType):
        return st.one_of(*map(values, choices))
    known: dict[Any, st.SearchStrategy[Any]] = {
        bool: st.booleans(),
        int: st.integers(1, 10**6),
        float: st.floats(1e-6, 1e6),
        str: _NAMES,
        NoneType: st.none(),
    }
    return known[hint]


@st.composite
def passes(draw: st.DrawFn) -> Pass:
    cls = pass_class(draw(st.sampled_from(names())))
    hints = get_type_hints(cls)
    fields = [each.name for each in dataclasses.fields(cls)]
    chosen = draw(st.sets(st.sampled_from(fields))) if fields else set[str]()
    return cls(**{name: draw(values(hints[name])) for name in sorted(chosen)})


@settings(max_examples=200, deadline=None)
@given(passes())
def test_every_pass_prints_as_text_that_parses_back(each: Pass) -> None:
    (parsed,) = Pipeline.parse(str(each)).passes
    assert parsed == each
    assert type(parsed) is type(each)
    assert str(parsed) == str(each)


STEPS: list[tuple[str, list[tuple[str, dict[str, str]]]]] = [
    ("fuse-sdpa", [("fuse-sdpa", {})]),
    ("a,b", [("a", {}), ("b", {})]),
    ("  a ,\n b{} ", [("a", {}), ("b", {})]),
    ("palettize{bits=6,group_size=16},a", [("palettize", {"bits": "6", "group_size": "16"}), ("a", {})]),
    ("a{group-size = 3}", [("a", {"group_size": "3"})]),
    ("a{axes=(1,2),b=[3,4]}", [("a", {"axes": "(1,2)", "b": "[3,4]"})]),
    ("other::pass.1", [("other::pass.1", {})]),
]


@pytest.mark.parametrize(("text", "steps"), STEPS)
def test_texts(text: str, steps: list[tuple[str, dict[str, str]]]) -> None:
    assert list(split_spec(text)) == steps


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the pipeline is empty"),
        ("  ", "the pipeline is empty"),
        ("fuse-sdpa{", r"can't read 'fuse-sdpa\{' in pipeline"),
        ("fuse-sdpa,,palettize", "can't read ',palettize' in pipeline"),
        ("fuse-sdpa palettize", "can't read 'fuse-sdpa palettize'"),
        ("palettize{bits}", "palettize: option 'bits' has no value; write option=value"),
        ("palettize{bits=five}", "palettize: bits is one of 1, 2, 3, 4, 6, 8, not 'five'"),
        ("palettize{group_size=many}", "palettize: group_size is of type int, not 'many'"),
        ("palettize{embedding=perhaps}", "palettize: embedding is of type bool, not 'perhaps'"),
        ("fuse-sdpa{scale=1}", "fuse-sdpa has no option 'scale'; its options are: none"),
    ],
)
def test_what_can_not_be_read_is_told_in_a_line(text: str, message: str) -> None:
    with pytest.raises(PassError, match=message) as error:
        Pipeline.parse(text)
    assert "\n" not in str(error.value)
