"""What memory converting a checkpoint takes, as a share of the checkpoint's size in fp16.

    python -m benchmarks.checkpoints [--layers 16] [--hidden 2048] [--context 128] [--lengths 1,16] [--folder DIR]
                                     [--with-command]

A Llama of random weights (vocabulary 32,000, MLP four times as wide, a quarter as many heads of keys and values) is
written to a temporary folder as sharded bf16 safetensors, converted to fp16 with all self-checks, and saved, in a
process of its own. With ``--with-command`` another process runs ``milopt convert --precision float16`` on it, which
also optimizes the program and compares it with what it was. In ``--folder`` there has to be room for four times its
size. Memory is the process's anonymous memory (``RssAnon`` of ``/proc/self/status``: mapped files apart), sampled every
4 ms, less what the imports left. Linux only. Writes benchmarks/results/checkpoints.md.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.memory import AnonymousPeak, anonymous_bytes

HERE = Path(__file__).resolve().parent
VOCABULARY = 32_000
HEAD = 64
_OPTIONS = ("--precision", "float16")
_MODULES = ("attaching", "checkpoints", "conversion", "lowering", "observing", "programcheck", "tracing")


@dataclass(frozen=True)
class Shape:
    layers: int
    hidden: int

    @property
    def heads(self) -> int:
        return self.hidden // HEAD

    @property
    def parameters(self) -> int:
        kept = self.heads // 4 * HEAD
        layer = self.hidden * (2 * self.hidden + 2 * kept + 12 * self.hidden + 2)
        return self.layers * layer + 2 * VOCABULARY * self.hidden + self.hidden


@dataclass(frozen=True)
class Step:
    """After a step: seconds, and anonymous bytes now and at most until now, beyond the imports'."""

    name: str
    seconds: float
    now: int
    peak: int


def write_checkpoint(folder: Path, shape: Shape) -> None:
    """A shard for every layer, and one for what is no layer."""
    torch: Any = importlib.import_module("torch")
    save: Any = importlib.import_module("safetensors.torch").save_file
    generator = torch.Generator().manual_seed(0)

    def matrix(rows: int, columns: int) -> Any:
        return (torch.randn(rows, columns, generator=generator) * columns**-0.5).to(torch.bfloat16)

    def norm() -> Any:
        return (torch.rand(shape.hidden, generator=generator) + 0.5).to(torch.bfloat16)

    def shards() -> Iterator[dict[str, Any]]:
        names = ("model.embed_tokens.weight", "lm_head.weight")
        yield {name: matrix(VOCABULARY, shape.hidden) for name in names} | {"model.norm.weight": norm()}
        kept, inner = shape.heads // 4 * HEAD, 4 * shape.hidden
        sizes = {
            "self_attn.q_proj": (shape.hidden, shape.hidden),
            "self_attn.k_proj": (kept, shape.hidden),
            "self_attn.v_proj": (kept, shape.hidden),
            "self_attn.o_proj": (shape.hidden, shape.hidden),
            "mlp.gate_proj": (inner, shape.hidden),
            "mlp.up_proj": (inner, shape.hidden),
            "mlp.down_proj": (shape.hidden, inner),
        }
        for layer in range(shape.layers):
            start = f"model.layers.{layer}"
            matrices = {f"{start}.{name}.weight": matrix(*size) for name, size in sizes.items()}
            yield matrices | {
                f"{start}.{name}.weight": norm() for name in ("input_layernorm", "post_attention_layernorm")
            }

    folder.mkdir()
    places: dict[str, str] = {}
    for number, tensors in enumerate(shards()):
        name = f"model-{number:05d}.safetensors"
        save(tensors, folder / name, {"format": "pt"})
        places |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": 4 * shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads // 4,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))


def _import_all() -> None:
    for name in (*(f"milopt.huggingface.{each}" for each in _MODULES), "transformers.models.llama.modeling_llama"):
        importlib.import_module(name)


