"""Names of deployment targets, spelled as coremltools spells them."""

from __future__ import annotations

import difflib

from milopt.errors import MiloptError
from milopt.mil import Target

__all__ = ["target_named"]


def target_named(name: str) -> Target:
    """``"iOS18"``, or ``"macOS15"``, which is the same, as a target; MiloptError for any other name.

    The names are the members of ``coremltools.target``, those of macOS, watchOS and tvOS being aliases of iOS's.
    """
    members: dict[str, Target] = dict(Target.__members__)
    if name in members:
        return members[name]
    known = {each.lower(): each for each in members}
    alike = [name.lower()] if name.lower() in known else difflib.get_close_matches(name.lower(), known, n=2, cutoff=0.8)
    near = [known[each] for each in alike]
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(each.name for each in Target)}"
    raise MiloptError(f"there is no deployment target {name[:80]!r}; {hint}")
