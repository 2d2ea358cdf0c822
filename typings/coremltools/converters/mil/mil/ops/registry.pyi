from typing import Any

class SSAOpRegistry:
    core_ops: dict[str, dict[Any, Any]]
    dialect_ops: dict[str, Any]
    custom_ops: dict[str, Any]
