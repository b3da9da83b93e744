# SPDX-License-Identifier: Apache-2.0
"""A scope's rules as the body of an AppArmor profile. Pure.

In a profile a `deny` wins over every allowance, whatever is more specific. So a Block rule that an exception before it meets is
refused, never widened; an Allow rule needs a line only where its class has posture `block`. Rules with `fromSource` are refused: the program would
have to change profile at exec, which no_new_privs forbids. Every denial is `audit deny`: a plain `deny` is silent.
A profile knows families and types of sockets, no protocols: those are left to the `cgroup` backend.
Neighbours: `apparmor` (loads it), `policy.kernel_plan` (who orders the rules).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from enforcers.contract import ProfilePart
from policy.rules.specificity import TYPES
from schemas.enforcement import NetworkRule, PathRule, Refusal, ScopePlan
from schemas.operations import Backend, Class
from schemas.refusals import Cause, RefusalCode
from schemas.socket_names import CAPABILITIES
from schemas.verdict import DEFAULT_POSTURE, Action, RuleRef

OPEN: Final = (
    "capability,", "network,", "mount,", "umount,", "remount,", "pivot_root,", "signal,", "ptrace,", "unix,", "dbus,",
    "change_profile,",
)  # fmt: skip
"""What no rule of a plan is about, and sockets, of which single kinds are denied."""
_TYPES: Final = ("stream", "dgram", "seqpacket", "raw")
_CLASSES: Final = {Class.PROCESS: "ix", Class.FILE: "rwkl"}
"""The permissions that a class asks about."""
_SOURCE: Final = Cause(
    RefusalCode.SOURCE,
    "a profile binds a rule to its program by a change of profile at exec, which no_new_privs forbids",
)
_EXCEPTION: Final = Cause(
    RefusalCode.EXCEPTION, "a profile cannot except anything from a deny, and an exception to this rule comes before it"
)
_TEXT: Final = Cause(
    RefusalCode.PATTERN, "a profile's text cannot hold a path with control characters or bytes that are not UTF-8"
)
_GLOB: Final = Cause(
    RefusalCode.PATTERN,
    "a profile reads this pattern in another way: character classes that are negated, and `/**/` for one slash",
)
_PRESET: Final = Cause(RefusalCode.PRESET, "presets need BPF LSM hooks")
_TERMINAL: Final = Cause(RefusalCode.TERMINAL, "a profile cannot ask for a terminal")
_PROTOCOL: Final = Cause(RefusalCode.SOCKET_FAMILY, "a profile knows families and types of sockets, no protocols")
_ADDRESS: Final = Cause(RefusalCode.ADDRESS, "AppArmor knows socket families and types, no addresses, and no direction")
_SOCKETS: Final = Cause(
    RefusalCode.POSTURE, "a profile cannot leave sockets of this machine alone, which no posture reaches"
)
_HOLE: Final = Cause(
    RefusalCode.POSTURE, "an Allow rule cannot be carried out, and without it the posture would deny too much"
)


def render(scope: ScopePlan) -> ProfilePart:
    """The body, "" when there is nothing to deny; equal rules give equal text."""
    refused: list[Refusal] = []
    carried: set[RuleRef] = set()
    lines: list[str] = []
    whitelisted: set[Class] = set()

    def refuse(ref: RuleRef, cause: Cause) -> None:
        refused.append(Refusal(ref=ref, uid=scope.uid, backend=Backend.APPARMOR, reason=cause.text, code=cause.code))

    for cls in _CLASSES:
        rules = [rule for rule in scope.paths if rule.cls is cls]
        held, left = _split(rules)
        for rule, cause in left:
            refuse(rule.ref, cause)
        if (cls, Action.BLOCK) in scope.posture:
            if any(rule.frees for rule, _ in left):
                refuse(RuleRef(DEFAULT_POSTURE), _HOLE)
            else:
                whitelisted.add(cls)
        for rule in held:
            made = _denials(rule)
            if cls in whitelisted:
                made += _allowances(rule)
            lines += made
            if made:
                carried.add(rule.ref)
    held, left = _split([rule for rule in scope.paths if rule.cls is Class.CAPABILITIES])
    for rule, cause in left:
        refuse(rule.ref, cause)
    denied = {rule.value: rule.ref for rule in held if rule.stops}
    carried |= set(denied.values())
    if (Class.CAPABILITIES, Action.BLOCK) in scope.posture:
        if any(rule.frees for rule, _ in left):
            refuse(RuleRef(DEFAULT_POSTURE), _HOLE)
        else:
            free = {rule.value for rule in held}
            denied |= dict.fromkeys((name for name in CAPABILITIES if name not in free), RuleRef(DEFAULT_POSTURE))
    lines += [f"audit deny capability {name}," for name in denied]
    excepted: list[NetworkRule] = []
    for network in scope.network:
        if network.ref.policy == DEFAULT_POSTURE:
            refuse(network.ref, _ADDRESS)
            continue
        line = _network(network)
        if not isinstance(line, Cause) and any(_share_sockets(other, network) for other in excepted):
            line = _EXCEPTION
        if network.frees and not _of_addresses(network):
            excepted.append(network)
        if not network.stops:
            continue
        if isinstance(line, Cause):
            refuse(network.ref, line)
        else:
            lines.append(line)
            carried.add(network.ref)
    if (Class.NETWORK, Action.BLOCK) in scope.posture:
        refuse(RuleRef(DEFAULT_POSTURE), _SOCKETS)
    if not lines and not whitelisted:
        return ProfilePart(refused=tuple(dict.fromkeys(refused)))
    text = "\n".join(dict.fromkeys((*OPEN, *_head(whitelisted), *lines)))
    return ProfilePart(text=text, carried=frozenset(carried), refused=tuple(dict.fromkeys(refused)))


def _head(whitelisted: set[Class]) -> list[str]:
    """What files may be used for before any rule is heard."""
    if not whitelisted:
        return ["file,"]
    head = ['"/{,**}" m,']
    return head + [f'"/{{,**}}" {permissions},' for cls, permissions in _CLASSES.items() if cls not in whitelisted]


def _split(rules: Sequence[PathRule]) -> tuple[list[PathRule], list[tuple[PathRule, Cause]]]:
    held: list[PathRule] = []
    left: list[tuple[PathRule, Cause]] = []
    freeing: list[PathRule] = []
    for rule in rules:
        cause = _inexpressible(rule)
        if cause is None and rule.stops and any(_may_meet(other, rule) for other in freeing):
            cause = _EXCEPTION
        if cause is None:
            held.append(rule)
        else:
            left.append((rule, cause))
        if rule.frees:
            freeing.append(rule)
    return held, left


def _inexpressible(rule: PathRule) -> Cause | None:
    if rule.match == "preset":
        return _PRESET
    if rule.no_terminal:
        return _TERMINAL
    if rule.source:
        return _SOURCE
    if any(ord(letter) < 32 or 0xD800 <= ord(letter) <= 0xDFFF or letter == "\x7f" for letter in rule.value):
        return _TEXT
    if rule.match == "pattern" and re.search(r"\[[!^]|/\*\*/|\\", rule.value):
        return _GLOB
    return None


def _may_meet(one: PathRule, other: PathRule) -> bool:
    """Whether a path may match both; True where that is not known."""
    if one.match == other.match == "capability":
        return one.value == other.value
    if one.match == other.match == "path":
        return one.value == other.value
    for exact, wide in ((one, other), (other, one)):
        if exact.match == "path":
            if wide.match == "execname":
                return exact.value.rsplit("/", 1)[-1] == wide.value
            if wide.match.startswith("directory"):
                return f"{exact.value}/".startswith(wide.value)
    if one.match.startswith("directory") and other.match.startswith("directory"):
        return one.value.startswith(other.value) or other.value.startswith(one.value)
    return not (one.match == other.match == "execname" and one.value != other.value)


def _names(rule: PathRule) -> str:
    """What the rule matches, as AppArmor writes it. A directory's own name ends in `/` when it is opened or made."""
    if rule.match == "pattern":
        return f'"{_quoted(rule.value)}"'
    plain = re.sub(r"([*?\[\]{}^\\])", r"\\\1", rule.value)
    match rule.match:
        case "directory":
            ends = "{,*,*/}"
        case "directory_recursive":
            ends = "{,**}"
        case "execname":
            return f'"/{{,**/}}{_quoted(plain)}"'
        case _:
            ends = "{,/}" if rule.cls is Class.FILE else ""
    return f'"{_quoted(plain)}{ends}"'


