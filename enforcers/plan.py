# SPDX-License-Identifier: Apache-2.0
"""Policies and identities of one node -> its plan: for each container, and each chosen host cgroup, an ordered rule table,
and which classes the kernel reports of it. Pure.

Equal content gives an equal digest, whatever the order of policies or identities. A host policy is enforced in chosen
cgroups only, never in the root. Every rule that is not carried out is refused with a reason, once for all containers it is
refused in. Neighbours: `policy.kernel_plan` (what one scope says), `protected` (the fences), `planner` (who publishes).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Final

import msgspec

from enforcers import newborn, pods, protected
from policy.kernel_plan import plan_scope
from policy.rules import lockout
from policy.rules.backends import denies
from policy.rules.visibility import visibility
from policy.ruleset import DoubtfulScope, Ruleset, Scope
from policy.text.coverage import unseen
from schemas.backends import PLANNED
from schemas.enforcement import Plan, Refusal, ScopePlan, Trial, digest
from schemas.identity import Identity, Kind
from schemas.operations import Backend
from schemas.refusals import RefusalCode
from schemas.rules import Policy
from schemas.verdict import DEFAULT_POSTURE, RuleRef
from schemas.visibility import bits


class PlanSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What plans are made for."""

    host_cgroups: Annotated[
        tuple[str, ...],
        msgspec.Meta(
            description="Host cgroups (paths or globs) in which host policies are enforced; elsewhere they only audit.",
            examples=[["/user.slice/*"]],
        ),
    ] = ()
    protected: Annotated[
        tuple[str, ...],
        msgspec.Meta(description="Executables that a broad host rule never stops.", examples=[["/usr/sbin/sshd"]]),
    ] = lockout.EXECUTABLES
    override_protected: Annotated[
        bool, msgspec.Meta(description="Let broad host rules reach protected processes too.", examples=[False])
    ] = False
    pods: Annotated[
        bool,
        msgspec.Meta(
            description="Enforce a pod's Block rules on paths in its next containers from their birth. The runtime's own setup runs under "
            "them too: a rule on a file that it opens keeps the container from starting.",
            examples=[True],
        ),
    ] = False
    apparmor: Annotated[
        bool,
        msgspec.Meta(
            description="Put into plans also the rules that `apparmor` alone can hold: for nodes that have it among `enforcement.backends`.",
            examples=[True],
        ),
    ] = False
    signal: Annotated[
        bool, msgspec.Meta(description="Kill for Block rules of every policy where nothing can deny.", examples=[False])
    ] = False


class Watch(msgspec.Struct, frozen=True, kw_only=True):
    """Visibility bits of a node. `host`: cgroups without a scope; `newborn`: a container nobody described yet; `new`: a cgroup
    just made. `known`: the node itself is in the inventory; until then its kernel keeps the bits that the sensor was given."""

    known: bool
    host: int
    newborn: int
    new: int
    host_cgroups: tuple[int, ...]

    def of(self, scope: Scope, identity: Identity) -> int:
        """The bits of one identity."""
        if identity.kind is Kind.CONTAINER and not identity.complete:
            return self.newborn | bits(scope.watched)
        return bits(scope.watched)

    def differs(self, visible: int) -> bool:
        """Whether a cgroup with these bits needs a scope of its own."""
        return visible != self.host or visible != self.new


_NOTHING: Final = ScopePlan(uid="", cgroups=())
_NOT_CHOSEN: Final = "host policies are enforced in the cgroups named by `host_cgroups` only; elsewhere they audit"


