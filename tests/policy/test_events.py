# SPDX-License-Identifier: Apache-2.0
"""Event lines: the samples of KubeArmor's documentation, tolerance, and text that is no event."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.documents import from_json
from policy.ruleset import compile_ruleset
from policy.tools.events import parse_event
from policy.tools.explain import explain_event
from schemas.behaviour import NO_OWNER
from schemas.errors import DecodeError
from schemas.identity import Kind, Owner
from schemas.operations import Access, Backend, Operation

BLOCKED = {
    "Timestamp": 1765863439, "ClusterName": "default", "HostName": "node-1", "NamespaceName": "demo",
    "Owner": {"Ref": "Deployment", "Name": "web", "Namespace": "demo"}, "PodName": "web-8dc5d8d48-5s8pf",
    "Labels": "app=web,tier=front", "ContainerID": "4771ac3e", "ContainerName": "web", "HostPID": 191949, "PID": 113, "UID": 0,
    "ParentProcessName": "/bin/bash", "ProcessName": "/usr/bin/apt", "PolicyName": "block-pkg-mgmt", "Type": "MatchedPolicy",
    "Source": "/bin/bash", "Operation": "Process", "Resource": "/usr/bin/apt update", "Data": "lsm=SECURITY_BPRM_CHECK",
    "EventData": {"Lsm": "SECURITY_BPRM_CHECK"}, "Enforcer": "BPFLSM", "Action": "Block", "Result": "Permission denied",
    "Cwd": "/", "TTY": "pts0", "ExecEvent": {"ExecID": "0", "ExecutableName": "bash"},
}  # fmt: skip


def read(**fields: Any) -> Any:
    return parse_event(json.dumps(fields).encode())


def test_a_block_alert() -> None:
    event = read(**BLOCKED)
    assert event.identity.kind is Kind.CONTAINER
    assert event.identity.workload == "demo/web"
    assert event.identity.labels == {"app": "web", "tier": "front"}
    assert event.identity.orchestrated
    behaviour = event.behaviour
    assert (behaviour.operation, behaviour.resource, behaviour.result) == (Operation.EXEC, "/usr/bin/apt", -13)
    assert (behaviour.parent, behaviour.enforcer, behaviour.tty) == ("/bin/bash", Backend.BPF_LSM, True)
    assert event.arguments == ("/usr/bin/apt", "update")


@pytest.mark.parametrize(
    ("name", "result", "backend"),
    [
        ("Hauberk cgroup", "Operation not permitted", Backend.CGROUP),
        # It ends the process and lets the call pass, so `Passed` is what its own alerts say.
        ("Hauberk signal", "Passed", Backend.SIGNAL),
        ("Hauberk cgroup", "Passed", Backend.OBSERVER),
        ("Hauberk signal", "No such file or directory", Backend.OBSERVER),
        ("BPFLSM", "Passed", Backend.OBSERVER),
    ],
)
def test_who_denied_in_an_alert_of_ours(name: str, result: str, backend: Backend) -> None:
    event = read(ContainerName="web", Operation="Process", Resource="/usr/bin/nc", Enforcer=name, Result=result)
    assert event.behaviour.enforcer is backend


def test_lower_camel_keys_of_the_log_file() -> None:
    lower = {key[:1].lower() + key[1:]: value for key, value in BLOCKED.items()}
    assert parse_event(json.dumps(lower).encode()) == read(**BLOCKED)


AGENT = {
    "timestamp": 1765863439, "updatedTime": "2025-12-16T05:37:19.127331Z", "clusterName": "default", "hostName": "node-1",
    "namespaceName": "demo", "owner": {"ref": "Deployment", "name": "web", "namespace": "demo"}, "podName": "web-1",
    "labels": "app=web", "containerID": "4771", "containerName": "web", "containerImage": "nginx", "hostPPID": 1, "hostPID": 2,
    "ppid": 3, "pid": 77, "uid": 1000, "parentProcessName": "/bin/sh", "processName": "/bin/cat", "type": "ContainerLog",
    "source": "/bin/cat /proc/77/environ", "operation": "File", "resource": "/proc/77/environ",
    "data": "syscall=SYS_OPENAT fd=-100 flags=O_RDONLY", "result": "Passed", "cwd": "/", "tty": "pts0", "oid": 1000,
    "execEvent": {"execID": "0", "executableName": "cat"},
}  # fmt: skip


def test_a_line_of_the_agents_own_log() -> None:
    event = read(**AGENT)
    behaviour = event.behaviour
    assert (behaviour.uid, behaviour.owner, behaviour.tty) == (1000, 1000, True)
    assert behaviour.access == Access.READ | Access.OWN
    assert event.identity.owner == Owner("Deployment", "web", "demo")
    assert read(**(AGENT | {"oid": 0})).behaviour.owner == 0
    session = AGENT | {
        "operation": "Process",
        "resource": "/bin/cat",
        "data": "",
        "execEvent": {"execID": "9", "executableName": "x"},
    }
    assert read(**session).behaviour.detail == "setns"


def test_an_owner_that_is_not_told_is_unknown() -> None:
    for uid in (0, 1000):
        behaviour = read(Operation="File", Resource="/a", UID=uid).behaviour
        assert behaviour.owner == NO_OWNER
    text = {"apiVersion": "security.kubearmor.com/v1", "kind": "KubeArmorHostPolicy", "metadata": {"name": "a"}, "spec": {"nodeSelector": {}, "file": {"matchPaths": [{"path": "/a", "ownerOnly": True}]}, "action": "Block"}}  # fmt: skip
    ruleset = compile_ruleset([from_json(json.dumps(text).encode())])
    for owner, action in (({}, "Block"), ({"OID": 0}, "Allow"), ({"oid": 0}, "Allow"), ({"OID": 5}, "Block")):
        event = read(HostName="n", Operation="File", Resource="/a", UID=0, **owner)
        assert ruleset.scope(event.identity).judge(event.behaviour).action == action


@pytest.mark.parametrize("operation", ["Process", "Syscall"])
def test_tracing_is_no_process_whatever_the_agent_calls_it(operation: str) -> None:
    behaviour = read(Operation=operation, Resource="/bin/x", Data="syscall=SYS_PTRACE request=PTRACE_ATTACH pid=5 process=/bin/x").behaviour  # fmt: skip
    assert (behaviour.operation, behaviour.syscall_name) == (Operation.PTRACE, "ptrace")


def test_outside_of_kubernetes_the_pod_has_the_name_of_the_container() -> None:
    identity = read(ContainerName="web", PodName="web", NamespaceName="container_namespace", Operation="File", Resource="/a").identity  # fmt: skip
    assert (identity.pod, identity.container_name, identity.orchestrated) == ("", "web", False)


@pytest.mark.parametrize(
    "value", [3, [], {"access": "x"}, {"operation": 999}, {"enforcer": 77}, {"labels": {"a": 1}}, {"arguments": "x"}]
)
def test_what_is_no_judged_is_no_event(value: object) -> None:
    with pytest.raises(DecodeError, match="Judged"):
        read(Operation="File", Resource="/a", Judged=value)


def test_a_host_event() -> None:
    event = read(HostName="vm-1", UID=1000, Type="MatchedHostPolicy", Operation="Process", Resource="/usr/bin/sleep", Result="Passed", Labels="a=b")  # fmt: skip
    assert event.identity.kind is Kind.NODE
    assert event.identity.node_labels == {"a": "b"}
    assert event.arguments == ("/usr/bin/sleep",)


def test_a_container_outside_kubernetes() -> None:
    event = read(ContainerName="web", Operation="File", Resource="/a")
    assert event.identity.namespace == "container_namespace"
    assert not event.identity.orchestrated


@pytest.mark.parametrize(
    ("data", "operation", "access"),
    [
        ("syscall=SYS_OPENAT fd=-100 flags=O_RDONLY|O_CLOEXEC", Operation.OPEN, Access.READ),
        ("syscall=SYS_OPEN flags=O_WRONLY|O_CREAT", Operation.OPEN, Access.WRITE | Access.CREATE),
        ("syscall=SYS_OPEN flags=O_RDWR|O_APPEND", Operation.OPEN, Access.READ | Access.WRITE | Access.APPEND),
        ("syscall=SYS_UNLINK", Operation.UNLINK, Access.DELETE),
        ("syscall=SYS_UNLINKAT flags=AT_REMOVEDIR", Operation.RMDIR, Access.DELETE),
        ("syscall=SYS_RMDIR", Operation.RMDIR, Access.DELETE),
        ("syscall=SYS_CHOWN userid=0 group=0", Operation.CHOWN, Access.METADATA),
        ("lsm=FILE_MKNOD", Operation.MKNOD, Access.WRITE | Access.CREATE),
        ("lsm=FILE_TRUNCATE", Operation.TRUNCATE, Access.WRITE | Access.TRUNCATE),
        ("lsm=FILE_PERMISSION", Operation.OPEN, Access.READ | Access.WRITE),
        ("", Operation.OPEN, Access.READ),
        ("something=new", Operation.OPEN, Access.READ),
    ],
)
def test_file_data(data: str, operation: Operation, access: Access) -> None:
    behaviour = read(Operation="File", Resource="/a", Data=data).behaviour
    assert (behaviour.operation, behaviour.access) == (operation, access)


@pytest.mark.parametrize(
    ("resource", "data", "wanted"),
    [
        ("domain=AF_INET type=SOCK_STREAM|SOCK_CLOEXEC protocol=TCP", "syscall=SYS_SOCKET", (Operation.SOCKET, 2, 1, 6, "", 0)),
        ("sa_family=AF_INET sin_port=53 sin_addr=10.0.0.10", "syscall=SYS_CONNECT fd=3", (Operation.CONNECT, 2, 0, 0, "10.0.0.10", 53)),
        ("sa_family=AF_INET6 sin6_port=80 sin6_addr=::1", "syscall=SYS_BIND fd=3", (Operation.BIND, 10, 0, 0, "::1", 80)),
        ("sa_family=AF_UNIX sun_path=/run/x", "syscall=SYS_CONNECT fd=3", (Operation.CONNECT, 1, 0, 0, "/run/x", 0)),
        ("remoteip=1.2.3.4 port=443 protocol=TCP", "kprobe=tcp_connect domain=AF_INET", (Operation.CONNECT, 2, 1, 6, "1.2.3.4", 443)),
        ("remoteip=1.2.3.4 port=443 protocol=TCP", "", (Operation.CONNECT, 2, 1, 6, "1.2.3.4", 443)),
        ("protocol=UDP type=SOCK_DGRAM", "lsm=SOCKET_CONNECT protocol=UDP type=SOCK_DGRAM", (Operation.CONNECT, 0, 2, 17, "", 0)),
        ("INGRESS", "SourceIP=9.9.9.9 SourcePort=1 DestinationIP=10.0.0.1 DestinationPort=22 Protocol=TCP", (Operation.ACCEPT, 2, 1, 6, "9.9.9.9", 22)),
    ],
)  # fmt: skip
def test_network_text(resource: str, data: str, wanted: tuple[Any, ...]) -> None:
    found = read(Operation="Network", Resource=resource, Data=data).behaviour
    assert (found.operation, found.family, found.socket_type, found.protocol, found.address, found.port) == wanted


def test_names_asked_for() -> None:
    found = read(
        Operation="Network", Resource="sa_family=AF_INET sin_port=53", Data="kfunc=UDP_SENDMSG,domain=example.com"
    ).behaviour
    assert (found.operation, found.detail) == (Operation.DNS, "example.com")


@pytest.mark.parametrize(
    ("line", "part"),
    [
        (b"", "one JSON object"),
        (b"[]", "got list"),
        (b"\xff", "one JSON object"),
        (b"{}", "in `Operation`"),
        (b'{"Operation": "Dance"}', "got `Dance`"),
        (b'{"Operation": "File", "UID": "x"}', "number in `UID`"),
        (b'{"Operation": "File", "Labels": 3}', "in `Labels`"),
        (b'{"Operation": "File", "Resource": {}}', "text in `Resource`"),
        (b"[" * 100_000, "one JSON object"),
    ],
)
def test_lines_that_are_no_events(line: bytes, part: str) -> None:
    with pytest.raises(DecodeError) as caught:
        parse_event(line)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from([*BLOCKED, "OID", "Annotations", "NamespaceAnnotations", "NodeLabels", "Judged", "oid", "pid"])
operations = st.sampled_from(
    ["Process", "File", "Network", "NetworkFirewall", "Capabilities", "Syscall", "Device", "x"]
)


@given(st.dictionaries(names, json_values, max_size=8), operations)
@settings(max_examples=400, deadline=None)
def test_any_object_is_an_event_or_a_decode_error(fields: dict[str, Any], operation: str) -> None:
    try:
        event = read(**(fields | {"Operation": operation}))
    except DecodeError:
        return
    compile_ruleset([]).scope(event.identity).judge(event.behaviour, event.arguments)


def test_a_name_of_a_multi_call_program_is_read_from_the_alert_and_explained() -> None:
    text = {"apiVersion": "security.kubearmor.com/v1", "kind": "KubeArmorPolicy", "metadata": {"name": "a"}, "spec": {"selector": {}, "process": {"matchPaths": [{"path": "/bin/cat", "action": "Audit"}, {"path": "/bin/wget"}]}, "action": "Block"}}  # fmt: skip
    ruleset = compile_ruleset([from_json(json.dumps(text).encode())])
    alert = {"ContainerName": "rc", "Operation": "Process", "ProcessName": "/bin/busybox", "Source": "/bin/sh", "Links": {"/bin/cat": "/bin/busybox", "/bin/wget": "/bin/busybox"}}  # fmt: skip
    for resource, action in (("/bin/cat /etc/passwd", "Audit"), ("/bin/wget x", "Block"), ("/bin/ls", "Allow"), ("/bin/busybox /etc/passwd", "Allow")):  # fmt: skip
        event = read(**alert, Resource=resource)
        said = explain_event(ruleset, event.identity, event.behaviour, event.arguments)
        assert said.verdict.action == action
        name = resource.split()[0].rpartition("/")[2]
        for one in said.weighed:
            assert one.decides or f"it was called as `{name}`, not as" in one.why
