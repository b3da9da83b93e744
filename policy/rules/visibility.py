# SPDX-License-Identifier: Apache-2.0
"""Which classes of a workload are logged, and which must be watched because a rule asks about them (kubearmor.md 3.6).

Order: setting of the agent, then the namespace's `kubearmor-visibility`, then the pod's; the last one written counts;
of one with an unknown word what it does say, beside what counts without it. Rules do not
depend on it: what a rule asks about is watched even when it is not logged (KubeArmor's silent Audit rules, its issue 995).
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from schemas.operations import Class
from schemas.rules import Match, Rule
from schemas.visibility import CLASSES, words


class Visibility(msgspec.Struct, frozen=True):
    """`classes` are logged; `dns`: DNS names are logged too."""

    classes: frozenset[Class] = frozenset()
    dns: bool = False


def visibility(default: Iterable[str], annotations: Iterable[str | None]) -> Visibility:
    """What is logged, given the setting and the annotations from the namespace inwards (None where not written)."""
    chosen = words(",".join(default))
    for text in annotations:
        if text is not None:
            chosen = words(text, otherwise=chosen)
    classes = frozenset(class_ for word in chosen for class_ in CLASSES.get(word, ()))
    return Visibility(classes, "dns" in chosen)


def asked(rules: Iterable[Rule]) -> frozenset[Class]:
    """The classes these rules cannot be judged without. System call rules ask for every class: any of them is a call."""
    found: set[Class] = set()
    for rule in rules:
        if rule.class_ is Class.SYSCALL:
            found |= {Class.SYSCALL, Class.PROCESS, Class.FILE, Class.NETWORK}
        elif rule.match is Match.PRESET:
            found |= {Class.PROCESS, Class.FILE}
        else:
            found.add(rule.class_)
    return frozenset(found)
