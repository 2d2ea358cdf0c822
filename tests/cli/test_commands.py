"""verify, inspect, passes, generate, convert, and what they all have in common."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import milopt
from milopt.cli import main
from milopt.package import load
from milopt.pipeline import Pipeline
from milopt.registry import names
from tests.cli.test_optimize import refused
from tests.verify.decoders import Decoder

Capture = pytest.CaptureFixture[str]

COMMANDS = (
    "convert",
    "optimize",
    "verify",
    "run",
    "inspect",
    "diff",
    "lint-numerics",
    "passes",
    "chunk",
    "contract",
    "check-contract",
    "multifunction",
    "extract-function",
    "generate",
    "demo",
)


def printed(capsys: Capture, *arguments: object, status: int = 0) -> str:
    assert main(list(map(str, arguments))) == status
    told = capsys.readouterr()
    assert told.err == ""
    return told.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(command: str, capsys: Capture) -> None:
    told = printed(capsys, command, "--help")
    assert "Examples:" in told
    assert told.count(f"milopt {command}") >= 3  # the usage and two examples


def test_help_lists_the_commands(capsys: Capture) -> None:
    told = printed(capsys)
    assert all(command in told for command in COMMANDS)
    assert printed(capsys, "--version") == f"milopt {milopt.__version__}\n"


def test_the_module_runs_the_commands() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "milopt", "inspect", "absent.mlpackage"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: absent.mlpackage")
    assert done.stderr.count("\n") == 1


# --- verify


def test_verify(package: Path, tmp_path: Path, capsys: Capture) -> None:
    model = load(package)
    Pipeline.parse("fuse-sdpa").run(model)
    same = model.save(tmp_path / "same.mlpackage")
    told = printed(capsys, "verify", package, same, "--trials", "2")
    assert told == "no difference in 2 trials (exact in float64, rtol=1e-06)\n"


def test_verify_finds_a_difference(stateful: Path, tmp_path: Path, capsys: Capture) -> None:
    wrong = Decoder(context=24, mistake="scale").stateful().save(tmp_path / "wrong.mlpackage")
    told = printed(capsys, "verify", stateful, wrong, status=1)
    assert told.startswith("differs: output logits")
    assert "scaled_1" in told
    # a thousandth in one factor is far below what a lossy bound of 20 dB, a tenth, lets pass
    assert "within bounds" in printed(capsys, "verify", stateful, wrong, "--min-snr", "20")


def test_verify_judges_safety(package: Path, capsys: Capture) -> None:
    told = printed(capsys, "verify", package, package, "--safe-in", "declared", "--safe-in", "declared-strict")
    assert "safe in declared and declared-strict" in told
    assert "  declared-strict: " in told


def test_verify_refuses(package: Path, capsys: Capture) -> None:
    assert "nothing" in refused(capsys, "verify", package, package, "--function", "nothing")
    assert "--trials" in refused(capsys, "verify", package, package, "--trials", "0")
    assert "--min-snr" in refused(capsys, "verify", package, package, "--safe-in", "declared", "--min-snr", "20")
    assert "--safe-in" in refused(capsys, "verify", package, package, "--safe-in", "fp16")


# --- inspect


def test_inspect(package: Path, capsys: Capture) -> None:
    told = printed(capsys, "inspect", package)
    for expected in (
        "function decode (default), opset iOS18",
        "function prefill4",
        "9 (iOS18, macOS15, watchOS11, tvOS18)",
        "past_key_0",
        "9 linear",
        "29x16",
        "used by several functions",
        "saved by sharing",
    ):
        assert expected in told


def test_inspect_one_function(package: Path, capsys: Capture) -> None:
    told = printed(capsys, "inspect", package, "--function", "prefill4", "--weights", "1")
    assert "function prefill4" in told
    assert "function decode" not in told
    assert "no function 'absent'" in refused(capsys, "inspect", package, "--function", "absent")


def test_inspect_as_json(stateful: Path, capsys: Capture) -> None:
    facts: dict[str, Any] = json.loads(printed(capsys, "inspect", stateful, "--json"))
    decode = facts["functions"]["decode"]
    assert facts == milopt.inspect(stateful).as_dict()
    assert facts["default_function"] == "decode"
    ids = {"kind": "array", "dtype": "int32", "shape": [1, 1], "array_type": "int32", "default_shape": [1, 1]}
    assert decode["inputs"]["input_ids"] == ids
    cache = decode["states"]["key_cache"]
    assert (cache["kind"], cache["dtype"], cache["shape"]) == ("state", "fp16", [2, 2, 24, 4])
    assert decode["outputs"]["logits"]["shape"] == [1, 1, 29]
    assert decode["ops"]["linear"] == 9
    (head,) = [each for each in facts["weights"] if each["used_by"] == ["linear.weight"] and each["shape"] == [29, 16]]
    assert head["bytes"] == 29 * 16 * 2
    assert head["functions"] == ["decode", "prefill4"]
    assert "milopt.cache" in facts["metadata"]
    assert facts["bytes"] == sum(each.stat().st_size for each in stateful.rglob("*") if each.is_file())


def test_inspect_tells_compressed_weights(package: Path, tmp_path: Path, capsys: Capture) -> None:
    model = load(package)
    Pipeline.parse("palettize{bits=4,min_elements=64}").run(model)
    small = model.save(tmp_path / "small.mlpackage")
    told = printed(capsys, "inspect", small)
    assert "palettized 4 bits, per tensor" in told
    assert "instead of" in told
    compressed: list[dict[str, Any]] = json.loads(printed(capsys, "inspect", small, "--json"))["compressed"]
    assert all(each["steps"][0]["bits"] == 4 and each["bytes"] < each["dense_bytes"] for each in compressed)


# --- passes


def test_passes(capsys: Capture) -> None:
    told = printed(capsys, "passes")
    for name in names():
        assert any(line.split()[:1] == [name] for line in told.splitlines())
    assert f"default pipeline: {Pipeline.default()}" in told.replace("\n", "")


def test_one_pass(capsys: Capture) -> None:
    told = printed(capsys, "passes", "palettize")
    assert "comes after: canonicalize, " in told
    assert "group_size" in told
    assert refused(capsys, "passes", "paletize").startswith("there is no pass named 'paletize'; did you mean palettize")


# --- generate


@pytest.fixture(params=["package", "stateful"])
def either(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


def test_generate_is_greedy_and_the_same_for_both_forms(either: Path, capsys: Capture) -> None:
    told = printed(capsys, "generate", either, "--prompt", "word1 word2", "--max-tokens", "5")
    assert told.endswith("\n")
    from milopt.huggingface import Tokenizer
    from milopt.session import Session

    model = load(either)
    words, session, expected = Tokenizer.of(model), Session(model), list[int]()
    logits = session.feed(words.encode("<user> word1 word2 <answer>"))
    while len(expected) < 5 and (token := int(logits[-1].argmax())) not in words.eos_ids:
        expected.append(token)
        logits = session.feed([token])
    assert told.split() == words.decode(expected).split()
    assert expected


def test_a_seed_makes_draws_repeatable(stateful: Path, capsys: Capture) -> None:
    def drawn(seed: int, *more: str) -> str:
        options = ("--temperature", "1.5", "--seed", seed, "--max-tokens", "12", *more)
        return printed(capsys, "generate", stateful, "-p", "word1", *options)

    assert drawn(1) == drawn(1)
    assert len({drawn(seed) for seed in (1, 2, 3)}) > 1
    assert drawn(1, "--top-k", "1") == drawn(2, "--top-p", "0.001")  # both leave the likeliest token only


def test_words_are_printed_as_they_come(stateful: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[str] = []

    def note(*values: str, **_: object) -> None:
        writes.append("".join(values))

    monkeypatch.setattr("builtins.print", note)
    assert main(["generate", str(stateful), "-p", "word1", "--max-tokens", "5"]) == 0
    assert len(writes) >= 5
    assert capsys.readouterr().out == ""


def test_a_conversation(stateful: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def chat(*lines: str) -> list[str]:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        return printed(capsys, "generate", stateful, "--max-tokens", "3").splitlines()

    first, second = chat("word1 word2", "word1 word2")
    assert first != second  # the second comes after the first, and so means something else
    assert chat("word1 word2", "/reset", "", "word1 word2") == [first, first]
    assert chat("word1 word2", "/exit", "word1 word2") == [first]


def test_a_conversation_goes_on_after_a_bad_turn(
    stateful: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"/quit\n{'word3 ' * 50}\nword1 word2\n"))
    assert main(["generate", str(stateful), "--max-tokens", "3"]) == 0
    told = capsys.readouterr()
    first, second = told.err.splitlines()
    assert first == "error: /quit is no command; there are /reset and /exit"
    assert "the model's context is 24" in second
    assert len(told.out.splitlines()) == 1


def test_generate_refuses(package: Path, stateful: Path, tmp_path: Path, capsys: Capture) -> None:
    bare = Decoder().stateful().save(tmp_path / "bare.mlpackage")
    assert "carries no tokenizer" in refused(capsys, "generate", bare, "-p", "word1")
    assert "no such folder" in refused(capsys, "generate", bare, "-p", "word1", "--tokenizer", tmp_path / "none")
    assert "top-p is above 0" in refused(capsys, "generate", stateful, "-p", "word1", "--top-p", "0")
    assert "context is 24" in refused(capsys, "generate", stateful, "-p", "word1 " * 30)
    assert "absent.mlpackage" in refused(capsys, "generate", tmp_path / "absent.mlpackage")


# --- convert


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `convert` hands on, instead of converting."""
    given: dict[str, Any] = {}

    def convert(source: Path, **options: Any) -> str:
        given.update(options, source=source)
        return "a model"

    def optimize_and_save(model: str, pipeline: Pipeline, destination: Path, **_: Any) -> None:
        given.update(model=model, passes=str(pipeline), destination=destination)

    monkeypatch.setattr("milopt.huggingface.convert", convert)
    monkeypatch.setattr("milopt.cli.work.optimize_and_save", optimize_and_save)
    return given


