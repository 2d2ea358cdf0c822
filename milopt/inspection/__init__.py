"""What is in a package: ``milopt.inspect``."""

from __future__ import annotations

from milopt.inspection.compression import Compressed, Step
from milopt.inspection.features import Feature
from milopt.inspection.functions import BlockFacts, Classifier, FunctionFacts, Nested
from milopt.inspection.looking import Inspection, inspect
from milopt.inspection.weights import Duplicate, Tensor

__all__ = [
    "BlockFacts",
    "Classifier",
    "Compressed",
    "Duplicate",
    "Feature",
    "FunctionFacts",
    "Inspection",
    "Nested",
    "Step",
    "Tensor",
    "inspect",
]
