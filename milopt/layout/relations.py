"""Ops as relations between the layouts of their operands and results.

An op has *ports*: its operands, then its results. It names the pieces of its ports by *labels*: the same label at two
ports is the same axis of the computation. A *template* is a layout in labels; an op that can work in a template has at
each port the layout that the template says, of the labels which that port has.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from milopt.layout.forms import Layout, axes_of

__all__ = ["Along", "Fixed", "Free", "Mode", "OnRows", "OneByOne", "Port", "Product", "Relation", "Template", "Tied"]

Template: TypeAlias = "tuple[tuple[int, ...], ...]"

# constraint L1: the Neural Engine takes tensors of up to five axes
MOST_AXES = 5


@dataclass(frozen=True)
class Port:
    """An operand or result: the tensor's number, its layout in the program, and which pieces each label is.

    A label of several pieces, or of none where the axis has length 1 here, is one that the op treats specially.
    """

    tensor: int
    home: Layout
    groups: Mapping[int, tuple[int, ...]] = field(default_factory=dict[int, "tuple[int, ...]"])


@dataclass(frozen=True)
class Mode:
    """A way of working: the layout at each port, and the template it comes from (none where the op is as it was).

    ``flags`` are what else the op needs to be told.
    """

    layouts: tuple[Layout, ...]
    template: Template | None = None
    flags: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Relation(ABC):
    """What an op demands of the layouts at its ``ports``."""

    ports: tuple[Port, ...]

    @property
    def original(self) -> Mode:
        """The op as it is in the program."""
        return Mode(tuple(port.home for port in self.ports))

    def seeds(self) -> Iterator[Mode]:
        """Modes to begin with, beside the original one."""
        yield from ()

    @abstractmethod
    def with_layout(self, at: int, layout: Layout) -> Iterator[Mode]:
        """The modes in which the port number ``at`` has ``layout``."""


@dataclass(frozen=True)
class Fixed(Relation):
    """An op that works in the layouts it has."""

    def with_layout(self, at: int, layout: Layout) -> Iterator[Mode]:
        yield from ()


@dataclass(frozen=True)
class Free(Relation):
    """What the program takes or gives, in any layout but those that differ from its own in unit axes alone."""

    def with_layout(self, at: int, layout: Layout) -> Iterator[Mode]:
        usual = 1 <= len(layout) <= MOST_AXES and bool(layout[-1])  # constraint L2: no last axis of length 1
        if usual and axes_of(layout) != axes_of(self.ports[at].home):
            yield Mode((layout,))


@dataclass(frozen=True)
class Tied(Relation):
    """Values whose axes stand in one order, whichever that is: what is read of a state and written to it.

    They have the same axes, perhaps of other sizes; the first one stays where it is. ``flags`` of a mode are the order.
    """

    def with_layout(self, at: int, layout: Layout) -> Iterator[Mode]:
        home = self.ports[at].home
        axes = iter(axes_of(layout))
        if sorted(axes_of(layout)) != sorted(axes_of(home)):
            return
        order = tuple(home.index(next(axes)) if axis else index for index, axis in enumerate(home))
        if order[0] != 0:
            return
        layouts = tuple(tuple(port.home[index] for index in order) for port in self.ports)
        yield self.original if layouts == self.original.layouts else Mode(layouts, flags=order)


def _labels(layout: Layout, port: Port) -> Template | None:
    """The template that shows as ``layout`` at a port which has all labels; ``None`` where it cuts a label."""
    by_piece = {group[0]: (label, group) for label, group in port.groups.items() if group}
    template: list[tuple[int, ...]] = []
    for axis in layout:
        labels: list[int] = []
        at = 0
        while at < len(axis):
            label, group = by_piece.get(axis[at], (-1, ()))
            if not group or axis[at : at + len(group)] != group:
                return None
            labels.append(label)
            at += len(group)
        template.append(tuple(labels))
    return tuple(template)


def _shown(template: Template, port: Port) -> Layout | None:
    """The layout at a port; ``None`` where an axis has some of the port's labels and others that it lacks."""
    layout: list[tuple[int, ...]] = []
    for axis in template:
        present = [label for label in axis if label in port.groups]
        if present and len(present) < len(axis):
            return None
        layout.append(tuple(piece for label in present for piece in port.groups[label]))
    return tuple(layout)


