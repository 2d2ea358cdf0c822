"""Programs whose inputs, outputs or states have other layouts, as if these were public."""

from __future__ import annotations

from dataclasses import replace

from milopt.public_layouts import public_plans
from milopt.signature_layout import LayoutSignature
from milopt.verify.freezing import Frozen

__all__ = ["publicly"]


def publicly(old: Frozen, new: Frozen) -> tuple[Frozen, Frozen]:
    """Both with the layouts that their metadata say they had."""
    return _public(old), _public(new)


def _public(frozen: Frozen) -> Frozen:
    signature = LayoutSignature.from_metadata(frozen.metadata)
    if signature is None:
        return frozen
    return replace(
        frozen,
        plans=public_plans(frozen.plans, signature),
        metadata=signature.public_metadata(frozen.metadata),
        flexible={
            name: {key: each for key, each in sizes.items() if key not in signature.of(name)}
            for name, sizes in frozen.flexible.items()
        },
        rounded={precision: _public(each) for precision, each in frozen.rounded.items()},
    )
