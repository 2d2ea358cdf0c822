"""A directory's checkpoint as a transformers model: large matrices stay in their files, behind stand-ins.

Importing this module imports torch; milopt does so only while it converts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch

from milopt.huggingface.errors import ConversionError
from milopt.huggingface.origins import Origin, Quantized
from milopt.huggingface.pickled import read_pickled
from milopt.huggingface.quantized import decoded
from milopt.huggingface.safetensors import read_checkpoint
from milopt.huggingface.spilling import spilled
from milopt.huggingface.standins import Elements, is_stand_in, realize, stand_in

__all__ = ["Build", "build", "has_pickles", "has_safetensors", "origins_of", "read"]

Build: TypeAlias = Callable[[dict[str, torch.Tensor]], Any]
"""Makes a transformers model, in float32, of tensors by name."""

_FEWEST_QUANTIZED = 256  # elements of a quantized matrix, which is worth a stand-in even where it is small
_HEAD = 1024  # elements that tell most tensors of one shape apart


def has_safetensors(directory: Path) -> bool:
    return any(directory.glob("*.safetensors"))


def has_pickles(directory: Path) -> bool:
    return any(directory.glob("pytorch_model*.bin"))


def read(directory: Path, quantization: Mapping[str, Any] | None, *, pickles: bool = False) -> dict[str, Elements]:
    """The elements of a checkpoint's tensors by name; quantized matrices are decoded, and lie in temporary files.

    ``quantization`` is the config's ``quantization_config``; ``pickles`` allows PyTorch's ``.bin`` files where there
    are no safetensors. ConversionError where a file is missing, damaged, or of a kind that is not read.
    """
    if (directory / "adapter_config.json").is_file() and not (directory / "model.safetensors").is_file():
        raise ConversionError(f"{directory}: holds an adapter and no model; merge it into its model first")
    if has_safetensors(directory) or not pickles:
        tensors: dict[str, Elements] = dict(read_checkpoint(directory))
    else:
        tensors = read_pickled(directory)
    if quantization is None:
        return tensors
    floats: dict[str, Elements] = {}
    used: set[str] = set()
    for name, matrix, parts in decoded(tensors, quantization):
        kind = f"{quantization.get('quant_method')}, {matrix.kind}"
        stored = sum(each.numel() * each.element_size() for each in (tensors[part]() for part in parts))
        floats[name] = Quantized(spilled(matrix.values()), Origin(name, kind, stored, matrix.grid(), matrix.beyond))
        used |= parts
    if not floats:
        raise ConversionError(
            f"{directory}: its config says {quantization.get('quant_method')!r}, but no tensor is quantized that way"
        )
    return floats | {name: each for name, each in tensors.items() if name not in used and not _is_spent(name, floats)}


def origins_of(tensors: Mapping[str, Elements]) -> tuple[Origin, ...]:
    """Of those that are quantized."""
    return tuple(each.origin for each in tensors.values() if isinstance(each, Quantized))


# What quantized layers have beside their weights and is of no use to floats: scales of activations, empty biases' kin.
_SPENT = ("input_scale", "output_scale", "weight_format", "k_scale", "v_scale", "workspace")


def _is_spent(name: str, floats: Mapping[str, Elements]) -> bool:
    layer, _, part = name.rpartition(".")
    return part in _SPENT and (f"{layer}.weight" in floats or part in ("k_scale", "v_scale"))


def build(tensors: Mapping[str, Elements], make: Build) -> Any:
    """The model that ``make`` makes of the tensors: of stand-ins, or of real ones where it computes with them."""
    model = make(_standing_in(tensors))
    if all(is_stand_in(each) or torch.isfinite(each).all() for each in model.parameters()):
        return _settled(model)
    del model
    return make({name: _real(each()) for name, each in tensors.items()})


def _settled(model: Any) -> Any:
    """``model`` with real tables of positions: their rows are looked up at conversion where positions are constants."""
    words = model.get_input_embeddings()
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding) and module is not words and is_stand_in(module.weight):
            realize(module)
    return model


def _standing_in(tensors: Mapping[str, Elements]) -> dict[str, torch.Tensor]:
    """Stand-ins by name; tensors with the same elements have one. Integers are what they are."""
    known: dict[tuple[Any, ...], tuple[Elements, torch.Tensor]] = {}
    result: dict[str, torch.Tensor] = {}
    for name, elements in tensors.items():
        tensor = elements()
        if not tensor.is_floating_point():
            result[name] = tensor.clone()
            continue
        key = (tensor.dtype, tensor.shape, _head(tensor))
        if key in known and torch.equal(known[key][0](), tensor):
            first, result[name] = known[key]
            if isinstance(first, Quantized) and isinstance(elements, Quantized):
                first.twins.append(elements.origin)
            continue
        fewest = _FEWEST_QUANTIZED if isinstance(elements, Quantized) else None
        result[name] = stand_in(_contiguous(elements), tuple(tensor.shape), fewest)
        known[key] = elements, result[name]
    return result


def _contiguous(elements: Elements) -> Elements:
    """The elements in order; a pickle may hold a transposed tensor."""
    if elements().is_contiguous():
        return elements
    return spilled(elements().contiguous())


def _head(tensor: torch.Tensor) -> bytes:
    """The first elements; none of a tensor that is not in order."""
    return tensor.view(-1)[:_HEAD].float().numpy().tobytes() if tensor.is_contiguous() else b""


def _real(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.float32, copy=True) if tensor.is_floating_point() else tensor.clone()
