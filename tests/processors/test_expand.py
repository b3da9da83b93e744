# SPDX-License-Identifier: Apache-2.0
"""Telemetry frames to log lines: the spliced JSON is what the structs say, for every row, and counts are kept."""

from __future__ import annotations

import asyncio
import json

from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.alert import decode_log
from schemas.expand import json_lines, logs
from schemas.operations import Operation

PATHS = st.one_of(st.text(min_size=1, max_size=20), st.sampled_from(["/%d", "/7040216000000000001", '/"\\', "/\ud7ff"]))


async def test_the_log_of_the_reference(node, stage):
    curl = node.process("/usr/bin/curl", ("curl", "example.com"), tty="pts0")
    connect = node.behaviour(
        Operation.CONNECT, executable="/usr/bin/curl", parent="/usr/bin/bash", syscall=42, family=2, socket_type=1,
        protocol=6, address="93.184.216.34", port=80,
    )  # fmt: skip
    node.row(connect, process=curl, pid=251151, ppid=247074, ns_pid=51, ns_ppid=41)
    await stage.take(node.record())
    (line,) = json_lines(stage.telemetry[0])
    assert json.loads(line) == {
        "Timestamp": 1765863401,
        "UpdatedTime": "2025-12-16T05:36:41.001000Z",
        "ClusterName": "default",
        "HostName": "node-1",
        "NamespaceName": "demo",
        "Owner": {"Ref": "Deployment", "Name": "web", "Namespace": "demo"},
        "PodName": "web-8dc5d8d48-5s8pf",
        "Labels": "app=web,tier=front",
        "ContainerID": "4771ac3e9074f1bf8b01038d0cf776960aa44b18edccc0f2b017e8465dedefcd",
        "ContainerName": "web",
        "ContainerImage": "docker.io/library/nginx:1.27@sha256:8c94",
        "HostPPID": 247074,
        "HostPID": 251151,
        "PPID": 41,
        "PID": 51,
        "UID": 0,
        "ParentProcessName": "/usr/bin/bash",
        "ProcessName": "/usr/bin/curl",
        "Type": "ContainerLog",
        "Source": "/usr/bin/curl example.com",
        "Operation": "Network",
        "Resource": "remoteip=93.184.216.34 port=80 protocol=TCP",
        "Data": "kprobe=tcp_connect domain=AF_INET",
        "EventData": {
            "Kprobe": "tcp_connect",
            "Domain": "AF_INET",
            "Remoteip": "93.184.216.34",
            "Port": "80",
            "Protocol": "TCP",
        },
        "Result": "Passed",
        "Cwd": "/",
        "TTY": "pts0",
        "ExecEvent": {"ExecID": "0", "ExecutableName": "curl"},
        "EventID": "node-1:boot-a:1",
        "RemoteAddress": "93.184.216.34",
        "RemotePort": 80,
    }


async def test_an_exec_tells_its_own_arguments(node, stage):
    run = node.behaviour(Operation.EXEC, "/bin/sh", executable="/usr/bin/runc", parent="/usr/bin/runc", syscall=59)
    first = node.process("/bin/sh", ("sh", "-c", "id"))
    second = node.process("/bin/sh", ("sh", "-c", "ls"))
    for process in (first, second):
        node.row(run, process=process)
    await stage.take(node.record())
    told = list(logs(stage.telemetry[0]))
    assert [log.Resource for log in told] == ["/bin/sh -c id", "/bin/sh -c ls"]
    assert {log.Source for log in told} == {"/usr/bin/runc"}


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(
        st.tuples(PATHS, st.integers(0, 2), st.integers(0, 2**32 - 1), st.sampled_from([1, 999_999, 61_000_000_000])),
        min_size=1,
        max_size=12,
    ),
    folded=st.integers(0, 3),
)
def test_spliced_lines_are_the_structs(rows, folded, make_stage, make_node, host, web):
    async def run() -> None:
        stage = make_stage()
        stage.identity(host)
        stage.identity(web)
        node = make_node()
        processes = [0, node.process("/bin/cat", ("cat", "%s", '"')), node.process("/bin/sh", ("sh",))]
        for path, process, aux, step in rows:
            operation = Operation.OPEN if process else Operation.BIND
            ident = node.behaviour(operation, path, syscall=257 if process else 49, family=0 if process else 1)
            node.row(ident, process=processes[process], aux=aux, step=step)
        for _ in range(folded):
            node.fold(ident, 3, process=processes[1])
        await stage.take(node.record())
        (frame,) = stage.telemetry
        spliced = [decode_log(line) for line in json_lines(frame)]
        assert spliced == list(logs(frame))
        assert sum(log.Count for log in spliced) == node.sent == frame.header.events

    asyncio.run(run())
