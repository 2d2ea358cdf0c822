"""Weights are compressed one by one, on all cores or machines, and put into the program when all are done."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf, log10
from typing import Any, TypeAlias, TypeVar

import joblib
import numpy as np
from joblib.parallel import get_active_backend

from milopt.building import Builder
from milopt.mil import (
    Var,
    dtype_name,
    operations,
    producers,
    remove_if_dead,
    remove_ops,
    replace_uses,
    shape_of,
    value_names,
)
from milopt.package import Model
from milopt.package.making import hold
from milopt.package.weights import Packed
from milopt.passes.uses import Place, Weight
from milopt.progress import counted
from milopt.reports import NoMatch, Report
from milopt.spool import Slot, Spool

__all__ = [
    "CompressionReport",
    "Coverage",
    "Encoded",
    "Plan",
    "compress",
    "constant_of",
    "put_in_place",
    "snr",
    "spread",
]

Array: TypeAlias = Any  # numpy.ndarray; its generic form is more than pyright strict can follow


@dataclass(frozen=True)
class Encoded:
    """A weight in fewer bits: ``tensors`` by name, each with MIL's name of its elements and their number.

    Elements of less than 8 bits are packed bytes.
    ``error`` is Σ (weight - decoded)² and ``power`` Σ weight², of the numbers that coremltools decodes. Where ``wrong``
    weights are NaN or infinite, nothing else is known.
    """

    tensors: dict[str, tuple[Array, str, int]]
    error: float
    power: float
    wrong: int = 0


@dataclass(frozen=True)
class Plan(ABC):
    """One weight, and how it is to be stored."""

    weight: Weight

    @property
    @abstractmethod
    def form(self) -> str:
        """The form in a few words: ``4 bits, a table per 16 channels``."""

    @property
    @abstractmethod
    def element_bits(self) -> int:
        """The bits of a stored element."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """The size on disk, without the header of 64 bytes that each array has there."""

    @abstractmethod
    def job(self) -> tuple[Callable[..., Encoded], tuple[Any, ...]]:
        """A function and its arguments, which another process may be asked to run."""

    @abstractmethod
    def write(self, op: Builder, place: Place, tensors: dict[str, Array | Packed]) -> Var:
        """Build what stands for the weight at ``place``. ``tensors`` are flat."""


P = TypeVar("P", bound=Plan)


@dataclass(frozen=True)
class Coverage:
    """What became of one weight: ``form`` says how it is stored, ``reason`` why it was left alone."""

    name: str
    functions: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    before: int
    after: int
    form: str = ""
    bits: int | None = None
    snr: float | None = None
    reason: str = ""

    def __str__(self) -> str:
        what = f"{self.name} {self.dtype}{list(self.shape)}"
        if self.reason:
            return f"{what}: left alone, {self.before:,} bytes: {self.reason}"
        return f"{what}: {self.form}, {self.snr:.1f} dB, {self.before:,} -> {self.after:,} bytes"


@dataclass
class CompressionReport(Report):
    """A report with a line for every weight, compressed or not, in program order."""

    coverage: list[Coverage] = field(default_factory=list[Coverage])

    def sort(self, model: Model) -> None:
        """Put the lines in the order of the program."""
        ops = ((name, op) for name, function in model.functions.items() for op in operations(function))
        order = {(name, var.name): at for at, (name, op) in enumerate(ops) for var in op.outputs}
        self.coverage.sort(key=lambda each: order[each.functions[0], each.name])

    def take(self, plan: Plan, encoded: Encoded) -> None:
        """Note that a weight is compressed."""
        found = snr(encoded.power, encoded.error)
        self.coverage.append(
            Coverage(
                **_identity(plan.weight.places),
                before=plan.weight.array.nbytes,
                after=plan.nbytes,
                form=plan.form,
                bits=plan.element_bits,
                snr=found,
            )
        )

    def leave(self, weight: Weight, why: NoMatch) -> None:
        """Note that a weight stays as it is."""
        place = weight.places[0]
        self.decline(place.function, why.at if why.at is not None else place.op, why.text, *why.arguments)
        size = weight.array.nbytes
        reason = self.misses[-1].reason
        self.coverage.append(Coverage(**_identity(weight.places), before=size, after=size, reason=reason))

    def keep(self, places: Sequence[Place], size: int) -> None:
        """Note that a weight of ``size`` bytes was compressed before, and stays so."""
        reason = f"compressed already, as {places[0].op.op_type}"
        self.coverage.append(Coverage(**_identity(places), before=size, after=size, reason=reason))

    def restore(self, weight: Weight, before: int) -> None:
        """Note that a weight of ``before`` bytes is numbers again, of which none is lost."""
        size = weight.array.itemsize
        form = f"numbers, decoded from {weight.places[0].op.op_type}"
        known = _identity(weight.places)
        self.coverage.append(
            Coverage(**known, before=before, after=weight.array.nbytes, form=form, bits=8 * size, snr=inf)
        )

    def table(self) -> str:
        """All weights, a line each."""
        return "\n".join(map(str, self.coverage))


def _identity(places: Sequence[Place]) -> dict[str, Any]:
    first = places[0].var
    return {
        "name": first.name,
        "functions": tuple(dict.fromkeys(place.function for place in places)),
        "shape": shape_of(first),
        "dtype": dtype_name(first),
    }


@dataclass
class Totals:
    """What one run did to all weights together."""

    weights: int = 0
    numbers: int = 0
    before: int = 0
    after: int = 0
    error: float = 0.0
    power: float = 0.0
    worst: tuple[float, str] = (inf, "")

    def add(self, plan: Plan, encoded: Encoded) -> None:
        self.weights += 1
        self.numbers += plan.weight.array.size
        self.before += plan.weight.array.nbytes
        self.after += plan.nbytes
        self.error += encoded.error
        self.power += encoded.power
        self.worst = min(self.worst, (snr(encoded.power, encoded.error), plan.weight.name))

    @property
    def snr(self) -> float:
        return snr(self.power, self.error)


def compress(plans: Sequence[P], model: Model, report: CompressionReport) -> tuple[Totals, list[P]]:
    """Compress what is planned, put it in place, and report; returns the sums, and the plans that were carried out.

    The work goes through joblib: to threads on all cores, or to what ``joblib.parallel_config`` says. Only the weights
    that are being worked on are in memory.
    """
    totals, done = Totals(), list[tuple[P, dict[str, Slot], Encoded]]()
    spool = Spool()
    for plan, encoded in _encoded(plans, report.name):
        if encoded.wrong:
            report.leave(plan.weight, NoMatch("holds {} values that are not finite", encoded.wrong))
            continue
        report.take(plan, encoded)
        slots = {name: spool.add(*tensor) for name, tensor in encoded.tensors.items()}
        done.append((plan, slots, Encoded({}, encoded.error, encoded.power)))
    spool.finish()
    taken = {name: value_names(function) for name, function in model.functions.items()}
    for plan, slots, encoded in done:
        tensors = {name: spool.flat(slot) for name, slot in slots.items()}
        for place in plan.weight.places:
            put_in_place(place, plan.write(Builder(place.op, taken[place.function]), place, tensors))
        report.applied += len(plan.weight.places)
        totals.add(plan, encoded)
    return totals, [plan for plan, _, _ in done]


def _encoded(plans: Sequence[P], what: str) -> Iterator[tuple[P, Encoded]]:
    """Each plan with its result. The large ones go first, so that no worker is left alone with one at the end."""
    ordered = sorted(plans, key=lambda plan: -plan.weight.array.size)
    found = spread(what, (plan.job() for plan in ordered), [plan.weight.array.size for plan in ordered])
    yield from zip(ordered, found, strict=True)


def spread(
    what: str, jobs: Iterable[tuple[Callable[..., Any], tuple[Any, ...]]], sizes: Sequence[int]
) -> Iterator[Any]:
    """The results of jobs, in their order, from all workers; ``sizes`` are for who is told how far it has come."""
    if not sizes:
        return
    calls: Iterable[Any] = (joblib.delayed(function)(*given) for function, given in jobs)
    workers = get_active_backend()[1] or -1  # what a parallel_config says, or all cores
    found = joblib.Parallel(n_jobs=workers, prefer="threads", return_as="generator")(calls)
    yield from counted(what, found, sizes)


def constant_of(op: Builder, name: str, tensor: Array | Packed, shape: tuple[int, ...]) -> Any:
    """``tensor`` as ``shape``: an array as an op takes it, or a constant whose elements stay packed."""
    if not isinstance(tensor, Packed):
        return tensor.reshape(shape)
    zeros = np.broadcast_to(np.zeros((), tensor.dtype), shape)
    return hold(op.const(val=zeros, name=f"{op.anchor.name}_{name}"), tensor.reshape(*shape))


def put_in_place(place: Place, new: Var) -> None:
    """Let ``new`` have the name and the uses of the weight at ``place``, which goes with what it was made of."""
    old, name, parts = place.var, place.var.name, producers(place.op)
    replace_uses(old, new)
    remove_ops([place.op])
    remove_if_dead(parts)
    new.name = name
    assert new.op is not None
    new.op.name = name


def snr(power: float, error: float) -> float:
    """10·log10(power / error): dB, infinite where nothing was lost."""
    return 10 * log10(power / error) if error else inf
