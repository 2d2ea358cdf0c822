"""Spread the compression of a model's weights over the workers of a dask cluster.

    python examples/compress_on_a_cluster.py in.mlpackage out.mlpackage [tcp://scheduler:8786]

Without an address a cluster of this machine's cores is started. Needs ``pip install 'dask[distributed]'``; other
backends of joblib, such as ray's, are named in ``parallel_config`` the same way.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import joblib

import milopt
from milopt.pipeline import Pipeline


def main(source: str, destination: str, address: str | None = None) -> None:
    distributed: Any = importlib.import_module("distributed")
    model = milopt.load(source)
    with distributed.Client(address), joblib.parallel_config(backend="dask"):
        report = Pipeline.parse("palettize{bits=4}").run(model)
    print(report)
    model.save(destination)


if __name__ == "__main__":
    main(*sys.argv[1:])
