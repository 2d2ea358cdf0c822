"""Packages to give to the commands, a pass that is wrong, and a look at what is left on the disk."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from milopt.building import Builder
from milopt.matching import Match
from milopt.mil import Var
from milopt.package import Model
from milopt.pattern import Ops, Scalar, Value
from milopt.pipeline import RulePass
from milopt.reports import require
from milopt.rules import Rule

WORDS = ("<end>", "<user>", "<answer>", "?", *(f"word{index}" for index in range(25)))
TEMPLATE = (
    "{% for m in messages %}{{ '<user>' if m.role == 'user' else '<answer>' }} {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}<answer>{% endif %}"
)


def contents(folder: Path) -> dict[str, str]:
    """A hash of every file below ``folder``, hidden ones included."""
    files = sorted(each for each in folder.rglob("*") if each.is_file())
    return {str(each.relative_to(folder)): hashlib.sha256(each.read_bytes()).hexdigest() for each in files}


def with_tokenizer(model: Model) -> Model:
    """``model``, whose vocabulary is that of ``WORDS``, with a tokenizer that splits at blanks."""
    entries = {word: index for index, word in enumerate(WORDS)}
    content: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": entries, "unk_token": "?"},
    }
    settings = {"eos_token_id": [0], "chat_template": TEMPLATE}
    model.attachments["milopt/tokenizer.json"] = json.dumps(content).encode()
    model.attachments["milopt/tokenizer_config.json"] = json.dumps(settings).encode()
    return model


class Rescale(Rule[None]):
    """``x * 0.7 -> x * 0.8``, which is wrong."""

    def pattern(self, op: Ops, x: Value, s: Scalar) -> Any:
        return op.mul(x=x, y=s)

    def check(self, m: Match) -> None:
        # 1e-3: the factor is fp16, which has 11 bits
        require(math.isclose(float(m.s), 0.7, rel_tol=1e-3), "another factor")

    def rewrite(self, op: Builder, m: Match, facts: None) -> Var:
        made: Var = op.mul(x=m.x, y=np.float16(0.8))
        return made


@dataclass(frozen=True)
class WrongPass(RulePass):
    """Changes the scale of attention."""

    name: ClassVar[str] = "wrong"

    def rules(self) -> tuple[Rule[Any], ...]:
        return (Rescale(),)