@contextmanager
def _told() -> Generator[tuple[list[Step], Callable[[str], None]]]:
    """The steps, and what adds one that begins now."""
    steps: list[Step] = []
    before, begin = anonymous_bytes(), time.perf_counter()
    with AnonymousPeak() as peak:

        def tell(step: str) -> None:
            now = anonymous_bytes() - before
            steps.append(Step(step, time.perf_counter() - begin, now, peak.so_far() - before))
            print(
                f"{steps[-1].seconds:7.1f} s {now / 1e9:6.2f} GB, at most {steps[-1].peak / 1e9:6.2f}  {step}",
                flush=True,
            )

        yield steps, tell
        tell("done")


def measure(folder: Path, context: int, lengths: Sequence[int]) -> list[Step]:
    """Convert and save, and tell what every step took."""
    from milopt.huggingface import convert

    _import_all()
    with _told() as (steps, tell):
        model = convert(folder / "model", context=context, query_lengths=lengths, progress=tell)
        tell("save")
        model.save(folder / "out.mlpackage")
    return steps


def measure_command(folder: Path, context: int, lengths: str) -> list[Step]:
    """The same of the command, whose own progress tells the steps."""
    from milopt.cli.console import Steps

    run: Any = importlib.import_module("milopt.cli.app").command()
    _import_all()
    words = ["convert", str(folder / "model"), "-o", str(folder / "command.mlpackage"), *_OPTIONS]
    with _told() as (steps, tell):

        def told(_: Steps, text: str) -> None:
            tell(text)

        with patch.object(Steps, "__call__", told):
            run([*words, "--context", str(context), "--query-lengths", lengths], standalone_mode=False)
    return steps


def _child(folder: Path, context: int, lengths: str, *options: str) -> list[Step]:
    command = [sys.executable, "-m", "benchmarks.checkpoints", "--measure", str(folder)]
    command += ["--context", str(context), "--lengths", lengths, *options]
    subprocess.run(command, check=True)
    return [Step(**each) for each in json.loads((folder / "steps.json").read_text())]


def report(shape: Shape, context: int, lengths: str, steps: Sequence[Step], command: Sequence[Step]) -> str:
    size = 2 * shape.parameters
    parts = [
        f"{shape.parameters / 1e9:.2f}B parameters, {size / 1e9:.2f} GB in fp16; context {context}, "
        f"query lengths {lengths}.",
        _table("`milopt.huggingface.convert`, and `save`", steps, size),
    ]
    if command:
        named = f"`milopt convert {' '.join(_OPTIONS)}`, with its passes and comparisons"
        parts.append(_table(named, command, size))
    return "\n\n".join(parts)


def _table(what: str, steps: Sequence[Step], size: int) -> str:
    last = steps[-1]
    lines = [
        f"{what}: {last.seconds:.0f} s, at most {last.peak / 1e9:.2f} GB of anonymous memory, "
        f"**{last.peak / size:.2f} times the size in fp16**.",
        "",
        "| step | begins, s | anonymous at its begin, GB | at most until then, GB | times fp16 |",
        "|---|---|---|---|---|",
    ]
    for step in steps:
        words = re.split(r" \(|: |, the(?!n)", step.name)[0]
        lines.append(
            f"| {words} | {step.seconds:.0f} | {step.now / 1e9:.2f} | {step.peak / 1e9:.2f} | {step.peak / size:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--lengths", default="1,16")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--with-command", action="store_true")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--command", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure is not None:
        steps = (
            measure_command(given.measure, given.context, given.lengths)
            if given.command
            else measure(given.measure, given.context, [int(each) for each in given.lengths.split(",")])
        )
        (given.measure / "steps.json").write_text(json.dumps([vars(step) for step in steps]))
        return
    shape = Shape(given.layers, given.hidden)
    with tempfile.TemporaryDirectory(dir=given.folder, prefix="milopt-") as name:
        folder = Path(name)
        write_checkpoint(folder / "model", shape)
        steps = _child(folder, given.context, given.lengths)
        command = _child(folder, given.context, given.lengths, "--command") if given.with_command else []
    text = report(shape, given.context, given.lengths, steps, command)
    print(text)
    title, _, rest = (__doc__ or "").partition("\n")
    body = f"# Memory of a conversion\n\n{title}\n{rest.rstrip()}\n\n{text}\n"
    (HERE / "results" / "checkpoints.md").write_text(body)


if __name__ == "__main__":
    main()
