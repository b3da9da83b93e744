# SPDX-License-Identifier: Apache-2.0
"""The words for classes of events in settings and annotations (KubeArmor's `visibility`), and the bits the kernel takes.

Neighbours: `policy.rules.visibility` decides per workload, `kernel.loading` sets what counts before the first plan.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from schemas.operations import Class
from schemas.watched import REPORTED

EVERYTHING: Final = ("process", "file", "network", "capabilities", "dns")
CLASSES: Final = {
    # System calls have no word of their own: they are what a process does beside files and sockets.
    "process": (Class.PROCESS, Class.SYSCALL),
    "file": (Class.FILE,),
    "network": (Class.NETWORK,),
    "capabilities": (Class.CAPABILITIES,),
}
_NOTHING: Final = frozenset({"none", "ima"})
"""Words that show no class. `ima` is KubeArmor's, for hashes by IMA, of which nothing is reported here."""


def words(text: str, otherwise: Iterable[str] = ()) -> tuple[str, ...]:
    """The known words of a comma list, in any case; `none` empties it. A word that is not known may have meant any class: beside it
    `otherwise` stays, so that a slip of the pen makes nothing dark."""
    found = _parts(text)
    if "none" in found:
        return ()
    if unknown(text):
        found += otherwise
    return tuple(word for word in dict.fromkeys(found) if word in EVERYTHING)


def unknown(text: str) -> tuple[str, ...]:
    """What in a comma list is no word of these."""
    return tuple(word for word in dict.fromkeys(_parts(text)) if word not in EVERYTHING and word not in _NOTHING)


def _parts(text: str) -> list[str]:
    return [word for word in (part.strip().lower() for part in text.split(",")) if word]


def bits(classes: Iterable[Class]) -> int:
    """The classes as the kernel takes them: bit 1 << Class for each one it can report."""
    return sum(1 << class_ for class_ in REPORTED.intersection(classes))


def bits_of(setting: Iterable[str]) -> int:
    """`bits` of the words of a setting."""
    return bits(class_ for word in words(",".join(setting)) for class_ in CLASSES.get(word, ()))


def words_of(visible: int) -> tuple[str, ...]:
    """The setting whose `bits` are `visible`; `none` for 0. Older settings files have the number."""
    found = tuple(word for word, classes in CLASSES.items() if visible >> classes[0] & 1)
    if bits(REPORTED) & ~visible == 0:
        return EVERYTHING
    return found or ("none",)
