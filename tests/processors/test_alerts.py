# SPDX-License-Identifier: Apache-2.0
"""Alerts as KubeArmor writes them: each form of `Data` and `Resource`, each kind of verdict."""

from __future__ import annotations

import pytest

from processors.denial_reason import UNKNOWN
from schemas.cluster import PodFact, ServiceFact
from schemas.cluster import encode as encode_fact
from schemas.expand import logs
from schemas.identity import Owner
from schemas.operations import Access, Backend, Operation
from schemas.topics import ALERTS

ALL = {
    "process": {"matchDirectories": [{"dir": "/", "recursive": True}]},
    "file": {"matchDirectories": [{"dir": "/", "recursive": True}]},
    "network": {"matchProtocols": [{"protocol": "all"}]},
    "capabilities": {"matchCapabilities": [{"capability": "net_raw"}]},
    "syscalls": {"matchSyscalls": [{"syscall": ["ptrace", "mount", "move_mount", "umount2", "setuid", "setgid"]}]},
    "action": "Audit",
}
AT_FDCWD = 4294967196
INET = {"family": 2, "socket_type": 1, "protocol": 6}
UDP = {"family": 2, "socket_type": 2, "protocol": 17}
LSM = {"enforcer": Backend.BPF_LSM, "result": -13}

