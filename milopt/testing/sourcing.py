"""A program as Python: the builder calls that make it again."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any

import numpy as np

from milopt.literals import default_of
from milopt.mil import Block, Function, Operation, Program, Var, dtype_name, is_state, is_symbolic, operations, shape_of
from milopt.testing.scope import numpy_type

__all__ = ["maker_of", "script_of", "source_of"]

_SMALL = {f"{sign}int{bits}" for sign in ("", "u") for bits in (1, 2, 3, 4, 6)}


def source_of(program: Program) -> str:
    """``def build() -> Program`` with the same ops, names and constants. It needs what :data:`IMPORTS` imports."""
    return "\n".join(_Writer().program(program)) + "\n"


IMPORTS = """\
import numpy as np

from milopt.mil import Function, Program, get_new_symbol, mb, target, types
"""


class _Writer:
    def __init__(self) -> None:
        self.known: dict[Var, str] = {}
        self.symbols: dict[Any, str] = {}
        self.count = 0

    def program(self, program: Program) -> Iterator[str]:
        yield "def build() -> Program:"
        body: list[str] = []
        for name, function in program.functions.items():
            body += self.function(name, function)
        yield "    made = Program()"
        yield from (f"    {symbol} = get_new_symbol()" for symbol in self.symbols.values())
        yield from body
        yield "    return made"

    def function(self, name: str, function: Function) -> Iterator[str]:
        yield "    inputs = {"
        for key, var in function.inputs.items():
            kind = "state_tensor_placeholder" if is_state(var) else "placeholder"
            yield f"        {key!r}: mb.{kind}(shape={self.shape(var)}, dtype=types.{_type(var)}),"
        yield "    }"
        yield f"    with Function(inputs, opset_version=target.{function.opset_version.name}) as function:"
        for key, var in function.inputs.items():
            self.known[var] = self.fresh(key)
            yield f"        {self.known[var]} = function.inputs[{key!r}]"
        yield from self.block(function, "        ")
        yield f"        function.set_outputs([{', '.join(self.known[var] for var in function.outputs)}])"
        yield f"    made.add_function({name!r}, function)"

    def fresh(self, stem: str) -> str:
        name = stem if stem.isidentifier() else f"v_{self.count}"
        while name in self.known.values() or name in ("inputs", "function", "made"):
            self.count += 1
            name = f"{stem if stem.isidentifier() else 'v'}_{self.count}"
        return name

    def shape(self, var: Var) -> str:
        dims = [self.dim(dim) for dim in shape_of(var)]
        return f"({', '.join(dims)}{',' if len(dims) == 1 else ''})"

    def dim(self, dim: Any) -> str:
        if not is_symbolic(dim):
            return str(dim)
        return self.symbols.setdefault(dim, f"symbol{len(self.symbols)}")

    def block(self, block: Block, indent: str) -> Iterator[str]:
        for op in block.operations:
            if op.op_type == "const" and _is_inline(op.outputs[0]):
                continue
            yield from self.operation(op, indent)

    def operation(self, op: Operation, indent: str) -> Iterator[str]:
        functions: list[tuple[str, str]] = []
        names = {"cond": ("_true_fn", "_false_fn"), "while_loop": ("_cond", "_body")}.get(op.op_type, ())
        for key, inner in zip(names, op.blocks, strict=False):
            function = self.fresh(f"{op.name}{key}" if op.name.isidentifier() else f"inner{key}")
            arguments: list[str] = []
            for var in inner.inputs:
                self.known[var] = self.fresh(f"{function}_{len(arguments)}")
                arguments.append(self.known[var])
            yield f"{indent}def {function}({', '.join(arguments)}):"
            yield from self.block(inner, indent + "    ")
            yield f"{indent}    return {self.several(inner.outputs)}"
            functions.append((key, function))
        if op.op_type == "const":
            inputs = [f"val={_constant(op.outputs[0])}"]
        else:
            given = ((name, value) for name, value in op.inputs.items() if value is not None and name[:1] != "_")
            inputs = [f"{name}={self.value(value)}" for name, value in given if not _is_left_out(op, name, value)]
        inputs += [f"{key}={function}" for key, function in functions]
        inputs.append(f"name={op.name!r}")
        results: list[str] = []
        for var in op.outputs:
            self.known[var] = self.fresh(var.name)
            results.append(self.known[var])
        yield f"{indent}{', '.join(results)} = mb.{op.op_type}({', '.join(inputs)})"

    def several(self, values: Any) -> str:
        members = [self.value(var) for var in values]
        return members[0] if len(members) == 1 else f"({', '.join(members)})"

    def value(self, value: Any) -> str:
        if isinstance(value, Var):
            return self.known[value] if value in self.known else _constant(value)
        return f"({', '.join(self.value(each) for each in value)},)"


def _type(var: Var) -> str:
    return str(dtype_name(var))


def _is_inline(var: Var) -> bool:
    """A constant with one use stands where it is used; what several ops share, or a block returns, has a name."""
    return len(var.child_ops) == 1 and not var.consuming_blocks


def _is_left_out(op: Operation, name: str, value: Any) -> bool:
    """Whether it is a default in fp32, which PyMIL fills in also where it takes no such constant: in fp16 norms."""
    default = default_of(op, name)
    if not isinstance(default, float) or not isinstance(value, Var) or dtype_name(value) != "fp32":
        return False
    return value.val is not None and _is_inline(value) and bool(value.val == np.float32(default))


def _constant(var: Var) -> str:
    value = var.val
    if isinstance(value, (str, np.str_)):
        return repr(str(value))
    array = np.asarray(value)
    kind = dtype_name(var)
    if kind in _SMALL:
        numbers = np.asarray(array, np.int8 if kind.startswith("int") else np.uint8).tolist()
        return f"np.array({numbers}).astype(types.nptype_from_builtin(types.{kind}))"
    if array.dtype.kind == "b":
        return f"np.array({array.tolist()})" if array.ndim else str(bool(array))
    dtype: Any = numpy_type(kind)
    name = f"np.{dtype.name}"
    text = repr(array.tolist()).replace("nan", "np.nan").replace("inf", "np.inf")
    return f"np.array({text}, {name})" if array.ndim else f"{name}({text})"


def maker_of(subject: Any) -> tuple[str, str]:
    """``(import, expression)`` that make an equal rule or pass; the import is empty where there is none to make it."""
    cls: type[Any] = subject.__class__
    inner = "<locals>" in cls.__qualname__
    name = cls.__name__ if inner else cls.__qualname__
    text = repr(subject).replace(cls.__qualname__, name, 1) if is_dataclass(subject) else f"{name}()"
    outer = name.partition(".")[0]
    if inner or not all(map(str.isidentifier, cls.__module__.split("."))):
        return "", text
    if cls.__module__ != "__main__":
        return f"from {cls.__module__} import {outer}", text
    file = getattr(sys.modules["__main__"], "__file__", None)
    return ("", text) if file is None else (f"{outer} = runpy.run_path({os.path.abspath(file)!r})[{outer!r}]", text)


_SCRIPT = '''\
"""{title}

