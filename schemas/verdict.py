# SPDX-License-Identifier: Apache-2.0
"""What the judge says of a behaviour."""

from __future__ import annotations

from enum import StrEnum

import msgspec

DEFAULT_POSTURE = "DefaultPosture"
"""Policy name when no rule matched in a class that has Allow rules (KubeArmor section 2.1)."""
PROTECTED = "Protected"
"""Policy name in the `ref` of exceptions for what a node lives on (`policy.rules.lockout`); they answer every question. No policy can
have these names: they are in lower case (P207)."""


class Action(StrEnum):
    """KubeArmor's three actions."""

    ALLOW = "Allow"
    AUDIT = "Audit"
    BLOCK = "Block"


class Mode(StrEnum):
    """ENFORCE: meant. AUDITED: the workload is only audited, so `Block` is told as `Audit (Block)`. SHADOW: judged beside.
    BASELINE: judged beside, and what is outside is told once."""

    ENFORCE = "enforce"
    AUDITED = "audited"
    SHADOW = "shadow"
    BASELINE = "baseline"


class RuleRef(msgspec.Struct, frozen=True, array_like=True):
    """Where a rule stands: `position` like `spec.process.matchPaths[2]`, `line` 1-based, 0 when not known."""

    policy: str
    kind: str = ""
    namespace: str = ""
    position: str = ""
    line: int = 0
    index: int = -1


class Verdict(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """The judge's answer for one behaviour (or, if `needs_arguments`, a first answer to be repeated per occurrence).

    `policy`: name, `DefaultPosture`, or None when nothing applies. `tell`: whether an alert is due (Audit or Block, or a
    default posture hit). `host`: the deciding policy is a host policy. `shadow`: verdicts of shadow policies and baselines beside this one.
    """

    action: Action = Action.ALLOW
    policy: str | None = None
    rule: RuleRef | None = None
    tell: bool = False
    host: bool = False
    mode: Mode = Mode.ENFORCE
    severity: int = 0
    tags: tuple[str, ...] = ()
    message: str = ""
    needs_arguments: bool = False
    shadow: tuple[Verdict, ...] = ()
    preset: str = ""
    """The preset whose rule decided; it signs alerts as `PRESET-name`."""


ALLOWED = Verdict()
"""Nothing applies: allowed silently."""
