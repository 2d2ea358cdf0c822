"""Composite ops taken apart: the steps that coremltools documents, with every intermediate value rounded.

``strict`` holds the implementations of the ``declared-strict`` precision; ops that are not in it are one step, and run
as in ``declared``. Where an op's ``value_inference`` writes out the steps, those are taken, else the formula of its
documentation. A sum of many terms is one step: its terms are rounded where the formula computes them element by element
(squares, exponentials), the sum is accumulated wider, and rounded once. What is computed from scalar parameters alone
(``alpha / size``) is not rounded.
"""

from __future__ import annotations

from milopt.interpreter.impls import Impls
from milopt.interpreter.strict.activation import activation
from milopt.interpreter.strict.elementwise import elementwise
from milopt.interpreter.strict.linear import linear
from milopt.interpreter.strict.normalization import normalization
from milopt.interpreter.strict.pooling import pooling
from milopt.interpreter.strict.recurrent import recurrent
from milopt.interpreter.strict.reduction import reduction

__all__ = ["strict"]

strict: Impls = activation | elementwise | linear | normalization | pooling | recurrent | reduction
