"""ANEMLL's form of models with a sliding window: a state for the layers that have one, and functions for beyond it.

Anemll 0.3.5 (gemma3_model.py, gemma3_converter.py, tests/chat.py, InferenceManager.swift): from position
``sliding_window`` on, the client calls ``infer_rotate`` and ``prefill_rotate`` in place of ``infer`` and ``prefill``.
"""

from __future__ import annotations

from milopt.building import Builder
from milopt.mil import Function, add_input, value_names
from milopt.package import Model
from milopt.sets.renaming import claim
from milopt.sets.roles import Decoder

__all__ = ["GLOBAL", "LOCAL", "ROTATING", "STATE", "add_rotating", "declare_states", "state_titles"]

STATE = "model_model_kv_cache_0"
"""What coremltools makes of the buffer's name, ``model.model.kv_cache_0``, and some clients look for."""
LOCAL, GLOBAL = "model_model_kv_cache_local", "model_model_kv_cache_global"
ROTATING = {"infer": "infer_rotate", "prefill": "prefill_rotate"}


def state_titles(decoder: Decoder) -> dict[str, str]:
    """What the client calls the states."""
    window = decoder.window
    if window is None or not window.ring:
        return {decoder.state: STATE}
    return {window.state: LOCAL, **({decoder.state: GLOBAL} if decoder.state else {})}


def declare_states(function: Function, decoder: Decoder) -> None:
    """Have the function use every state: the client makes one object of all for all chunks, those of layers of one kind
    too, and Core ML refuses a state that is not used. Its first entry is written anew with what it holds.
    """
    shapes = {decoder.state: decoder.shape}
    if decoder.window is not None:
        shapes[decoder.window.state] = decoder.window.shape
    for old, name in state_titles(decoder).items():
        if name in function.inputs:
            continue
        shape = shapes[old]
        claim(function, name)
        state = add_input(function, name, shape, "fp16", state=True)
        op = Builder(next(iter(function.operations)), value_names(function))
        begin, end = [0] * len(shape), [1] * len(shape)
        held = op.read_state(input=state, name=f"{name}_held")
        entry = op.slice_by_index(x=held, begin=begin, end=end, name=f"{name}_entry")
        same = op.slice_update(x=held, update=entry, begin=begin, end=end, name=f"{name}_same")
        op.coreml_update_state(state=state, value=same, name=f"{name}_kept")


def add_rotating(model: Model) -> None:
    """Give a chunk the functions for positions beyond the window, which share its weights.

    They compute what ``infer`` and ``prefill`` do, which are right at every position: token ``t`` is in slot ``t mod
    ring``. So it is no matter that clients feed the last token of a prompt twice, which would move a state that is
    shifted by one too many, nor that blocks of a prompt straddle the window.
    """
    again = model.clone().program.functions
    for name, title in ROTATING.items():
        model.program.functions[title] = again[name]
