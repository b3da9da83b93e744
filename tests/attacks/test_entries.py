# SPDX-License-Identifier: Apache-2.0
"""Other ways into the kernel: 32-bit entries, io_uring, and calls that are neither files nor sockets.

SECURITY.md promises that calls of the 32-bit entries are read, held and told like native ones, and that io_uring is not: its rings
are told, or refused where `enforcement.io_uring` says so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

POLICY = """
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {{name: held, annotations: {{hauberk.io/signal: enabled}}}}
spec:
  selector: {{matchLabels: {{app: {app}}}}}
  process: {{matchPaths: [{{path: {program}}}]}}
  file: {{matchPaths: [{{path: {secret}}}]}}
  network: {{matchProtocols: [{{protocol: tcp}}]}}
  action: Block
"""
CALLS = """
---
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {name: calls}
spec:
  selector: {matchLabels: {app: box}}
  syscalls:
    matchSyscalls:
    - syscall: [unshare, setns, chroot, pivot_root, memfd_create, io_uring_setup, process_vm_writev, ptrace, umount]
"""
UNWATCHED = """
import ctypes, os
call = ctypes.CDLL(None).syscall
def do(*words):
    pid = os.fork()
    if not pid:
        call(*words)
        os._exit(0)
    os.waitpid(pid, 0)
