"""Where a model comes from: a model in memory, a directory of weights, or a GGUF file. Nothing is downloaded."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from milopt.huggingface.errors import ConversionError
from milopt.huggingface.extras import extra
from milopt.huggingface.families import Kind, kind_of, masks_of, require_convertible
from milopt.huggingface.ggufs import amend, read_gguf
from milopt.huggingface.quiet import gguf_read_once, transformers_quiet

if TYPE_CHECKING:
    from milopt.huggingface.origins import Origin

__all__ = ["ModelSource", "Progress", "Source", "locate", "open_source"]

ModelSource: TypeAlias = "str | os.PathLike[str] | Any"
Progress: TypeAlias = Callable[[str], None]
"""Called with one lowercase sentence at the start of every step."""

_MODEL_ID = re.compile(r"[\w.-]+/[\w.-]+")
_PARTS = {
    "AutoConfig": "its config",
    "AutoTokenizer": "its tokenizer",
    "GenerationConfig": "its generation_config.json",
}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
# Checkpoints of old transformers hold the rotary frequencies and the numbers of positions, which the model computes.
_RECOMPUTED = ("rotary_emb.inv_freq", "embeddings.position_ids")


@dataclass(frozen=True)
class Source:
    """A loaded model with its tokenizer, if it has one; ``name`` is a name and never a path.

    ``origins`` are the matrices that its checkpoint has quantized.
    """

    model: Any
    tokenizer: Any | None
    name: str
    architecture: str
    kind: Kind = "decoder"
    origins: tuple[Origin, ...] = ()


def open_source(
    model_or_dir: ModelSource,
    *,
    context: int,
    tokenizer: Any | None = None,
    pickles: bool = False,
    stand_ins: bool = False,
    progress: Progress | None = None,
) -> Source:
    """Load what ``model_or_dir`` names, after checking that milopt can convert it for ``context`` columns.

    A path is a directory with ``config.json`` and safetensors, a directory with one ``.gguf``, or a ``.gguf`` file; or
    the name of a model, as ``org/name``, that was downloaded into Hugging Face's cache before.
    ``pickles`` allows PyTorch's ``.bin`` files that hold nothing but tensors. With ``stand_ins`` the large matrices of
    a checkpoint stay in their files, and torch computes with them within ``real_weights`` only; see
    :mod:`milopt.huggingface.standins`.
    A given ``tokenizer`` is used instead of the directory's. :class:`ConversionError` when something is missing,
    damaged or unsupported; a checkpoint that does not fill the model, or holds more than it, counts as damaged.
    """
    if not isinstance(model_or_dir, (str, os.PathLike)):
        return _in_memory(model_or_dir, context, tokenizer)
    named = cast("str | os.PathLike[str]", model_or_dir)
    source = _on_disk(named, context, tokenizer, pickles, progress or _say_nothing)
    if not stand_ins:
        from milopt.huggingface.standins import realize

        realize(source.model)
    return source


def _on_disk(
    named: str | os.PathLike[str], context: int, tokenizer: Any | None, pickles: bool, progress: Progress
) -> Source:
    path = locate(named)
    progress(f"load {path.name if path.is_file() else _name(path)}")
    if path.is_file():
        extra("gguf", error=ConversionError)
        with gguf_read_once():
            return _from_gguf(path, context, tokenizer)
    return _from_checkpoint(path, context, tokenizer, pickles, progress)


def locate(named: str | os.PathLike[str]) -> Path:
    """The folder with ``config.json``, or the ``.gguf`` file, that ``named`` means: a path, or a model in the cache."""
    path = Path(named).expanduser()
    if not path.exists():
        path = _cached(os.fspath(named))
    return _gguf_file(path) or path


def _cached(name: str) -> Path:
    """The folder that Hugging Face's cache has for a model's name; ConversionError, with what to do, without one."""
    absent = f"{name}: no such file or directory (milopt reads models from disk and downloads none"
    if not _MODEL_ID.fullmatch(name):
        raise ConversionError(f"{absent})")
    hub = extra("huggingface_hub", error=ConversionError)
    try:
        with transformers_quiet():
            return Path(hub.snapshot_download(name, local_files_only=True))
    except Exception as problem:  # the hub's own errors, of several modules
        raise ConversionError(f"{absent}; to fetch this one: hf download {name})") from problem


def _name(directory: Path) -> str:
    """A folder's name; of one in Hugging Face's cache, that of the model."""
    whole = directory.resolve()
    cached = whole.parent.parent.name
    return cached.rpartition("--")[2] if cached.startswith("models--") else whole.name


def _in_memory(model: Any, context: int, tokenizer: Any | None) -> Source:
    config = getattr(model, "config", None)
    if config is None or not callable(getattr(model, "parameters", None)):
        raise ConversionError(f"a {type(model).__name__} is neither a path nor a transformers model")
    kind = _supported(config, type(model).__name__, context)
    if any(parameter.is_meta or not parameter.is_floating_point() for parameter in model.parameters()):
        raise ConversionError("the model's weights are quantized or not in memory; load it whole and as floats")
    name = Path(str(getattr(config, "_name_or_path", "") or config.model_type)).name
    return Source(model, tokenizer, name, type(model).__name__, kind)


def _gguf_file(path: Path) -> Path | None:
    """The GGUF file that ``path`` is or holds; ``None`` for a directory of safetensors."""
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ConversionError(f"{path}: neither a directory nor a .gguf file")
        return path
    if (path / "config.json").is_file():
        return None
    found = sorted(file for file in path.iterdir() if file.suffix.lower() == ".gguf")
    if not found:
        raise ConversionError(f"{path}: holds neither config.json nor a .gguf file")
    if len(found) > 1:
        raise ConversionError(f"{path}: holds {len(found)} .gguf files, name one: {', '.join(f.name for f in found)}")
    return found[0]


def _from_gguf(file: Path, context: int, tokenizer: Any | None) -> Source:
    from milopt.huggingface.checkpoints import build, origins_of
    from milopt.huggingface.gguf_tensors import gguf_tensors

    gguf = read_gguf(file)
    options = {"gguf_file": file.name}
    config = _load("AutoConfig", file.parent, options)
    names: dict[str, str] = extra("transformers.models.auto.modeling_auto").MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if config.model_type not in names:
        raise gguf.refused(f"its architecture is {gguf.architecture!r}, which transformers has no language model for")
    amend(config, gguf)
    kind = _supported(config, names[config.model_type], context)
    # what is loaded are floats
    _quantization(config)
    with transformers_quiet():
        tensors = gguf_tensors(gguf, config, _class_name(config, kind, ""))
    model = build(tensors, lambda state: _load_state(config, kind, "", file, state))
    if tokenizer is None and gguf.has_tokenizer:
        tokenizer = _load("AutoTokenizer", file.parent, options)
    return Source(model, tokenizer, file.stem, type(model).__name__, origins=origins_of(tensors))


def _from_checkpoint(directory: Path, context: int, tokenizer: Any | None, pickles: bool, tell: Progress) -> Source:
    from milopt.huggingface.checkpoints import build, has_pickles, has_safetensors, origins_of, read

    config = _load("AutoConfig", directory, {})
    named = (getattr(config, "architectures", None) or [config.model_type])[0]
    kind = _supported(config, named, context)
    if not has_safetensors(directory) and not (pickles and has_pickles(directory)):
        raise ConversionError(
            f"{directory}: holds no .safetensors (pickled .bin weights can run code; those with nothing but tensors in "
            "them are read with --pickles)"
        )
    quantization = _quantization(config)
    if quantization is not None:
        tell(f"decode the weights, which {quantization.get('quant_method')} quantized")
        if loss := _activations(quantization):
            tell(loss)
    tensors = read(directory, quantization, pickles=pickles)
    model = build(tensors, lambda state: _load_state(config, kind, named, directory, state))
    if (directory / "generation_config.json").is_file() and kind == "decoder":
        model.generation_config = _load("GenerationConfig", directory, {})
    if tokenizer is None and kind != "image-encoder" and any((directory / name).is_file() for name in _TOKENIZER_FILES):
        tokenizer = _load("AutoTokenizer", directory, {})
    return Source(model, tokenizer, _name(directory), type(model).__name__, kind, origins_of(tensors))


def _quantization(config: Any) -> dict[str, Any] | None:
    """How a checkpoint is quantized, taken out of the config: what is loaded are floats."""
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return None
    del config.quantization_config
    return cast("dict[str, Any]", settings if isinstance(settings, dict) else settings.to_dict())


def _activations(settings: dict[str, Any]) -> str | None:
    """What is lost of a quantization that rounds activations too."""
    rounds = any(_mapping(each).get("input_activations") for each in _mapping(settings.get("config_groups")).values())
    if settings.get("activation_scheme") or rounds:
        return "activations, which the checkpoint's makers rounded too, stay as they are"
    return None


def _mapping(value: Any) -> dict[str, Any]:
    """What should be a mapping, and may be anything: nothing, then."""
    found: dict[str, Any] = value
    return found if isinstance(value, dict) else {}


def _load_state(config: Any, kind: Kind, named: str, place: Path, state: dict[str, Any]) -> Any:
    """The float32 model of that config with these tensors."""
    return _load_model(_class_name(config, kind, named), place, {"config": config, "state_dict": state})


def _class_name(config: Any, kind: Kind, named: str) -> str:
    """transformers' language model of that config, or what the checkpoint names."""
    mapping = extra("transformers", error=ConversionError).MODEL_FOR_CAUSAL_LM_MAPPING
    return str(mapping[type(config)].__name__) if kind == "decoder" and type(config) in mapping else named


