# SPDX-License-Identifier: Apache-2.0
"""Plans and receipts: what a node shall enforce, and what it does.

A plan is whole (not a difference), content-hashed and has a generation; the node computes the difference against what is in
its maps. A rule that no backend of the node can express is refused with a reason in the receipt, never dropped in silence; so
is the part of a rule that its backend leaves out. Structs are arrays that grow at the end: a plan that an older version saved
on a node is read by this one, and what it lacks has the default.
"""

from __future__ import annotations

import hashlib

import msgspec

from schemas.decoding import Bits, Count, Name, Nanoseconds, Port, decoder
from schemas.operations import Backend, Class
from schemas.refusals import RefusalCode
from schemas.verdict import Action, RuleRef


class PathRule(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """A process or file rule, or one on a capability or a preset. `match`: `path`, `directory`, `directory_recursive`, `pattern`,
    `execname`, `capability` or `preset`. Directories end in `/`. `source`: executable the rule is limited to (exec: the parent's), "" for any;
    `source_match`: how that is meant, `path`, `directory`, `directory_recursive` or `pattern`. `no_terminal`: who has a controlling
    terminal is outside of what the rule leaves free."""

    cls: Class
    match: str
    value: str
    source: str = ""
    action: Action
    owner_only: bool = False
    read_only: bool = False
    ref: RuleRef
    no_terminal: bool = False
    source_match: str = "path"

    @property
    def many(self) -> bool:
        """Whether the source stands for any number of executables."""
        return bool(self.source) and self.source_match != "path"

    @property
    def limited(self) -> bool:
        """Whether the rule leaves a part free."""
        return self.owner_only or self.read_only or self.no_terminal

    @property
    def stops(self) -> bool:
        """Whether anything is ever denied by the rule: outside of its limits an Allow rule denies too. A preset allows nothing."""
        return self.action is Action.BLOCK or (self.limited and self.match != "preset")

    @property
    def frees(self) -> bool:
        """Whether the rule is an exception to others: anything passes because of it that would not without it."""
        return self.match != "preset" and (self.action is Action.ALLOW or self.limited)


class NetworkRule(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """A network rule. `protocol`: tcp udp icmp icmpv6 sctp raw all or a socket type; `cidr` "" is any address, `port` 0 any.
    `source`, `source_match`, `no_terminal`: as of a `PathRule`; who has no terminal is free, whether the action is Allow or Block."""

    protocol: str
    cidr: str = ""
    port: Port = 0
    end_port: Port = 0
    direction: str = "egress"
    source: str = ""
    action: Action
    ref: RuleRef
    no_terminal: bool = False
    source_match: str = "path"

    @property
    def many(self) -> bool:
        """Whether the source stands for any number of executables."""
        return bool(self.source) and self.source_match != "path"

    @property
    def stops(self) -> bool:
        """Whether anything is ever denied by the rule."""
        return self.action is Action.BLOCK or self.no_terminal

    @property
    def frees(self) -> bool:
        """Whether the rule is an exception to others."""
        return self.action is Action.ALLOW or self.no_terminal


class ScopePlan(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """What one container (or chosen host cgroup) shall be held to. `whitelist`: classes with Allow rules;
    `posture`: what happens to the unmatched in those. `backends`: opt-ins beyond the node's own (`signal`)."""

    uid: str
    cgroups: tuple[Count, ...]
    cgroup_path: str = ""
    workload: str = ""
    paths: tuple[PathRule, ...] = ()
    network: tuple[NetworkRule, ...] = ()
    whitelist: tuple[Class, ...] = ()
    posture: tuple[tuple[Class, Action], ...] = ()
    signal: bool = False
    visibility: Bits = -1
    """Bit 1 << Class for each class that its kernel reports; -1 leaves what is there."""


class Trial(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """A policy that is held for a minute unless it is confirmed. `policy`: its key; `since`: when it was applied, RFC 3339. Without it and
    the trials before it in the plan: `scopes` in the place of those of the same uid, and none for the uids in `dropped`."""

    policy: str
    since: str
    scopes: tuple[ScopePlan, ...] = ()
    dropped: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of this one trial of the policy."""
        return f"{self.policy}@{self.since}"


class Plan(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """One value of `enforcement.desired.v1`, key node. `created_ns`: Unix ns, when the newest policy in it was published.
    `refused`: rules that no backend can carry, `partial`: rules of which a part is not carried, both found while planning; the
    node repeats them in its receipt."""

    node: Name
    generation: Count
    digest: str
    scopes: tuple[ScopePlan, ...]
    policies: tuple[str, ...] = ()
    created_ns: Nanoseconds = 0
    refused: tuple[Refusal, ...] = ()
    host_visibility: Bits = -1
    """Bits reported of cgroups without a scope; -1 leaves what is there."""
    new_visibility: Bits = -1
    """Bits reported of a cgroup made later, until a plan claims it; -1 leaves what is there."""
    host_cgroups: tuple[Count, ...] = ()
    """Cgroups of the host that a newborn's bits would widen: known now, they are to have the host's."""
    held: str = ""
    """Why this plan stays although the policies on the bus say something else: they are damaged or not whole. "" otherwise."""
    linked_ns: Nanoseconds = 0
    """Of versions before `linked_set`, not read: the bus's time of the newest policy whose paths had been looked up."""
    partial: tuple[Refusal, ...] = ()
    selected: tuple[tuple[str, Count], ...] = ()
    """Key of each policy that is for something of this node, and how many of its containers it is for; 0: for the host alone."""
    trials: tuple[Trial, ...] = ()
    """Policies that nobody has confirmed yet, the oldest first."""
    policy_set: str = ""
    """Mark of the policies on the bus that it was made of (`schemas.policy_set_mark`)."""
    linked_set: str = ""
    """Mark of the policies whose paths had been looked up in every root of the node before this plan was made."""
    starting: tuple[Count, ...] = ()
    """Cgroups of the containers whose runtimes wait for this plan, or for one after it; with or without a scope in it."""


class Refusal(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """A rule that is not enforced, or not all of it (`code.partial`), and why: `code` for programs, `reason` for people."""

    ref: RuleRef
    uid: str = ""
    backend: Backend = Backend.OBSERVER
    reason: str
    code: RefusalCode = RefusalCode.UNSPECIFIED


class InForce(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """What one backend of a node enforces. `scopes`: containers and cgroups under it; `rules`: of their plans, counted in each
    scope; `problem`: why the node cannot use the backend, "" when it can."""

    backend: Backend
    scopes: Count = 0
    rules: Count = 0
    problem: str = ""


class Receipt(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """One value of `enforcement.status.v1`, key node: what is in force. Times: Unix ns; `took_ms` for map updates alone."""

    node: Name
    generation: Count
    digest: str
    applied_ns: Nanoseconds
    took_ms: float
    backends: tuple[Backend, ...]
    scopes: Count
    rules: Count
    refused: tuple[Refusal, ...] = ()
    failed: tuple[str, ...] = ()
    partial: tuple[Refusal, ...] = ()
    """Rules that are enforced, and what of them is not."""
    in_force: tuple[InForce, ...] = ()
    """One for each backend that the settings name; none from a version before it."""


class PlanHead(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """The beginning of a plan without its rules, for who only asks what it is of."""

    node: Name
    generation: Count
    digest: str
    scopes: msgspec.Raw
    policies: tuple[str, ...] = ()
    created_ns: Nanoseconds = 0
    refused: msgspec.Raw = msgspec.Raw()
    host_visibility: Bits = -1
    new_visibility: Bits = -1
    host_cgroups: msgspec.Raw = msgspec.Raw()
    held: str = ""
    linked_ns: Nanoseconds = 0
    partial: msgspec.Raw = msgspec.Raw()
    selected: tuple[tuple[str, Count], ...] = ()
    trials: msgspec.Raw = msgspec.Raw()
    policy_set: str = ""


def digest(scopes: tuple[ScopePlan, ...], *watch: object) -> str:
    """Content hash of a plan: equal scopes in equal order give equal digests. `watch`: what else it says of visibility."""
    return hashlib.sha256(_encode((scopes, watch))).hexdigest()[:32]


_encode = msgspec.msgpack.Encoder().encode
_decode_plan = decoder(Plan, "an enforcement plan")
_decode_head = decoder(PlanHead, "an enforcement plan")
_decode_receipt = decoder(Receipt, "an enforcement receipt")
encode = _encode


def decode_plan(data: bytes) -> Plan:
    """The plan in `data`; DecodeError when it is not one."""
    return _decode_plan(data)


def decode_plan_head(data: bytes) -> PlanHead:
    """What the plan in `data` is of; DecodeError when it is none."""
    return _decode_head(data)


def decode_receipt(data: bytes) -> Receipt:
    """The receipt in `data`; DecodeError when it is not one."""
    return _decode_receipt(data)
