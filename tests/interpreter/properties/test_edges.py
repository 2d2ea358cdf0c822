"""Edges that drawn examples meet too seldom."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from milopt.mil import mb
from tests.interpreter.support import run


@pytest.mark.parametrize(("size", "top", "count"), [(8, 0, 26), (8, 0.15, 12), (28, 0, 14), (28, 0.2, 20)])
def test_a_box_that_ends_at_the_edge_of_the_image_stays_in_it(size: int, top: float, count: int) -> None:
    """The last place, computed as ``top + i * spacing``, would be rounded to beyond the last row."""
    image = np.ones((1, 1, size, 1), np.float32)
    boxes = np.array([[top, 0, 1, 0]], np.float32)

    def build(x: Any) -> Any:
        return mb.crop_resize(
            x=x,
            boxes=boxes,
            target_height=count,
            normalized_coordinates=True,
            sampling_mode="STRICT_ALIGN_CORNERS",
            pad_value=np.float32(9),
        )

    assert (run(build, {"x": image})[0] == 1).all()
