"""A small Llama with random weights, its tokenizer, and both as a folder."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

CONTEXT = 32
LENGTHS = (1, 8)
LAYERS, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY = 2, 4, 2, 16, 512

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}\n"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CHAT = [
    {"role": "system", "content": "You are terse. <b>&"},
    {"role": "user", "content": "Où est la 日本?"},
]


def library(name: str) -> Any:
    """An optional, untyped package; the tests that need it skip without it."""
    pytest.importorskip("transformers", reason="milopt[huggingface] is not installed")
    return importlib.import_module(name)


def llama(seed: int = 0, **settings: Any) -> Any:
    """A float32 Llama of two layers. Its norm weights are not 1, which coremltools would drop."""
    transformers = library("transformers")
    untyped: Any = torch
    untyped.manual_seed(seed)
    config = transformers.LlamaConfig(
        **{
            "hidden_size": HEADS * HEAD_DIM,
            "intermediate_size": 96,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 64,
            # ten times the usual, so that attention is far from uniform and a wrong mask shows
            "initializer_range": 0.2,
            # a padding token makes coremltools warn about the embedding
            "pad_token_id": 0,
            **settings,
        }
    )
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    return model


def bpe_tokenizer() -> Any:
    """A byte-level BPE of few merges: most characters outside ASCII are several tokens."""
    library("transformers")
    tokenizers: Any = importlib.import_module("tokenizers")
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    )
    backend.train_from_iterator(["the quick brown fox jumps over the lazy dog, where the other one sleeps"], trainer)
    return importlib.import_module("transformers").PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
        chat_template=TEMPLATE,
    )


def write_folder(folder: Path) -> Path:
    """The model, as safetensors, and its tokenizer, as transformers saves them."""
    folder.mkdir()
    llama().save_pretrained(folder)
    bpe_tokenizer().save_pretrained(folder)
    return folder
