"""``milopt export``: a Hugging Face folder becomes the set that a device loads."""

from __future__ import annotations

import json as json_format
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from milopt.cli.convert import Quantized
from milopt.cli.options import Debug, Json, Verbose

if TYPE_CHECKING:
    from milopt.exporting import Outcome

__all__ = ["export"]


class _Device(str, Enum):
    iphone = "iphone"
    ipad = "ipad"
    mac = "mac"


class _Embedding(str, Enum):
    first = "first"
    package = "package"
    table = "table"


class _Head(str, Enum):
    last = "last"
    package = "package"


_Bits = Annotated[str | None, typer.Option(metavar="BITS", help="Of this part, where it is not --lut.")]


def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="DIR",
            help="A folder with safetensors, a .gguf file, or the name of a model in Hugging Face's cache.",
        ),
    ],
    destination: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT", help="The folder for the steps; the set is OUT/set.")
    ],
    target: Annotated[_Device, typer.Option(help="The device, whose limits the files keep.")] = _Device.iphone,
    context: Annotated[int, typer.Option("--context", "--max-seq-len", min=3, help="Tokens the model can see.")] = 512,
    batch_size: Annotated[int, typer.Option(min=2, help="Tokens of a prompt fed at once.")] = 64,
    chunks: Annotated[
        str, typer.Option(metavar="N", help="Chunks of layers; auto: as few as the target allows.")
    ] = "auto",
    lut: Annotated[
        str, typer.Option(metavar="BITS", help="Bits of an index into look-up tables: 1, 2, 3, 4, 6, 8, or none.")
    ] = "6",
    lut_embeddings: _Bits = None,
    lut_layers: _Bits = None,
    lut_head: _Bits = None,
    quantized: Annotated[
        Quantized,
        typer.Option(
            help="Weights that the checkpoint has quantized: keep their integers where these give the same floats, "
            "and leave them alone, or make floats of them."
        ),
    ] = Quantized.keep,
    split_head: Annotated[
        int,
        typer.Option(metavar="N", min=0, help="Slices of the vocabulary of at most N, e.g. 16384; 0: a whole head."),
    ] = 0,
    architecture: Annotated[
        str, typer.Option(metavar="NAME", help="Refuse a checkpoint of another; auto: what it says it is.")
    ] = "auto",
    embedding: Annotated[
        _Embedding, typer.Option(help="Where the embedding goes: the first chunk, a package, or an array of rows.")
    ] = _Embedding.package,
    head: Annotated[_Head, typer.Option(help="Where the head goes: the last chunk, or a package.")] = _Head.package,
    pickles: Annotated[
        bool, typer.Option("--pickles", help="Read PyTorch's .bin weights, if they hold nothing but tensors.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare what was there before and after, step by step.")
    ] = True,
    restart: Annotated[
        int | None, typer.Option(metavar="N", help="Do step N and all later ones again, finished or not.")
    ] = None,
    only: Annotated[int | None, typer.Option(metavar="N", help="Do step N alone.")] = None,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Replace a finished set that was made otherwise.")
    ] = False,
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Make a deployment set of a causal language model: convert, rewrite, compress, chunk, verify, save, compile.

    What a finished step wrote is recorded in OUT/export.json with its SHA-256. Given again, the command goes on with
    the first step that is not done, or whose options, inputs or files are others, and ends with the same bytes however
    often it was killed. Exit status: 0 when the set is there, 1 when it computes something else, 2 for bad input.

    Examples:

    * milopt export Llama-3.2-1B-Instruct/ -o llama --target iphone --context 1024 --lut 4 --lut-head 6

    * milopt export SmolLM2-135M-Instruct/ -o smollm2 --chunks 4 --batch-size 128

    * milopt export Llama-3.2-1B-Instruct/ -o llama --only 7
    """
    del debug
    from milopt.cli.console import steps
    from milopt.exporting import Options
    from milopt.exporting import export as run

    common = _bits(lut, "--lut")
    parts = {"embeddings": lut_embeddings, "layers": lut_layers, "head": lut_head}
    options = Options(
        target=target.value,
        context=context,
        batch_size=batch_size,
        chunks=_count(chunks),
        lut={part: common if bits is None else _bits(bits, f"--lut-{part}") for part, bits in parts.items()},
        split_head=split_head,
        architecture=architecture,
        embedding=embedding.value,
        head=head.value,
        verify=verify,
        pickles=pickles,
        quantized=quantized.value,
    )
    with steps(verbose=verbose) as tell:
        outcomes = run(source, destination, options, restart=restart, only=only, force=force, progress=tell)
    if json:
        print(json_format.dumps(_document(destination, outcomes), indent=2, ensure_ascii=False))
    else:
        _print(destination, outcomes)


def _bits(text: str, option: str) -> int | None:
    from milopt.errors import MiloptError

    if text == "none":
        return None
    if not text.isdecimal():
        raise MiloptError(f"{option} takes a number of bits, or none: not {text!r}")
    return int(text)


def _count(text: str) -> int | None:
    from milopt.errors import MiloptError

    if text == "auto":
        return None
    if not text.isdecimal():
        raise MiloptError(f"--chunks takes a number, or auto: not {text!r}")
    return int(text)


def _outcome(each: Outcome) -> str:
    """In a table; why a step can't be done is too long for one, and told below."""
    if each.done:
        return f"done again: {each.reason}" if each.reason else "done"
    return "left out" if each.reason else "kept: nothing changed"


def _sizes(destination: Path) -> dict[str, int]:
    """Bytes of each package, table and file of the set."""
    from milopt.exporting import RESULT

    folder = destination / RESULT
    if not folder.is_dir():
        return {}
    return {
        each.name: sum(file.stat().st_size for file in each.rglob("*") if file.is_file())
        if each.is_dir()
        else each.stat().st_size
        for each in sorted(folder.iterdir())
    }


def _document(destination: Path, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    return {
        "folder": str(destination),
        "steps": [
            {
                "number": each.step.number,
                "name": each.step.name,
                "done": each.done,
                "reason": each.reason,
                "seconds": round(each.seconds, 3),
                "bytes": each.bytes,
                "notes": each.notes,
            }
            for each in outcomes
        ],
        "sizes": _sizes(destination),
    }


def _print(destination: Path, outcomes: Sequence[Outcome]) -> None:
    from milopt.cli.console import output
    from milopt.cli.tables import size
    from milopt.exporting import RESULT
    from milopt.tables import table

    console = output()
    rows: list[list[object]] = [
        [
            each.step.number,
            each.step.name,
            _outcome(each),
            f"{each.seconds:.1f}" if each.done else "",
            size(each.bytes) if each.bytes else "",
        ]
        for each in outcomes
    ]
    console.print(table("Steps", ">", "step", "what became of it", ">seconds", ">on disk", rows=rows))
    for each in outcomes:
        for note in each.notes:
            console.print(f"{each.step.name}: {note}", markup=False, soft_wrap=True)
        if not each.done and each.reason:
            console.print(f"{each.step.name}: left out: {each.reason}", markup=False, soft_wrap=True)
    sizes = _sizes(destination)
    if sizes:
        total: list[object] = ["all", size(sum(sizes.values()))]
        files: list[list[object]] = [[name, size(count)] for name, count in sizes.items()]
        console.print(table("Sizes", "file", ">on disk", rows=[*files, total]))
        console.print(str(destination / RESULT), markup=False)
