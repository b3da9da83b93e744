# SPDX-License-Identifier: Apache-2.0
"""Which policies a name on the command line means. Pure. Neighbours: `schemas.policy.reference`, which is what verbs print."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

SHORT: Final = {
    "ksp": "KubeArmorPolicy",
    "hsp": "KubeArmorHostPolicy",
    "csp": "KubeArmorClusterPolicy",
    "nsp": "KubeArmorNetworkPolicy",
}
KINDS: Final = {kind: short for short, kind in SHORT.items()}
_KINDS: Final = {word.lower(): kind for short, kind in SHORT.items() for word in (short, kind)}


def named(keys: Iterable[str], name: str) -> list[str]:
    """Those of `keys` (kind/namespace/name) that `name` means: NAME or NAMESPACE/NAME; where there is none, as verbs print one, KIND/NAME or
    KIND/NAMESPACE/NAME with the kind in full or short, in any case. In this order, so that a namespace called `ksp` can be named."""
    known = list(keys)
    if found := [key for key in known if name in (key, key.split("/", 1)[-1], key.split("/")[-1])]:
        return found
    word, _, rest = name.partition("/")
    kind = _KINDS.get(word.lower())
    if kind is None or not rest:
        return []
    return [key for key in known if key.split("/")[0] == kind and rest in (key.split("/", 1)[-1], key.split("/")[-1])]


def parted(name: str) -> tuple[str, str, str]:
    """(short kind, namespace, name) of what a verb takes as the name of one policy; "" for what it does not say."""
    *before, last = name.split("/")
    kind = _KINDS.get(before[0].lower()) if before else None
    return KINDS[kind] if kind else "", "/".join(before[1:] if kind else before), last
