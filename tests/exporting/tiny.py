"""A Llama of one small layer as a folder, and an export of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from milopt.exporting import Options, export
from tests.huggingface.support import bpe_tokenizer, llama

SETTINGS: dict[str, Any] = {
    "num_hidden_layers": 1,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 64,
}
OPTIONS = Options(context=32, batch_size=4, chunks=1, lut={"embeddings": None, "layers": 4, "head": 6})
MODEL = "tiny-llama"


def write(folder: Path, **settings: Any) -> Path:
    made = folder / MODEL
    llama(**{**SETTINGS, **settings}).save_pretrained(made)
    bpe_tokenizer().save_pretrained(made)
    return made


def export_beside(out: Path) -> None:
    """The export of the folder beside ``out``."""
    export(out.parent / MODEL, out, OPTIONS)
