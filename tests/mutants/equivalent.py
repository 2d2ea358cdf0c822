"""Mutants that no test can catch, because the changed pass does the same; each with the reason why.

A mutant is named as the tool prints it: the file, the function, what was there and what came in its place.
"""

from __future__ import annotations

__all__ = ["EQUIVALENT"]

_ORDER = "only one of the two alternatives can match a value, whichever is tried first, and no one asks which it was"
_SIZE = "MIL gives a product or an attention no operands whose sizes differ here, so that the letter binds the same"
_BELOW = "the axis itself is never among these, by the guard before"
_UNSURE = "what is neither True nor False is not sure, and these two are asked for by identity"
_SYMMETRIC = "one is as large as the other where the other is as large as the one"
_SET = "a dictionary that serves as an ordered set"
_UNREAD = "two constants of the pattern of which nothing but that they are there is asked"
_WITHIN = "from wherever a group is looked at, and however often, it is the same: only time is lost"
_BEYOND = "the bounds lie a millionth beyond what rounds to the numbers, where none of the published ones is"
_ROUNDING = "it makes up for float64's rounding, which is a thousandth of either, and of no number with three digits"
_MORE = "a value comes up once more than needed, and each step says again what is known already"
_FORMS = (
    "Palettize(bits=cast('{}', bits), granularity='grouped-channel' if group else 'tensor', group_size=group or 1, "
    "feedback=self.feedback, weighting='activation' if self.calibration else 'none', calibration=self.calibration, "
    "min_elements=self.min_elements)"
)

