"""What is wrong with a pattern, said when it is built."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from milopt.engine.forms import (
    Chain,
    OneOf,
    OpPattern,
    Output,
    Pat,
    Values,
    Variable,
    knots_of,
    parts_of,
    roots_of,
    walk,
)
from milopt.errors import PatternError
from milopt.mil import op_inputs, op_types

__all__ = ["RESERVED", "check_op", "check_pattern"]

# what a match says of itself
RESERVED = frozenset({"ops", "replaced", "root", "roots", "shapes"})


def check_op(op_type: str, inputs: Mapping[str, Any], where: str) -> None:
    """Raises PatternError unless MIL has such an op with such inputs, in some opset."""
    if op_type == "const":
        raise PatternError(f"a constant is written as a literal, or is a variable: Scalar or Const ({where})")
    known = op_inputs(op_type)
    if known is None:
        raise PatternError(f"MIL has no op {op_type!r}{_near(op_type, op_types())} ({where})")
    for name, value in inputs.items():
        if name not in known:
            raise PatternError(f"{op_type} has no input {name!r}{_near(name, known)} ({where})")
        if known[name].variadic and (wrong := _single(value)):
            raise PatternError(f"{op_type}'s {name} are several values, not {wrong}: write (x, y) or Values ({where})")
        if not known[name].variadic and (wrong := _several(value)):
            raise PatternError(f"{op_type}'s {name} is one value, not {wrong} ({where})")
    for name, kind in known.items():
        if kind.required and name not in inputs and not name.startswith("_"):
            raise PatternError(f"{op_type} always has {name}, of which the pattern says nothing ({where})")


def _near(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=2)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _single(value: Any) -> str:
    """What in the pattern of several values stands for one, in words."""
    if isinstance(value, OneOf):
        return next((wrong for each in value.choices.values() if (wrong := _single(each))), "")
    if isinstance(value, Variable) and not isinstance(value, Values):
        return f"the variable {value.name}"
    return "one" if isinstance(value, (OpPattern, Output, Chain)) else ""


def _several(value: Any) -> str:
    """What in the pattern of one value stands for several, in words."""
    if isinstance(value, Values):
        return "the variable " + value.name
    if isinstance(value, OneOf):
        return next((wrong for each in value.choices.values() if (wrong := _several(each))), "")
    if isinstance(value, (list, tuple)) and any(isinstance(each, Pat) for each in walk(value)):
        return "a sequence of patterns"
    return ""


def check_pattern(root: Any, variables: Mapping[str, Variable], needed: Mapping[str, Variable]) -> None:
    """Raises PatternError where the forms are right one by one, but do not make a pattern.

    ``variables`` are the parameters of the pattern method, ``needed`` those that it has to use.
    """
    roots = roots_of(root)
    if not roots or not all(map(_ends_in_op, roots)):
        raise PatternError("a pattern must return an op, alternatives that are ops, or a tuple of these")
    forms = list(walk(root))
    if unused := [name for name, variable in needed.items() if variable not in forms]:
        raise PatternError(
            f"nothing in the pattern is {', '.join(unused)}; write `Value | None` of one that may be out"
        )
    _check_names(variables, forms)
    _check_outputs(roots)
    if len(roots) > 1:
        _check_roots(roots)


def _ends_in_op(root: Any) -> bool:
    if isinstance(root, (OneOf, Chain)):
        return all(_ends_in_op(part) for part in parts_of(root))
    return isinstance(root, (OpPattern, Output))


def _check_names(variables: Mapping[str, Variable], forms: list[Any]) -> None:
    """A name that is on the match has one meaning."""
    choices: dict[str, OneOf] = {}
    chains: dict[str, Chain] = {}
    inner = {id(each) for form in forms if isinstance(form, Chain) for each in _shorter(form)}
    for form in forms:
        if isinstance(form, OneOf):
            first = choices.setdefault(form.tag, form)
            if first.choices.keys() != form.choices.keys():
                raise PatternError(f"two one_of({form.tag!r}) have different alternatives ({form.where})")
        elif isinstance(form, Chain) and id(form) not in inner and chains.setdefault(form.tag, form) is not form:
            raise PatternError(f"two chains are optional({form.tag!r}) ({form.where})")
    tagged: dict[str, OneOf | Chain] = {**choices, **chains}
    for tag, form in tagged.items():
        if tag in variables or (tag in choices and tag in chains):
            raise PatternError(f"{tag!r} is a tag and something else too ({form.where})")
    for name in (*variables, *choices, *chains):
        if name in RESERVED or name.startswith("_") or not name.isidentifier():
            raise PatternError(f"{name!r} can't be read from a match: choose another name")


def _shorter(chain: Chain) -> Iterator[Chain]:
    """The chains with fewer ops that the links of ``chain`` hold."""
    for each in walk(chain.links):
        if isinstance(each, Chain) and each.tag == chain.tag:
            yield each


def _check_outputs(roots: tuple[Any, ...]) -> None:
    for root in roots:
        parts = parts_of(root) if isinstance(root, (OneOf, Chain)) else (root,)
        for each in parts:
            if isinstance(each, (OneOf, Chain)):
                _check_outputs((each,))
            op = each.op if isinstance(each, Output) else each
            if isinstance(each, Output) and not isinstance(each.index, int):
                raise PatternError(f"which output is replaced is a number ({each.op.where})")
            if isinstance(op, OpPattern) and op.shared:
                raise PatternError(f"the op that is replaced can't be shared ({op.where})")


def _check_roots(roots: tuple[Any, ...]) -> None:
    """Several roots are found from one of them: along a variable or an op that they have in common."""
    known = knots_of(roots[0])
    for root in roots[1:]:
        knots = knots_of(root)
        if not knots & known:
            raise PatternError("a root has no value and no op in common with the roots before it")
        known |= knots
