# SPDX-License-Identifier: Apache-2.0
"""Policies compiled for everybody: `compile_ruleset` -> `Ruleset`, `Ruleset.scope(identity)` -> `Scope`, `Scope.judge(behaviour)`.

Scopes are shared: the cache key is what selectors and settings can read of an identity, and identities that differ in that but
select the same policies share the compiled tables. So 500 equal containers cost one scope, and a hit costs the same under 1 or
10,000 policies. Pure: no I/O; symlinks come with the identity (`Identity.links`). Neighbours: `policy/rules/normalise.py`, `policy/rules/select.py`,
`policy/rules/links.py`, `policy/judge/compile.py`; processors judge with it, enforcers plan with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable
from itertools import pairwise
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from policy.judge.compile import compile_judge, posture_of, whitelists
from policy.judge.judge import Judge, stronger
from policy.judge.precedence import needing_arguments
from policy.judge.prepared import LabelIndex, PreparedPolicy, prepare
from policy.rules import select
from policy.rules.links import linked
from policy.rules.normalise import normalise
from policy.rules.visibility import Visibility, asked, visibility
from schemas.behaviour import Behaviour
from schemas.identity import Identity, Kind
from schemas.operations import Access
from schemas.policy import PolicyDocument
from schemas.rules import Policy, Rule, Target
from schemas.verdict import ALLOWED, Action, Mode, RuleRef, Verdict
from schemas.visibility import EVERYTHING
from schemas.workload_annotations import POSTURES, VISIBILITY, posture

_UNTOLD: Final = int(Access.UNTOLD)
_bits: Final = int.__and__
"""Of flags, without making an enum of the answer: a fifth of what a new behaviour costs here."""
Posture = Literal["audit", "block", "allow"]
KEPT: Final = 65536
"""Identities whose scope is remembered; then all are forgotten. An entry is about 300 bytes."""

_Posture = Annotated[
    Posture,
    Meta(
        description="What happens to an operation that no rule matches, in a class with Allow rules: audit, block, or allow without an alert.",
        examples=["audit"],
    ),
]
_Words = Annotated[
    tuple[Literal["process", "file", "network", "capabilities", "dns", "none"], ...],
    Meta(description="Classes logged: process, file, network, capabilities, dns, none.", examples=[["process", "network"]]),
]  # fmt: skip


class PostureSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Default postures, visibility and untracked namespaces (KubeArmor's flags of the same names)."""

    file: _Posture = "audit"
    network: _Posture = "audit"
    capabilities: _Posture = "audit"
    host_file: _Posture = "audit"
    host_network: _Posture = "audit"
    host_capabilities: _Posture = "audit"
    host_device: _Posture = "audit"
    visibility: _Words = EVERYTHING
    host_visibility: _Words = EVERYTHING
    untracked_namespaces: Annotated[
        tuple[str, ...],
        Meta(
            description="Kubernetes namespaces that are neither logged nor subject to policies.",
            examples=[["kube-system", "kubearmor"]],
        ),
    ] = ("kube-system", "kubearmor")


