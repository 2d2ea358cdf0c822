"""A GGUF file's tensors as transformers names and arranges them, one at a time.

transformers' own loader holds all of them in float32. Its parts are used here: what it makes of a tensor, and its table
of names. A tensor that it has no place for is an error.

Importing this module imports torch; milopt does so only while it converts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from milopt.huggingface.errors import ConversionError
from milopt.huggingface.extras import extra
from milopt.huggingface.ggufs import FACTORS, GGUF
from milopt.huggingface.spilling import spilled
from milopt.huggingface.standins import Elements

__all__ = ["gguf_tensors"]


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
            result[names[made.name]] = spilled(untyped.from_numpy(array.copy()))
    return result | {name: spilled(each) for name, each in parsed["tensors"].items()}
