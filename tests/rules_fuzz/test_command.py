"""The command tells of every rule and pass it was asked about, from several processes."""

from __future__ import annotations

import pytest

from tests.rules_fuzz.__main__ import main


def test_a_line_for_each_rule_and_their_sum(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--count", "30", "--only", "MergeCasts"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].split() == ["rule", "or", "pass", "programs", "fired", "refused", "disagreements", "not", "run"]
    name, programs, fired, refused, wrong, _ = lines[1].split()
    assert name == "MergeCasts"
    assert int(fired) > 0
    assert int(wrong) == 0
    assert int(programs) == int(fired) + int(refused)
    assert lines[2].split()[1:] == lines[1].split()[1:]


def test_a_name_that_no_rule_has(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--only", "no-such-rule"])
    assert stopped.value.code == 2
    assert "no rule or pass has 'no-such-rule' in its name" in capsys.readouterr().err
