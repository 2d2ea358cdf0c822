"""Packages with something changed in them, drawn by Hypothesis."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

from coremltools.proto import Model_pb2
from hypothesis import strategies as st

from .support import SPEC, WEIGHTS

__all__ = ["Mutant", "mutants"]

MANIFEST = "Manifest.json"
_NUMBERS = (0, 1, 2, 3, 10, 63, 64, 65, 128, 2**16, 2**31 - 1, 2**32, 2**40, 2**62, 2**63 - 1)
_PATHS = ("../outside", "/etc/hostname", "a/../../b", "com.apple.CoreML", "", ".", "weights", "a\\b", "x" * 5000)
_TEXTS = ("", "x", "y", "main", "const", "is1", "CoreML9", "é\n", "a" * 3000, "@model_path/weights/../../x.bin", "name")


@dataclass
class Mutant:
    """The files of a package by path, the links to make in it, and what was done to it."""

    files: dict[str, bytes]
    links: dict[str, str] = field(default_factory=dict[str, str])
    done: list[str] = field(default_factory=list[str])

    def __repr__(self) -> str:
        return f"Mutant({self.done})"


@st.composite
def mutants(draw: st.DrawFn, packages: dict[str, dict[str, bytes]]) -> Mutant:
    """One of ``packages`` with up to three changes."""
    name = draw(st.sampled_from(sorted(packages)))
    mutant = Mutant(dict(packages[name]), done=[name])
    for _ in range(draw(st.integers(1, 3))):
        change = draw(st.sampled_from((_field, _field, _field, _field, _bytes, _bytes, _entry, _manifest, _file)))
        mutant.done.append(change(draw, mutant))
    return mutant


def _bytes(draw: st.DrawFn, mutant: Mutant) -> str:
    """Bytes changed, added or taken away anywhere in a file."""
    path = draw(st.sampled_from(sorted(mutant.files)))
    content = bytearray(mutant.files[path])
    # most of what is parsed lies at the beginning
    at = draw(st.integers(0, max(0, min(len(content), draw(st.sampled_from((128, 4096, len(content))))) - 1)))
    some = draw(st.binary(max_size=8))
    kind = draw(st.sampled_from(("set", "set", "insert", "delete", "cut", "repeat")))
    if kind == "set":
        content[at : at + len(some)] = some
    elif kind == "insert":
        content[at:at] = some
    elif kind == "delete":
        del content[at : at + 1 + len(some)]
    elif kind == "cut":
        del content[at:]
    else:
        content[at:at] = content[at : at + 64]
    mutant.files[path] = bytes(content)
    return f"{kind} {some!r} at {at} of {path}"


def _entry(draw: st.DrawFn, mutant: Mutant) -> str:
    """A number in the header or an entry of the weight file."""
    content = bytearray(mutant.files.get(WEIGHTS, b""))
    starts = [at for at in range(64, len(content) - 64, 64) if content.startswith(b"\xef\xbe\xad\xde", at)]
    if not starts:
        return "nothing"
    at = draw(st.sampled_from([0, *starts]))
    offset, form = draw(st.sampled_from(((0, "<I"), (4, "<I"), (8, "<Q"), (16, "<Q"), (24, "<Q"))))
    number = draw(st.sampled_from([*_NUMBERS, len(content), *starts])) % (1 << (8 * struct.calcsize(form)))
    struct.pack_into(form, content, at + offset, number)
    mutant.files[WEIGHTS] = bytes(content)
    return f"{number} at {at}+{offset} of {WEIGHTS}"


def _manifest(draw: st.DrawFn, mutant: Mutant) -> str:
    """A path, or a whole item, of the manifest."""
    try:
        manifest = json.loads(mutant.files[MANIFEST])
        items = manifest["itemInfoEntries"]
        key = draw(st.sampled_from(sorted(items)))
        target = draw(st.sampled_from((items[key], items, manifest)))
    except (ValueError, KeyError, TypeError, IndexError):
        return "nothing"
    values: list[Any] = [*_PATHS, *_NUMBERS[:3], None, [], {}]
    value = draw(st.sampled_from(values))
    if not isinstance(target, dict) or not target:
        return "nothing"
    entry = cast("dict[str, Any]", target)
    name = draw(st.sampled_from(sorted(entry)))
    entry[name] = value
    mutant.files[MANIFEST] = json.dumps(manifest).encode()
    return f"manifest: {name} = {value!r}"


def _file(draw: st.DrawFn, mutant: Mutant) -> str:
    """A file is gone, empty, or a link."""
    path = draw(st.sampled_from(sorted(mutant.files)))
    kind = draw(st.sampled_from(("gone", "empty", "link")))
    if kind == "empty":
        mutant.files[path] = b""
    else:
        del mutant.files[path]
    if kind == "link":
        mutant.links[path] = draw(st.sampled_from(("../../../outside", "/etc/passwd", "model.mlmodel", "/")))
    if not mutant.files:
        mutant.files["Data/x"] = b""
    return f"{path} is {kind} {mutant.links.get(path, '')}"


def _field(draw: st.DrawFn, mutant: Mutant) -> str:
    """A field of the specification: set, cleared, repeated, dropped, or taken from elsewhere in it."""
    spec = Model_pb2.Model()
    try:
        spec.ParseFromString(mutant.files.get(SPEC, b""))
    except Exception:  # an earlier change left nothing to parse; protobuf's error class varies
        return "nothing"
    places = list(_places(spec.mlProgram)) if draw(st.integers(0, 9)) else list(_places(spec))
    if not places:
        return "nothing"
    message, descriptor = places[draw(st.integers(0, len(places) - 1))]
    done = _change(draw, message, descriptor, places)
    mutant.files[SPEC] = spec.SerializeToString()
    return f"{descriptor.full_name}: {done}"


def _places(message: Any) -> Iterator[tuple[Any, Any]]:
    """Every field that is set in the message and those below it."""
    for descriptor, value in message.ListFields():
        yield message, descriptor
        if descriptor.message_type is None:
            continue
        if descriptor.message_type.GetOptions().map_entry:
            inner = descriptor.message_type.fields_by_name["value"]
            below = list(value.values()) if inner.message_type is not None else []
        else:
            below = list(value) if descriptor.is_repeated else [value]
        for each in below:
            yield from _places(each)


def _change(draw: st.DrawFn, message: Any, descriptor: Any, places: list[tuple[Any, Any]]) -> str:
    name = descriptor.name
    if descriptor.message_type is not None and descriptor.message_type.GetOptions().map_entry:
        return _change_map(draw, getattr(message, name))
    if descriptor.is_repeated:
        return _change_repeated(draw, getattr(message, name), descriptor)
    if descriptor.message_type is not None:
        others = [each for each, _ in places if each.DESCRIPTOR is descriptor.message_type]
        elsewhere: bool = draw(st.booleans())
        if others and elsewhere:
            copy = descriptor.message_type._concrete_class()
            copy.CopyFrom(others[draw(st.integers(0, len(others) - 1))])
            getattr(message, name).CopyFrom(copy)
            return "taken from elsewhere"
        message.ClearField(name)
        return "cleared"
    value = _scalar(draw, descriptor)
    setattr(message, name, value)
    return f"set to {value!r}"[:80]


def _scalar(draw: st.DrawFn, descriptor: Any) -> Any:
    kinds = descriptor.CPPTYPE_STRING, descriptor.CPPTYPE_BOOL, descriptor.CPPTYPE_ENUM
    if descriptor.cpp_type == kinds[0]:
        text = draw(st.sampled_from(_TEXTS))
        return text.encode() if descriptor.type == descriptor.TYPE_BYTES else text
    if descriptor.cpp_type == kinds[1]:
        return draw(st.booleans())
    if descriptor.cpp_type == kinds[2]:
        return draw(st.sampled_from([*(value.number for value in descriptor.enum_type.values), 999]))
    number = draw(st.sampled_from(_NUMBERS))
    if descriptor.cpp_type in (descriptor.CPPTYPE_FLOAT, descriptor.CPPTYPE_DOUBLE):
        return float(number)
    if descriptor.cpp_type == descriptor.CPPTYPE_INT32:
        return min(number, 2**31 - 1)
    if descriptor.cpp_type == descriptor.CPPTYPE_UINT32:
        return min(number, 2**32 - 1)
    return number


def _change_repeated(draw: st.DrawFn, values: Any, descriptor: Any) -> str:
    at = draw(st.integers(0, len(values) - 1))
    kind = draw(st.sampled_from(("drop", "repeat", "move", "set")))
    if kind == "drop":
        del values[at]
    elif kind == "repeat":
        values.extend([values[at]])
    elif kind == "move":
        moved = values.pop(at)
        values.extend([moved])
    elif descriptor.message_type is None:
        values[at] = _scalar(draw, descriptor)
    else:
        values[at].Clear()
    return f"{kind} {at}"


def _change_map(draw: st.DrawFn, values: Any) -> str:
    key = draw(st.sampled_from(sorted(values)))
    if draw(st.booleans()):
        del values[key]
        return f"without {key!r}"
    other = draw(st.sampled_from(_TEXTS))
    if hasattr(values[key], "CopyFrom"):
        values[other].CopyFrom(values[key])
    else:
        values[other] = values[key]
    return f"{other[:20]!r} like {key!r}"
