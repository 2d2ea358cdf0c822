"""The steps from a Hugging Face folder to a set, each from the saved files of those before."""

from __future__ import annotations

import gc
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from milopt.errors import VerificationError
from milopt.exporting.compiling import compile_packages, impossible
from milopt.exporting.compressing import PalettizeParts
from milopt.exporting.durable import FINDER
from milopt.exporting.errors import ExportError
from milopt.exporting.journal import Key
from milopt.exporting.options import Options
from milopt.exporting.rows import rows_as_numbers
from milopt.exporting.running import Step, Tell
from milopt.exporting.sources import (
    check_architecture,
    fingerprint,
    may_be_quantized,
    same_architecture,
    versions,
)
from milopt.mil import mb
from milopt.package import Model, load
from milopt.pipeline import Pass, Pipeline
from milopt.sets.dividing import chunk
from milopt.sets.errors import SetError
from milopt.sets.loading import load as load_set
from milopt.sets.saving import MANIFEST
from milopt.sets.targets import target_named, warnings_for
from milopt.sets.verifying import verify

if TYPE_CHECKING:
    from milopt.huggingface.kept import Kept

__all__ = ["RESULT", "Work", "steps_of"]

RESULT = "set"
_MODEL = "model.mlpackage"
_SET = "set"
_VERDICT = "verdict.json"
# coremltools notes the day, and the same export gives the same bytes on another
_DATE = "com.github.apple.coremltools.conversion_date"
_CONVERT, _REWRITE, _COMPRESS, _CHUNK, _VERIFY = "1-convert", "2-rewrite", "3-compress", "4-chunk", "5-verify"


def steps_of(source: str | Path, root: Path, options: Options) -> tuple[Step, ...]:
    """The steps of an export of ``source`` to the folder ``root``."""
    work = Work(source, root, options)
    return (
        Step(1, "convert", _CONVERT, work.convert, work.convert_key),
        Step(2, "rewrite", _REWRITE, work.rewrite, work.rewrite_key, (_CONVERT,)),
        Step(3, "compress", _COMPRESS, work.compress, work.compress_key, (_REWRITE,)),
        Step(4, "chunk", _CHUNK, work.chunk, work.chunk_key, (_COMPRESS,)),
        Step(5, "verify", _VERIFY, work.verify, work.verify_key, (_COMPRESS, _CHUNK)),
        Step(6, "save", RESULT, work.save, dict, (_CHUNK, _VERIFY)),
        Step(7, "compile", "compiled", work.compile, _platform_key, (RESULT,), impossible(7)),
    )


def _platform_key() -> Key:
    return {"versions": versions()}


@contextmanager
def _as_if_new() -> Generator[None]:
    """As in a new process: coremltools numbers unnamed ops from 0, and what earlier steps had in memory is gone.

    Programs refer to themselves in circles, and hold their weights.
    """
    gc.collect()
    before, mb.name_count = mb.name_count, defaultdict(int)
    try:
        yield
    finally:
        mb.name_count = before


