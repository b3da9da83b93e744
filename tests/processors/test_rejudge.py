# SPDX-License-Identifier: Apache-2.0
"""What Hauberk writes, it reads: an alert given back to the reader gets the verdict, the policy and the rule that it carries.

Every operation, with generated behaviours, identities and policies; the other way would be a demonstration on examples.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bus.contract import Record
from bus.memory import MemoryBus
from policy.documents import from_json
from policy.ruleset import Ruleset, compile_ruleset
from policy.tools.cases import answer, judge_event
from policy.tools.events import parse_event
from policy.tools.explain import explain_event
from processors.alert_action import outcome
from processors.engine import Processor, ProcessorSettings
from processors.throttle import ThrottleSettings
from schemas.alert import Alert, decode_alert, encode_alert
from schemas.frame import decode as decode_frame
from schemas.identity import Identity
from schemas.operations import Access, Backend, Operation
from schemas.syscalls import number
from schemas.topics import ALERTS, EVENTS_RAW, POLICIES
from schemas.watched import CALLS
from sensors.node.agent import Agent
from sensors.recordings.replay import Replay, ReplaySettings

RECORDING = Path(__file__).parents[2] / "examples" / "recordings" / "host.hbrk"
PATHS = [
    "/etc/shadow",
    "/etc/a b",
    "/usr/bin/dash",
    "/bin/busybox",
    "/tmp/x",
    "/proc/77/environ",
    "/dev/shm/x",
    "/srv/run.sh",
]
PROGRAMS = ["/usr/bin/dash", "/bin/busybox", "/usr/bin/curl", "/opt/a tool"]
RULES: list[dict[str, Any]] = [
    {"process": {"matchPaths": [{"path": "/usr/bin/dash", "allowedArgs": ["-l", "a b"]}, {"path": "/bin/cat"}, {"execname": "run.sh"}]}},
    {"process": {"matchDirectories": [{"dir": "/", "recursive": True, "ownerOnly": True}]}},
    {"process": {"matchDirectories": [{"dir": "/bin/", "fromSource": [{"path": "/opt/a tool"}]}], "matchPatterns": [{"pattern": "/usr/**"}]}},
    {"file": {"matchPaths": [{"path": "/etc/shadow", "readOnly": True}, {"path": "/etc/a b"}, {"path": "/bin/sh", "pts": False}]}},
    {"file": {"matchDirectories": [{"dir": "/etc/", "recursive": True, "ownerOnly": True, "fromSource": [{"path": "/bin/sh"}]}, {"dir": "/tmp/"}]}},
    {"network": {"matchProtocols": [{"protocol": "tcp"}, {"protocol": "raw"}, {"protocol": "stream", "pts": False}]}},
    {"network": {"matchProtocols": [{"protocol": "udp", "fromSource": [{"path": "/usr/bin/curl"}]}, {"protocol": "all"}]}},
    {"network": {"matchDNSQueries": [{"domain": "example.com"}]}},
    {"capabilities": {"matchCapabilities": [{"capability": "net_raw"}]}},
    {"syscalls": {"matchSyscalls": [{"syscall": sorted(CALLS)}]}},
    {"syscalls": {"matchPaths": [{"path": "/etc/", "recursive": True}, {"path": "/tmp/x", "syscall": ["unlink", "mount", "rename"]}]}},
    {"presets": [{"name": name} for name in ("filelessExec", "protectEnv", "protectProc", "exec")]},
]  # fmt: skip
PEERS = {"egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}], "ports": [{"port": "53"}]}, {"to": [{"ipBlock": {"cidr": "fd00::/8"}}]}], "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}]}  # fmt: skip
SOCKETS = [
    (2, 1, 6),
    (2, 1, 0),
    (2, 2, 17),
    (10, 1, 6),
    (10, 2, 17),
    (2, 3, 1),
    (1, 1, 0),
    (16, 3, 0),
    (17, 3, 768),
    (2, 1, 132),
    (2, 1, 262),
]
FILES = [
    one
    for one in Operation
    if Operation.OPEN <= one <= Operation.MKNOD and one not in (Operation.MOUNT, Operation.UMOUNT)
]
LINKS = {"/bin/sh": "/usr/bin/dash", "/bin/": "/usr/bin/", "/bin/cat": "/bin/busybox", "/tmp/": "/srv/"}

paths, programs = st.sampled_from(PATHS), st.sampled_from(PROGRAMS)
argv = st.lists(
    st.sampled_from(["sh", "cat", "-l", "a b", "", "/etc/passwd", "[cut]", "busybox", "-", "é"]), min_size=1, max_size=5
)
common = st.fixed_dictionaries(
    {
        "executable": programs, "parent": programs, "uid": st.sampled_from([0, 1, 1000]), "tty": st.booleans(),
        "owner": st.sampled_from([0, 1000, 0xFFFFFFFF]), "flags": st.integers(0, 2**22),
        "result": st.sampled_from([0, 0, 0, -1, -13, -115]), "enforcer": st.sampled_from(list(Backend)),
        "args": st.tuples(st.integers(0, 40), st.integers(0, 2**31)),
    }
)  # fmt: skip
accesses = st.sets(st.sampled_from([Access.READ, Access.WRITE, Access.APPEND, Access.TRUNCATE, Access.OWN, Access.PARTIAL])).map(lambda some: sum(some))  # fmt: skip
names = {operation: sorted(name for name, row in CALLS.items() if row.operation is operation and number(name, "x86_64") is not None) for operation in Operation}  # fmt: skip


@st.composite
def happenings(draw: st.DrawFn) -> tuple[Operation, str, dict[str, Any]]:
    operation = draw(st.sampled_from([one for one in Operation if one not in (Operation.EXIT, Operation.DEVICE)]))
    fields = draw(common) | {"access": Access(draw(accesses))}
    if names[operation] and draw(st.integers(0, 5)):
        fields["syscall"] = number(draw(st.sampled_from(names[operation])), "x86_64")
    resource = draw(paths)
    if operation in (Operation.RENAME, Operation.LINK, Operation.SYMLINK, Operation.MOUNT, Operation.EXEC):
        fields["resource2"] = draw(st.sampled_from(["", *PATHS]))
    if Operation.SOCKET <= operation <= Operation.DNS:
        resource = ""
        fields["family"], fields["socket_type"], fields["protocol"] = draw(st.sampled_from(SOCKETS))
        if operation is Operation.DNS:
            resource = draw(st.sampled_from(["example.com", "a.example.com", "EXAMPLE.com", "other.net", "a b"]))
        elif operation is not Operation.SOCKET and fields["family"] in (2, 10):
            fields["address"] = draw(st.sampled_from(["10.0.0.10", "9.9.9.9"] if fields["family"] == 2 else ["fd00::1", "::ffff:10.0.0.1", "::1"]))  # fmt: skip
            fields["port"] = draw(st.sampled_from([0, 53, 443]))
        elif fields["family"] == 1:
            resource = draw(paths)
    return operation, resource, fields


@st.composite
def policies(draw: st.DrawFn, make: Callable[..., dict[str, object]]) -> list[dict[str, object]]:
    found = []
    for at, spec in enumerate(draw(st.lists(st.sampled_from(RULES), min_size=1, max_size=4))):
        kind = "KubeArmorHostPolicy" if "presets" not in spec and draw(st.booleans()) else "KubeArmorPolicy"
        made = make(kind, f"p{at}", **spec, action=draw(st.sampled_from(["Allow", "Audit", "Block"])))
        made["metadata"]["annotations"] = {"kubearmor-policy": draw(st.sampled_from(["enabled", "enabled", "audited"]))}  # type: ignore[index]
        found.append(made)
    if draw(st.booleans()):
        found.append(
            make("KubeArmorNetworkPolicy", "net", **PEERS, action=draw(st.sampled_from(["Audit", "Block", "Allow"])))
        )
    return found


def given_back(alert: Alert, ruleset: Ruleset) -> None:
    """Asserts that `alert` as JSON is judged as it was."""
    event = parse_event(encode_alert(alert))
    verdict = judge_event(ruleset, event)
    told = answer(1, verdict)
    assert outcome(event.behaviour, verdict).action == alert.Action
    assert (told.policy or "", (told.rule or {}).get("position", "")) == (alert.PolicyName, alert.Rule)
    explain_event(ruleset, event.identity, event.behaviour, event.arguments)


@pytest.mark.parametrize("place", ["pod", "docker", "moved", "host"])
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_an_alert_given_back_is_judged_as_it_was(place: str, data: st.DataObject, make_node: Any, make_stage: Any, make_policy: Any, web: Identity, host: Identity) -> None:  # fmt: skip
    identity = {
        "pod": msgspec.structs.replace(web, namespace_annotations={"kubearmor-file-posture": "block"}),
        "docker": msgspec.structs.replace(web, orchestrated=False, namespace="container_namespace", pod="", labels={"app": "web", "x": "a,b=c"}),
        "moved": msgspec.structs.replace(web, orchestrated=False, namespace="demo", pod="", annotations={"kubearmor-policy": "audited"}),
        "host": msgspec.structs.replace(host, node_labels={"kubernetes.io/hostname": "node-1", "role": "edge"}),
    }[place]  # fmt: skip
    if data.draw(st.booleans()):
        identity = msgspec.structs.replace(identity, links=LINKS)
    stage, node = make_stage(), make_node()
    stage.identity(host if place != "host" else identity)
    stage.identity(web if place == "host" else identity)
    documents = data.draw(policies(make_policy))
    stage.policies(*documents)
    ruleset = compile_ruleset(
        [from_json(json.dumps(one).encode()) for one in documents], stage.processor.settings.postures
    )
    for operation, resource, fields in data.draw(st.lists(happenings(), min_size=1, max_size=6)):
        if operation is Operation.EXEC:
            image = fields["resource2"] or resource
            sequence = node.sequence + 1
            node.process(image, tuple(data.draw(argv)), process=sequence, cut=data.draw(st.booleans()), called=data.draw(st.sampled_from(["", "/bin/cat", resource])))  # fmt: skip
        process = node.process(fields["executable"], ("x", "y z"))
        where = {"cgroup": 1, "pid_ns": 1, "mnt_ns": 2} if place == "host" else {}
        node.row(node.behaviour(operation, resource, **fields, **where), process=process)
    asyncio.run(stage.take(node.record()))
    for alert in stage.alerts:
        if alert.Type != "SystemEvent":
            given_back(alert, ruleset)


def test_most_alerts_say_all_in_words(make_node: Any, make_stage: Any, make_policy: Any, web: Identity) -> None:
    stage, node = make_stage(), make_node()
    stage.identity(web)
    stage.policies(make_policy(process={"matchDirectories": [{"dir": "/", "recursive": True}]}, file={"matchDirectories": [{"dir": "/", "recursive": True}]}, network={"matchProtocols": [{"protocol": "all"}]}, action="Audit"))  # fmt: skip
    shell = node.process("/bin/sh", ("sh", "-c", "id"))
    node.process("/usr/bin/curl", ("curl", "example.com"), process=1)
    node.row(node.behaviour(Operation.EXEC, "/usr/bin/curl", syscall=59, executable="/bin/sh", parent="/bin/sh", access=Access.EXEC), process=shell)  # fmt: skip
    node.row(
        node.behaviour(Operation.OPEN, "/etc/hosts", syscall=257, access=Access.READ, owner=0, executable="/bin/sh"),
        process=shell,
    )
    node.row(
        node.behaviour(Operation.UNLINK, "/tmp/x", syscall=87, access=Access.DELETE, owner=0, executable="/bin/sh"),
        process=shell,
    )
    asyncio.run(stage.take(node.record()))
    assert len(stage.alerts) == 3
    assert [msgspec.to_builtins(alert.Judged) for alert in stage.alerts] == [None, None, None]


VOCABULARY = [
    ({"syscalls": {"matchSyscalls": [{"syscall": ["unlink"]}]}, "action": "Audit"}, Operation.UNLINK, "/tmp/x", {"syscall": 87},
     {"Operation": "Syscall", "Resource": "/tmp/x", "Data": "syscall=SYS_UNLINK", "Enforcer": "eBPF Monitor"}),
    ({"syscalls": {"matchPaths": [{"path": "/tmp/x"}]}}, Operation.OPEN, "/tmp/x", {"syscall": 2}, {"Operation": "Syscall", "Action": "Audit"}),
    ({"presets": [{"name": "filelessExec"}]}, Operation.EXEC, "/dev/shm/x", {"syscall": 59},
     {"Operation": "Process", "Enforcer": "PRESET-filelessExec", "Action": "Audit (Block)"}),
    ({"file": {"matchPaths": [{"path": "/tmp/x"}]}}, Operation.UNLINK, "/tmp/x", {"syscall": 263},
     {"Operation": "File", "Data": "syscall=SYS_UNLINKAT flags=", "EventData": {"Syscall": "SYS_UNLINKAT", "Flags": ""}}),
    ({"network": {"matchProtocols": [{"protocol": "tcp"}]}}, Operation.SOCKET, "",
     {"syscall": 41, "family": 2, "socket_type": 1, "protocol": 6, "flags": 0o2004001},
     {"Resource": "domain=AF_INET type=SOCK_STREAM|SOCK_NONBLOCK|SOCK_CLOEXEC protocol=TCP"}),
]  # fmt: skip
HASHES = dict.fromkeys(("ProcessHash", "ParentHash", "ResourceHash", "HashAlgo"), "")


@pytest.mark.parametrize("place", ["pod", "docker"])
@pytest.mark.parametrize("row", VOCABULARY, ids=[f"{row[1].name}-{next(iter(row[0]))}" for row in VOCABULARY])
async def test_words_that_consumers_filter_on(
    row: Any, place: str, make_node: Any, make_stage: Any, make_policy: Any, web: Identity
) -> None:
    spec, operation, resource, fields, wanted = row
    stage, node = make_stage(), make_node()
    docker = msgspec.structs.replace(web, orchestrated=False, namespace="container_namespace", pod="")
    stage.identity(web if place == "pod" else docker)
    stage.policies(make_policy(**spec))
    node.row(node.behaviour(operation, resource, executable="/usr/bin/a-program-of-a-long-name", **fields))
    await stage.take(node.record())
    (alert,) = (json.loads(encode_alert(one)) for one in stage.alerts)
    assert {key: alert.get(key) for key in wanted} == wanted
    assert {key: alert.get(key) for key in HASHES} == HASHES
    assert alert["PodName"] == (web.pod if place == "pod" else "web")
    short = "a-program-of-a-" if operation is not Operation.EXEC else "x"
    assert alert["ExecEvent"] == {"ExecID": "0", "ExecutableName": short}


@pytest.mark.parametrize(
    ("operation", "fields", "way", "words"),
    [
        (Operation.CONNECT, {"syscall": 42, "family": 2, "socket_type": 1, "protocol": 6, "address": "10.0.0.9", "port": 53}, "EGRESS", "DestinationIP=10.0.0.9 DestinationPort=53 Protocol=TCP"),
        (Operation.SEND, {"syscall": 44, "family": 10, "socket_type": 2, "protocol": 17, "address": "fd00::9", "port": 7}, "EGRESS", "DestinationIP=fd00::9 DestinationPort=7 Protocol=UDP"),
        (Operation.ACCEPT, {"syscall": 288, "family": 2, "socket_type": 1, "protocol": 6, "address": "10.0.0.9", "port": 22}, "INGRESS", "SourceIP=10.0.0.9 DestinationPort=22 Protocol=TCP"),
    ],
)  # fmt: skip
async def test_what_a_network_policy_decides_is_told_as_a_firewall_does(operation: Operation, fields: Any, way: str, words: str, make_node: Any, make_stage: Any, make_policy: Any, host: Identity) -> None:  # fmt: skip
    stage, node = make_stage(), make_node()
    stage.identity(host)
    stage.policies(make_policy("KubeArmorNetworkPolicy", **PEERS, action="Audit"))
    node.row(node.behaviour(operation, "", cgroup=1, pid_ns=1, mnt_ns=2, **fields))
    await stage.take(node.record())
    (alert,) = stage.alerts
    assert (alert.Type, alert.Operation, alert.Resource, alert.Data) == (
        "MatchedNetworkPolicy",
        "NetworkFirewall",
        way,
        words,
    )
    assert alert.EventData == dict(word.split("=") for word in words.split(" "))


EVERYTHING = {
    "process": {"matchDirectories": [{"dir": "/", "recursive": True}], "matchPaths": [{"path": "/usr/bin/cat", "allowedArgs": ["/etc/passwd"], "action": "Block"}]},
    "file": {"matchDirectories": [{"dir": "/", "recursive": True}, {"dir": "/etc/", "recursive": True, "readOnly": True, "action": "Block"}, {"dir": "/tmp/", "recursive": True, "ownerOnly": True, "action": "Block"}]},
    "network": {"matchProtocols": [{"protocol": "all"}, {"protocol": "tcp", "action": "Block"}]},
    "capabilities": {"matchCapabilities": [{"capability": "net_raw"}]},
}  # fmt: skip
OTHERS = [{"syscalls": {"matchSyscalls": [{"syscall": sorted(CALLS)}], "matchPaths": [{"path": "/etc/", "recursive": True}]}}, {"process": {"matchPatterns": [{"pattern": "/**/*sh"}]}, "action": "Allow"}]  # fmt: skip


async def test_every_alert_of_the_recording_given_back_is_judged_as_it_was(make_policy: Any) -> None:
    documents = []
    for kind in ("KubeArmorHostPolicy", "KubeArmorClusterPolicy"):
        for at, spec in enumerate(({**EVERYTHING, "action": "Audit"}, *OTHERS)):
            document = make_policy(kind, f"p{at}", **spec)
            if kind == "KubeArmorClusterPolicy":
                del document["spec"]["nodeSelector"]
            documents.append(document)
    bus = MemoryBus()
    await bus.publish(
        POLICIES,
        [Record(f"{one['kind']}/{one['metadata']['name']}".encode(), json.dumps(one).encode()) for one in documents],
    )
    await Agent(Replay(ReplaySettings(path=str(RECORDING), speed=0, rebase=False), "run"), bus).run()
    sent = sum(decode_frame(record.value or b"").header.events for record in bus.records(EVENTS_RAW))
    loud = ThrottleSettings(max_alerts_per_second=100_000)
    processor = Processor(bus, ProcessorSettings(throttle=loud))
    running = asyncio.create_task(processor.run())
    async with asyncio.timeout(120):
        while processor.stats().events < sent or processor.stats().open_frames:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    processor.stop()
    await running
    ruleset = compile_ruleset([from_json(json.dumps(one).encode()) for one in documents], processor.settings.postures)
    alerts = [decode_alert(record.value or b"") for record in bus.records(ALERTS)]
    told = [alert for alert in alerts if alert.Type != "SystemEvent"]
    assert {alert.Operation for alert in told} >= {"Process", "File", "Network", "Syscall"}
    assert {alert.Type for alert in told} == {"MatchedPolicy", "MatchedHostPolicy"}
    for alert in told:
        given_back(alert, ruleset)
    # Words alone are enough for nearly all: what is added is the exception.
    assert sum(alert.Judged is not None for alert in told) < len(told) / 2
