"""Runs MIL on torch: the reference for what a program means, and the runtime where Core ML is absent."""

from __future__ import annotations

from milopt.interpreter.compiler import compile, compile_all
from milopt.interpreter.evaluate import evaluate
from milopt.interpreter.impls import Impl, Impls
from milopt.interpreter.ops import core
from milopt.interpreter.plan import Plan
from milopt.interpreter.state import State, make_state
from milopt.interpreter.steps import Listener, Step
from milopt.interpreter.values import Precision, ValueInfo
from milopt.interpreter.weights import Weights

__all__ = [
    "Impl",
    "Impls",
    "Listener",
    "Plan",
    "Precision",
    "State",
    "Step",
    "ValueInfo",
    "Weights",
    "compile",
    "compile_all",
    "core",
    "evaluate",
    "make_state",
]
