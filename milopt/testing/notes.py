"""What a strategy has to say of a program it drew."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from milopt.mil import Program

__all__ = ["note_of", "noted"]

_NOTES: WeakKeyDictionary[Program, str] = WeakKeyDictionary()


def noted(program: Program, text: str) -> Program:
    """The program, with a note that a failure shows."""
    _NOTES[program] = text
    return program


def note_of(program: Program) -> str:
    return _NOTES.get(program, "")
