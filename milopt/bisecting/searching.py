"""``bisect``: the pass, then the rewrite."""

from __future__ import annotations

import os
from collections.abc import Sequence

from milopt.bisecting.bisection import Bisection, op_count
from milopt.bisecting.reduction import reduce_model
from milopt.bisecting.trying import Outcome, attempt, outcome
from milopt.mil import Program
from milopt.package import Model, load
from milopt.pipeline import Pass, Pipeline
from milopt.verify import Verdict

__all__ = ["bisect"]


def bisect(
    model: str | os.PathLike[str] | Model | Program,
    pipeline: str | Pass | Pipeline,
    *,
    functions: Sequence[str] | None = None,
    reduce: bool = True,
) -> Bisection | None:
    """The first pass whose result is not equal to what it was given, and the single rewrite that makes it so.

    Every pass is judged by its own metric; ``None`` where each of them keeps to it. ``model`` is as it was before the
    pipeline, and stays so. With ``functions`` the passes run on these alone. Of a pass made of rules the number of
    rewrites is halved until one is left: with those before it the programs agree, with it they don't. A pass that is no
    set of rules is found as a whole. The program is then cut down to a few ops for which the pass is still wrong,
    unless ``reduce`` is false.
    """
    chosen = Pipeline.parse(pipeline) if isinstance(pipeline, str) else pipeline
    passes = chosen.passes if isinstance(chosen, Pipeline) else (chosen,)
    before = load(model).clone()
    for index, each in enumerate(passes, 1):
        made = outcome(each, before, functions=functions)
        if made.differs:
            return _Search(each, index, len(passes), before, made, functions).found(reduce)
        before = made.after
    return None


class _Search:
    def __init__(
        self, each: Pass, index: int, count: int, before: Model, whole: Outcome, functions: Sequence[str] | None
    ) -> None:
        self.each, self.index, self.count = each, index, count
        self.before, self.whole, self.functions = before, whole, functions

    def found(self, reduce: bool) -> Bisection:
        """The rewrite at fault, if it is one; on the program as it came, or reduced."""
        number, wrong, previous = self._rewrite()
        assert wrong.verdict is not None
        total = len(self.whole.rewrites.made)
        rewrite = wrong.rewrites.made[number - 1] if number else None
        ops = op_count(self.before)
        found = Bisection(
            self.each,
            self.index,
            self.count,
            self.before,
            wrong.after,
            wrong.verdict,
            ops,
            rewrite,
            number,
            total,
            functions=None if self.functions is None else tuple(self.functions),
        )
        return self._reduced(found, previous) if reduce else found

    def _rewrite(self) -> tuple[int, Outcome, Model]:
        """Its number, the run that ends with it, and the model just before it; 0 where the fault is no rule's."""
        low, high, wrong = 0, len(self.whole.rewrites.made), self.whole
        if not high:
            return 0, wrong, self.before
        right = self._limited(0)
        if right.differs:
            return 0, right, self.before
        while high - low > 1:
            tried = self._limited((low + high) // 2)
            if tried.differs:
                high, wrong = (low + high) // 2, tried
            else:
                low, right = (low + high) // 2, tried
        if wrong is self.whole:  # its last rewrite is at fault; what came after it, if anything, is not
            wrong = self._limited(high)
        return high, wrong if wrong.differs else self.whole, right.after

    def _limited(self, limit: int) -> Outcome:
        return outcome(self.each, self.before, limit=limit, functions=self.functions, metric=self.whole.metric)

    def _reduced(self, found: Bisection, previous: Model) -> Bisection:
        """The same on the smallest program on which the pass, run as a whole, goes wrong with the same rule."""
        rule = None if found.rewrite is None else found.rewrite.rule.name
        numbers = _in_numbers(found.verdict)

        def wrong(model: Model) -> Outcome | None:
            made = attempt(self.each, model, functions=self.functions)
            if made is None or made.verdict is None or made.verdict or _in_numbers(made.verdict) is not numbers:
                return None
            return made if rule is None or rule in {each.rule.name for each in made.rewrites.made} else None

        start = next((each for each in (previous, self.before) if wrong(each) is not None), None)
        if start is None:
            return found
        least = reduce_model(start, lambda model: wrong(model) is not None, near=_near(found))
        made = wrong(least)
        assert made is not None
        return found.on(least, made)


def _in_numbers(verdict: Verdict) -> bool:
    """Whether the programs differ in what they compute, and not already in their signatures."""
    return verdict.difference is not None and verdict.difference.where is not None


def _near(found: Bisection) -> dict[str | None, tuple[str, ...]]:
    """Where to look, by function; ``None`` is whichever has values of these names."""
    if found.rewrite is not None:
        return {found.rewrite.function: found.rewrite.ops}
    difference = found.verdict.difference
    assert difference is not None
    names = [difference.first.name] if difference.first is not None else []
    return {None: (*names, *([difference.where.output] if difference.where is not None else []))}
