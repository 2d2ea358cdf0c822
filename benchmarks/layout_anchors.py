"""What a decoder layer moves: plain conversion, naive convolutions, milopt's pipelines, and each family.

    python -m benchmarks.layout_anchors [FAMILY ... | all] [--packages DIR] [--output FILE]

The first table is of one config (Llama: width 256, 512 inside, 8 heads on 4 key/value heads of 32, vocabulary 1024,
context 512, random weights, fp16, traced through the front door), for 1 and 64 tokens a call. Every count is half of
the difference between 4 layers and 2, and whole. *Naive* writes a convolution and its own transposes for every linear
layer, and then runs coremltools' passes. The definitions are in benchmarks/movement.py. The second table is M and
transposes a layer for each family named, of tests/huggingface/families.py, by the same difference, 4 tokens a call.
``--packages`` keeps the conversions for the next run. Writes benchmarks/results/layout.md.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.movement import Movement, movement, per_layer
from milopt.errors import MiloptError
from milopt.huggingface import convert
from milopt.package import Model, load
from milopt.passes.convolution import LinearAsConv
from milopt.pipeline import Pipeline
from milopt.rules import apply
from tests.huggingface.families import CONTEXT as FAMILY_CONTEXT
from tests.huggingface.families import FAMILIES, Family

__all__ = ["CONTEXT", "anchor", "layer_of"]

HERE = Path(__file__).resolve().parent
CONTEXT = 512
QUERIES = (1, 64)
FAMILY_QUERY = 4

STOCK = "ct:common::reduce_transposes,ct:common::noop_elimination,ct:common::remove_redundant_ops"
NUMBERS = "canonicalize,rope-table,fuse-sdpa,pack-gqa"
STATES = f"{NUMBERS},kv-to-state"
WRITTEN = f"{STATES},decompose-sdpa"
# label -> passes that run after a plain conversion
PIPELINES: dict[str, str] = {
    "milopt, convolutions": f"{STATES},linear-to-conv",
    "milopt, layout": f"{STATES},linear-to-conv,layout-bc1s",
    "milopt, layout, safe norms": (
        "canonicalize,fp16-safe-norm,rope-table,fuse-sdpa,pack-gqa,kv-to-state,linear-to-conv,layout-bc1s"
    ),
    "milopt, layout, attention written out": f"{WRITTEN},linear-to-conv,layout-bc1s",
    "milopt, layout, written out, free": f"{WRITTEN},linear-to-conv,layout-bc1s{{io=free}}",
    "milopt, layout, past and present": f"{NUMBERS},linear-to-conv,layout-bc1s",
}
# each model's own word for the number of layers, and what is given for each of them
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers")
_BY_LAYER = ("layer_types", "no_rope_layers")


def main() -> None:
    """Convert, rewrite, count; print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "families", nargs="*", default=[], metavar="FAMILY", help="families of the second table, or all"
    )
    parser.add_argument("--packages", type=Path, help="folder where conversions are kept for the next run")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "layout.md")
    given = parser.parse_args()
    chosen: list[str] = list(FAMILIES) if given.families == ["all"] else given.families
    if unknown := [name for name in chosen if name not in FAMILIES]:
        raise SystemExit(f"there is no family {unknown[0]!r}; there are: {', '.join(FAMILIES)}")
    with TemporaryDirectory(prefix="layout-") as temporary:
        folder = given.packages or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        text = "\n".join([*anchors(folder), *families(folder, chosen)]) + "\n"
    print(text)
    given.output.parent.mkdir(exist_ok=True)
    given.output.write_text(text)


def anchors(folder: Path) -> Iterator[str]:
    """The lines of the first table."""
    yield "Llama, hidden 256, 8/4 heads of 32, context 512, fp16. Counts are per layer, elements per call."
    yield ""
    yield (
        "| | Q | ops | conv/linear/matmul/SDPA | transposes (real) | reshapes (regrouping) | views | slices "
        "| concats (+index) | tiles | softmax | updates | transposed | regrouped | tiled | concatenated | **M** "
        "| sliced | bytes a token (net of views) |"
    )
    yield "|" + "---|" * 19
    for query in QUERIES:
        plain = {layers: anchor(query, layers, folder) for layers in (4, 2)}
        for label, models in variants(plain):
            yield row(label, query, models)


def variants(plain: Mapping[int, Model]) -> Iterator[tuple[str, Mapping[int, Model] | str]]:
    """Each label with its programs, or with why there are none."""
    yield "plain conversion", plain
    naive = {layers: model.clone() for layers, model in plain.items()}
    for model in naive.values():
        apply(LinearAsConv(), model)
    yield "naive convolutions", naive
    yield "naive, coremltools' passes", Stages(naive).after(STOCK)
    stages = Stages(plain)
    for label, text in PIPELINES.items():
        yield label, stages.after(text)


