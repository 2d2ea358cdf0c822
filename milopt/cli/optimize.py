"""``milopt optimize``: run passes over a package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from milopt.cli.options import (
    AttentionOption,
    Bisect,
    Calibration,
    Debug,
    DeploymentTarget,
    DumpDir,
    Force,
    Functions,
    Json,
    Output,
    Passes,
    PrintAfter,
    Verbose,
    Verify,
    VerifyOption,
    check_output,
)

__all__ = ["optimize"]


def optimize(
    source: Annotated[Path, typer.Argument(metavar="IN", help="The .mlpackage to read; it is left as it is.")],
    destination: Output,
    passes: Passes = None,
    attention: AttentionOption = None,
    calibration: Calibration = None,
    minimum_deployment_target: DeploymentTarget = None,
    function: Functions = None,
    verify: VerifyOption = Verify.stage,
    bisect: Bisect = False,
    print_after: PrintAfter = None,
    dump_dir: DumpDir = None,
    json: Json = False,
    force: Force = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Rewrite a package with passes, compare it with what it was, and save it.

    Exit status: 0 when the verdict holds, 1 when it does not (nothing is written then), 2 for bad input.

    Examples:

    * milopt optimize in.mlpackage -o out.mlpackage

    * milopt optimize in.mlpackage -o out.mlpackage --passes 'fuse-sdpa,palettize{bits=6}' --verify each

    * milopt optimize in.mlpackage -o out.mlpackage --passes 'budget{size=0.3}' --calibration stats.safetensors

    * milopt optimize old.mlpackage -o new.mlpackage --minimum-deployment-target iOS18

    * milopt optimize in.mlpackage -o out.mlpackage --passes 'canonicalize,ct:common::fuse_gelu_exact' --bisect

    * milopt optimize in.mlpackage -o out.mlpackage --print-after fuse-sdpa --dump-dir texts/

    * milopt optimize in.mlpackage -o out.mlpackage --json | jq '.report.passes[] | [.name, .applied, .misses[].reason]'
    """
    del debug
    check_output(destination, force=force)
    from milopt.cli.work import Watching, optimize_and_save, pipeline_of
    from milopt.package import load

    pipeline = pipeline_of(passes, minimum_deployment_target, calibration)
    if attention is not None:
        from milopt.passes.attention_policy import with_attention

        pipeline = with_attention(pipeline, attention.value)
    watching = Watching.of(
        pipeline,
        destination,
        verify=verify,
        bisect=bisect,
        print_after=print_after or (),
        dump_dir=dump_dir,
        json=json,
        force=force,
    )
    model = load(source)
    for name in function or ():
        model.function(name)
    optimize_and_save(
        model,
        pipeline,
        destination,
        source=source,
        functions=function,
        verify=verify,
        force=force,
        verbose=verbose,
        watching=watching,
    )
