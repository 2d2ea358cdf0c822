"""Where fp16 is too small for a program: ranges of its values, and findings with the pass that repairs each.

for finding in milopt.numerics.lint("model.mlpackage").findings:
    print(finding)
"""

from __future__ import annotations

from milopt.numerics.findings import Finding, LintReport
from milopt.numerics.linting import lint
from milopt.numerics.ranges import Range, value_ranges

__all__ = ["Finding", "LintReport", "Range", "lint", "value_ranges"]
