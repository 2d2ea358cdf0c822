"""CoreML-LLM's monolith: one function for one token, from ids to the likeliest next id, and ``model_config.json``.

What the client reads is written in john-rocky/CoreML-LLM (conversion/exporter.py, Sources/CoreMLLLM): it feeds token by
token, and says with ``update_mask``, 1 at one slot and 0 elsewhere, where the new keys and values go.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from milopt.mil import Var, building_in, mb
from milopt.multifunction import extract
from milopt.package import Model
from milopt.package.publishing import published
from milopt.passes.head import SplitHead
from milopt.sets.anemll_files import CLIENT_FILES, TOKENIZER, client_files, notes_of
from milopt.sets.coreml_llm_config import model_config
from milopt.sets.coreml_llm_writing import UPDATE, write_by_mask
from milopt.sets.errors import SetError
from milopt.sets.manifests import MANIFEST, check_replaceable, write_manifest
from milopt.sets.renaming import MASK, POSITIONS, TOKENS, claim, name_inputs, order_inputs, unused_input
from milopt.sets.roles import decoder_of
from milopt.sets.source_checking import check_source
from milopt.signature import METADATA_KEY
from milopt.signature_head import HEAD_KEY, HeadSignature

__all__ = ["CONFIG", "MANIFEST", "PACKAGE", "STATE", "TOKENIZER_FOLDER", "UPDATE", "Monolith", "monolith"]

CONFIG, PACKAGE, TOKENIZER_FOLDER = "model_config.json", "model.mlpackage", "hf_model"
STATE = "kv_cache_0"
_WHAT = "CoreML-LLM folder"


@dataclass
class Monolith:
    """The package that CoreML-LLM's client loads, and what it reads beside it, by path in the folder."""

    model: Model
    context: int
    files: dict[str, bytes] = field(default_factory=dict[str, bytes])
    notes: list[str] = field(default_factory=list[str])

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write ``folder``, whole or not at all; an old one of this form is replaced only if asked to."""
        root = Path(folder)
        if overwrite:
            check_replaceable(root, CONFIG, _WHAT)
        with published(root, overwrite=overwrite, marker=CONFIG, suffix="", what=_WHAT) as fresh:
            self.model.save(fresh / PACKAGE)
            for path, content in self.files.items():
                file = fresh / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
            write_manifest(fresh)
        return root


def monolith(model: Model, *, name: str = "", carried: Mapping[str, bytes] | None = None) -> Monolith:
    """The function for one token as CoreML-LLM's client calls it; ``model`` stays as it is, and weights are shared.

    It has fixed shapes and one state of (2 layers, heads, slots, size) with the keys first, as
    ``kv-to-state{layout=unified}`` makes it. The result takes ``input_ids`` int32 (1, 1), ``position_ids`` int32 (1,),
    ``causal_mask`` fp16 (1, 1, 1, slots) and ``update_mask`` fp16 (1, 1, slots, 1), which says where it writes, and
    gives ``token_id`` int32 (1,) and ``token_logit`` fp16 (1,), the first of the likeliest. ``carried`` are files of
    the model's folder: ``config.json`` and the tokenizer's.

    :class:`~milopt.sets.SetError` says in a line what the client does not know of the program.
    """
    decoder = decoder_of(model, several=False)
    made = extract(model, decoder.one.name)
    made.metadata.pop(METADATA_KEY, None)
    made.description = None
    function = made.function()
    given = name_inputs(function, decoder.one, {decoder.state: STATE})
    write_by_mask(function, decoder, given.place)
    if POSITIONS not in function.inputs:
        unused_input(function, POSITIONS, (1,), "int32")
    order_inputs(function, (TOKENS, POSITIONS, MASK, UPDATE))
    head = _answer(made)
    files = dict(carried or {})
    check_source(files, made, decoder, head)
    title = name or model.metadata.get("milopt.source", "")
    config = model_config(made, decoder, head, title, files.get("config.json"), PACKAGE)
    described = {**client_files(model, decoder, head), **files}
    made.attachments = {}
    result = Monolith(made, decoder.slots, {CONFIG: _json(config)}, notes_of(described, decoder.slots, 1))
    if TOKENIZER in described:
        beside = {key: content for key, content in described.items() if key in CLIENT_FILES}
        result.files |= {f"{TOKENIZER_FOLDER}/{key}": content for key, content in beside.items()}
    return result


def _answer(model: Model) -> HeadSignature:
    """Have the function give the likeliest id and its logit alone."""
    function = model.function()
    known = HeadSignature.from_metadata(model.metadata)
    if known is None:
        if [var.name for var in function.outputs] != ["logits"]:
            raise SetError(f"it gives {', '.join(var.name for var in function.outputs)}, and not logits alone")
        report = SplitHead(output="argmax").run(model)
        known = HeadSignature.from_metadata(model.metadata)
        if known is None:
            why = report.misses[0] if report.misses else "no logits are made"
            raise SetError(f"the likeliest id can't be chosen in the program: {why}")
    if known.kind != "argmax":
        raise SetError(f"the head gives {', '.join(known.names)}, and the client reads the likeliest id alone")
    model.metadata.pop(HEAD_KEY, None)
    outputs = {var.name: var for var in function.outputs}
    made: list[Var] = []
    for title, name in (("token_id", known.names[0]), ("token_logit", known.names[1])):
        claim(function, title)
        with building_in(function):
            made.append(mb.reshape(x=outputs[name], shape=np.array([1], np.int32), name=title))
    function.set_outputs(made)
    function.output_types = None
    return known


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
