from coremltools.converters.mil.mil.passes.graph_pass import AbstractGraphPass

class PassRegistry:
    passes: dict[str, type[AbstractGraphPass]]
    def __contains__(self, pass_id: str) -> bool: ...
    def add(self, namespace: str, pass_cls: type[AbstractGraphPass], override: bool, name: str | None) -> None: ...

PASS_REGISTRY: PassRegistry
