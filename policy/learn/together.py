# SPDX-License-Identifier: Apache-2.0
"""Which workloads must be learnt in one go, because the policy of one would select instances of another; all others can be learnt one by one.
Pure. Neighbour: `policy/learn/learner.py`, whose replay asks all policies of one go together."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from policy.learn import documents
from policy.learn.evidence import Evidence
from policy.learn.replay import STRICT
from policy.learn.rules import LearntRule
from policy.learn.workloads import LearntWorkload, selector, workload
from policy.ruleset import compile_ruleset
from schemas.identity import Identity

ANY = LearntRule(section="process", kind="path", value="/x", evidence=Evidence())
"""For a document that is about nothing but whom it selects."""


def together(identities: Iterable[Identity]) -> list[list[Identity]]:
    """The identities of each go, in order of their workloads. A selector is what all instances of a workload carry: with fewer of them it
    may select less, never more, so what is not learnt together here never meets."""
    grouped: dict[LearntWorkload, list[Identity]] = {}
    for one in identities:
        grouped.setdefault(workload(one), []).append(one)
    order = sorted(grouped)
    named: dict[tuple[str, str], list[LearntWorkload]] = {}
    made = []
    for of in order:
        document = documents.checked(documents.document(of, selector(of, grouped[of]), [ANY]))
        named.setdefault((document.namespace, document.name), []).append(of)
        made.append(document)
    ruleset = compile_ruleset(made, STRICT)
    leader: dict[LearntWorkload, LearntWorkload] = {}

    def first(of: LearntWorkload) -> LearntWorkload:
        while leader.get(of, of) != of:
            of = leader[of]
        return of

    for of in order:
        for one in grouped[of]:
            plain = msgspec.structs.replace(one, annotations={}, namespace_annotations={}, confirmed=True)
            for policy, _ in ruleset.scope(plain).members:
                for other in named[policy.key.namespace, policy.key.name]:
                    mine, its = sorted((first(of), first(other)))
                    leader[its] = mine
    goes: dict[LearntWorkload, list[Identity]] = {}
    for of in order:
        goes.setdefault(first(of), []).extend(grouped[of])
    return [goes[of] for of in sorted(goes)]