class Planner:
    """Makes plans for one set of policies; remembers what it worked out for equal identities."""

    def __init__(self, ruleset: Ruleset, settings: PlanSettings | None = None, *, trials: bool = True) -> None:
        self.ruleset = ruleset
        self._without = tuple(_without(ruleset, settings)) if trials else ()
        self._settings = settings or PlanSettings()
        self._backends = (*PLANNED, Backend.APPARMOR) if self._settings.apparmor else PLANNED
        self._parts: dict[tuple[int, bool], tuple[Scope, ScopePlan, tuple[Refusal, ...]]] = {}
        self._above: frozenset[str] = frozenset()
        self._left_out = tuple(
            Refusal(ref=ref, reason=f"left out of the ruleset: {why}", code=RefusalCode.LEFT_OUT)
            for ref, why in self.ruleset.problems
        )

    def plan(self, node: str, identities: Iterable[Identity], generation: int, created_ns: int = 0) -> Plan:
        """The whole plan of `node`. `identities`: those of the node, in any order; ended ones are passed over."""
        scopes: list[ScopePlan] = []
        refused = dict.fromkeys(self._left_out)
        policies: set[str] = set()
        selected: dict[str, int] = {}
        # One refusal for each rule and reason: 500 containers with the same rule are one line for a person.
        seen: set[tuple[object, ...]] = set()
        living = [one for one in sorted(identities, key=lambda one: one.uid) if not one.ended and one.node == node]
        watch = self._watch(living)
        # Strictly the node itself last: what one of its chosen cgroups holds is not refused by it.
        living.sort(key=lambda one: one.kind is Kind.NODE)
        self._above = self._guarded(living)
        held: set[RuleRef] = set()
        for identity in living:
            scope = self.ruleset.scope(identity)
            for policy in scope.policies:
                selected[policy] = selected.get(policy, 0) + (identity.kind is Kind.CONTAINER)
            seen_as = watch.of(scope, identity)
            named = (
                isinstance(scope, DoubtfulScope)
                and identity.complete
                and (self._chosen(identity) or self._inside(identity))
            )
            if named and isinstance(scope, DoubtfulScope):
                # No runtime answered for it: what is chosen for the host's rules does not leave them by its name.
                scope, identity = scope.beside, msgspec.structs.replace(identity, kind=Kind.HOST)
            template, refusals = self._part(scope, identity) if scope.members else (_NOTHING, ())
            if identity.starting:
                template = newborn.while_starting(template)
            if identity.kind is Kind.HOST and self._chosen(identity):
                held.update(one.ref for one in refusals if one.code is RefusalCode.LOCKOUT)
            if identity.kind is not Kind.CONTAINER and not named and not self._chosen(identity):
                if identity.kind is Kind.NODE:
                    blocked = [rule for rule in scope.rules if denies(rule) and unseen(rule) is None]
                    blind = [one for one in refusals if one.code is RefusalCode.UNSEEN]
                    unheld = [
                        Refusal(ref=rule.ref, uid=identity.uid, reason=_NOT_CHOSEN, code=RefusalCode.NOT_CHOSEN)
                        for rule in blocked
                        if rule.ref not in held
                    ]
                    refusals = (*blind, *unheld)
                elif self._inside(identity) and self._kept_free(identity):
                    scopes.append(self._free(identity, seen_as))
                    continue
                else:
                    continue
            elif (ruled := bool(template.paths or template.network or template.posture)) or (
                identity.kind is Kind.CONTAINER and (watch.differs(seen_as) or self._inside(identity))
            ):
                if ruled:
                    policies.update(scope.policies)
                if identity.kind is Kind.HOST:
                    held.update(rule.ref for rule in template.paths)
                    held.update(rule.ref for rule in template.network)
                scopes.append(
                    msgspec.structs.replace(
                        template, uid=identity.uid, cgroups=identity.cgroups[:1], cgroup_path=identity.cgroup_path,
                        workload=identity.workload, visibility=seen_as,
                    )
                )  # fmt: skip
            for refusal in refusals:
                same = (refusal.ref, refusal.backend, refusal.reason)
                if same not in seen:
                    seen.add(same)
                    refused[msgspec.structs.replace(refusal, uid=identity.uid)] = None
        made = (*scopes, *(self._of_pods(living, watch) if self._settings.pods else ()))
        said = (watch.host, watch.new, watch.host_cgroups) if watch.known else (-1, -1, ())
        trials = tuple(
            _trial(policy, made, each.plan(node, living, generation).scopes) for policy, each in self._without
        )
        linked = next((one.linked_set for one in reversed(living) if one.kind is Kind.NODE), "")
        return Plan(
            node=node, generation=generation, digest=digest(made, *said, *((trials,) if trials else ())), scopes=made, policies=tuple(sorted(policies)),
            created_ns=created_ns, refused=tuple(one for one in refused if not one.code.partial),
            partial=tuple(one for one in refused if one.code.partial), host_visibility=said[0], new_visibility=said[1],
            host_cgroups=said[2], linked_set=linked, selected=tuple(sorted(selected.items())), trials=trials,
            starting=tuple(sorted(one.cgroups[0] for one in living if one.starting and one.cgroups)),
        )  # fmt: skip

    def _of_pods(self, living: list[Identity], watch: Watch) -> Iterable[ScopePlan]:
        for identity in pods.next_containers(living):
            scope = self.ruleset.scope(identity)
            template = pods.from_birth(self._part(scope, identity)[0]) if scope.members else _NOTHING
            if template.paths:
                yield msgspec.structs.replace(
                    template, uid=identity.uid, cgroups=identity.cgroups, cgroup_path=identity.cgroup_path,
                    workload=identity.workload, visibility=watch.of(scope, identity),
                )  # fmt: skip

    def _watch(self, living: list[Identity]) -> Watch:
        node = next((one for one in living if one.kind is Kind.NODE), None)
        classes = (
            visibility(self.ruleset.settings.host_visibility, ()).classes
            if node is None
            else self.ruleset.scope(node).watched
        )
        host, newborn = bits(classes), bits(self.ruleset.newborn)
        # Nobody knows yet whether a new cgroup is the host's: it is watched as both.
        new = host | newborn
        hosts: tuple[int, ...] = ()
        if new != host:
            # A cgroup that is not sure to be the host's may still turn out to be a container.
            hosts = tuple(
                sorted(id_ for one in living if one.kind is Kind.HOST and one.complete for id_ in one.cgroups)
            )
        return Watch(known=node is not None, host=host, newborn=newborn, new=new, host_cgroups=hosts)

    def _chosen(self, identity: Identity) -> bool:
        settings = self._settings
        return (identity.kind is Kind.HOST or identity.doubtful) and protected.chosen(
            identity.cgroup_path, settings.host_cgroups, settings.override_protected, self._above
        )

    def _guarded(self, living: list[Identity]) -> frozenset[str]:
        """Cgroups above containers and protected services. A name alone makes no container: whoever may make cgroups chooses it."""
        if not self._settings.host_cgroups:
            return frozenset()
        override = self._settings.override_protected
        return protected.parents(
            one.cgroup_path
            for one in living
            if (one.kind is Kind.CONTAINER and not one.doubtful)
            or (not override and protected.is_protected(one.cgroup_path))
        )

    def _inside(self, identity: Identity) -> bool:
        """Whether it lies in a cgroup that the settings choose, whose scope would be its own."""
        settings = self._settings
        return bool(settings.host_cgroups) and any(
            protected.chosen(path, settings.host_cgroups, settings.override_protected, self._above)
            for path in protected.parents((identity.cgroup_path,))
        )

    def _kept_free(self, identity: Identity) -> bool:
        # Whatever else lies in a chosen cgroup is held like it, or who runs in that would make one and be free.
        return not self._settings.override_protected and protected.is_protected(identity.cgroup_path)

    @staticmethod
    def _free(identity: Identity, visible: int) -> ScopePlan:
        """Of a protected service in a chosen cgroup: a scope without rules."""
        return ScopePlan(
            uid=identity.uid, cgroups=identity.cgroups[:1], cgroup_path=identity.cgroup_path, workload=identity.workload,
            visibility=visible,
        )  # fmt: skip

    def _part(self, scope: Scope, identity: Identity) -> tuple[ScopePlan, tuple[Refusal, ...]]:
        host = identity.kind is not Kind.CONTAINER
        key = (id(scope), host)
        kept = self._parts.get(key)
        if kept is None or kept[0] is not scope:
            made, refused = plan_scope(scope, identity, backends=self._backends, signal=self._settings.signal)
            if host and not self._settings.override_protected:
                forced = {str(policy.key) for policy, _ in scope.members if policy.force}
                made, locking = lockout.judged(made, self._settings.protected, forced)
                refused = (*refused, *locking)
            kept = self._parts[key] = (scope, made, _told_once(refused))
        return kept[1], kept[2]


