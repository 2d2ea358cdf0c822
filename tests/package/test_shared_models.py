"""Real packages of other people's: each loads, is saved, and says the same when it is loaded again."""

from __future__ import annotations

from pathlib import Path

import pytest
from coremltools.models import MLModel

from milopt.errors import PackageError
from milopt.package import load
from milopt.text import text

FOLDERS = ("real", "graphs", "stories260K")


def packages(shared: Path) -> list[Path]:
    return [each for folder in FOLDERS for each in sorted((shared / "models" / folder).glob("*.mlpackage"))]


def has_weights(package: Path) -> bool:
    return any(package.glob("Data/*/weights/*.bin"))


def test_every_package_survives(shared: Path, tmp_path: Path) -> None:
    complete = [each for each in packages(shared) if has_weights(each)]
    assert len(complete) >= 21
    for package in complete:
        model = load(package)
        again = load(model.save(tmp_path / package.name))
        assert text(again, weights="hash") == text(model, weights="hash"), package
        assert again.description == model.description, package
        assert again.carried == model.carried, package
        assert (again.spec_version, again.metadata) == (model.spec_version, model.metadata), package
        assert text(model.clone()) == text(model), package


def test_packages_without_their_weights_say_so(shared: Path) -> None:
    """The published graphs whose weights could not be had."""
    missing = [each for each in packages(shared) if not has_weights(each)]
    assert missing
    assert all(each.parent.name == "graphs" for each in missing)
    for package in missing:
        with pytest.raises(PackageError, match=r"weights/weight\.bin is missing"):
            load(package)


def test_stock_coremltools_opens_what_was_saved(shared: Path, tmp_path: Path) -> None:
    for name in ("real/silero_unified_palette_4bit", "stories260K/stories260K_ios18_multifunction"):
        package = shared / "models" / f"{name}.mlpackage"
        saved = load(package).save(tmp_path / package.name)
        before, after = (MLModel(str(each), skip_model_load=True).get_spec() for each in (package, saved))
        assert after.description == before.description


def test_default_function_is_kept(shared: Path, tmp_path: Path) -> None:
    model = load(shared / "models/stories260K/stories260K_ios18_multifunction.mlpackage")
    assert model.default_function == "decode"
    assert set(model.functions) == {"decode", "prefill64"}
    assert load(model.save(tmp_path / "a.mlpackage")).default_function == "decode"


def test_synthetic_weights_in_published_graphs(shared: Path, tmp_path: Path) -> None:
    """A classifier (string output, class labels, ops without names) and an image input, with made-up weights."""
    import runpy
    import sys
    from unittest.mock import patch

    for name in ("bisenet", "whispertiny_Encoder"):
        filled = tmp_path / f"{name}.mlpackage"
        with patch.object(sys, "argv", ["refill", str(shared / f"models/graphs/{name}.mlpackage"), str(filled)]):
            runpy.run_path(str(shared / "tools/refill.py"))
        model = load(filled)
        again = load(model.save(tmp_path / f"{name}_saved.mlpackage"))
        assert text(again, weights="hash") == text(model, weights="hash")
        assert again.description == model.description
