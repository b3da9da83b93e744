# SPDX-License-Identifier: Apache-2.0
"""The attacks of `tests/attacks` against the LSM hooks alone: the last column of SECURITY.md is written from these markers.

`lsm_attack(what, result)`: `what` as its `attack` marker has it; `held`: denied before it happens; `not held`: it takes effect.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kernel.loading import LoadedPrograms
from policy.ruleset import PostureSettings

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(1200)]
ATTACKS = Path(__file__).parents[1] / "attacks"
DENIED = "EPERM"
held = pytest.mark.lsm_attack


@pytest.fixture(scope="module")
def loaded(hooked: LoadedPrograms) -> LoadedPrograms:
    return hooked


@pytest.fixture
def run(bench: Any) -> Callable[..., Any]:
    """run(*command): its status, output and messages, inside."""

    def done(*command: object) -> Any:
        process = bench.box.start(*map(str, command), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, err = process.communicate(timeout=600)
        return SimpleNamespace(status=process.returncode, out=out.decode(), err=err.decode())

    return done


@pytest.fixture
def secret(bench: Any, tmp_path: Path) -> str:
    """A file that is denied."""
    (tmp_path / "secret").write_text("s3cret")
    bench.hold(f"file: {{matchPaths: [{{path: {tmp_path}/secret}}]}}, action: Block")
    return str(tmp_path / "secret")


@pytest.fixture
def program(bench: Any, tmp_path: Path) -> str:
    """A program that is denied."""
    tool = shutil.copy("/bin/echo", tmp_path / "tool")
    bench.hold(f"process: {{matchPaths: [{{path: {tool}}}]}}, action: Block")
    return str(tool)


@held("Read of a blocked file by its own name", "held")
@held("Read of a blocked file through a symbolic link", "held")
@held("Read of a blocked file through a descriptor path below /proc", "held")
def test_other_names(bench: Any, run: Callable[..., Any], secret: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(secret)
    bench.expect((DENIED, ("read", secret)), (DENIED, ("read", f"{tmp_path}/link")))
    code = f"import os; fd = os.open({secret!r}, os.O_PATH); open(f'/proc/self/fd/{{fd}}').read()"
    assert "PermissionError" in run(sys.executable, "-S", "-c", code).err


@held("Read of a blocked file through a hard link made before the rule", "not held")
def test_a_hard_link_is_another_path(bench: Any, secret: str, tmp_path: Path) -> None:
    os.link(secret, tmp_path / "second")
    bench.expect(("ok", ("read", f"{tmp_path}/second")))


@held("Read of a blocked file after its directory was renamed, or exchanged with another", "held")
def test_its_directory_keeps_its_name(bench: Any, tmp_path: Path) -> None:
    for name in ("in", "free"):
        (tmp_path / name).mkdir()
    (tmp_path / "in/secret").write_text("s3cret")
    bench.hold(f"file: {{matchPaths: [{{path: {tmp_path}/in/secret}}]}}, action: Block")
    place, free, moved = (f"{tmp_path}/{name}" for name in ("in", "free", "moved"))
    bench.expect(
        (DENIED, ("rename", place, moved)), (DENIED, ("exchange", place, free)), (DENIED, ("exchange", free, place)),
        (DENIED, ("read", f"{place}/secret")),
    )  # fmt: skip


@held("Read of a blocked file through a bind mount of its directory", "not held")
def test_a_bind_mount_is_another_path(run: Callable[..., Any], bench: Any, tmp_path: Path) -> None:
    """Unless mounts are denied (`enforcement.mounts = "stop"`)."""
    for name in ("in", "free"):
        (tmp_path / name).mkdir()
    (tmp_path / "in/secret").write_text("s3cret")
    rule = f"file: {{matchPaths: [{{path: {tmp_path}/in/secret}}]}}, action: Block"
    command = ("unshare", "-m", "sh", "-c", f"mount --bind {tmp_path}/in {tmp_path}/free && cat {tmp_path}/free/secret")
    bench.hold(rule)
    assert run(*command).out == "s3cret"
    bench.hold(rule, mounts=False)
    done = run(*command)
    assert (done.status != 0, done.out) == (True, "")


@held("Exec of a blocked `#!` file, by its path, a symbolic link or as another's interpreter", "held")
def test_scripts(run: Callable[..., Any], bench: Any, tmp_path: Path) -> None:
    script, other, link = tmp_path / "script", tmp_path / "other", tmp_path / "link"
    script.write_text("#!/bin/echo\n")
    other.write_text(f"#!{script}\n")
    for one in (script, other):
        one.chmod(0o755)
    link.symlink_to(script)
    assert run(other).status == 0
    bench.hold(f"process: {{matchPaths: [{{path: {script}}}]}}, action: Block")
    for one in (script, link, other):
        assert run(one).status == 126, one


@held("Write to a readOnly file by an openat2 whose flags another thread changes", "held")
def test_flags_that_change_under_the_call(
    run: Callable[..., Any], bench: Any, build: Callable[[str], str], tmp_path: Path
) -> None:
    (tmp_path / "ro").write_text("text")
    bench.hold(f"file: {{matchPaths: [{{path: {tmp_path}/ro, readOnly: true}}]}}, action: Allow")
    done = run(build("flipped_open"), tmp_path / "ro", 100_000)
    assert (done.status, done.out, (tmp_path / "ro").read_text()) == (2, "", "text")


@held("Unlink, rename or link of a blocked file", "held")
def test_changes_by_name(bench: Any, secret: str, tmp_path: Path) -> None:
    bench.expect(
        (DENIED, ("unlink", secret)), (DENIED, ("rename", secret, f"{tmp_path}/a")), (DENIED, ("link", secret, f"{tmp_path}/b"))
    )  # fmt: skip
    assert sorted(os.listdir(tmp_path)) == ["secret"]


@held("A process that shares its descriptor table (CLONE_FILES) reads what its killed child has opened", "held")
@held("Another thread reads the descriptor between the open and the kill", "held")
def test_shared_descriptors(run: Callable[..., Any], build: Callable[[str], str], secret: str) -> None:
    """Nothing is opened, so there is nothing to share."""
    assert "parent read -1 bytes" in run(build("shared_fds"), secret).out
    code = (
        f"import os\nfor _ in range(200):\n try: os.open({secret!r}, 0); print('passed')\n except PermissionError: pass"
    )
    threads = f"import threading; ts = [threading.Thread(target=exec, args=({code!r},)) for _ in range(4)]; [t.start() for t in ts]; [t.join() for t in ts]"
    assert run(sys.executable, "-S", "-c", threads).out == ""


@held("Exec of a blocked program from a working directory over 4,096 bytes", "held")
def test_a_long_working_directory(
    run: Callable[..., Any], build: Callable[[str], str], program: str, tmp_path: Path
) -> None:
    (tmp_path / "cwd").mkdir()
    try:
        done = run(build("deepcwd"), tmp_path / "cwd", program, "BYPASSED")
        assert (done.status, done.out) == (8, "")
        assert run(build("deepcwd"), tmp_path / "cwd", "/bin/echo", "runs").out == "runs\n"
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "cwd"], check=True)


@held("Exec of a program over 4,096 bytes below a blocked directory", "held")
@held("Open of a file over 4,096 bytes below a blocked directory", "held")
def test_a_long_path(run: Callable[..., Any], bench: Any, build: Callable[[str], str], tmp_path: Path) -> None:
    attack, deep = build("deepexe"), tmp_path / "deep"
    deep.mkdir()
    try:
        assert run(attack, "setup", deep, "/bin/echo").status == 0
        assert "EXEC-BYPASSED" in run(attack, "exec", deep, "/bin/echo").out
        rule = f"matchDirectories: [{{dir: {deep}/, recursive: true}}]"
        bench.hold(f"process: {{{rule}}}, file: {{{rule}}}, action: Block")
        done = run(attack, "exec", deep, "/bin/echo")
        assert (done.status, done.out) == (8, "")
        assert "fd=-1" in run(attack, "open", deep, "/bin/echo").out
    finally:
        subprocess.run(["rm", "-rf", deep], check=True)


@pytest.fixture
def entries(build: Callable[[str], str]) -> str:
    """The program, where this kernel takes int 0x80."""
    if os.uname().machine != "x86_64":
        pytest.skip("the 32-bit entries of x86-64")
    program = build("entries")
    tried = subprocess.run([program, "open", "/dev/null"], capture_output=True, text=True, check=False)
    if tried.returncode or int(tried.stdout) < 0:
        pytest.skip("this kernel takes no int 0x80 (CONFIG_IA32_EMULATION)")
    return program


@held("Read of a blocked file by int 0x80", "held")
def test_an_open_by_int80(run: Callable[..., Any], entries: str, secret: str) -> None:
    assert run(entries, "open", secret).out == "-1\n"


@held("Exec of a blocked program by int 0x80", "held")
def test_an_exec_by_int80(run: Callable[..., Any], entries: str, program: str) -> None:
    assert run(entries, "execve", program).out == "-1\n"


@held("Connection under a tcp Block rule by int 0x80 and socketcall(2)", "held")
def test_a_connection_by_int80(run: Callable[..., Any], bench: Any, entries: str) -> None:
    bench.hold("network: {matchProtocols: [{protocol: tcp}]}, action: Block")
    assert all(int(run(entries, how).out) < 0 for how in ("connect", "socketcall"))
    with socket.create_server(("127.0.0.9", 9)):
        assert all(int(run(entries, how).out) < 0 for how in ("connect", "socketcall"))


@held("Read of a blocked file through io_uring: the ring is reported by an Audit rule, the read is not blocked", "held")
@held("Read of a blocked file through io_uring, with `enforcement.io_uring=stop`", "held")
def test_a_read_through_a_ring(run: Callable[..., Any], build: Callable[[str], str], secret: str) -> None:
    done = run(build("uring"), secret)
    if "setup" in done.err:
        pytest.skip(f"no io_uring here: {done.err}")
    assert "io_uring openat=-1 read -1" in done.out


@held("Connection under a tcp Block rule through io_uring", "held")
def test_a_socket_through_a_ring(run: Callable[..., Any], bench: Any, build: Callable[[str], str]) -> None:
    bench.hold("network: {matchProtocols: [{protocol: tcp}]}, action: Block")
    done = run(build("uring"), "/dev/null")
    if "setup" in done.err:
        pytest.skip(f"no io_uring here: {done.err}")
    assert "io_uring socket=-1" in done.out


@held("Connect through io_uring", "held")
def test_a_connection_through_a_ring(run: Callable[..., Any], bench: Any, build: Callable[[str], str]) -> None:
    bench.hold(
        "", host="egress: [{to: [{ipBlock: {cidr: 127.0.0.0/8}}], ports: [{port: 9, protocol: TCP}], action: Block}]"
    )
    done = run(build("uring"), "/dev/null")
    if "setup" in done.err:
        pytest.skip(f"no io_uring here: {done.err}")
    assert "io_uring connect=-1\n" in done.out


@held("Socket of AF_PACKET, AF_VSOCK, AF_XDP, AF_NETLINK or AF_UNIX under a Block rule on `all`", "held")
@held("Socket of a blocked protocol, MPTCP for TCP", "held")
def test_sockets_of_other_families(bench: Any) -> None:
    bench.hold("network: {matchProtocols: [{protocol: all}]}, action: Block")
    bench.expect(*((DENIED, ("socket", family, 2)) for family in (17, 40, 16, 1)), (DENIED, ("socket", 44, 3)))
    bench.hold("network: {matchProtocols: [{protocol: tcp}]}, action: Block")
    bench.expect((DENIED, ("socket", 2, 1)), (DENIED, ("socket", 2, 1, 262)), ("ok", ("socket", 2, 2)))


@held("Socket connected outside and handed into the container", "not held")
def test_a_socket_connected_outside(bench: Any, server: int) -> None:
    """What was connected is not connected again: a write to it is asked of nobody."""
    bench.hold("network: {matchProtocols: [{protocol: tcp}]}, action: Block")
    with socket.create_connection(("127.0.0.1", server)) as made:
        code = f"import os; os.write({made.fileno()}, b'x')"
        process = bench.box.start(sys.executable, "-S", "-c", code, pass_fds=(made.fileno(),))
        assert process.wait(90) == 0


@held("Raw socket under a list that allows TCP alone, with TCP's number or one that looks like a type", "held")
def test_a_raw_socket_is_not_tcp(bench: Any) -> None:
    only = "network: {matchProtocols: [{protocol: tcp}]}, action: Allow"
    bench.hold(only, postures=PostureSettings(network="block"))
    raw = ((2, 6), (2, 17), (2, 241), (10, 6))
    bench.expect(
        ("ok", ("socket", 2, 1)), *((DENIED, ("socket", family, 3, protocol)) for family, protocol in raw)
    )  # fmt: skip


@held("Listen without bind, on a port that an ingress rule blocks", "held")
@held("Bind of a port that an ingress rule blocks", "held")
def test_ports(bench: Any, run: Callable[..., Any], build: Callable[[str], str]) -> None:
    bench.hold("", host="ingress: [{ports: [{port: 1, endPort: 65535, protocol: TCP}], action: Block}]")
    bench.expect((DENIED, ("listen", True)), (DENIED, ("bind", 4321)))
    assert run(build("sockets"), "bind-unspec", "0.0.0.0", 4321).out == "bind-unspec: EPERM\n"


@pytest.fixture
def attack(bench: Any, run: Callable[..., Any], build: Callable[[str], str]) -> Callable[..., str]:
    """attack(word, ...): what tests/attacks/sockets.c printed, where some addresses of the loopback are no peers."""
    peers = ", ".join(f'{{ipBlock: {{cidr: "{one}"}}}}' for one in ("127.0.0.1/32", "127.0.0.77/32", "::1/128"))
    bench.hold("", host=f"egress: [{{to: [{peers}], action: Block}}]")
    program = build("sockets")
    return lambda *words: run(program, *words).out


@held("Peer of a Block rule reached by connect, MPTCP, Fast Open, AF_UNSPEC, io_uring", "held")
def test_every_way_to_a_peer(attack: Callable[..., str]) -> None:
    ways = (
        "connect", "mptcp", "fastopen", "fastopen-msg", "fastopen-connect", "udp", "unspec", "unspec-raw", "uring",
    )  # fmt: skip
    assert [attack(way, "127.0.0.1", 9) for way in ways] == [f"{way}: EPERM\n" for way in ways]
    assert attack("unspec-raw6", "::1") == "unspec-raw6: EPERM\n"
    free = ("udp", "unspec", "unspec-raw")
    assert [attack(way, "127.0.0.5", 9) for way in free] == [f"{way}: ok\n" for way in free]


@held("Peer of a Block rule by `any` of a socket bound to its address", "held")
def test_any_is_the_address_bound_to(attack: Callable[..., str]) -> None:
    assert attack("bound-alias", "127.0.0.77", 41999) == "bound-alias: EPERM\n"
    assert attack("bound-alias", "127.0.0.78", 41998) == "bound-alias: ECONNREFUSED\n"


@held("Second message of a sendmmsg to a peer of a Block rule", "held")
def test_a_later_message(attack: Callable[..., str]) -> None:
    assert attack("second-message", "127.0.0.1", 41997, 41996) == "sent: 1\nnext: ok\n"


@held("Peer of a Block rule by another name of the loopback", "held")
def test_peers(bench: Any, server: int) -> None:
    bench.hold(
        "", host=f"egress: [{{to: [{{ipBlock: {{cidr: 127.0.0.0/8}}}}], ports: [{{port: {server}, protocol: TCP}}], action: Block}}]"
    )  # fmt: skip
    bench.expect(
        *((DENIED, ("connect", host, server)) for host in ("127.0.0.1", "0.0.0.0", "::ffff:127.0.0.1", "127.1.2.3")),
    )  # fmt: skip


def test_every_row_is_an_attack() -> None:
    """`docs/generate.py` refuses a marker whose row is not there; the table says what was tried."""
    text = (ATTACKS.parents[1] / "SECURITY.md").read_text()
    assert json.dumps("with the LSM hooks")[1:-1] in text