# (file, function) -> (before, after) -> why nothing changes
EQUIVALENT: dict[tuple[str, str], dict[tuple[str, str], str]] = {
    ("passes/attention.py", "WrittenOut.pattern"): {
        (
            "op.one_of('weighed', op=op.softmax(x=scores, axis=...), written=op.real_div(x=powers, y=total))",
            "op.one_of('weighed', op=op.real_div(x=powers, y=total), written=op.softmax(x=scores, axis=...))",
        ): _ORDER,
    },
    ("passes/convolution_inverse.py", "MergeUnitAxes.pattern"): {
        (
            "op.one_of('first', squeeze=op.shared(op.squeeze(x=x, axes=...)), "
            "expand_dims=op.shared(op.expand_dims(x=x, axes=...)))",
            "op.one_of('first', squeeze=op.shared(op.expand_dims(x=x, axes=...)), "
            "expand_dims=op.shared(op.squeeze(x=x, axes=...)))",
        ): _ORDER,
        (
            "op.one_of('second', squeeze=op.squeeze(x=first, axes=...), expand_dims=op.expand_dims(x=first, axes=...))",
            "op.one_of('second', squeeze=op.expand_dims(x=first, axes=...), expand_dims=op.squeeze(x=first, axes=...))",
        ): _ORDER,
    },
    ("passes/attention_writing.py", "scaled"): {
        ("factor /= float(number) or 1.0", "factor /= float(number) or 2.0"): (
            "the number is zero only where the factor is, and zero halved is zero"
        ),
    },
    ("passes/attention_masks.py", "read_scores"): {
        ("Mask(op, side, 'scale', number)", "Mask(side, op, 'scale', number)"): "of a scale the number alone is read",
    },
    ("passes/attention_styles.py", "_products"): {
        ("op.softmax(x=scores, axis=-1)", "op.softmax(x=scores)"): "the last axis is the default",
    },
    ("passes/budget.py", "Budget._forms"): {
        (_FORMS.format("Any"), _FORMS.format("AnyXX")): "type checkers alone read it",
    },
    ("passes/budget.py", "Budget._measured"): {
        ("if any(map(isnan, errors)):", "if all(map(isnan, errors)):"): (
            "a number that is not finite, which alone makes an error NaN, makes all of them so"
        ),
    },
    ("passes/palettes.py", "encode_palette"): {
        (
            "np.where(scale == 0, np.float32(1), scale.astype(np.float32))",
            "np.where(scale == 0, np.float32(2), scale.astype(np.float32))",
        ): "a channel whose largest number is 0 has zeros alone, whatever divides them",
    },
    ("passes/compressing.py", "<module>"): {
        ("P = TypeVar('P', bound=Plan)", "P = TypeVar('PXX', bound=Plan)"): "type checkers alone read it",
        ("P = TypeVar('P', bound=Plan)", "P = TypeVar('P')"): "type checkers alone read it",
    },
    ("passes/frequencies.py", "_fit"): {
        ("if least <= base <= most:", "if least < base <= most:"): _BEYOND,
        ("if least <= base <= most:", "if least <= base < most:"): _BEYOND,
        ("least > min(most, _LARGEST_BASE)", "least >= min(most, _LARGEST_BASE)"): _BEYOND,
        (
            "low[0] <= 0 or low[1] <= 0 or high[0] > 1.001",
            "low[0] <= 0 or low[1] <= 0 or high[0] >= 1.001",
        ): "half-way between two fp16 numbers and a millionth beyond is never 1.001",
    },
    ("passes/frequencies.py", "_shortest"): {
        ("least / step * (1 - 1e-12)", "least / step * (1 - 2e-12)"): _ROUNDING,
        ("number <= most * (1 + 1e-12)", "number <= most * (1 + 2e-12)"): _ROUNDING,
        ("number <= most * (1 + 1e-12)", "number < most * (1 + 1e-12)"): _ROUNDING,
    },
    ("passes/frequencies.py", "_identified"): {
        ("(table >= low) & (table <= high)", "(table > low) & (table <= high)"): _BEYOND,
        ("(table >= low) & (table <= high)", "(table >= low) & (table < high)"): _BEYOND,
    },
    ("passes/decomposition.py", "DecomposeAttention.pattern"): {
        ("op.one_of('masking', mask=mask, none=None)", "op.one_of('masking', mask=None, none=mask)"): _ORDER,
    },
    ("passes/gqa.py", "PackHeads.pattern"): {
        ("op.one_of('masking', mask=mask, none=None)", "op.one_of('masking', mask=None, none=mask)"): _ORDER,
    },
    ("passes/cache_states.py", "Plan._placing"): {
        ("np.arange(size, dtype=np.int32)", "np.arange(size)"): "MIL's constants of whole numbers are int32",
        ("np.arange(query, dtype=np.int32)", "np.arange(query)"): "MIL's constants of whole numbers are int32",
    },
    ("passes/gqa_shared.py", "_repeats"): {
        ("np.arange(prod(shape), dtype=np.int32)", "np.arange(prod(shape))"): "the same numbers, in more bytes",
    },
    ("passes/attention_sites.py", "_keeps_rows"): {
        (
            "zip(shape_of(op.x)[-2:], shape_of(made)[-2:], strict=True)",
            "zip(shape_of(made)[-2:], shape_of(op.x)[-2:], strict=True)",
        ): _SYMMETRIC,
    },
    ("passes/rope.py", "Made.compare"): {
        (
            "((exact - original) ** 2).sum",
            "((original - exact) ** 2).sum",
        ): "the square of a difference is its opposite's",
    },
    ("passes/rope.py", "TabulateWave.pattern"): {
        ("op.one_of('scaling', mul=scaled, none=wave)", "op.one_of('scaling', mul=wave, none=scaled)"): _ORDER,
    },
    ("passes/repeats.py", "_equal"): {
        ("return None", "return 0"): _UNSURE,
        (
            "sympy.simplify(one[0] - other[0])",
            "sympy.simplify(other[0] - one[0])",
        ): "a difference is zero, or a number, where its opposite is",
        (
            "bool(difference == 0) if difference.is_number else None",
            "bool(difference == 0) if difference.is_number else 0",
        ): _UNSURE,
    },
    ("passes/repeats.py", "_Reader._condition"): {
        ("return [None] * count", "return [0] * count"): _UNSURE,
        (
            "[_equal(a, b) for a, b in zip(*wide, strict=True)]",
            "[_equal(b, a) for a, b in zip(*wide, strict=True)]",
        ): "equality is symmetric",
    },
    ("passes/repeats.py", "_Reader._size"): {
        ("(each < axis for each in added)", "(each <= axis for each in added)"): _BELOW,
    },
    ("passes/norms.py", "_peak"): {
        (
            "2.0 ** floor(log2(_LARGEST / prod((int(size) for size in sizes))) / 2)",
            "2.0 * floor(log2(_LARGEST / prod((int(size) for size in sizes))) / 2)",
        ): "2 to the 1 is 2 times 1, for 2 both are 4, for less both are cut to 1, and for more both to 4",
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
        ("self.slots.masks[name] = None", "self.slots.masks[name] = 0"): _SET,
    },
    ("passes/slots_moves.py", "_reduction"): {
        ("(each < axis for each in axes)", "(each <= axis for each in axes)"): _BELOW,
    },
    ("passes/slots_moves.py", "_squeeze"): {
        ("(each < axis for each in gone)", "(each <= axis for each in gone)"): _BELOW,
    },
    ("passes/slots_moves.py", "axis_before"): {
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
            "op.one_of('reciprocal', rsqrt=op.rsqrt(x=total, epsilon=inside), power=op.pow(x=total, y=-0.5), "
            "inverse=op.inverse(x=op.sqrt(x=total), epsilon=outside), division=op.real_div(x=1.0, y=op.sqrt(x=total)))",
            "op.one_of('reciprocal', rsqrt=op.pow(x=total, y=-0.5), power=op.rsqrt(x=total, epsilon=inside), "
            "inverse=op.inverse(x=op.sqrt(x=total), epsilon=outside), division=op.real_div(x=1.0, y=op.sqrt(x=total)))",
        ): _ORDER,
        (
            "op.one_of('reciprocal', rsqrt=op.rsqrt(x=total, epsilon=inside), power=op.pow(x=total, y=-0.5), "
            "inverse=op.inverse(x=op.sqrt(x=total), epsilon=outside), division=op.real_div(x=1.0, y=op.sqrt(x=total)))",
            "op.one_of('reciprocal', rsqrt=op.rsqrt(x=total, epsilon=inside), "
            "power=op.inverse(x=op.sqrt(x=total), epsilon=outside), inverse=op.pow(x=total, y=-0.5), "
            "division=op.real_div(x=1.0, y=op.sqrt(x=total)))",
        ): _ORDER,
        (
            "op.one_of('reciprocal', rsqrt=op.rsqrt(x=total, epsilon=inside), power=op.pow(x=total, y=-0.5), "
            "inverse=op.inverse(x=op.sqrt(x=total), epsilon=outside), division=op.real_div(x=1.0, y=op.sqrt(x=total)))",
            "op.one_of('reciprocal', rsqrt=op.rsqrt(x=total, epsilon=inside), power=op.pow(x=total, y=-0.5), "
            "inverse=op.real_div(x=1.0, y=op.sqrt(x=total)), division=op.inverse(x=op.sqrt(x=total), epsilon=outside))",
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
    ("passes/residual.py", "_Patterns.plain"): {
        (
            "norm_pattern(op, x, axes, eps, inside, outside)",
            "norm_pattern(op, x, axes, inside, eps, outside)",
        ): "both go with the square of the scale, whichever is which",
    },
    ("passes/residual.py", "_Patterns.safe"): {
        (
            "safe_norm_pattern(op, x, axes, peak, clamp, a, g)",
            "safe_norm_pattern(op, x, peak, axes, clamp, a, g)",
        ): _UNREAD,
        (
            "safe_norm_pattern(op, x, axes, peak, clamp, a, g)",
            "safe_norm_pattern(op, x, axes, clamp, peak, a, g)",
        ): _UNREAD,
    },
    ("passes/residual.py", "ScaleResidual._scale"): {
        (
            "report.decline(name, each.why.at or each.var, each.why.text, *each.why.arguments)",
            "report.decline(name, each.why.at, each.why.text, *each.why.arguments)",
        ): "every reason that a plan has names its place",
    },
    ("passes/residual.py", "_Stream.take"): {
        ("self.values[each] = None", "self.values[each] = 0"): _SET,
    },
    ("passes/residual.py", "_Stream._behind"): {
        ("self.layer_norms[user] = None", "self.layer_norms[user] = 0"): _SET,
    },
    ("passes/notch.py", "SplitInputs._cut"): {
        ("return 0", "pass"): "no cut is asked for as what is false, and None is as well",
    },
    ("passes/notch.py", "SplitInputs.rewrite"): {
        ("kept.pop('bias', None)", "kept.pop('bias', 0)"): "what is taken out is dropped",
    },
    ("passes/notch.py", "_share_splits"): {
        (
            "earlier is not op and (not any((var.consuming_blocks for var in op.outputs)))",
            "not any((var.consuming_blocks for var in op.outputs))",
        ): "a value that takes its own place stays",
    },
    ("passes/rows.py", "lift_rows"): {
        (
            "op.op_type == 'reshape' and op.outputs[0] not in seen",
            "not (op.op_type == 'reshape' and op.outputs[0] not in seen)",
        ): _WITHIN,
        (
            "op.op_type == 'reshape' and op.outputs[0] not in seen",
            "op.op_type == 'reshape' or op.outputs[0] not in seen",
        ): _WITHIN,
        ("op.op_type == 'reshape' and op.outputs[0] not in seen", "op.op_type == 'reshape'"): _WITHIN,
        ("seen |= group.values", "seen &= group.values"): _WITHIN,
        ("seen |= group.values", "pass"): _WITHIN,
    },
    ("passes/rows.py", "_by_row"): {
        ("return False", "pass"): "it ends there, and None is as false",
    },
    ("passes/rows.py", "_Group._before"): {
        ("return []", "pass"): "the group is not whole, and neither is what the op reads: the op is behind it",
        ("self.starts[op] = None", "self.starts[op] = 0"): _SET,
        ("self.inside[op] = None", "self.inside[op] = 0"): _SET,
    },
    ("passes/rows.py", "_Group._behind"): {
        ("self.ends[user] = None", "self.ends[user] = 0"): _SET,
    },
    ("passes/kernels.py", "_Carrier._repacked"): {
        (
            "unpack(constant(inputs[key]), bits, prod(sizes), signed=False)",
            "unpack(constant(inputs[key]), bits, prod(sizes), signed=True)",
        ): "the same bits are packed again, whatever numbers they were in between",
    },
    ("passes/kernels.py", "grain_of"): {
        ("1 < var.shape[axis] < size", "1 < var.shape[axis] <= size"): "groups of one channel ask for nothing",
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
