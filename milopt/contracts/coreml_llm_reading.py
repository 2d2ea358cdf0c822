"""CoreML-LLM's folder as its client reads it: ``model_config.json``, and the files that there must be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from milopt.contracts.findings import Finding
from milopt.errors import MiloptError
from milopt.sets.coreml_llm import CONFIG, MANIFEST, PACKAGE, TOKENIZER_FOLDER

__all__ = ["file_findings", "read_config", "settings_findings"]

_HARMLESS = frozenset({".DS_Store", "README.md", "LICENSE", ".gitattributes", "model.mlmodelc", "vision.mlpackage"})
_NUMBERS = ("hidden_size", "context_length", "vocab_size", "eos_token_id")


def read_config(root: Path) -> dict[str, Any]:
    """What ``model_config.json`` says; MiloptError where the folder is none of this form."""
    if not root.is_dir():
        raise MiloptError(f"{root}: there is no such folder")
    file = root / CONFIG
    if not file.is_file():
        raise MiloptError(f"{root} is no CoreML-LLM folder: it has no {CONFIG}")
    try:
        config: Any = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise MiloptError(f"{file} can't be read: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise MiloptError(f"{file} is no mapping")
    return cast("dict[str, Any]", config)


def file_findings(root: Path) -> Iterator[Finding]:
    """One finding for each file that the client looks for, and for each that it does not."""
    if (root / PACKAGE).is_dir():
        yield Finding(f"file {PACKAGE}", True, "there; the client compiles it when it loads it")
    else:
        yield Finding(f"file {PACKAGE}", False, "it is missing: the client finds no model and stops")
    tokenizer = root / TOKENIZER_FOLDER / "tokenizer.json"
    if tokenizer.is_file():
        yield Finding(f"file {TOKENIZER_FOLDER}/tokenizer.json", True, "there")
    else:
        text = "it is missing: the client finds no tokenizer and stops"
        yield Finding(f"file {TOKENIZER_FOLDER}/tokenizer.json", False, text)
    for each in sorted(root.iterdir()):
        if each.name not in (PACKAGE, CONFIG, TOKENIZER_FOLDER, MANIFEST, *_HARMLESS):
            yield Finding(f"file {each.name}", False, "the client does not look for it: it is not of this folder")


def settings_findings(root: Path, config: dict[str, Any]) -> Iterator[Finding]:
    """Numbers that the client would else take for those of Gemma 4 (ModelConfig.swift)."""
    for key in _NUMBERS:
        value = config.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            yield Finding(f"{key} of {CONFIG}", True, str(value))
        else:
            text = "it is not there" if key not in config else f"it is {value!r:.50}, no number"
            yield Finding(f"{key} of {CONFIG}", False, f"{text}: the client takes Gemma 4's")
    yield _parts(root, config.get("parts", {"model": PACKAGE}))


def _parts(root: Path, said: Any) -> Finding:
    """The client's converter names every package in ``parts``; the client itself opens ``model.mlpackage``."""
    check = f"parts of {CONFIG}"
    if not isinstance(said, dict):
        return Finding(check, False, f"it is {said!r:.50}, and no mapping of what is in which package")
    parts = cast("dict[str, Any]", said)
    if parts.get("model") != PACKAGE:
        return Finding(check, False, f"model is {parts.get('model')!r:.50}, and the client opens {PACKAGE}")
    for name, file in parts.items():
        if not isinstance(file, str) or "/" in file or not (root / file).exists():
            return Finding(check, False, f"{name:.50} is {file!r:.50}, which is not there")
    return Finding(check, True, ", ".join(map(str, parts.values())))
