"""Mutants that no test can catch, because the changed pass does the same; each with the reason why.

A mutant is named as the tool prints it: the file, the function, what was there and what came in its place.
"""

from __future__ import annotations

__all__ = ["EQUIVALENT"]

_ORDER = "only one of the two alternatives can match a value, whichever is tried first, and no one asks which it was"
_SIZE = "MIL gives a product or an attention no operands whose sizes differ here, so that the letter binds the same"
_BELOW = "the axis itself is never among these, by the guard before"
_ABSOLUTE = "the absolute value of a difference is that of its opposite"
_MORE = "a value comes up once more than needed, and each step says again what is known already"

# (file, function) -> (before, after) -> why nothing changes
EQUIVALENT: dict[tuple[str, str], dict[tuple[str, str], str]] = {
    ("passes/attention.py", "FuseAttention.pattern"): {
        (
            "op.one_of('masking', add=op.add(x=scores, y=mask), none=scores)",
            "op.one_of('masking', add=scores, none=op.add(x=scores, y=mask))",
        ): _ORDER,
    },
    ("passes/attention.py", "FuseAttention.check"): {
        (
            "m.shapes(q='*B L E', k='*B S E' if m.keys == 'rows' else '*B E S', v='*B S D')",
            "m.shapes(q='*B L EXX', k='*B S E' if m.keys == 'rows' else '*B E S', v='*B S D')",
        ): _SIZE,
        (
            "m.shapes(q='*B L E', k='*B S E' if m.keys == 'rows' else '*B E S', v='*B S D')",
            "m.shapes(q='*B L E', k='*B S E' if m.keys == 'rows' else '*B E S', v='*B S DXX')",
        ): "the width of the values is asked nowhere",
        ("'*B S E' if m.keys == 'rows' else '*B E S'", "'*B S EXX' if m.keys == 'rows' else '*B E S'"): _SIZE,
        ("'*B S E' if m.keys == 'rows' else '*B E S'", "'*B S E' if m.keys == 'rows' else '*B E SXX'"): _SIZE,
    },
    ("passes/attention.py", "FuseAttention.rewrite"): {
        ("factor /= float(number) or 1.0", "factor /= float(number) or 2.0"): (
            "the number is zero only where the factor is, and zero halved is zero"
        ),
        ("abs(factor - 1) > _FP32_STEP", "abs(1 - factor) > _FP32_STEP"): _ABSOLUTE,
    },
    ("passes/attention.py", "_is_one"): {
        (
            "abs(factor - 1) <= float(np.finfo(_FLOATS[dtype_name(m.q)]).eps)",
            "abs(1 - factor) <= float(np.finfo(_FLOATS[dtype_name(m.q)]).eps)",
        ): _ABSOLUTE,
    },
    ("passes/slots.py", "_Walk.mark"): {
        (
            "origin is not None and origin not in origins",
            "origin is not None or origin not in origins",
        ): _MORE,
        ("origin is not None and origin not in origins", "origin not in origins"): _MORE,
        ("origin is not None and origin not in origins", "origin is not None"): _MORE,
    },
    ("passes/slots.py", "_Walk.mask"): {
        ("self.slots.masks[name] = None", "self.slots.masks[name] = 0"): "a dictionary that serves as an ordered set",
    },
    ("passes/slots.py", "_Walk.reduction"): {
        ("(each < axis for each in axes)", "(each <= axis for each in axes)"): _BELOW,
    },
    ("passes/slots.py", "_Walk.squeeze"): {
        ("(each < axis for each in gone)", "(each <= axis for each in gone)"): _BELOW,
    },
    ("passes/slots.py", "_axis_before"): {
        ("(each < axis for each in added)", "(each <= axis for each in added)"): _BELOW,
    },
    ("passes/norms.py", "PrescaleNorm.rewrite"): {
        ("op.rsqrt(x=total, epsilon=np.float16(0))", "op.rsqrt(x=total)"): "the default, 1e-12, is 0 in fp16",
    },
    ("passes/norms.py", "norm_pattern"): {
        (
            "op.one_of('sum', add=op.add(y=eps, x=mean), none=mean)",
            "op.one_of('sum', add=mean, none=op.add(y=eps, x=mean))",
        ): _ORDER,
        (
            "op.one_of('squares', pow=op.pow(x=wide, y=2.0), mul=op.mul(x=wide, y=wide), square=op.square(x=wide))",
            "op.one_of('squares', pow=op.mul(x=wide, y=wide), mul=op.pow(x=wide, y=2.0), square=op.square(x=wide))",
        ): _ORDER,
        (
            "op.one_of('squares', pow=op.pow(x=wide, y=2.0), mul=op.mul(x=wide, y=wide), square=op.square(x=wide))",
            "op.one_of('squares', pow=op.pow(x=wide, y=2.0), mul=op.square(x=wide), square=op.mul(x=wide, y=wide))",
        ): _ORDER,
        (
            "op.one_of('narrowed', no=inverse, yes=op.cast(x=inverse, dtype='fp16'))",
            "op.one_of('narrowed', no=op.cast(x=inverse, dtype='fp16'), yes=inverse)",
        ): _ORDER,
        (
            "op.one_of('narrowed_root', no=op.sqrt(x=total), yes=op.cast(x=op.sqrt(x=total), dtype='fp16'))",
            "op.one_of('narrowed_root', no=op.cast(x=op.sqrt(x=total), dtype='fp16'), yes=op.sqrt(x=total))",
        ): _ORDER,
        (
            "op.one_of('spelling', mul=op.mul(x=x, y=narrow), div=op.real_div(x=x, y=root))",
            "op.one_of('spelling', mul=op.real_div(x=x, y=root), div=op.mul(x=x, y=narrow))",
        ): _ORDER,
    },
    ("passes/angles.py", "_joined"): {
        ("first = parts[0]", "first = parts[1]"): "all parts have the same axes, and the rest of the first is replaced",
    },
    ("passes/angles.py", "_combined"): {
        ("zip(x.axes, y.axes, strict=True)", "zip(y.axes, x.axes, strict=True)"): (
            "the two are asked the same, and whichever runs along the positions says along which"
        ),
    },
}
