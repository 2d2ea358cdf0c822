"""How far two runs of a program are apart, output by output."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

from milopt.metrics import Exact, Metric

__all__ = ["Measured", "Meter", "Where"]

Index: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Where:
    """The worst entry of one output in one call: its index and both numbers."""

    trial: int
    call: int
    output: str
    index: Index
    before: Any
    after: Any


@dataclass(frozen=True)
class Measured:
    """One output over all trials.

    ``max_relative``: the largest difference over the largest magnitude in its tensor. ``snr_db``: 10·log10(Σ before² /
    Σ difference²), infinite where nothing differs; None for integers. ``top1``: share of rows whose largest entry is
    in the same place, of outputs called ``logits``. ``agreement``: share of equal entries, of integers and booleans.
    ``nan``: share of entries that are NaN on both sides.
    """

    name: str
    max_relative: float
    snr_db: float | None
    top1: float | None
    agreement: float | None
    nan: float


@dataclass
class Meter:
    """Adds up the differences of one output. ``argmax`` marks indices of largest entries."""

    name: str
    argmax: bool = False
    max_relative: float = 0.0
    places: list[tuple[float, Where]] = field(default_factory=list[tuple[float, Where]])
    _signal: float = 0.0
    _noise: float = 0.0
    _rows: int = 0
    _kept: int = 0
    _entries: int = 0
    _equal: int = 0
    _nan: int = 0
    _floating: bool = True

    def add(self, trial: int, call: int, before: Any, after: Any) -> float:
        """Take one call's values; the largest relative difference in it, infinite where they can't be compared."""
        if not isinstance(before, torch.Tensor) or not isinstance(after, torch.Tensor):
            self._floating = False
            self._entries += 1
            self._equal += before == after
            relative = 0.0 if before == after else math.inf
            self._note(relative, Where(trial, call, self.name, (), before, after))
            return relative
        if before.shape != after.shape:
            shapes = [f"shape {tuple(each.shape)}" for each in (before, after)]
            self._note(math.inf, Where(trial, call, self.name, (), *shapes))
            return math.inf
        if before.is_floating_point():
            return self._add_floats(trial, call, before.double(), after.double())
        return self._add_integers(trial, call, before, after)

    def _add_floats(self, trial: int, call: int, a: torch.Tensor, b: torch.Tensor) -> float:
        same = (a == b) | (a.isnan() & b.isnan())  # equal infinities are the same
        finite = a.isfinite() & b.isfinite()
        self._entries += a.numel()
        self._nan += int((a.isnan() & b.isnan()).sum())
        if self.name == "logits" and a.dim() and a.shape[-1]:
            self._rows += a.shape[:-1].numel()
            self._kept += int((a.argmax(-1) == b.argmax(-1)).sum())
        if not a.numel():
            return 0.0
        difference = torch.where(finite, (a - b).abs(), math.inf).masked_fill_(same, 0.0)
        known = torch.where(finite, a, 0.0)
        self._signal += float(known.square().sum())
        self._noise += float(difference.square().sum())
        scale = float(torch.where(finite, torch.maximum(a.abs(), b.abs()), 0.0).max())
        at = int(difference.argmax())
        largest = float(difference.flatten()[at])
        relative = largest / scale if scale and largest < math.inf else largest
        self._note(relative, self._where(trial, call, a, b, at))
        return relative

    def _add_integers(self, trial: int, call: int, a: torch.Tensor, b: torch.Tensor) -> float:
        self._floating = False
        different = a != b
        count = int(different.sum())
        self._entries += a.numel()
        self._equal += a.numel() - count
        if not count:
            return 0.0
        self._note(math.inf, self._where(trial, call, a, b, int(different.flatten().int().argmax())))
        return math.inf

    def _where(self, trial: int, call: int, a: torch.Tensor, b: torch.Tensor, at: int) -> Where:
        index = tuple(int(each) for each in torch.unravel_index(torch.tensor(at), a.shape))
        return Where(trial, call, self.name, index, a[index].item(), b[index].item())

    def _note(self, relative: float, where: Where) -> None:
        self.max_relative = max(self.max_relative, relative)
        self.places.append((relative, where))

    def place(self, metric: Metric) -> Where | None:
        """Where to look: the first call that breaks an exact metric, the worst one for the others."""
        limit = metric.rtol if isinstance(metric, Exact) else self.max_relative
        return next(
            (where for relative, where in self.places if relative > limit or relative == self.max_relative), None
        )

    def measured(self) -> Measured:
        snr = None
        if self._floating and self._entries:
            ratio = self._signal / self._noise if self._noise else math.inf
            snr = 10 * math.log10(ratio) if 0 < ratio < math.inf else math.inf if ratio else -math.inf
        entries = max(self._entries, 1)
        return Measured(
            self.name,
            self.max_relative,
            snr,
            self._kept / self._rows if self._rows else None,
            None if self._floating else self._equal / entries,
            self._nan / entries,
        )

    def fails(self, metric: Metric) -> str | None:
        """Why the output is too far off, or ``None``."""
        result = self.measured()
        if isinstance(metric, Exact):
            if self.argmax and result.agreement is not None:
                return None if result.agreement == 1 else "an index of a largest entry changed"
            return None if self.max_relative <= metric.rtol else f"{self.max_relative:.3g} of its largest magnitude"
        if self.argmax:
            kept = result.agreement if result.agreement is not None else 1.0
            return None if kept >= metric.min_top1 else f"{kept:.1%} of the indices agree"
        if result.snr_db is None:
            return None if not self.max_relative else "it is not a floating output and must be equal"
        if not result.snr_db >= metric.min_snr_db:
            return f"{result.snr_db:.1f} dB"
        if result.top1 is not None and not result.top1 >= metric.min_top1:
            return f"top-1 kept in {result.top1:.1%}"
        return None
