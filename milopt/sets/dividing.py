"""``chunk``: one program becomes a deployment set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from milopt.mil import Program, Var, is_state
from milopt.package import Model
from milopt.package.tensors import stored_tensors
from milopt.sets.choosing import EmbeddingPart, HeadPart, layers_of
from milopt.sets.crossing import Shared, slices_of
from milopt.sets.cutting import STREAM_IN, STREAM_OUT, Cut, cut_out
from milopt.sets.deployment import DeploymentSet, Part, Step, Table, interface, weight_bytes
from milopt.sets.errors import SetError
from milopt.sets.partition import fewest
from milopt.sets.stream import Stream, stream_of
from milopt.sets.tables import table_of

__all__ = ["chunk", "fewest_chunks"]

_SUFFIX = ".mlpackage"
# Weights that an embedding and a head have in common are stored once, in one package, from this size on.
_WORTH_ONE_PACKAGE = 4096
# Bytes that each file of a set may add, beside a hundredth of the program's, before it is said that the set is larger.
_ROOM = 4096
_MULTIFUNCTION = 9  # the specification version of iOS 18


def chunk(
    model: Model,
    *,
    count: int | None = None,
    max_bytes: int | None = None,
    at: Sequence[int] | None = None,
    after: Literal["mlp", "attention"] = "mlp",
    embedding: EmbeddingPart = "first",
    head: HeadPart = "last",
    shared: Shared = "smaller",
    tied: Literal["together", "apart"] = "together",
) -> DeploymentSet:
    """Cut a program between its layers into chunks that run one after another; ``model`` stays as it is.

    ``count`` chunks, the largest of which stores as few bytes as possible; or as many as it takes to have at most
    ``max_bytes`` in every weight file; or cuts ``at`` these layers, counted from 0: behind each of them, or behind its
    attention with ``after="attention"``. All functions of the model are cut at the same places, and share weights in
    every part as before.

    With ``embedding="package"`` what comes before the first layer is a part of its own, with ``"table"`` an array of
    rows; with ``head="package"`` so is what follows the last layer and its norm. Where both are packages and have a
    weight in common, they are functions of one package, unless ``tied="apart"``.

    Each part gets from earlier ones the residual stream and what else it provably needs. Values that don't depend on
    the stream, such as masks and angles, are computed again or handed over, whichever takes ``"smaller"`` room; with
    ``shared`` always the one or always the other. A part declares the states it uses in their full shape, under their
    names, so that one state object serves all parts.

    :class:`~milopt.sets.SetError` says why it can't be done: too few layers, a limit that no cut can meet.
    """
    if sum(each is not None for each in (count, max_bytes, at)) != 1:
        raise SetError("say one of: the number of chunks, the most bytes of one, or the layers to cut behind")
    streams = {name: stream_of(function) for name, function in model.functions.items()}
    layers = layers_of(model, streams, after, embedding, head)
    chosen, why = layers.chosen(count, max_bytes, at)
    places = [*layers.before, *chosen, *layers.behind]
    names = [*(["embeddings"] if layers.before else []), *_chunk_names(len(chosen) + 1)]
    names += ["head"] if layers.behind else []
    cuts = {name: tuple(layers.values[place][name] for place in places) for name in streams}
    made = _made(model, streams, cuts, names, shared)
    result = _assembled(model, made, embedding, tied)
    result.notes.append(why)
    whole, total = weight_bytes(model), sum(result.sizes().values())
    if total - whole > whole // 100 + _ROOM * len(result.files):
        result.notes.append(
            f"the set stores {total:,} bytes of weights, the program {whole:,}: parts have weights in common"
        )
    if max_bytes is not None:
        for name, size in result.sizes().items():
            if size > max_bytes:
                raise SetError(f"no cut between layers keeps {name} within {max_bytes:,} bytes: it has {size:,}")
    return result


def fewest_chunks(model: Model, max_bytes: int, *, embedding: EmbeddingPart = "first", head: HeadPart = "last") -> int:
    """The smallest number of chunks, cut between layers, none of which stores more than ``max_bytes``.

    SetError where a layer alone stores more.
    """
    streams = {name: stream_of(function) for name, function in model.functions.items()}
    return fewest(layers_of(model, streams, "mlp", embedding, head).weights, max_bytes)


def _chunk_names(count: int) -> list[str]:
    digits = max(2, len(str(count)))
    return [f"chunk_{number:0{digits}}of{count:0{digits}}" for number in range(1, count + 1)]


@dataclass(frozen=True)
class _Made:
    """A part that was cut out."""

    name: str
    cut: Cut
    steps: dict[str, Step]


def _made(
    model: Model,
    streams: Mapping[str, Stream],
    cuts: Mapping[str, tuple[Var, ...]],
    names: Sequence[str],
    shared: Shared,
) -> list[_Made]:
    parts: list[_Made] = []
    where: dict[str, dict[Var, str]] = {name: {} for name in streams}
    for number, slices in enumerate(slices_of(streams, cuts, shared)):
        last = number == len(names) - 1
        out = STREAM_IN if names[number] == "embeddings" else STREAM_OUT
        cut = cut_out(
            model,
            slices,
            {name: each[number - 1] for name, each in cuts.items()} if number else {},
            {} if last else {name: (each[number], out) for name, each in cuts.items()},
        )
        steps: dict[str, Step] = {}
        for name, function in model.functions.items():
            takes = {
                each: where[name][cut.takes[name][each]] if each in cut.takes[name] else each
                for each, var in cut.model.function(name).inputs.items()
                if not is_state(var)
            }
            gives: dict[str, str] = {}
            for output, var in cut.gives[name].items():
                returned = any(var is each for each in function.outputs)
                gives[output] = where[name][var] = output if returned else f"{names[number]}/{output}"
            steps[name] = Step(name, takes, gives)
        parts.append(_Made(names[number], cut, steps))
    return parts


def _assembled(
    model: Model, made: Sequence[_Made], embedding: EmbeddingPart, tied: Literal["together", "apart"]
) -> DeploymentSet:
    count = len(made)
    files: dict[str, Model | Table] = {}
    parts: list[Part] = []
    for number, each in enumerate(made):
        each.cut.model.metadata |= {"milopt.part": each.name, "milopt.parts": str(count)}
        if number == 0 and each.name == "embeddings" and embedding == "table":
            table, steps = table_of(each.cut.model, each.steps)
            files["embeddings.npy"] = table
            parts.append(Part(each.name, "embeddings.npy", steps))
        else:
            files[each.name + _SUFFIX] = each.cut.model
            parts.append(Part(each.name, each.name + _SUFFIX, each.steps))
    result = DeploymentSet(
        tuple(parts),
        files,
        {name: interface(model, name)["inputs"] for name in model.functions},
        {name: tuple(var.name for var in function.outputs) for name, function in model.functions.items()},
        model.default_function,
        dict(model.metadata),
        dict(model.attachments),
    )
    if tied == "together":
        _join_ends(result)
    return result


def _join_ends(made: DeploymentSet) -> None:
    """One package for embedding and head where they have a weight in common."""
    ends = [each for each in made.parts if each.name in ("embeddings", "head")]
    models = [model for each in ends if isinstance(model := made.files[each.file], Model)]
    if len(models) != 2 or models[0].spec_version < _MULTIFUNCTION:
        return
    keys = [{each.key: each.bytes for each in stored_tensors(model)} for model in models]
    if sum(size for key, size in keys[0].items() if key in keys[1]) < _WORTH_ONE_PACKAGE:
        return
    one, file = models[0], f"embeddings_and_head{_SUFFIX}"
    program = Program()
    for part, model in zip(ends, models, strict=True):
        for name, function in model.functions.items():
            program.add_function(f"{part.name}_{name}", function)
    program.default_function_name = f"embeddings_{made.default_function}"
    program.export_as_multifunction = True
    joined = Model(
        program,
        one.spec_version,
        program.default_function_name,
        author=one.author,
        license=one.license,
        version=one.version,
        short_description=one.short_description,
        metadata={**one.metadata, "milopt.part": "embeddings, head"},
    )
    made.files = {
        file: joined,
        **{name: each for name, each in made.files.items() if name not in [e.file for e in ends]},
    }
    made.parts = tuple(
        Part(
            each.name,
            file,
            {name: Step(f"{each.name}_{name}", step.takes, step.gives) for name, step in each.steps.items()},
        )
        if each in ends
        else each
        for each in made.parts
    )
