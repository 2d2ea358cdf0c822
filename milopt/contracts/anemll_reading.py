"""A folder in ANEMLL's form, read as its client reads it: ``meta.yaml`` first, which says what the packages are called.

The client loads ``.mlmodelc``; only the packages they are compiled of can be read here.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from milopt.contracts.findings import Finding
from milopt.errors import MiloptError
from milopt.package import Model, load
from milopt.sets.anemll_files import CLIENT_FILES, CONFIG, META, TOKENIZER, TOKENIZER_CONFIG, package_names
from milopt.sets.manifests import MANIFEST

__all__ = ["AnemllFolder", "Parameters", "read_folder"]

# Files that are no part of a set, and harm nobody.
_HARMLESS = frozenset({".DS_Store", "README.md", "LICENSE", "LICENSE.txt", ".gitattributes", "config.yaml"})
_NUMBERS = ("context_length", "batch_size", "num_chunks")
_BITS = ("lut_embeddings", "lut_ffn", "lut_lmhead")
# Names are made of these, one of each chunk and slice: more are no model's.
_MOST = {"num_chunks": 999, "split_lm_head": 999}
_LONGEST = 100
_GEMMA = 512


@dataclass(frozen=True)
class Parameters:
    """What ``meta.yaml`` says; ``bits`` are those of the embeddings', the layers' and the head's tables, 0 for none.

    With ``argmax`` the head gives the largest logit of each of ``slices`` and its place there; ``words`` is the size of
    the vocabulary, and ``sizes`` are those of its slices, 0 and empty where nothing is said. From position ``window``
    on the client calls other functions, where it is not 0.
    """

    context: int
    batch: int
    chunks: int
    slices: int
    prefix: str
    bits: tuple[int, int, int]
    argmax: bool = False
    words: int = 0
    sizes: tuple[int, ...] = ()
    window: int = 0

    @property
    def layout(self) -> tuple[int, ...]:
        """The slices' sizes as the client takes them to be; empty where it would guess (chat.py of Anemll 0.3.5)."""
        if len(self.sizes) == self.slices:
            return self.sizes
        size, longer = divmod(self.words, self.slices)
        return tuple(size + (at < longer) for at in range(self.slices)) if self.words else ()

    @property
    def names(self) -> list[str]:
        """The packages in order."""
        return package_names(self.prefix, self.chunks, *self.bits)


@dataclass(frozen=True)
class AnemllFolder:
    """A set in ANEMLL's form; ``head`` gives logits1, logits2, ..."""

    parameters: Parameters
    embeddings: Model
    chunks: tuple[Model, ...]
    head: Model


def read_folder(folder: Path) -> tuple[AnemllFolder | None, list[Finding]]:
    """The set, where all its packages are there, and what its files are like. MiloptError where it is no such set."""
    if not folder.is_dir():
        raise MiloptError(f"{folder}: there is no such folder")
    parameters, said = _meta(folder)
    whole = parameters.context % parameters.batch == 0
    more = "" if whole else ": no whole blocks, so that the client's call fails for a prompt that needs the last"
    found = [Finding(META, whole, said + more)]
    found += _files(folder, parameters)
    missing = [name for name in parameters.names if not (folder / name).is_dir()]
    if missing:
        return None, found
    embeddings, *chunks, head = (load(folder / name) for name in parameters.names)
    return AnemllFolder(parameters, embeddings, tuple(chunks), head), found


