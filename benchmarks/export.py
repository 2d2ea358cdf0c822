"""A Llama of 1.2B parameters becomes a set for an iPhone: time and memory of every step, and the sizes.

    python -m benchmarks.export [--layers 18] [--hidden 2048] [--context 512] [--batch-size 64] [--lut 4]
                               [--folder DIR] [--busy]

A checkpoint of random weights (benchmarks/checkpoints.py) is written to ``--folder``, a temporary one by default, and
``milopt export --target iphone`` runs on it as a process of its own. Where a folder is given, what is there already is
taken, and a run that was killed is continued: steps that an earlier run finished say nothing of their time then. There
has to be room for four times the checkpoint's size. Memory is the process's anonymous memory (``RssAnon`` of
``/proc/PID/status``: mapped files apart), imports included, sampled every 20 ms. With ``--busy`` times are left out:
other processes wanted the processors. Linux only. Writes benchmarks/results/export.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.checkpoints import Shape, write_checkpoint

HERE = Path(__file__).resolve().parent
_INTERVAL = 0.02


@dataclass
class Watched:
    """A process whose memory is looked at all the time; ``peaks`` are the most anonymous bytes by step number."""

    process: subprocess.Popen[str]
    step: int = 0
    peaks: dict[int, int] = field(default_factory=dict[int, int])

    def watch(self) -> None:
        while self.process.poll() is None:
            now = _anonymous(self.process.pid)
            self.peaks[self.step] = max(self.peaks.get(self.step, 0), now)
            time.sleep(_INTERVAL)

    def listen(self) -> None:
        """Follow what the command tells of its steps: ``2/7 rewrite: fuse-sdpa ...``."""
        assert self.process.stderr is not None
        begun = time.perf_counter()
        for line in self.process.stderr:
            number = line.partition("/")[0]
            if number.isdecimal():
                self.step = int(number)
            print(f"{time.perf_counter() - begun:7.1f} s {_anonymous(self.process.pid) / 1e9:6.2f} GB  {line.rstrip()}")


def _anonymous(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it is over
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def measure(command: list[str]) -> tuple[dict[str, Any], dict[int, int], float]:
    """What the command says of itself, the peaks of its steps, and how long it took in all."""
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    watched = Watched(process)
    threads = [threading.Thread(target=each, daemon=True) for each in (watched.watch, watched.listen)]
    for each in threads:
        each.start()
    assert process.stdout is not None
    told = process.stdout.read()
    for each in threads:
        each.join()
    if process.wait():
        raise SystemExit(f"milopt export ended with status {process.returncode}")
    return json.loads(told), watched.peaks, time.perf_counter() - begun


def report(shape: Shape, options: list[str], told: dict[str, Any], peaks: dict[int, int], seconds: float | None) -> str:
    """The document's tables; without times where ``seconds``, the whole run's, is None."""
    lines = [
        f"{shape.parameters / 1e9:.2f}B parameters, {2 * shape.parameters / 1e9:.2f} GB in fp16; "
        f"`milopt export {' '.join(options)}`: {'' if seconds is None else f'{seconds:.0f} s, '}at most "
        f"**{max(peaks.values()) / 1e9:.2f} GB** of anonymous memory.",
        "",
        "| step | seconds | at most, GB | on disk, GB |",
        "|---|---|---|---|",
    ]
    for each in told["steps"]:
        took = f"{each['seconds']:.0f}" if each["done"] else "not here" if each["reason"] else "earlier"
        took = "not measured" if each["done"] and seconds is None else took
        most = f"{peaks.get(each['number'], 0) / 1e9:.2f}" if each["done"] else ""
        lines.append(f"| {each['number']} {each['name']} | {took} | {most} | {each['bytes'] / 1e9:.3f} |")
    lines += ["", "| file of the set | bytes |", "|---|---|"]
    lines += [f"| `{name}` | {size:,} |" for name, size in told["sizes"].items()]
    lines.append(f"| all | {sum(told['sizes'].values()):,} |")
    notes = [note for each in told["steps"] if each["name"] in ("chunk", "verify") for note in each["notes"]]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=18)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lut", default="4")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--busy", action="store_true")
    given = parser.parse_args()
    shape = Shape(given.layers, given.hidden)
    options = ["--target", "iphone", "--context", str(given.context), "--batch-size", str(given.batch_size)]
    options += ["--lut", given.lut]
    with tempfile.TemporaryDirectory(prefix="milopt-") as name:
        folder = given.folder or Path(name)
        if not (folder / "llama" / "config.json").is_file():
            write_checkpoint(folder / "llama", shape)
        command = [sys.executable, "-m", "milopt", "export", str(folder / "llama"), "-o", str(folder / "out")]
        told, peaks, seconds = measure([*command, *options, "--json", "-v"])
    write(report(shape, options, told, peaks, None if given.busy else seconds))


def write(text: str) -> None:
    print(text)
    title, _, rest = (__doc__ or "").partition("\n")
    body = f"# The whole way of a large model\n\n{title}\n{rest.rstrip()}\n\n{text}\n"
    (HERE / "results" / "export.md").write_text(body)


if __name__ == "__main__":
    main()
