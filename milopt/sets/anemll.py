"""ANEMLL's form of a set: embeddings, chunks with the functions ``infer`` and ``prefill``, a head, and ``meta.yaml``.

What its clients read is written in Anemll 0.3.4 (combine_models.py, metadata.py, tests/chat.py and convert_model.sh).
They make one state, of the first chunk's ``prefill``, for all chunks and both functions.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from milopt.package import Model
from milopt.package.container import relative_path
from milopt.package.publishing import published
from milopt.passes.head import SplitHead
from milopt.sets.anemll_argmax import give_largest
from milopt.sets.anemll_files import META, client_files, meta_text, notes_of, package_names
from milopt.sets.anemll_parts import chunk_part, embeddings_part, head_part, lut_bits, prepared
from milopt.sets.deployment import weight_bytes
from milopt.sets.dividing import chunk
from milopt.sets.errors import SetError
from milopt.sets.manifests import check_replaceable, write_manifest
from milopt.sets.roles import decoder_of
from milopt.sets.source_checking import check_source
from milopt.sets.windows import with_own_masks
from milopt.signature_head import HEAD_KEY, HeadSignature

__all__ = ["AnemllSet", "anemll_set"]

# As many slices of the vocabulary as Anemll's converters make: 16 for Qwen's 151,936 words, else 8.
_SLICES, _SLICES_QWEN = 8, 16


@dataclass
class AnemllSet:
    """The packages that ANEMLL's clients load, in the order they run them, and what they read beside them.

    From position ``window`` on the client calls other functions, where it is not 0. ``words`` are the sizes of the
    vocabulary's slices; with ``argmax`` the head gives the largest logit of each alone. ``files`` are further files by
    name: ``meta.yaml``, ``config.json`` and the tokenizer's.
    """

    prefix: str
    embeddings: Model
    chunks: tuple[Model, ...]
    head: Model
    context: int
    batch: int
    slices: int
    window: int = 0
    words: tuple[int, ...] = ()
    argmax: bool = False
    files: dict[str, bytes] = field(default_factory=dict[str, bytes])
    notes: list[str] = field(default_factory=list[str])

    @property
    def packages(self) -> dict[str, Model]:
        """The packages by file name."""
        names = package_names(self.prefix, len(self.chunks), *self.bits)
        return dict(zip(names, (self.embeddings, *self.chunks, self.head), strict=True))

    @property
    def bits(self) -> tuple[int, int, int]:
        """Of the tables of embeddings, layers and head, 0 for none."""
        return lut_bits(self.embeddings), max(map(lut_bits, self.chunks)), lut_bits(self.head)

    def sizes(self) -> dict[str, int]:
        """The bytes of each package's weight file."""
        return {name: weight_bytes(each) for name, each in self.packages.items()}

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write ``folder``, whole or not at all; an old set of this form is replaced only if asked to."""
        root = Path(folder)
        if overwrite:
            check_replaceable(root, META, "ANEMLL set")
        with published(root, overwrite=overwrite, marker=META, suffix="", what="ANEMLL set") as fresh:
            for name, each in self.packages.items():
                each.save(fresh / name)
            for name, content in self.files.items():
                (fresh / relative_path(name, "file")).write_bytes(content)
            write_manifest(fresh)
        return root


def anemll_set(
    model: Model,
    *,
    count: int | None = None,
    max_bytes: int | None = None,
    at: Sequence[int] | None = None,
    batch: int | None = None,
    prefix: str = "model",
    slices: int | None = None,
    argmax: bool = False,
    carried: Mapping[str, bytes] | None = None,
) -> AnemllSet:
    """Cut a decoder into the set that ANEMLL's clients run; ``model`` stays as it is, and weights are shared with it.

    It has functions of fixed shapes for one token and for several (``batch``, the most there are), and one state of
    (2 layers, heads, slots, size) with the keys first, as ``kv-to-state{layout=unified}`` makes it. ``count``,
    ``max_bytes`` and ``at`` say where it is cut as in :func:`milopt.sets.chunk`. The head gives ``slices`` of the
    logits, 16 for Qwen and 8 for others unless said otherwise; with ``argmax`` the largest of each alone, which clients
    of 0.3.5 know. ``carried`` are files for the client in place of those made of what the package carries:
    ``config.json``, ``tokenizer.json``, ``tokenizer_config.json``...

    Layers may see a window alone: the masks of such are computed by the chunks. Where they keep rings, as
    ``kv-to-state{layout=unified,update=ring}`` makes them, there are two states, and functions for beyond the window.

    :class:`~milopt.sets.SetError` says in a line what the client does not know of the program.
    """
    if not prefix or any(each in prefix for each in "/\\ ") or prefix.startswith(".") or not prefix.isprintable():
        raise SetError(f"the prefix {prefix!r} is no beginning of a file name")
    masked, decoder = with_own_masks(model, decoder_of(model, batch=batch, windows=True))
    assert decoder.many is not None
    whole = prepared(masked, decoder)
    cut = chunk(
        whole,
        count=count,
        max_bytes=max_bytes,
        at=at,
        embedding="package",
        head="package",
        shared="recompute",
        tied="apart",
    )
    models = {part.name: each for part in cut.parts if isinstance(each := cut.files[part.file], Model)}
    first, *inner, last = cut.parts
    embeddings = embeddings_part(models[first.name], first, decoder.many.length)
    chunks = tuple(chunk_part(models[part.name], part, decoder) for part in inner)
    head = head_part(models[last.name], last)
    split = _split(head, slices, model)
    check_source(carried or {}, head, decoder, split)
    if argmax:
        give_largest(head, split)
    made = AnemllSet(prefix, embeddings, chunks, head, decoder.slots, decoder.many.length, len(split.sizes))
    made.window = decoder.window.tokens if decoder.window is not None and decoder.window.ring else 0
    made.words, made.argmax = split.sizes, argmax
    made.notes += cut.notes
    _sign(made, split)
    described = client_files(model, decoder, split)
    made.files = {**described, **(carried or {})}
    made.notes += notes_of(made.files, made.context, made.batch)
    made.files[META] = meta_text(
        model,
        prefix=prefix,
        context=made.context,
        batch=made.batch,
        names=list(made.packages),
        bits=made.bits,
        slices=made.slices,
        chosen=split.sizes if argmax else (),
        window=made.window,
    ).encode()
    return made


def _split(head: Model, slices: int | None, model: Model) -> HeadSignature:
    """Have the head give slices of the logits, unless it does."""
    known = HeadSignature.from_metadata(model.metadata)
    if known is not None:
        if known.kind != "slices" or known.output != "logits":
            raise SetError(f"the head gives {', '.join(known.names)}, and the client reads logits1, logits2, ...")
        if slices is not None and slices != len(known.names):
            raise SetError(f"the program's logits are in {len(known.names)} slices already, not {slices}")
        return known
    if slices is not None and slices < 2:
        raise SetError(f"the client joins 2 slices of the logits or more, not {slices}")
    qwen = model.metadata.get("milopt.architecture", "").lower().startswith("qwen")
    function = head.function()
    if [var.name for var in function.outputs] != ["logits"]:
        raise SetError(f"the head gives {', '.join(var.name for var in function.outputs)}, and the client reads logits")
    report = SplitHead(slices=slices or (_SLICES_QWEN if qwen else _SLICES), output="slices").run(head)
    made = HeadSignature.from_metadata(head.metadata)
    if made is None:
        why = report.misses[0] if report.misses else "no logits are made"
        raise SetError(f"the head can't be cut into slices of the vocabulary: {why}")
    head.metadata.pop(HEAD_KEY)
    return made


def _sign(made: AnemllSet, split: HeadSignature) -> None:
    """The metadata that clients look for (anemll/ane_converter/metadata.py)."""
    import milopt

    models: list[tuple[Model, dict[str, Any]]] = [(made.embeddings, {})]
    models += [(each, {"chunk_no": at}) for at, each in enumerate(made.chunks, 1)]
    sizes = ",".join(map(str, split.sizes))
    own = {"vocab_size": sum(split.sizes), "lm_head_chunk_sizes": sizes}
    models.append((made.head, {**own, **({"argmax_in_model": "true"} if made.argmax else {})}))
    for model, own in models:
        own = {
            "info": f"Made by milopt {milopt.__version__} for ANEMLL's clients",
            "context_length": made.context,
            "state_length": made.context,
            "batch_size": made.batch,
            "num_chunks": len(made.chunks),
            **({"lut_bits": bits} if (bits := lut_bits(model)) else {}),
            **({"functions": ",".join(model.functions)} if "chunk_no" in own else {}),
            **own,
        }
        model.metadata |= {f"com.anemll.{key}": str(value) for key, value in own.items()}
        model.attachments = {}
