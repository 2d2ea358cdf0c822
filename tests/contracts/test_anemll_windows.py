"""``check-contract --style anemll`` on sets of models with a sliding window: what the client does beyond it."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from milopt.building import Builder
from milopt.contracts import check
from milopt.contracts.anemll_windows import conversations, given_masks
from milopt.errors import MiloptError
from milopt.mil import Function, Var, mb, remove_input, replace_uses, value_names
from milopt.package import Model, load
from milopt.sets import chunk
from milopt.sets.anemll import anemll_set
from milopt.sets.anemll_parts import chunk_part, prepared
from milopt.sets.roles import Decoder, FunctionRoles, Window
from tests.cli.support import with_tokenizer
from tests.sets.programs import HEADS, SIZE, Transformer

# Two layers, one in each chunk: the first sees the last 4 tokens, and blocks of 4 end where its window does.
WINDOW, LONG = 4, 20
MIXED = Transformer(states="unified", mlp=(24, 24), context=LONG, table=LONG, window=WINDOW, sliding=(0,))
RINGS = replace(MIXED, ring=7)
FIRST, SECOND = "model_FFN_PF_chunk_01of02.mlpackage", "model_FFN_PF_chunk_02of02.mlpackage"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = with_tokenizer(RINGS.model())
    return anemll_set(model, count=2, slices=4).save(tmp_path_factory.mktemp("sets") / "good")


@pytest.mark.parametrize("reference", [None, RINGS, MIXED], ids=["alone", "rings", "whole"])
def test_a_good_set(good: Path, reference: Transformer | None) -> None:
    found = check(good, "anemll", reference=None if reference is None else reference.model(), tokens=4)
    assert found, str(found)
    text = str(found)
    assert "infer_rotate of model_FFN_PF_chunk_02of02.mlpackage" in text
    assert "model_model_kv_cache_local fp16 [2, 2, 7, 8]: 1 layers; model_model_kv_cache_global" in text
    assert "the client's loop, 2 tokens:" in text
    assert "the client's loop, 14 tokens:" in text
    assert text.count("as token by token") == 2


def test_another_answer_beyond_the_window_alone(good: Path) -> None:
    """Up to the window it is the same as that of layers which see all."""
    other = replace(RINGS, window=3, weights=RINGS.weights).model()
    failed = check(good, "anemll", reference=other, tokens=4).failed
    assert failed
    assert all("the client's loop" in each.check for each in failed)


@dataclass(frozen=True)
class Shifting(Transformer):
    """Keeps a window as Anemll 0.3.5 does: tokens in their slots at first, and later at the end, all others shifted."""

    rotating: bool = False

    def _cached(self, given: dict[str, Var], kind: str, new: Var, layer: int, query: int) -> Var:
        if layer not in self.sliding:
            return super()._cached(given, kind, new, layer, query)
        row, state = self._row(kind, layer), given["kv_cache_local"]
        place: Any = given["current_pos"]
        held = mb.read_state(input=state)
        if self.rotating:
            left = mb.slice_by_index(x=held, begin=[row, 0, query, 0], end=[row + 1, HEADS, WINDOW, SIZE])
            new = mb.concat(values=(left, new), axis=2)
            place, query = np.array([0], np.int32), WINDOW
        begin = mb.concat(values=(np.array([row, 0], np.int32), place, np.array([0], np.int32)), axis=0)
        stop = mb.add(x=place, y=np.array([query], np.int32))
        end = mb.concat(values=(np.array([row + 1, HEADS], np.int32), stop, np.array([SIZE], np.int32)), axis=0)
        whole = mb.coreml_update_state(state=state, value=mb.slice_update(x=held, update=new, begin=begin, end=end))
        mine: Var = mb.slice_by_index(x=whole, begin=[row, 0, 0, 0], end=[row + 1, HEADS, WINDOW, SIZE])
        return mine


def _masked(function: Function) -> None:
    """Its layers with a window take the first columns of the client's mask."""
    op = Builder(next(iter(function.operations)), value_names(function))
    rows = int(function.inputs["causal_mask"].shape[2])
    first = op.slice_by_index(x=function.inputs["causal_mask"], begin=[0, 0, 0, 0], end=[1, 1, rows, WINDOW])
    replace_uses(function.inputs["sliding_mask"], first, after=op.built[-1])
    remove_input(function, "sliding_mask")


