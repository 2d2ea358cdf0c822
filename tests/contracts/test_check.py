"""The checker: nothing to say of a package that keeps the contract, and the right line for all that may break."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from milopt.cli.check_contract import Style
from milopt.contracts import Findings, check, contract_named, contract_names
from milopt.contracts.checking import FOLDERS
from milopt.errors import MiloptError, PackageError
from milopt.package import Model
from tests.contracts.planting import DEFECTS, kept
from tests.passes.contract_programs import model

CONVERSATIONS = [
    "end = n, causal mask, prompt at once",
    "end = n, zeros, prompt at once",
    "end = n, zeros, token by token",
    "end = n + 1, zeros, prompt at once",
    "end = n + 1, zeros, token by token",
    "declared precision",
]


@pytest.mark.parametrize("positions", ["rotary", "table", "none"])
def test_a_package_that_keeps_it(positions: str, tmp_path: Path) -> None:
    said: list[str] = []
    found = check(kept(positions).save(tmp_path / "good.mlpackage"), "apple", tell=said.append)
    assert found, str(found)
    assert [each.check for each in found.found] == [
        "version",
        "metadata co.huggingface.exporters.name",
        "input inputIds",
        "input causalMask",
        "state keyCache",
        "state valueCache",
        "states together",
        "output logits",
        "range of query in inputIds",
        "range of rows in causalMask",
        "range of end in causalMask",
        *CONVERSATIONS,
    ]
    assert found.summary == "good.mlpackage keeps the apple contract: 17 checks passed"
    assert "a conversation: end = n, zeros, prompt at once" in said


@pytest.mark.parametrize("name", DEFECTS)
def test_what_is_broken_is_told(name: str) -> None:
    plant, failing, says = DEFECTS[name]
    found = check(plant(kept()))
    assert not found
    line = next(each for each in found.failed if each.check == failing)
    assert says in line.detail
    assert str(line) == f"FAILS: {failing}: {line.detail}"


def test_only_what_is_broken_fails() -> None:
    plant, _, _ = DEFECTS["slot 0 attended to"]
    found = check(plant(kept()))
    assert [each.check for each in found.failed] == [each for each in CONVERSATIONS if "n + 1" in each]
    plant, _, _ = DEFECTS["an overflow"]
    assert [each.check for each in check(plant(kept())).failed] == ["declared precision"]


def test_a_conversation_without_numbers_is_nothing_to_hold_others_against() -> None:
    plant, _, _ = DEFECTS["no numbers"]
    failed = {each.check for each in check(plant(kept())).failed}
    assert failed == set(CONVERSATIONS)


def test_nothing_runs_where_names_are_missing() -> None:
    plant, _, _ = DEFECTS["a state of another name"]
    found = check(plant(kept()))
    assert not {each.check for each in found.found}.intersection(CONVERSATIONS)


def test_a_package_without_the_contract() -> None:
    found = check(model())
    failed = {each.check for each in found.failed}
    assert {"input inputIds", "input causalMask", "state keyCache", "state valueCache", "input position_ids"} <= failed


def test_states_that_do_not_fit_each_other() -> None:
    from milopt.contracts.interface import interface_findings
    from milopt.mil import add_input

    made = kept()
    del made.function().placeholder_inputs["valueCache"]
    add_input(made.function(), "valueCache", (3, 1, 2, 16, 4), "fp16", state=True)
    found = {each.check: each for each in interface_findings(made, contract_named("apple"))}
    assert found["states together"].detail == "the states differ in layers, sequences or slots"


def test_as_json() -> None:
    found = check(kept(), tokens=3)
    told: Any = found.to_json()
    assert (told["style"], told["passed"], len(told["checks"])) == ("apple", True, 17)
    assert told["checks"][2] == {"check": "input inputIds", "passed": True, "detail": "int32 (1, ?)"}


def test_short_contexts_leave_a_slot_to_spare() -> None:
    found = check(kept(), tokens=500)
    assert found, str(found)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"style": "pear"}, "there is no contract named 'pear'; there is: apple, anemll, coreml-llm"),
        ({"tokens": 0}, "a conversation has one token at least, not 0"),
        ({"agreement": 1.5}, "the agreement is a share from 0 to 1, not 1.5"),
    ],
)
def test_bad_options(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(MiloptError, match=reason):
        check(kept(), **options)


def test_a_package_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(PackageError):
        check(tmp_path / "absent.mlpackage")


def test_names() -> None:
    assert contract_names() == ("apple",)
    assert (*contract_names(), *FOLDERS) == tuple(each.value for each in Style)
    assert isinstance(check(kept(), tokens=1), Findings)


def test_the_seed_chooses_the_prompt() -> None:
    """The declared precision's line counts tokens; with another seed the conversation is another."""
    made: Model = kept()
    one, again, other = (check(made, seed=seed).to_json() for seed in (0, 0, 3))
    assert one == again
    assert other["passed"]