@pytest.mark.parametrize(
    ("arguments", "compression", "dtype"),
    [
        ([], str(Pipeline.default().passes[-1]), "float16"),
        (["--precision", "float16"], None, "float16"),
        (["--precision", "float32"], None, "float32"),
        (["--precision", "lut4"], "palettize{bits=4}", "float16"),
        (["--precision", "lut6"], "palettize", "float16"),
        (["--precision", "lut8"], "palettize{bits=8}", "float16"),
        (["--precision", "int4"], "quantize", "float16"),
        (["--precision", "int8"], "quantize{dtype=int8}", "float16"),
    ],
)
def test_precisions(
    arguments: list[str], compression: str | None, dtype: str, options: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "o.mlpackage"
    assert main(["convert", "model", "-o", str(out), "--max-seq-len", "77", "--batch-size", "16", *arguments]) == 0
    assert (options["context"], options["query_lengths"], options["dtype"]) == (77, (1, 16), dtype)
    kept = [str(each) for each in Pipeline.default().passes if each.name not in ("palettize", "quantize")]
    assert options["passes"] == ",".join([*kept, *([compression] if compression else [])])


def test_convert_hands_on_what_it_is_told(options: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "o.mlpackage"
    assert main(["convert", "model", "-o", str(out)]) == 0
    names = ("context", "query_lengths", "batch", "logits", "route")
    assert [options[name] for name in names] == [512, None, 1, "all", "trace"]
    told = ["--query-lengths", "1,4,16", "--sequences", "2", "--logits", "last", "--route", "export"]
    assert main(["convert", "model", "-o", str(out), *told]) == 0
    assert [options[name] for name in names] == [512, (1, 4, 16), 2, "last", "export"]
    assert main(["convert", "model", "-o", str(out), "--query-lengths", "flexible"]) == 0
    assert options["query_lengths"] == "flexible"
    assert main(["convert", "model", "-o", str(out), "--shapes", "ranged"]) == 0
    assert options["query_lengths"] == "flexible"
    assert main(["convert", "model", "-o", str(out), "--shapes", "fixed"]) == 0
    assert options["query_lengths"] is None


def test_convert_refuses(tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "o.mlpackage"
    assert "absent" in refused(capsys, "convert", tmp_path / "absent", "-o", out)
    assert "is a list like 1,64" in refused(capsys, "convert", tmp_path, "-o", out, "--query-lengths", "1;2")
    ranged = ("--shapes", "ranged", "--batch-size", "8")
    assert "takes any number of tokens" in refused(capsys, "convert", tmp_path, "-o", out, *ranged)
    twice = ("--query-lengths", "1,8", "--batch-size", "8")
    assert "exclude each other" in refused(capsys, "convert", tmp_path, "-o", out, *twice)
    assert "hf download nobody/nothing" in refused(capsys, "convert", "nobody/nothing", "-o", out)
    both = ("--precision", "lut4", "--passes", "fuse-sdpa")
    assert "write palettize{bits=4} into --passes" in refused(capsys, "convert", tmp_path, "-o", out, *both)
    neither = ("--no-passes", "--passes", "fuse-sdpa")
    assert "exclude each other" in refused(capsys, "convert", tmp_path, "-o", out, *neither)
    assert "does not exist" in refused(capsys, "convert", tmp_path, "-o", tmp_path / "no" / "o.mlpackage")
    assert list(tmp_path.iterdir()) == []
