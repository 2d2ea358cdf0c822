"""Key/value caches as inputs and outputs -> states updated in place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypeAlias

from milopt.mil import Function, Var, dtype_name, is_output, is_symbolic, shape_of, target
from milopt.package import Model
from milopt.passes.cache_advice import advice
from milopt.passes.cache_pairs import Pair, find_pairs, kind_of, users_of, with_casts
from milopt.passes.cache_states import Group, Plan, Update
from milopt.passes.resizing import require_resizable
from milopt.passes.slots import Slots, components, follow
from milopt.pipeline import Pass
from milopt.reports import NoMatch, Report, require, require_opset
from milopt.signature import METADATA_KEY, CacheSignature, CacheSlot, windows_of

__all__ = ["KvToState", "Layout", "Pair", "Read", "find_pairs"]

Layout: TypeAlias = Literal["pair", "unified", "per-layer"]
Read: TypeAlias = Literal["auto", "full", "prefix"]

_CONTEXT_KEY = "milopt.context"
# Rings of more slots than this are made a multiple of it (constraint S6).
_ALIGNED = 32
# A program with rings alone has no last token; so many turns of its largest ring are what a session is offered.
_TURNS = 4


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
    5. sizes that change may be no part of the program's arithmetic.
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
        drafts: dict[str, _Draft] = {}
        for name, function in model.functions.items():
            pairs = list(find_pairs(function))
            report.tried += len(pairs)
            if not pairs:
                report.notes.append(f"{name}: no output is a concat of an input and something new")
                continue
            try:
                drafts[name] = self._draft(function, pairs, model.metadata)
            except NoMatch as why:
                report.decline(name, why.at or pairs[0].concat, why.text, *why.arguments)
        if drafts and model.aside:
            report.decline(next(iter(drafts)), "", "the pass runs on some functions only, and the cache is of all")
            return report
        longest = max((draft.query for draft in drafts.values()), default=0)
        plans: dict[str, Plan] = {}
        for name, draft in drafts.items():
            if (plan := self._planned(name, draft, longest, model, report)) is not None:
                plans[name] = plan
        signatures = {plan.signature for plan in plans.values()}
        if len(plans) < len(model.functions) or len(signatures) > 1:
            if plans:
                report.decline(next(iter(plans)), "", "not every function of the program has the same cache")
            return report
        signature = signatures.pop()
        report.signature = replace(signature, texts=_texts(model, signature))
        for name, plan in plans.items():
            plan.rewrite()
            report.applied += len(plan.pairs)
            _describe(model, name, signature)
        model.metadata[METADATA_KEY] = report.signature.to_json()
        report.notes += advice(model.functions, signature)
        return report

    def _planned(self, name: str, draft: _Draft, longest: int, model: Model, report: Report) -> Plan | None:
        try:
            return draft.plan(self, longest, model.metadata)
        except NoMatch as why:
            report.decline(name, why.at or draft.pairs[0].concat, why.text, *why.arguments)
            return None

    def _draft(self, function: Function, pairs: list[Pair], metadata: Mapping[str, str]) -> _Draft:
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
            past = function.inputs[pair.past]
            alone = users_of(past) == [pair.concat] and not any(map(is_output, with_casts(past)))
            require(alone, "the past is also used elsewhere", at=past)  # 3
        if prefix:
            return _flexible_draft(function, pairs)
        return _static_draft(function, pairs, metadata)

    def _prefix(self, pairs: list[Pair]) -> bool:
        symbolic = [is_symbolic(pair.columns) for pair in pairs]
        if self.read == "prefix":
            reason = "its shapes are fixed, and a prefix is as long as the conversation: read all slots"
            require(all(symbolic), reason, at=pairs[symbolic.index(False)].var if not all(symbolic) else None)
        return self.read != "full" and all(symbolic)

    def _check_position(self, function: Function, prefix: bool) -> None:
        taken = function.inputs.get(self.position)
        if taken is None:
            return
        counts = dtype_name(taken) == "int32" and not any(map(is_symbolic, shape_of(taken)[:-1]))
        is_mask = prefix and self.position in _flexible_masks(function, set())
        require(counts or is_mask, "there is an input named {} already", self.position)


@dataclass(frozen=True)
class _Draft:
    """What was found in one function: every cached tensor with its kind, in groups that share masks."""

    function: Function
    pairs: list[Pair]
    kinds: dict[str, str]
    groups: list[Group]
    prefix: bool = False

    @property
    def query(self) -> int:
        """How many tokens a call takes; 1 where any number."""
        return 1 if self.prefix else int(self.pairs[0].query)

    def plan(self, options: KvToState, longest: int, metadata: Mapping[str, str]) -> Plan:
        rings = {pair.past: ring for group in self.groups for pair, ring in self._rings(group, options, longest)}
        context = self._context(options, metadata, rings)
        entries = list(self._slots(options.layout, rings, context))
        axis = self.pairs[0].axis
        slots = tuple(
            replace(slot, axis=None if pair.axis == axis else pair.axis)
            for slot, pair in zip(entries, self.pairs, strict=True)
        )
        masks = tuple(dict.fromkeys(mask for group in self.groups for mask in group.masks))
        turning = tuple(
            dict.fromkeys(
                (mask, ring) for group in self.groups for mask in group.masks if (ring := rings[group.pairs[0].past])
            )
        )
        taken = self.function.inputs.get(options.position)
        counts = options.position if taken is not None and dtype_name(taken) == "int32" else ""
        position = options.position if taken is None else ""
        if taken is not None and not counts:
            masks = tuple(dict.fromkeys((options.position, *masks)))
        signature = CacheSignature(slots, position, masks, context, axis, turning, self.prefix, counts)
        for group in self.groups:
            size = rings[group.pairs[0].past] or context
            if not self.prefix and group.pairs[0].columns != size:
                gone = {pair.var for pair in group.pairs}
                require_resizable({var: axis for var, axis in group.axes.items() if var not in gone})  # 5
        update: Update = "mask" if options.update == "mask" else "slice"
        return Plan(self.function, self.pairs, self.groups, signature, update)

    def _rings(self, group: Group, options: KvToState, longest: int) -> Iterator[tuple[Pair, int]]:
        """The cached tensors of a group with the size of their ring, 0 for none."""
        kept = {pair.kept for pair in group.pairs}
        require(
            len(kept) == 1,
            "a mask is shared by tensors that keep all tokens and such that don't",
            at=group.pairs[0].var,
        )
        (last,) = kept
        window = last + 1 if last else group.window if options.update == "ring" else None
        size = 0
        if window is not None and not self.prefix:
            size = window + longest - 1
            size = -(-size // _ALIGNED) * _ALIGNED if size > _ALIGNED else size
            if not last and size >= group.pairs[0].columns:
                size = 0  # all of the context is no more
        yield from ((pair, size) for pair in group.pairs)

    def _context(self, options: KvToState, metadata: Mapping[str, str], rings: dict[str, int]) -> int:
        """How many tokens there may be."""
        known = metadata.get(_CONTEXT_KEY, "")
        if options.context:
            require(
                options.context >= self.query, "a call takes {} tokens, the context is {}", self.query, options.context
            )
            return options.context
        if self.prefix or all(rings.values()):
            if known.isdecimal() and int(known):
                return int(known)
            require(
                not self.prefix, "its shape is flexible: say how many slots there are (context=N)", at=self.pairs[0].var
            )
        whole = {pair.columns for pair in self.pairs if not rings[pair.past]}
        if not whole:
            full = [pair.columns for pair in self.pairs if not pair.kept]
            return int(max(full, default=_TURNS * max(rings.values())))
        return int(next(pair.columns for pair in self.pairs if not rings[pair.past]))

    def _slots(self, layout: Layout, rings: dict[str, int], context: int) -> Iterator[CacheSlot]:
        """Where each tensor goes: tensors of one state lie behind one another, keys first."""
        several = len({ring for ring in rings.values() if ring}) > 1
        names: dict[str, str] = {}
        for at, pair in enumerate(self.pairs):
            kind, ring = self.kinds[pair.past], rings[pair.past]
            name = "kv_cache" if layout == "unified" else f"{kind}_cache"
            if ring and layout != "per-layer":
                name += f"_local{ring}" if several else "_local"
            if layout == "per-layer":
                name += f"_{sum(self.kinds[other.past] == kind for other in self.pairs[:at])}"
            names[pair.past] = name
        used: dict[str, int] = {}
        rows: dict[str, int] = {}
        first: dict[str, Pair] = {}
        for pair in sorted(self.pairs, key=lambda each: ("key", "kv", "value").index(self.kinds[each.past])):
            name = names[pair.past]
            rows[pair.past], used[name] = used.get(name, 0), used.get(name, 0) + int(shape_of(pair.var)[0])
        for pair in self.pairs:
            other = first.setdefault(names[pair.past], pair)
            same = (_open(pair), pair.axis) == (_open(other), other.axis)  # 2
            shapes = shape_of(pair.var), shape_of(other.var)
            require(same, "is {}, but another cached tensor is {}", *shapes, at=pair.var)
            if not rings[pair.past] and not self.prefix:
                whole = next(each.columns for each in self.pairs if not rings[each.past])
                require(
                    pair.columns == whole,
                    "has {} slots, but another cached tensor {}",
                    pair.columns,
                    whole,
                    at=pair.var,
                )
            yield CacheSlot(
                pair.past,
                pair.present,
                names[pair.past],
                rows[pair.past],
                int(shape_of(pair.var)[0]),
                ring=rings[pair.past],
                kept=pair.kept,
                returned=pair.returned,
                dtype=dtype_name(self.function.inputs[pair.past]),
            )


def _open(pair: Pair) -> tuple[Any, ...]:
    """The shape of a cached tensor without its slots."""
    shape = shape_of(pair.var)
    return (*shape[: pair.axis], *shape[pair.axis + 1 :])


def _static_draft(function: Function, pairs: list[Pair], metadata: Mapping[str, str]) -> _Draft:
    kinds: dict[str, str] = {}
    groups: list[Group] = []
    for columns in dict.fromkeys(pair.columns for pair in pairs):
        those = [pair for pair in pairs if pair.columns == columns]
        allowed = {var for pair in those for var in with_casts(pair.var)}
        ignored = {tail for pair in those for tail in pair.tails}
        slots = follow({pair.var: pair.axis for pair in those}, function.inputs, allowed, ignored)
        require(slots.hidden and slots.masks, "no mask hides the slots that are not written yet")  # 4
        for pair in those:
            kinds[pair.past] = _kind(pair.var, slots)
        groups += _groups(those, slots, windows_of(list(slots.masks), metadata))
    for pair in pairs:
        require(kinds[pair.past], "is it a key or a value?", at=pair.var)
    return _Draft(function, pairs, kinds, groups)


def _kind(var: Var, slots: Slots) -> str:
    if var in slots.keys:
        return "kv" if var in slots.values else "key"
    return "value" if var in slots.values else ""


def _groups(pairs: list[Pair], slots: Slots, windows: Mapping[str, int]) -> Iterator[Group]:
    for values in components(slots):
        those = tuple(pair for pair in pairs if pair.var in values)
        if not those:
            continue
        names = tuple(name for name in slots.masks if any(var.op is None and var.name == name for var in values))
        limits = [windows.get(name) for name in names]
        known = [limit for limit in limits if limit is not None]
        window = max(known) if known and len(known) == len(limits) else None
        yield Group(those, names, {var: axis for var, axis in slots.axes.items() if var in values}, window)


def _flexible_draft(function: Function, pairs: list[Pair]) -> _Draft:
    """[past | new] is what the slots up to the new tokens hold, in the same order: nothing else needs to be known."""
    kinds = {pair.past: kind_of(pair.var) for pair in pairs}
    for pair in pairs:
        require(kinds[pair.past], "is it a key or a value?", at=pair.var)
        require(pair.returned != "kept", "its shape is not static", at=pair.var)
    masks = tuple(_flexible_masks(function, {pair.past for pair in pairs}))
    require(masks, "no mask tells how many columns there are")
    return _Draft(function, pairs, kinds, [Group(tuple(pairs), masks, {})], prefix=True)


def _flexible_masks(function: Function, pasts: set[str]) -> Iterator[str]:
    """Inputs with one row for each token and any number of columns."""
    for name, var in function.inputs.items():
        kind = dtype_name(var)
        flags = kind == "bool" or kind.startswith("fp")
        if name in pasts or not flags or var.rank not in (2, 3, 4):
            continue
        if is_symbolic(shape_of(var)[-1]) and all(dim == 1 for dim in shape_of(var)[:-2]):
            yield name


def _texts(model: Model, signature: CacheSignature) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """What the model says of the inputs and outputs that go, or whose meaning changes, for the way back."""
    names = [each for slot in signature.slots for each in (slot.past, slot.present)]
    said: dict[str, list[str]] = {}
    for name in (*names, *signature.masks):
        texts = (model.text_of(function, name) for function in model.functions)
        if text := next((each for each in texts if each), ""):
            said.setdefault(text, []).append(name)
    return tuple((text, tuple(those)) for text, those in said.items())


def _describe(model: Model, function: str, signature: CacheSignature) -> None:
    position, rings = signature.counts or signature.position, dict(signature.rings)
    if signature.prefix and not position:
        return
    for mask in signature.masks:
        if signature.prefix:
            continue
        if (ring := rings.get(mask)) is not None:
            text = (
                f"Mask over the {ring} slots of a ring: token t is in slot t mod {ring}, and column j is about the "
                f"newest token t < {position} + Q with t mod {ring} = j, if there is one."
            )
        else:
            text = (
                f"Mask over the {signature.context} slots of the states: column j is slot j, and the new tokens are "
                f"slots {position} and following."
            )
        model.describe(function, mask, text)
    if signature.position:
        text = f"The first slot the new tokens are written to; {position} + Q must not exceed {signature.context}."
        if rings and all(slot.ring for slot in signature.slots):
            text = "The position of the first new token, counted from 0; its slot is the remainder by the ring's size."
        elif rings:
            text = f"{text[:-1]}. Their slots in a ring are the remainders by its size."
        model.describe(function, position, text)
