"""``milopt contract``: a decoder becomes what a client of Core ML language models loads."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from milopt.cli.options import Debug, Verbose

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from milopt.contracts.findings import Finding
    from milopt.package import Model

__all__ = ["contract"]


class _Style(str, Enum):
    anemll = "anemll"
    coreml_llm = "coreml-llm"


def contract(
    source: Annotated[Path, typer.Argument(metavar="PKG", help="The .mlpackage of a decoder; it is left as it is.")],
    destination: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The folder for the client.")],
    style: Annotated[_Style, typer.Option(help="Whose contract it is to keep.")] = _Style.anemll,
    prefix: Annotated[
        str | None, typer.Option(metavar="NAME", help="How names begin: model; coreml-llm: the model's name.")
    ] = None,
    count: Annotated[int | None, typer.Option(metavar="N", help="The number of chunks.")] = None,
    max_bytes: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Instead: the most that a weight file may have, e.g. 950MB.")
    ] = None,
    at: Annotated[
        str | None, typer.Option(metavar="LAYERS", help="Instead: cut behind these layers, from 0, e.g. 7,15.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", help="Which function takes prompts: the longest unless given.")
    ] = None,
    slices: Annotated[
        int | None, typer.Option(metavar="N", help="How many outputs the logits have: 16 for Qwen, else 8.")
    ] = None,
    argmax: Annotated[
        bool, typer.Option("--argmax", help="anemll: the head gives the largest logit of each slice and its place.")
    ] = False,
    files: Annotated[
        Path | None,
        typer.Option("--source", metavar="MODEL", help="The model's folder, whose config and tokenizer are copied."),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Hold the client's conversation with both, in float64.")
    ] = True,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace DIR if it is of this form.")] = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Write the folder that a client loads: packages under its names, and what it reads beside them.

    anemll: embeddings, chunks with functions infer and prefill on one state, a head in slices, meta.yaml; with --argmax
    the head chooses within each slice, which clients of Anemll 0.3.5 know, and takes no temperature. coreml-llm:
    one package that chooses the next token, written to by mask, model_config.json, hf_model/. The program has fixed
    shapes, a function for one token (anemll: and one for more), and one state (kv-to-state{layout=unified}), or with a
    sliding window perhaps two for anemll (kv-to-state{layout=unified,update=ring}: the form of Gemma 3). ANEMLL's
    clients load compiled packages, which macOS makes: xcrun coremlcompiler compile PKG DIR. `milopt check-contract DIR`
    checks all of it. Exit status: 0 when the folder answers as the package does, 1 when not (nothing is written then),
    2 for bad input.

    Examples:

    * milopt contract model.mlpackage -o llama --style anemll --count 2 --prefix llama --source Llama-3.2-1B/

    * milopt contract model.mlpackage -o llama --style coreml-llm --source Llama-3.2-1B/
    """
    del debug
    from milopt.cli.console import output, steps
    from milopt.cli.tables import size
    from milopt.errors import MiloptError
    from milopt.package import load
    from milopt.sets.anemll_files import source_files
    from milopt.tables import table

    cut = _Cut(count, max_bytes, at, batch_size, slices, prefix or "model", argmax)
    _check_destination(style, destination, cut, force=force)
    if files is not None and not files.is_dir():
        raise MiloptError(f"{files}: no such folder")
    carried = source_files(files) if files is not None else {}
    if files is not None and not carried:
        raise MiloptError(f"{files} has no config.json and no tokenizer")
    found: Finding | None = None
    with steps(verbose=verbose) as tell:
        tell(f"load {source.name}")
        model = load(source)
        made = _anemll(model, cut, carried) if style is _Style.anemll else _coreml_llm(model, prefix or "", carried)
        if verify:
            tell("compare")
            found = made.compare()
        if found is None or found.passed:
            tell(f"save {destination.name}")
            made.save(destination, overwrite=force)
    console = output()
    rows = [[name, size(bytes_)] for name, bytes_ in made.sizes.items()]
    console.print(table("Packages", "file", ">weights", rows=rows))
    for note in made.notes:
        console.print(note, markup=False, soft_wrap=True)
    if found is not None:
        console.print(str(found), markup=False, soft_wrap=True)
        if not found.passed:
            raise typer.Exit(1)
    console.print(made.hint, markup=False)
    console.print(str(destination), markup=False)


@dataclass(frozen=True)
class _Cut:
    """How a set is cut."""

    count: int | None
    max_bytes: str | None
    at: str | None
    batch: int | None
    slices: int | None
    prefix: str
    argmax: bool


@dataclass(frozen=True)
class _Made:
    """A folder for a client, not yet written."""

    sizes: Mapping[str, int]
    notes: Sequence[str]
    hint: str
    compare: Callable[[], Finding]
    save: Callable[..., Path]


def _check_destination(style: _Style, destination: Path, cut: _Cut, *, force: bool) -> None:
    from milopt.errors import MiloptError
    from milopt.sets import anemll_files, coreml_llm
    from milopt.sets.saving import check_destination

    if style is _Style.anemll:
        check_destination(destination, force=force, marker=anemll_files.META, what="ANEMLL set")
        return
    if any(each is not None for each in (cut.count, cut.max_bytes, cut.at, cut.batch, cut.slices)):
        raise MiloptError("coreml-llm is one package of a function for one token: it is not cut, and takes no batch")
    if cut.argmax:
        raise MiloptError("--argmax is for anemll: the package of coreml-llm chooses the next token anyhow")
    check_destination(destination, force=force, marker=coreml_llm.CONFIG, what="CoreML-LLM folder")


def _anemll(model: Model, cut: _Cut, carried: Mapping[str, bytes]) -> _Made:
    from milopt.cli.chunk import layers, size_in_bytes
    from milopt.contracts.anemll_checking import compare_with
    from milopt.sets.anemll import anemll_set

    alone = cut.count is None and cut.max_bytes is None and cut.at is None
    made = anemll_set(
        model,
        count=1 if alone else cut.count,
        max_bytes=size_in_bytes(cut.max_bytes) if cut.max_bytes is not None else None,
        at=layers(cut.at) if cut.at is not None else None,
        batch=cut.batch,
        prefix=cut.prefix,
        slices=cut.slices,
        argmax=cut.argmax,
        carried=carried,
    )
    hint = "clients load compiled packages: on macOS, xcrun coremlcompiler compile PKG DIR"
    return _Made(made.sizes(), made.notes, hint, lambda: compare_with(model, made), made.save)


def _coreml_llm(model: Model, name: str, carried: Mapping[str, bytes]) -> _Made:
    from milopt.contracts.coreml_llm_checking import compare_monolith
    from milopt.sets.coreml_llm import PACKAGE, monolith
    from milopt.sets.deployment import weight_bytes

    made = monolith(model, name=name, carried=carried)
    sizes = {PACKAGE: weight_bytes(made.model)}
    hint = "the client compiles the package when it loads it"
    return _Made(sizes, made.notes, hint, lambda: compare_monolith(model, made), made.save)
