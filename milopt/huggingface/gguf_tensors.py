"""A GGUF file's tensors as transformers names and arranges them, one at a time.

transformers' own loader holds all of them in float32. Its parts are used here: what it makes of a tensor, and its table
of names. A tensor that it has no place for is an error.

Importing this module imports torch; milopt does so only while it converts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import prod
from typing import Any, TypeAlias

import numpy as np
import torch

from milopt.huggingface.errors import ConversionError
from milopt.huggingface.extras import extra
from milopt.huggingface.gguf_scales import BEYOND, FLOATS, run_of, scales_of
from milopt.huggingface.ggufs import FACTORS, GGUF
from milopt.huggingface.origins import Grid, Origin, Quantized
from milopt.huggingface.spilling import spilled
from milopt.huggingface.standins import Elements

__all__ = ["gguf_tensors"]

Array: TypeAlias = Any  # numpy.ndarray; its generic form is more than pyright strict can follow


def gguf_tensors(gguf: GGUF, config: Any, class_name: str) -> dict[str, Elements]:
    """The parameters, dequantized as gguf does it, of the transformers class by name; they lie in temporary files.

    ConversionError where transformers has no place for a tensor, or its reader is another than milopt knows.
    """
    library, transformers = extra("gguf", error=ConversionError), extra("transformers", error=ConversionError)
    loading: Any = extra("transformers.modeling_gguf_pytorch_utils")
    try:
        with torch.device("meta"):
            empty = getattr(transformers, class_name)(config)
        kind = loading.TENSOR_PROCESSORS.get(gguf.architecture, loading.TensorProcessor)
        processor = kind(config=config.to_dict())
        names: dict[str, str] = loading.get_gguf_hf_weights_map(empty, processor)
    except Exception as problem:  # transformers raises what it meets
        reason = next(iter(str(problem).strip().splitlines()), type(problem).__name__)
        raise gguf.refused(f"transformers can't read a {gguf.architecture!r}: {reason}") from problem
    result: dict[str, Elements] = {}
    # some of transformers' processors put what they make here themselves
    parsed: dict[str, Any] = {"config": config.to_dict(), "tensors": {}}
    for name, tensor in gguf.tensors.items():
        if name == FACTORS:
            continue
        if name not in names and name != "output.weight":
            raise gguf.refused(f"holds {name!r}, which transformers does not read")
        try:
            made = processor.process(
                weights=library.dequantize(tensor.data, tensor.tensor_type),
                name=name,
                tensor_key_mapping=names,
                parsed_parameters=parsed,
            )
        except Exception as problem:  # a shape that makes no sense, a type of blocks that gguf does not know
            raise gguf.refused(f"{name!r} can't be read: {type(problem).__name__}: {problem}") from problem
        if made.name in names:
            array: Any = np.ascontiguousarray(made.weights, np.float32)
            untyped: Any = torch
            elements = spilled(untyped.from_numpy(array.copy()))
            if tensor.tensor_type.name not in FLOATS:
                arranged = partial(_arranged, name=name, processor=processor, names=names)
                origin = _origin(tensor, array.shape, library, arranged)
                elements = Quantized(elements, origin)
            result[names[made.name]] = elements
    return result | {name: spilled(each) for name, each in parsed["tensors"].items()}


def _origin(tensor: Any, shape: tuple[int, ...], library: Any, arranged: Callable[[Array], Array | None]) -> Origin:
    """What the file holds; its scales are arranged as the elements are, whose ``shape`` then tells the blocks."""
    kind = str(tensor.tensor_type.name)
    length, size = library.GGML_QUANT_SIZES[tensor.tensor_type]
    rows = tensor.data.reshape(-1, tensor.data.shape[-1])
    columns = rows.shape[1] // size * length
    runs: Any = np.broadcast_to(np.zeros((), np.float32), (*tensor.data.shape[:-1], columns // run_of(kind, length)))
    tables = _counts(arranged(runs), shape)

    def scales() -> Array | None:
        found = scales_of(kind, rows.reshape(-1, size), library)
        return None if found is None else arranged(found.reshape(*tensor.data.shape[:-1], -1))

    grid = None
    if tables is not None and scales_of(kind, rows.reshape(-1, size)[:1], library) is None:
        grid = Grid(None, tables)
    elif tables is not None and _counts(scales(), shape) is not None:
        grid = Grid(lambda: _matrix(scales()), tables)
    return Origin(str(tensor.name), kind, int(tensor.n_bytes), grid, BEYOND.get(kind, ""))


def _arranged(each: Array, name: str, processor: Any, names: Mapping[str, str]) -> Array | None:
    """One number for each of some blocks, arranged as transformers arranges the elements; ``None`` where it can't be.

    Its processors move rows and axes, and so move whole blocks along.
    """
    try:
        given: dict[str, Any] = {"tensor_key_mapping": names, "parsed_parameters": {"config": {}, "tensors": {}}}
        return np.asarray(processor.process(weights=each, name=name, **given).weights)
    except Exception:  # whatever a processor meets that takes apart what has another shape
        return None


def _counts(each: Array | None, shape: tuple[int, ...]) -> tuple[int, int] | None:
    """How many blocks a matrix of that shape has along its rows and columns; ``None`` where they are none of it.

    Axes before the last two count as rows, of which then every one has blocks of its own.
    """
    if each is None or each.ndim != len(shape) or each.ndim < 2 or 0 in each.shape:
        return None
    if any(size % count for size, count in zip(shape, each.shape, strict=True)):
        return None
    if each.ndim > 2 and shape[:-1] != each.shape[:-1]:
        return None
    *leading, last = each.shape
    return prod(leading), last


def _matrix(each: Array) -> torch.Tensor:
    """float32 (rows, columns)."""
    matrix: Array = np.array(each, np.float32)
    untyped: Any = torch
    made: torch.Tensor = untyped.from_numpy(matrix.reshape(-1, each.shape[-1]))
    return made
