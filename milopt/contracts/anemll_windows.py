"""Conversations of ANEMLL's client beyond a sliding window, and what the masks of the program say there."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from milopt.cachecolumns import ring_tokens
from milopt.sets.roles import Decoder, FunctionRoles

__all__ = ["conversations", "given_masks"]

Array = npt.NDArray[Any]


def conversations(context: int, batch: int, window: int, tokens: int) -> list[tuple[int, int]]:
    """How long prompts are, and how many tokens follow each, so that nothing of what the client does is left out.

    Without a window, a prompt of more than a block where there is room. With one, a prompt that ends below it and an
    answer that goes on beyond; and one of blocks beyond it, the last of which the client feeds token by token. Empty
    where the context has no room.
    """
    last, prompts = context - 1, [max(1, min(batch + 2, context // 2))]
    if window:
        blocks = (window // batch + 2) * batch + (batch + 1) // 2
        prompts = [max(1, min(each, last - 2)) for each in (window - tokens // 2, blocks)]
    return [(each, min(tokens, last - each)) for each in dict.fromkeys(prompts) if each < last]


def given_masks(decoder: Decoder, roles: FunctionRoles, mask: Array, start: int) -> dict[str, Array]:
    """The masks that the program takes where the client has a causal one (1, 1, rows, context), rows ``start`` on.

    A mask that slides shows a row's last tokens alone. Where its layers keep a ring, its columns are about the newest
    tokens that the slots may hold.
    """
    window = decoder.window
    if window is None:
        return {roles.mask: mask}
    count, length = int(mask.shape[2]), int(mask.shape[3])
    rows: Array = start + np.arange(count)[:, None]
    columns: Array = np.arange(length)
    near: Array = np.where(columns > rows - window.tokens, mask, -np.inf)
    if window.ring:
        tokens = ring_tokens(window.ring, start + roles.length)
        known = (tokens >= 0) & (tokens < length)
        near = np.where(known, near[..., np.where(known, tokens, 0)], -np.inf)
    return {roles.mask: mask, roles.sliding: near.astype(mask.dtype)}
