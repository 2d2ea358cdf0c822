"""A model's specification becomes a PyMIL program. The one place that uses coremltools' private reader.

What is worked around here (facts of coremltools 9.0): the reader copies every weight several times; it calls every
default function ``main``; it shares one table of names between functions; a ``make_list`` whose shape strings look
like PyMIL's own symbols (``"is58"``) makes every later load in the process fail; a failed load leaves the builder
inside the function that failed; names it invents depend on what was loaded before.
"""

from __future__ import annotations

import re
import threading
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import coremltools.converters.mil.frontend.milproto.load as milproto
import coremltools.converters.mil.mil.block as pymil_block
import coremltools.converters.mil.mil.program as pymil_program
import numpy as np

from milopt.errors import MiloptError, PackageError
from milopt.mil import Block, Program, Target, Var, mb
from milopt.package.naming import make_names_unique
from milopt.package.unknown import refuse_unknown_ops
from milopt.package.weights import Weights

__all__ = ["OPSETS", "read_program"]

OPSETS = {f"CoreML{int(each) - 1}": each for each in Target}
_SYMBOL = re.compile(r"\*?is(\d{1,18})")
_PYMIL = threading.RLock()  # PyMIL builds through module globals: one load at a time


def read_program(proto: Any, weights: Weights, order: Iterable[str], where: str) -> Program:
    """The program in ``proto`` (a ``MIL.Program``); functions in ``order``, those it doesn't name after them, sorted.

    Attributes of functions, which the reader refuses, are cleared from ``proto``; the caller keeps them.
    """
    refuse_unknown_ops(proto, where)
    _move_symbols_past(proto)
    program = Program()
    names = [name for name in order if name in proto.functions]
    names += sorted(set(proto.functions) - set(names))
    with _isolated_builder(weights):
        for name in names:
            _read_function(program, name, proto.functions[name], f"{where}: function {name!r}")
    make_names_unique(program)
    return program


def _read_function(program: Program, name: str, proto: Any, where: str) -> None:
    if proto.opset not in OPSETS:
        raise PackageError(f"{where} has the unknown opset {proto.opset!r}")
    if len(proto.block_specializations) != 1:
        raise PackageError(f"{where} has {len(proto.block_specializations)} specializations; one is supported")
    proto.ClearField("attributes")
    context = _Context()
    try:
        function = milproto._load_function(context, proto, OPSETS[proto.opset])  # pyright: ignore[reportPrivateUsage]
        program.add_function(name, function)
    except MiloptError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PackageError(f"{where} can't be read by coremltools: {reason}") from error
    _drop_placeholders(function, context)


class _Context(milproto.TranscriptionContext):
    """Remembers which values the package has a name for."""

    def __init__(self) -> None:
        super().__init__()
        self.named: set[Var] = set()

    def register_var_with_name(self, name: str, var: Var) -> None:
        super().register_var_with_name(name, var)
        self.named.add(var)


def _drop_placeholders(block: Block, context: _Context) -> None:
    """Remove the unused constants that the reader makes to hold nested blocks; the package's own ones stay."""
    for op in list(block.operations):
        for inner in op.blocks:
            _drop_placeholders(inner, context)
        if op.op_type != "const" or op.outputs[0] in context.named:
            continue
        if not op.outputs[0].child_ops and not op.outputs[0].consuming_blocks:
            block.remove_ops([op])


@contextmanager
def _isolated_builder(weights: Weights) -> Generator[None]:
    """Weights come from ``weights``, invented names are counted from zero, and the builder's state is put back."""

    def load_value(context: milproto.TranscriptionContext, value_spec: Any) -> Any:
        if value_spec.WhichOneof("value") == "blobFileValue":
            return weights.array(value_spec)
        value = stock(context, value_spec)
        return bool(value) if type(value) is np.bool_ else value  # numpy 2.4 takes no numpy.bool for keepdims

    with _PYMIL:
        stock = milproto._load_value  # pyright: ignore[reportPrivateUsage]
        counts, stack = mb.name_count, pymil_block.BLOCK_STACK
        milproto._load_value = load_value  # pyright: ignore[reportPrivateUsage]
        mb.name_count, pymil_block.BLOCK_STACK = defaultdict(int), []
        try:
            yield
        finally:
            milproto._load_value = stock  # pyright: ignore[reportPrivateUsage]
            mb.name_count, pymil_block.BLOCK_STACK = counts, stack


def _move_symbols_past(proto: Any) -> None:
    """Move PyMIL's counter of symbols past every string of the program that could be one of its symbols."""
    used = [int(match[1]) for text in _strings(proto) if (match := _SYMBOL.fullmatch(text))]
    pymil_program.k_num_internal_syms = max([pymil_program.k_num_internal_syms, *(number + 1 for number in used)])


def _strings(proto: Any) -> Iterator[str]:
    """Every immediate string in the program."""

    def of_block(block: Any) -> Iterator[str]:
        for op in block.operations:
            for value in op.attributes.values():
                yield from value.immediateValue.tensor.strings.values
            for argument in op.inputs.values():
                for binding in argument.arguments:
                    yield from binding.value.immediateValue.tensor.strings.values
            for inner in op.blocks:
                yield from of_block(inner)

    for function in proto.functions.values():
        for block in function.block_specializations.values():
            yield from of_block(block)
