"""The states of kv-to-state against those of coremltools' own conversion of a torch module with registered buffers."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, cast

import coremltools as ct
import numpy as np
import torch

from milopt.mil import Program, arguments, operations, target
from milopt.package import load
from milopt.passes.cache import KvToState

HEADS, SIZE, CONTEXT, LAYERS = 2, 4, 32, 2
WIDTH = HEADS * SIZE
STATE_OPS = ("read_state", "slice_update", "coreml_update_state")


class Attention(torch.nn.Module):
    """One layer; what is cached is handed over by the model around it."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (torch.nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def new(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return tuple(each(x).view(1, -1, HEADS, SIZE).transpose(1, 2) for each in (self.q, self.k, self.v))

    def attend(self, q: Any, k: Any, v: Any, mask: torch.Tensor) -> torch.Tensor:
        weights = torch.softmax(q @ k.transpose(-1, -2) * SIZE**-0.5 + mask, dim=-1)
        mixed: torch.Tensor = self.o((weights @ v).transpose(1, 2).reshape(1, -1, WIDTH))
        return mixed


class Stateful(torch.nn.Module):
    """As Apple writes it: the tokens go to the slots that the mask's columns end with."""

    key_cache: torch.Tensor
    value_cache: torch.Tensor

    def __init__(self, layers: torch.nn.ModuleList) -> None:
        super().__init__()
        self.layers = layers
        for kind in ("key", "value"):
            self.register_buffer(f"{kind}_cache", torch.zeros(LAYERS, HEADS, CONTEXT, SIZE))

    def forward(self, x: torch.Tensor, causal_mask: torch.Tensor) -> torch.Tensor:
        end = causal_mask.shape[-1]
        begin = end - x.shape[1]
        for at, layer in enumerate(cast("Iterable[Attention]", self.layers)):
            q, k, v = layer.new(x)
            self.key_cache[at : at + 1, :, begin:end, :] = k
            keys = self.key_cache[at : at + 1, :, :end, :]
            self.value_cache[at : at + 1, :, begin:end, :] = v
            values = self.value_cache[at : at + 1, :, :end, :]
            x = x + layer.attend(q, keys, values, causal_mask)
        return x


class Past(torch.nn.Module):
    """The same with inputs and outputs."""

    def __init__(self, layers: torch.nn.ModuleList) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: torch.Tensor, causal_mask: torch.Tensor, *past: torch.Tensor) -> tuple[torch.Tensor, ...]:
        presents: list[torch.Tensor] = []
        for at, layer in enumerate(cast("Iterable[Attention]", self.layers)):
            q, k, v = layer.new(x)
            keys, values = torch.cat((past[2 * at], k), dim=2), torch.cat((past[2 * at + 1], v), dim=2)
            presents += [keys, values]
            x = x + layer.attend(q, keys, values, causal_mask)
        return (x, *presents)


def _convert(module: torch.nn.Module, inputs: dict[str, Any], outputs: list[str], states: list[Any] | None) -> Program:
    with torch.no_grad():
        example = [torch.zeros(*[2 if isinstance(d, ct.RangeDim) else d for d in shape]) for shape in inputs.values()]
        example[1] = torch.zeros(1, 1, 2, 4)  # a column for each of two tokens before the two new ones
        traced = cast("Any", torch).jit.trace(module.eval(), example)
    converted = ct.convert(
        traced,
        inputs=[ct.TensorType(name, shape, dtype=np.float16) for name, shape in inputs.items()],
        outputs=[ct.TensorType(name, dtype=np.float16) for name in outputs],
        states=states,
        minimum_deployment_target=target.iOS18,
        skip_model_load=True,
        convert_to="milinternal",
    )
    assert isinstance(converted, Program)
    return converted


@lru_cache(maxsize=1)
def programs() -> tuple[Program, Program]:
    """coremltools' stateful program, and the one that kv-to-state makes of inputs and outputs."""
    cast("Any", torch).manual_seed(0)
    layers = torch.nn.ModuleList(Attention() for _ in range(LAYERS))
    query, columns = ct.RangeDim(1, CONTEXT, default=2), ct.RangeDim(1, CONTEXT, default=4)
    states = [
        ct.StateType(ct.TensorType(shape=(LAYERS, HEADS, CONTEXT, SIZE), dtype=np.float16), name=f"{kind}_cache")
        for kind in ("key", "value")
    ]
    own = _convert(
        Stateful(layers), {"x": (1, query, WIDTH), "causal_mask": (1, 1, query, columns)}, ["hidden"], states
    )
    query, past = ct.RangeDim(1, CONTEXT, default=2), ct.RangeDim(1, CONTEXT, default=2)
    pasts = {f"past_{kind}_{at}": (1, HEADS, past, SIZE) for at in range(LAYERS) for kind in ("key", "value")}
    columns = ct.RangeDim(1, CONTEXT, default=4)
    presents = [name.replace("past", "present") for name in pasts]
    plain = _convert(
        Past(layers),
        {"x": (1, query, WIDTH), "causal_mask": (1, 1, query, columns), **pasts},
        ["hidden", *presents],
        None,
    )
    model = load(plain)
    report = KvToState(context=CONTEXT, position="causal_mask").run(model)
    assert report.applied == 2 * LAYERS, str(report)
    return own, model.program


def sequence(program: Program) -> list[tuple[str, ...]]:
    """Every op on a state, with the state; and what reads the slots just written."""
    found: list[tuple[str, ...]] = []
    of: dict[Any, str] = {}
    for op in operations(program.functions["main"]):
        if op.op_type == "const":
            continue
        held = [of[var] for _, var in arguments(op) if var in of]
        if op.op_type == "read_state":
            held = [op.input.name]
        elif op.op_type == "coreml_update_state":
            assert held == [op.state.name]
        elif not held or op.op_type not in (*STATE_OPS, "slice_by_index"):
            continue
        found.append((op.op_type, held[0]))
        if op.op_type != "slice_by_index":
            of[op.outputs[0]] = held[0]
    return found


def test_the_same_ops_on_the_same_states_in_the_same_order() -> None:
    own, ours = programs()
    assert sequence(ours) == sequence(own)
    per_layer = [
        (kind, state)
        for state in ("key_cache", "value_cache")
        for kind in ("slice_update", "coreml_update_state", "slice_by_index")
    ]
    assert [each for each in sequence(ours) if each[0] != "read_state"] == per_layer * LAYERS
