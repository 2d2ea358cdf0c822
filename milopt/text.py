"""The canonical text of a program: the same for programs that differ in names, counters and addresses only.

    main[CoreML8](%x: fp16[1, 64], %cache: state<fp16[1, 8]>) {
      %0: fp16[1, 32] = linear(x=%x, weight=w0, bias=w1)
      %1: fp16[1, 32] = softmax(x=%0)
    } -> (out=%1)
    w0: fp16[32, 64]
    w1: fp16[32]

Function inputs and outputs keep their names; every other value is numbered in order of definition, symbols are
``s0``, ``s1``..., constants of up to 16 elements are written where they are used and inputs that equal the op's
default are left out. Larger constants are listed at the end.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from milopt.mil import Block, Function, Operation, Program, Var, digest, is_symbolic, types, weight_key

if TYPE_CHECKING:
    from milopt.package.model import Model

__all__ = ["Lines", "lines", "text"]

sympy: Any = importlib.import_module("sympy")  # it carries no types

_INLINE = 16  # elements
_DIGEST = 8  # bytes
_BARE = {"fp32", "int32", "bool", "string"}  # an inlined constant of any other type says which


def text(model_or_program: Model | Program, *, weights: Literal["shape", "hash"] = "shape") -> str:
    """The text of all functions, in order.

    With ``weights="shape"`` a large constant is named by where it lies in memory: two uses of one array share a name,
    equal arrays do not. With ``"hash"`` it is named by its bytes, and a hash of them is listed, so that equal texts
    mean equal weights.
    """
    program = model_or_program if isinstance(model_or_program, Program) else model_or_program.program
    writer = _Writer(by_content=weights == "hash")
    lines = [line for name, function in program.functions.items() for line in writer.function(name, function)]
    return "\n".join([*lines, *writer.listed]) + "\n"


@dataclass(frozen=True)
class Lines:
    """The canonical text by op: ``ops`` in program order, constants that are written where they are used left out.

    ``weights`` are the lines of the larger constants, by name (``w0``).
    """

    ops: dict[Operation, str]
    weights: dict[str, str]


def lines(model_or_program: Model | Program) -> Lines:
    """The same text as :func:`text`, taken apart; an op with blocks has its first line only."""
    program = model_or_program if isinstance(model_or_program, Program) else model_or_program.program
    writer = _Writer(by_content=False)
    for name, function in program.functions.items():
        for _ in writer.function(name, function):
            pass
    return Lines(writer.heads, {each.partition(":")[0]: each for each in writer.listed})


class _Writer:
    def __init__(self, *, by_content: bool) -> None:
        self.by_content = by_content
        self.listed: list[str] = []
        self.heads: dict[Operation, str] = {}
        self.weights: dict[object, tuple[str, str]] = {}  # key -> (name, type as listed)
        self.alive: list[Any] = []  # a key by address is valid while its array lives
        self.symbols: dict[Any, Any] = {}
        self.values: dict[Var, str] = {}
        self.count = 0

    def function(self, name: str, function: Function) -> Iterator[str]:
        self.values = {var: f"%{key}" for key, var in function.inputs.items()}
        self.count = 0
        inputs = ", ".join(f"%{key}: {self.type(var)}" for key, var in function.inputs.items())
        opset = f"CoreML{int(function.opset_version) - 1}" if function.opset_version else "no opset"
        yield f"{name}[{opset}]({inputs}) {{"
        yield from self.operations(function, "  ")
        yield f"}} -> ({', '.join(f'{var.name}={self.values[var]}' for var in function.outputs)})"

    def operations(self, block: Block, indent: str) -> Iterator[str]:
        for op in block.operations:
            if op.op_type == "const" and _is_only_read(op.outputs[0]):
                continue
            arguments = ", ".join(self.arguments(op))
            results = ", ".join(f"{self.number(var)}: {self.type(var)}" for var in op.outputs)
            head = f"{indent}{results} = {op.op_type}({arguments})"
            self.heads[op] = head.strip()
            if not op.blocks:
                yield head
                continue
            yield f"{head} {{"
            for inner in op.blocks:
                inputs = ", ".join(f"{self.number(var)}: {self.type(var)}" for var in inner.inputs)
                yield f"{indent}  block({inputs}) {{"
                yield from self.operations(inner, f"{indent}    ")
                yield f"{indent}  }} -> ({', '.join(self.values[var] for var in inner.outputs)})"
            yield f"{indent}}}"

    def number(self, var: Var) -> str:
        name = self.values[var] = f"%{self.count}"
        self.count += 1
        return name

    def arguments(self, op: Operation) -> Iterator[str]:
        if op.op_type == "const":
            yield f"val={self.constant(op.outputs[0])}"
            return
        defaults = dict(op.default_inputs().items())
        for name, value in op.inputs.items():
            if name.startswith("_"):
                continue
            if not isinstance(value, Var):
                yield f"{name}=({', '.join(map(self.value, value))})"
            elif not _is_default(value, defaults.get(name)):
                yield f"{name}={self.value(value)}"

    def value(self, var: Var) -> str:
        known = self.values.get(var)
        if known is not None:
            return known
        return self.constant(var)

    def constant(self, var: Var) -> str:
        array: Any = np.asarray(var.val)
        dtype = self.element(var)
        if array.size == 0:
            return f"{dtype}{list(array.shape)}()"
        if array.size > _INLINE:
            return self.weight(array, dtype)
        shown = _literal(array)
        return shown if dtype in _BARE else f"{dtype}({shown})"

    def weight(self, array: Any, dtype: str) -> str:
        shape = f"{dtype}{list(array.shape)}"
        content = f" #{digest(array, _DIGEST).hex()}" if self.by_content else ""
        key = (dtype, content or weight_key(array))
        self.alive.append(array)
        if key not in self.weights:
            name = f"w{len(self.weights)}"
            self.weights[key] = name, shape
            self.listed.append(f"{name}: {shape}{content}")
        name, listed = self.weights[key]
        return name if listed == shape else f"{name} as {list(array.shape)}"

    def type(self, var: Var) -> str:
        return self.type_text(var.sym_type)

    def type_text(self, kind: Any) -> str:
        if types.is_state(kind):
            return f"state<{self.type_text(kind.wrapped_type())}>"
        if types.is_list(kind):
            length = "?" if kind.T[2] else kind.T[1]
            return f"list<{self.type_text(kind.T[0])}, {length}>"
        if types.is_dict(kind):
            return f"dict<{self.type_text(kind.T[0])}, {self.type_text(kind.T[1])}>"
        if types.is_tensor(kind):
            dims = ", ".join(self.dim(dim) for dim in kind.get_shape())
            return f"{types.builtin_to_string(kind.get_primitive())}[{dims}]"
        return str(types.builtin_to_string(kind) or "unknown")

    def element(self, var: Var) -> str:
        kind = var.sym_type
        while types.is_list(kind):
            kind = kind.T[0]
        return str(types.builtin_to_string(kind.get_primitive() if types.is_tensor(kind) else kind))

    def dim(self, dim: Any) -> str:
        if not is_symbolic(dim):
            return str(int(dim))
        for symbol in sorted(dim.free_symbols, key=lambda each: (len(each.name), each.name)):
            if symbol not in self.symbols:
                self.symbols[symbol] = sympy.Symbol(f"s{len(self.symbols)}")
        return str(dim.xreplace(self.symbols)).replace(" ", "")


def _is_only_read(var: Var) -> bool:
    """Whether a constant appears where it is used; one that nothing uses, or a block returns, has its own line."""
    return bool(var.child_ops) and not var.consuming_blocks


def _is_default(var: Var, default: Any) -> bool:
    if default is None or isinstance(default, Var) or var.op is None or var.op.op_type != "const":
        return False
    given, usual = np.asarray(var.val), np.asarray(default)
    if given.dtype.kind == "f":
        usual = usual.astype(given.dtype)  # 1e-12 is another number in fp32 and in Python
    return np.array_equal(given, usual)


def _literal(array: Any) -> str:
    if array.ndim == 0:
        return _scalar(array[()])
    return f"[{', '.join(map(_literal if array.ndim > 1 else _scalar, array))}]"


def _scalar(value: Any) -> str:
    kind = value.dtype.kind
    if kind in "US":
        return json.dumps(str(value))
    return str(value).lower() if kind == "b" else str(value)
