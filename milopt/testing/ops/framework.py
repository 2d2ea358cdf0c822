"""A property of an op: what is drawn for it, and the oracle that says what must come out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

from hypothesis import note
from hypothesis import strategies as st

from milopt.interpreter import Precision, compile
from milopt.interpreter.values import Array, to_numpy
from milopt.mil import Function, Program, Target, Var, flat, mb, target, types
from milopt.testing.ops.comparing import EXACT, Oracle, Within, agree, roundoff
from milopt.testing.ops.drawing import Draw
from milopt.testing.ops.untyped import np

__all__ = ["ALL", "SINCE_17", "UNTIL_16", "Call", "Case", "Cases", "Given"]

ALL = (target.iOS15, target.iOS16, target.iOS17, target.iOS18)
UNTIL_16, SINCE_17 = ALL[:2], ALL[2:]


class Given:
    """What an op was given, as an oracle reads it: floats as float64, integers as int64.

    ``given.x`` or ``given["x"]`` is an input, ``given("axis", 0)`` one that may be left out.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = {name: _widened(value) for name, value in values.items()}

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __getattr__(self, name: str) -> Any:
        if name not in self._values:
            raise AttributeError(name)
        return self._values[name]

    def __call__(self, name: str, default: Any) -> Any:
        return self._values.get(name, default)

    def magnitudes(self) -> Given:
        """The same with the absolute values of floats."""
        return Given({name: _absolute(value) for name, value in self._values.items()})


def _widened(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_widened, cast("tuple[Any]", value)))
    kind = _kind(value)
    return value if kind in ("", "b") else value.astype(np.float64 if kind == "f" else np.int64)


def _absolute(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_absolute, cast("tuple[Any]", value)))
    return np.abs(value) if _kind(value) == "f" else value


def _kind(value: Any) -> str:
    """numpy's letter for the type of an array or scalar of numbers; nothing for anything else."""
    kind = str(value.dtype.kind) if isinstance(value, (np.ndarray, np.generic)) else ""
    return kind if kind in "biuf" else ""


@dataclass(frozen=True)
class Call:
    """One drawn use of an op.

    ``inputs`` are fed when the program runs (scalars, which Core ML doesn't take, are written in it), ``attributes``
    are written in the program. ``oracle`` gives the result, or a tuple of them, of a :class:`Given`. ``inferred``:
    whether coremltools' value inference can be compared with, and how closely if not as closely as the oracle.
    """

    inputs: Mapping[str, Any]
    attributes: Mapping[str, Any]
    oracle: Oracle
    within: Within = EXACT
    inferred: bool | Within = True

    @property
    def given(self) -> Given:
        return Given({**self.inputs, **self.attributes})


Draws: TypeAlias = Callable[[Draw], Call]


@dataclass(frozen=True)
class Case:
    """How an op's uses are drawn. ``not_inferred``: why coremltools' value inference is not compared with."""

    op_type: str
    draws: Draws
    opsets: tuple[Target, ...] = ALL
    label: str = ""
    not_inferred: str = ""

    def __str__(self) -> str:
        return self.op_type + (f"-{self.label}" if self.label else "")

    def draw(self, data: st.DataObject) -> tuple[Call, Target]:
        opset = data.draw(st.sampled_from(self.opsets))
        with np.errstate(all="ignore"):
            call = self.draws(Draw(data, opset))
        note(f"{opset.name}: {self.op_type}(inputs={dict(call.inputs)}, attributes={dict(call.attributes)})")
        return call, opset

    def check(self, data: st.DataObject) -> None:
        """The drawn use gives in both precisions what its oracle says."""
        call, opset = self.draw(data)
        with np.errstate(all="ignore"):
            wanted = flat(call.oracle(call.given))
            scale = call.within.scale
            scales = [None] * len(wanted) if scale is None else flat(scale(call.given))
        made = _fed(self.op_type, call, opset)
        precisions: tuple[tuple[Precision, Any], ...] = (("float64", np.float64), ("declared", np.float32))
        for precision, inner in precisions:
            got = _outputs(made, _values(call), precision)
            assert len(got) == len(wanted), f"{len(got)} outputs, want {len(wanted)}"
            for index, (have, want, magnitude) in enumerate(zip(got, wanted, scales, strict=True)):
                what = f"{self} in {precision}, {opset.name}, output {index}"
                agree(have, want, call.within.ulps * roundoff(np.dtype(inner)), magnitude, what)

    def check_inference(self, data: st.DataObject) -> bool:
        """The drawn use gives what coremltools infers of constants; False if it infers nothing."""
        call, opset = self.draw(data)
        if not call.inferred:
            return False
        inferred: list[Any] = []
        with np.errstate(all="ignore"):
            made = _written(self.op_type, call, opset, inferred)
            within = call.inferred if isinstance(call.inferred, Within) else call.within
            magnitude = None if within.scale is None else within.scale(call.given)
        if not inferred or any(each is None for each in inferred):
            return False
        got = _outputs(made, {}, "declared")
        for index, (have, want) in enumerate(zip(got, inferred, strict=True)):
            # coremltools computes in the type of the inputs: the bound is that of two such computations
            unit = roundoff(have.dtype) if have.dtype.kind == "f" else 0.0
            scale = None if magnitude is None else flat(magnitude)[index]
            wide = _widened(np.asarray(want))
            agree(have, wide, 2 * within.ulps * unit, scale, f"{self} inferred, {opset.name}, output {index}")
        return True


