"""The head of a language model -> slices of the vocabulary, and the largest of them if wanted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from milopt.mil import value_names
from milopt.package import Model
from milopt.passes.head_finding import Head, find_head
from milopt.passes.head_writing import Slices, build_slices
from milopt.passes.kernels import bytes_of, grain_of
from milopt.pipeline import Pass
from milopt.reports import NoMatch, Report, require
from milopt.signature_head import HEAD_KEY, HeadSignature
from milopt.signature_layout import LAYOUT_KEY

__all__ = ["SplitHead"]

_HAZARDS = {
    "argmax": "reduce_argmax is wrong, or not on the Neural Engine, on some devices (constraints L15)",
    "top-k": "topk is not on the Neural Engine, nor what comes behind it (constraints L30)",
}


@dataclass(frozen=True)
class SplitHead(Pass):
    """``logits = head(x)``  ->  ``concat(head(x) for slices of the vocabulary)``, each at most ``limit`` long.

    The head is the last ``linear``, ``conv`` or ``matmul`` with a constant on the way to an output, ``logits`` or else
    the longest; what is done to each logit behind it (softcaps, scales, casts, moves) is done in the slices. No axis of
    the program is longer than ``limit`` any more but the output's (constraints L6, L7b). ``slices`` is their number, 0
    the least that ``limit`` asks for, preferably of equal lengths; they end where groups of a compressed weight do.

    ``output`` says what is given back: ``logits``; ``slices``, as outputs ``logits1``, ``logits2``, ...; ``argmax``, as
    ``argmax_idx`` and ``argmax_val`` (the first of equal values); or ``top-k``, as ``topk_idx`` and ``topk_val``, of
    the ``k`` largest in descending order. The metadata say so, and :func:`milopt.compare` knows. It stays away

    1. where there is no such head, or its weight is not compressed in a way that can be cut;
    2. where a value between head and output is used otherwise, or is reshaped;
    3. where one slice is enough, unless ``argmax`` or ``top-k`` is wanted;
    4. where it has been before;
    5. where outputs have other layouts (``layout-bc1s{io=free}``), unless ``logits`` is wanted.
    """

    name: ClassVar[str] = "split-head"
    after: ClassVar[tuple[str, ...]] = ("canonicalize", "linear-to-conv", "layout-bc1s")

    slices: int = 0
    limit: int = 16384
    output: Literal["logits", "slices", "argmax", "top-k"] = "logits"
    k: int = 8

    def __post_init__(self) -> None:
        if self.slices < 0 or self.limit < 1 or self.k < 1:
            raise ValueError(f"slices is 0 or more, limit and k 1 or more, not {self.slices}, {self.limit}, {self.k}")

    def run(self, model: Model) -> Report:
        report = Report(self.name)
        if HEAD_KEY in model.metadata:
            report.decline(model.default_function, "", "its logits are given back otherwise already")  # 4
            return report
        changes = self.output != "logits"
        if changes and LAYOUT_KEY in model.metadata:
            report.decline(
                model.default_function, "", "its outputs have other layouts: split-head knows public ones"
            )  # 5
            return report
        built: dict[str, Slices] = {}
        for name, function in model.functions.items():
            report.tried += 1
            try:
                head = find_head(function)
                signature = self._signature(head, self._sizes(head))
                built[name] = build_slices(function, head, signature, value_names(function))
            except NoMatch as why:
                report.decline(name, why.at, why.text, *why.arguments)
        if not built:
            return report
        signatures = {each.signature for each in built.values()}
        if changes and (len(built) < len(model.functions) or len(signatures) > 1 or model.aside):
            report.decline(next(iter(built)), "", "not every function of the program has this head")
            for each in built.values():
                each.undo()
            return report
        for each in built.values():
            notes = self._notes(each.head, each.signature)
            report.notes += [note for note in notes if note not in report.notes]
            report.applied += 1
            each.put()
        if changes:
            model.metadata[HEAD_KEY] = signatures.pop().to_json()
        return report

    def _notes(self, head: Head, signature: HeadSignature) -> list[str]:
        sizes = signature.sizes
        lengths = f"{sizes[0]:,}" if len(set(sizes)) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
        notes = [f"{head.size:,} entries of {head.output.name}: {len(sizes)} slices of {lengths}"]
        if head.tied is not None and len(sizes) > 1:
            again = bytes_of(head.weight)
            notes.append(f"the head is also the table of {head.tied}: {again:,} bytes are stored a second time")
        notes += [_HAZARDS[self.output]] if self.output in _HAZARDS else []
        if self.output == "top-k" and self.k in (3, 4):
            notes.append(f"topk of {self.k} fails on some Neural Engines (constraints L15)")
        return notes

    def _signature(self, head: Head, sizes: tuple[int, ...]) -> HeadSignature:
        rank = head.output.rank
        return HeadSignature(head.output.name, self.output, head.axes[-1] - rank, sizes, min(self.k, head.size))

    def _sizes(self, head: Head) -> tuple[int, ...]:
        """The lengths of the slices, longest first, in steps that the weight's groups allow."""
        grain = grain_of(head.weight, head.weight_axis)
        steps = head.size // grain
        count = self.slices or -(-head.size // self.limit)
        if not self.slices:
            # slices of one length are one shape to compile: a few more of them are worth that
            count = next((n for n in range(count, 2 * count) if steps % n == 0), count)
            while count < steps and -(-steps // count) * grain > self.limit:
                count += 1
        needed = 1 if self.output in ("argmax", "top-k") else 2
        require(count >= needed, "its {} entries are within {}", head.size, self.limit, at=head.op)  # 3
        require(count <= steps, "it has {} groups of {}, which are no {} slices", steps, grain, count, at=head.op)
        short, longer = divmod(steps, count)
        return tuple(grain * (short + (at < longer)) for at in range(count))
