"""What coremltools' torch frontend lacks or gets wrong, put right for the length of a conversion.

A converter that coremltools has none of is added; one that is wrong is replaced in the case where it is wrong. The
changes hold for the thread that made them: for others coremltools converts, or refuses, as if they were not there.
Afterwards its registry is as before, whatever happened in between.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

from milopt.huggingface.converters import (
    Converter,
    expand_converter,
    gelu_converter,
    missing_converters,
    scalar_cast,
    typed_scatter,
)
from milopt.huggingface.errors import ConversionError
from milopt.huggingface.locations import modules, node_location
from milopt.huggingface.quiet import PATCHING, coremltools_quiet, replaced
from milopt.mil import Var, dtype_name, mb

__all__ = ["coremltools_repaired", "kind_of", "registry"]


@contextmanager
def coremltools_repaired() -> Generator[None]:
    """coremltools quiet, and with the converters below. Other milopt conversions wait until it ends."""
    ops = _ops()
    with PATCHING, coremltools_quiet(), ExitStack() as patches:
        for name, converter in missing_converters(ops).items():
            if name not in registry():
                patches.enter_context(_registered(name, converter))
        for name, repair in (("gelu", gelu_converter), ("expand", expand_converter)):
            patches.enter_context(_registered(name, repair(ops, registry()[name])))
        patches.enter_context(replaced(ops, "_cast", _here(scalar_cast(ops, ops._cast), ops._cast)))
        patches.enter_context(replaced(ops, "_scatter", _here(typed_scatter(ops._scatter), ops._scatter)))
        single = ops.convert_single_node
        patches.enter_context(replaced(ops, "convert_single_node", _here(_explained(single), single)))
        yield


def registry() -> dict[str, Any]:
    """coremltools' converters by the torch op's name."""
    functions: dict[str, Any] = _ops()._TORCH_OPS_REGISTRY.name_to_func_mapping
    return functions


def kind_of(target: Any) -> str:
    """The name under which coremltools looks for the converter of an exported node's ``target``."""
    utils: Any = importlib.import_module("coremltools.converters.mil.frontend.torch.utils")
    name = target.name() if callable(getattr(target, "name", None)) else getattr(target, "__name__", str(target))
    return str(utils.sanitize_op_kind(name))


def _ops() -> Any:
    return importlib.import_module("coremltools.converters.mil.frontend.torch.ops")


@contextmanager
def _registered(name: str, converter: Converter) -> Generator[None]:
    functions = registry()
    stock = functions.get(name)
    ours = functions[name] = _here(converter, stock or _absent(name))
    try:
        yield
    finally:
        # a converter that someone registered meanwhile is theirs
        if functions.get(name) is ours:
            del functions[name]
            if stock is not None:
                functions[name] = stock


def _here(ours: Callable[..., None], theirs: Callable[..., None]) -> Callable[..., None]:
    """``ours`` in the thread that calls this, ``theirs`` in every other."""
    thread = threading.get_ident()

    def choose(*args: Any, **options: Any) -> None:
        (ours if threading.get_ident() == thread else theirs)(*args, **options)

    return choose


def _absent(name: str) -> Converter:
    def refuse(*_: object) -> None:
        raise NotImplementedError(f"PyTorch convert function for op '{name}' not implemented.")

    return refuse


def _explained(stock: Converter) -> Converter:
    """``ops.convert_single_node`` that says where in the model a node is that it can't convert.

    An op that an exported node becomes also gets the names of the node's modules, as a traced one does, beside the
    line of Python. A keyword that the node was given and the converter did not look at is an error: some of
    coremltools' converters read arguments by position only, and would silently compute something else.
    """

    def convert(context: Any, node: Any) -> None:
        keywords = _Keywords(node.kwinputs or {})
        node.kwinputs = keywords or None
        try:
            with _scope(node):
                stock(context, node)
        except ConversionError:
            raise
        except Exception as problem:  # converters raise whatever their code meets
            reason = next(iter(str(problem).strip().splitlines()), type(problem).__name__)
            raise ConversionError(
                f"coremltools can't convert torch's {node.kind} at {_place(node)}: {reason}"
            ) from problem
        if ignored := _ignored(keywords, context, node):
            raise ConversionError(
                f"coremltools' converter of torch's {node.kind} ignores {', '.join(sorted(ignored))} at {_place(node)}"
            )

    return convert


class _Keywords(dict[str, Any]):
    """A node's keyword arguments, which note that they are looked at."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        super().__init__(given)
        self.read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)


# Where and how memory is laid out; MIL's values have no such thing.
_OF_MEMORY = frozenset({"pin_memory", "non_blocking", "device", "layout", "memory_format"})


def _ignored(keywords: _Keywords, context: Any, node: Any) -> set[str]:
    if node.kind.startswith(("_assert", "sym_constrain")):
        return set()
    ignored = {name for name, value in keywords.items() if name not in keywords.read | _OF_MEMORY and value != ()}
    if "dtype" in ignored and _has_dtype(context[node.name], keywords["dtype"][0]):
        ignored.remove("dtype")
    return ignored


def _has_dtype(value: Any, number: int) -> bool:
    utils = importlib.import_module("coremltools.converters.mil.frontend.torch.utils")
    return isinstance(value, Var) and utils.NUM_TO_DTYPE_STRING.get(number) == dtype_name(value)


def _place(node: Any) -> str:
    if node.meta is not None:
        return node_location(node.meta) or node.name
    names, _ = node.get_scope_info()
    # the outermost is milopt's name for the model, the innermost the node's own
    return ".".join(names[1:-1]) or node.name


def _scope(node: Any) -> AbstractContextManager[Any]:
    """The modules of an exported node, in the words that coremltools has for those of a traced one."""
    if node.meta is None:
        return nullcontext()
    scope: Any = importlib.import_module("coremltools.converters.mil.mil.scope")
    # as torch's tracer has them: without lists of modules, which are not called
    called = [(path.rpartition(".")[2], kind) for path, kind in modules(node.meta)]
    names, kinds = zip(*called, (node.name, node.kind), strict=True)
    entered: AbstractContextManager[Any] = mb.scope(
        scope.ScopeInfo(source=scope.ScopeSource.TORCHSCRIPT_MODULE_TYPE, data=list(kinds)),
        scope.ScopeInfo(source=scope.ScopeSource.TORCHSCRIPT_MODULE_NAME, data=list(names)),
    )
    return entered
