"""Layouts of a program's values such that the fewest elements are moved.

Nothing here knows MIL: tensors are numbers of pieces with sizes, ops are relations between the layouts of their
operands and results. ``milopt.passes.layout`` reads a program into this model, and writes the layouts chosen back.
"""

from __future__ import annotations

from milopt.layout.forms import Layout, Step, cost, plan
from milopt.layout.problems import Problem, Table
from milopt.layout.solving import Solution, solve

__all__ = ["Layout", "Problem", "Solution", "Step", "Table", "cost", "plan", "solve"]
