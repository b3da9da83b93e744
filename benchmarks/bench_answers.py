# SPDX-License-Identifier: Apache-2.0
"""Answers of name servers: what hearing them costs every packet of the machine, what one answer costs, and what a name costs a connection.

`answers_packet_*` is what the kernel counts as the run time of our two programs for a packet that is no question and no answer, beside an
empty program at the same place; being called at all costs more than either. `answers_learned` is reading messages into the table of
names, `answers_named` asking it. Needs root, BPF, cgroup v2 and BCC for the first; loads under a bpffs of its own and removes it.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from own_pins import own_pins

from kernel import bpf
from kernel.catalogue import CGROUP_SKB, LISTENERS
from kernel.features import cgroup2_mount
from kernel.loading import LoadSettings, load
from processors.called import Called, CalledSettings
from schemas.behaviour import Behaviour
from schemas.frame import FrameHeader, definition
from schemas.identity import Identity, Kind
from schemas.kernel import ANSWER, SCOPE, Config, DefinitionKind, ScopeFlag
from schemas.operations import Class, Operation

PACKETS = 20_000
BYTES = 256 << 20
ANSWERS = 20_000
NAMES = 2_000
SERVER = "127.0.53.2"
Row = dict[str, Any]


def run(scale: float) -> dict[str, Row]:
    """All figures."""
    return learned(scale) | packets(scale)


def labels(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def question(name: str, ident: int) -> bytes:
    return struct.pack(">HHHHHH", ident, 0x0100, 1, 0, 0, 0) + labels(name) + b"\0\1\0\1"


def answer(asked: bytes, address: bytes) -> bytes:
    """An alias and an address, as a content network says them."""
    target = labels("edge-7.cdn.example.net")
    records = b"\xc0\x0c" + struct.pack(">HHIH", 5, 1, 300, len(target)) + target
    records += struct.pack(">HHHIH", 0xC000 | len(asked) + 12, 1, 1, 60, 4) + address
    return asked[:2] + struct.pack(">HHHHH", 0x8180, 1, 2, 0, 0) + asked[12:] + records


def learned(scale: float) -> dict[str, Row]:
    """Answers per second into the table, and names per second out of it; the best of five runs of CPU time."""
    count = max(int(ANSWERS * scale), 200)
    owner = Identity(kind=Kind.CONTAINER, node="n", uid="c")
    header = FrameHeader(node="n", boot="b", run="r", number=0, clock_offset_ns=0, events=0)
    runs = []
    for number in range(count):
        name = number % NAMES
        message = answer(question(f"host-{name}.example.com", number & 0xFFFF), struct.pack(">I", 0x0A000000 + name))
        body = ANSWER.struct.pack(number, len(message), 0) + message
        runs.append(definition(DefinitionKind.ANSWER, 7, body))
    run_of = b"".join(runs)
    called = Called(lambda node, cgroup: owner, CalledSettings())
    took = [timed(lambda: called.learn(header, run_of)) for _ in range(5)]
    assert called.held == min(NAMES, count), called.held
    assert called.stats.unread == 0
    connects = [
        Behaviour(operation=Operation.CONNECT, address=f"10.0.{name >> 8}.{name & 255}", cgroup=7)
        for name in range(min(NAMES, count))
    ]
    found = [called.name(owner, one, count) for one in connects]
    assert all(found)
    asked = [timed(lambda: [called.name(owner, one, count) for one in connects]) for _ in range(5)]
    return {
        "answers_learned": {
            "value": round(count / min(took)), "unit": "events/s", "n": count,
            "how": f"messages of {len(message)} bytes with an alias and an address, {NAMES} names, read into the table",
        },
        "answers_named": {
            "value": round(len(connects) / min(asked)), "unit": "events/s", "n": len(connects), "how": "connections told by name",
        },
    }  # fmt: skip


def timed(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def packets(scale: float) -> dict[str, Row]:
    """What the programs cost packets, by the kernel's own count; nothing where they cannot be loaded."""
    count, size = max(int(PACKETS * scale), 500), max(int(BYTES * scale), 1 << 22)
    rows: dict[str, Row] = {}
    with own_pins() as pins:
        with on_root() as floor_program:
            floor = {
                "udp": per_run([floor_program], lambda: datagrams(count)),
                "tcp": per_run([floor_program], lambda: stream(size)),
            }
        loaded = load(LoadSettings(new_visibility=("none",)), pins)
        if "dns_answers" in loaded.refused:
            raise SystemExit(f"expected to hear answers, got: {loaded.refused['dns_answers']}")
        programs = [loaded.program(listener.name) for listener in LISTENERS]
        try:
            for kind, work in (("udp", lambda: datagrams(count)), ("tcp", lambda: stream(size))):
                value, runs = per_run(programs, work)
                rows[f"answers_packet_{kind}"] = {
                    "value": round(value, 1), "unit": "ns", "n": runs,
                    "how": f"run time of a program for a {kind} packet of another port; an empty one takes {floor[kind][0]:.0f} ns",
                }  # fmt: skip
                rows[f"answers_packet_{kind}_over_empty"] = {
                    "value": round(value / max(1.0, floor[kind][0]), 2), "unit": "x", "n": runs,
                    "how": "the same over the empty program's run time",
                }  # fmt: skip
            with watched(loaded):
                value, runs = per_run(programs, lambda: conversation(min(count, 200)))
            rows["answers_told"] = {
                "value": round(value * 4, 1), "unit": "ns", "n": runs // 4,
                "how": "run time of both programs for a question and its answer that is handed on: each is sent and received here, four runs",
            }  # fmt: skip
            took = turns(loaded, count)
            for other in ("plain", "empty"):
                what = "no program" if other == "plain" else "an empty one each way"
                rows[f"answers_datagram_over_{other}"] = {
                    "value": round(took["ours"] / took[other], 3), "unit": "x", "n": count,
                    "how": f"a datagram sent and received on the loopback, over {took[other]:.0f} ns with {what}; fastest of 30 rounds in turns",
                }  # fmt: skip
        finally:
            for program in programs:
                os.close(program)
    return rows