@dataclass
class Cases:
    """The cases of a family of ops. It is a decorator of functions that draw a call."""

    cases: list[Case] = field(default_factory=list[Case])

    def __call__(
        self, *op_types: str, opsets: tuple[Target, ...] = ALL, label: str = "", not_inferred: str = ""
    ) -> Callable[[Draws], Draws]:
        def register(draws: Draws) -> Draws:
            self.cases += [Case(each, draws, opsets, label, not_inferred) for each in op_types]
            return draws

        return register

    def __iter__(self) -> Iterator[Case]:
        return iter(self.cases)


def _pieces(call: Call) -> Iterator[tuple[str, Array]]:
    """The arrays that are fed, by name; those of a variadic input one by one."""
    for name, value in call.inputs.items():
        if isinstance(value, tuple):
            values = cast("tuple[Array, ...]", value)
            yield from ((f"{name}_{i}", each) for i, each in enumerate(values))
        else:
            yield name, value


def _values(call: Call) -> dict[str, Array]:
    return {name: value for name, value in _pieces(call) if np.ndim(value)}


def _fed(op_type: str, call: Call, opset: Target) -> Program:
    """A program of the one op, whose inputs are those of the program."""
    placeholders: dict[str, Any] = {
        name: mb.placeholder(shape=value.shape, dtype=types.numpy_type_to_builtin_type(value.dtype))
        for name, value in _values(call).items()
    }
    with Function(placeholders, opset_version=opset) as function:
        known: dict[str, Any] = {name: function.inputs.get(name, value) for name, value in _pieces(call)}
        inputs = {
            name: tuple(each for piece, each in known.items() if piece.startswith(f"{name}_"))
            if isinstance(value, tuple)
            else known[name]
            for name, value in call.inputs.items()
        }
        function.set_outputs(list(_built(op_type, inputs, call.attributes)))
    return _program(function)


def _written(op_type: str, call: Call, opset: Target, inferred: list[Any]) -> Program:
    """A program of the one op on constants, with the values that coremltools infers."""
    with Function({}, opset_version=opset) as function:
        outputs = _built(op_type, call.inputs, call.attributes)
        inferred += [var.val for var in outputs]
        function.set_outputs(list(outputs))
    return _program(function)


def _built(op_type: str, inputs: Mapping[str, Any], attributes: Mapping[str, Any]) -> tuple[Var, ...]:
    # copies, because some of coremltools' value inferences write to their inputs
    given = {name: _copied(value) for name, value in {**inputs, **attributes}.items()}
    outputs: tuple[Var, ...] = flat(getattr(mb, op_type)(**given))
    return outputs


def _copied(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_copied, cast("tuple[Any]", value)))
    return np.array(value) if isinstance(value, np.ndarray) else value


def _program(function: Function) -> Program:
    made = Program()
    made.add_function("main", function)
    return made


def _outputs(made: Program, values: Mapping[str, Array], precision: Precision) -> list[Array]:
    plan = compile(made, precision=precision)
    kept: dict[str, Any] = {name: np.array(value) for name, value in values.items()}
    runs = [
        [to_numpy(outputs[name], info, precision) for name, info in plan.outputs.items()]
        for outputs in (plan.run(values), plan.run(values))
    ]
    for first, again in zip(*runs, strict=True):
        np.testing.assert_array_equal(first, again, err_msg="a second run gives something else")
    for name, value in values.items():
        np.testing.assert_array_equal(value, kept[name], err_msg=f"the run wrote to its input {name}")
    return runs[0]