FORMS = [
    ("openat", Operation.OPEN, "/etc/a", {"syscall": 257, "flags": 0o2000000}, AT_FDCWD,
     "syscall=SYS_OPENAT fd=-100 flags=O_RDONLY|O_CLOEXEC", "/etc/a", "File"),
    ("openat_fd", Operation.OPEN, "/etc/a", {"syscall": 257, "flags": 0o101, "access": Access.WRITE}, 5,
     "syscall=SYS_OPENAT fd=5 flags=O_WRONLY|O_CREAT", "/etc/a", "File"),
    ("open", Operation.OPEN, "/etc/a", {"syscall": 2}, 0, "syscall=SYS_OPEN flags=O_RDONLY", "/etc/a", "File"),
    ("unlink", Operation.UNLINK, "/etc/a", {"syscall": 87}, 0, "syscall=SYS_UNLINK", "/etc/a", "File"),
    ("unlinkat", Operation.RMDIR, "/etc/a", {"syscall": 263, "flags": 0x200}, 0,
     "syscall=SYS_UNLINKAT flags=AT_REMOVEDIR", "/etc/a", "File"),
    ("rmdir", Operation.RMDIR, "/etc/a", {"syscall": 84}, 0, "syscall=SYS_RMDIR", "/etc/a", "File"),
    ("chown", Operation.CHOWN, "/etc/a", {"syscall": 92, "args": (33, 34)}, 0,
     "syscall=SYS_CHOWN userid=33 group=34", "/etc/a", "File"),
    ("fchownat", Operation.CHOWN, "/etc/a", {"syscall": 260, "args": (33, 34)}, 0,
     "syscall=SYS_FCHOWNAT userid=33 group=34 mode=0", "/etc/a", "File"),
    ("chmod", Operation.CHMOD, "/etc/a", {"syscall": 90, "args": (0o4755, 0)}, 0,
     "syscall=SYS_CHMOD mode=4755", "/etc/a", "File"),
    ("rename", Operation.RENAME, "/etc/a", {"syscall": 82, "resource2": "/etc/b"}, 0,
     "syscall=SYS_RENAME newpath=/etc/b", "/etc/a", "File"),
    ("link", Operation.LINK, "/etc/new", {"syscall": 86, "resource2": "/etc/old"}, 0,
     "syscall=SYS_LINK oldpath=/etc/old", "/etc/new", "File"),
    ("linkat", Operation.LINK, "/etc/new", {"syscall": 265, "resource2": "/etc/old", "flags": 0x400}, 0,
     "syscall=SYS_LINKAT oldpath=/etc/old flags=AT_SYMLINK_FOLLOW", "/etc/new", "File"),
    ("symlinkat", Operation.SYMLINK, "/etc/new", {"syscall": 266, "resource2": "../old"}, 0,
     "syscall=SYS_SYMLINKAT target=../old", "/etc/new", "File"),
    ("lsm_open", Operation.OPEN, "/etc/a", LSM, 0, "lsm=FILE_OPEN", "/etc/a", "File"),
    ("lsm_write", Operation.OPEN, "/etc/a", {**LSM, "access": Access.WRITE}, 0, "lsm=FILE_PERMISSION", "/etc/a", "File"),
    ("exec", Operation.EXEC, "/usr/bin/apt", {"syscall": 59}, 0, "syscall=SYS_EXECVE", "/usr/bin/apt", "Process"),
    ("lsm_exec", Operation.EXEC, "/usr/bin/apt", LSM, 0, "lsm=SECURITY_BPRM_CHECK", "/usr/bin/apt", "Process"),
    ("socket", Operation.SOCKET, "", {**INET, "syscall": 41, "flags": 0o2000001}, 0,
     "syscall=SYS_SOCKET", "domain=AF_INET type=SOCK_STREAM|SOCK_CLOEXEC protocol=TCP", "Network"),
    ("socket_default", Operation.SOCKET, "", {**INET, "protocol": 0, "syscall": 41}, 0,
     "syscall=SYS_SOCKET", "domain=AF_INET type=SOCK_STREAM protocol=TCP", "Network"),
    ("lsm_socket", Operation.SOCKET, "", {**INET, **LSM}, 0,
     "lsm=SOCKET_CREATE protocol=TCP type=SOCK_STREAM", "protocol=TCP type=SOCK_STREAM", "Network"),
    ("tcp_connect", Operation.CONNECT, "", {**INET, "syscall": 42, "address": "93.184.216.34", "port": 80}, 0,
     "kprobe=tcp_connect domain=AF_INET", "remoteip=93.184.216.34 port=80 protocol=TCP", "Network"),
    ("connect_denied", Operation.CONNECT, "",
     {**INET, "syscall": 42, "address": "10.0.0.10", "port": 53, "result": -1, "enforcer": Backend.CGROUP}, 0,
     "syscall=SYS_CONNECT", "sa_family=AF_INET sin_port=53 sin_addr=10.0.0.10", "Network"),
    ("udp_connect", Operation.CONNECT, "", {**UDP, "syscall": 42, "address": "10.0.0.10", "port": 53}, 0,
     "syscall=SYS_CONNECT", "sa_family=AF_INET sin_port=53 sin_addr=10.0.0.10", "Network"),
    ("bind6", Operation.BIND, "", {**INET, "family": 10, "syscall": 49, "address": "::1", "port": 8080}, 3,
     "syscall=SYS_BIND fd=3", "sa_family=AF_INET6 sin6_port=8080 sin6_addr=::1", "Network"),
    ("mapped", Operation.BIND, "", {**INET, "family": 10, "syscall": 49, "address": "::ffff:10.1.2.3", "port": 1}, 3,
     "syscall=SYS_BIND fd=3", "sa_family=AF_INET6 sin6_port=1 sin6_addr=10.1.2.3", "Network"),
    ("listen", Operation.LISTEN, "", {**INET, "syscall": 50, "address": "0.0.0.0", "port": 80}, 4,
     "syscall=SYS_LISTEN fd=4", "sa_family=AF_INET sin_port=80 sin_addr=0.0.0.0", "Network"),
    ("accept", Operation.ACCEPT, "", {**INET, "syscall": 288, "address": "1.2.3.4", "port": 443}, 50123,
     "kprobe=tcp_accept domain=AF_INET", "remoteip=1.2.3.4 port=443 protocol=TCP", "Network"),
    ("send", Operation.SEND, "", {**UDP, "syscall": 44, "address": "10.0.0.10", "port": 514}, 6,
     "syscall=SYS_SENDTO fd=6", "remoteip=10.0.0.10 port=514 protocol=UDP", "Network"),
    ("capable", Operation.CAPABLE, "", {"args": (13, 0)}, 0, "lsm=CAPABLE CAP_NET_RAW", "CAP_NET_RAW", "Capabilities"),
    ("setuid", Operation.SETUID, "", {"syscall": 105, "args": (0, 0)}, 0, "syscall=SYS_SETUID userid=0", "", "Syscall"),
    ("ptrace", Operation.PTRACE, "/usr/bin/x", {"syscall": 101, "args": (16, 123)}, 0,
     "syscall=SYS_PTRACE request=PTRACE_ATTACH pid=123 process=/usr/bin/x", "/usr/bin/x", "Syscall"),
    ("mount", Operation.MOUNT, "/mnt", {"syscall": 165, "resource2": "/dev/sda", "flags": 4096}, 0,
     "syscall=SYS_MOUNT source=/dev/sda target=/mnt filesystem= mountflag=4096 data=", "/mnt", "Syscall"),
    ("move_mount", Operation.MOUNT, "/mnt", {"syscall": 429, "resource2": "/srv", "flags": 4}, 0,
     "syscall=SYS_MOVE_MOUNT source=/srv target=/mnt flags=0x4", "/mnt", "Syscall"),
    ("umount", Operation.UMOUNT, "/mnt", {"syscall": 166, "flags": 2}, 0,
     "syscall=SYS_UMOUNT2 target=/mnt flag=2", "/mnt", "Syscall"),
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS, ids=[form[0] for form in FORMS])
async def test_data_and_resource(form, node, stage, make_policy):
    _, operation, resource, fields, aux, data, told, word = form
    stage.policies(make_policy(**ALL))
    node.row(node.behaviour(operation, resource, **fields), aux=aux)
    await stage.take(node.record())
    (alert,) = stage.alerts
    assert (alert.Data, alert.Resource, alert.Operation) == (data, told, word)
    network = told if word == "Network" else ""
    pairs = (part.split("=", 1) for part in f"{data} {network}".split(" ") if "=" in part)
    assert alert.EventData == {key[0].upper() + key[1:]: value for key, value in pairs}


