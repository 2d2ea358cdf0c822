"""Implementations of MIL's ops, one family per file; ``core`` is all of them."""

from __future__ import annotations

from milopt.interpreter.impls import Impls
from milopt.interpreter.ops.activation import activation
from milopt.interpreter.ops.constexpr import constexpr
from milopt.interpreter.ops.control import control
from milopt.interpreter.ops.convolution import convolution
from milopt.interpreter.ops.detection import detection
from milopt.interpreter.ops.elementwise import elementwise
from milopt.interpreter.ops.linear import linear
from milopt.interpreter.ops.logic import logic
from milopt.interpreter.ops.movement import movement
from milopt.interpreter.ops.normalization import normalization
from milopt.interpreter.ops.pooling import pooling
from milopt.interpreter.ops.quantization import quantization
from milopt.interpreter.ops.randomness import randomness
from milopt.interpreter.ops.rearrangement import rearrangement
from milopt.interpreter.ops.recurrent import recurrent
from milopt.interpreter.ops.reduction import reduction
from milopt.interpreter.ops.resizing import resizing
from milopt.interpreter.ops.sampling import sampling
from milopt.interpreter.ops.selection import selection
from milopt.interpreter.ops.slicing import slicing
from milopt.interpreter.ops.states import states

__all__ = ["core"]

core: Impls = (
    activation
    | constexpr
    | control
    | convolution
    | detection
    | elementwise
    | linear
    | logic
    | movement
    | normalization
    | pooling
    | quantization
    | randomness
    | rearrangement
    | recurrent
    | reduction
    | resizing
    | sampling
    | selection
    | slicing
    | states
)