def _stripped(layout: Layout) -> Layout:
    """Without the unit axes in front, which broadcasting puts there anyway."""
    at = next((at for at, axis in enumerate(layout) if axis), len(layout))
    return layout[at:]


@dataclass(frozen=True)
class Along(Relation):
    """Elementwise with broadcasting, and what works along whole axes: all ports show one template.

    The labels ``whole`` must be axes of their own. ``operands`` is the number of ports that are operands. ``drops`` are
    labels that the results lack (reductions). ``rank`` is the rank the template must have, where that matters, and
    ``channel`` a label that must be its axis 1 (a convolution). With ``broadcasts``, operands may lack unit axes.
    ``constants`` are the labels of operands written in the program, which can't be repeated along an axis that has a
    label of ``unknown`` length.
    """

    operands: int = 1
    broadcasts: bool = False
    constants: tuple[frozenset[int], ...] = ()
    unknown: frozenset[int] = frozenset()
    whole: frozenset[int] = frozenset()
    drops: frozenset[int] = frozenset()
    labels: frozenset[int] = frozenset()

    def with_layout(self, at: int, layout: Layout) -> Iterator[Mode]:
        port = self.ports[at]
        template = _labels(layout, port)
        if template is None:
            return
        if self._complete(port):
            yield from self.modes(template)
            return
        lacking = [label for label in self.labels if not port.groups.get(label)]
        if self.labels.issuperset(port.groups) and len(lacking) == 1 and self.whole.issuperset(lacking):
            # one of many along an axis, which could be any unit axis here; rows of a state are in front
            place = next((index for index, axis in enumerate(template) if not axis), None)
            if place is not None:
                yield from self.modes((*template[:place], (lacking[0],), *template[place + 1 :]))

    def _complete(self, port: Port) -> bool:
        return (
            self.labels.issuperset(port.groups) and len(port.groups) == len(self.labels) and all(port.groups.values())
        )

    def fits(self, template: Template) -> bool:
        """Whether the op itself can work in the template."""
        alone = all(len(axis) == 1 for axis in template for label in axis if label in self.whole)
        dropped = all(len(self.drops.intersection(axis)) in (0, len(axis)) for axis in template)
        return alone and dropped and not any(self._repeats(own, axis) for own in self.constants for axis in template)

    def _repeats(self, own: frozenset[int], axis: tuple[int, ...]) -> bool:
        """Whether a constant with the labels ``own`` would have to be repeated along an axis of unknown length."""
        return not self.unknown.isdisjoint(axis) and 0 < len(own.intersection(axis)) < len(axis)

    def modes(self, template: Template) -> Iterator[Mode]:
        """The op in a template: none where it can't work so, two where a smaller operand may stay as it is."""
        if not 1 <= len(template) <= MOST_AXES or not self.fits(template):
            return
        layouts: list[Layout] = []
        for port in self.ports:
            layout = _shown(template, port)
            if layout is None:
                return
            layouts.append(layout)
        yield self._mode(layouts, template)
        given = self.ports[: self.operands]
        if not self.broadcasts or not any(map(self._complete, given)):
            return
        for at, port in enumerate(given):
            # broadcasting adds unit axes in front by itself
            small = not self._complete(port) and len(port.home) <= len(template)
            if small and _stripped(layouts[at]) == _stripped(port.home):
                layouts[at] = port.home
        yield self._mode(layouts, template)

    def _mode(self, layouts: list[Layout], template: Template) -> Mode:
        as_it_was = tuple(layouts) == self.original.layouts
        return self.original if as_it_was else Mode(tuple(layouts), template)


@dataclass(frozen=True)
class OneByOne(Along):
    """A convolution with a 1x1 kernel: axis 0 is the batch, axis 1 the channels, the others any positions."""

    channel: int = 0
    batch: tuple[int, ...] = ()
    rank: int = 4

    def fits(self, template: Template) -> bool:
        if len(template) != self.rank or template[1] != (self.channel,) or template[0] != self.batch:
            return False
        # constraint L2: never a last axis of length 1 while there is a longer one
        return bool(template[-1]) or not any(template[2:])

    def seeds(self) -> Iterator[Mode]:
        template = _labels(self.ports[0].home, self.ports[0]) or ()
        others = tuple(label for axis in template for label in axis if label not in (self.channel, *self.batch))
        for axes in _groupings(others, self.rank - 2):
            yield from self.modes((self.batch, (self.channel,), *axes))


