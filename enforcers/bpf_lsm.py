# SPDX-License-Identifier: Apache-2.0
"""The `bpf-lsm` backend: process, file and network rules asked by the kernel before anything happens. A denied call sees EPERM.
Off by default: single hooks were seen to deny in guests, the way from the loader to a denied call was not run yet.

The hooks (`kernel/hooks.py`) were loaded, attached and pinned with the sensor where the kernel asks such programs; here only
tables are written. A class of which it carries every rule needs no other backend (`TablePart.whole`). Neighbours: `paths` and
`networks` (the entries), `apply` (who calls), programs/lsm_ask.c.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final

from enforcers import networks, paths
from enforcers.contract import Entries, Everywhere, Ident, TablePart
from kernel.hooks import HOOKS
from schemas.enforcement import PathRule, Refusal, ScopePlan
from schemas.kernel import NET_KEY, RULE, RULE_KEY, RuleAction, RuleKind, ScopeFlag
from schemas.lsm import TableFlag
from schemas.operations import Backend, Class
from schemas.refusals import RefusalCode
from schemas.verdict import DEFAULT_POSTURE, Action, RuleRef

MODULES: Final = "/sys/kernel/security/lsm"
_WHITELIST: Final = {
    Class.PROCESS: TableFlag.WHITELIST_PROCESS,
    Class.FILE: TableFlag.WHITELIST_FILE,
    Class.NETWORK: TableFlag.WHITELIST_NETWORK,
}
_HAS: Final = {
    Class.PROCESS: TableFlag.HAS_PROCESS,
    Class.FILE: TableFlag.HAS_FILE,
    Class.NETWORK: TableFlag.HAS_NETWORK,
}
_DIRECTORIES: Final = ("directory", "directory_recursive")
_DEEPEST: Final = 31
"""Directories this deep or deeper share a bit of the header."""


class LsmEnforcer(Everywhere):
    """See `contract.TableBackend`. `closed`: what no rule can be asked about is denied where rules deny something."""

    backend = Backend.BPF_LSM
    maps: Final = {"rules": RULE_KEY.offsets["table"], "net_rules": NET_KEY.offsets["table"]}
    enforces = ScopeFlag.ENFORCE_LSM

    def __init__(self, pin_dir: str, *, closed: bool = True) -> None:
        self._links = f"{pin_dir}/links"
        self._closed = closed

    def unusable(self) -> str:
        missing = [hook.name for hook in HOOKS if hook.needed and not os.path.exists(f"{self._links}/lsm_{hook.name}")]
        if not missing:
            return ""
        try:
            with open(MODULES, encoding="ascii") as file:
                modules = file.read().strip()
        except OSError:
            modules = ""
        if modules and "bpf" not in modules.split(","):
            return f"`bpf` is not among this kernel's security modules ({modules}); boot with lsm={modules},bpf"
        return (
            f"its hooks are not attached (`{missing[0]}` is missing under {self._links}); `hauberk probe` says whether this "
            "kernel asks LSM programs, the log of the sensor's load why it took none"
        )

    def encode(self, scope: ScopePlan, ident: Ident) -> TablePart:
        entries, refused, holes = paths.encode(scope.paths, ident, self.backend, scope.uid)
        peers, not_peers, net_holes = networks.encode(scope.network, ident, self.backend, scope.uid)
        refused = (*refused, *not_peers)
        left_out = {one.ref for one in refused}
        held = [rule for rule in scope.paths if rule.ref not in left_out]
        flags = TableFlag(0)
        for class_ in {rule.cls for rule in held}:
            flags |= _HAS.get(class_, TableFlag(0))
        if peers:
            flags |= TableFlag.HAS_NETWORK
        for class_, flag in _WHITELIST.items():
            if (class_, Action.BLOCK) not in scope.posture:
                continue
            if class_ in holes or (class_ is Class.NETWORK and net_holes):
                why = "an Allow rule cannot be carried out, and without it the posture would deny too much"
                ref = RuleRef(DEFAULT_POSTURE)
                refused = (
                    *refused,
                    Refusal(ref=ref, uid=scope.uid, backend=self.backend, reason=why, code=RefusalCode.POSTURE),
                )
            else:
                flags |= flag | _HAS[class_]
        if not flags:
            return TablePart(refused=refused)
        if self._closed and (any(flag & flags for flag in _WHITELIST.values()) or any(map(paths.stops, held))):
            flags |= TableFlag.CLOSED
        if any(rule.source for rule in scope.paths) or any(rule.source for rule in scope.network):
            flags |= TableFlag.SOURCES
        if any(rule.match == "execname" for rule in held):
            flags |= TableFlag.NAMES
        guards = _guards(held, ident)
        if guards:
            flags |= TableFlag.GUARDS
        header = (
            RULE_KEY.struct.pack(0, 0, 0, 0, RuleKind.HEADER),
            RULE.struct.pack(_depths(held), flags, 0, len(held)),
        )
        # Of a network rule these hooks leave what the guards leave: other families, a listen without bind.
        carried = {rule.ref for rule in held}
        networked = {rule.ref for rule in scope.network} - left_out
        lost = {rule.cls for rule in scope.paths if rule.ref in left_out}
        return TablePart(
            entries={"rules": (header, *entries, *guards), "net_rules": peers}, flags=ScopeFlag.ENFORCE_LSM,
            rules=len(carried | networked), refused=refused, carried=frozenset(carried),
            whole=frozenset({Class.PROCESS, Class.FILE} - lost - holes),
        )  # fmt: skip


def _depths(rules: Iterable[PathRule]) -> int:
    """A bit for each depth at which some directory has a rule; `/` is at 0."""
    bits = 0
    for rule in rules:
        if rule.match in _DIRECTORIES:
            bits |= 1 << min(rule.value.count("/") - 1, _DEEPEST)
    return bits


def _guards(rules: Iterable[PathRule], ident: Ident) -> Entries:
    """The directories above what is forbidden by its path: renamed, they would take it to a path without rules."""
    above: set[str] = set()
    for rule in rules:
        if paths.stops(rule) and rule.match in ("path", *_DIRECTORIES):
            parts = rule.value.rstrip("/").split("/")
            above.update("/".join(parts[:end]) + "/" for end in range(2, len(parts)))
    value = RULE.struct.pack(RuleAction.BLOCK, 0, 0, 0)
    return tuple(
        (RULE_KEY.struct.pack(0, ident(path), 0, Class.FILE, RuleKind.GUARD), value) for path in sorted(above)
    )  # fmt: skip
