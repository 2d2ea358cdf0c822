"""What coremltools keeps for itself while ops are built, taken back together with them.

It counts the constants it names, the blocks and the symbols, and a block lists the internal values of its ops.
"""

from __future__ import annotations

import importlib
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from milopt.mil import Block, Operation, mb

__all__ = ["Counters"]

_blocks: Any = importlib.import_module("coremltools.converters.mil.mil.block")
_programs: Any = importlib.import_module("coremltools.converters.mil.mil.program")
_scopes: Any = importlib.import_module("coremltools.converters.mil.mil.scope")
_mb: Any = mb


class _Counts(dict[str, int]):
    """Counts that were added to those of ``base``, which stays as it is."""

    def __init__(self, base: dict[str, int]) -> None:
        super().__init__()
        self.base = base

    def __missing__(self, name: str) -> int:
        return self.base.get(name, 0)


class Counters:
    """One rewrite's counting, which :meth:`drop` takes back."""

    def __init__(self) -> None:
        self._names: dict[str, int | None] = {}
        self._block: int = _blocks.Block.counter
        self._symbol: int = _programs.k_num_internal_syms

    @contextmanager
    def counting(self, block: Block) -> Generator[None]:
        """What is built inside counts here; a build that fails has not counted, nor left internal values behind."""
        of_block: Any = block
        counts, inner = _Counts(_mb.name_count), set[Any]()
        values = of_block._internal_vars
        _mb.name_count, of_block._internal_vars = counts, inner
        try:
            yield
        except BaseException:
            counts.clear()
            inner.clear()
            raise
        finally:
            _mb.name_count, of_block._internal_vars = counts.base, values
            for name, count in counts.items():
                self._names.setdefault(name, counts.base.get(name))
                counts.base[name] = count
            values |= inner

    def drop(self, ops: list[Operation]) -> None:
        """Take everything back; ``ops`` are those that were built."""
        for name, count in self._names.items():
            if count is None:
                del _mb.name_count[name]
            else:
                _mb.name_count[name] = count
        self._names.clear()
        for number in range(self._symbol, _programs.k_num_internal_syms):
            _programs.k_used_symbols.pop(f"is{number}", None)
            _programs.k_used_symbols.pop(f"*is{number}", None)
        _programs.k_num_internal_syms = self._symbol
        _blocks.Block.counter = self._block
        for marked in _scopes.VALID_OPS_TO_COPY_SCOPE_INFO:
            marked.difference_update(ops)