@dataclass(frozen=True)
class OnRows(Along):
    """A linear layer: the channels are the last axis, the others any positions; of at most ``rank`` axes."""

    channel: int = 0
    rank: int = 3

    def fits(self, template: Template) -> bool:
        return 2 <= len(template) <= self.rank and template[-1] == (self.channel,)

    def seeds(self) -> Iterator[Mode]:
        template = _labels(self.ports[0].home, self.ports[0]) or ()
        others = tuple(label for axis in template for label in axis if label != self.channel)
        for axes in _groupings(others, self.rank - 1):
            yield from self.modes((*axes, (self.channel,)))


def _groupings(labels: tuple[int, ...], count: int) -> Iterator[Template]:
    """The ways to put labels, in order and none joined with another, on ``count`` axes."""
    if count == 0:
        if not labels:
            yield ()
        return
    for rest in _groupings(labels, count - 1):
        yield ((), *rest)
    if labels:
        for rest in _groupings(labels[1:], count - 1):
            yield ((labels[0],), *rest)


@dataclass(frozen=True)
class Product(Relation):
    """``matmul``: labels that both operands have and the result too are the batch, ``inner`` those it lacks.

    ``rows`` are the first operand's own, ``columns`` the second's. Flags are (transpose_x, transpose_y, swapped): the
    operands are exchanged where the result has its columns before its rows.
    """

    inner: tuple[int, ...] = ()
    rows: tuple[int, ...] = ()
    columns: tuple[int, ...] = ()

    def seeds(self) -> Iterator[Mode]:
        template = _labels(self.ports[2].home, self.ports[2])
        if template is None:
            return
        batch = tuple(axis for axis in template[:-2])
        for front, last in _splits(self.rows):
            for front_columns, last_columns in _splits(self.columns):
                head = (*batch, *((each,) for each in (*front, *front_columns)))
                yield from self._modes((*head, last, last_columns))
                yield from self._modes((*head, last_columns, last))

    def with_layout(self, at: int, layout: Layout) -> Iterator[Mode]:
        template = _labels(layout, self.ports[at])
        if template is None or len(template) < 2:
            return
        if at == 2:
            yield from self._modes(template)
            return
        own, other = (self.rows, self.columns) if at == 0 else (self.columns, self.rows)
        shared = {label for label in self.ports[2].groups if label not in (*self.rows, *self.columns)}
        batch, pair = template[:-2], template[-2:]
        if self.inner not in pair or not shared <= {label for axis in batch for label in axis}:
            return
        mine = pair[1] if pair[0] == self.inner else pair[0]
        if not set(mine) <= set(own):
            return
        yield from self._modes((*batch, mine, other))
        yield from self._modes((*batch, other, mine))

    def _modes(self, template: Template) -> Iterator[Mode]:
        """The ways of computing a result in ``template``: either operand may be given transposed."""
        if len(template) > MOST_AXES:
            return
        *batch, one, other = template
        if set(one) <= set(self.rows) and set(other) <= set(self.columns):
            swapped, mine, theirs = False, one, other
        elif set(one) <= set(self.columns) and set(other) <= set(self.rows):
            swapped, mine, theirs = True, other, one
        else:
            return
        x, y, result = self.ports
        heads = [_shown(tuple(batch), port) for port in (x, y)]
        shown = _shown(template, result)
        if heads[0] is None or heads[1] is None or shown is None:
            return
        inner_x, inner_y = (tuple(p for label in self.inner for p in port.groups[label]) for port in (x, y))
        own_x = tuple(piece for label in mine for piece in x.groups[label])
        own_y = tuple(piece for label in theirs for piece in y.groups[label])
        for turned_x in (False, True):
            for turned_y in (False, True):
                # as the op reads its first operand (rows, inner) and its second (inner, columns), unless turned
                plain_x, plain_y = turned_x == swapped, turned_y == swapped
                last_x = (own_x, inner_x) if plain_x else (inner_x, own_x)
                last_y = (inner_y, own_y) if plain_y else (own_y, inner_y)
                layouts = ((*heads[0], *last_x), (*heads[1], *last_y), shown)
                if layouts == self.original.layouts:
                    yield self.original
                else:
                    yield Mode(layouts, template, (turned_x, turned_y, swapped))


def _splits(labels: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Each way to let the first labels be axes of the batch, the last of which at least stays."""
    for at in range(max(len(labels), 1)):
        yield labels[:at], labels[at:]
