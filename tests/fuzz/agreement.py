# SPDX-License-Identifier: Apache-2.0
"""The kernel's matcher against the judge, on policies and behaviours made from a seed: what one stops the other blocks.

A case is policies and one behaviour as plain JSON, so that a disagreement is cut down and kept as a file (`cases/agreement-*.json`)
that every `make test` asks again. Where every rule of a table is carried both must say the same; where one was refused, the
kernel must not stop what the judge lets pass. Neighbours: `matcher` (the kernel's side), `fuzz` and `test_agreement` (who run it).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from matcher import Matcher

from policy.kernel_plan import plan_scope
from policy.parse import parse
from policy.ruleset import PostureSettings, Scope, compile_ruleset
from schemas.behaviour import NO_OWNER, Behaviour
from schemas.identity import Identity, Kind
from schemas.operations import Access, Backend, Class, Operation, class_of
from schemas.verdict import DEFAULT_POSTURE, Action

Case = dict[str, Any]
"""`policies`: their JSON objects; `postures`: class -> word; `event`: fields of a Behaviour, flags and operations as numbers."""

LABELS: Final = {"app": "web"}
EVENTS: Final = 100
"""Behaviours asked about under each set of policies: a set costs as much as these."""
_NAMES: Final = (
    "a", "b", "etc", "seven77", "eight888", "nine99999", "fifteen15151515", "sixteen161616161", "seventeen17171717", "z" * 255,
    "y" * 248, "ä", "файл", ".x", "x.d", "bin",
)  # fmt: skip
_PROGRAMS: Final = ("/bin/sh", "/usr/bin/cat", "/opt/x/tool", "/" + "p" * 64 + "/q", "/usr/bin/python3")
_PATTERNS: Final = (
    "/**", "/*", "/a/*", "/a/**", "/**/b", "/**/etc/**", "/{a,b}/*", "/[ab]/?", "/**/*.d", "/*/?eight888", "/**/ä", "/a/**/z*",
    "/??", "/etc/[!a]*", "/**/{bin,etc}/*", "/*[0-9]",
)  # fmt: skip
_FILES: Final = (
    Operation.OPEN, Operation.OPEN, Operation.OPEN, Operation.CREATE, Operation.UNLINK, Operation.RENAME, Operation.MKDIR,
    Operation.RMDIR, Operation.LINK, Operation.SYMLINK, Operation.CHMOD, Operation.CHOWN, Operation.TRUNCATE, Operation.MKNOD,
)  # fmt: skip
_CAPABILITIES: Final = ("net_raw", "sys_admin", "chown", "checkpoint_restore")
_PRESETS: Final = ("filelessExec", "protectEnv", "protectProc")
_PLACES: Final = (
    "memfd:x", "/dev/shm/x", "/dev/shmx", "/run/shm/a/b", "/proc/1/environ", "/proc/77/maps", "/proc/self", "/proc/12x/environ",
    "/proc/1/task/1/environ", "/proc/4194304/environ", "/proc//environ", "/proc/9", "/environ",
)  # fmt: skip
_NETWORKS: Final = (
    "10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "0.0.0.0/0", "::/0", "::1/128", "127.0.0.0/8", "fd00::/8", "::ffff:0:0/96",
    "10.1.2.0/23",
)  # fmt: skip
_ADDRESSES: Final = (
    "10.1.2.3", "10.1.3.3", "10.9.9.9", "127.0.0.1", "0.0.0.0", "::", "::1", "fd00::7", "::ffff:10.1.2.3", "::ffff:0.0.0.0", "8.8.8.8",
)  # fmt: skip


def _path(chance: random.Random) -> str:
    deep = chance.choice((1, 1, 2, 2, 3, 4, 6, 12, 40))
    path = ""
    for _ in range(deep):
        name = chance.choice(_NAMES)
        if len((path + name).encode()) > 4000:
            break
        path += "/" + name
    return path


def _rule(chance: random.Random, kind: str, paths: list[str], patterns: bool) -> tuple[str, dict[str, Any]]:
    rule: dict[str, Any] = {}
    how = chance.choice(("path", "path", "dir", "recursive", "pattern" if patterns else "dir", "name"))
    path = chance.choice(paths)
    if how == "pattern":
        rule["pattern"] = chance.choice(_PATTERNS)
    elif how == "name" and kind == "process":
        rule["execname"] = path.rpartition("/")[2]
    elif how in ("dir", "recursive"):
        cut = [at for at, letter in enumerate(path + "/") if letter == "/"]
        rule["dir"] = (path + "/")[: chance.choice(cut) + 1]
        rule["recursive"] = how == "recursive"
    else:
        rule["path"] = path
    if chance.random() < 0.15:
        rule["ownerOnly"] = True
    if chance.random() < 0.2 and kind == "file":
        rule["readOnly"] = True
    if chance.random() < 0.3 and how != "pattern":
        rule["fromSource"] = [{"path": chance.choice(_PROGRAMS)}]
    rule["action"] = chance.choice(("Allow", "Block", "Block", "Audit"))
    where = {"dir": "matchDirectories", "pattern": "matchPatterns"}.get(next(iter(rule)), "matchPaths")
    return where, rule


def _workload(chance: random.Random, paths: list[str]) -> list[dict[str, Any]]:
    made = []
    patterns = chance.random() < 0.5
    for number in range(chance.choice((1, 1, 2))):
        spec: dict[str, Any] = {"selector": {"matchLabels": LABELS}, "action": "Block"}
        for kind in ("process", "file"):
            for _ in range(chance.choice((0, 1, 2, 3, 5))):
                where, rule = _rule(chance, kind, paths, patterns)
                spec.setdefault(kind, {}).setdefault(where, []).append(rule)
        for _ in range(chance.choice((0, 0, 1, 2, 4))):
            rule = {
                "protocol": chance.choice(
                    (
                        "tcp",
                        "udp",
                        "icmp",
                        "icmpv6",
                        "sctp",
                        "raw",
                        "all",
                        "stream",
                        "dgram",
                        "rdm",
                        "seqpacket",
                        "packet",
                    )
                )
            }
            if chance.random() < 0.3:
                rule["fromSource"] = [{"path": chance.choice(_PROGRAMS)}]
            rule["action"] = chance.choice(("Allow", "Block"))
            spec.setdefault("network", {}).setdefault("matchProtocols", []).append(rule)
        for name in chance.sample(_CAPABILITIES, chance.choice((0, 0, 1, 2))):
            rule = {"capability": name, "action": chance.choice(("Allow", "Block"))}
            if chance.random() < 0.3:
                rule["fromSource"] = [{"path": chance.choice(_PROGRAMS)}]
            spec.setdefault("capabilities", {}).setdefault("matchCapabilities", []).append(rule)
        for name in chance.sample(_PRESETS, chance.choice((0, 0, 1))):
            spec.setdefault("presets", []).append({"name": name, "action": chance.choice(("Block", "Audit"))})
        if len(spec) > 2:
            made.append(_document("KubeArmorPolicy", f"p{number}", spec))
    return made


def _host(chance: random.Random) -> list[dict[str, Any]]:
    spec: dict[str, Any] = {"nodeSelector": {"matchLabels": LABELS}, "action": "Block"}
    for direction, peer in (("egress", "to"), ("ingress", "from")):
        for _ in range(chance.choice((0, 1, 3))):
            entry: dict[str, Any] = {"action": chance.choice(("Allow", "Block"))}
            if direction == "egress" and chance.random() < 0.8:
                entry[peer] = [{"ipBlock": {"cidr": chance.choice(_NETWORKS)}}]
            first = chance.choice((53, 443, 8080))
            ports: dict[str, Any] = {"port": str(first)}
            if chance.random() < 0.3:
                ports["endPort"] = first + chance.choice((0, 5, 100))
            if chance.random() < 0.7:
                ports["protocol"] = chance.choice(("TCP", "UDP"))
            entry["ports"] = [ports]
            spec.setdefault(direction, []).append(entry)
    return [_document("KubeArmorNetworkPolicy", "peers", spec)] if len(spec) > 2 else []


def _document(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    where = {"namespace": "shop"} if kind == "KubeArmorPolicy" else {}
    return {"apiVersion": "security.kubearmor.com/v1", "kind": kind, "metadata": {"name": name} | where, "spec": spec}


def _event(chance: random.Random, paths: list[str], host: bool) -> dict[str, Any]:
    who = {
        "executable": chance.choice(_PROGRAMS), "parent": chance.choice((*_PROGRAMS, "")), "uid": chance.choice((0, 1000)),
        "script": chance.choice(("", "", *_PROGRAMS)), "enforcer": int(Backend.BPF_LSM),
    }  # fmt: skip
    if not host and chance.random() < 0.1:
        return who | {"operation": int(Operation.CAPABLE), "detail": chance.choice(_CAPABILITIES)}
    if not host and chance.random() < 0.1:
        family, kind = chance.choice((1, 16, 17, 40, 43)), chance.choice((1, 2, 3, 4, 5, 10))
        return who | {
            "operation": int(Operation.SOCKET),
            "family": family,
            "socket_type": kind,
            "protocol": chance.choice((0, 6, 17, 132)),
        }
    if host or chance.random() < 0.3:
        operation = chance.choice((Operation.CONNECT, Operation.SEND, Operation.BIND, Operation.SOCKET))
        kind = chance.choice(((1, 0), (1, 6), (2, 0), (2, 17), (3, 1), (3, 6), (1, 262), (2, 1), (5, 132), (1, 132)))
        address = "" if operation is Operation.SOCKET else chance.choice(_ADDRESSES)
        family = 10 if ":" in address else 2
        return who | {
            "operation": int(operation), "family": family, "socket_type": kind[0], "protocol": kind[1], "address": address,
            "port": chance.choice((53, 443, 448, 8080, 8180, 8181, 9)) if address else 0,
        }  # fmt: skip
    resource = chance.choice(paths)
    who["tty"] = chance.random() < 0.3
    if chance.random() < 0.1:
        resource = chance.choice(_PLACES)
    elif chance.random() < 0.3:
        resource = (resource + "/" + chance.choice(_NAMES))[:4000]
    elif chance.random() < 0.3:
        resource = resource.rpartition("/")[0] or "/"
    if chance.random() < 0.3:
        script = chance.choice(paths) if chance.random() < 0.2 else ""
        return who | {"operation": int(Operation.EXEC), "access": 8, "resource": resource, "resource2": script}
    operation = chance.choice(_FILES)
    access = chance.choice((1, 2, 3, 1 | 32, 2 | 4, 2 | 16 | 32)) if operation is Operation.OPEN else 0
    two = chance.choice(paths) if operation in (Operation.RENAME, Operation.LINK) else ""
    owner = chance.choice((0, 1000, NO_OWNER))
    return who | {"operation": int(operation), "access": access, "resource": resource, "resource2": two, "owner": owner}


def cases(seed: int) -> Iterator[tuple[Case, list[dict[str, Any]]]]:
    """Policies, and the events to ask about under them; without end."""
    number = 0
    while True:
        chance = random.Random(f"{seed}/{number}")
        number += 1
        paths = [_path(chance) for _ in range(chance.choice((1, 3, 6)))]
        host = chance.random() < 0.2
        policies = _host(chance) if host else _workload(chance, paths)
        postures = {name: chance.choice(("audit", "block")) for name in ("file", "network")}
        if policies:
            yield {"policies": policies, "postures": postures}, [_event(chance, paths, host) for _ in range(EVENTS)]


class Both:
    """Judge and kernel under the policies of a case. Not for two threads at once."""

    def __init__(self, matcher: Matcher) -> None:
        self._matcher = matcher
        self.stopped = False
        """What the kernel said last."""

    def scope(self, case: Case) -> tuple[Scope, set[Class]]:
        """What judges, and the classes of which every rule is in the kernel's table."""
        text = "\n---\n".join(json.dumps(one, ensure_ascii=False) for one in case["policies"])
        parsed = parse(text, "case.yaml")
        wrong = [one for one in parsed.diagnostics if one.level == "error"]
        if wrong:
            raise ValueError(f"a case's policies are refused: {wrong[0]}")
        postures = PostureSettings(
            **{f"{prefix}{name}": word for name, word in case["postures"].items() for prefix in ("", "host_")}
        )
        host = all(one["kind"] == "KubeArmorNetworkPolicy" for one in case["policies"])
        ruleset = compile_ruleset(parsed.policies, postures)
        who = Identity(
            kind=Kind.HOST if host else Kind.CONTAINER, node="n", uid="u", cgroups=(7,), cgroup_path="/u", namespace="" if host else "shop",
            labels={} if host else LABELS, node_labels=LABELS if host else {},
        )  # fmt: skip
        scope = ruleset.scope(who)
        plan, refused = plan_scope(scope, who, backends=(Backend.BPF_LSM,))
        self._matcher.clear()
        part = self._matcher.fill(1, plan)
        left: set[Class] = set()
        rules = {rule.ref: rule.class_ for rule in scope.rules}
        for one in (*refused, *part.refused, *part.partial):
            left |= set(Class) if one.ref.policy == DEFAULT_POSTURE else {rules.get(one.ref, Class.NETWORK)}
        return scope, set(Class) - left

    def differ(self, scope: Scope, whole: set[Class], event: dict[str, Any]) -> str:
        """How judge and kernel disagree on `event`; "" when they do not."""
        behaviour = Behaviour(
            **event
            | {
                "operation": Operation(event["operation"]),
                "access": Access(event.get("access", 0)),
                "enforcer": Backend(event["enforcer"]),
            }
        )
        verdict = scope.judge(behaviour)
        judge = verdict.action is Action.BLOCK
        kernel = self.stopped = self._matcher.stops(1, behaviour)
        if kernel == judge or (judge and class_of(behaviour.operation) not in whole):
            return ""
        return (
            f"the judge says {verdict.action.name} by {verdict.policy}, the kernel {'stops' if kernel else 'lets pass'}"
        )

    def disagreement(self, case: Case) -> str:
        """The same of a whole case."""
        scope, whole = self.scope(case)
        return self.differ(scope, whole, case["event"])


