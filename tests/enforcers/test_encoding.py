# SPDX-License-Identifier: Apache-2.0
"""Two backends on one map: both write to it, equal entries are one, and a contradiction is an error and not an overwrite."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest

from enforcers.bpf_lsm import LsmEnforcer
from enforcers.contract import Entries, Everywhere, Ident, TablePart
from enforcers.encoding import Encoder, joined, nobodys
from enforcers.registry import make
from enforcers.signal import SignalEnforcer
from schemas.backends import BACKENDS, BY_NAME, Implemented
from schemas.enforcement import NetworkRule, PathRule, ScopePlan
from schemas.errors import KernelError
from schemas.kernel import ScopeFlag
from schemas.operations import Backend, Class
from schemas.refusals import RefusalCode
from schemas.verdict import DEFAULT_POSTURE, Action, RuleRef

SCOPE = ScopePlan(uid="u", cgroups=(7,))


class Fixed(Everywhere):
    """A table backend that always writes the same."""

    def __init__(self, backend: Backend, map_name: str, entries: Entries, flag: ScopeFlag) -> None:
        self.backend, self.maps, self.enforces = backend, {map_name: 0}, flag
        self._entries = entries
        self.calls = 0

    def unusable(self) -> str:
        return ""

    def encode(self, scope: ScopePlan, ident: Ident) -> TablePart:
        self.calls += 1
        return TablePart(entries=dict.fromkeys(self.maps, self._entries), flags=self.enforces, rules=len(self._entries))


def test_backends_on_one_map_are_both_in_the_table() -> None:
    first = Fixed(Backend.BPF_LSM, "rules", ((b"a", b"1"), (b"b", b"2")), ScopeFlag.CLOSED)
    second = Fixed(Backend.SIGNAL, "rules", ((b"b", b"2"), (b"c", b"3")), ScopeFlag.ENFORCE_SIGNAL)
    encoded = Encoder((first, second), (1, 2)).encode(SCOPE)
    assert encoded.entries == {"rules": ((b"a", b"1"), (b"b", b"2"), (b"c", b"3"))}
    assert {backend: part.rules for backend, part in encoded.parts.items()} == {Backend.BPF_LSM: 2, Backend.SIGNAL: 2}
    assert encoded.flags == ScopeFlag.CLOSED | ScopeFlag.ENFORCE_SIGNAL
    assert encoded.holds(Backend.BPF_LSM)


REF = RuleRef("p", "KubeArmorPolicy", "shop", "spec.x[0]")


def test_nobody_is_killed_by_a_rule_whose_exception_only_the_hooks_can_see() -> None:
    """Both read one table. A shadow leaves everything to the signal backend, which knows no patterns."""
    files = [
        ("path", "/x", Action.BLOCK),
        ("pattern", "/etc/*.conf", Action.ALLOW),
        ("directory", "/etc/", Action.BLOCK),
    ]
    rules = tuple(
        PathRule(cls=Class.FILE, match=match, value=value, action=action, ref=msgspec.structs.replace(REF, index=at))
        for at, (match, value, action) in enumerate(files)
    )
    scope = ScopePlan(uid="u", cgroups=(7,), paths=rules, signal=True)
    backends = (LsmEnforcer("/nowhere", shadow=True), SignalEnforcer("/nowhere"))
    encoded = Encoder(backends, (1, 2)).encode(scope)
    assert not encoded.flags & ScopeFlag.ENFORCE_SIGNAL
    assert not Encoder(backends[::-1], (1, 2)).encode(scope).flags & ScopeFlag.ENFORCE_SIGNAL
    refused = {one.ref: one.code for one in encoded.parts[Backend.SIGNAL].refused}
    assert refused == {
        rules[0].ref: RefusalCode.EXCEPTION, rules[1].ref: RefusalCode.PATTERN, rules[2].ref: RefusalCode.EXCEPTION,
    }  # fmt: skip
    # A pattern that only denies hides nothing.
    pattern = msgspec.structs.replace(rules[1], action=Action.BLOCK)
    block = msgspec.structs.replace(scope, paths=(rules[0], pattern, rules[2]))
    assert Encoder(backends, (1, 2)).encode(block).flags & ScopeFlag.ENFORCE_SIGNAL


def test_a_rule_that_no_backend_of_the_node_answers_for_is_told() -> None:
    path = PathRule(cls=Class.FILE, match="path", value="/a", action=Action.BLOCK, ref=REF)
    peer = NetworkRule(protocol="tcp", action=Action.BLOCK, ref=msgspec.structs.replace(REF, index=1))
    free = msgspec.structs.replace(path, value="/b", action=Action.ALLOW, ref=msgspec.structs.replace(REF, index=2))
    scope = msgspec.structs.replace(
        SCOPE, paths=(path, path, free), network=(peer,), posture=((Class.FILE, Action.BLOCK),)
    )

    def told(*used: Backend) -> list[RuleRef]:
        return [one.ref for one in nobodys(scope, used)]

    assert told(Backend.CGROUP) == [path.ref, RuleRef(DEFAULT_POSTURE)]
    assert told(Backend.SIGNAL) == [peer.ref]
    assert told(Backend.CGROUP, Backend.SIGNAL) == told(Backend.BPF_LSM) == []
    (one,) = nobodys(scope, (Backend.SIGNAL,))
    assert (one.code, one.reason) == (
        RefusalCode.WRONG_CLASS,
        "no backend that this node uses holds network rules; `bpf-lsm` or `apparmor` or `cgroup` in `enforcement.backends` could",
    )


def test_two_values_for_one_key_are_refused() -> None:
    first = Fixed(Backend.BPF_LSM, "rules", ((b"a", b"1"),), ScopeFlag(0))
    second = Fixed(Backend.SIGNAL, "rules", ((b"a", b"2"),), ScopeFlag(0))
    with pytest.raises(KernelError, match="expected `bpf-lsm` and `signal` to agree on what they write to map `rules`"):
        Encoder((first, second), (1, 2)).encode(SCOPE)
    apart = Fixed(Backend.SIGNAL, "others", ((b"a", b"2"),), ScopeFlag(0))
    parts = {one.backend: one.encode(SCOPE, len) for one in (first, apart)}
    assert joined((first, apart), parts) == {"rules": ((b"a", b"1"),), "others": ((b"a", b"2"),)}


def test_equal_rules_are_encoded_once_and_forgotten_after_two_plans() -> None:
    one = Fixed(Backend.SIGNAL, "rules", (), ScopeFlag(0))
    encoder = Encoder((one,), (1, 2))
    for _ in range(2):
        encoder.begin()
        encoder.encode(SCOPE)
        encoder.encode(ScopePlan(uid="v", cgroups=(8,), workload="other"))
    assert one.calls == 1
    for _ in range(2):
        encoder.begin()
    encoder.encode(SCOPE)
    assert one.calls == 2


def test_each_name_makes_its_backend_and_those_on_one_map_agree_on_its_layout() -> None:
    made = [make(name, "/nowhere") for name in get_args(Implemented)]
    assert [one.backend for one in made] == [BY_NAME[name] for name in get_args(Implemented)]
    tables = [one for one in made if BACKENDS[one.backend].mechanism == "tables"]
    offsets = {found for one in tables for found in one.maps.items()}
    assert len(offsets) == len({name for name, _ in offsets})
    assert len({one.enforces for one in tables}) == len(tables)
