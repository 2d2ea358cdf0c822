"""Transformers written by hand in MIL, as small as can be, and with names that say nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from milopt.mil import Function, Program, Var, mb, target, types
from milopt.multifunction import share_weights
from milopt.package import Model
from milopt.signature import METADATA_KEY, WINDOW_KEY, CacheSignature, CacheSlot

HEADS, SIZE, WIDTH, VOCABULARY, CONTEXT = 2, 8, 16, 64, 12


@dataclass(frozen=True)
class Transformer:
    """One layer for each of ``mlp``, which are the widths of the layers' MLPs.

    ``parallel`` ones take the same value as the attention. ``tied``: the head's weight is the embedding's. Rotary
    angles are looked up in a table of ``table`` rows, or computed where that is 0. ``states`` is one pair of states for
    all layers, a pair for each, or one state of all keys and values. ``sliding`` layers see the last ``window`` tokens
    alone, by a mask of their own where others see all; with ``ring`` they keep a ring of so many in a state of theirs.
    """

    mlp: Sequence[int] = (24, 24, 24)
    parallel: bool = False
    tied: bool = False
    table: int = CONTEXT
    states: Literal["pair", "layers", "unified"] = "pair"
    context: int = CONTEXT
    window: int = 0
    sliding: Sequence[int] = ()
    ring: int = 0
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
        if self.window:
            model.metadata[WINDOW_KEY] = str(self.window)
        return model

    def _signature(self) -> CacheSignature:
        slots = tuple(
            CacheSlot(
                f"past_{kind}_{layer}",
                f"present_{kind}_{layer}",
                self._state(kind, layer),
                self._row(kind, layer),
                1,
                ring=self.ring if self._in_ring(layer) else 0,
            )
            for layer in range(self.layers)
            for kind in ("key", "value")
        )
        masks = tuple(sorted({self._mask(layer) for layer in range(self.layers)}))
        rings = ((masks[-1], self.ring),) if self.ring else ()
        return CacheSignature(slots, "current_pos", masks, self.context, 2, rings)

    def _in_ring(self, layer: int) -> bool:
        return bool(self.ring) and layer in self.sliding

    def _mask(self, layer: int) -> str:
        return "sliding_mask" if layer in self.sliding and len(self.sliding) < self.layers else "causal_mask"

    def _slots(self, layer: int) -> int:
        return self.ring if self._in_ring(layer) else self.context

    def _state(self, kind: str, layer: int) -> str:
        if self.states != "unified":
            return f"{kind}_cache" + (f"_{layer}" if self.states == "layers" else "")
        return "kv_cache_local" if self._in_ring(layer) else "kv_cache"

    def _row(self, kind: str, layer: int) -> int:
        if self.states == "layers":
            return 0
        alike = [each for each in range(self.layers) if self._in_ring(each) == self._in_ring(layer)]
        return alike.index(layer) + len(alike) * (self.states == "unified" and kind == "value")

    def _weight(self, name: str, *shape: int) -> Any:
        if name not in self.weights:
            rng = np.random.default_rng(len(self.weights))
            self.weights[name] = (rng.standard_normal(shape) * 1.5 / np.sqrt(shape[-1])).astype(np.float16)
        return self.weights[name]

    def _function(self, query: int) -> Function:
        specs: dict[str, Any] = {
            "input_ids": mb.TensorSpec((1, query), types.int32),
            "position_ids": mb.TensorSpec((1, query), types.int32),
            "causal_mask": mb.TensorSpec((1, 1, query, self.context), types.fp16),
            "current_pos": mb.TensorSpec((1,), types.int32),
        }
        rows: dict[str, int] = {}
        for layer in range(self.layers):
            columns = self._slots(layer)
            specs[self._mask(layer)] = mb.TensorSpec((1, 1, query, columns), types.fp16)
            for kind in ("key", "value"):
                name = self._state(kind, layer)
                rows[name] = rows.get(name, 0) + 1
                specs[name] = mb.StateTensorSpec((rows[name], HEADS, columns, SIZE), types.fp16)
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
        shares = mb.softmax(x=mb.add(x=scores, y=given[self._mask(layer)]), axis=-1)
        mixed = mb.transpose(x=mb.matmul(x=shares, y=cached[1]), perm=[0, 2, 1, 3])
        flat = mb.reshape(x=mixed, shape=[1, query, HEADS * SIZE])
        out: Var = mb.linear(x=flat, weight=self._weight(f"out{layer}", WIDTH, HEADS * SIZE))
        return out

    def _cached(self, given: dict[str, Var], kind: str, new: Var, layer: int, query: int) -> Var:
        """The cache with the new tokens in it, this layer's rows."""
        row, slots = self._row(kind, layer), self._slots(layer)
        state, place = given[self._state(kind, layer)], given["current_pos"]
        begin, end = [row, 0, 0, 0], [row + 1, HEADS, slots, SIZE]
        held = self._held(given, self._state(kind, layer))
        if self._in_ring(layer) and query > 1:
            ring = self._turned(mb.slice_by_index(x=held, begin=begin, end=end), new, place, query)
            updated = mb.slice_update(x=held, update=ring, begin=begin, end=end)
        else:
            first = mb.mod(x=place, y=np.array([slots], np.int32)) if self._in_ring(layer) else place
            stop = mb.add(x=first, y=np.array([query], np.int32))
            zero, size = np.array([0], np.int32), np.array([SIZE], np.int32)
            low = mb.concat(values=(np.array([row, 0], np.int32), first, zero), axis=0)
            high = mb.concat(values=(np.array([row + 1, HEADS], np.int32), stop, size), axis=0)
            updated = mb.slice_update(x=held, update=new, begin=low, end=high)
        whole = mb.coreml_update_state(state=state, value=updated)
        given[f"{self._state(kind, layer)} now"] = whole
        rows: Var = mb.slice_by_index(x=whole, begin=begin, end=end)
        return rows

    def _held(self, given: dict[str, Var], state: str) -> Var:
        """What the state holds before it is written to."""
        read: Var = mb.read_state(input=given[state])
        return read

    def _turned(self, held: Var, new: Var, place: Var, query: int) -> Var:
        """The ring with the new tokens in it: token t is in slot t mod ring."""
        own = mb.mod(x=mb.add(x=place, y=np.arange(query, dtype=np.int32)), y=np.array([self.ring], np.int32))
        slots = np.arange(self.ring, dtype=np.int32)[:, None]
        placing = mb.cast(x=mb.equal(x=slots, y=mb.expand_dims(x=own, axes=[0])), dtype="fp16")
        placing = mb.expand_dims(x=placing, axes=[0, 1])
        fresh = mb.greater(x=mb.reduce_sum(x=placing, axes=[-1], keep_dims=True), y=np.float16(0))
        made: Var = mb.select(cond=fresh, a=mb.matmul(x=placing, y=new), b=held)
        return made


def _built(specs: dict[str, Any], body: Any) -> Function:
    """A function of these inputs: ``mb.function`` wants one whose parameters are spelt out."""
    names = ", ".join(specs)
    scope: dict[str, Any] = {"body": body}
    exec(f"def main({names}):\n    return body(dict({', '.join(f'{name}={name}' for name in specs)}))", scope)
    made: Function = mb.function(input_specs=[*specs.values()], opset_version=target.iOS18)(scope["main"])
    return made