def shrunk(case: Case, fails: Callable[[Case], bool]) -> Case:
    """`case` with every policy, list entry and field left out that the disagreement does not need."""
    again = True
    while again:
        again = False
        for smaller in _smaller(case):
            try:
                if not fails(smaller):
                    continue
            except ValueError:  # no policy any more
                continue
            case, again = smaller, True
            break
    return case


def _smaller(case: Case) -> Iterator[Case]:
    def without(value: Any, keep: frozenset[str]) -> Iterator[Any]:
        if isinstance(value, list):
            for at in range(len(value)):
                if len(value) > 1:
                    yield value[:at] + value[at + 1 :]
                for inner in without(value[at], keep):
                    yield [*value[:at], inner, *value[at + 1 :]]
        elif isinstance(value, dict):
            for name, inner in value.items():
                if name not in keep:
                    yield {other: one for other, one in value.items() if other != name}
                for made in without(inner, keep):
                    yield value | {name: made}

    keep = frozenset(
        {
            "apiVersion",
            "kind",
            "metadata",
            "spec",
            "selector",
            "nodeSelector",
            "action",
            "path",
            "dir",
            "pattern",
            "protocol",
        }
    )
    for policies in without(case["policies"], keep):
        yield case | {"policies": policies}
    for name in case["event"].keys() - {"operation", "enforcer", "family", "socket_type"}:
        yield case | {"event": {other: one for other, one in case["event"].items() if other != name}}
    for path in ("resource", "resource2"):
        parts = case["event"].get(path, "").split("/")
        if len(parts) > 3:
            old = case["event"][path]
            new = old.replace("/" + parts[1], "", 1)
            text = json.dumps(case, ensure_ascii=False).replace("/" + parts[1], "")
            if new:
                yield json.loads(text)


class Compared(NamedTuple):
    """`asked`: pairs; `stopped`: of them by the kernel; `whole`: where both had to say the same; `found`: what differed, cut down."""

    asked: int
    stopped: int
    whole: int
    found: list[tuple[Case, str]]


def compare(matcher: Matcher, seed: int, pairs: int) -> Compared:
    """Pairs of `seed`; ends at the fifth disagreement."""
    both = Both(matcher)
    asked = stopped = exact = 0
    found: list[tuple[Case, str]] = []
    for case, events in cases(seed):
        scope, whole = both.scope(case)
        for event in events:
            why = both.differ(scope, whole, event)
            asked += 1
            stopped += both.stopped
            exact += class_of(Operation(event["operation"])) in whole
            if why:
                small = shrunk(case | {"event": event}, lambda one: bool(both.disagreement(one)))
                found.append((small, both.disagreement(small)))
                break
        if asked >= pairs or len(found) >= 5:
            return Compared(asked, stopped, exact, found)
    raise AssertionError("cases end never")
