# SPDX-License-Identifier: Apache-2.0
"""Which rules of a host policy a planner will refuse because they would lock the operator out. Pure.

Each policy by itself: an Allow rule of another one is not counted on. Neighbours: `policy.rules.lockout` (the judgement).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from policy.kernel_plan import plan_scope
from policy.rules.lockout import judged
from policy.rules.normalise import normalise
from policy.rules.visibility import Visibility
from policy.ruleset import PostureSettings, Scope
from policy.text import codes
from policy.text.diagnostics import Diagnostic
from schemas.backends import PLANNED
from schemas.enforcement import Refusal
from schemas.identity import Identity, Kind
from schemas.policy import PolicyDocument
from schemas.rules import Target
from schemas.verdict import Mode


def lockouts(document: PolicyDocument, settings: PostureSettings = PostureSettings()) -> tuple[Refusal, ...]:  # noqa: B008
    """A refusal for each such rule; none for a policy that is forced, audited, disabled or not for nodes."""
    policy = normalise(document)
    if (
        policy.selection.target is not Target.NODES
        or not policy.enabled
        or policy.mode is not Mode.ENFORCE
        or policy.force
    ):
        return ()
    postures: dict[str, str] = {
        "file": settings.host_file, "network": settings.host_network, "capabilities": settings.host_capabilities,
        "device": settings.host_device,
    }  # fmt: skip
    scope = Scope(((policy, Mode.ENFORCE),), postures, Visibility(), Mode.ENFORCE, host=True)
    host = Identity(kind=Kind.HOST, node="", uid="host")
    made, _ = plan_scope(scope, host, backends=PLANNED, signal=True)
    return judged(made)[1]


def locking(
    documents: Iterable[PolicyDocument], origin: str, settings: PostureSettings, *, strict: bool = False
) -> Iterator[Diagnostic]:
    """P608 for each of them, an error when `strict`."""
    level = codes.Level.ERROR if strict else codes.LOCKOUT.level
    for document in documents:
        for one in lockouts(document, settings):
            place = next((at for at in document.positions if at.path == one.ref.position), None)
            yield Diagnostic(
                code=codes.LOCKOUT.code, level=level, message=f"{document.name}: {one.reason}", file=origin,
                line=place.line if place else one.ref.line or document.line, column=place.column if place else 1,
                path=one.ref.position,
            )  # fmt: skip
