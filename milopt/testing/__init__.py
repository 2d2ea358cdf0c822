"""For authors of rules and passes: properties to check, programs to check them on, and texts to compare with.

from milopt.testing import check_rule, strategies as mil

def test_my_rule():
    check_rule(MyRule(), mil.programs(ops=mil.ELEMENTWISE | {"matmul"}, max_ops=12))
"""

from __future__ import annotations

try:
    import hypothesis  # noqa: F401  # pyright: ignore[reportUnusedImport]
except ImportError:
    raise ImportError("milopt.testing needs hypothesis: pip install 'milopt[testing]'") from None

from milopt.testing import strategies
from milopt.testing.checks import check_pass, check_rule, holds
from milopt.testing.coremltools_adapter import coremltools_predict
from milopt.testing.goldens import golden

__all__ = ["check_pass", "check_rule", "coremltools_predict", "golden", "holds", "strategies"]
