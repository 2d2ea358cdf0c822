"""``milopt convert``: a Hugging Face model becomes an optimized package."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from milopt.cli.options import (
    AttentionOption,
    Debug,
    Force,
    Output,
    Passes,
    Verbose,
    Verify,
    VerifyOption,
    check_output,
)

if TYPE_CHECKING:
    from milopt.huggingface.kept import Kept
    from milopt.pipeline import Pipeline

__all__ = ["Logits", "Precision", "Quantized", "Route", "Shapes", "convert"]


class Precision(str, Enum):
    """What the weights are stored as: floats, integers per block, or indices into look-up tables."""

    float32 = "float32"
    float16 = "float16"
    int4 = "int4"
    int8 = "int8"
    lut4 = "lut4"
    lut6 = "lut6"
    lut8 = "lut8"


class Route(str, Enum):
    """How the model's code is read: by torch.jit.trace or by torch.export."""

    trace = "trace"
    export = "export"


class Shapes(str, Enum):
    """One function for each number of tokens fed at once, or one of ranged shapes for any number."""

    fixed = "fixed"
    ranged = "ranged"


class Logits(str, Enum):
    """Of which tokens logits come out: of all that are fed, or of the last."""

    all = "all"
    last = "last"


class Quantized(str, Enum):
    """What becomes of weights that a checkpoint has quantized: integers where these are exact, or floats."""

    keep = "keep"
    floats = "floats"


