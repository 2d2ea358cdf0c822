"""Second moments of the inputs of weights, and what errors in them cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from milopt.mil import digest

if TYPE_CHECKING:
    from milopt.passes.uses import Layout

__all__ = ["Moments", "Statistics", "key_of"]

Array: TypeAlias = Any  # numpy.ndarray; its generic form is more than pyright strict can follow


@dataclass
class Moments:
    """Sums over the ``count`` vectors that a weight was multiplied with: ``squares (I,)`` of each input channel.

    ``products (I, I)`` are the sums of x xᵀ, the Hessian of the layer's squared error, where they were asked for.
    """

    squares: Array
    count: int = 0
    products: Array = None

    @property
    def mean(self) -> Array:
        """The second moment of each input channel."""
        return self.squares / max(self.count, 1)


@dataclass
class Statistics:
    """Moments by weight and by the axis of its inputs, and sensitivities by weight.

    A weight is known by its bytes, whatever it is called, and its axis by the bytes that lie along it, whatever shape
    it has: (O, I) and (O, I, 1, 1) are the same. One that is used both ways round has moments for each.

    A sensitivity is what the outputs lost when the weight alone was changed, over the squared error that the change
    made in what the weight is multiplied to, relative to that itself.
    """

    moments: dict[str, Moments] = field(default_factory=dict[str, Moments])
    sensitivities: dict[str, float] = field(default_factory=dict[str, float])

    def of(self, weight: Array, inputs: Layout) -> Moments | None:
        """Those of a weight whose inputs lie as ``inputs`` says; ``None`` where no input was seen."""
        return self.moments.get(key_of(weight, inputs))

    def sensitivity(self, weight: Array) -> float | None:
        """That of a weight; ``None`` where it was not measured."""
        return self.sensitivities.get(digest(weight).hex())

    def save(self, path: str | Path) -> None:
        """Write a safetensors file. MiloptError where that can't be done."""
        from milopt.calibration.files import write

        write(self, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> Statistics:
        """Read what :meth:`save` wrote; products stay in the file until they are used. MiloptError for other files."""
        from milopt.calibration.files import read

        return read(Path(path))


def key_of(weight: Array, inputs: Layout) -> str:
    """What the moments of a weight go by."""
    return f"{digest(weight).hex()}.{inputs.outer}x{inputs.channels}x{inputs.inner}"
