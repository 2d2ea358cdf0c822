"""CoreML-LLM's monolith: one function for one token, from ids to the likeliest next id, and ``model_config.json``.

What the client reads is written in john-rocky/CoreML-LLM (conversion/exporter.py, Sources/CoreMLLLM): it feeds token by
token, and says with ``update_mask``, 1 at one slot and 0 elsewhere, where the new keys and values go.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from milopt.building import Builder
from milopt.mil import (
    Function,
    Var,
    add_input,
    building_in,
    is_compressed,
    is_constant,
    mb,
    remove_if_dead,
    remove_input,
    replace_uses,
    shape_of,
    value_names,
)
from milopt.multifunction import extract
from milopt.package import Model
from milopt.package.publishing import published
from milopt.passes.cache_written import Written, find_written
from milopt.passes.head import SplitHead
from milopt.reports import NoMatch
from milopt.sets.anemll_files import CLIENT_FILES, TOKENIZER, client_files, first_of, notes_of, settings_of
from milopt.sets.anemll_parts import lut_bits
from milopt.sets.errors import SetError
from milopt.sets.renaming import MASK, PLACE, POSITIONS, TOKENS, claim, free, name_inputs, order_inputs, unused_input
from milopt.sets.roles import Decoder, decoder_of
from milopt.signature import METADATA_KEY
from milopt.signature_head import HEAD_KEY, HeadSignature
from milopt.statereads import read_once

__all__ = ["CONFIG", "STATE", "TOKENIZER_FOLDER", "UPDATE", "Monolith", "monolith"]

CONFIG, PACKAGE, TOKENIZER_FOLDER = "model_config.json", "model.mlpackage", "hf_model"
STATE, UPDATE = "kv_cache_0", "update_mask"
# What config.json of a model's folder says of these is what the client's own converter writes.
_CONFIG_KEYS = ("num_attention_heads", "rms_norm_eps", "bos_token_id", "eos_token_id", "layer_types", "sliding_window")


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
        with published(root, overwrite=overwrite, marker=CONFIG, suffix="", what="CoreML-LLM folder") as fresh:
            self.model.save(fresh / PACKAGE)
            for path, content in self.files.items():
                file = fresh / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
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
    given = name_inputs(function, decoder.one, decoder.state, STATE)
    _write_by_mask(function, decoder, given.place)
    if POSITIONS not in function.inputs:
        unused_input(function, POSITIONS, (1,), "int32")
    order_inputs(function, (TOKENS, POSITIONS, MASK, UPDATE))
    head = _answer(made)
    files = dict(carried or {})
    config = _config(made, decoder, head, name or model.metadata.get("milopt.source", ""), files.get("config.json"))
    described = {**client_files(model, decoder, head), **files}
    made.attachments = {}
    result = Monolith(made, decoder.slots, {CONFIG: _json(config)}, notes_of(described, decoder.slots, 1))
    if TOKENIZER in described:
        beside = {key: content for key, content in described.items() if key in CLIENT_FILES}
        result.files |= {f"{TOKENIZER_FOLDER}/{key}": content for key, content in beside.items()}
    return result


def _write_by_mask(function: Function, decoder: Decoder, place: str) -> None:
    """Select in every slot between what it holds and the new token, by ``update_mask``; the place is not needed."""
    read_once(function)
    try:
        written = find_written(function)
    except NoMatch as why:
        raise SetError(f"it is not known how the state is written: {why}") from why
    claim(function, UPDATE)
    mask = add_input(function, UPDATE, (1, 1, decoder.slots, 1), "fp16")
    first = next(iter(function.operations))
    # 0.5: the client gives 0 and 1
    fresh = Builder(first, value_names(function)).greater(x=mask, y=np.float16(0.5), name=f"{UPDATE}_fresh")
    for each in written:
        if each.prefix or each.axis != 2:
            raise SetError(f"state {each.state!r} is read up to the new tokens: kv-to-state{{read=full}}")
        _blend(function, each, fresh, decoder)
    _without_place(function, place)


def _blend(function: Function, written: Written, fresh: Var, decoder: Decoder) -> None:
    select = next((op for op in written.writers if op.op_type == "select"), None)
    if select is not None:
        before = select.inputs["cond"].op
        select.set_inputs(cond=fresh)
        remove_if_dead([before] if before is not None else [])
        return
    (place,) = written.writers
    op = Builder(place, value_names(function))
    begin, end = [written.row, 0, 0, 0], [written.row + written.rows, *decoder.shape[1:]]
    held = op.slice_by_index(x=place.inputs["x"], begin=begin, end=end, name=f"{place.name}_held")
    blended = op.select(cond=fresh, a=place.inputs["update"], b=held, name=f"{place.name}_blended")
    updated = op.slice_update(x=place.inputs["x"], update=blended, begin=begin, end=end)
    replace_uses(place.outputs[0], updated)
    remove_if_dead([place])


def _without_place(function: Function, name: str) -> None:
    """What else needs the place of the new token gets its position, which is the same number."""
    var = function.inputs[name]
    if not var.child_ops:
        remove_input(function, name)
        return
    if POSITIONS not in function.inputs:
        add_input(function, POSITIONS, (1,), "int32")
    row = function.inputs[POSITIONS]
    with building_in(function):
        same = mb.identity(x=row, before_op=next(iter(function.operations)), name=free(function, f"{PLACE}_same"))
    replace_uses(var, same, after=same.op)
    remove_input(function, name)


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


def _config(model: Model, decoder: Decoder, head: HeadSignature, name: str, source: bytes | None) -> dict[str, Any]:
    said = settings_of(source, "config.json")
    own = settings_of(model.attachments.get("milopt/tokenizer_config.json"), "the package's tokenizer_config.json")
    architecture = model.metadata.get("milopt.architecture", "")
    known = {key: said[key] for key in _CONFIG_KEYS if said.get(key) is not None}
    for key in ("bos_token_id", "eos_token_id"):
        value = first_of(own.get(key) if own.get(key) is not None else known.pop(key, None))
        if value is not None:
            known[key] = value
    bits = lut_bits(model)
    return {
        "model_name": Path(name).name or "model",
        "architecture": architecture.split("For")[0].lower() or "llama",
        "hidden_size": said.get("hidden_size") or _width(model, head),
        "num_hidden_layers": decoder.layers,
        "num_layers": decoder.layers,
        "num_key_value_heads": decoder.shape[1],
        "head_dim": decoder.shape[3],
        "vocab_size": sum(head.sizes),
        "context_length": decoder.slots,
        **known,
        "quantization": f"lut{bits}" if bits else "fp16",
        "compute_units": "ALL",
        "parts": {"model": PACKAGE},
        "tokenizer_repo": said.get("_name_or_path") or "",
    }


def _width(model: Model, head: HeadSignature) -> int | None:
    """How wide a row is that the head takes: what its weights have for each word."""
    for op in reversed(list(model.function().operations)):
        weight = op.inputs.get("weight" if op.op_type in ("linear", "conv") else "y")
        if op.op_type not in ("linear", "conv", "matmul") or not isinstance(weight, Var):
            continue
        if is_constant(weight) or is_compressed(weight):
            return int(prod(shape_of(weight))) // head.sizes[-1]
    return None


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
