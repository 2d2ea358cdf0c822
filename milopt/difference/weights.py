"""Constants compared: by what they hold, how often and where it is stored, and what is noted on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from milopt.difference.facts import quoted
from milopt.difference.graph import Constant
from milopt.difference.ops import Compared
from milopt.difference.result import Change
from milopt.difference.tensors import Tensor, numbers

__all__ = ["compare_constants", "compare_sharing"]

Found = Iterator[tuple[str, Change]]


def compare_constants(parts: Iterable[Compared]) -> Found:
    """Changes in the constants of all functions; a tensor that several of them use is told once."""
    told: set[object] = set()
    lone: dict[str, list[tuple[str, Constant]]] = {"removed": [], "added": []}
    known: dict[str, set[str]] = {"removed": set(), "added": set()}
    for part in parts:
        lone["removed"] += part.gone
        lone["added"] += part.come
        for slot, old, new in part.constants:
            yield from _notes(slot, old, new, told)
            if old.tensor is None or new.tensor is None or str(old.tensor) != str(new.tensor):
                # of other types: the op that uses it says so
                lone["removed"].append((slot, old))
                lone["added"].append((slot, new))
                continue
            known["removed"].add(old.tensor.digest)
            known["added"].add(new.tensor.digest)
            if old.tensor.digest != new.tensor.digest and _is_new((old.tensor.digest, new.tensor.digest), told):
                facts = {"bytes": len(new.tensor.bytes), **numbers(old.tensor, new.tensor)}
                yield "weights", Change("changed", slot, _told(old.tensor), _told(new.tensor), facts)
    yield from _lone(lone, known, told)


def _lone(lone: dict[str, list[tuple[str, Constant]]], known: dict[str, set[str]], told: set[object]) -> Found:
    for kind, other in (("removed", "added"), ("added", "removed")):
        there = known[other] | {each.tensor.digest for _, each in lone[other] if each.tensor}
        for slot, constant in lone[kind]:
            tensor = constant.tensor
            if tensor is None or tensor.digest in there or not _is_new((kind, tensor.digest), told):
                continue
            texts = (_told(tensor), "") if kind == "removed" else ("", _told(tensor))
            yield "weights", Change(kind, slot, texts[0], texts[1], {"bytes": len(tensor.bytes)})


def _told(tensor: Tensor) -> str:
    return f"{tensor} #{tensor.digest[:16]}"


def _is_new(key: object, told: set[object]) -> bool:
    if key in told:
        return False
    told.add(key)
    return True


def _notes(slot: str, old: Constant, new: Constant, told: set[object]) -> Found:
    """What the package says about a constant beside its value; of a ``const`` with several users it is told once."""
    if not _is_new((old, new), told):
        return
    for section, what, read in (
        ("docs", "doc string", _doc),
        ("attributes", "attributes", _attributes),
        ("names", "constant", _name),
        ("storage", "place", _place),
        ("encoding", "form", _form),
    ):
        before, after = read(old), read(new)
        if before != after and not (section == "names" and None in (old.owner, new.owner)):
            yield section, Change("changed", f"{slot}, {what}", before, after)


def _doc(constant: Constant) -> str:
    return str(constant.proto.docString)


def _attributes(constant: Constant) -> str:
    """The attributes of the ``const`` and of its type."""
    if constant.owner is None or constant.value is None:
        return ""
    own = {name: value for name, value in constant.owner.attributes.items() if name not in ("name", "val")}
    own |= {f"type {name}": value for name, value in constant.value.proto.type.tensorType.attributes.items()}
    return ", ".join(f"{name}=#{own[name].SerializeToString(deterministic=True).hex()}" for name in sorted(own))


def _name(constant: Constant) -> str:
    if constant.owner is None or constant.value is None:
        return ""
    names = constant.owner.attributes["name"].immediateValue.tensor.strings.values
    return f"{', '.join(map(quoted, names))} as {quoted(constant.value.name)}"


def _place(constant: Constant) -> str:
    blob = constant.proto.WhichOneof("value") == "blobFileValue"
    return str(constant.proto.blobFileValue.fileName) if blob else "the specification"


def _form(constant: Constant) -> str:
    return "written inside the op" if constant.owner is None else "a const"


def compare_sharing(before: Iterable[tuple[str, Tensor]], after: Iterable[tuple[str, Tensor]]) -> Found:
    """Tensors that both packages hold, and one of them more often."""
    old, new = _copies(before), _copies(after)
    for digest in (each for each in old if each in new):
        (slot, tensor, one), (_, _, other) = old[digest], new[digest]
        if len(one) != len(other):
            what = f"{slot}, {tensor}"
            facts = {"bytes": len(tensor.bytes)}
            yield "sharing", Change("changed", what, _times(len(one)), _times(len(other)), facts)


def _copies(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, tuple[str, Tensor, set[tuple[str, int]]]]:
    found: dict[str, tuple[str, Tensor, set[tuple[str, int]]]] = {}
    for slot, tensor in tensors:
        if tensor.place is not None:
            found.setdefault(tensor.digest, (slot, tensor, set()))[2].add(tensor.place)
    return found


def _times(count: int) -> str:
    return "stored once" if count == 1 else f"stored {count} times"