async def test_the_sample_of_the_reference(node, stage, make_policy):
    stage.policies(
        make_policy(
            name="block-pkg-mgmt",
            tags=["NIST", "SI-4"],
            message="package manager",
            process={"matchPaths": [{"path": "/usr/bin/apt"}]},
            action="Block",
        )
    )
    apt = node.process("/usr/bin/apt", ("apt", "update"), tty="pts0")
    denied = node.behaviour(Operation.EXEC, "/usr/bin/apt", executable="/bin/bash", parent="/bin/bash", tty=True, **LSM)
    node.row(denied, process=apt, pid=191949, ppid=190507, ns_pid=113, ns_ppid=7)
    await stage.take(node.record())
    (alert,) = stage.alerts
    assert alert.PolicyName == "block-pkg-mgmt"
    assert (alert.Severity, alert.Tags, alert.ATags, alert.Message) == (
        "5", "NIST,SI-4", ["NIST", "SI-4"], "package manager",
    )  # fmt: skip
    assert (alert.Type, alert.Source, alert.Resource) == ("MatchedPolicy", "/bin/bash", "/usr/bin/apt update")
    assert (alert.ParentProcessName, alert.ProcessName) == ("/bin/bash", "/usr/bin/apt")
    assert (alert.Enforcer, alert.Action, alert.Result) == ("BPFLSM", "Block", "Permission denied")
    assert (alert.Cwd, alert.TTY, alert.UID) == ("/", "pts0", 0)
    assert (alert.HostPPID, alert.HostPID, alert.PPID, alert.PID) == (190507, 191949, 7, 113)
    assert alert.EventData == {"Lsm": "SECURITY_BPRM_CHECK"}
    assert alert.Labels == "app=web,tier=front"
    assert (alert.Owner.ref, alert.Owner.name, alert.Owner.namespace) == ("Deployment", "web", "demo")
    assert alert.ContainerImage == "docker.io/library/nginx:1.27@sha256:8c94"
    assert alert.UpdatedTime == "2025-12-16T05:36:41.001000Z"
    assert alert.Timestamp == 1765863401