class Stages:
    """What passes make of copies of programs; pipelines that begin alike share what they begin with."""

    def __init__(self, plain: Mapping[int, Model]) -> None:
        self._made: dict[tuple[str, ...], Mapping[int, Model]] = {(): plain}

    def after(self, text: str) -> Mapping[int, Model] | str:
        """The programs after the passes that ``text`` spells; the reason where they can't run."""
        try:
            return self._after(tuple(map(str, Pipeline.parse(text).passes)))
        except MiloptError as error:
            return str(error)

    def _after(self, passes: tuple[str, ...]) -> Mapping[int, Model]:
        if passes not in self._made:
            models = {layers: model.clone() for layers, model in self._after(passes[:-1]).items()}
            for model in models.values():
                Pipeline.parse(passes[-1]).run(model)
            self._made[passes] = models
        return self._made[passes]


def layer_of(models: Mapping[int, Model]) -> Movement:
    """What a layer takes, of programs of 4 and of 2 layers."""
    return per_layer(movement(models[4].function()), movement(models[2].function()), 2)


def moved_by_layer(models: Mapping[int, Model]) -> str:
    """M and transposes of a layer; half of one more where two layers are unlike, or share what one alone has too."""
    large, small = (movement(models[layers].function()) for layers in (4, 2))
    return f"{(large.moved - small.moved) / 2:,.10g}, {(large.transposes - small.transposes) / 2:g}"


def row(label: str, query: int, models: Mapping[int, Model] | str) -> str:
    if isinstance(models, str):
        return f"| {label} | {query} | {models} |"
    each = layer_of(models)
    cells: Sequence[object] = (
        label,
        query,
        each.ops,
        f"{each.conv}/{each.linear}/{each.matmul}/{each.sdpa}",
        f"{each.transposes} ({each.real_transposes})",
        f"{each.reshapes} ({each.regrouping})",
        each.views,
        each.slices,
        f"{each.concats} (+{each.index_concats})",
        each.tiles,
        each.softmaxes,
        each.updates,
        *(f"{count:,}" for count in (each.transposed, each.regrouped, each.tiled, each.concatenated)),
        f"**{each.moved:,}**",
        f"{each.sliced:,}",
        f"{each.bytes // query:,} ({each.net_bytes // query:,})",
    )
    return f"| {' | '.join(map(str, cells))} |"


def anchor(query: int, layers: int, folder: Path | None = None) -> Model:
    """The plain conversion of the config, for ``query`` tokens; from ``folder`` where it is there already."""

    def make() -> Model:
        transformers: Any = importlib.import_module("transformers")
        config = transformers.LlamaConfig(
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=layers,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=32,
            vocab_size=1024,
            max_position_embeddings=CONTEXT,
        )
        untyped: Any = torch
        untyped.manual_seed(0)
        model = transformers.LlamaForCausalLM(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:  # coremltools drops a weight of 1
                    parameter.uniform_(0.5, 1.5)
        return convert(model, context=CONTEXT, query_lengths=(query,), dtype="float16")

    return _kept(folder, f"llama-{query}-{layers}", make)


def families(folder: Path, chosen: Sequence[str]) -> Iterator[str]:
    """The lines of the second table."""
    if not chosen:
        return
    labels = [label for label in PIPELINES if label.count(",") < 2 or "written out" in label]
    yield ""
    yield f"M and transposes a layer, {FAMILY_QUERY} tokens a call, context {FAMILY_CONTEXT} (encoders: their own)."
    yield ""
    yield f"| family | plain conversion | {' | '.join(labels)} | linear left |"
    yield "|" + "---|" * (len(labels) + 3)
    for name in chosen:
        print(name, file=sys.stderr, flush=True)
        plain = {layers: _family(FAMILIES[name], layers, folder) for layers in (4, 2)}
        stages = Stages(plain)
        made = [plain, *(stages.after(PIPELINES[label]) for label in labels)]
        cells = [each if isinstance(each, str) else moved_by_layer(each) for each in made]
        last = made[-1]
        left = "" if isinstance(last, str) else str(movement(last[2].function()).linear)
        yield f"| {name} | {' | '.join(cells)} | {left} |"


def _family(family: Family, layers: int, folder: Path) -> Model:
    settings = dict(family.settings)
    (key,) = [key for key in _LAYERS if key in settings]
    times = layers // settings[key]
    settings[key] = layers
    settings |= {key: list(settings[key]) * times for key in _BY_LAYER if key in settings}
    query: dict[str, Any] = {"query_lengths": (FAMILY_QUERY,)} if family.kind == "decoder" else {}

    def make() -> Model:
        model = replace(family, settings=settings).make()
        return convert(model, context=FAMILY_CONTEXT, dtype="float16", **query)

    return _kept(folder, f"{family.name}-{layers}", make)


def _kept(folder: Path | None, name: str, make: Any) -> Model:
    path = None if folder is None else folder / f"{name}.mlpackage"
    if path is not None and path.exists():
        return load(path)
    model: Model = make()
    if path is not None:
        model.save(path)
    return model


if __name__ == "__main__":
    main()
