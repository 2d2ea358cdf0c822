"""Every op whose value coremltools itself can infer gives the same value here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from milopt.interpreter import Step, compile
from milopt.mil import Var, flat, mb
from tests.interpreter.support import normals, program, run

X = normals(2, 3, 4)
Y = normals(2, 3, 4, seed=1)
SMALL = (X * 0.3).clip(-0.9, 0.9)  # within the domain of acos, asin and atanh
POSITIVE = np.abs(X) + 0.5
INTS = np.random.default_rng(2).integers(-5, 6, (2, 3, 4)).astype(np.int32)
NATURAL = np.random.default_rng(3).integers(1, 6, (2, 3, 4)).astype(np.int32)
FLAGS = X > 0
EDGES = np.array([0.0, -0.0, 1.5, 2.5, -0.5, -1.5, 1e30, -1e30, 1e-30], np.float32)

UNARY = ["abs", "atan", "ceil", "cos", "cosh", "erf", "exp", "exp2", "floor", "round", "sign", "sin", "sinh", "square"]
ACTIVATIONS = ["relu", "relu6", "sigmoid", "softplus", "softsign", "tan", "tanh"]
REDUCTIONS = ["l1_norm", "l2_norm", "log_sum", "log_sum_exp", "max", "mean", "min", "prod", "sum", "sum_square"]

Case = tuple[str, dict[str, Any]]

CASES: list[Case] = [
    *((name, {"x": X}) for name in UNARY + ACTIVATIONS),
    *((name, {"x": EDGES}) for name in ("abs", "ceil", "floor", "round", "sign", "relu", "tanh", "sigmoid")),
    *((name, {"x": SMALL}) for name in ("acos", "asin", "atanh")),
    *((name, {"x": POSITIVE}) for name in ("sqrt", "log", "rsqrt", "inverse")),
    ("log", {"x": POSITIVE, "epsilon": 0.5}),
    ("rsqrt", {"x": POSITIVE, "epsilon": 0.5}),
    ("inverse", {"x": POSITIVE, "epsilon": 0.5}),
    *((name, {"x": X, "y": Y}) for name in ("add", "sub", "mul", "maximum", "minimum", "mod", "floor_div", "real_div")),
    *((name, {"x": INTS, "y": NATURAL}) for name in ("add", "sub", "mul", "maximum", "minimum", "mod", "floor_div")),
    *((name, {"x": X, "y": X[:, :1]}) for name in ("equal", "not_equal", "less", "less_equal", "greater")),
    ("greater_equal", {"x": X, "y": X[:, :1]}),
    ("pow", {"x": POSITIVE, "y": Y}),
    ("pow", {"x": INTS, "y": np.int32(2)}),
    *((name, {"x": FLAGS, "y": FLAGS[:, :1]}) for name in ("logical_and", "logical_or", "logical_xor")),
    ("logical_not", {"x": FLAGS}),
    ("clip", {"x": X, "alpha": -0.5, "beta": 0.7}),
    ("threshold", {"x": X, "alpha": 0.2}),
    *((f"reduce_{name}", {"x": POSITIVE, "axes": [-1, 0], "keep_dims": True}) for name in REDUCTIONS),
    *((f"reduce_{name}", {"x": POSITIVE, "axes": [1]}) for name in REDUCTIONS),
    *((f"reduce_{name}", {"x": NATURAL, "axes": [1]}) for name in REDUCTIONS),
    ("reduce_argmax", {"x": X, "axis": 1}),
    ("reduce_argmin", {"x": X, "axis": -1, "keep_dims": True}),
    ("cumsum", {"x": X, "axis": 1}),
    ("cumsum", {"x": X, "axis": 2, "reverse": True}),
    ("argsort", {"x": X, "axis": 1}),
    ("argsort", {"x": X, "axis": -1, "ascending": True}),
    ("topk", {"x": X, "k": 2, "axis": 1}),
    ("topk", {"x": X, "k": 3, "axis": -1, "ascending": True}),
    ("clamped_relu", {"x": X, "alpha": 0.3, "beta": 0.8}),
    ("elu", {"x": X, "alpha": 0.7}),
    ("gelu", {"x": X}),
    ("gelu", {"x": X, "mode": "TANH_APPROXIMATION"}),
    ("gelu", {"x": X, "mode": "SIGMOID_APPROXIMATION"}),
    ("leaky_relu", {"x": X, "alpha": 0.1}),
    ("linear_activation", {"x": X, "alpha": 0.3, "beta": 0.8}),
    ("prelu", {"x": X, "alpha": np.full(3, 0.2, np.float32)}),
    ("prelu", {"x": X[..., None], "alpha": normals(3)}),
    ("scaled_tanh", {"x": X, "alpha": 0.3, "beta": 0.8}),
    ("sigmoid_hard", {"x": X, "alpha": 0.3, "beta": 0.8}),
    ("softplus_parametric", {"x": X, "alpha": normals(3), "beta": normals(3, seed=1)}),
    ("softmax", {"x": X, "axis": 1}),
    ("thresholded_relu", {"x": X, "alpha": 0.3}),
    ("linear", {"x": X, "weight": normals(5, 4), "bias": normals(5)}),
    ("matmul", {"x": X, "y": Y, "transpose_y": True}),
    ("matmul", {"x": X, "y": normals(2, 3, 5), "transpose_x": True}),
    ("matmul", {"x": normals(4), "y": normals(4, 5)}),
    ("matmul", {"x": INTS, "y": NATURAL, "transpose_y": True}),
    ("einsum", {"values": (normals(3, 4, 5), normals(5, 4, 6)), "equation": "chw,whr->chr"}),
    ("einsum", {"values": (normals(2, 3, 1, 5), normals(2, 5, 4, 6)), "equation": "nchw,nwhu->nchu"}),
    ("l2_norm", {"x": normals(2, 3, 4, 5)}),
    ("layer_norm", {"x": X, "axes": [-1], "gamma": normals(4), "beta": normals(4, seed=1)}),
    ("layer_norm", {"x": X, "axes": [1], "gamma": normals(3), "beta": normals(3, seed=1), "epsilon": 0.1}),
    ("layer_norm", {"x": X, "axes": [1, 2], "gamma": normals(3, 4), "beta": normals(3, 4, seed=1)}),
    ("scaled_dot_product_attention", {"query": X, "key": Y, "value": normals(2, 3, 5)}),
    (
        "scaled_dot_product_attention",
        {"query": X, "key": Y, "value": normals(2, 3, 5), "attn_mask": np.tril(np.ones((3, 3), bool))},
    ),
    ("band_part", {"x": X, "lower": 0, "upper": -1}),
    ("band_part", {"x": INTS, "lower": 1, "upper": 1}),
    ("concat", {"values": (X, Y), "axis": -2}),
    ("expand_dims", {"x": X, "axes": [0, -1]}),
    ("fill", {"shape": [2, 3], "value": 1.5}),
    ("fill_like", {"ref_tensor": X, "value": np.int32(3)}),
    ("flatten2d", {"x": X, "axis": 2}),
    ("flatten2d", {"x": X, "axis": -1}),
    ("identity", {"x": X}),
    ("non_zero", {"x": INTS}),
    ("pad", {"x": X, "pad": [1, 2, 0, 3], "mode": "constant", "constant_val": 2.0}),
    ("pad", {"x": X, "pad": [1, 1, 2, 1], "mode": "reflect"}),
    ("pad", {"x": X, "pad": [2, 1, 0, 0, 2, 4], "mode": "replicate"}),
    ("range_1d", {"start": 1, "end": 12, "step": 4}),
    ("range_1d", {"start": 0.0, "end": 1.0, "step": 0.3}),
    ("reshape", {"x": X, "shape": [4, -1]}),
    ("reshape", {"x": X, "shape": [0, -1, 2]}),
    ("reshape", {"x": X, "shape": [1, 0, 0, 4]}),
    ("reverse", {"x": X, "axes": [0, 2]}),
    ("select", {"cond": FLAGS, "a": X, "b": Y}),
    ("shape", {"x": X}),
    ("slice_by_index", {"x": X, "begin": [0, 1, 0], "end": [2, 3, 2]}),
    ("slice_by_index", {"x": X, "begin": [0, -2, 3], "end": [0, 0, 0], "stride": [1, 1, -2], "end_mask": [True] * 3}),
    ("slice_by_index", {"x": X, "begin": [1, 0, 0], "end": [0, 3, 4], "squeeze_mask": [True, False, False]}),
    ("slice_by_size", {"x": X, "begin": [0, 1, 2], "size": [1, -1, 2]}),
    ("slice_update", {"x": X, "update": Y[:, 1:, :2], "begin": [0, 1, 0], "end": [2, 3, 2]}),
    (
        "slice_update",
        {
            "x": X,
            "update": Y[:, :, :2],
            "begin": [0, 0, 3],
            "end": [2, 3, 0],
            "stride": [1, 1, -2],
            "end_mask": [True] * 3,
        },
    ),
    ("split", {"x": X, "num_splits": 2, "axis": -1}),
    ("split", {"x": X, "split_sizes": [1, 3], "axis": 2}),
    ("squeeze", {"x": X[:, :1], "axes": [1]}),
    ("stack", {"values": (X, Y), "axis": 1}),
    ("tile", {"x": X, "reps": [2, 1, 3]}),
    ("transpose", {"x": X, "perm": [-1, 0, 1]}),
    ("gather", {"x": X, "indices": np.array([[1, 0], [0, 1]], np.int32), "axis": 0}),
    ("gather", {"x": X, "indices": np.int32(2), "axis": -1}),
    ("gather", {"x": X, "indices": np.array([[2, 0], [1, 1]], np.int32), "axis": 1, "batch_dims": 1}),
    ("gather", {"x": X, "indices": np.array([[3, 0], [1, 2]], np.int32), "axis": 2, "batch_dims": 1}),
    ("gather_along_axis", {"x": X, "indices": NATURAL[:, :2] % 3, "axis": 1}),
    ("quantize", {"input": X, "scale": np.float32(0.1), "zero_point": np.int8(3), "output_dtype": "int8"}),
    ("quantize", {"input": X, "scale": np.array([0.1, 0.2, 1.0], np.float32), "axis": 1, "output_dtype": "uint8"}),
    ("cast", {"x": X * 3, "dtype": "int32"}),
    ("cast", {"x": INTS, "dtype": "fp32"}),
    ("cast", {"x": INTS, "dtype": "bool"}),
    ("cast", {"x": FLAGS, "dtype": "int32"}),
]


def _label(case: Case) -> str:
    given = (f"{name}={value}" for name, value in case[1].items() if not isinstance(value, (np.ndarray, tuple)))
    return f"{case[0]}({','.join(given)})"


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # coremltools' own sigmoid of -1e30
@pytest.mark.parametrize("case", CASES, ids=map(_label, CASES))
def test_the_op_gives_what_coremltools_infers(case: Case) -> None:
    op_type, arguments = case
    inferred: list[Any] = []

    def build() -> Any:
        outputs = getattr(mb, op_type)(**{name: _copied(value) for name, value in arguments.items()})
        made: tuple[Var, ...] = flat(outputs)
        inferred.extend(var.val for var in made)
        return made

    got = run(build, {})
    assert None not in [None if each is None else 0 for each in inferred], "coremltools infers no value"
    for have, want in zip(got, inferred, strict=True):
        assert have.shape == np.asarray(want).shape
        # coremltools computes in fp32, sums of a dozen terms; a wrong axis or constant is off by 1e-2
        np.testing.assert_allclose(have, want, rtol=2e-5, atol=2e-6)


def _copied(value: Any) -> Any:
    # coremltools' value inference of thresholded_relu writes to its input
    return np.array(value) if hasattr(value, "nbytes") else value


def test_a_value_known_beforehand_is_computed_all_the_same() -> None:
    """The cases above prove something only if the run doesn't take over the value that coremltools has inferred."""
    steps: list[str] = []

    class Steps:
        def after(self, step: Step, outputs: Any) -> None:
            steps.append(step.op_type)

    compile(program(lambda: mb.add(x=X, y=Y), {})).run({}, listeners=[Steps()])
    assert steps == ["add"]