@pytest.mark.parametrize(
    ("image", "arguments", "called", "told"),
    [
        ("/bin/busybox", ("/bin/cat", "/etc/shadow"), "/bin/cat", "/bin/cat /etc/shadow"),
        ("/bin/busybox", ("cat", "/etc/shadow"), "/usr/bin/cat", "/usr/bin/cat /etc/shadow"),
        ("/bin/busybox", ("cat", "x"), "./cat", "/srv/cat x"),
        ("/bin/busybox", ("-sh",), "/proc/self/exe", "/bin/sh"),
        ("/bin/busybox", ("cat", "x"), "", "/bin/cat x"),
        ("/bin/busybox", ("busybox", "cat", "x"), "/bin/busybox", "/bin/busybox cat x"),
        # Only a program that acts by its name is told by it: a name is the caller's to choose.
        ("/tmp/evil", ("/bin/cat", "x"), "/tmp/evil", "/tmp/evil x"),
        ("/usr/bin/dash", ("sh", "-c", "id"), "/bin/sh", "/usr/bin/dash -c id"),
    ],
)
async def test_a_program_of_many_is_told_by_the_name_it_was_called_by(
    image, arguments, called, told, node, stage, make_policy
):
    stage.policies(make_policy(**ALL))
    run = node.process(image, arguments, called=called, cwd="/srv")
    node.row(node.behaviour(Operation.EXEC, image, syscall=59), process=run)
    node.row(node.behaviour(Operation.OPEN, "/etc/a", syscall=257, executable=image), process=run)
    await stage.take(node.record())
    executed, opened = stage.alerts
    assert (executed.Resource, executed.ProcessName) == (told, image)
    assert (opened.Source, opened.ProcessName) == (told, image)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("/bin/sh", "./run.sh", "a b", "c"), "/srv/run.sh a b c"),
        (("/usr/bin/env", "-S python3 -u", "./run.sh", "c"), "/srv/run.sh c"),
        (("/bin/sh", "./run.sh"), "/srv/run.sh"),
        # Two scripts: the second is the interpreter of the first.
        (("/bin/sh", "/srv/inner", "./run.sh", "c"), "/srv/run.sh c"),
    ],
)
async def test_a_script_is_told_with_its_own_arguments_and_its_interpreter(arguments, told, node, stage, make_policy):
    stage.policies(make_policy(process={"matchPaths": [{"path": "/srv/run.sh"}]}, action="Audit"))
    run = node.process("/usr/bin/dash", arguments, called="./run.sh", cwd="/srv")
    node.row(node.behaviour(Operation.EXEC, "/srv/run.sh", resource2="/usr/bin/dash", syscall=59), process=run)
    await stage.take(node.record())
    (alert,) = stage.alerts
    assert (alert.Resource, alert.ProcessName, alert.Script) == (told, "/usr/bin/dash", "/srv/run.sh")
    assert alert.Rule == "spec.process.matchPaths[0]"


@pytest.mark.parametrize("match", [{"path": "/srv/run.sh"}, {"execname": "run.sh"}, {"path": "/usr/bin/dash"}])
async def test_a_rule_on_a_script_or_on_its_interpreter_holds(match, node, stage, make_policy):
    stage.policies(make_policy(process={"matchPaths": [match]}, action="Block"))
    node.row(node.behaviour(Operation.EXEC, "/srv/run.sh", resource2="/usr/bin/dash", syscall=59))
    await stage.take(node.record())
    assert [alert.Action for alert in stage.alerts] == ["Audit (Block)"]