def _chunk(*, rotating: bool) -> Model:
    model = Shifting(
        **{
            name: getattr(RINGS, name) for name in ("states", "mlp", "context", "table", "window", "sliding", "weights")
        },
        ring=WINDOW,
        rotating=rotating,
    ).model()
    for function in model.functions.values():
        _masked(function)
    one, many = (
        FunctionRoles(name, length, "input_ids", "position_ids", "causal_mask", "current_pos")
        for name, length in (("decode", 1), ("prefill4", 4))
    )
    rows = (2, HEADS, LONG, SIZE)
    decoder = Decoder(one, many, "kv_cache", rows, Window(WINDOW, "kv_cache_local", (2, HEADS, WINDOW, SIZE)))
    whole = prepared(model, decoder)
    cut = chunk(whole, count=1, embedding="package", head="package", shared="recompute", tied="apart")
    part = cut.parts[1]
    made = cut.files[part.file]
    assert isinstance(made, Model)
    return chunk_part(made, part, decoder)


def test_the_converters_own_form_forgets_too_much(tmp_path: Path) -> None:
    """Blocks beyond the window lose what their first tokens see, and the prompt's last token is shifted in twice."""
    made = anemll_set(with_tokenizer(RINGS.model()), count=1, slices=4)
    own, rotating = _chunk(rotating=False), _chunk(rotating=True)
    for name in ("infer", "prefill"):
        own.program.functions[f"{name}_rotate"] = rotating.program.functions[name]
    own.metadata, made.chunks = made.chunks[0].metadata, (own,)
    found = check(made.save(tmp_path / "set"), "anemll", reference=MIXED.model(), tokens=4)
    assert {each.check for each in found.failed} == {
        "the client's loop, 14 tokens",
        "the prompt in blocks, 14 tokens",
    }
    assert "0 of 5 tokens" not in str(found)


def _changed(name: str, change: Callable[[Model], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        model = load(folder / name)
        change(model)
        model.save(folder / name, overwrite=True)

    return apply


def _without_rotating(model: Model) -> None:
    for name in ("infer_rotate", "prefill_rotate"):
        del model.program.functions[name]
    model.description = None


def _window(value: int) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        file = folder / "meta.yaml"
        file.write_text(file.read_text().replace("sliding_window: 4", f"sliding_window: {value}"))

    return apply


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_changed(SECOND, _without_rotating), f"infer_rotate of {SECOND}: there is no such function"),
        (_window(9), "model_model_kv_cache_local has 7 slots, and the client goes on up to 9"),
        (_window(0), "sliding_window is '0', not a number from 1 to"),
    ],
)
def test_what_a_client_would_stumble_over(
    good: Path, change: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(good, tmp_path / "set"))
    change(folder)
    try:
        said = "\n".join(str(each) for each in check(folder, "anemll", tokens=2).failed)
    except MiloptError as error:
        said = str(error)
    assert message in said


def test_a_window_is_taken_for_granted_where_the_client_does(good: Path, tmp_path: Path) -> None:
    from milopt.contracts.anemll_reading import read_folder

    yaml: Any = importlib.import_module("yaml")
    folder = Path(shutil.copytree(good, tmp_path / "set"))
    said: Any = yaml.safe_load((folder / "meta.yaml").read_text())
    parameters: Any = said["model_info"]["parameters"]
    for prefix, context, expected in (("gemma3_1b", 1024, 512), ("gemma3", 512, 0), ("gemma2", 1024, 0)):
        parameters |= {"model_prefix": prefix, "context_length": context}
        parameters.pop("sliding_window", None)
        (folder / "meta.yaml").write_text(yaml.safe_dump(said))
        for name in (FIRST, SECOND, "model_embeddings.mlpackage", "model_lm_head.mlpackage"):
            (folder / name.replace("model_", f"{prefix}_", 1)).symlink_to(folder / name)
        made, _ = read_folder(folder)
        assert made is not None
        assert made.parameters.window == expected


@pytest.mark.parametrize(
    ("context", "batch", "window", "tokens", "expected"),
    [
        (512, 64, 0, 16, [(66, 16)]),
        (12, 4, 0, 16, [(6, 5)]),
        (4096, 64, 512, 16, [(504, 16), (672, 16)]),
        (20, 4, 3, 6, [(1, 6), (10, 6)]),
        (20, 4, 8, 6, [(5, 6), (17, 2)]),
        (2, 4, 0, 6, []),
    ],
)
def test_conversations(context: int, batch: int, window: int, tokens: int, expected: list[tuple[int, int]]) -> None:
    assert conversations(context, batch, window, tokens) == expected


def test_masks_of_a_ring() -> None:
    one = FunctionRoles("decode", 1, "input_ids", "", "causal_mask", "current_pos", "sliding_mask")
    decoder = Decoder(one, None, "kv_cache", (2, 1, 9, 1), Window(2, "local", (2, 1, 3, 1)))
    causal = np.where(np.arange(9) <= 4, 0, -np.inf).astype(np.float16)[None, None, None]
    found = given_masks(decoder, one, causal, 4)
    assert found["causal_mask"] is causal
    # slots 0, 1, 2 hold tokens 3, 4, 2
    np.testing.assert_array_equal(found["sliding_mask"][0, 0, 0], [0, 0, -np.inf])