def _without(ruleset: Ruleset, settings: PlanSettings | None) -> Iterator[tuple[Policy, Planner]]:
    """For each policy that nobody has confirmed, the oldest first, a planner without it and those before it."""
    left = list(ruleset.policies)
    for policy in sorted(
        (one for one in left if one.unconfirmed and one.enabled), key=lambda one: (one.unconfirmed, one.key)
    ):
        left.remove(policy)
        lesser = Ruleset(left, ruleset.settings, f"{ruleset.digest}-{policy.key}")
        yield policy, Planner(lesser, settings, trials=False)


def _trial(policy: Policy, scopes: tuple[ScopePlan, ...], without: tuple[ScopePlan, ...]) -> Trial:
    known, uids = set(scopes), {one.uid for one in without}
    return Trial(
        policy=str(policy.key), since=policy.unconfirmed, scopes=tuple(one for one in without if one not in known),
        dropped=tuple(one.uid for one in scopes if one.uid not in uids),
    )  # fmt: skip


def _told_once(refused: tuple[Refusal, ...]) -> tuple[Refusal, ...]:
    """Of a rule that several backends refuse, one line: the reason of a backend that is for rules of its class at all. What is
    enforced in part, and postures, which have one `ref` for all classes, keep a line for each reason."""
    told: dict[tuple[object, ...], Refusal] = {}
    for one in refused:
        each = one.code.partial or one.ref.policy == DEFAULT_POSTURE
        key = (one.ref, one.reason) if each else (one.ref,)
        if key not in told or told[key].code is RefusalCode.WRONG_CLASS:
            told[key] = one
    return tuple(told.values())
