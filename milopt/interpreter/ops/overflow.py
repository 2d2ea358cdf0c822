"""What integers do that leave the range of their type, op by op.

The rule is that of coremltools' ``value_inference`` where it computes a value, and two's complement elsewhere. The
kernels of Core ML need not agree: nothing about overflow is documented.
"""

from __future__ import annotations

from types import MappingProxyType

__all__ = ["INTEGER_OVERFLOW"]

_WRAPS = "wraps"
_CUT = "computed in float64 and cut to an integer; NaN and what lies beyond int32 give the smallest int32"

INTEGER_OVERFLOW = MappingProxyType(
    {
        "abs": "wraps: the smallest int32 stays itself",
        "add": _WRAPS,
        "cast": "to an integer type: integers wrap, floats are cut, and NaN and floats beyond int32 count as its least",
        "cumsum": _WRAPS,
        "exp2": "the smallest int32 from 2**31 on, 0 for negative exponents",
        "floor_div": "wraps; 0 where the divisor is 0",
        "linear": _WRAPS,
        "matmul": _WRAPS,
        "mod": "0 where the divisor is 0",
        "mul": _WRAPS,
        "pow": "wraps; negative exponents, of which coremltools infers nothing, give 1/x cut to an integer",
        "range_1d": "counted in int64: a last element near the bounds does not wrap",
        "real_div": "cut to an integer; wraps; 0 where the divisor is 0",
        "reduce_l1_norm": _WRAPS,
        "reduce_l2_norm": f"squares wrap; the root is {_CUT}",
        "reduce_log_sum": f"the sum wraps; the logarithm is {_CUT}",
        "reduce_log_sum_exp": _CUT,
        "reduce_mean": _CUT,
        "reduce_prod": _WRAPS,
        "reduce_sum": _WRAPS,
        "reduce_sum_square": _WRAPS,
        "scatter": "wraps; division as in real_div",
        "scatter_along_axis": "wraps; division as in real_div",
        "scatter_nd": "wraps; division as in real_div",
        "square": _WRAPS,
        "sub": _WRAPS,
    }
)