do(272, 0x04000000); do(308, os.open("/proc/self/ns/uts", 0), 0x04000000); do(161, b"/tmp"); do(155, b"/tmp", b"/tmp")
do(319, b"payload", 0); do(311, os.getpid(), None, 0, None, 0, 0); do(101, 0, 0, 0, 0)
"""
UNMOUNT = ["unshare", "-m", "sh", "-c", "mount -t tmpfs none /mnt && umount /mnt"]
TRUE = os.path.realpath(shutil.which("true") or "/bin/true")


@pytest.fixture(scope="module")
def attacked(
    make_container: Callable[[str], Any], make_node: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Any:
    home = Path(os.path.realpath(tmp_path_factory.mktemp("entries")))
    (home / "secret").write_text("s3cret")
    policy = POLICY.format(app="box", secret=home / "secret", program=TRUE)
    node = make_node(policy + CALLS, make_container("box"))
    node.secret = home / "secret"
    return node


@pytest.fixture(scope="module")
def entries(build: Callable[[str], str]) -> str:
    """The program, where this kernel takes int 0x80."""
    if os.uname().machine != "x86_64":
        pytest.skip("the 32-bit entries of x86-64")
    program = build("entries")
    tried = subprocess.run([program, "open", "/dev/null"], capture_output=True, text=True, check=False)
    if tried.returncode or int(tried.stdout) < 0:
        pytest.skip("this kernel takes no int 0x80 (CONFIG_IA32_EMULATION)")
    return program


@pytest.mark.attack("Read of a blocked file by int 0x80", "held", by="signal")
def test_an_open_by_int80(attacked: Any, entries: str) -> None:
    done = attacked.containers["box"].run(entries, "open", str(attacked.secret))
    assert (done.returncode, done.stdout) == (-9, "")
    alert = attacked.alert(Operation="File", Resource=str(attacked.secret), Action="Block")
    assert (alert["PolicyName"], alert["EventData"]["Syscall"]) == ("held", "SYS_OPEN")


@pytest.mark.attack("Exec of a blocked program by int 0x80", "held", by="signal")
def test_an_exec_by_int80(attacked: Any, entries: str) -> None:
    assert attacked.containers["box"].run(entries, "execve", TRUE).returncode == -9
    attacked.alert(Operation="Process", ProcessName=TRUE, Action="Block", Resource=f"{TRUE} told")


@pytest.mark.attack("Connection under a tcp Block rule by int 0x80 and socketcall(2)", "held", by="cgroup")
def test_a_connection_by_int80(attacked: Any, entries: str) -> None:
    for how in ("connect", "socketcall"):
        assert int(attacked.containers["box"].run(entries, how).stdout) < 0
    attacked.alert(Enforcer="Hauberk cgroup", Action="Block", PolicyName="held", ProcessName=entries)


@pytest.mark.attack("An audited call by int 0x80", "told", by="sensor")
def test_a_call_by_int80(attacked: Any, entries: str) -> None:
    attacked.containers["box"].run(entries, "unshare")
    alert = attacked.alert("SYS_UNSHARE", PolicyName="calls", ProcessName=entries)
    assert alert["EventData"]["Flags"] == str(0x04000000)


@pytest.mark.attack("Read of a blocked file by the x32 entry", "held", by="the kernel or signal")
def test_an_open_by_x32(attacked: Any, entries: str) -> None:
    done = attacked.containers["box"].run(entries, "x32", str(attacked.secret))
    assert done.returncode == -9 or int(done.stdout) == -38, "neither killed nor refused by the kernel (ENOSYS)"


@pytest.mark.attack("Calls of namespaces, roots, memory and other processes under an Audit rule", "told", by="sensor")
def test_calls_that_are_no_file_and_no_socket(attacked: Any) -> None:
    box = attacked.containers["box"]
    if os.uname().machine == "x86_64":
        box.run(sys.executable, "-c", UNWATCHED)
        for name in ("UNSHARE", "SETNS", "CHROOT", "PIVOT_ROOT", "MEMFD_CREATE", "PROCESS_VM_WRITEV", "PTRACE"):
            alert = attacked.alert(f"SYS_{name}", PolicyName="calls")
            assert alert["Action"] == "Audit"
        assert attacked.alert("SYS_MEMFD_CREATE", PolicyName="calls")["Resource"] == "payload"
    assert box.run(*UNMOUNT).returncode == 0
    attacked.alert("SYS_UMOUNT2", PolicyName="calls", Resource="/mnt")


@pytest.mark.attack(
    "Read of a blocked file through io_uring: the ring is reported by an Audit rule, the read is not blocked",
    "told",
    by="sensor",
)
def test_a_read_through_a_ring(attacked: Any, build: Callable[[str], str]) -> None:
    program = build("uring")
    done = attacked.containers["box"].run(program, str(attacked.secret))
    if "setup" in done.stderr:
        pytest.skip(f"no io_uring here: {done.stderr}")
    assert "s3cret" in done.stdout
    attacked.alert("SYS_IO_URING_SETUP", PolicyName="calls", ProcessName=program)
    assert not attacked.alerts(Resource=str(attacked.secret), ProcessName=program)


@pytest.mark.attack("Connection under a tcp Block rule through io_uring", "held", by="cgroup")
def test_a_connection_through_a_ring(attacked: Any, build: Callable[[str], str]) -> None:
    done = attacked.containers["box"].run(build("uring"), "/dev/null")
    if "setup" in done.stderr:
        pytest.skip(f"no io_uring here: {done.stderr}")
    assert "io_uring socket=-1" in done.stdout


@pytest.mark.attack("Read of a blocked file through io_uring, with `enforcement.io_uring=stop`", "held", by="signal")
def test_a_ring_where_rings_are_stopped(
    attacked: Any, build: Callable[[str], str], make_container: Callable[[str], Any], make_node: Callable[..., Any]
) -> None:
    program = build("uring")
    policy = POLICY.format(app="ringless", secret=attacked.secret, program=TRUE)
    node = make_node(policy, make_container("ringless"), enforcement={"io_uring": "stop"})
    done = node.containers["ringless"].run(program, str(attacked.secret))
    if "setup" in done.stderr:
        pytest.skip(f"no io_uring here: {done.stderr}")
    assert (done.returncode, done.stdout) == (-9, "")
    alert = node.alert("SYS_IO_URING_SETUP", ProcessName=program)
    assert (alert["Action"], alert["Enforcer"]) == ("Block", "Hauberk signal")
    assert "enforcement.io_uring" in alert["Message"]
