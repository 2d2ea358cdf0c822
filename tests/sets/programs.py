"""Transformers written by hand in MIL, as small as can be, and with names that say nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from milopt.mil import Function, Program, Var, mb, target, types
from milopt.multifunction import share_weights
from milopt.package import Model
from milopt.signature import METADATA_KEY, CacheSignature, CacheSlot

HEADS, SIZE, WIDTH, VOCABULARY, CONTEXT = 2, 8, 16, 64, 12


@dataclass(frozen=True)
class Transformer:
    """One layer for each of ``mlp``, which are the widths of the layers' MLPs.

    ``parallel`` ones take the same value as the attention. ``tied``: the head's weight is the embedding's. Rotary
    angles are looked up in a table of ``table`` rows, or computed where that is 0. ``states`` is one pair of states for
    all layers, a pair for each, or one state of all keys and values.
    """

    mlp: Sequence[int] = (24, 24, 24)
    parallel: bool = False
    tied: bool = False
    table: int = CONTEXT
    states: Literal["pair", "layers", "unified"] = "pair"
    weights: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def layers(self) -> int:
        return len(self.mlp)

    def model(self, queries: Sequence[int] = (1, 4)) -> Model:
        program = Program()
        names = {query: "decode" if query == 1 else f"prefill{query}" for query in queries}
        for query, name in names.items():
            program.add_function(name, self._function(query))
        program.default_function_name = names[queries[0]]
        program.export_as_multifunction = True
        share_weights(program)
        model = Model(program, 9, names[queries[0]])
        if self.states != "layers":
            model.metadata[METADATA_KEY] = self._signature().to_json()
        return model

    def _signature(self) -> CacheSignature:
        slots = tuple(
            CacheSlot(f"past_{kind}_{layer}", f"present_{kind}_{layer}", self._state(kind), self._row(kind, layer), 1)
            for layer in range(self.layers)
            for kind in ("key", "value")
        )
        return CacheSignature(slots, "current_pos", ("causal_mask",), CONTEXT, 2)

    def _state(self, kind: str) -> str:
        return "kv_cache" if self.states == "unified" else f"{kind}_cache"

    def _row(self, kind: str, layer: int) -> int:
        return layer + self.layers * (self.states == "unified" and kind == "value")

    def _weight(self, name: str, *shape: int) -> Any:
        if name not in self.weights:
            rng = np.random.default_rng(len(self.weights))
            self.weights[name] = (rng.standard_normal(shape) * 1.5 / np.sqrt(shape[-1])).astype(np.float16)
        return self.weights[name]

    def _function(self, query: int) -> Function:
        pairs = self.layers if self.states == "layers" else 1
        rows = {"pair": self.layers, "layers": 1, "unified": 2 * self.layers}[self.states]
        cache = (rows, HEADS, CONTEXT, SIZE)
        specs: dict[str, Any] = {
            "input_ids": mb.TensorSpec((1, query), types.int32),
            "position_ids": mb.TensorSpec((1, query), types.int32),
            "causal_mask": mb.TensorSpec((1, 1, query, CONTEXT), types.fp16),
            "current_pos": mb.TensorSpec((1,), types.int32),
        }
        for number in range(pairs):
            end = "" if pairs == 1 else f"_{number}"
            names = dict.fromkeys(self._state(kind) + end for kind in ("key", "value"))
            specs |= {name: mb.StateTensorSpec(cache, types.fp16) for name in names}
        return _built(specs, self._body(query))

    def _body(self, query: int) -> Any:
        def body(given: dict[str, Var]) -> Var:
            x = mb.gather(x=self._weight("embedding", VOCABULARY, WIDTH), indices=given["input_ids"], axis=0)
            angles = self._angles(given["position_ids"])
            for layer, width in enumerate(self.mlp):
                mixed = self._attention(self._normed(x), given, angles, layer, query)
                if self.parallel:
                    x = mb.add(x=mb.add(x=mixed, y=self._fed(self._normed(x), layer, width)), y=x)
                    continue
                x = mb.add(x=x, y=mixed)
                x = mb.add(x=x, y=self._fed(self._normed(x), layer, width))
            name = "embedding" if self.tied else "head"
            logits: Var = mb.linear(x=self._normed(x), weight=self._weight(name, VOCABULARY, WIDTH), name="logits")
            return logits

        return body

    def _angles(self, positions: Var) -> tuple[Var, Var]:
        if self.table:
            tables = (self._weight(kind, self.table, SIZE) for kind in ("cos", "sin"))
            found = [mb.gather(x=each, indices=positions, axis=0) for each in tables]
        else:
            turned = mb.cast(x=mb.expand_dims(x=positions, axes=[2]), dtype="fp16")
            angle = mb.mul(x=turned, y=np.linspace(0.1, 1.0, SIZE, dtype=np.float16))
            found = [mb.cos(x=angle), mb.sin(x=angle)]
        cos, sin = (mb.expand_dims(x=each, axes=[1]) for each in found)
        return cos, sin

    def _normed(self, x: Var) -> Var:
        square = mb.reduce_mean(x=mb.mul(x=x, y=x), axes=[-1], keep_dims=True)
        normed: Var = mb.mul(x=x, y=mb.rsqrt(x=mb.add(x=square, y=np.float16(0.01))))
        return normed

    def _fed(self, x: Var, layer: int, width: int) -> Var:
        up = mb.silu(x=mb.linear(x=x, weight=self._weight(f"up{layer}", width, WIDTH)))
        down: Var = mb.linear(x=up, weight=self._weight(f"down{layer}", WIDTH, width))
        return down

    def _attention(self, x: Var, given: dict[str, Var], angles: tuple[Var, Var], layer: int, query: int) -> Var:
        cos, sin = angles
        heads: dict[str, Var] = {}
        for kind in ("query", "key", "value"):
            flat = mb.linear(x=x, weight=self._weight(f"{kind}{layer}", HEADS * SIZE, WIDTH))
            heads[kind] = mb.transpose(x=mb.reshape(x=flat, shape=[1, query, HEADS, SIZE]), perm=[0, 2, 1, 3])
        for kind in ("query", "key"):
            turned = mb.mul(x=mb.mul(x=heads[kind], y=np.float16(-1)), y=sin)
            heads[kind] = mb.add(x=mb.mul(x=heads[kind], y=cos), y=turned)
        cached = [self._cached(given, kind, heads[kind], layer, query) for kind in ("key", "value")]
        scores = mb.mul(x=mb.matmul(x=heads["query"], y=cached[0], transpose_y=True), y=np.float16(0.35))
        shares = mb.softmax(x=mb.add(x=scores, y=given["causal_mask"]), axis=-1)
        mixed = mb.transpose(x=mb.matmul(x=shares, y=cached[1]), perm=[0, 2, 1, 3])
        flat = mb.reshape(x=mixed, shape=[1, query, HEADS * SIZE])
        out: Var = mb.linear(x=flat, weight=self._weight(f"out{layer}", WIDTH, HEADS * SIZE))
        return out

    def _cached(self, given: dict[str, Var], kind: str, new: Var, layer: int, query: int) -> Var:
        """The cache with the new tokens in it, this layer's rows."""
        row, end = (0, f"_{layer}") if self.states == "layers" else (self._row(kind, layer), "")
        state, place = given[self._state(kind) + end], given["current_pos"]
        stop = mb.add(x=place, y=np.array([query], np.int32))
        zero, size = np.array([0], np.int32), np.array([SIZE], np.int32)
        begin = mb.concat(values=(np.array([row, 0], np.int32), place, zero), axis=0)
        last = mb.concat(values=(np.array([row + 1, HEADS], np.int32), stop, size), axis=0)
        updated = mb.slice_update(x=mb.read_state(input=state), update=new, begin=begin, end=last)
        whole = mb.coreml_update_state(state=state, value=updated)
        rows: Var = mb.slice_by_index(x=whole, begin=[row, 0, 0, 0], end=[row + 1, HEADS, CONTEXT, SIZE])
        return rows


def _built(specs: dict[str, Any], body: Any) -> Function:
    """A function of these inputs: ``mb.function`` wants one whose parameters are spelt out."""
    names = ", ".join(specs)
    scope: dict[str, Any] = {"body": body}
    exec(f"def main({names}):\n    return body(dict({', '.join(f'{name}={name}' for name in specs)}))", scope)
    made: Function = mb.function(input_specs=[*specs.values()], opset_version=target.iOS18)(scope["main"])
    return made
