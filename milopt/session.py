"""Tokens into a language model with a key/value cache, logits out; what was fed is remembered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from milopt.blocks import Block, blocks
from milopt.errors import MiloptError
from milopt.interpreter import Precision
from milopt.package import Model
from milopt.plans import Plans

if TYPE_CHECKING:
    from milopt.sets import ClientSet, DeploymentSet

__all__ = ["Overflow", "Session"]

Overflow: TypeAlias = Literal["error", "shift", "ring"]


class Session:
    """One sequence of tokens, fed bit by bit; the cache of what was fed is kept between calls.

    ``precision="declared"`` computes as the package says, ``"float64"`` without rounding. With
    ``keep_weights=False`` weights are prepared anew at every call: slow, but it needs little memory. Sessions made by
    :meth:`fork` share everything but the cache.

    ``overflow`` says what happens when the context is full. ``"error"``: more tokens are refused. ``"shift"``: the
    older half of the tokens is forgotten, and the newer one fed again from position 0. ``"ring"``: each further token
    takes the slot of the oldest, one call for each; positions count on, which suits models whose positions have no
    limit (RoPE that is computed, or a table that is long enough).
    """

    def __init__(
        self,
        model: Model | DeploymentSet | ClientSet | Plans,
        *,
        precision: Precision = "declared",
        keep_weights: bool = True,
        device: str = "cpu",
        overflow: Overflow = "error",
    ) -> None:
        if not isinstance(model, Plans):
            model = Plans(model, precision=precision, keep_weights=keep_weights, device=device)
        self.plans = plans = model
        self.overflow: Overflow = overflow
        self._check_overflow()
        self.position = 0
        self._fed: list[int] = []
        self._caches = plans.layout.empty(plans.plans)

    @property
    def context(self) -> int:
        """How many tokens the cache has room for."""
        return self.plans.context

    @property
    def query_lengths(self) -> tuple[int, ...]:
        """How many tokens one call of each function takes, in ascending order."""
        return self.plans.query_lengths

    def fork(self) -> Session:
        """Another sequence, empty, on the same model; weights are shared."""
        return Session(self.plans, overflow=self.overflow)

    def reset(self) -> None:
        """Forget everything fed."""
        self.position = 0
        self._fed = []
        self._caches.reset()

    def feed(
        self,
        tokens: Sequence[int],
        *,
        last_only: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> npt.NDArray[np.float32]:
        """Append tokens; the logits (len(tokens), V), or with ``last_only`` those of the last token, (1, V).

        ``progress`` is called after every block with the number of tokens done and the number of all. MiloptError
        when they don't fit what is left of the context and ``overflow`` is ``"error"``, or when logits of all are
        wanted of a program that returns those of its last row; then nothing was fed.
        """
        total, beyond = len(tokens), self.position + len(tokens) > self.context
        if beyond and self.overflow == "error":
            used = f", of which {self.position} are used" if self.position else ""
            these = "1 token does" if total == 1 else f"{total} tokens do"
            raise MiloptError(f"{these} not fit a context of {self.context}{used}")
        if wrong := [token for token in tokens if not 0 <= token < self.plans.vocabulary]:
            raise MiloptError(f"token {wrong[0]} is not one of the vocabulary's {self.plans.vocabulary}")
        only_last = self.plans.only_last
        if only_last and not last_only and total > 1:
            raise MiloptError("the program returns the logits of the last token it is fed, not of all")
        rows: list[npt.NDArray[np.float32]] = []
        done = 0
        if beyond:
            while done < total:
                count = self._make_room(total - done)
                part = tokens[done : done + count]
                turned = self.position >= self.context
                rows.append(self._run(Block(1, 1), part, last_only) if turned else self.feed(part, last_only=last_only))
                done += count
                if progress is not None:
                    progress(done, total)
            return rows[-1] if last_only else np.concatenate(rows)
        for block in self._blocks(total, last_only):
            rows.append(self._run(block, tokens[done : done + block.count], last_only))
            done += block.count
            if progress is not None:
                progress(done, total)
        if not rows:
            return np.zeros((0, self.plans.vocabulary), np.float32)
        return rows[-1] if last_only or len(rows) == 1 else np.concatenate(rows)

    def _blocks(self, total: int, last_only: bool) -> list[Block]:
        """How the next ``total`` tokens are fed; those whose logits are wanted go where some come out."""
        plans, start = self.plans, self.position
        ahead: list[Block] = []
        if last_only and total and len(plans.telling) < len(plans.functions):
            # what is padded is written, too, which moves a cache that turns from ``window`` on
            below = min(total - 1, max(0, plans.window - start)) if plans.window else total - 1
            for count in (below, total - 1 - below):
                ahead += blocks(plans.query_lengths, start, count, self.context, padded=not plans.window)
                start, total = start + count, total - count
        return [*ahead, *blocks(plans.telling, start, total, self.context, padded=not plans.only_last)]

    def _check_overflow(self) -> None:
        if self.overflow not in ("error", "shift", "ring"):
            raise MiloptError(f"overflow is error, shift or ring, not {self.overflow!r}")
        if self.overflow == "ring":
            layout = self.plans.layout
            if layout.flexible or layout.signature.rings or layout.signature.counts or layout.signature.prefix:
                raise MiloptError("overflow=ring needs a cache whose slots are all given by number: use shift")
            if self.plans.window:
                raise MiloptError("overflow=ring needs a cache that does not turn by itself: use shift")
            if 1 not in self.plans.functions:
                raise MiloptError("overflow=ring feeds single tokens, and no function of the model takes one")

    def _make_room(self, wanted: int) -> int:
        """How many tokens can be fed next; in a full context, after room was made for them."""
        left = self.context - self.position
        if left <= 0 and self.overflow == "ring":
            return 1
        if left == 0:
            kept = self._fed[len(self._fed) - self.context // 2 :]
            self.reset()
            if kept:
                self.feed(kept, last_only=True)
            left = self.context - self.position
        return min(left, wanted)

    def _run(self, block: Block, tokens: Sequence[int], last_only: bool) -> npt.NDArray[np.float32]:
        function = self.plans.functions[block.length]
        turned = self.position >= self.context
        inputs = function.inputs(tokens, self.position, turned=turned)
        outputs = self._caches.run(function.plan, self.position % self.context if turned else self.position, inputs)
        self.position += block.count
        self._fed += tokens
        if not function.logits:
            return np.zeros((0, self.plans.vocabulary), np.float32)
        logits = outputs[function.logits].reshape(-1, function.rows, function.vocabulary)[0]
        if function.only_last:
            return np.asarray(logits.cpu().numpy(), np.float32)
        first = block.count - 1 if last_only else 0
        if first == 0 and block.count == block.length:
            return np.asarray(logits.cpu().numpy(), np.float32)
        # a copy: a view would keep the other rows' logits alive
        return np.array(logits[first : block.count].cpu().numpy(), np.float32)
