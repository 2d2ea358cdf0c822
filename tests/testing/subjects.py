"""Every rule and pass of milopt, with the programs it is tried on."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from hypothesis import strategies as st

import milopt.passes
from milopt.metrics import Metric
from milopt.mil import Program, Var, mb, target
from milopt.package import load
from milopt.passes.budget import Budget
from milopt.passes.compression import Palettize
from milopt.passes.contract import ClientContract
from milopt.passes.convolution_inverse import ConvAsLinear
from milopt.passes.decomposition import DecomposeAttention, RestyleAttention
from milopt.passes.decompression import Decompress
from milopt.passes.head import SplitHead
from milopt.passes.islands import Fp32Islands, WidenAngles, WidenNorm
from milopt.passes.layout import LayoutBc1s
from milopt.passes.masks import FiniteMask
from milopt.passes.notch import DmaNotch, SplitInputs
from milopt.passes.quantization import Quantize
from milopt.passes.residual import ScaleResidual
from milopt.passes.rope import Made, RopeTable, TabulateWave
from milopt.pipeline import Pass, RulePass
from milopt.registry import create, names
from milopt.rules import Rule
from milopt.testing import strategies as mil
from milopt.testing.scope import Draw, Scope
from tests.passes.contract_programs import CONTEXT
from tests.testing.attentions import attention_programs, broken_programs, flexible_repeats, fused_programs
from tests.testing.caches import broken_caches, broken_states, caches, stateful
from tests.testing.contracts import broken_clients, clients
from tests.testing.einsums import einsums
from tests.testing.heads import broken_heads, heads
from tests.testing.layouts import convolved, unlinear
from tests.testing.numerics import broken_masks, broken_streams, half_angles, masked, streams
from tests.testing.weights import odd_weights, weighted

__all__ = ["SUBJECTS", "Subject", "pass_names", "rule_classes"]


@dataclass(frozen=True)
class Subject:
    """A rule or pass; ``matching`` are programs that it is for, ``near`` ones that miss that by a detail."""

    name: str
    of: Rule[Any] | Pass
    matching: st.SearchStrategy[Program]
    near: st.SearchStrategy[Program]
    metric: Metric | None = None


def rule_classes() -> Iterator[type[Rule[Any]]]:
    """Every class of a rule in milopt.passes that can be applied."""
    for module in sorted(each.name for each in pkgutil.walk_packages(milopt.passes.__path__, "milopt.passes.")):
        found: list[Any] = list(vars(importlib.import_module(module)).values())
        yield from (each for each in found if _is_rule(each) and each.__module__ == module)


def _is_rule(each: object) -> bool:
    return inspect.isclass(each) and issubclass(each, Rule) and not inspect.isabstract(cast("Any", each))


def pass_names() -> tuple[str, ...]:
    """Every pass of milopt itself."""
    return tuple(name for name in names() if type(create(name)).__module__.startswith("milopt.passes."))


def _angles(draw: Draw, values: Sequence[Var]) -> Var:
    """Positions times frequencies, in one of the spellings in use."""
    assert isinstance(values, Scope)
    length, half = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    positions = values.input((1, length), "int32")
    theta = draw(st.sampled_from([100.0, 1e4, 1e5]))
    frequencies: Any = np.array([theta ** (-each / half) for each in range(half)], np.float32)
    floats = mb.cast(x=positions, dtype="fp32")
    how = draw(st.sampled_from(["mul", "matmul", "mixed"]))
    if how == "mul":
        angles = mb.mul(x=mb.expand_dims(x=floats, axes=[-1]), y=frequencies)
    elif how == "matmul":
        rows = mb.matmul(x=frequencies.reshape(1, half, 1), y=mb.expand_dims(x=floats, axes=[1]))
        angles = mb.transpose(x=rows, perm=[0, 2, 1])
    else:  # a value that runs along the positions may not be folded in
        angles = mb.add(x=mb.expand_dims(x=floats, axes=[-1]), y=np.float32(draw(st.sampled_from([0, 0.5]))))
        angles = mb.mul(x=angles, y=frequencies)
    made: Var = mb.concat(values=[angles, angles], axis=-1) if draw(st.booleans()) else angles
    return made


# Patterns of one op whose rule looks at the op before: trying finds it, but not often
_WAVES: dict[str, Any] = {"values": {"angles": _angles}}
_HALF_WAVES: dict[str, Any] = {"values": {"angles": half_angles}}
_HINTS: Mapping[str, Mapping[str, Any]] = {
    "SplitInputs": {"dtypes": ["fp16"]},
    "PrescaleNorm": {"dtypes": ["fp16", "fp16", "fp32"]},
    "TabulateWave": _WAVES,
    "WidenAngles": _HALF_WAVES,
    "WidenNorm": {"dtypes": ["fp16", "fp16", "fp32"]},
}
# the table is rounded once to the type of the wave, which its pass declares
_METRICS: Mapping[str, Metric] = {"TabulateWave": RopeTable.metric}
_INSTANCES: Mapping[str, Callable[[], Rule[Any]]] = {
    "TabulateWave": lambda: TabulateWave("bare", 8, Made()),
    "DecomposeAttention": lambda: DecomposeAttention("matmul", 512),
    "RestyleAttention": lambda: RestyleAttention("per-head", 512),
    "SplitInputs": lambda: SplitInputs(0, 4),
    "ConvAsLinear": lambda: ConvAsLinear(images=True),
}


# Rules that look far beyond their pattern, or have one of many parts: programs are written for them
_PROGRAMS: Mapping[str, tuple[st.SearchStrategy[Program], st.SearchStrategy[Program]]] = {
    "FuseAttention": (attention_programs(half=False), broken_programs(half=False)),
    "MergeHeads": (fused_programs(apart=True), fused_programs(broken=True)),
    "PackHeads": (fused_programs(shared=True), fused_programs(broken=True)),
    "PackProduct": (
        attention_programs(opset=target.iOS16, gqa="tile", half=False),
        broken_programs(opset=target.iOS16, half=False),
    ),
    "PackAttention": (
        attention_programs(opset=target.iOS16, symbolic="LS", gqa="tile", keys="rows", softmax="op", half=False),
        broken_programs(opset=target.iOS16, symbolic="LS", half=False),
    ),
    "DecomposeAttention": (fused_programs(), fused_programs(broken=True)),
    "RestyleAttention": (
        attention_programs(opset=target.iOS16, half=False),
        broken_programs(opset=target.iOS16, half=False),
    ),
    "EinsumAsConv": (einsums(), einsums(broken=True)),
    "FoldTile": (flexible_repeats(), flexible_repeats(broken=True)),
}
_PROGRAM_PASSES = {
    "fuse-sdpa": (attention_programs(), broken_programs()),  # in fp16 too, where the pass declares another metric
    "pack-gqa": _PROGRAMS["PackHeads"],
    "decompose-sdpa": (fused_programs(fp16=True), fused_programs(broken=True, fp16=True)),
}


def _rules() -> Iterator[Subject]:
    for cls in rule_classes():
        rule = _INSTANCES.get(cls.__name__, cls)()
        if cls.__name__ in _PROGRAMS:
            yield Subject(rule.name, rule, *_PROGRAMS[cls.__name__])
            continue
        hints: dict[str, Any] = dict(_HINTS.get(cls.__name__, {}))
        metric = _METRICS.get(cls.__name__)
        yield Subject(rule.name, rule, mil.matching(rule, **hints), mil.near_misses(rule, **hints), metric)


@dataclass(frozen=True)
class _Given:
    """A pass with options, and its programs."""

    of: Pass
    matching: st.SearchStrategy[Program]
    near: st.SearchStrategy[Program]
    names: tuple[str, ...] = field(default=())


def _waves(**options: Any) -> tuple[st.SearchStrategy[Program], st.SearchStrategy[Program]]:
    rule = TabulateWave("bare", 8, Made())
    return mil.matching(rule, **_WAVES, **options), mil.near_misses(rule, **_WAVES, **options)


def _palettized(program: Program) -> Program:
    model = load(program)
    Palettize(bits=4, min_elements=1).run(model)
    return model.program


def _passes() -> Iterator[Subject]:
    given: dict[str, list[_Given]] = {
        "kv-to-state": [
            _Given(create("kv-to-state"), caches(), broken_caches()),
            _Given(create("kv-to-state", {"layout": "unified"}), caches(), broken_caches()),
            _Given(create("kv-to-state", {"layout": "per-layer", "update": "mask"}), caches(), broken_caches()),
        ],
        "state-to-kv": [
            _Given(create("state-to-kv"), stateful(), broken_states()),
        ],
        "rope-table": [_Given(RopeTable(context=8), *_waves())],
        "finite-mask": [
            _Given(FiniteMask(), masked(), broken_masks()),
            _Given(FiniteMask(value=-3e4), masked(), broken_masks()),
        ],
        "scale-residual": [_Given(ScaleResidual(limit=16384.0), streams(), broken_streams())],
        "fp32-islands": [
            _Given(
                Fp32Islands(),
                mil.matching(WidenNorm(), **_HINTS["WidenNorm"]) | mil.matching(WidenAngles(), **_HALF_WAVES),
                mil.near_misses(WidenNorm(), **_HINTS["WidenNorm"]) | mil.near_misses(WidenAngles(), **_HALF_WAVES),
            )
        ],
        "split-head": [
            _Given(SplitHead(slices=2), heads(), broken_heads()),
            _Given(SplitHead(slices=2, output="slices"), heads(), broken_heads()),
            _Given(SplitHead(slices=2, output="argmax"), heads(), broken_heads()),
            _Given(SplitHead(slices=2, output="top-k", k=2), heads(), broken_heads()),
        ],
        "layout-bc1s": [_Given(LayoutBc1s(), convolved(), unlinear())],
        "contract": [_Given(ClientContract(context=CONTEXT), clients(), broken_clients())],
        "dma-notch": [
            _Given(
                DmaNotch(within=0, period=4),
                mil.matching(SplitInputs(0, 4), **_HINTS["SplitInputs"]),
                mil.near_misses(SplitInputs(0, 4), **_HINTS["SplitInputs"]),
            ),
        ],
        "palettize": [
            _Given(Palettize(bits=8, min_elements=1), weighted(), odd_weights()),
            _Given(Palettize(bits=4, min_elements=1, group_size=16), weighted(), odd_weights()),
            _Given(
                Palettize(bits=4, min_elements=1, granularity="tensor"),
                weighted(opset=target.iOS16),
                odd_weights(opset=target.iOS16),
            ),
        ],
        "budget": [_Given(Budget(size=0.7, min_elements=256), weighted(), odd_weights())],
        "quantize": [
            _Given(Quantize(min_elements=1, dtype="int8"), weighted(), odd_weights()),
            _Given(Quantize(min_elements=1, block_size=2), weighted(), odd_weights()),
        ],
        "decompress": [_Given(Decompress(), weighted().map(_palettized), weighted())],
    }
    for name in pass_names():
        made = create(name)
        if name in _PROGRAM_PASSES:
            yield Subject(str(made), made, *_PROGRAM_PASSES[name])
        elif isinstance(made, RulePass) and name != "dma-notch":  # of weights larger than are drawn
            rules = made.rules()
            yield Subject(str(made), made, mil.matching(rules), mil.near_misses(rules))
        for each in given.get(name, ()):
            yield Subject(str(each.of), each.of, each.matching, each.near)


SUBJECTS: tuple[Subject, ...] = (*_rules(), *_passes())
"""Rules first, then passes."""
