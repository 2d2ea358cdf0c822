"""Deployment sets: one program becomes the packages that a device loads.

made = milopt.sets.chunk(model, count=4, embedding="package", head="package")
milopt.sets.verify(model, made)
made.save("smollm2-set")
session = milopt.Session(milopt.sets.load("smollm2-set"))
"""

from __future__ import annotations

from milopt.sets.anemll import AnemllSet, anemll_set
from milopt.sets.choosing import cut_places
from milopt.sets.client import ClientSet, client_style, load_client
from milopt.sets.deployment import DeploymentSet, Part, Step, Table, weight_bytes
from milopt.sets.dividing import chunk
from milopt.sets.errors import SetError
from milopt.sets.loading import is_set, load
from milopt.sets.places import Place
from milopt.sets.running import Chain, compile_set
from milopt.sets.targets import Advice, advise, warnings_for
from milopt.sets.verifying import verify

__all__ = [
    "Advice",
    "AnemllSet",
    "Chain",
    "ClientSet",
    "DeploymentSet",
    "Part",
    "Place",
    "SetError",
    "Step",
    "Table",
    "advise",
    "anemll_set",
    "chunk",
    "client_style",
    "compile_set",
    "cut_places",
    "is_set",
    "load",
    "load_client",
    "verify",
    "warnings_for",
    "weight_bytes",
]
