# SPDX-License-Identifier: Apache-2.0
"""The annotations of pods, namespaces and nodes that decide something, the words they take, and a sentence for each that is not understood.

A value that is not understood decides nothing: what is in force without it stays, as in KubeArmor, and it is told where it is first read.
Pure. Neighbours: `schemas.visibility`; `policy.rules.select` and `policy.ruleset` decide by them, `sensors` tell of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from schemas.visibility import EVERYTHING, unknown

VISIBILITY: Final = "kubearmor-visibility"
STATUS: Final = "kubearmor-policy"
POSTURES: Final = {
    "file": "kubearmor-file-posture",
    "network": "kubearmor-network-posture",
    "capabilities": "kubearmor-capabilities-posture",
}
STATUS_WORDS: Final = ("enabled", "audited", "disabled")
POSTURE_WORDS: Final = ("audit", "block")
LONGEST: Final = 1024
"""Characters of a value that are kept; those that mean something are lists of a few words."""
TOO_LONG: Final = f"(more than {LONGEST} characters)"
"""Kept in the place of a longer one: no word of any of them, so it decides nothing, and is told."""
DECIDING: Final = frozenset({VISIBILITY, STATUS, *POSTURES.values()})
_PATCHED: Final = "patched"
"""KubeArmor writes it itself, for `enabled`."""
_SHOWN: Final = 64
"""Characters of a value that a sentence repeats: who may make a pod may write what he likes there."""


def status(annotations: Mapping[str, str]) -> str:
    """`enabled`, `audited` or `disabled`; "" where nothing is written, or nothing that is understood. In small letters alone, as in KubeArmor."""
    word = annotations.get(STATUS, "")
    if word == _PATCHED:
        return "enabled"
    return word if word in STATUS_WORDS else ""


def posture(text: str | None) -> str:
    """`audit` or `block`, in any case (KubeArmor takes `Block` too); "" for what is not understood."""
    word = (text or "").strip().lower()
    return word if word in POSTURE_WORDS else ""


def misread(annotations: Mapping[str, str]) -> tuple[str, ...]:
    """One sentence for each annotation whose value is not understood, or not whole."""
    said = []
    if STATUS in annotations and not status(annotations):
        said.append(_sentence(STATUS, annotations[STATUS], STATUS_WORDS))
    said += [
        _sentence(key, annotations[key], POSTURE_WORDS)
        for key in POSTURES.values()
        if key in annotations and not posture(annotations[key])
    ]
    if strange := unknown(annotations.get(VISIBILITY, "")):
        said.append(_sentence(VISIBILITY, ",".join(strange), (*EVERYTHING, "none")))
    return tuple(said)


def _sentence(key: str, value: str, words: tuple[str, ...]) -> str:
    *others, last = words
    expected = f"expected {', '.join(others)} or {last} in `{key}`, got"
    if value == TOO_LONG:
        return f"{expected} more than {LONGEST:,} characters, which are not read"
    shown = value if len(value) <= _SHOWN else value[:_SHOWN] + "..."
    return f"{expected} {shown!r}"