class Scope:
    """What the policies say to one kind of workload. Immutable; shared by all identities it fits.

    `members`: the policies that select it, each with the mode it acts in here. `postures`: file, network, capabilities, device.
    `visible`: classes to log; `dns_visible`: DNS names too; `watched`: `visible` and what rules ask about.
    """

    def __init__(
        self,
        members: tuple[tuple[Policy, Mode], ...],
        postures: dict[str, str],
        seen: Visibility,
        mode: Mode,
        host: bool,
    ) -> None:
        self.members = members
        self.postures = postures
        self.mode = mode
        self.host = host
        self.policies = tuple(str(policy.key) for policy, _ in members)
        self.visible = seen.classes
        self.dns_visible = seen.dns
        self.watched = seen.classes | asked(rule for policy, _ in members for rule in policy.rules)

        def judge_of(*modes: Mode) -> Judge:
            chosen = [(rule, mode) for policy, mode in members if mode in modes for rule in policy.rules]
            return compile_judge(chosen, postures, host=host)

        modes = {mode for _, mode in members}
        self.enforced = judge_of(Mode.ENFORCE)
        # What would be said if the audited (or shadow) policies were meant: they are judged together with the enforced ones.
        self.audited = judge_of(Mode.ENFORCE, Mode.AUDITED) if Mode.AUDITED in modes else None
        self.shadow = judge_of(Mode.ENFORCE, Mode.SHADOW) if Mode.SHADOW in modes else None
        self.baselines = tuple(_Baseline(policy, host) for policy, mode in members if mode is Mode.BASELINE)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Rules that are enforced: no audited, no shadow ones."""
        return tuple(rule for policy, mode in self.members if mode is Mode.ENFORCE for rule in policy.rules)

    @property
    def whitelist(self) -> frozenset[str]:
        """Tables (`policy.judge.compile.TABLES`) in which enforced Allow rules put everything else under the posture."""
        return whitelists(self.rules)

    def posture(self, table: str) -> str:
        """The posture of a table: audit, block or allow."""
        return self.postures.get(posture_of(table), "audit")

    def judge(self, behaviour: Behaviour, arguments: tuple[str, ...] | None = None) -> Verdict:
        """What is said of `behaviour`; `arguments`: argv of this occurrence, None when not known."""
        if _bits(behaviour.access, _UNTOLD):
            # What was left out of it cannot be held against it.
            return ALLOWED
        verdict = self.enforced.judge(behaviour, arguments)
        needs = verdict.needs_arguments
        if self.audited is not None and verdict.action is not Action.BLOCK:
            # Under an enforced Block nothing else happens; otherwise what an audited policy tells comes first.
            other = self.audited.judge(behaviour, arguments)
            needs = needs or other.needs_arguments
            if other.mode is Mode.AUDITED and (other.tell or not verdict.tell):
                verdict = other
        if self.shadow is not None:
            other = self.shadow.judge(behaviour, arguments)
            needs = needs or other.needs_arguments
            if other.mode is Mode.SHADOW:
                verdict = msgspec.structs.replace(verdict, shadow=(other,))
        for baseline in self.baselines:
            other = baseline.judge.judge(behaviour, arguments)
            needs = needs or other.needs_arguments
            if other.tell:
                verdict = msgspec.structs.replace(verdict, shadow=(*verdict.shadow, baseline.drift))
        # Also of one that says nothing yet: with the arguments it may.
        return needing_arguments(verdict) if needs and not verdict.needs_arguments else verdict

    def free(self, directory: str) -> bool:
        """Whether no policy says anything of what is done to one file in this directory, given with its trailing slash."""
        judges = (self.enforced, self.audited, self.shadow, *(one.judge for one in self.baselines))
        return all(judge.free(directory) for judge in judges if judge is not None)


class _Baseline:
    """What a workload is known to do. It is judged alone and with every posture at audit: what it says nothing of is drift, whatever
    other policies and postures say. `drift`: the verdict on all that is outside."""

    def __init__(self, policy: Policy, host: bool) -> None:
        self.policy = policy
        postures = dict.fromkeys(("file", "network", "capabilities", "device"), "audit")
        self.judge = compile_judge([(rule, Mode.ENFORCE) for rule in policy.rules], postures, host=host)
        first = policy.rules[0] if policy.rules else None
        said = first.message if first is not None else ""
        self.drift = Verdict(
            action=Action.AUDIT, policy=policy.key.name, rule=RuleRef(policy.key.name, policy.key.kind, policy.key.namespace), tell=True,
            host=host, mode=Mode.BASELINE, severity=first.severity if first is not None else 0,
            tags=("Drift", *(first.tags if first is not None else ())), message=f"Drift: {said or 'not in the baseline'}",
        )  # fmt: skip


class DoubtfulScope(Scope):
    """Of a container that no runtime confirms: its own scope, and beside it the host's, whose policies hold for it too. Each is judged by
    itself, so that an Allow of one never loosens the other; the stronger verdict counts. Plans are made from its own members."""

    def __init__(self, own: Scope, beside: Scope) -> None:
        self.__dict__.update(own.__dict__)
        self.beside = beside
        self._own = own
        self.policies = tuple(dict.fromkeys((*own.policies, *beside.policies)))
        self.visible = own.visible | beside.visible
        self.dns_visible = own.dns_visible or beside.dns_visible
        self.watched = own.watched | beside.watched

    def judge(self, behaviour: Behaviour, arguments: tuple[str, ...] | None = None) -> Verdict:
        """The stronger of both verdicts, with what shadows and baselines of both say."""
        own, beside = self._own.judge(behaviour, arguments), self.beside.judge(behaviour, arguments)
        verdict = stronger(own, beside)
        shadow = (*own.shadow, *beside.shadow)
        if shadow == verdict.shadow:
            return verdict
        needs = own.needs_arguments or beside.needs_arguments
        return msgspec.structs.replace(verdict, shadow=shadow, needs_arguments=needs)

    def free(self, directory: str) -> bool:
        """Whether neither says anything."""
        return self._own.free(directory) and self.beside.free(directory)


class Ruleset:
    """All policies, ready to be asked by identity. `problems`: rules left out, with the reason."""

    def __init__(
        self,
        policies: Iterable[Policy],
        settings: PostureSettings,
        digest: str,
        *,
        prepared: Iterable[PreparedPolicy] = (),
    ) -> None:
        """`prepared`: more policies, of which what they say by themselves is worked out."""
        self._untracked = frozenset(settings.untracked_namespaces)
        made = _in_order([*prepared, *(prepare(policy, self._untracked) for policy in policies)])
        self.policies = tuple(one.policy for one in made)
        self.settings = settings
        self.digest = digest
        self.problems: tuple[tuple[RuleRef, str], ...] = tuple(each for one in made for each in one.problems)
        self._predicates = [one.selects for one in made]
        self._containers: dict[str, list[int]] = {}
        self._in_kubernetes: dict[str, LabelIndex] = {}
        self._nodes: list[int] = []
        self._label_keys: set[str] = set()
        self._node_label_keys = {"kubernetes.io/hostname"}
        self._names_containers = False
        for number, policy in enumerate(self.policies):
            selection = policy.selection
            if selection.target is Target.NODES:
                self._nodes.append(number)
                self._node_label_keys.update(key for key, _ in selection.labels)
            else:
                self._containers.setdefault(selection.namespace, []).append(number)
                self._in_kubernetes.setdefault(selection.namespace, LabelIndex()).put(number, selection)
                self._label_keys.update(key for key, _ in selection.labels)
                self._label_keys.update(
                    value.partition("=")[0] for entry in selection.expressions if entry.labels for value in entry.values
                )
                self._names_containers |= selection.containers is not None
        self._links = [one.links for one in made]
        self._link_keys = frozenset().union(*self._links)
        self._kept: dict[Hashable, Scope] = {}
        self._compiled: dict[Hashable, Scope] = {}
        self._doubtful: dict[tuple[int, int], DoubtfulScope] = {}
        numbers = [number for some in self._containers.values() for number in some]
        self.newborn = visibility(settings.visibility, ()).classes.union(*(made[number].asked for number in numbers))
        """Classes to watch in a container of which only the cgroup is known: the setting, and what any policy may ask about."""

    def scope(self, identity: Identity) -> Scope:
        """The scope of an identity. Rules hold for the paths that they name and for what these are in its root (`links`)."""
        if identity.doubtful:
            own = self.scope(msgspec.structs.replace(identity, confirmed=True))
            beside = self.scope(msgspec.structs.replace(identity, kind=Kind.HOST))
            both = (id(own), id(beside))
            # By id: the scopes are kept as long as this one is, which holds both.
            made = self._doubtful.get(both)
            if made is None:
                made = self._doubtful[both] = DoubtfulScope(own, beside)
            return made
        key = self._key(identity)
        scope = self._kept.get(key)
        if scope is None:
            if len(self._kept) >= KEPT:
                self._kept.clear()
                self._compiled.clear()
                self._doubtful.clear()
            scope = self._kept[key] = self._scope(identity)
        return scope

    def _key(self, identity: Identity) -> Hashable:
        # Everything that a predicate, a mode, a posture or a visibility can read; nothing else.
        status = select.status_of(identity)
        seen = identity.annotations.get(VISIBILITY)
        asked = self._link_keys
        links = frozenset(item for item in identity.links.items() if item[0] in asked)
        if identity.kind is not Kind.CONTAINER:
            labels = identity.node_labels
            carried = frozenset((key, labels[key]) for key in self._node_label_keys if key in labels)
            return (False, identity.node, status, seen, carried, links)
        own = identity.namespace_annotations
        settled = tuple(own.get(key) for key in (VISIBILITY, *POSTURES.values())) if own else None
        keys = self._label_keys
        return (
            identity.orchestrated,
            identity.namespace,
            identity.container_name if self._names_containers else "",
            status,
            seen,
            settled,
            frozenset(item for item in identity.labels.items() if item[0] in keys),
            links,
        )

    def _candidates(self, identity: Identity) -> Iterable[int]:
        if identity.kind is not Kind.CONTAINER:
            return self._nodes
        if identity.orchestrated:
            places = {identity.namespace, ""}
            return (
                number for place in places if (some := self._in_kubernetes.get(place)) for number in some.of(identity)
            )
        return (number for numbers in self._containers.values() for number in numbers)

    def _scope(self, identity: Identity) -> Scope:
        settings = self.settings
        host = identity.kind is not Kind.CONTAINER
        untracked = not host and identity.orchestrated and identity.namespace in self._untracked
        chosen: list[tuple[int, Mode]] = []
        for number in sorted(set(() if untracked else self._candidates(identity))):
            policy = self.policies[number]
            mode = select.effective_mode(policy, identity)
            if mode is not None and self._predicates[number](identity):
                chosen.append((number, mode))
        scope_mode = Mode.AUDITED if select.status_of(identity) == "audited" else Mode.ENFORCE
        postures = self._postures(identity, host)
        if untracked:
            seen = Visibility()
        else:
            default = settings.host_visibility if host else settings.visibility
            outer = None if host else identity.namespace_annotations.get(VISIBILITY)
            seen = visibility(default, (outer, identity.annotations.get(VISIBILITY)))
        links = {
            key: identity.links[key] for number, _ in chosen for key in self._links[number] & identity.links.keys()
        }
        key = (tuple(chosen), tuple(postures.items()), seen, scope_mode, host, frozenset(links.items()))
        scope = self._compiled.get(key)
        if scope is None:
            members = tuple((linked(self.policies[number], links), mode) for number, mode in chosen)
            scope = self._compiled[key] = Scope(members, postures, seen, scope_mode, host)
        return scope

    def _postures(self, identity: Identity, host: bool) -> dict[str, str]:
        settings = self.settings
        if host:
            return {
                "file": settings.host_file,
                "network": settings.host_network,
                "capabilities": settings.host_capabilities,
                "device": settings.host_device,
            }
        postures: dict[str, str] = {
            "file": settings.file,
            "network": settings.network,
            "capabilities": settings.capabilities,
        }
        for name, annotation in POSTURES.items():
            # An invalid value leaves the setting in force, as KubeArmor does by rewriting the annotation.
            if value := posture(identity.namespace_annotations.get(annotation)):
                postures[name] = value
        return postures


def _in_order(made: list[PreparedPolicy]) -> list[PreparedPolicy]:
    """By key; of policies that have the same, by what they say: whatever the order in which they came."""
    made.sort(key=lambda one: one.policy.key)
    if any(one.policy.key == other.policy.key for one, other in pairwise(made)):
        made.sort(key=lambda one: (one.policy.key, msgspec.msgpack.encode(one.policy)))
    return made


class RulesetCompiler:
    """`compile_ruleset` for a set of which a policy changes at a time: what was worked out of the others in the call before is kept.
    One call at a time."""

    def __init__(self, settings: PostureSettings) -> None:
        self._settings = settings
        self._untracked = frozenset(settings.untracked_namespaces)
        self._known: dict[tuple[str, bytes, str, int], PreparedPolicy] = {}

    def __call__(self, documents: Iterable[PolicyDocument]) -> Ruleset:
        known = sorted({(one.key, one.raw): one for one in documents}.items(), key=lambda item: item[0])
        hashed = hashlib.sha256(msgspec.msgpack.encode(self._settings))
        made: dict[tuple[str, bytes, str, int], PreparedPolicy] = {}
        for (key, raw), document in known:
            hashed.update(f"{len(key)}:{len(raw)}:{key}".encode() + raw)
            name = (key, raw, document.origin, document.line)
            made[name] = self._known.get(name) or prepare(normalise(document), self._untracked)
        self._known = made
        return Ruleset((), self._settings, hashed.hexdigest()[:32], prepared=made.values())


def compile_ruleset(documents: Iterable[PolicyDocument], settings: PostureSettings = PostureSettings()) -> Ruleset:  # noqa: B008
    """A ruleset of `documents`, in any order. A rule that cannot be compiled is in `Ruleset.problems`, never an exception."""
    return RulesetCompiler(settings)(documents)
