"""How large the files of a set may be on a device, how many chunks that makes, and what else is known of it.

The limits and hazards are reports of others, told with each; nothing of it was measured on a device here, so that what
they say is advice and refuses nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from milopt.errors import MiloptError
from milopt.mil import Function, is_state, shape_of
from milopt.package import Model
from milopt.sets.choosing import EmbeddingPart, HeadPart
from milopt.sets.deployment import DeploymentSet, weight_bytes
from milopt.sets.dividing import fewest_chunks

__all__ = ["TARGETS", "Advice", "Target", "advise", "target_named", "warnings_for"]

_GB = 1_000_000_000
# P2: a package above this was seen to run on the GPU without a word.
_SILENT_GPU = 1_400_000_000
# S6: sizes of a state that are no multiple of it were seen to fail on the Neural Engine.
_STATE_STEP = 32


@dataclass(frozen=True)
class Target:
    """A kind of device: weight files there stay below ``limit`` bytes, and ``source`` says who found that."""

    name: str
    limit: int
    source: str


TARGETS: dict[str, Target] = {
    each.name: each
    for each in (
        Target("iphone", _GB, "a weight file above 1 GB may not load on an iPhone: Anemll 0.3.5 notes"),
        Target("ipad", _GB, "a weight file above 1 GB may not load on an iPad without an M chip: Anemll 0.3.5 notes"),
        Target("mac", 2 * _GB, "a weight file above 2 GB does not load: apple/coremltools#1807, smpanaro"),
    )
}


@dataclass(frozen=True)
class Advice:
    """How many chunks a target asks for; ``reason`` is a sentence."""

    target: Target
    chunks: int
    reason: str


def target_named(name: str) -> Target:
    """MiloptError, with the names there are, for an unknown one."""
    if name not in TARGETS:
        raise MiloptError(f"there is no target {name!r}; there are: {', '.join(TARGETS)}")
    return TARGETS[name]


def advise(model: Model, target: str, *, embedding: EmbeddingPart = "package", head: HeadPart = "package") -> Advice:
    """The fewest chunks whose weight files stay below the target's limit, and why; the options are ``chunk``'s.

    SetError where a single layer is larger than that.
    """
    chosen = target_named(target)
    whole = weight_bytes(model)
    count = fewest_chunks(model, chosen.limit - 1, embedding=embedding, head=head)
    fits = "fit" if whole < chosen.limit else "do not fit"
    reason = (
        f"{count} chunk{'s' if count > 1 else ''}: the program's {whole:,} bytes of weights {fits} in one file; "
        f"{chosen.source}"
    )
    return Advice(chosen, count, reason)


def warnings_for(made: DeploymentSet, target: str) -> list[str]:
    """What is known to go wrong on the target with parts like these, each with who found it."""
    chosen = target_named(target)
    found: list[str] = []
    for name, size in made.sizes().items():
        if size >= chosen.limit:
            found.append(f"{name} has {size:,} bytes of weights: {chosen.source}")
        elif size > _SILENT_GPU:
            found.append(f"{name} has {size:,} bytes: above 1.4 GB a package was seen to run on the GPU (CoreML-LLM)")
    for name, each in made.files.items():
        if isinstance(each, Model):
            found += [f"{name}: {text}" for text in dict.fromkeys(_hazards(each, chosen))]
    return found


def _hazards(model: Model, target: Target) -> Iterator[str]:
    stateful = [each for each in model.functions.values() if _states(each)]
    if any(len(_states(each)) > 2 for each in stateful):
        yield "more than two states in a function were seen to fail when it runs (CoreML-LLM, MLSTATE_PATTERN.md)"
    if any(len({tuple(shape) for shape in _states(each)}) > 1 for each in stateful):
        yield "states of different shapes were seen to fail on M1 and A14 (Anemll 0.3.5 notes)"
    if any(size % _STATE_STEP for each in stateful for shape in _states(each) for size in shape[-2:]):
        yield "a state whose sizes are no multiples of 32 may not load (apple/coremltools#2631, #2553)"
    if target.name == "iphone" and len(stateful) > 1 and any(_length(each) > 1 for each in stateful):
        yield (
            "several functions with a state, some of more than one token, were seen not to compile for an iPhone's "
            "Neural Engine, where one alone did (CoreML-LLM, MLSTATE_MULTIMODAL_PROBE.md)"
        )


def _states(function: Function) -> list[list[int]]:
    return [
        [int(dim) for dim in shape_of(var) if isinstance(dim, int)] for var in function.inputs.values() if is_state(var)
    ]


def _length(function: Function) -> int:
    """How many tokens a call is about: the most that an input's positions or rows say."""
    rows = [shape_of(var)[-2:] for var in function.inputs.values() if not is_state(var) and len(shape_of(var)) == 4]
    return max((int(shape[0]) for shape in rows if isinstance(shape[0], int)), default=1)
