"""The work on other workers: the same bytes, and a bounded share of the model in memory."""

from __future__ import annotations

import gc
import resource
import sys
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest

from milopt.errors import MiloptError
from milopt.mil import Program, mb, target, types
from milopt.package import load
from milopt.passes.compression import Palettize
from milopt.passes.quantization import Quantize
from milopt.spool import Spool
from milopt.text import text

from .support import weights


def layers(count: int = 3, *, width: int = 64) -> Program:
    @mb.program(input_specs=[mb.TensorSpec((1, width), types.fp16)], opset_version=target.iOS18)
    def program(x: Any) -> Any:
        for seed in range(count):
            x = mb.linear(
                x=x, weight=mb.const(val=weights((width, width), seed=seed), name=f"w{seed}"), name=f"y{seed}"
            )
        return x

    return program


@pytest.mark.parametrize(
    "made",
    [Palettize(bits=4), Palettize(bits=4, per_channel_scale=True), Palettize(cluster_dim=2), Quantize()],
    ids=str,
)
@pytest.mark.parametrize("backend", ["threading", pytest.param("loky", marks=pytest.mark.processes), "dask"])
def test_any_backend_gives_the_same_bytes(made: Any, backend: str) -> None:
    alone, spread = load(layers()), load(layers())
    with joblib.parallel_config(n_jobs=1):
        first = made.run(alone)
    if backend == "dask":
        distributed: Any = pytest.importorskip("distributed", reason="dask's distributed is not installed")
        with (
            distributed.LocalCluster(
                n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
            ) as cluster,
            distributed.Client(cluster),
            joblib.parallel_config(backend="dask"),
        ):
            second = made.run(spread)
    else:
        with joblib.parallel_config(backend=backend, n_jobs=2):
            second = made.run(spread)
    assert first.coverage == second.coverage
    assert len(first.coverage) == 3
    assert text(alone, weights="hash") == text(spread, weights="hash")


def test_compressed_tensors_lie_in_a_file_that_goes_with_them() -> None:
    spool = Spool()
    first = spool.add(np.arange(40, dtype=np.float16), "fp16", 40)
    second = spool.add(np.arange(7, dtype=np.uint8), "uint4", 13)
    spool.finish()
    view: Any = spool.flat(first)
    box: Any = spool.flat(second)
    del spool
    gc.collect()
    np.testing.assert_array_equal(view, np.arange(40))
    assert not view.flags.writeable
    assert box.val.tolist() == [0, 0, 1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 6]


def test_no_room_is_told() -> None:
    resource_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, resource_limit[1]))
    try:
        with pytest.raises(MiloptError, match=r"no room for compressed weights in .*: File too large"):
            Spool().add(np.zeros(1 << 20, np.uint8), "uint8", 1 << 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, resource_limit)
        signal.signal(signal.SIGXFSZ, before)


def test_no_folder_for_temporary_files_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    with pytest.raises(MiloptError, match=r"no room for compressed weights in .*none: No such file"):
        Spool()


def test_a_file_that_can_not_be_mapped_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_given: object, **_options: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    spool = Spool()
    spool.add(np.zeros(4, np.uint8), "uint8", 4)
    monkeypatch.setattr("milopt.spool.Mapping", refuse)
    with pytest.raises(MiloptError, match=r"no room for compressed weights in .*: Cannot allocate memory"):
        spool.finish()


def grown(path: Path) -> int:
    """The anonymous bytes that compressing and saving a package takes."""
    from benchmarks.memory import AnonymousPeak, anonymous_bytes

    model = load(path)
    before = anonymous_bytes()
    with joblib.parallel_config(n_jobs=1), AnonymousPeak() as memory:
        Palettize(bits=8, granularity="tensor").run(model)
        model.save(path.with_suffix(".made.mlpackage"))
    return memory.peak - before


@pytest.mark.processes
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_with_the_number_of_weights(tmp_path: Path) -> None:
    paths = [load(layers(count, width=1024)).save(tmp_path / f"{count}.mlpackage") for count in (2, 8)]
    # in processes of their own, where no other test has left memory that is free
    with get_context("spawn").Pool(1, maxtasksperchild=1) as processes:
        few, many = processes.map(grown, paths, chunksize=1)
    # six weights more are 6 MiB more of indices; the allocator keeps some of what single weights needed
    assert many - few < 4 << 20
