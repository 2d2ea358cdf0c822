"""Second moments of the inputs of weights, and their file."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from milopt.errors import MiloptError
from milopt.mil import digest

__all__ = ["Moments", "Statistics"]

Array: TypeAlias = Any  # numpy.ndarray; its generic form is more than pyright strict can follow

_FORMAT = "milopt calibration 1"


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
    """Moments by weight. A weight is known by its bytes, whatever it is called and whatever its shape."""

    moments: dict[str, Moments] = field(default_factory=dict[str, Moments])

    def of(self, weight: Array) -> Moments | None:
        """Those of a weight; ``None`` for one that no input was seen for."""
        return self.moments.get(digest(weight).hex())

    def save(self, path: str | Path) -> None:
        """Write an ``.npz`` file of arrays."""
        arrays: dict[str, Array] = {"format": np.array(_FORMAT)}
        for key, each in self.moments.items():
            arrays[f"{key}.squares"], arrays[f"{key}.count"] = each.squares, np.array(each.count)
            if each.products is not None:
                arrays[f"{key}.products"] = each.products
        with Path(path).open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: str | Path) -> Statistics:
        """Read what :meth:`save` wrote. MiloptError for anything else."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise MiloptError(f"{path} can't be read as statistics of a calibration: {error}") from None
        if str(arrays.pop("format", "")) != _FORMAT:
            raise MiloptError(f"{path} holds no statistics of a calibration")
        found = cls()
        for name, array in arrays.items():
            key, part = name.rsplit(".", 1)
            if part == "squares":
                products = arrays.get(f"{key}.products")
                found.moments[key] = Moments(array, int(arrays[f"{key}.count"]), products)
        return found
