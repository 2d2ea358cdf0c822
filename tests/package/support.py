"""Small programs, and the layout of packages on the disk."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from coremltools.proto import Model_pb2

from milopt.mil import Program, Target, mb, types

SPEC = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"


def weight(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float16)


def linear(rows: int = 8, opset: Target = Target.iOS16) -> Program:
    """``y = relu(linear(x))`` on fp16[1, 16]."""

    def build(x: Any) -> Any:
        return mb.relu(x=mb.linear(x=x, weight=weight(rows, 16), name="hidden"), name="y")

    inputs = [mb.TensorSpec(shape=(1, 16), dtype=types.fp16)]
    return program_of(mb.program(input_specs=inputs, opset_version=opset)(build))


def counter() -> Program:
    """A state of fp16[1, 4] that ``x`` is added to."""

    def build(x: Any, total: Any) -> Any:
        updated = mb.coreml_update_state(state=total, value=mb.add(x=mb.read_state(input=total), y=x))
        return mb.mul(x=updated, y=np.float16(2), name="y")

    inputs = [
        mb.TensorSpec(shape=(1, 4), dtype=types.fp16),
        mb.StateTensorSpec(shape=(1, 4), dtype=types.fp16),
    ]
    return program_of(mb.program(input_specs=inputs, opset_version=Target.iOS18)(build))


def two_functions() -> Program:
    """``decode`` (the default) and ``prefill``, each with its own array of the same weights."""
    program = Program()
    for name, rows in (("prefill", 4), ("decode", 1)):

        def build(x: Any) -> Any:
            return mb.linear(x=x, weight=weight(32, 16), name="y")

        inputs = [mb.TensorSpec(shape=(rows, 16), dtype=types.fp16)]
        program.add_function(name, mb.function(input_specs=inputs, opset_version=Target.iOS18)(build))
    program.default_function_name = "decode"
    program.export_as_multifunction = True
    return program


def loop() -> Program:
    """Halves ``x`` while its sum is above one: nested blocks that see the values around them."""

    def build(x: Any) -> Any:
        half = mb.mul(x=mb.reduce_sum(x=x, axes=[1], keep_dims=True), y=np.float32(0.5))

        def above(value: Any) -> Any:
            return mb.squeeze(x=mb.greater(x=mb.reduce_sum(x=value, axes=[1]), y=np.float32(1)))

        def halve(value: Any) -> Any:
            return mb.add(x=mb.mul(x=value, y=np.float32(0.5)), y=mb.mul(x=half, y=np.float32(0)))

        result = mb.while_loop(_cond=above, _body=halve, loop_vars=(x,))
        return mb.identity(x=result, name="y")

    inputs = [mb.TensorSpec(shape=(1, 4), dtype=types.fp32)]
    return program_of(mb.program(input_specs=inputs, opset_version=Target.iOS16)(build))


def program_of(program: Any) -> Program:
    assert isinstance(program, Program)
    return program


def spec_of(package: Path) -> Any:
    spec = Model_pb2.Model()
    spec.ParseFromString((package / SPEC).read_bytes())
    return spec


def write_spec(package: Path, spec: Any) -> None:
    (package / SPEC).write_bytes(spec.SerializeToString())


def edit_manifest(package: Path, **fields: Any) -> None:
    """Set fields of every item of the manifest."""
    manifest = json.loads((package / "Manifest.json").read_text())
    for item in manifest["itemInfoEntries"].values():
        item.update(fields)
    (package / "Manifest.json").write_text(json.dumps(manifest))


def entries(package: Path) -> list[int]:
    """Offsets of the entries in the weight file."""
    content = (package / WEIGHTS).read_bytes()
    return [at for at in range(64, len(content), 64) if struct.unpack_from("<I", content, at)[0] == 0xDEADBEEF]


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below the folder, hidden ones included."""
    return {str(each.relative_to(folder)): each.read_bytes() for each in sorted(folder.rglob("*")) if each.is_file()}
