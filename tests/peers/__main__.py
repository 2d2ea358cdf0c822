"""Run coremltools' op tests, or other tests of it: ``python -m tests.peers [folder or file in coremltools] [options]``.

Options are pytest's and those of :mod:`tests.peers.plugin`. With ``--runxfail`` what Core ML itself fails is run too.
"""

from __future__ import annotations

import sys

from tests.peers.running import OPS, arguments, run

if __name__ == "__main__":
    given = sys.argv[1:]
    sys.exit(run(arguments(given if given and not given[0].startswith("-") else [OPS, *given])))
