"""Key/value caches as inputs and outputs -> states updated in place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeAlias

from milopt.mil import Function, Operation, dtype_name, is_output, is_symbolic, shape_of, target
from milopt.package import Model
from milopt.passes.cache_advice import advice
from milopt.passes.cache_combined import find_combined, read_combined
from milopt.passes.cache_drafts import Draft, flexible_draft, open_masks, static_draft
from milopt.passes.cache_pairs import Pair, find_pairs, users_of, with_casts
from milopt.passes.cache_places import Layout, Wanted, planned
from milopt.passes.cache_states import Plan
from milopt.passes.cache_texts import describe_states, taken_texts
from milopt.pipeline import Pass
from milopt.reports import NoMatch, Report, require, require_opset
from milopt.signature import METADATA_KEY

__all__ = ["KvToState", "Layout", "Pair", "Read", "find_pairs"]

Read: TypeAlias = Literal["auto", "full", "prefix"]


@dataclass(frozen=True)
class KvToState(Pass):
    """``present = concat(past, new)`` with past an input and present an output  ->  a state and ``slice_update``.

    The states are ``key_cache`` and ``value_cache``; with ``layout="unified"`` one ``kv_cache`` with the keys first,
    and with ``"per-layer"`` one for each tensor (``key_cache_0``...). They are fp16 of shape (layers·B, H, context, D),
    or the cached tensors' own layout. ``current_pos``, int32 (1,), is the first slot the new tokens go to; ``position``
    gives it another name, or names an integer input of the program whose first entry is that slot. The present may be
    all columns, the new ones alone, or the last ones, as many as the past has.

    ``update="slice"`` writes with ``slice_update``; ``"mask"`` selects in every slot between what it holds and the new
    token (slots beyond the context are then never written). ``"ring"`` writes with slices, and gives layers whose mask
    slides (metadata ``milopt.sliding_window``) rings of the window and one call's tokens: token ``t`` is in slot ``t
    mod ring``. A past that holds the last tokens only always becomes a ring. ``context`` sets another number of slots.

    ``read="full"`` attends over all slots, and the meaning of mask columns changes from [past | new] to slots; the
    report's signature, the input's description and the package's metadata say so. ``"prefix"`` is for programs of
    flexible shapes: they read the slots up to the new tokens, and their masks stay as they are; ``position`` may then
    name a mask, whose columns end with the new tokens. ``"auto"`` is what the shapes allow.

    All functions are rewritten, or none:

    1. the opset must be iOS18 or later, the cache fp16 and its shapes, but for the slots, static (S1, S2);
    2. the tensors of one state must have one shape, and all functions the same tensors and context;
    3. nothing else may use a past input, nor depend on the order of the cache's columns (see :mod:`.slots`);
    4. a mask must hide the slots not written yet;
    5. sizes that change may be no part of the program's arithmetic, and what is computed over all slots then must have
       met a mask (see :mod:`.cache_sizes`);
    6. of an input that holds several cached tensors, those of all layers or of one, each must be a run of elements as
       they are stored, and one output must hold what they become in the same order.
    """

    name: ClassVar[str] = "kv-to-state"
    after: ClassVar[tuple[str, ...]] = ("canonicalize", "fuse-sdpa")
    opset: ClassVar[int] = 9

    layout: Layout = "pair"
    update: Literal["slice", "mask", "ring"] = "slice"
    context: int = 0
    read: Read = "auto"
    position: str = "current_pos"

    def run(self, model: Model) -> Report:
        report = Report(self.name)
        drafts: dict[str, Draft] = {}
        for name, function in model.functions.items():
            pairs = self._pairs(name, function, report)
            report.tried += len(pairs)
            if not pairs:
                report.notes.append(f"{name}: no output is a concat of an input and something new")
                continue
            try:
                drafts[name] = self._draft(function, pairs, model.metadata)
            except NoMatch as why:
                report.decline(name, why.at or pairs[0].concat, why.text, *why.arguments)
        if not drafts:
            return report
        if model.aside:
            report.decline(next(iter(drafts)), "", "the pass runs on some functions only, and the cache is of all")
            return report
        longest = max(draft.query for draft in drafts.values())
        wanted = Wanted(self.layout, self.update, self.context, self.position, longest)
        plans: dict[str, Plan] = {}
        for name, draft in drafts.items():
            first = draft.pairs[0].concat
            try:
                plans[name] = planned(draft, wanted, model.metadata)
            except NoMatch as why:
                report.decline(name, why.at or first, why.text, *why.arguments)
        signatures = {plan.signature for plan in plans.values()}
        if len(plans) < len(model.functions) or len(signatures) > 1:
            if plans:
                report.decline(next(iter(plans)), "", "not every function of the program has the same cache")
            return report
        signature = signatures.pop()
        report.signature = replace(signature, texts=taken_texts(model, signature))
        for name, plan in plans.items():
            plan.rewrite()
            report.applied += len(plan.pairs)
            describe_states(model, name, signature)
        model.metadata[METADATA_KEY] = report.signature.to_json()
        report.notes += advice(model.functions, signature)
        return report

    def _pairs(self, name: str, function: Function, report: Report) -> list[Pair]:
        """The function's cached tensors in program order."""
        pairs = list(find_pairs(function))
        for past, concats in find_combined(function):
            pairs += self._parts(name, function, past, concats, report)
        order = {op: at for at, op in enumerate(function.operations)}
        return sorted(pairs, key=lambda pair: order[pair.concat])

    def _parts(self, name: str, function: Function, past: str, concats: list[Operation], report: Report) -> list[Pair]:
        """The cached tensors that one input holds; none where they can't be told, and the report says why."""
        try:
            return read_combined(function, past, concats)
        except NoMatch as why:  # 6
            reason = f"input {past} holds the pasts of several tensors, and {why.text}"
            report.decline(name, why.at or concats[0], reason, *why.arguments)
            return []

    def _draft(self, function: Function, pairs: list[Pair], metadata: Mapping[str, str]) -> Draft:
        require_opset(function.opset_version, target.iOS18)  # 1
        prefix = self._prefix(pairs)
        self._check_position(function, prefix)
        for pair in pairs:
            shape = list(shape_of(pair.var))
            if prefix:
                del shape[pair.axis]
            require(not any(map(is_symbolic, shape)), "its shape is not static", at=pair.var)
            kind = dtype_name(pair.var)
            require(kind == "fp16", "the cache is {}, and states are fp16", kind, at=pair.var)
            require(pair.axis > 0, "the slots are the first axis")
            same = pair.query == pairs[0].query or prefix
            require(same, "has {} new columns, but another cached tensor {}", pair.query, pairs[0].query, at=pair.var)
            short = pair.returned == "kept" and pair.kept < pair.query
            require(not short, "a call takes {} tokens, and the past keeps {}", pair.query, pair.kept, at=pair.var)
            if pair.whole is not None:
                continue
            past = function.inputs[pair.past]
            alone = users_of(past) == [pair.concat] and not any(map(is_output, with_casts(past)))
            require(alone, "the past is also used elsewhere", at=past)  # 3
        if prefix:
            require(self.update != "mask", "a call takes any number of tokens, and update=mask needs to know how many")
            return flexible_draft(function, pairs)
        return static_draft(function, pairs, metadata)

    def _prefix(self, pairs: list[Pair]) -> bool:
        for pair in pairs if self.read == "prefix" else ():
            reason = "its shapes are fixed, and a prefix is as long as the conversation: read all slots"
            require(is_symbolic(pair.columns), reason, at=pair.var)
        return self.read != "full" and all(is_symbolic(pair.columns) for pair in pairs)

    def _check_position(self, function: Function, prefix: bool) -> None:
        taken = function.inputs.get(self.position)
        if taken is None:
            return
        counts = dtype_name(taken) == "int32" and not any(map(is_symbolic, shape_of(taken)[:-1]))
        is_mask = prefix and self.position in open_masks(function, set())
        require(counts or is_mask, "there is an input named {} already", self.position)