async def test_of_a_script_both_must_be_allowed(node, stage, make_policy):
    stage.policies(make_policy(process={"matchPaths": [{"path": "/srv/run.sh"}]}, action="Allow"))
    node.row(node.behaviour(Operation.EXEC, "/srv/run.sh", resource2="/usr/bin/dash", syscall=59))
    await stage.take(node.record())
    assert [alert.PolicyName for alert in stage.alerts] == ["DefaultPosture"]


async def test_arguments_that_were_cut_are_marked_and_never_allowed(node, stage, make_policy):
    stage.policies(make_policy(process={"matchPaths": [{"path": "/bin/ls", "allowedArgs": ["-l"]}]}, action="Block"))
    run = node.behaviour(Operation.EXEC, "/bin/ls", syscall=59)
    for cut in (False, True):
        node.row(run, process=node.process("/bin/ls", ("ls", "-l"), cut=cut))
    await stage.take(node.record())
    (alert,) = stage.alerts
    assert (alert.Resource, alert.Data, alert.Cut) == (
        "/bin/ls -l [cut]",
        "syscall=SYS_EXECVE arguments=cut",
        "arguments",
    )


async def test_an_alert_carries_what_its_verdict_hung_on(node, stage, replace, web, make_policy):
    stage.identity(replace(web, links={"/bin/sh": "/usr/bin/dash", "/etc/b": "/srv/b", "/lib/": "/usr/lib/"}))
    stage.policies(make_policy(file={"matchPaths": [{"path": "/etc/b"}]}, action="Audit"))
    node.row(
        node.behaviour(Operation.LINK, "/tmp/new", resource2="/srv/b", syscall=86, owner=7, executable="/usr/lib/x")
    )
    await stage.take(node.record())
    (alert,) = stage.alerts
    assert (alert.OID, alert.Resource2, alert.Links) == (7, "/srv/b", {"/etc/b": "/srv/b", "/lib/": "/usr/lib/"})


@pytest.mark.parametrize(
    ("fields", "action", "enforcer", "result"),
    [
        ({}, "Audit (Block)", "eBPF Monitor", "Passed"),
        ({"result": -13}, "Audit (Block)", "eBPF Monitor", "Permission denied"),
        ({"result": -1, "enforcer": Backend.CGROUP}, "Block", "Hauberk cgroup", "Operation not permitted"),
        ({"enforcer": Backend.SIGNAL}, "Block", "Hauberk signal", "Passed"),
        ({"result": -13, "enforcer": Backend.APPARMOR}, "Block", "AppArmor", "Permission denied"),
    ],
)
async def test_a_block_rule_is_told_as_what_happened(fields, action, enforcer, result, node, stage, make_policy):
    stage.policies(make_policy(file={"matchPaths": [{"path": "/etc/a"}]}, action="Block"))
    node.row(node.behaviour(Operation.OPEN, "/etc/a", syscall=257, **fields))
    await stage.take(node.record())
    (alert,) = stage.alerts
    assert (alert.Action, alert.Enforcer, alert.Result) == (action, enforcer, result)
    await stage.finish()
    assert stage.summaries[0].entries[0].status == ("Deny" if action == "Block" else "Audit")


async def test_default_posture_has_no_severity_tags_or_message(node, stage, make_policy):
    stage.policies(
        make_policy(
            file={"matchDirectories": [{"dir": "/srv/", "recursive": True}]}, action="Allow", tags=["T"], message="m"
        )
    )
    node.row(node.behaviour(Operation.OPEN, "/srv/a", syscall=257))
    node.row(node.behaviour(Operation.OPEN, "/etc/a", syscall=257))
    await stage.take(node.record())
    (alert,) = stage.alerts
    assert (alert.PolicyName, alert.Action, alert.Resource) == ("DefaultPosture", "Audit", "/etc/a")
    assert (alert.Severity, alert.Tags, alert.ATags, alert.Message) == ("", "", None, "")


async def test_a_failed_call_that_no_policy_stopped_is_no_alert(node, stage, make_policy):
    stage.policies(make_policy(**ALL))
    node.row(node.behaviour(Operation.OPEN, "/etc/missing", syscall=257, result=-2))
    await stage.take(node.record())
    await stage.finish()
    assert stage.alerts == []
    assert stage.counted() == 1


