"""Images in and out, as PIL images. Pillow is imported when a model has one."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from milopt.errors import EvaluationError
from milopt.interpreter.values import Array

__all__ = ["MODES", "ImageInput", "ImageOutput"]

# colour space of the description -> mode of the PIL image
MODES = {"GRAYSCALE": "L", "GRAYSCALE_FLOAT16": "F", "RGB": "RGB", "BGR": "RGB"}


def _pillow() -> Any:
    try:
        return importlib.import_module("PIL.Image")
    except ImportError as error:
        raise EvaluationError("the model takes or gives images, which needs Pillow: pip install pillow") from error


@dataclass(frozen=True)
class ImageInput:
    """An image. Its pixels reach the program as numbers from 0 to 255 (any, for ``GRAYSCALE_FLOAT16``).

    Scale and bias are ops of the program: coremltools writes them there when it converts, and the description of an
    ML Program has no place for them. ``sizes`` are pairs (height, width); else ``bounds`` holds of each.
    ``rank`` is that of the program's value, whose last dimensions are (channels, height, width).
    """

    name: str
    colors: str
    rank: int
    sizes: tuple[tuple[int, int], ...]
    bounds: tuple[tuple[int, int | None], ...] = ()
    optional: bool = False

    def __str__(self) -> str:
        return f"{self.name} {self.colors} image{self._sizes_text()}"

    def _sizes_text(self) -> str:
        if self.bounds:
            (low, high), (left, right) = self.bounds
            return f" {left}..{right or ''} wide, {low}..{high or ''} high"
        return " or ".join(f" {width}x{height} (width x height)" for height, width in self.sizes)

    def read(self, value: Any) -> Array:
        """``value`` must be a PIL image of the colour space's mode and of a described size."""
        wanted = f"input {self.name!r} must be a PIL image in mode {MODES[self.colors]},{self._sizes_text()}"
        if not isinstance(value, _pillow().Image):
            raise EvaluationError(f"{wanted}; got {type(value).__name__}")
        if value.mode != MODES[self.colors] or not self._takes(value.height, value.width):
            raise EvaluationError(f"{wanted}; got mode {value.mode}, {value.width}x{value.height}")
        pixels: Array = np.asarray(value, dtype=np.float32)
        pixels = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
        if self.colors == "BGR":
            pixels = pixels[::-1]
        return np.ascontiguousarray(np.reshape(pixels, (1,) * (self.rank - 3) + pixels.shape))

    def _takes(self, height: int, width: int) -> bool:
        if not self.bounds:
            return (height, width) in self.sizes
        return all(
            low <= size and (high is None or size <= high)
            for size, (low, high) in zip((height, width), self.bounds, strict=True)
        )

    def default(self) -> Array:
        """A black image: the description has no default for images."""
        channels = 3 if MODES[self.colors] == "RGB" else 1
        return np.zeros((1,) * (self.rank - 3) + (channels, *self.sizes[0]), np.float32)


@dataclass(frozen=True)
class ImageOutput:
    """An image: values are rounded and kept within 0 to 255, but for ``GRAYSCALE_FLOAT16``, which are given as are.

    How Core ML rounds values that are no whole numbers is not documented.
    """

    name: str
    colors: str

    def write(self, value: Array) -> Any:
        """``value (..., C, H, W)`` with one image as a PIL image of the colour space's mode."""
        pixels: Array = np.reshape(value, value.shape[-3:])
        if self.colors == "GRAYSCALE_FLOAT16":
            return _pillow().fromarray(pixels[0].astype(np.float32))
        pixels = np.minimum(np.maximum(np.rint(np.nan_to_num(pixels.astype(np.float32))), 0), 255).astype(np.uint8)
        if self.colors == "BGR":
            pixels = pixels[::-1]
        return _pillow().fromarray(
            pixels[0] if self.colors == "GRAYSCALE" else np.ascontiguousarray(np.moveaxis(pixels, 0, -1))
        )
