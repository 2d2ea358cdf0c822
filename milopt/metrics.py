"""How close two programs must be: declared by each pass, judged by :func:`milopt.compare`."""

from __future__ import annotations

from dataclasses import dataclass

from milopt.precisions import Precision

__all__ = ["Exact", "Lossy", "Metric"]


@dataclass(frozen=True)
class Exact:
    """Equal algebra: both programs run in float64 and agree to ``rtol`` of each output's largest magnitude.

    float64 carries 16 digits; 1e-6 leaves room for constants that a program holds in fp32 (7 digits, and a rewrite may
    fold two of them), and is a thousand times below what one fp16 rounding (5e-4) would show.

    ``safe_in`` names precisions for which the rewrite is made: in each of them, on ordinary and on large inputs, every
    floating output must come as near to the original's float64 run as the original itself does there (6 dB less are
    allowed), or within 40 dB. An overflow that the rewrite brings in fails; one that it takes away shows.
    """

    rtol: float = 1e-6
    safe_in: tuple[Precision, ...] = ()

    def __str__(self) -> str:
        safe = f", safe in {' and '.join(self.safe_in)}" if self.safe_in else ""
        return f"exact in float64, rtol={self.rtol:g}{safe}"


@dataclass(frozen=True)
class Lossy:
    """Numbers change on purpose: the rewritten program, in declared precision, against the original's float64 run.

    ``min_snr_db`` is 10·log10(Σ original² / Σ difference²) over each floating output; ``min_top1`` the least share of
    rows of the output whose largest entry stays in place (judged where an output is named ``logits``).
    """

    min_snr_db: float
    min_top1: float = 0.0

    def __str__(self) -> str:
        top1 = f", top-1 kept in {self.min_top1:.0%}" if self.min_top1 else ""
        return f"at least {self.min_snr_db:g} dB against the original in float64{top1}"


Metric = Exact | Lossy
