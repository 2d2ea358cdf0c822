"""What a check of a contract found, line by line."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Finding", "Findings"]


@dataclass(frozen=True)
class Finding:
    """One check: ``detail`` is what was found, and where it failed what a client would see."""

    check: str
    passed: bool
    detail: str

    def __str__(self) -> str:
        return f"{'ok' if self.passed else 'FAILS'}: {self.check}: {self.detail}"


@dataclass(frozen=True)
class Findings:
    """All checks of one package against one contract; true when every one passed."""

    package: str
    style: str
    found: tuple[Finding, ...]

    def __bool__(self) -> bool:
        return all(each.passed for each in self.found)

    @property
    def failed(self) -> tuple[Finding, ...]:
        return tuple(each for each in self.found if not each.passed)

    @property
    def summary(self) -> str:
        """One line."""
        if self:
            return f"{self.package} keeps the {self.style} contract: {len(self.found)} checks passed"
        return f"{self.package} breaks the {self.style} contract: {len(self.failed)} of {len(self.found)} checks failed"

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON takes it."""
        checks = [asdict(each) for each in self.found]
        return {"package": self.package, "style": self.style, "passed": bool(self), "checks": checks}

    def __str__(self) -> str:
        return "\n".join((*map(str, self.found), self.summary))