async def test_what_was_stopped_is_told_whatever_the_policies_say_now(node, stage):
    stage.policies()
    node.row(node.behaviour(Operation.OPEN, "/etc/a", syscall=257, result=-13, enforcer=Backend.BPF_LSM))
    await stage.take(node.record())
    (alert,) = stage.alerts
    assert (alert.Action, alert.PolicyName) == ("Block", "")
    assert alert.Message == UNKNOWN


async def test_host_policies_make_host_alerts(node, stage, make_policy):
    stage.policies(make_policy("KubeArmorHostPolicy", file={"matchPaths": [{"path": "/etc/shadow"}]}, action="Audit"))
    node.row(node.behaviour(Operation.OPEN, "/etc/shadow", syscall=257, cgroup=1, pid_ns=1, mnt_ns=2))
    await stage.take(node.record())
    (alert,) = stage.alerts
    assert (alert.Type, alert.HostName, alert.ContainerID, alert.NamespaceName) == (
        "MatchedHostPolicy",
        "node-1",
        "",
        "",
    )


async def test_shadow_policies_tell_what_would_have_happened(node, stage, make_policy):
    document = make_policy(file={"matchPaths": [{"path": "/etc/a"}]}, action="Block")
    document["metadata"]["annotations"] = {"hauberk.io/mode": "shadow"}
    stage.policies(document)
    number = node.row(node.behaviour(Operation.OPEN, "/etc/a", syscall=257))
    await stage.take(node.record())
    (alert,) = stage.alerts
    assert (alert.Mode, alert.Action, alert.PolicyName) == ("shadow", "Audit (Block)", "p")
    assert alert.EventID == f"node-1:boot-a:{number}:shadow:p"
    await stage.finish()
    assert stage.summaries[0].entries[0].status == "Allow"


async def test_arguments_are_judged_per_occurrence(node, stage, make_policy):
    stage.policies(make_policy(process={"matchPaths": [{"path": "/bin/ls", "allowedArgs": ["-l"]}]}, action="Block"))
    run = node.behaviour(Operation.EXEC, "/bin/ls", syscall=59)
    allowed, refused = node.process("/bin/ls", ("ls", "-l")), node.process("/bin/ls", ("ls", "-a"))
    for process in (allowed, refused, allowed):
        node.row(run, process=process)
    await stage.take(node.record())
    assert [alert.Resource for alert in stage.alerts] == ["/bin/ls -a"]
    await stage.finish()
    assert sorted((entry.status, entry.count) for entry in stage.summaries[0].entries) == [("Allow", 2), ("Audit", 1)]


async def test_records_are_cloudevents(node, stage, make_policy):
    stage.policies(make_policy(**ALL))
    number = node.row(node.behaviour(Operation.OPEN, "/etc/a", syscall=257))
    await stage.take(node.record())
    (record,) = stage.bus.records(ALERTS)
    headers = dict(record.headers)
    assert record.key == b"demo/web"
    assert headers["ce_specversion"] == b"1.0"
    assert headers["ce_id"] == f"node-1:boot-a:{number}".encode()
    assert headers["ce_source"] == b"/hauberk/nodes/node-1"
    assert headers["ce_subject"] == b"demo/web"
    assert headers["content-type"] == b"application/json"
    assert headers["ce_time"].endswith(b"Z")
    assert headers["ce_type"] == b"io.hauberk.alert.v1"


async def test_names_that_are_not_utf8_are_told(node, stage, make_policy):
    stage.policies(make_policy(**ALL))
    node.row(node.behaviour(Operation.OPEN, b"/tmp/\xff\xfe", syscall=257))
    await stage.take(node.record())
    await stage.finish()
    (alert,) = stage.alerts
    assert alert.Resource == "/tmp/\\xff\\xfe"
    assert stage.counted() == 1
    assert len(stage.telemetry) == 1