def _quoted(text: str) -> str:
    return text.replace('"', '\\"').replace("@{", "@\\{")


def _denials(rule: PathRule) -> list[str]:
    if not rule.stops:
        return []
    names = _names(rule)
    if rule.cls is Class.PROCESS:
        return [f"audit deny {'other ' if rule.owner_only else ''}{names} x,"]
    # A second name of the file would be free: a link to it is denied as it is.
    links = f'audit deny link "/{{,**}}" -> {names},'
    match rule.owner_only, rule.read_only:
        case True, True:
            return [f"audit deny other {names} rwkl,", f"audit deny owner {names} wl,", links]
        case True, False:
            return [f"audit deny other {names} rwkl,"]
        case False, True:
            return [f"audit deny {names} wl,", links]
        case _:
            return [f"audit deny {names} rwkl,", links]


def _allowances(rule: PathRule) -> list[str]:
    if rule.action is not Action.ALLOW and not (rule.owner_only or rule.read_only):
        return []
    owner = "owner " if rule.owner_only else ""
    if rule.cls is Class.PROCESS:
        return [f"{owner}{_names(rule)} ix,"]
    return [f"{owner}{_names(rule)} {'rk' if rule.read_only else 'rwkl'},"]


def _of_addresses(rule: NetworkRule) -> bool:
    """Whether the rule is about peers and ports, as those of network policies are also where they name none: no exception to a rule on sockets."""
    return bool(rule.cidr or rule.port) or rule.ref.kind == "KubeArmorNetworkPolicy"


def _share_sockets(one: NetworkRule, other: NetworkRule) -> bool:
    """Whether a socket may be of both; True where that is not known."""
    if one.protocol == other.protocol or "all" in (one.protocol, other.protocol):
        return True
    return (one.protocol in TYPES) != (other.protocol in TYPES)


def _network(rule: NetworkRule) -> str | Cause:
    if rule.source:
        return _SOURCE
    if rule.no_terminal:
        return _TERMINAL
    if _of_addresses(rule):
        return _ADDRESS
    if rule.protocol == "all":
        return "audit deny network,"
    return f"audit deny network {rule.protocol}," if rule.protocol in _TYPES else _PROTOCOL