{message}
"""

{modules}

{imports}from milopt.testing import holds
{imported}


{build}

if __name__ == "__main__":
    try:
        print("fires, and holds" if holds({subject}, build()) else "refuses, and holds")
    except AssertionError as error:
        print(error)
        sys.exit(1)
'''


def script_of(subjects: tuple[Any, ...], program: Program, title: str, message: str) -> str:
    """A stand-alone script that checks rules, or a pass, on the program; exit status 1 where the check fails."""
    makers = [maker_of(each) for each in subjects]
    missing = [expression for imported, expression in makers if not imported]
    imported = dict.fromkeys(each for each, _ in makers if each)
    lines = sorted(imported, key=lambda line: "runpy" in line)
    lines += [f"# define here, or import: {each}" for each in missing]
    expressions = [expression for _, expression in makers]
    return _SCRIPT.format(
        title=title.replace('"""', "'''"),
        message=_summary(message).replace('"""', "'''").replace("\\", "/"),
        modules="import runpy\nimport sys" if any("runpy" in line for line in lines) else "import sys",
        imports=IMPORTS,
        imported="\n".join(lines),
        build=source_of(program),
        subject=expressions[0] if len(expressions) == 1 else f"({', '.join(expressions)},)",
    )


def _summary(message: str) -> str:
    """A message without the texts of programs, which the script builds itself."""
    kept: list[str] = []
    for line in message.strip().splitlines():
        if "[CoreML" in line and line.rstrip().endswith("{"):
            break
        kept.append(line.rstrip())
    return "\n".join(kept[:8])


def ops_of(program: Program) -> int:
    """How many ops a program has, constants aside."""
    return sum(op.op_type != "const" for function in program.functions.values() for op in operations(function))
