"""``check``: does a package keep a client's contract?"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from milopt.contracts.clients import HABITS, Habit, Logits, feed
from milopt.contracts.comparing import CLOSE, SAME, difference, is_compressed, not_finite, same_tokens, ties
from milopt.contracts.findings import Finding, Findings
from milopt.contracts.interface import interface_findings
from milopt.contracts.styles import Contract, contract_named, contract_names
from milopt.errors import EvaluationError, MiloptError
from milopt.interpreter import Plan, compile
from milopt.package import Model, load

__all__ = ["FOLDERS", "check"]

Tell: TypeAlias = Callable[[str], None]

FOLDERS = ("anemll", "coreml-llm")
_PROMPT = 8


def check(
    package: str | os.PathLike[str] | Model,
    style: str = "apple",
    *,
    reference: Any | None = None,
    pickles: bool = False,
    tokens: int = 16,
    agreement: float = 1.0,
    seed: int = 0,
    tell: Tell | None = None,
) -> Findings:
    """Whether ``package`` keeps the contract that ``style`` names: its interface first, then conversations.

    Each conversation feeds a random prompt and ``tokens`` tokens behind it as some client does, on fresh states, in
    float64. All must give the same logits; with a ``reference``, a transformers model or its directory, those tokens
    are its greedy answer, and a share of ``agreement`` of the package's must be the same in each conversation, or tie;
    the logits of a package whose weights are not compressed must be within 3e-3 of the largest. One more
    conversation in the declared precision must give finite numbers. ``pickles`` allows a reference's ``.bin`` files
    that hold nothing but tensors. Where names or types are wrong nothing is run. MiloptError where the package or
    the reference can't be read.

    Of a folder, with ``style="anemll"`` and ``"coreml-llm"``: :func:`milopt.contracts.anemll_checking.check_anemll`
    and :func:`milopt.contracts.coreml_llm_checking.check_coreml_llm`.
    """
    if style in FOLDERS:
        options: dict[str, Any] = {"pickles": pickles, "tokens": tokens, "agreement": agreement, "seed": seed}
        return _check_folder(style, package, reference, tell=tell, **options)
    if style not in contract_names():
        known = ", ".join((*contract_names(), *FOLDERS))
        raise MiloptError(f"there is no contract named {style!r}; there is: {known}")
    contract = contract_named(style)
    if tokens < 1:
        raise MiloptError(f"a conversation has one token at least, not {tokens}")
    if not 0 <= agreement <= 1:
        raise MiloptError(f"the agreement is a share from 0 to 1, not {agreement:g}")
    say = tell or _say_nothing
    model = load(package)
    name = Path(package).name if isinstance(package, (str, os.PathLike)) else "the model"
    say("look at the interface")
    found = interface_findings(model, contract)
    if all(each.passed or each.check.startswith(("metadata", "range")) for each in found):
        run = _Run(model, contract, reference, pickles, tokens, agreement, seed, say)
        found += run.findings()
    return Findings(name, contract.name, tuple(found))


def _check_folder(
    style: str, folder: str | os.PathLike[str] | Model, reference: Any | None, **options: Any
) -> Findings:
    if isinstance(folder, Model):
        raise MiloptError(f"the {style} contract is of a folder, not of one model")
    if not 0 <= options["agreement"] <= 1:
        raise MiloptError(f"the agreement is a share from 0 to 1, not {options['agreement']:g}")
    if style == "anemll":
        from milopt.contracts.anemll_checking import check_anemll

        return check_anemll(folder, reference=reference, **options)
    from milopt.contracts.coreml_llm_checking import check_coreml_llm

    return check_coreml_llm(folder, reference=reference, **options)


@dataclass(frozen=True)
class _Run:
    """The conversations with one package."""

    model: Model
    contract: Contract
    reference: Any | None
    pickles: bool
    tokens: int
    agreement: float
    seed: int
    say: Tell

    def findings(self) -> list[Finding]:
        self.say("prepare the model")
        plan = compile(self.model, precision="float64")
        context, vocabulary = self._sizes(plan)
        # one slot is never written where a client has a column to spare
        prompt = min(_PROMPT, (context - 1) // 2)
        count = min(self.tokens, context - 1 - prompt)
        tokens, wanted = self._asked(prompt, count, context, vocabulary)
        found: list[Finding] = []
        plain: Logits | None = None
        for habit in HABITS:
            self.say(f"a conversation: {habit.name}")
            got = self._fed(plan, tokens, prompt, habit)
            if isinstance(got, Finding):
                found.append(got)
            elif (what := not_finite(got)) is not None:
                found.append(Finding(habit.name, False, what))
            elif wanted is None:
                wanted = got
                found.append(Finding(habit.name, True, f"{len(tokens)} tokens: what the others are held against"))
            elif self.reference is not None:
                plain = got if plain is None else plain
                found.append(self._as_reference(habit, got, wanted, prompt, plain))
            else:
                found.append(_as_others(habit, got, wanted, prompt))
        self.say("a conversation in the declared precision")
        found.append(self._declared(tokens, prompt, wanted))
        return found

    def _sizes(self, plan: Plan) -> tuple[int, int]:
        shape = plan.states[self.contract.keys.name].shape or ()
        context = shape[self.contract.keys.shape.index("context")]
        vocabulary = (plan.outputs[self.contract.logits.name].shape or (None,))[-1]
        if not isinstance(context, int) or not isinstance(vocabulary, int) or context < 3:
            raise MiloptError("a conversation needs a context of 3 slots or more, and a vocabulary of known size")
        return context, vocabulary

    def _asked(self, prompt: int, count: int, context: int, vocabulary: int) -> tuple[Sequence[int], Logits | None]:
        if self.reference is None:
            return [
                int(each) for each in np.random.default_rng(self.seed).integers(vocabulary, size=prompt + count)
            ], None
        from milopt.contracts.reference import answer

        self.say("ask the reference")
        told = answer(
            self.reference,
            prompt,
            count,
            context=context,
            vocabulary=vocabulary,
            seed=self.seed,
            pickles=self.pickles,
        )
        return told.tokens, told.logits

    def _fed(self, plan: Plan, tokens: Sequence[int], prompt: int, habit: Habit) -> Logits | Finding:
        try:
            return feed(plan, self.contract, tokens, prompt, habit)
        except EvaluationError as error:
            return Finding(habit.name, False, f"the client's call fails: {error}")

    def _as_reference(self, habit: Habit, got: Logits, wanted: Logits, prompt: int, plain: Logits) -> Finding:
        """``plain`` is the first conversation: what is wrong with it is not the fault of another habit."""
        off, first = difference(got, wanted)
        same = same_tokens(got, wanted, prompt)
        alike = same | ties(got, wanted, prompt)
        others = ", the others ties within rounding" if alike.all() and not same.all() else ""
        text = f"{int(same.sum())} of {len(same)} tokens as transformers{others}, off by {off:.2g} of the largest logit"
        if float(alike.mean()) >= self.agreement and (off <= CLOSE or is_compressed(self.model)):
            return Finding(habit.name, True, text)
        fault = HABITS[0] if difference(got, plain)[0] <= SAME else habit
        return Finding(habit.name, False, f"{text}, first at token {first}: {fault.broken}")

    def _declared(self, tokens: Sequence[int], prompt: int, wanted: Logits | None) -> Finding:
        what, habit = "declared precision", HABITS[3]
        got = self._fed(compile(self.model, precision="declared"), tokens, prompt, habit)
        if isinstance(got, Finding):
            return Finding(what, False, got.detail)
        if (fault := not_finite(got)) is not None:
            return Finding(what, False, f"{fault} (milopt lint-numerics says where)")
        if wanted is None:
            return Finding(what, True, "finite")
        same = same_tokens(got, wanted, prompt)
        return Finding(what, True, f"finite; {int(same.sum())} of {len(same)} tokens as without rounding")


def _as_others(habit: Habit, got: Logits, wanted: Logits, prompt: int) -> Finding:
    off, first = difference(got, wanted)
    if off <= SAME:
        return Finding(habit.name, True, f"the same, off by {off:.1g} of the largest logit")
    same = same_tokens(got, wanted, prompt)
    text = f"off by {off:.2g} of the largest logit, first at token {first}, {int((~same).sum())} of {len(same)} tokens"
    return Finding(habit.name, False, f"{text} are others: {habit.broken}")


def _say_nothing(_: str) -> None:
    pass
