# SPDX-License-Identifier: Apache-2.0
"""The training replay: what policies would deny of what was seen, asked of the real judge with every default posture at `block`. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from policy.judge.precedence import permitted
from policy.learn.sightings import Shown, Sighting, by_behaviour
from policy.ruleset import PostureSettings, Ruleset, Scope, compile_ruleset
from schemas.identity import Identity
from schemas.policy import PolicyDocument
from schemas.verdict import Action, RuleRef

STRICT: Final = PostureSettings(
    file="block", network="block", capabilities="block", host_file="block", host_network="block", host_capabilities="block",
    host_device="block", untracked_namespaces=(),
)  # fmt: skip


_ALLOW: Final = Action.ALLOW


class TrainingReplay:
    """Policies as they would be if nothing softened them: no audited workloads, no namespace annotations, no untracked namespaces."""

    def __init__(self, documents: Iterable[PolicyDocument]) -> None:
        self.ruleset: Ruleset = compile_ruleset(documents, STRICT)
        self._scopes: dict[int, tuple[Identity, Scope]] = {}

    def scope(self, identity: Identity) -> Scope:
        """What holds for an identity."""
        # By the object, of which all its sightings share one. What is kept with the answer keeps its number from being another's.
        found = self._scopes.get(id(identity))
        if found is None:
            plain = msgspec.structs.replace(identity, annotations={}, namespace_annotations={}, confirmed=True)
            found = self._scopes[id(identity)] = (identity, self.ruleset.scope(plain))
        return found[1]

    def denied(self, sightings: Iterable[Sighting]) -> Iterator[Sighting]:
        """Those of `sightings` that would not pass."""
        return self.denied_of(by_behaviour(sightings))

    def denied_of(self, shown: Iterable[Shown], whose: Iterable[Identity] = ()) -> Iterator[Sighting]:
        """The same of what is in groups already. `whose`: all identities of it, if known; mostly they share one scope, which then is not
        found again for each."""
        common = {self.scope(one) for one in whose}
        if len(common) == 1:
            judge = common.pop().judge
            for each in shown:
                if judge(each.behaviour).action is not _ALLOW:
                    yield from each.some
            return
        for each in shown:
            behaviour, some = each.behaviour, each.some
            if len(some) == 1:
                if self.scope(some[0].identity).judge(behaviour).action is not _ALLOW:
                    yield some[0]
                continue
            # Instances of a workload share their scope: one question for all of them.
            passes: dict[Scope, bool] = {}
            for one in some:
                scope = self.scope(one.identity)
                passed = passes.get(scope)
                if passed is None:
                    passed = passes[scope] = scope.judge(behaviour).action is _ALLOW
                if not passed:
                    yield one

    def limits(self, one: Sighting) -> Iterator[RuleRef]:
        """The rules whose limits (`readOnly`, `ownerOnly`) it is outside of."""
        for _, candidates, _ in self.scope(one.identity).enforced.candidates(one.behaviour):
            for candidate in candidates:
                if candidate.limited and not permitted(candidate, one.behaviour):
                    yield candidate.rule.ref
