"""Mutants of a Python file: each is the file with one small change in its syntax tree.

What changes: every literal (numbers, strings, booleans, ``None``, ``...``); arithmetic, comparison and boolean
operators, the order of their operands, each operand of ``and`` and ``or``; conditions; ``all``/``any`` and
``min``/``max``; neighbouring arguments trade places, keyword arguments go; each simple statement goes, ``require``
among them.

What does not, by rule: docstrings; annotations, type aliases and type arguments, those of base classes too; ``import``,
``__all__``, ``assert`` and ``strict`` of ``zip`` (which state what is known); ``None`` beside ``is`` (the comparison
itself changes); x and y of an op that MIL documents as commutative, two arguments of a function that is symmetric by
definition (``min``, ``lcm``, ``array_equal``), the sides of a difference of which the absolute value or the norm is
taken; the tag of a pattern's ``one_of`` that the file reads nowhere; the operands of ``+``, unless one is written as a
sequence; ``return None`` at the end of a function.
"""

from __future__ import annotations

import ast
import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path
from typing import Any, TypeVar

from milopt.matching import COMMUTATIVE

__all__ = ["Mutant", "mutants_of"]


@dataclass(frozen=True)
class Mutant:
    """``file`` with one change: ``before`` became ``after``, expressions or statements of ``function``.

    ``lines`` are those of the statement that holds the change; ``at_import`` says that it runs on import.
    """

    file: str
    function: str
    before: str
    after: str
    number: int
    lines: range
    at_import: bool
    original: str
    source: str

    @property
    def key(self) -> tuple[str, str, str, str, int]:
        return self.file, self.function, self.before, self.after, self.number

    def diff(self) -> str:
        lines = unified_diff(self.original.splitlines(), self.source.splitlines(), self.file, self.file, "", "", 1, "")
        return "\n".join(lines)


def mutants_of(path: Path, name: str) -> list[Mutant]:
    """Every mutant of the file, in the order of its text; ``name`` is what they call it."""
    text = path.read_text(encoding="utf-8")
    return list(_Walk(text, name).all())


_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.MatMult: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd,
}
_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_NAMES = {"all": "any", "any": "all", "min": "max", "max": "min"}
_SYMMETRIC = ("min", "max", "minimum", "maximum", "gcd", "lcm", "array_equal", "same_size")
_GENERIC = ("dict", "frozenset", "list", "set", "tuple")
_DROPPED = (ast.Expr, ast.Assign, ast.AugAssign, ast.Return, ast.Raise, ast.Continue, ast.Break, ast.Delete)
_SEQUENCES = (ast.List, ast.Tuple, ast.JoinedStr)
_BINDING_LOOSELY = (ast.BinOp, ast.BoolOp, ast.Compare, ast.UnaryOp, ast.IfExp, ast.Lambda, ast.NamedExpr, ast.Constant)
# so much of the text around a change is told that it can be found
_TELLING = 25

N = TypeVar("N", bound=ast.AST)


def _is_list(value: object) -> bool:
    """A field of several nodes. A function of its own: what is in the list stays untyped for both type checkers."""
    return isinstance(value, list)


def _changed(node: N, **fields: object) -> N:
    """A copy of ``node`` with other fields; its children are those of the original."""
    made = copy.copy(node)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def _without(several: list[N], at: int) -> list[N]:
    return [*several[:at], *several[at + 1 :]]


def _not(condition: ast.expr) -> ast.expr:
    return ast.UnaryOp(ast.Not(), condition)


def _told(condition: ast.expr) -> bool:
    """Whether the mutants of the condition itself include its opposite."""
    inverted = isinstance(condition, ast.Compare) and len(condition.ops) == 1
    return inverted or (isinstance(condition, ast.UnaryOp) and isinstance(condition.op, ast.Not))


def _literals(node: ast.Constant) -> Iterator[ast.expr]:
    value = node.value
    if isinstance(value, bool):
        yield ast.Constant(not value)
    elif isinstance(value, int):
        yield ast.Constant(value + 1)
    elif isinstance(value, float):
        yield ast.Constant(value * 2 if value else 1.0)
    elif isinstance(value, str):
        yield ast.Constant(f"{value}XX")
    elif value is None:
        yield ast.Constant(0)
    elif value is ...:
        yield ast.Constant(None)


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _calls(node: ast.Call) -> Iterator[ast.expr]:
    name = _called(node)
    if name in _NAMES:
        field = "attr" if isinstance(node.func, ast.Attribute) else "id"
        yield _changed(node, func=_changed(node.func, **{field: _NAMES[name]}))
    if name == "require" and not _told(node.args[0]):
        yield _changed(node, args=[_not(node.args[0]), *node.args[1:]])
    last = len(node.args) == 2 and name in _SYMMETRIC
    mapped = name == "map" and len(node.args) == 3 and getattr(node.args[0], "id", "") in _SYMMETRIC
    for at, (one, other) in enumerate(zip(node.args, node.args[1:], strict=False)):
        symmetric = last or (mapped and at == 1)
        if not symmetric and not isinstance(one, ast.Starred) and not isinstance(other, ast.Starred):
            yield _changed(node, args=[*node.args[:at], other, one, *node.args[at + 2 :]])
    for at, keyword in enumerate(node.keywords):
        if keyword.arg is not None and keyword.arg != "strict":
            yield _changed(node, keywords=_without(node.keywords, at))
    for at, (left, right) in enumerate(zip(node.keywords, node.keywords[1:], strict=False)):
        commutes = name in COMMUTATIVE and {left.arg, right.arg} == {"x", "y"}
        if left.arg is not None and right.arg is not None and not commutes:
            traded = [_changed(left, value=right.value), _changed(right, value=left.value)]
            yield _changed(node, keywords=[*node.keywords[:at], *traded, *node.keywords[at + 2 :]])


