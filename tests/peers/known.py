"""What a known failure is."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["Known"]


@dataclass(frozen=True)
class Known:
    """Tests whose node id, from the folder of coremltools on, is ``test``, where ``*`` stands for anything."""

    test: str
    reason: str

    def matches(self, nodeid: str) -> bool:
        return re.fullmatch(".*".join(map(re.escape, self.test.split("*"))), nodeid) is not None
