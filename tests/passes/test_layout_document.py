"""docs/layout.md is what its script writes."""

from __future__ import annotations

from benchmarks.layout_document import DOCUMENT, document


def test_the_page_is_up_to_date() -> None:
    assert document() == DOCUMENT.read_text(encoding="utf-8"), "run python -m benchmarks.layout_document"
