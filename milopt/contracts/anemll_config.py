"""``config.json`` of a set in ANEMLL's form: what it says of the model must be what the packages are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from milopt.contracts.anemll_head import head_words
from milopt.contracts.anemll_reading import AnemllFolder
from milopt.contracts.findings import Finding
from milopt.sets.anemll_files import CONFIG
from milopt.sets.deployment import interface

__all__ = ["config_finding"]


def config_finding(root: Path, made: AnemllFolder) -> Finding:
    """What ``config.json`` says of the model must be what the packages are."""
    try:
        config: Any = json.loads((root / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return Finding(CONFIG, False, f"it can't be read: {' '.join(str(error).split())}")
    if not isinstance(config, dict):
        return Finding(CONFIG, False, "it is no mapping")
    said = cast("dict[str, Any]", config)
    states = interface(made.chunks[0], "prefill")["states"] if "prefill" in made.chunks[0].functions else {}
    rows = [int(shape[1]) for shape in states.values() if len(shape) > 1 and isinstance(shape[1], int)]
    known: dict[str, Any] = {
        "num_hidden_layers": sum(rows) // 2 if rows else None,
        "vocab_size": head_words(made) or None,
    }
    for key, value in known.items():
        if value is not None and key in said and said[key] != value:
            return Finding(CONFIG, False, f"{key} is {said[key]!r:.50}, and the packages have {value}")
    return Finding(CONFIG, True, ", ".join(f"{key} {said[key]}" for key in known if key in said) or "says nothing")