# A block of 32 is what Apple's own "On Device Llama 3.1 with Core ML" uses for int4.
_COMPRESSION = {
    Precision.int4: "quantize{dtype=int4,block_size=32}",
    Precision.int8: "quantize{dtype=int8,block_size=32}",
    Precision.lut4: "palettize{bits=4}",
    Precision.lut6: "palettize{bits=6}",
    Precision.lut8: "palettize{bits=8}",
}


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="A folder with safetensors, a .gguf file, or the name of a model in Hugging Face's cache.",
        ),
    ],
    destination: Output,
    context: Annotated[int, typer.Option("--context", "--max-seq-len", min=2, help="Tokens the model can see.")] = 512,
    query_lengths: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Tokens fed at once, 1,64 by default (an encoder: the context); every number becomes a function. "
            "'flexible': the same as --shapes ranged.",
        ),
    ] = None,
    shapes: Annotated[
        Shapes, typer.Option(help="A function for each number of tokens fed at once, or one of ranges for any number.")
    ] = Shapes.fixed,
    batch_size: Annotated[
        int | None, typer.Option(min=2, help="The prefill block: the same as --query-lengths 1,N.")
    ] = None,
    sequences: Annotated[int, typer.Option("--sequences", min=1, help="Independent sequences fed at once.")] = 1,
    logits: Annotated[Logits, typer.Option(help="Logits of all tokens fed, or of the last.")] = Logits.all,
    route: Annotated[Route, typer.Option(help="How the model's code is read.")] = Route.trace,
    precision: Annotated[
        Precision | None, typer.Option(help="How weights are stored; the default is the default pipeline's.")
    ] = None,
    quantized: Annotated[
        Quantized | None,
        typer.Option(
            help="Weights that the checkpoint has quantized: keep their integers where these give the same floats (the "
            "default, unless --precision says how weights are stored), or floats."
        ),
    ] = None,
    passes: Passes = None,
    attention: AttentionOption = None,
    pickles: Annotated[
        bool, typer.Option("--pickles", help="Read PyTorch's .bin weights, if they hold nothing but tensors.")
    ] = False,
    no_passes: Annotated[
        bool, typer.Option("--no-passes", help="Only convert: past and present as inputs/outputs.")
    ] = False,
    verify: VerifyOption = Verify.stage,
    force: Force = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Convert a Hugging Face model, optimize it, compare it with what it was, and save it.

    Causal language models, and encoders of text or images. The tokenizer travels in the package, so that
    `milopt generate` needs nothing else. Nothing is downloaded.

    Examples:

    * milopt convert SmolLM2-135M-Instruct/ -o smollm2.mlpackage --context 2048

    * milopt convert model.gguf -o model.mlpackage --precision lut4 --batch-size 128

    * milopt convert DIR/ -o apple.mlpackage --shapes ranged --passes 'canonicalize,fp16-safe-norm,fuse-sdpa,contract'

    * milopt convert all-MiniLM-L6-v2/ -o minilm.mlpackage --max-seq-len 128 --precision float16
    """
    del debug
    check_output(destination, force=force)
    lengths = _lengths(query_lengths, batch_size, shapes)
    pipeline = _pipeline(passes, no_passes, precision)
    if attention is not None:
        from milopt.passes.attention_policy import with_attention

        pipeline = with_attention(pipeline, attention.value)
    from milopt.cli.console import steps
    from milopt.cli.work import optimize_and_save
    from milopt.huggingface import convert as convert_model

    told: list[Kept] = []
    usual = Quantized.keep if precision is None else Quantized.floats
    with steps(verbose=verbose) as tell:
        model = convert_model(
            source,
            context=context,
            query_lengths=lengths,
            dtype="float32" if precision is Precision.float32 else "float16",
            batch=sequences,
            route=route.value,
            logits=logits.value,
            pickles=pickles,
            quantized=(quantized or usual).value,
            kept=told.append,
            progress=tell,
        )
    optimize_and_save(model, pipeline, destination, verify=verify, force=force, verbose=verbose)
    for each in told:
        _print_kept(each, everything=verbose)


def _print_kept(kept: Kept, *, everything: bool) -> None:
    """A table by kind and form; with ``everything`` also a line for each matrix."""
    from milopt.cli.console import output
    from milopt.cli.tables import size
    from milopt.tables import table

    console = output()
    rows: list[list[object]] = [
        [each.kind, each.form, each.tensors, each.kept, size(each.before), size(each.after), each.reason]
        for each in kept.rows()
    ]
    columns = ("type", "stored as", ">tensors", ">kept", ">in the file", ">converted", "why not")
    console.print(table("Quantized weights", *columns, rows=rows))
    console.print(str(kept), markup=False)
    for fate in kept.fates if everything else ():
        console.print(str(fate), markup=False, soft_wrap=True)


def _lengths(text: str | None, block: int | None, shapes: Shapes) -> tuple[int, ...] | Literal["flexible"] | None:
    from milopt.errors import MiloptError

    if shapes is Shapes.ranged:
        if block is not None or text not in (None, "flexible"):
            raise MiloptError("--shapes ranged takes any number of tokens: leave out --query-lengths and --batch-size")
        return "flexible"
    if block is not None:
        if text is not None:
            raise MiloptError("--query-lengths and --batch-size exclude each other")
        return (1, block)
    if text is None:
        return None
    if text == "flexible":
        return "flexible"
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise MiloptError(f"--query-lengths is a list like 1,64, or 'flexible', not {text!r}") from None


def _pipeline(passes: str | None, no_passes: bool, precision: Precision | None) -> Pipeline:
    """The passes to run: those given, or the default ones with the compression that ``precision`` names."""
    from milopt.errors import MiloptError
    from milopt.pipeline import Pipeline

    if passes is not None and no_passes:
        raise MiloptError("--passes and --no-passes exclude each other")
    if passes is not None or no_passes:
        if precision is not None and precision in _COMPRESSION:
            raise MiloptError(
                f"--precision {precision.value} is a pass of its own; write {_COMPRESSION[precision]} into --passes"
            )
        return Pipeline(()) if passes is None else Pipeline.parse(passes)
    default = Pipeline.default()
    if precision is None:
        return default
    kept = [str(each) for each in default.passes if each.name not in ("palettize", "quantize")]
    return Pipeline.parse(",".join([*kept, *([_COMPRESSION[precision]] if precision in _COMPRESSION else [])]))