def turns(loaded: Any, count: int) -> dict[str, float]:
    """ns for one datagram without programs (`plain`), with an empty one each way, and with `ours`: each the fastest of 30 rounds in turns.
    Takes the links of `loaded` away."""
    found: dict[str, float] = {}
    with ExitStack() as stack:
        root = os.open(cgroup2_mount() or "", os.O_RDONLY | os.O_DIRECTORY)
        stack.callback(os.close, root)
        programs: dict[str, list[tuple[int, int]]] = {"plain": [], "empty": [], "ours": []}
        for listener in LISTENERS:
            os.unlink(f"{loaded.pin_dir}/links/{listener.name}")
            for name, program in (("ours", loaded.program(listener.name)), ("empty", empty(listener.attach_type))):
                stack.callback(os.close, program)
                programs[name].append((program, listener.attach_type))
        for _ in range(30):
            for name, attach in programs.items():
                links = [bpf.cgroup_link(program, root, kind) for program, kind in attach]
                start = time.perf_counter_ns()
                datagrams(count // 8)
                found[name] = min(found.get(name, float("inf")), (time.perf_counter_ns() - start) / (count // 8))
                for link in links:
                    os.close(link)
    return found


def empty(attach_type: int) -> int:
    """A program that lets everything pass, its fd: r0 = 1; exit."""
    code = struct.pack("=BBhiBBhi", 0xB7, 0, 0, 1, 0x95, 0, 0, 0)
    return bpf.program_load(CGROUP_SKB, code, name="bench_empty", attach_type=attach_type)


def per_run(programs: list[int], work: Callable[[], None]) -> tuple[float, int]:
    """(ns of one run of these programs, the least of five rounds of `work`; runs in a round)."""
    enabled = bpf.enable_stats()
    best, runs = float("inf"), 0
    try:
        for _ in range(5):
            before = [bpf.program_time(program) for program in programs]
            work()
            after = [bpf.program_time(program) for program in programs]
            runs = sum(new[1] - old[1] for new, old in zip(after, before, strict=True))
            spent = sum(new[0] - old[0] for new, old in zip(after, before, strict=True))
            best = min(best, spent / max(1, runs))
    finally:
        os.close(enabled)
    return best, runs


@contextmanager
def on_root() -> Iterator[int]:
    """An empty program where `hear_answer` would be, its fd: r0 = 1; exit."""
    root = os.open(cgroup2_mount() or "", os.O_RDONLY | os.O_DIRECTORY)
    program = empty(0)
    link = bpf.cgroup_link(program, root, 0)
    try:
        yield program
    finally:
        for fd in (link, program, root):
            os.close(fd)


@contextmanager
def watched(loaded: Any) -> Iterator[None]:
    """This process in a cgroup of its own that is watched; the ring is large enough for what is said meanwhile."""
    mount = cgroup2_mount() or ""
    path = Path(mount) / f"hauberk-bench-{os.getpid()}"
    with open("/proc/self/cgroup", encoding="ascii") as file:
        before = next(line.strip().partition("::")[2] for line in file if line.startswith("0::"))
    path.mkdir()
    try:
        (path / "cgroup.procs").write_text("0")
        with loaded.map("scopes") as scopes, loaded.map("config") as config:
            record = SCOPE.struct.pack(0, 0, ScopeFlag.CONTAINER, 1 << Class.NETWORK)
            scopes.put(struct.pack("=Q", path.stat().st_ino), record)
            config.put(struct.pack("=I", Config.OBSERVED_UNTIL), struct.pack("=Q", (1 << 64) - 1))
        yield
    finally:
        Path(mount + before, "cgroup.procs").write_text("0")
        path.rmdir()


def datagrams(count: int) -> None:
    """`count` datagrams over the loopback, one after the other."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
    ):
        other.bind(("127.0.0.1", 0))
        one.connect(other.getsockname())
        for _ in range(count):
            one.send(b"x" * 100)
            other.recv(200)


def stream(size: int) -> None:
    """`size` bytes over one TCP connection on the loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as one:
        other, _ = server.accept()

        def send() -> None:
            for _ in range(size >> 16):
                one.sendall(b"x" * 65536)

        thread = threading.Thread(target=send)
        thread.start()
        left = size >> 16 << 16
        while left:
            left -= len(other.recv(1 << 20))
        thread.join()
        other.close()


def conversation(count: int) -> None:
    """`count` questions to a name server and its answers. Fewer than are handed on in a second."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        server.bind((SERVER, 53))
        client.connect((SERVER, 53))
        for number in range(count):
            client.send(question("host.example.com", number))
            asked, who = server.recvfrom(512)
            server.sendto(answer(asked, b"\x0a\0\0\1"), who)
            client.recv(512)
    time.sleep(1.1)  # the budget of a second is there again


if __name__ == "__main__":
    for key, row in run(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0).items():
        print(f"{key:32} {row['value']:>10} {row['unit']:6} n={row['n']:<6} {row['how']}")
