"""A folder that another client loads, ANEMLL's or CoreML-LLM's, read to be run: by milopt or by somebody else made."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from milopt.errors import MiloptError
from milopt.interpreter import Plan, Precision
from milopt.package import Model
from milopt.package import load as load_package
from milopt.sets.anemll_files import CLIENT_FILES, META
from milopt.sets.anemll_running import anemll_plans
from milopt.sets.client_tokenizer import carried_tokenizer
from milopt.sets.coreml_llm_running import monolith_plan
from milopt.sets.deployment import interface
from milopt.sets.errors import SetError
from milopt.sets.renaming import MASK, PLACE
from milopt.sets.turning import turning
from milopt.signature import METADATA_KEY, CacheSignature, CacheSlot
from milopt.signature_head import HEAD_KEY, HeadSignature

if TYPE_CHECKING:
    from milopt.contracts.anemll_reading import AnemllFolder
    from milopt.contracts.findings import Finding

__all__ = ["ClientSet", "Style", "client_style", "compile_client", "load_client"]

Style: TypeAlias = Literal["anemll", "coreml-llm"]

_CONFIG, _PACKAGE, _TOKENIZER_FOLDER = "model_config.json", "model.mlpackage", "hf_model"
# What the client's own converter writes, and milopt does not need.
_HARMLESS = "metadata of "


@dataclass
class ClientSet:
    """What :func:`load_client` read, for a :class:`milopt.Session`.

    ``metadata`` describe its cache and its head as those of packages do, ``attachments`` are the tokenizer as packages
    carry it. Where ``window`` is not 0, a prompt is fed in whole blocks that end there, and never padded.
    """

    style: Style
    content: AnemllFolder | Model
    context: int
    words: int
    window: int = 0
    metadata: dict[str, str] = field(default_factory=dict[str, str])
    attachments: dict[str, bytes] = field(default_factory=dict[str, bytes])

    @property
    def default_function(self) -> str:
        return "infer" if self.style == "anemll" else "main"


def client_style(path: str | os.PathLike[str]) -> Style | None:
    """Whose form a folder has, by the file that its client reads first; ``None`` where it is no such folder."""
    folder = Path(path)
    if (folder / META).is_file():
        return "anemll"
    return "coreml-llm" if (folder / _CONFIG).is_file() else None


def load_client(folder: str | os.PathLike[str]) -> ClientSet:
    """The set in a folder that ``milopt contract`` wrote, or others in that form. Weights are mapped, not read.

    MiloptError names the first thing that keeps its client from running it: a file that is missing, a name, a shape.
    ``milopt check-contract`` names everything.
    """
    root = Path(folder)
    style = client_style(root)
    if style is None:
        raise SetError(f"{root} is no folder for a client: it has neither {META} nor {_CONFIG}")
    return _anemll(root) if style == "anemll" else _coreml_llm(root)


def compile_client(
    made: ClientSet, *, precision: Precision = "declared", keep_weights: bool = True, device: str = "cpu"
) -> dict[str, Plan]:
    """A plan for each number of tokens that the client feeds at once; all share one state."""
    if isinstance(made.content, Model):
        plan = monolith_plan(
            made.content, words=made.words, precision=precision, keep_weights=keep_weights, device=device
        )
        return {made.default_function: plan}
    plans = anemll_plans(
        made.content, precision=precision, keep_weights=keep_weights, device=device, rotating=bool(made.window)
    )
    return turning(plans, made.window)


def _anemll(root: Path) -> ClientSet:
    from milopt.contracts.anemll_head import head_words
    from milopt.contracts.anemll_interface import interface_findings
    from milopt.contracts.anemll_reading import read_folder

    folder, found = read_folder(root)
    if folder is None:
        raise SetError(_line(root, next(each for each in found if each.check.startswith("file") and not each.passed)))
    _refuse(root, interface_findings(folder))
    known = folder.parameters
    words = head_words(folder)
    states = interface(folder.chunks[0], "prefill")["states"]
    return ClientSet(
        "anemll",
        folder,
        known.context,
        words,
        known.window,
        _described(states, known.context, words, one=known.argmax),
        _tokenizer(root),
    )


def _coreml_llm(root: Path) -> ClientSet:
    from milopt.contracts.coreml_llm_interface import interface_findings, words_of
    from milopt.contracts.coreml_llm_reading import read_config, settings_findings

    config = read_config(root)
    if not (root / _PACKAGE).is_dir():
        raise SetError(f"{root} has no {_PACKAGE}, the one package of its form that can be read here")
    model = load_package(root / _PACKAGE)
    context_and_words = [f"{key} of {_CONFIG}" for key in ("context_length", "vocab_size")]
    _refuse(root, (each for each in settings_findings(root, config) if each.check in context_and_words))
    _refuse(root, interface_findings(model, config))
    context, words = int(config["context_length"]), words_of(model) or int(config["vocab_size"])
    states = interface(model, model.default_function)["states"]
    metadata = _described(states, context, words, one=True)
    return ClientSet("coreml-llm", model, context, words, 0, metadata, _tokenizer(root / _TOKENIZER_FOLDER))


def _refuse(root: Path, found: Iterable[Finding]) -> None:
    """SetError with the first that a client would stumble over when it runs the set."""
    for each in found:
        if not each.passed and not each.check.startswith(_HARMLESS):
            raise SetError(_line(root, each))


def _line(root: Path, finding: Finding) -> str:
    return f"{root}: {finding.check}: {finding.detail}"


def _described(states: Mapping[str, list[int]], context: int, words: int, *, one: bool) -> dict[str, str]:
    """What a package says of such a cache; states that are rings have fewer slots, and are left out."""
    slots = tuple(
        CacheSlot(f"past_{kind}_{row}", f"present_{kind}_{row}", name, row + half * (kind == "value"), 1)
        for name, (_, rows, _, length, _) in states.items()
        if length >= context
        for half in (rows // 2,)
        for row in range(half)
        for kind in ("key", "value")
    )
    described = {METADATA_KEY: CacheSignature(slots, PLACE, (MASK,), context, axis=2).to_json()}
    if one:
        described[HEAD_KEY] = HeadSignature("logits", "argmax", -1, (words,), 1).to_json()
    return described


def _tokenizer(root: Path) -> dict[str, bytes]:
    files = {name: (root / name).read_bytes() for name in CLIENT_FILES if (root / name).is_file()}
    try:
        return carried_tokenizer(files)
    except MiloptError as error:
        raise SetError(f"{root}: {error}") from error
