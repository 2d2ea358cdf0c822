from collections.abc import Sequence
from typing import Any, NamedTuple

class Clustered(NamedTuple):
    clusters: list[int]
    centroids: list[float]

def cluster(array: Sequence[float] | Any, k: int, *, weights: Sequence[float] | Any | None = None) -> Clustered: ...