def _meta(folder: Path) -> tuple[Parameters, str]:
    file = folder / META
    if not file.is_file():
        raise MiloptError(f"{folder} is no ANEMLL set: it has no {META}")
    yaml: Any = importlib.import_module("yaml")
    try:
        said: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise MiloptError(f"{file} can't be read: {' '.join(str(error).split())}") from error
    known: Any = said
    for key in ("model_info", "parameters"):
        known = cast("Mapping[str, Any]", known).get(key) if isinstance(known, dict) else None
    if not isinstance(known, dict):
        raise MiloptError(f"{file} has no model_info: parameters:, where the client looks for everything")
    params = cast("dict[str, Any]", known)
    if "monolithic_model" in params or said["model_info"].get("model_type") == "monolithic":
        raise MiloptError(f"{file} is of ANEMLL's form in one package, and milopt reads the one in chunks")
    numbers = {key: _number(file, params, key) for key in _NUMBERS}
    bits = tuple(0 if params.get(key, "none") in ("none", None) else _number(file, params, key) for key in _BITS)
    slices = _number(file, params, "split_lm_head") if "split_lm_head" in params else 8
    told = params.get("model_prefix", "llama")
    prefix = str(told) if isinstance(told, (int, str)) else ""
    if "/" in prefix or "\\" in prefix or not prefix.isprintable() or len(prefix) > _LONGEST:
        raise MiloptError(f"{file}: the prefix {prefix[:_LONGEST]!r} is no beginning of a file name")
    first, second, third = bits
    made = Parameters(
        numbers["context_length"],
        numbers["batch_size"],
        numbers["num_chunks"],
        slices,
        prefix,
        (first, second, third),
        bool(params.get("argmax_in_model")),
        0 if params.get("vocab_size") is None else _number(file, params, "vocab_size"),
        _sizes(file, params.get("lm_head_chunk_sizes")),
        _window(file, params, prefix, numbers["context_length"]),
    )
    logits = "the largest" if made.argmax else "logits"
    text = f"context {made.context}, batch {made.batch}, {made.chunks} chunks, {logits} in {made.slices} slices"
    return made, text


def _window(file: Path, params: Mapping[str, Any], prefix: str, context: int) -> int:
    """From which position on the client turns its caches: it takes Gemma 3's window for granted (Anemll 0.3.5)."""
    told = _number(file, params, "sliding_window") if params.get("sliding_window") is not None else 0
    window = told or (_GEMMA if prefix.lower().startswith("gemma3") else 0)
    return window if window < context else 0


def _sizes(file: Path, said: Any) -> tuple[int, ...]:
    """``lm_head_chunk_sizes``: a list of numbers, or a text of them with commas between."""
    if said is None:
        return ()
    each: Any = said.strip("[] ").split(",") if isinstance(said, str) else said
    if not isinstance(each, list):
        raise MiloptError(f"{file}: lm_head_chunk_sizes is no list of numbers")
    sizes = map(_plain, cast("Any", each)[: _MOST["split_lm_head"] + 1])
    return tuple(_number(file, {"lm_head_chunk_sizes": size}, "lm_head_chunk_sizes") for size in sizes)


def _plain(value: Any) -> Any:
    return value.strip() if isinstance(value, str) else value


def _number(file: Path, params: Mapping[str, Any], key: str) -> int:
    value = params.get(key)
    if not isinstance(value, (int, str)) or isinstance(value, bool):
        raise MiloptError(f"{file}: {key} is {'missing' if value is None else 'no number'}")
    said, most = str(value), _MOST.get(key, 2**31 - 1)
    if not said.isdecimal() or len(said) > 10 or not 1 <= int(said) <= most:
        raise MiloptError(f"{file}: {key} is {said[:_LONGEST]!r}, not a number from 1 to {most}")
    return int(said)


def _files(folder: Path, parameters: Parameters) -> Iterator[Finding]:
    wanted = parameters.names
    for name in wanted:
        stem = name.removesuffix(".mlpackage")
        if (folder / name).is_dir():
            yield Finding(f"file {name}", True, "there; the client loads it once it is compiled, which macOS does")
        elif (folder / f"{stem}.mlmodelc").exists():
            yield Finding(f"file {name}", False, f"only {stem}.mlmodelc is there, which macOS alone can read")
        else:
            yield Finding(f"file {name}", False, "it is missing: the client finds no such model and stops")
    for name in (CONFIG, TOKENIZER, TOKENIZER_CONFIG):
        if (folder / name).is_file():
            yield Finding(f"file {name}", True, "there")
        else:
            yield Finding(f"file {name}", False, "it is missing: the client finds no tokenizer and stops")
    compiled = {name.replace(".mlpackage", ".mlmodelc") for name in wanted}
    known = {*wanted, *compiled, META, MANIFEST, *CLIENT_FILES, *_HARMLESS}
    for each in sorted(folder.iterdir()):
        if each.name not in known:
            yield Finding(f"file {each.name}", False, f"{META} does not lead to it: it is not of this set")
