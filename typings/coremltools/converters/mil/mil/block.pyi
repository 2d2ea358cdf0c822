from typing import Any

BLOCK_STACK: list[Any]