@dataclass(frozen=True)
class Work:
    """What the steps do."""

    source: str | Path
    root: Path
    options: Options

    @cached_property
    def rewriting(self) -> Pipeline:
        """The default passes but for compression, and what the head is to become."""
        kept = [str(each) for each in Pipeline.default().passes if each.name not in ("palettize", "quantize")]
        limit = self.options.split_head
        return Pipeline.parse(",".join([*kept, *([f"split-head{{limit={limit}}}"] if limit else [])]))

    @cached_property
    def _sources(self) -> dict[str, str]:
        check_architecture(self.source, self.options.architecture)
        return fingerprint(self.source, pickles=self.options.pickles)

    def convert_key(self) -> Key:
        given = self.options
        return {
            "input": self._sources,
            "context": given.context,
            "batch size": given.batch_size,
            "pickles": given.pickles,
            **({"quantized": given.quantized} if may_be_quantized(self.source) else {}),
            "versions": versions(),
        }

    def convert(self, fresh: Path, tell: Tell) -> list[str]:
        from milopt.huggingface import convert

        given, kept = self.options, list[str]()
        with _as_if_new():
            model = convert(
                self.source,
                context=given.context,
                query_lengths=(1, given.batch_size),
                pickles=given.pickles,
                quantized="keep" if given.quantized == "keep" else "floats",
                kept=lambda each: kept.extend(_told(each)),
                progress=tell,
            )
            architecture = model.metadata["milopt.architecture"]
            if given.architecture != "auto" and not same_architecture(architecture, given.architecture):
                raise ExportError(f"the checkpoint's architecture is {architecture}, not {given.architecture}")
            if "milopt.query_lengths" not in model.metadata:
                raise ExportError(
                    f"{architecture} is no causal language model: use `milopt convert`, and then `milopt chunk`"
                )
            model.metadata.pop(_DATE, None)
            model.save(fresh / _MODEL)
        return [f"{architecture}: functions {', '.join(model.functions)}", *kept]

    def rewrite_key(self) -> Key:
        return {"passes": str(self.rewriting), "verify": self.options.verify, "versions": versions()}

    def rewrite(self, fresh: Path, tell: Tell) -> list[str]:
        with _as_if_new():
            model = load(self.root / _CONVERT / _MODEL)
            self._run(self.rewriting, model, tell)
            model.save(fresh / _MODEL)
        return [str(self.rewriting)]

    def compress_key(self) -> Key:
        return {"bits": self.options.bits, "verify": self.options.verify, "versions": versions()}

    def compress(self, fresh: Path, tell: Tell) -> list[str]:
        bits = self.options.bits
        with _as_if_new():
            model = load(self.root / _REWRITE / _MODEL)
            if any(bits.values()):
                self._run(Pipeline((PalettizeParts.of(model, bits),)), model, tell)
            model.save(fresh / _MODEL)
        return [", ".join(f"{part}: {f'{each} bits' if each else 'as they are'}" for part, each in bits.items())]

    def _run(self, pipeline: Pipeline, model: Model, tell: Tell) -> None:
        def before(each: Pass) -> None:
            tell(str(each))

        def after(each: Pass, _report: object, _model: Model) -> None:
            tell(f"{each}, then compare")

        if self.options.verify:
            pipeline.run(model, verify="stage", before=before, callbacks=(after,))
        else:
            pipeline.run(model, before=before)

    def chunk_key(self) -> Key:
        given = self.options
        return {
            "target": given.target,
            "chunks": given.chunks or "auto",
            "embedding": given.embedding,
            "head": given.head,
            "versions": versions(),
        }

    def chunk(self, fresh: Path, tell: Tell) -> list[str]:
        given, target = self.options, target_named(self.options.target)
        with _as_if_new():
            model = load(self.root / _COMPRESS / _MODEL)
            if given.embedding == "table":
                rows_as_numbers(model)
            made = chunk(
                model,
                count=given.chunks,
                max_bytes=None if given.chunks else target.limit - 1,
                embedding=given.embedding,
                head=given.head,
            )
            if given.chunks is None:
                made.notes.append(target.source)
            tell("write the parts")
            made.save(fresh / _SET)
        return [*made.notes, *(f"warning: {each}" for each in warnings_for(made, given.target))]

    def verify_key(self) -> Key:
        return {"verify": self.options.verify, "versions": versions()}

    def verify(self, fresh: Path, tell: Tell) -> list[str]:
        told = "not compared, as it was wanted"
        if self.options.verify:
            tell("run the package and the set")
            with _as_if_new():
                verdict = verify(load(self.root / _COMPRESS / _MODEL), load_set(self.root / _CHUNK / _SET))
            told = str(verdict)
            if not verdict:
                raise VerificationError(f"the set computes something else than the package: {told}", verdict)
        (fresh / _VERDICT).write_text(json.dumps({"verdict": told}, indent=1) + "\n", encoding="utf-8")
        return [told]

    def save(self, fresh: Path, tell: Tell) -> list[str]:
        """The very files of the chunks, under a second name: they take no room, and are not written again."""
        made = self.root / _CHUNK / _SET
        if not (made / MANIFEST).is_file():
            raise SetError(f"{made} is no deployment set")
        tell("put the set in its place")
        shutil.copytree(made, fresh, dirs_exist_ok=True, copy_function=_link, ignore=shutil.ignore_patterns(FINDER))
        return []

    def compile(self, fresh: Path, tell: Tell) -> list[str]:
        return compile_packages(self.root / RESULT, fresh, tell)


def _told(kept: Kept) -> list[str]:
    """What became of the weights that the checkpoint has quantized."""
    if not any(each.form for each in kept.fates):
        return kept.lines()
    return [*kept.lines(), "look-up tables are for floats: --quantized floats makes them of these weights too"]


def _link(source: str, destination: str) -> str:
    try:
        os.link(source, destination)
    except OSError:  # a file system without links
        return str(shutil.copyfile(source, destination))
    return destination
