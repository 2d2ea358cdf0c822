"""Upgrading as the first pass of a pipeline, so that it is compared and reported like any other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from milopt.metrics import Exact, Metric
from milopt.package import Model
from milopt.pipeline import Pass
from milopt.reports import Report
from milopt.upgrading.targets import target_named
from milopt.upgrading.translating import upgrade

__all__ = ["Upgrade"]


@dataclass(frozen=True)
class Upgrade(Pass):
    """An older opset -> that of ``target``, in every function: :func:`milopt.upgrade` as a pass.

    It has no name in the registry: a model is upgraded where someone says so, not by a pipeline's text.
    """

    name: ClassVar[str] = "upgrade"
    metric: ClassVar[Metric] = Exact()
    all_functions: ClassVar[bool] = True

    target: str = "iOS18"

    def __post_init__(self) -> None:
        target_named(self.target)

    def run(self, model: Model) -> Report:
        return upgrade(model, self.target)
