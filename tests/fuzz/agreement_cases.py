# SPDX-License-Identifier: Apache-2.0
"""Policies and behaviours made from a seed, as plain JSON: every kind of rule with every limit that the policy language gives it,
and every operation that a hook asks about. `agreement` asks judge and kernel about them.

Sources of patterns, of peers and of presets are not made, because the language has none.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, Final

from schemas.behaviour import NO_OWNER
from schemas.operations import Backend, Operation

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
_SOURCES: Final = (
    "/usr/**",
    "/**/bin/*",
    "/*/sh",
    "/{usr/bin,opt/x}/*",
    "/**/[a-c]*",
    "/**",
    "/usr/bin/python?",
    "/opt/**/tool",
    "/?in/sh",
)
_STARTERS: Final = (
    "/usr/bin/runc",
    "/opt/crun",
    "memfd:runc_cloned:/proc/self/exe",
    "/usr/bin/runc/not",
    "/usr/bin/runcs",
)
"""Executables that the preset `exec` asks about, and such as look like them."""
_PATTERNS: Final = (
    "/**", "/*", "/a/*", "/a/**", "/**/b", "/**/etc/**", "/{a,b}/*", "/[ab]/?", "/**/*.d", "/*/?eight888", "/**/ä", "/a/**/z*",
    "/??", "/etc/[!a]*", "/**/{bin,etc}/*", "/*[0-9]",
)  # fmt: skip
_FILES: Final = (
    Operation.OPEN, Operation.OPEN, Operation.OPEN, Operation.CREATE, Operation.UNLINK, Operation.RENAME, Operation.MKDIR,
    Operation.RMDIR, Operation.LINK, Operation.SYMLINK, Operation.CHMOD, Operation.CHOWN, Operation.TRUNCATE, Operation.MKNOD,
)  # fmt: skip
_CAPABILITIES: Final = ("net_raw", "sys_admin", "chown", "checkpoint_restore")
_PRESETS: Final = ("filelessExec", "protectEnv", "protectProc", "exec", "anonymousMapExec")
_PROTOCOLS: Final = (
    "tcp", "udp", "icmp", "icmpv6", "sctp", "raw", "all", "stream", "dgram", "rdm", "seqpacket", "packet", "dccp",
)  # fmt: skip
_ATTACHING: Final = (0, 3, 16, 0x4206)
"""Of ptrace: TRACEME, PEEKUSER, ATTACH, SEIZE."""
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
    if how != "pattern":
        _limited(chance, rule)
        _sourced(chance, rule)
    if chance.random() < 0.02 and kind == "process" and how in ("path", "name"):
        rule["allowedArgs"] = ["-l"]
    rule["action"] = chance.choice(("Allow", "Block", "Block", "Audit"))
    where = {"dir": "matchDirectories", "pattern": "matchPatterns"}.get(next(iter(rule)), "matchPaths")
    return where, rule


def _limited(chance: random.Random, rule: dict[str, Any]) -> None:
    if chance.random() < 0.15:
        rule["pts"] = chance.choice((False, False, True))


def _sourced(chance: random.Random, rule: dict[str, Any]) -> None:
    if chance.random() < 0.3:
        rule["fromSource"] = [{"path": chance.choice(_PROGRAMS)} for _ in range(chance.choice((1, 1, 2)))]
    elif chance.random() < 0.3:
        rule["fromSource"] = [_source(chance) for _ in range(chance.choice((1, 1, 2, 3)))]


def _source(chance: random.Random) -> dict[str, Any]:
    how = chance.choice(("path", "dir", "recursive", "pattern", "pattern"))
    if how == "pattern":
        return {"pattern": chance.choice(_SOURCES)}
    path = chance.choice(_PROGRAMS)
    if how == "path":
        return {"path": path}
    cut = [at for at, letter in enumerate(path) if letter == "/"]
    return {"dir": path[: chance.choice(cut) + 1], "recursive": how == "recursive"}


def _with_others(chance: random.Random, rule: dict[str, Any]) -> list[dict[str, Any]]:
    """`rule`, and now and then the same of other sources: which of them says most of who acts is to decide."""
    made = [rule]
    while "fromSource" in rule and chance.random() < 0.5:
        made.append(rule | {"fromSource": [_source(chance)], "action": chance.choice(("Allow", "Block"))})
    return made


def _workload(chance: random.Random, paths: list[str]) -> list[dict[str, Any]]:
    made = []
    patterns = chance.random() < 0.5
    for number in range(chance.choice((1, 1, 2))):
        spec: dict[str, Any] = {"selector": {"matchLabels": LABELS}, "action": "Block"}
        for kind in ("process", "file"):
            for _ in range(chance.choice((0, 1, 2, 3, 5))):
                where, rule = _rule(chance, kind, paths, patterns)
                spec.setdefault(kind, {}).setdefault(where, []).extend(_with_others(chance, rule))
        for _ in range(chance.choice((0, 0, 1, 2, 4))):
            rule: dict[str, Any] = {"protocol": chance.choice(_PROTOCOLS)}
            _limited(chance, rule)
            _sourced(chance, rule)
            rule["action"] = chance.choice(("Allow", "Block", "Block", "Audit"))
            spec.setdefault("network", {}).setdefault("matchProtocols", []).extend(_with_others(chance, rule))
        for name in chance.sample(_CAPABILITIES, chance.choice((0, 0, 1, 2))):
            rule = {"capability": name, "action": chance.choice(("Allow", "Block"))}
            _sourced(chance, rule)
            spec.setdefault("capabilities", {}).setdefault("matchCapabilities", []).append(rule)
        for name in chance.sample(_PRESETS, chance.choice((0, 0, 1, 2))):
            spec.setdefault("presets", []).append({"name": name, "action": chance.choice(("Allow", "Block", "Audit"))})
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


def _socket(chance: random.Random) -> dict[str, Any]:
    operation = chance.choice(
        (Operation.CONNECT, Operation.SEND, Operation.BIND, Operation.SOCKET, Operation.LISTEN, Operation.ACCEPT)
    )
    kind = chance.choice(((1, 0), (1, 6), (2, 0), (2, 17), (3, 1), (3, 6), (1, 262), (2, 1), (5, 132), (1, 132)))
    # Who listens or accepts is known by the port of its own alone.
    named = operation in (Operation.CONNECT, Operation.SEND, Operation.BIND)
    address = chance.choice(_ADDRESSES) if named else ""
    family = 10 if ":" in address else 2 if named else chance.choice((2, 10))
    port = chance.choice((53, 443, 448, 8080, 8180, 8181, 9))
    return {
        "operation": int(operation), "family": family, "socket_type": kind[0], "protocol": kind[1], "address": address,
        "port": 0 if operation is Operation.SOCKET else port,
    }  # fmt: skip


def _event(chance: random.Random, paths: list[str], host: bool) -> dict[str, Any]:
    who = {
        "executable": chance.choice(_PROGRAMS), "parent": chance.choice((*_PROGRAMS, "")), "uid": chance.choice((0, 1000)),
        "script": chance.choice(("", "", *_PROGRAMS)), "enforcer": int(Backend.BPF_LSM), "tty": chance.random() < 0.3,
    }  # fmt: skip
    if not host and chance.random() < 0.1:
        return who | {"operation": int(Operation.CAPABLE), "detail": chance.choice(_CAPABILITIES)}
    if not host and chance.random() < 0.1:
        family, kind = chance.choice((1, 16, 17, 40, 43)), chance.choice((1, 2, 3, 4, 5, 6, 10))
        operation = chance.choice((Operation.SOCKET, Operation.LISTEN, Operation.ACCEPT))
        return who | {
            "operation": int(operation), "family": family, "socket_type": kind, "protocol": chance.choice((0, 6, 17, 132)),
        }  # fmt: skip
    if not host and chance.random() < 0.05:
        protection, flags = chance.choice((1, 3, 4, 5)), chance.choice((0x22, 0x21, 0x20))
        return who | {"operation": int(Operation.MMAP), "args": [protection, flags]}
    if not host and chance.random() < 0.05:
        return who | {"operation": int(Operation.PTRACE), "args": [chance.choice(_ATTACHING), 77]}
    if not host and chance.random() < 0.02:
        return who | {"operation": int(Operation.MOUNT), "resource": chance.choice(paths)}
    if host or chance.random() < 0.3:
        return who | _socket(chance)
    resource = chance.choice(paths)
    if chance.random() < 0.1:
        resource = chance.choice(_PLACES)
    elif chance.random() < 0.3:
        resource = (resource + "/" + chance.choice(_NAMES))[:4000]
    elif chance.random() < 0.3:
        resource = resource.rpartition("/")[0] or "/"
    if chance.random() < 0.3:
        script = chance.choice(paths) if chance.random() < 0.2 else ""
        if chance.random() < 0.3:
            who["executable"] = chance.choice(_STARTERS)
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
        postures = {name: chance.choice(("audit", "block")) for name in ("file", "network", "capabilities")}
        if policies:
            yield {"policies": policies, "postures": postures}, [_event(chance, paths, host) for _ in range(EVENTS)]
