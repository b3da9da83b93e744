# SPDX-License-Identifier: Apache-2.0
"""The `bpf-lsm` backend: process, file and network rules asked by the kernel before anything happens. A denied call sees EPERM.
Asked for, not on by default.

The hooks (`kernel/hooks.py`) were loaded, attached and pinned with the sensor where the kernel asks such programs; here only
tables are written. A class of which it carries every rule needs no other backend (`TablePart.whole`). Neighbours: `paths` and
`networks` (the entries), `apply` (who calls), programs/lsm_ask.c.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final

import msgspec

from enforcers import above, machines, networks, paths
from enforcers.actors import ActorMachine
from enforcers.contract import Entries, Everywhere, Ident, TablePart
from kernel.btf import VMLINUX
from kernel.features import locked_down
from kernel.hooks import HOOKS
from policy.judge.presets import RUNTIMES
from schemas.enforcement import PathRule, Refusal, ScopePlan
from schemas.kernel import NET_KEY, RULE, RULE_KEY, RuleKind, ScopeFlag
from schemas.lsm import TableFlag
from schemas.operations import Backend, Class
from schemas.refusals import Cause, RefusalCode
from schemas.socket_names import CAPABILITIES
from schemas.verdict import DEFAULT_POSTURE, Action, RuleRef

MODULES: Final = "/sys/kernel/security/lsm"
_WHITELIST: Final = {
    Class.PROCESS: TableFlag.WHITELIST_PROCESS,
    Class.FILE: TableFlag.WHITELIST_FILE,
    Class.NETWORK: TableFlag.WHITELIST_NETWORK,
    Class.CAPABILITIES: TableFlag.WHITELIST_CAPABILITIES,
}
_BY_PATH: Final = TableFlag.HAS_PROCESS | TableFlag.HAS_FILE
_PRESETS: Final = {
    "filelessExec": TableFlag.FILELESS,
    "anonymousMapExec": TableFlag.ANONYMOUS,
    "protectEnv": TableFlag.ENVIRON,
    "protectProc": TableFlag.PROC,
    "exec": TableFlag.SESSION,
}
_ELSEWHERE: Final = ("pattern", "capability", "preset")
_TOO_MANY: Final = Cause(
    RefusalCode.PATTERN,
    f"the patterns of this workload need a machine of more than {machines.CELLS} cells; this one and those after it are left out",
)
_SHADOW: Final = Cause(
    RefusalCode.SHADOW, "`enforcement.shadow` is on: what `bpf-lsm` would deny is counted and told, and goes on"
)
_HAS: Final = {
    Class.PROCESS: TableFlag.HAS_PROCESS,
    Class.FILE: TableFlag.HAS_FILE,
    Class.NETWORK: TableFlag.HAS_NETWORK,
    Class.CAPABILITIES: TableFlag.HAS_CAPABILITIES,
}
_DIRECTORIES: Final = ("directory", "directory_recursive")
_DEEPEST: Final = 31
"""Directories this deep or deeper share a bit of the header."""


class LsmEnforcer(Everywhere):
    """See `contract.TableBackend`. `closed`: what no rule can be asked about is denied where rules deny something. `mounts`: what
    gives files other paths may be used where rules on paths deny something: mounts, another root, user namespaces. `shadow`: nothing is
    denied, and no rule counts as held."""

    backend = Backend.BPF_LSM
    maps: Final = {"rules": RULE_KEY.offsets["table"], "net_rules": NET_KEY.offsets["table"]}
    enforces = ScopeFlag.ENFORCE_LSM

    def __init__(self, pin_dir: str, *, closed: bool = True, mounts: bool = True, shadow: bool = False) -> None:
        self._links = f"{pin_dir}/links"
        self._closed = closed
        self._mounts = mounts
        self._shadow = shadow

    def unusable(self) -> str:
        if why := locked_down():
            return why
        if not VMLINUX.exists():
            return f"`{VMLINUX}` is missing, and hooks are found in it; boot a kernel with CONFIG_DEBUG_INFO_BTF"
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
        part = self._encode(scope, ident)
        return _in_shadow(part, scope) if self._shadow and part.flags else part

    def _encode(self, scope: ScopePlan, ident: Ident) -> TablePart:
        actors = ActorMachine(scope.paths, scope.network)
        entries, cells, refused, holes = self._paths(scope, ident, actors)
        peers, not_peers, net_holes = networks.encode(
            scope.network, ident, self.backend, scope.uid, every_family=True, actors=actors
        )
        refused = (*refused, *not_peers)
        left_out = {one.ref for one in refused}
        held = [rule for rule in scope.paths if rule.ref not in left_out]
        flags = TableFlag(0)
        for rule in held:
            if rule.match != "preset":
                flags |= _HAS[rule.cls]
            elif rule.stops:
                flags |= _PRESETS[rule.value]
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
        stops = any(flag & flags for flag in _WHITELIST.values()) or any(rule.stops for rule in held)
        if self._closed and stops:
            flags |= TableFlag.CLOSED
        if not self._mounts and flags & _BY_PATH and stops:
            flags |= TableFlag.MOUNTS
        if any(rule.source for rule in scope.paths) or any(rule.source for rule in scope.network):
            flags |= TableFlag.SOURCES
        connected = [rule for rule in scope.network if rule.ref not in left_out]
        if any(rule.many for rule in held) or any(rule.many for rule in connected):
            flags |= TableFlag.ACTORS
        if any(rule.match == "execname" for rule in held):
            flags |= TableFlag.NAMES
        if cells:
            flags |= TableFlag.PATTERNS
        if self._shadow:
            flags |= TableFlag.SHADOW
        guards = above.guards(held, ident)
        if guards:
            flags |= TableFlag.GUARDS
        header = (
            RULE_KEY.struct.pack(0, 0, 0, 0, RuleKind.HEADER),
            RULE.struct.pack(_depths(held), flags, 0, len(cells) // 4),
        )
        carried = {rule.ref for rule in held}
        networked = {rule.ref for rule in connected}
        # A raw socket may write another peer into its packet than the one that the hook sees: the rest of such a rule is the guards'.
        whole = (
            carried | {rule.ref for rule in scope.network if not rule.cidr and rule.direction == "ingress"} - left_out
        )
        if flags & TableFlag.WHITELIST_NETWORK:
            whole |= {RuleRef(DEFAULT_POSTURE)}
        left = above.unguarded(held, self.backend, scope.uid)
        whole -= {one.ref for one in left}
        lost = {rule.cls for rule in scope.paths if rule.ref in left_out}
        return TablePart(
            entries={"rules": (header, *entries, *guards), "net_rules": peers}, flags=ScopeFlag.ENFORCE_LSM,
            rules=len(carried | networked), refused=refused, partial=left, carried=frozenset(whole),
            whole=frozenset({Class.PROCESS, Class.FILE} - lost - holes),
            cells=cells + actors.cells if flags & TableFlag.ACTORS else cells,
            hidden=frozenset(
                {rule.cls for rule in held if rule.frees and (rule.many or rule.match == "pattern")}
                | {Class.NETWORK for rule in connected if rule.frees and rule.many}
            ),
        )  # fmt: skip

    def _paths(
        self, scope: ScopePlan, ident: Ident, actors: ActorMachine
    ) -> tuple[Entries, bytes, tuple[Refusal, ...], set[Class]]:
        """Entries and machine of the rules on paths, capabilities and presets; refusals; classes without an Allow rule of theirs."""
        rules = list(enumerate(scope.paths))
        patterns = [one for one in rules if one[1].match == "pattern"]
        left = {
            index: Cause(RefusalCode.NOT_IN_PLAN, f"`{rule.value}` is no capability that this version knows")
            for index, rule in rules
            if rule.match == "capability" and rule.value not in CAPABILITIES
        }
        if (problem := actors.problem) is not None:
            left |= {index: problem for index, rule in rules if rule.many}
        made, cells, unfit = machines.encode(patterns, ident)
        left |= {index: _TOO_MANY for index, _ in unfit}
        entries, refused, holes = paths.encode(
            scope.paths, ident, self.backend, scope.uid, left=left, elsewhere=_ELSEWHERE, many=True
        )
        gone = {one.ref for one in refused}
        if any(rule.ref in gone for _, rule in patterns):
            made, cells, _ = machines.encode([one for one in patterns if one[1].ref not in gone], ident)

        def what(rule: PathRule) -> paths.Key:
            if rule.match == "capability":
                return CAPABILITIES.index(rule.value) + 1, rule.cls, RuleKind.EXACT
            return paths.key(rule, ident)

        more: dict[bytes, bytes] = dict(made)
        more |= actors.entries([one for one in rules if one[1].ref not in gone], what)
        for index, rule in rules:
            if rule.match == "capability" and rule.ref not in gone and not rule.many:
                path, class_, kind = what(rule)
                source = ident(rule.source) if rule.source else 0
                more.setdefault(RULE_KEY.struct.pack(0, path, source, class_, kind), paths.rule_value(rule, index))
            elif rule.match == "preset" and rule.value == "exec" and rule.stops:
                for name in sorted(RUNTIMES):
                    more[RULE_KEY.struct.pack(0, ident(name), 0, rule.cls, RuleKind.RUNTIME)] = paths.rule_value(
                        rule, index
                    )
        return (*entries, *more.items()), cells, refused, holes


def _in_shadow(part: TablePart, scope: ScopePlan) -> TablePart:
    """What `part` is as a shadow: every rule that would deny is refused, and left to the backends after it."""
    denying = [rule.ref for rule in scope.paths if rule.stops]
    denying += [rule.ref for rule in scope.network if rule.stops]
    denying += [RuleRef(DEFAULT_POSTURE) for _, action in scope.posture if action is Action.BLOCK]
    left_out = {one.ref for one in part.refused}
    told = tuple(
        Refusal(ref=ref, uid=scope.uid, backend=Backend.BPF_LSM, reason=_SHADOW.text, code=_SHADOW.code)
        for ref in dict.fromkeys(denying)
        if ref not in left_out
    )
    return msgspec.structs.replace(
        part,
        rules=0,
        refused=(*part.refused, *told),
        partial=(),
        carried=frozenset[RuleRef](),
        whole=frozenset[Class](),
    )


def _depths(rules: Iterable[PathRule]) -> int:
    """A bit for each depth at which some directory has a rule; `/` is at 0."""
    bits = 0
    for rule in rules:
        if rule.match in _DIRECTORIES:
            bits |= 1 << min(rule.value.count("/") - 1, _DEEPEST)
    return bits
