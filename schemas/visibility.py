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


def words(text: str) -> tuple[str, ...]:
    """The known words of a comma list, in any case; `none` empties it."""
    found = [word for word in (part.strip().lower() for part in text.split(",")) if word]
    if "none" in found:
        return ()
    return tuple(word for word in dict.fromkeys(found) if word in EVERYTHING)


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
