"""One row of docs/caches.md: a decoder family, or a package by others, through the passes on attention and caches."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks.cache_counts import copies, fused, sizes, written
from milopt.huggingface import convert
from milopt.huggingface.programcheck import rounded_weights
from milopt.huggingface.routes import Route
from milopt.metrics import Exact
from milopt.package import Model, load
from milopt.passes.masks import FiniteMask
from milopt.pipeline import Pipeline
from milopt.reports import Report
from milopt.session import Session
from milopt.upgrading import Upgrade
from milopt.verify import compare
from tests.huggingface.families import FAMILIES, WINDOW, Family
from tests.models.masking import fill_masks
from tests.models.packages import refill

PASSES = "canonicalize,fuse-sdpa,kv-to-state,pack-gqa"
RINGS = "canonicalize,fuse-sdpa,kv-to-state{update=ring},pack-gqa"
PROMPT, STEPS, CONTEXT, POSITIONS = WINDOW + 2, 200, 224, 256
# What fp16 costs depends on the model: where scores are large, the rounding of a query moves the weights by per cents.
# So the measure is transformers itself in half precision, angles in fp32, on the same tokens: two draws of the same
# roundings, whose largest of 200 differ by less than a factor of 2.
TOLERANCE = 2.0


@dataclass(frozen=True)
class Row:
    """One program. ``sites`` are attentions, as the op or written out, ``tiles`` ops that repeat keys or values, and
    ``sizes`` ops that compute with sizes. ``margin`` is that of the reference at the first token that fp16 has
    otherwise, ``error`` the largest of fp16's logits until then, both as shares of the largest logit; ``theirs`` is
    that of transformers in half precision, over all tokens.
    """

    family: str
    route: str
    shapes: str
    sites: int
    fused: int
    refused: int
    reason: str
    tiles: int
    sizes: int
    states: int
    exact: int = 0
    declared: int = 0
    error: float = 0.0
    theirs: float = 0.0
    margin: float | None = None

    @property
    def counts(self) -> tuple[Any, ...]:
        return self.sites, self.fused, self.refused, self.reason, self.tiles, self.sizes, self.states

    def __str__(self) -> str:
        refused = f"{self.refused}: {self.reason}" if self.refused else "0"
        margin = "no difference" if self.margin is None else f"{self.margin:.1e}"
        cells = [self.family, self.route, self.shapes, self.sites, self.fused, refused, self.tiles, self.sizes]
        cells += [self.states, f"{self.exact}/{STEPS}", f"{self.declared}/{STEPS}"]
        cells += [f"{self.error:.1e}", f"{self.theirs:.1e}", margin]
        return f"| {' | '.join(map(str, cells))} |"


@dataclass(frozen=True)
class Found:
    """One package by others: attentions ``written`` out and ``present`` as ops; ``states`` is how many tensors became
    states, or why none did.
    """

    package: str
    written: int
    present: int
    fused: int
    refused: int
    reason: str
    tiles: int
    states: str
    verified: str

    def __str__(self) -> str:
        refused = f"{self.refused}: {self.reason}" if self.refused else "0"
        cells = [self.package, self.written, self.present, self.fused, refused, self.tiles, self.states, self.verified]
        return f"| {' | '.join(map(str, cells))} |"


def decoder(name: str) -> Family:
    """A family with room for all tokens. Where angles depend on the length, no text is long enough to change them."""
    family = FAMILIES[name]
    settings = {**family.settings}
    settings["n_positions" if "n_positions" in settings else "max_position_embeddings"] = POSITIONS
    if "original_max_position_embeddings" in settings:
        settings["original_max_position_embeddings"] = POSITIONS
        settings["rope_parameters"] = {**settings["rope_parameters"], "original_max_position_embeddings": POSITIONS}
    return replace(family, settings=settings)


def converted(family: Family, source: Any, shapes: str, route: Route) -> Model:
    lengths: Any = "flexible" if shapes == "flexible" else (1, WINDOW)
    options: dict[str, Any] = {"context": CONTEXT, "query_lengths": lengths, "route": route}
    model: Model = convert(source, **options)
    return model


def counted(family: str, route: str, shapes: str, model: Model, passes: str) -> Row:
    """Run the passes on ``model``, and say what they did, for one function."""
    functions = len(model.functions)
    sites = (written(model) + fused(model)) // functions
    report = Pipeline.parse(passes).run(model)
    parts = {part.name: part for part in report.parts}
    refused = written(model) // functions
    return Row(
        family,
        route,
        shapes,
        sites,
        fused(model) // functions,
        refused,
        "; ".join(_reasons(parts["fuse-sdpa"])) if refused else "",
        copies(model) // functions,
        sizes(model) // functions,
        parts["kv-to-state"].applied // functions,
    )


def _reasons(report: Report) -> list[str]:
    return list(dict.fromkeys(miss.reason for miss in report.misses if miss.declined))


def measure(name: str, shapes: str, *, routes: Sequence[Route] = ("trace", "export"), steps: int = STEPS) -> list[Row]:
    """The rows of one family with shapes of one kind; of the second route only where its counts are others."""
    torch.set_num_threads(1)
    family = decoder(name)
    source = _representable(family.make())
    wanted, rows = _reference(source, steps), list[Row]()
    for route in routes:
        model = converted(family, source, shapes, route)
        rings = model.clone() if family.window and shapes == "static" and not rows else None
        row = counted(name, route, shapes, model, PASSES)
        if not rows or row.counts != rows[0].counts:
            rows.append(_asked(row, model, wanted))
        if rings is not None:
            rows.append(_asked(counted(name, route, "static, rings", rings, RINGS), rings, wanted))
    return rows


@dataclass(frozen=True)
class Reference:
    """What transformers says, with weights rounded as the program's are: all tokens, and the logits of each.

    ``error`` is that of its own logits in half precision, as :attr:`Row.error`.
    """

    tokens: list[int]
    logits: np.ndarray[Any, Any]
    error: float


def _representable(model: Any) -> Any:
    """The model with norms of Gemma's kind moved so little that fp16 holds 1 + w, which the program's constants are."""
    for module in model.modules():
        if type(module).__name__.startswith("Gemma") and type(module).__name__.endswith("RMSNorm"):
            module.weight.data = (1 + module.weight.data).half().float() - 1
    return model


def _reference(source: Any, steps: int) -> Reference:
    drawn = torch.randint(source.config.vocab_size, (PROMPT,), generator=torch.Generator().manual_seed(3))
    tokens = [int(each) for each in drawn]
    with torch.no_grad(), rounded_weights(source, True):
        for _ in range(steps):
            tokens.append(int(source(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
        logits = source(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].numpy()[PROMPT - 1 : -1]
    with torch.no_grad():
        rounded = _half(source)(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].float().numpy()
    errors = np.abs(rounded[PROMPT - 1 : -1] - logits).max(-1) / np.abs(logits).max(-1)
    return Reference(tokens, logits, float(errors.max()))


def _half(source: Any) -> Any:
    """The model in half precision, but for the frequencies of its angles."""
    made = copy.deepcopy(source).half()
    exact = dict(source.named_buffers())
    for name, buffer in made.named_buffers():
        if "inv_freq" in name:
            buffer.data = exact[name].data.clone()
    return made


def _asked(row: Row, model: Model, wanted: Reference) -> Row:
    """The row with the tokens that the program gives."""
    exact, _, _ = _agree(Session(model, precision="float64"), wanted)
    declared, error, margin = _agree(Session(model), wanted)
    return replace(row, exact=exact, declared=declared, error=error, theirs=wanted.error, margin=margin)


def _agree(session: Session, wanted: Reference) -> tuple[int, float, float | None]:
    """How many tokens are the same, the largest error of the logits until then, and the margin at the first other."""
    logits, error = session.feed(wanted.tokens[:PROMPT], last_only=True)[-1], 0.0
    for step, token in enumerate(wanted.tokens[PROMPT:]):
        right = wanted.logits[step]
        scale = float(np.abs(right).max())
        error = max(error, float(np.abs(logits - right).max()) / scale)
        if (mine := int(logits.argmax())) != token:
            return step, error, float(right[token] - right[mine]) / scale
        logits = session.feed([token])[-1]
    return len(wanted.logits), error, None


def found(path: Path) -> Found:
    """One package through the same passes."""
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        given = refill(path, Path(folder)) if path.parent.name == "graphs" else path
        model = load(given)
        Upgrade("iOS18").run(model)
        if given is not path:
            fill_masks(model)
        FiniteMask().run(model)  # 0 * -inf, which one graph computes, leaves nothing to compare
        before = model.clone()
        sites, present = written(model), fused(model)
        report = Pipeline.parse(PASSES).run(model)
        parts = {part.name: part for part in report.parts}
        cache = parts["kv-to-state"]
        states = str(cache.applied) if cache.applied else "; ".join(_reasons(cache) or cache.notes)
        reasons = _reasons(parts["fuse-sdpa"])
        metric = parts["fuse-sdpa"].metric or Exact()
        verdict = compare(before, model, trials=1, metric=metric, signature=cache.signature)
        told = " ".join(f"{'' if verdict else 'no: '}{verdict}".split()).replace("|", "\\|")
        reason = "; ".join(reasons)
        left = written(model)
        return Found(path.stem, sites, present, fused(model), left, reason, copies(model), states, told)
