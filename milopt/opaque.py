"""Ops that PyMIL doesn't know, or whose inputs it refuses: carried through a program as they came."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, cast

from coremltools.converters.mil.mil import Operation
from coremltools.converters.mil.mil.input_type import InputSpec, InternalInputType

__all__ = ["Opaque", "opaque_class"]


class _AnyInput(InternalInputType):
    """An input of which nothing is known."""


class Opaque(Operation):
    """An op of any type, with any inputs and blocks. Nothing is inferred and nothing checked."""

    input_spec = InputSpec()

    @property
    def opset_version(self) -> Any:
        """None: it is not known which opset brought the op."""
        return None

    def __getattr__(self, name: str) -> Any:
        # ops of PyMIL's have their inputs as attributes; here a name that an op itself needs keeps its meaning
        inputs: dict[str, Any] = self.__dict__.get("_input_vars", {})
        if name in inputs:
            return inputs[name]
        raise AttributeError(name)

    def set_inputs(self, no_check_var_types: bool = False, type_inference: bool = False, **input_kvs: Any) -> None:
        """Replace inputs; ones that the op did not have are new."""
        del no_check_var_types, type_inference
        state = cast("Any", self)
        for name, value in input_kvs.items():
            for old in _flat(state._input_vars.get(name)):
                old.remove_child_op(self, True)
            for new in _flat(value):
                new.add_child_op(self)
            state._input_vars[name] = value
        self.name_inputs(state._input_vars)

    def name_inputs(self, names: Any) -> None:
        """Let the op's own ``input_spec`` list its inputs, as that of an op of PyMIL's does."""
        state = cast("Any", self)
        state.input_spec = InputSpec(**{name: _AnyInput(optional=True) for name in names})
        state._input_types = state.input_spec.input_types

    def type_value_inference(self, overwrite_output: bool = False) -> None:
        """Its types are those it came with."""
        del overwrite_output


def _flat(value: Any) -> tuple[Any, ...]:
    if value is None:
        return ()
    return tuple(cast("Any", value)) if isinstance(value, (list, tuple)) else (value,)


@lru_cache(maxsize=1024)
def opaque_class(op_type: str) -> type[Opaque]:
    """The class of opaque ops of that type; its name is what ``op.op_type`` says."""
    return type(op_type, (Opaque,), {"__module__": __name__})
