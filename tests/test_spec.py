"""Passes as text: what is written parses back, and what can't be read is told."""

from __future__ import annotations

import dataclasses
import math
from contextlib import suppress
from dataclasses import dataclass, field
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from milopt.errors import PassError
from milopt.package import Model
from milopt.pipeline import Pass, Pipeline
from milopt.registry import create, names, pass_class
from milopt.reports import Report
from milopt.spec import parse_options, split_spec

# Anything a text can hold: commas, quotes, braces, escapes, what reads as something else; surrogates are no text.
_TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.text("ab,'\"{}[]()=\\ :.#\n", max_size=8),
    st.sampled_from(["None", "True", "false", "inf", "nan", "1", "-1.5", "(1,2)", "a,b", "it's", ""]),
)


def values(hint: Any) -> st.SearchStrategy[Any]:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return st.sampled_from(inner)
    if origin in (Union, UnionType):
        return st.one_of(*map(values, inner))
    if origin is list:
        return st.lists(values(inner[0]), max_size=3)
    if origin is dict:
        return st.dictionaries(values(inner[0]), values(inner[1]), max_size=3)
    if origin is tuple:
        if inner[-1] is ...:
            return st.lists(values(inner[0]), max_size=3).map(tuple)
        return st.tuples(*map(values, inner))
    known: dict[Any, st.SearchStrategy[Any]] = {
        bool: st.booleans(),
        int: st.integers(1, 10**6),
        float: st.floats(1e-6, 1e6),
        str: _TEXTS,
        NoneType: st.none(),
    }
    return known[hint]


@dataclass(frozen=True)
class Everything(Pass):
    """A pass with every kind of option."""

    name: ClassVar[str] = "everything"

    said: str = "x"
    perhaps: str | None = None
    either: int | str = 1
    number: float | bool | None = None
    chosen: Literal["a", "a,b", "1", 1, "None"] = "a"
    flag: bool = True
    sizes: tuple[int, ...] = ()
    pair: tuple[str, float] = ("", 0.0)
    names: list[str] = field(default_factory=lambda: ["a"])
    nested: dict[str, tuple[int | None, ...]] = field(default_factory=dict[str, "tuple[int | None, ...]"])
    deep: tuple[tuple[str, dict[str, list[float]]], ...] | None = None

    def run(self, model: Model) -> Report:
        return Report(self.name)


# options that take some values of their type only
BOUNDED = {
    ("finite-mask", "value"): st.floats(-32752, -1000),
    ("dma-notch", "within"): st.integers(0, 10**5),
    ("dma-notch", "period"): st.integers(10**5, 10**7),
}


@st.composite
def instances(draw: st.DrawFn, cls: type[Pass]) -> Pass:
    hints = get_type_hints(cls)
    fields = [each.name for each in dataclasses.fields(cls)]
    chosen = draw(st.sets(st.sampled_from(fields))) if fields else set[str]()
    options = {name: draw(BOUNDED.get((cls.name, name), values(hints[name]))) for name in sorted(chosen)}
    try:
        return cls(**options)
    except ValueError:  # options that don't go together
        reject()


def parsed(text: str) -> Pass:
    """As the pipeline does it; :class:`Everything` is no registered pass."""
    ((name, options),) = split_spec(text)
    return Everything(**parse_options(Everything, name, options)) if name == "everything" else create(name, options)


@pytest.mark.parametrize("cls", [*map(pass_class, names()), Everything], ids=lambda cls: cls.name)
def test_every_pass_prints_as_text_that_parses_back(cls: type[Pass]) -> None:
    @settings(
        max_examples=300 if cls is Everything else 40,
        deadline=None,
        suppress_health_check=[HealthCheck.filter_too_much],
    )
    @given(instances(cls))
    def check(each: Pass) -> None:
        again = parsed(str(each))
        assert again == each
        assert repr(again) == repr(each)  # 1, 1.0 and True are equal
        assert str(again) == str(each)

    check()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([Everything]).flatmap(instances), min_size=1, max_size=3))
def test_passes_in_a_row_stay_apart(passes: list[Pass]) -> None:
    steps = list(split_spec(" , ".join(map(str, passes))))
    assert [Everything(**parse_options(Everything, *step)) for step in steps] == passes


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("everything{said='a, b',perhaps=None}", Everything(said="a, b")),
        ("everything{perhaps='None'}", Everything(perhaps="None")),
        ("everything{either=1}", Everything(either=1)),
        ("everything{either='1'}", Everything(either="1")),
        ("everything{either=one}", Everything(either="one")),
        ("everything{number=true}", Everything(number=True)),
        ("everything{number=2}", Everything(number=2.0)),
        ("everything{chosen='1'}", Everything(chosen="1")),
        ("everything{chosen=1}", Everything(chosen=1)),
        ("everything{sizes=[1, 2]}", Everything(sizes=(1, 2))),
        ("everything{pair=('a,b}', 1)}", Everything(pair=("a,b}", 1.0))),
        ("everything{nested={'a':(1,None)}}", Everything(nested={"a": (1, None)})),
    ],
)
def test_values(text: str, want: Everything) -> None:
    assert repr(parsed(text)) == repr(want)


def test_infinities_and_what_no_text_can_say() -> None:
    deep = Everything(deep=(("a", {"b": [math.inf, -math.inf]}),), number=math.inf)
    assert parsed(str(deep)) == deep
    wrong: Any = object()
    with pytest.raises(PassError, match="everything: said can't be written as text: its type is object"):
        str(Everything(said=wrong))


@settings(max_examples=300, deadline=None)
@given(st.text("ab=,'\"{}[]() \\", max_size=12))
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(PassError):
        assert all(name.isidentifier() for name, _ in split_spec(text))


STEPS: list[tuple[str, list[tuple[str, dict[str, str]]]]] = [
    ("fuse-sdpa", [("fuse-sdpa", {})]),
    ("a,b", [("a", {}), ("b", {})]),
    ("  a ,\n b{} ", [("a", {}), ("b", {})]),
    ("palettize{bits=6,group_size=16},a", [("palettize", {"bits": "6", "group_size": "16"}), ("a", {})]),
    ("a{group-size = 3}", [("a", {"group_size": "3"})]),
    ("a{axes=(1,2),b=[3,4]}", [("a", {"axes": "(1,2)", "b": "[3,4]"})]),
    ("other::pass.1", [("other::pass.1", {})]),
    ("a{x='1,2',y=\"}\"},b", [("a", {"x": "'1,2'", "y": '"}"'}), ("b", {})]),
    ("a{x={'k':(1,{2:'}'})}}", [("a", {"x": "{'k':(1,{2:'}'})}"})]),
    ("a{x='it\\'s'}", [("a", {"x": "'it\\'s'"})]),
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
        ("palettize{bits=4,bits=6}", "palettize: option 'bits' is there twice"),
        ("palettize{bits='4}", r"can't read"),
        ("palettize{bits=(4}", r"can't read"),
        ("palettize{bits=4)}", r"can't read"),
        ("fuse-sdpa{scale=1}", "fuse-sdpa has no option 'scale'; its options are: none"),
    ],
)
def test_what_can_not_be_read_is_told_in_a_line(text: str, message: str) -> None:
    with pytest.raises(PassError, match=message) as error:
        Pipeline.parse(text)
    assert "\n" not in str(error.value)