async def test_a_host_alert_names_the_user_and_the_node(node, stage, host, replace, make_policy):
    stage.identity(replace(host, node_id="bf0f", users={"0": "root", "1000": "alice"}))
    stage.policies(make_policy("KubeArmorHostPolicy", file={"matchPaths": [{"path": "/etc/shadow"}]}, action="Audit"))
    for uid in (1000, 1001):
        node.row(node.behaviour(Operation.OPEN, "/etc/shadow", syscall=257, cgroup=1, pid_ns=1, mnt_ns=2, uid=uid))
    await stage.take(node.record())
    alice, nobody = stage.alerts
    assert (alice.UserName, alice.NodeID, nobody.UserName) == ("alice", "bf0f", "")
    assert alice.KubeArmorVersion.startswith("hauberk-")
    assert [log.UserName for frame in stage.telemetry for log in logs(frame)] == ["alice", ""]


async def test_a_peer_is_told_as_the_pod_that_had_the_address_then(node, stage, make_policy):
    stage.policies(make_policy(network={"matchProtocols": [{"protocol": "tcp"}]}, action="Audit"))
    owner = Owner("Deployment", "db", "shop")
    then = node.offset / 1e9
    before = PodFact(
        uid="u1", namespace="shop", name="db-1", addresses=("10.0.0.9",), owner=owner, started=1.0, ended=then + 3600
    )
    after = PodFact(uid="u2", namespace="bank", name="other", addresses=("10.0.0.9",), started=then + 1800)
    service = ServiceFact(namespace="shop", name="db", addresses=("10.96.0.1",))
    for fact in (before, after, service):
        stage.processor.inventory.apply_fact(fact.key, encode_fact(fact))
    for address in ("10.0.0.9", "10.96.0.1", "192.0.2.1"):
        node.row(node.behaviour(Operation.CONNECT, "", syscall=42, **INET, address=address, port=443))
    await stage.take(node.record())
    wanted = [("pod/db-1", "shop", "Deployment/db"), ("svc/db", "shop", ""), ("", "", "")]
    assert [(one.RemotePeer, one.RemoteNamespace, one.RemoteOwner) for one in stage.alerts] == wanted
    assert [
        (one.RemotePeer, one.RemoteNamespace, one.RemoteOwner) for frame in stage.telemetry for one in logs(frame)
    ] == wanted


async def test_only_a_peer_is_remote(node, stage, make_policy):
    stage.policies(make_policy(network={"matchProtocols": [{"protocol": "tcp"}]}, action="Audit"))
    of = {**INET, "address": "10.0.0.9", "port": 443}
    for operation, call in ((Operation.SOCKET, 41), (Operation.BIND, 49), (Operation.CONNECT, 42)):
        node.row(node.behaviour(operation, "", syscall=call, **of))
    await stage.take(node.record())
    assert [(alert.RemoteAddress, alert.RemotePort) for alert in stage.alerts] == [("", 0), ("", 0), ("10.0.0.9", 443)]


async def test_a_rule_for_a_script_holds_for_what_its_interpreter_does(node, stage, make_policy):
    stage.policies(
        make_policy(
            file={"matchPaths": [{"path": "/etc/a", "fromSource": [{"path": "/srv/run.sh"}]}]},
            process={"matchPaths": [{"path": "/bin/x", "fromSource": [{"path": "/srv/run.sh"}]}]},
            action="Audit",
        )
    )
    shell = {"executable": "/usr/bin/dash", "parent": "/usr/bin/dash"}
    for script in ("/srv/run.sh", ""):
        node.row(node.behaviour(Operation.OPEN, "/etc/a", syscall=257, script=script, **shell))
        node.row(node.behaviour(Operation.EXEC, "/bin/x", syscall=59, script=script, **shell))
    await stage.take(node.record())
    assert [(alert.Resource, alert.SourceScript) for alert in stage.alerts] == [
        ("/etc/a", "/srv/run.sh"), ("/bin/x", "/srv/run.sh"),
    ]  # fmt: skip
