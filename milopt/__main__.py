"""``python -m milopt``."""

from __future__ import annotations

import sys

from milopt.cli import main

sys.exit(main())