def _operations(node: ast.BinOp) -> Iterator[ast.expr]:
    yield _changed(node, op=_ARITHMETIC[type(node.op)]())
    written = any(isinstance(each, _SEQUENCES) for each in (node.left, node.right))
    if not isinstance(node.op, (ast.Mult, ast.BitAnd, ast.BitOr, ast.BitXor)) and (
        written or not isinstance(node.op, ast.Add)
    ):
        yield _changed(node, left=node.right, right=node.left)


def _comparisons(node: ast.Compare) -> Iterator[ast.expr]:
    for at, op in enumerate(node.ops):
        for other in _COMPARISONS[type(op)]:
            yield _changed(node, ops=[*node.ops[:at], other(), *node.ops[at + 1 :]])


def _booleans(node: ast.BoolOp) -> Iterator[ast.expr]:
    yield _changed(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
    for at in range(len(node.values)):
        rest = _without(node.values, at)
        yield _changed(node, values=rest) if len(rest) > 1 else rest[0]


def _others(node: ast.expr) -> Iterator[ast.expr]:
    """What may stand in the place of an expression."""
    if isinstance(node, ast.Constant):
        yield from _literals(node)
    elif isinstance(node, ast.UnaryOp) and not isinstance(node.op, ast.UAdd):
        yield node.operand
    elif isinstance(node, ast.BinOp):
        yield from _operations(node)
    elif isinstance(node, ast.Compare):
        yield from _comparisons(node)
    elif isinstance(node, ast.BoolOp):
        yield from _booleans(node)
    elif isinstance(node, ast.Call):
        yield from _calls(node)
    elif isinstance(node, ast.IfExp) and not _told(node.test):
        yield _changed(node, test=_not(node.test))


class _Walk:
    """Visits the tree, and keeps the way from its root to the node at hand."""

    def __init__(self, text: str, name: str) -> None:
        self.text = text
        self.name = name
        self.data = text.encode()
        self.tree = ast.parse(text)
        self.read = {node.attr for node in ast.walk(self.tree) if isinstance(node, ast.Attribute)}
        self.starts = [0]
        for line in self.data.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.way: list[ast.AST] = []
        self.seen: Counter[tuple[str, str, str]] = Counter()

    def all(self) -> Iterator[Mutant]:
        yield from self.visit(self.tree)

    def visit(self, node: ast.AST) -> Iterator[Mutant]:
        self.way.append(node)
        if isinstance(node, ast.expr) and not self.is_beside_is(node):
            for other in () if self.is_without_effect(node) else _others(node):
                # neighbours that are alike may trade places
                if ast.dump(other) != ast.dump(node) and not self.is_opposite(node, other):
                    yield self.made(node, other)
        if isinstance(node, (ast.If, ast.While)) and not _told(node.test):
            yield self.made(node.test, _not(node.test))
        if isinstance(node, ast.comprehension):
            for condition in node.ifs:
                yield self.made(condition, ast.Constant(True))
        if isinstance(node, ast.AugAssign):
            yield self.made(node, _changed(node, op=_ARITHMETIC[type(node.op)]()))
        if isinstance(node, _DROPPED) and not self.is_the_end(node):
            yield self.made(node, ast.Pass())
        if isinstance(node, ast.AnnAssign) and node.value is not None:
            yield self.made(node, ast.Pass())
        for child in self.children(node):
            yield from self.visit(child)
        self.way.pop()

    def is_without_effect(self, node: ast.expr) -> bool:
        """Whether ``node`` is the tag of alternatives that nothing asks for."""
        parent = self.way[-2]
        if not isinstance(parent, ast.Call) or not parent.args or parent.args[0] is not node:
            return False
        return _called(parent) == "one_of" and isinstance(node, ast.Constant) and node.value not in self.read

    def is_opposite(self, node: ast.expr, other: ast.expr) -> bool:
        """Whether ``other`` is the difference ``node`` the other way round, and its size alone is taken."""
        parent = self.way[-2]
        if not isinstance(parent, ast.Call) or _called(parent) not in ("abs", "norm"):
            return False
        if not isinstance(node, ast.BinOp) or not isinstance(other, ast.BinOp):
            return False
        return isinstance(other.op, ast.Sub) and other.left is node.right

    def is_the_end(self, node: ast.AST) -> bool:
        """Whether ``node`` is the last statement of a function that gives back what it would without it."""
        parent = self.way[-2]
        if not isinstance(node, ast.Return) or not isinstance(parent, ast.FunctionDef):
            return False
        return parent.body[-1] is node and getattr(node.value, "value", ...) is None

    def is_beside_is(self, node: ast.expr) -> bool:
        parent = self.way[-2]
        absent = isinstance(node, ast.Constant) and node.value is None
        if isinstance(node, ast.Constant) and node.value is ...:
            return any(isinstance(each, ast.Subscript) for each in self.way)
        return absent and isinstance(parent, ast.Compare) and isinstance(parent.ops[0], (ast.Is, ast.IsNot))

    def children(self, node: ast.AST) -> Iterator[ast.AST]:
        left_alone = ("slice",) if _is_generic(node) else ("annotation", "returns", "ctx", "op", "ops", "bases")
        for field, value in ast.iter_fields(node):
            if field in left_alone:
                continue
            several: list[Any] = value if _is_list(value) else [value]
            for child in several:
                if isinstance(child, ast.AST) and not _is_left_alone(child):
                    yield child

    def made(self, node: ast.expr | ast.stmt, other: ast.expr | ast.stmt) -> Mutant:
        way = self.way if self.way[-1] is node else [*self.way, node]
        joined = next((at for at, each in enumerate(way) if isinstance(each, ast.JoinedStr)), len(way) - 1)
        place, text = way[joined], _source(_replaced(way[joined:], other))  # in an f-string nothing has its own place
        if isinstance(other, _BINDING_LOOSELY) and not (isinstance(other, ast.Constant) and text[0] != "-"):
            text = f"({text})"
        before, after = self.told(way, other)
        statement = next(each for each in reversed(way) if isinstance(each, ast.stmt))
        function = ".".join(each.name for each in way if isinstance(each, (ast.FunctionDef, ast.ClassDef)))
        self.seen[function, before, after] += 1
        source = self.spliced(place, text)
        return Mutant(
            file=self.name,
            function=function or "<module>",
            before=before,
            after=after,
            number=self.seen[function, before, after],
            lines=_lines(statement),
            at_import=not any(isinstance(each, ast.FunctionDef) for each in way[:-1] if each is not statement)
            or isinstance(statement, ast.FunctionDef),
            original=self.text,
            source=source,
        )

    def told(self, way: list[ast.AST], other: ast.AST) -> tuple[str, str]:
        """The change with as much around it as tells it from others."""
        for at in range(len(way) - 1, -1, -1):
            if isinstance(way[at], (ast.expr, ast.stmt)):
                before = _source(way[at])
                if isinstance(way[at], ast.stmt) or len(before) >= _TELLING:
                    return _head(before), _head(_source(_replaced(way[at:], other)))
        raise AssertionError("an expression is in a statement")

    def spliced(self, node: ast.AST, text: str) -> str:
        assert isinstance(node, (ast.expr, ast.stmt))
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start = self.starts[node.lineno - 1] + node.col_offset
        end = self.starts[node.end_lineno - 1] + node.end_col_offset
        return (self.data[:start] + text.encode() + self.data[end:]).decode()


def _is_generic(node: ast.AST) -> bool:
    """Whether it is a type with its arguments, as in ``dict[str, None]()``."""
    return isinstance(node, ast.Subscript) and getattr(node.value, "id", "") in (
        "dict",
        "frozenset",
        "list",
        "set",
        "tuple",
    )


def _is_left_alone(node: ast.AST) -> bool:
    if isinstance(node, (ast.Import, ast.ImportFrom, ast.Assert)):
        return True
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):  # a docstring
        return True
    if isinstance(node, ast.keyword) and node.arg == "strict":
        return True
    if isinstance(node, ast.Assign):
        return any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets)
    return isinstance(node, ast.AnnAssign) and getattr(node.annotation, "id", "") == "TypeAlias"


def _replaced(way: list[ast.AST], other: ast.AST) -> ast.AST:
    """The first node of ``way`` with ``other`` in the place of the last."""
    made = other
    for parent, child in zip(way[-2::-1], way[::-1], strict=False):
        fields: dict[str, object] = {}
        for name, value in ast.iter_fields(parent):
            several: list[Any] = value if _is_list(value) else []
            if value is child:
                fields[name] = made
            elif any(each is child for each in several):
                fields[name] = [made if each is child else each for each in several]
        made = _changed(parent, **fields)
    return made


def _source(node: ast.AST) -> str:
    return ast.unparse(ast.fix_missing_locations(copy.deepcopy(node)))


def _head(text: str) -> str:
    """A statement without the block that follows."""
    return text.partition("\n")[0]


def _lines(statement: ast.stmt) -> range:
    assert statement.end_lineno is not None
    body: list[ast.stmt] = getattr(statement, "body", [])
    return range(statement.lineno, (body[0].lineno if body else statement.end_lineno + 1))
