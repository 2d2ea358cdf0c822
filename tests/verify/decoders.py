"""A decoder small enough for tests, in both forms of the cache, written by hand in MIL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from milopt.mil import Function, Program, Var, mb, target, types
from milopt.package import Model
from milopt.signature import METADATA_KEY, CacheSignature, CacheSlot

LAYERS, HEADS, GROUPS, SIZE, WIDTH, VOCABULARY = 2, 4, 2, 4, 16, 29


@dataclass(frozen=True)
class Weights:
    """Random fp16 weights, the same for every function and form; scaled so that attention is far from uniform."""

    seed: int = 0
    made: dict[str, Any] = field(default_factory=dict[str, Any])

    def __call__(self, name: str, *shape: int) -> Any:
        if name not in self.made:
            rng = np.random.default_rng([self.seed, len(self.made)])
            self.made[name] = (rng.standard_normal(shape) * 1.5 / np.sqrt(shape[-1])).astype(np.float16)
        return self.made[name]


@dataclass(frozen=True)
class Decoder:
    """``LAYERS`` attention layers with grouped heads over ``context`` slots; the logits are those of all tokens.

    ``mistake`` plants one in the stateful form: ``rows`` lets every layer read the first layer's cache, ``place``
    writes to the first slots always, ``scale`` is off by a thousandth in the last layer.
    """

    context: int = 12
    weights: Weights = field(default_factory=Weights)
    mistake: str = ""

    def stateless(self, queries: Sequence[int] = (1, 4)) -> Model:
        """Inputs past_key_i, past_value_i and outputs present_key_i, present_value_i; mask columns are [past | new]."""
        return self._model({_name(query): self._past_function(query) for query in queries})

    def stateful(self, queries: Sequence[int] = (1, 4), *, declare: bool = True) -> Model:
        """States key_cache and value_cache; mask columns are slots, new tokens go to current_pos and following."""
        model = self._model({_name(query): self._state_function(query) for query in queries})
        if declare:
            model.metadata[METADATA_KEY] = self.signature().to_json()
        return model

    def signature(self) -> CacheSignature:
        slots = tuple(
            CacheSlot(f"past_{kind}_{layer}", f"present_{kind}_{layer}", f"{kind}_cache", layer, 1)
            for layer in range(LAYERS)
            for kind in ("key", "value")
        )
        return CacheSignature(slots, "current_pos", ("causal_mask",), self.context, 2)

    def _model(self, functions: dict[str, Function]) -> Model:
        program = Program()
        for name, function in functions.items():
            program.add_function(name, function)
        program.default_function_name = next(iter(functions))
        program.export_as_multifunction = len(functions) > 1
        return Model(program, 9, program.default_function_name)

    def _past_function(self, query: int) -> Function:
        shape = (1, GROUPS, self.context - query, SIZE)
        pasts = [mb.TensorSpec(shape, types.fp16) for _ in range(2 * LAYERS)]

        @mb.function(input_specs=[*self._specs(query), *pasts], opset_version=target.iOS18)
        def main(
            input_ids: Var,
            position_ids: Var,
            causal_mask: Var,
            past_key_0: Var,
            past_value_0: Var,
            past_key_1: Var,
            past_value_1: Var,
        ) -> tuple[Var, ...]:
            x = self._embed(input_ids, position_ids)
            presents: list[Var] = []
            for layer, pasts in enumerate(((past_key_0, past_value_0), (past_key_1, past_value_1))):
                new = self._new(x, layer, query)
                present = [
                    mb.concat(values=(old, each), axis=2, name=f"present_{kind}_{layer}")
                    for kind, old, each in zip(("key", "value"), pasts, new, strict=True)
                ]
                x = self._attend(x, present[0], present[1], causal_mask, layer, query)
                presents += present
            return (self._logits(x), *presents)

        function: Function = main
        return function

    def _state_function(self, query: int) -> Function:
        caches = [mb.StateTensorSpec((LAYERS, GROUPS, self.context, SIZE), types.fp16) for _ in range(2)]
        place = mb.TensorSpec((1,), types.int32)

        @mb.function(input_specs=[*self._specs(query), place, *caches], opset_version=target.iOS18)
        def main(
            input_ids: Var, position_ids: Var, causal_mask: Var, current_pos: Var, key_cache: Var, value_cache: Var
        ) -> Var:
            x = self._embed(input_ids, position_ids)
            stop = mb.add(x=current_pos, y=np.array([query], np.int32))
            for layer in range(LAYERS):
                rows: list[Var] = []
                for state, new in zip((key_cache, value_cache), self._new(x, layer, query), strict=True):
                    first, last = (
                        (current_pos, stop)
                        if self.mistake != "place"
                        else (np.array([0], np.int32), np.array([query], np.int32))
                    )
                    begin = mb.concat(values=(np.array([layer, 0], np.int32), first, np.array([0], np.int32)), axis=0)
                    end = mb.concat(
                        values=(np.array([layer + 1, GROUPS], np.int32), last, np.array([SIZE], np.int32)), axis=0
                    )
                    updated = mb.slice_update(x=mb.read_state(input=state), update=new, begin=begin, end=end)
                    whole = mb.coreml_update_state(state=state, value=updated)
                    row = 0 if self.mistake == "rows" else layer
                    rows.append(
                        mb.slice_by_index(x=whole, begin=[row, 0, 0, 0], end=[row + 1, GROUPS, self.context, SIZE])
                    )
                scale = 0.701 if self.mistake == "scale" and layer == LAYERS - 1 else 0.7
                x = self._attend(x, rows[0], rows[1], causal_mask, layer, query, scale)
            return self._logits(x)

        function: Function = main
        return function

    def _specs(self, query: int) -> list[Any]:
        ids, positions = (mb.TensorSpec((1, query), types.int32) for _ in range(2))
        return [ids, positions, mb.TensorSpec((1, 1, query, self.context), types.fp16)]

    def _embed(self, ids: Var, positions: Var) -> Var:
        x = mb.gather(x=self.weights("embedding", VOCABULARY, WIDTH), indices=ids, axis=0)
        angle = mb.mul(
            x=mb.cast(x=mb.expand_dims(x=positions, axes=[2]), dtype="fp16"), y=self.weights("angles", WIDTH)
        )
        embedded: Var = mb.add(x=x, y=mb.sin(x=angle))
        return embedded

    def _new(self, x: Var, layer: int, query: int) -> tuple[Var, Var]:
        made: list[Var] = []
        for kind in ("key", "value"):
            flat = mb.linear(x=x, weight=self.weights(f"{kind}{layer}", GROUPS * SIZE, WIDTH))
            heads = mb.reshape(x=flat, shape=[1, query, GROUPS, SIZE])
            made.append(mb.transpose(x=heads, perm=[0, 2, 1, 3]))
        return made[0], made[1]

    def _attend(self, x: Var, keys: Var, values: Var, mask: Var, layer: int, query: int, scale: float = 0.7) -> Var:
        flat = mb.linear(x=x, weight=self.weights(f"query{layer}", HEADS * SIZE, WIDTH))
        heads = mb.transpose(x=mb.reshape(x=flat, shape=[1, query, HEADS, SIZE]), perm=[0, 2, 1, 3])
        repeated: list[Var] = []
        for cached in (keys, values):
            wide = mb.tile(x=mb.expand_dims(x=cached, axes=[2]), reps=[1, 1, HEADS // GROUPS, 1, 1])
            repeated.append(mb.reshape(x=wide, shape=[1, HEADS, self.context, SIZE]))
        scores = mb.matmul(x=heads, y=repeated[0], transpose_y=True, name=f"scores_{layer}")
        scaled = mb.mul(x=scores, y=np.float16(scale), name=f"scaled_{layer}")
        shares = mb.softmax(x=mb.add(x=scaled, y=mask), axis=-1)
        mixed = mb.transpose(x=mb.matmul(x=shares, y=repeated[1]), perm=[0, 2, 1, 3])
        out = mb.linear(
            x=mb.reshape(x=mixed, shape=[1, query, HEADS * SIZE]),
            weight=self.weights(f"out{layer}", WIDTH, HEADS * SIZE),
        )
        residual: Var = mb.add(x=x, y=out, name=f"residual_{layer}")
        return residual

    def _logits(self, x: Var) -> Var:
        logits: Var = mb.linear(x=x, weight=self.weights("head", VOCABULARY, WIDTH), name="logits")
        return logits


def _name(query: int) -> str:
    return "decode" if query == 1 else f"prefill{query}"
