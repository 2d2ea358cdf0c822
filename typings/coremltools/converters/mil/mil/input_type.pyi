from typing import Any

class _InputType:
    const: bool
    optional: bool
    def __init__(self, const: bool = ..., optional: bool = ...) -> None: ...

class TensorInputType(_InputType):
    type_domain: Any
    type_domain_id: Any

class TupleInputType(_InputType): ...
class InternalInputType(_InputType): ...

class InputSpec:
    def __init__(self, **kwargs: _InputType) -> None: ...
    @property
    def input_types(self) -> dict[str, _InputType]: ...
