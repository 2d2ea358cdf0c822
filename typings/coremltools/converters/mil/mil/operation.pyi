from typing import Any

class mil_list:
    ls: list[Any]
    def __init__(self, ls: list[Any] | None = ...) -> None: ...