def _supported(config: Any, architecture: str, context: int) -> Kind:
    """What kind of model it is; ConversionError unless milopt has a form for it, as far as the config tells."""
    kind = kind_of(architecture, config)
    if kind == "decoder":
        masks_of(architecture, config)
    if kind != "image-encoder":
        require_convertible(config, context)
    return kind


def _load_model(class_name: str, place: Path, options: dict[str, Any]) -> Any:
    """A float32 model; ConversionError unless the checkpoint has exactly what it needs."""
    torch = extra("torch")
    # without the second, transformers prints what does not fit and raises an error that does not name it
    telling = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    model, info = _load(class_name, place, {**options, "dtype": torch.float32, **telling})
    if unlike := sorted(info.get("mismatched_keys", ())):
        shapes = [f"{name} is {tuple(there)} there and {tuple(wanted)} by its config" for name, there, wanted in unlike]
        raise ConversionError(f"{place}: the checkpoint does not fit the model: {', '.join(shapes[:3])}")
    for kind in ("missing_keys", "unexpected_keys"):
        if keys := sorted(str(key) for key in info.get(kind, ()) if not str(key).endswith(_RECOMPUTED)):
            raise ConversionError(f"{place}: the checkpoint does not fit the model, {kind[:-5]}: {', '.join(keys[:3])}")
    return model


def _load(class_name: str, place: Path, options: dict[str, Any]) -> Any:
    transformers = extra("transformers", error=ConversionError)
    if not hasattr(transformers, class_name):
        raise ConversionError(f"{place}: transformers {transformers.__version__} has no {class_name}")
    # tensors that are given are not looked for
    path = None if "state_dict" in options else str(place)
    try:
        with transformers_quiet():
            return getattr(transformers, class_name).from_pretrained(
                path, local_files_only=True, trust_remote_code=False, **options
            )
    except Exception as problem:  # transformers raises whatever the damaged file makes its readers raise
        what = _PARTS.get(class_name, "it")
        raise ConversionError(f"{place}: transformers can't load {what}: {_reason(problem)}") from problem


def _say_nothing(_: str) -> None:
    pass


def _reason(problem: Exception) -> str:
    """The first line of what went wrong, with the second where it ends in a colon; of a lookup, also that it is one."""
    name, lines = type(problem).__name__, [line.strip() for line in str(problem).splitlines() if line.strip()]
    if not lines:
        return name
    first = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return f"{name}: {first}" if isinstance(problem, LookupError) else first
