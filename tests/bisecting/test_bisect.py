"""A planted wrong rule among right ones: found, reduced to few ops, and written so that it can be run again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import milopt
from milopt.bisecting import Bisection, bisect, reduce_model
from milopt.bisecting.bisection import op_count
from milopt.bisecting.pieces import function_alone
from milopt.bisecting.trying import attempt
from milopt.errors import MiloptError
from milopt.mil import Program, get_new_symbol, mb, operations, target, types
from milopt.package import load
from milopt.pipeline import Pass, Pipeline
from milopt.rewrites import Rewrites
from milopt.text import text
from tests.bisecting.rules import Careless, Mixed, Plain, Right, chain
from tests.cli.support import WrongPass, contents
from tests.package.support import program_of
from tests.verify.decoders import Decoder


def found_in(program: Any, *passes: Pass, **options: Any) -> Bisection:
    found = bisect(program, Pipeline(passes), **options)
    assert found is not None
    assert not found.verdict
    return found


def test_the_rewrites_of_a_run_can_be_counted_and_limited() -> None:
    whole, limited, none = (load(chain()) for _ in range(3))
    whole.rewrites, limited.rewrites, none.rewrites = Rewrites(), Rewrites(limit=3), Rewrites(limit=0)
    assert Mixed().run(whole).applied == len(whole.rewrites.made) == 18
    assert Mixed().run(limited).applied == len(limited.rewrites.made) == 3
    assert limited.rewrites.made == [_same(each) for each in whole.rewrites.made[:3]]
    assert not Mixed().run(none)
    assert text(none) == text(chain())
    assert whole.clone().rewrites is None


def _same(each: Any) -> Any:
    """Rules are compared by name: every run makes them anew."""
    from unittest.mock import ANY

    return type(each)(ANY, each.function, each.place, each.ops)


def test_the_pass_and_the_rewrite_are_found_and_reduced() -> None:
    program = chain(blocks=6, wrong=4)
    before = text(program)
    found = found_in(program, Right(), Mixed(), Right())
    assert text(program) == before
    assert (found.index, found.count, found.culprit) == (2, 3, Mixed())
    assert found.rewrite is not None
    assert (found.rewrite.rule.name, found.rewrite.place, found.rewrite.function) == ("ScaledTanh", "tanh_4", "main")
    assert (found.number, found.total) == (5, 6)  # the right ones are done by then
    assert found.reduced
    assert (found.ops, op_count(found.before)) == (31, 2)
    assert [op.op_type for op in found.before.function().operations if op.op_type != "const"] == ["mul", "tanh"]
    assert [op.op_type for op in found.after.function().operations if op.op_type != "const"] == ["tanh", "mul"]
    assert not milopt.compare(found.before, found.after)
    assert "mixed (pass 2 of 3) breaks equality with rewrite 5 of 6: ScaledTanh at tanh_4 in main" in str(found)
    assert "reduced from 31 ops to 2" in str(found)


@pytest.mark.parametrize("wrong", [0, 3, 5])
def test_right_rewrites_before_and_after_do_not_hide_it(wrong: int) -> None:
    found = found_in(chain(wrong=wrong), Mixed(), reduce=False)
    assert found.rewrite is not None
    assert (found.rewrite.rule.name, found.rewrite.place) == ("ScaledTanh", f"tanh_{wrong}")
    assert not found.reduced
    limited = load(chain(wrong=wrong))
    limited.rewrites = Rewrites(limit=found.number - 1)
    Mixed().run(limited)
    assert milopt.compare(chain(wrong=wrong), limited)  # with one less they agree
    assert not milopt.compare(chain(wrong=wrong), found.after)


def test_where_every_pass_is_right_there_is_nothing_to_find() -> None:
    assert bisect(chain(), Right()) is None
    assert bisect(chain(wrong=None), Pipeline((Mixed(),))) is None
    assert bisect(Decoder().stateless((1,)), "canonicalize,fuse-sdpa,linear-to-conv") is None


def test_what_is_wrong_beside_the_rules_is_not_blamed_on_one() -> None:
    found = found_in(chain(wrong=None), Careless())
    assert (found.rewrite, found.number, found.total) == (None, 0, 6)
    assert "careless (pass 1 of 1) breaks equality; no rule of it does so alone" in str(found)
    assert op_count(found.before) == 2


def test_a_pass_without_rules_is_found_and_reduced() -> None:
    found = found_in(chain(), Right(), Plain())
    assert (found.index, found.rewrite) == (2, None)
    # an output keeps its name, so something must use the value that goes
    assert [op.op_type for op in operations(found.before.function()) if op.op_type != "const"] == ["tanh", "exp"]


def test_one_of_several_functions() -> None:
    found = found_in(Decoder().stateless((1, 4)), *Pipeline.parse("canonicalize,kv-to-state").passes, WrongPass())
    assert list(found.before.functions) == [found.rewrite.function if found.rewrite else ""]
    assert op_count(found.before) == 1
    assert found.before.metadata == {}


def test_functions_that_are_not_meant_are_not_blamed() -> None:
    """Both functions would come out wrong; one is right by then, and the reduced program is of the other."""
    model = load(chain(blocks=3, wrong=2))
    model.program.add_function("other", chain(blocks=3, wrong=2).functions["main"])
    found = found_in(model, Mixed(), functions=["other"])
    assert found.rewrite is not None
    assert found.rewrite.function == "other"
    assert list(found.before.functions) == ["other"]
    assert op_count(found.before) == 2
    whole = found_in(model, Mixed(), functions=["other"], reduce=False)
    assert text(function_alone(whole.after, "main")) == text(function_alone(model, "main"))
    assert "run_on(Mixed(factor=1.0), after, ['other'])" in whole.script()
    assert whole.as_dict()["functions"] == ["other"]


def test_a_piece_without_the_functions_that_are_meant_shows_nothing() -> None:
    """Reduced over all functions, the program would end with one that the pass was kept from."""
    model = load(chain(blocks=2, wrong=None))
    model.program.add_function("other", chain(blocks=2, wrong=1).functions["main"])
    assert bisect(model, Mixed(), functions=["main"]) is None
    assert attempt(Mixed(), function_alone(model, "other"), functions=["main"]) is None
    assert attempt(Mixed(), function_alone(model, "other"), functions=["main", "other"]) is not None


def test_a_rewrite_inside_a_loop_keeps_the_loop() -> None:
    def build(x: Any) -> Any:
        def body(i: Any, value: Any) -> Any:
            return mb.add(x=i, y=1), mb.tanh(x=mb.mul(x=value, y=3.0, name="scaled"), name="inner")

        def condition(i: Any, value: Any) -> Any:
            return mb.less(x=i, y=2)

        start = mb.exp(x=mb.sin(x=x, name="sine"), name="start")
        _, result = mb.while_loop(_cond=condition, _body=body, loop_vars=(0, start))
        return mb.cos(x=result, name="y")

    specs = [mb.TensorSpec(shape=(2,), dtype=types.fp32)]
    program: Program = program_of(mb.program(input_specs=specs, opset_version=target.iOS17)(build))
    found = found_in(program, Mixed())
    assert found.rewrite is not None
    assert found.rewrite.place == "inner"
    kinds = [op.op_type for op in operations(found.before.function()) if op.op_type != "const"]
    assert kinds == ["while_loop", "less", "add", "mul", "tanh"]


def test_unknown_sizes_are_made_known_to_cut_there(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        scaled = mb.mul(x=mb.sin(x=mb.cos(x=x, name="cosine"), name="sine"), y=np.float32(3), name="scaled")
        return mb.cos(x=mb.tanh(x=scaled, name="tanh"), name="y")

    specs = [mb.TensorSpec(shape=(get_new_symbol(), 4), dtype=types.fp32)]
    found = found_in(program_of(mb.program(input_specs=specs, opset_version=target.iOS17)(build)), Mixed())
    assert [op.op_type for op in found.before.function().operations if op.op_type != "const"] == ["mul", "tanh"]
    assert {var.shape for var in found.before.function().inputs.values()} == {(2, 4)}
    assert not milopt.compare(load(found.save(tmp_path / "found") / "before.mlpackage"), found.after)


def test_what_is_reduced_still_shows_it() -> None:
    program, tries = load(chain()), 0

    def has_exp_of_tanh(model: Any) -> bool:
        nonlocal tries
        tries += 1
        return any(op.op_type == "exp" and op.x.op and op.x.op.op_type == "tanh" for op in operations(model.function()))

    least = reduce_model(program, has_exp_of_tanh, near={"main": ("y",)})
    assert [op.op_type for op in least.function().operations if op.op_type != "const"] == ["tanh", "exp"]
    assert op_count(program) == 37
    tries = 0
    reduce_model(program, has_exp_of_tanh, most_tries=5)
    assert tries <= 5


# --- what is written


def again(folder: Path) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, str(folder / "reproduce.py")]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_the_reproduction_runs_by_itself(tmp_path: Path) -> None:
    found = found_in(chain(), Mixed(factor=0.5))
    folder = found.save(tmp_path / "found")
    names = ["after.mil", "after.mlpackage", "before.mil", "before.mlpackage", "reproduce.py"]
    assert sorted(each.name for each in folder.iterdir()) == names
    assert (folder / "before.mil").read_text() == text(found.before)
    script = (folder / "reproduce.py").read_text()
    assert "from tests.bisecting.rules import Mixed" in script
    assert "Mixed(factor=0.5).run(after)" in script
    done = again(folder)
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("differs: output ")


def test_the_script_of_a_pass_by_its_name_and_of_one_that_has_none() -> None:
    found = found_in(chain(), Mixed(), reduce=False)
    assert "after.rewrites = Rewrites(limit=" in found.script()
    named = Bisection(
        Pipeline.parse("palettize{bits=4}").passes[0], 1, 1, found.before, found.after, found.verdict, 3, reduced=True
    )
    assert "milopt.Pipeline.parse('palettize{bits=4}').passes[0].run(after)" in named.script()

    class Local(Mixed):
        """Not to be imported."""

    local = Bisection(Local(), 1, 1, found.before, found.after, found.verdict, 3)
    assert 'after = milopt.load(here / "after.mlpackage")' in local.script()
    for each in (found, named, local):
        compile(each.script(), "reproduce.py", "exec")


def test_nothing_is_overwritten_by_surprise(tmp_path: Path) -> None:
    found = found_in(chain(), Mixed())
    folder = found.save(tmp_path / "found")
    with pytest.raises(MiloptError, match="found is not empty; give --force"):
        found.save(folder)
    found.save(folder, overwrite=True)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(MiloptError, match=r"holds notes\.txt, which is no part of a reproduction"):
        found.save(folder, overwrite=True)
    with pytest.raises(MiloptError, match="is no folder"):
        found.save(folder / "notes.txt")


@pytest.mark.parametrize("there", [False, True], ids=["new", "replaced"])
def test_a_reproduction_is_written_whole_or_not_at_all(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = found_in(chain(), Mixed())
    if there:
        found.save(tmp_path / "found")
    before = contents(tmp_path)

    def interrupted(_: Bisection) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(Bisection, "script", interrupted)
    with pytest.raises(KeyboardInterrupt):
        found.save(tmp_path / "found", overwrite=there)
    assert contents(tmp_path) == before
    assert [each.name for each in tmp_path.iterdir()] == ["found"] * there
