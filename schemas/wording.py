# SPDX-License-Identifier: Apache-2.0
"""How a behaviour is put into words: `Data`, `Resource`, `EventData`, `Source` as KubeArmor writes them (kubearmor.md 4.3).

Pure. The one place where these forms are made, so that an alert and a log line of one event can never differ. What the
kernel programs saw is told in KubeArmor's words even where they name its own probes (`kprobe=tcp_connect`), because
readers search for them. Neighbours: `schemas.expand` (logs), `processors.alerts` (alerts).
"""

from __future__ import annotations

import posixpath
import time
from functools import lru_cache
from typing import Final

from schemas import socket_names as names
from schemas.behaviour import Behaviour
from schemas.links import MULTI_CALL
from schemas.operations import Access, Backend, Class, Operation
from schemas.telemetry import ProcessContext
from schemas.watched import CALLS, words

EPERM: Final = -1
EACCES: Final = -13
_LSM_BACKENDS: Final = (Backend.BPF_LSM, Backend.APPARMOR)
_LSM: Final = {
    Operation.EXEC: "SECURITY_BPRM_CHECK", Operation.OPEN: "FILE_OPEN", Operation.CREATE: "FILE_MKNOD",
    Operation.UNLINK: "FILE_UNLINK", Operation.RENAME: "FILE_RENAME", Operation.MKDIR: "FILE_MKDIR",
    Operation.RMDIR: "FILE_RMDIR", Operation.LINK: "FILE_LINK", Operation.SYMLINK: "FILE_SYMLINK",
    Operation.CHMOD: "FILE_CHMOD", Operation.CHOWN: "FILE_CHOWN", Operation.TRUNCATE: "FILE_TRUNCATE",
    Operation.MKNOD: "FILE_MKNOD", Operation.SOCKET: "SOCKET_CREATE", Operation.BIND: "SOCKET_BIND",
    Operation.LISTEN: "SOCKET_LISTEN", Operation.CONNECT: "SOCKET_CONNECT", Operation.ACCEPT: "SOCKET_ACCEPT",
    Operation.SEND: "SOCKET_SENDMSG", Operation.DNS: "SOCKET_SENDMSG", Operation.MMAP: "MMAP_FILE",
}  # fmt: skip
_FD_OPERATIONS: Final = (Operation.BIND, Operation.LISTEN, Operation.SEND)
_OPENS: Final = (Operation.OPEN, Operation.CREATE)
CUT_MARK: Final = "[cut]"
"""Stands in `Resource` and `Source` for arguments that did not fit or could not be read."""


def command(executable: str, process: ProcessContext, script: str = "") -> str:
    """What was run and its arguments without argv[0]: `/bin/cat /etc/hosts`; a multi-call program under the name it was called
    by, a script without its interpreter. `CUT_MARK` at the end where arguments are missing."""
    arguments = process.arguments
    if script:
        # argv is interpreter, its argument if there is one, the script as exec was given it, and then the script's own.
        after = arguments.index(process.called) if process.called in arguments else 1
        words = [script, *arguments[after + 1 :]]
    else:
        words = [called_as(executable, process), *arguments[1:]]
    return " ".join((*words, CUT_MARK) if process.cut else words)


def called_as(executable: str, process: ProcessContext) -> str:
    """The path under which a multi-call program acts: `/bin/cat` for `/bin/busybox` started as `cat`. Others as they are."""
    directory, _, base = executable.rpartition("/")
    name = process.arguments[0].rpartition("/")[2].removeprefix("-") if process.arguments else ""
    if base not in MULTI_CALL or name in ("", base):
        return executable
    for path in (process.called, process.arguments[0]):
        if path.rpartition("/")[2] == name and "/" in path:
            return posixpath.normpath(posixpath.join(process.cwd or "/", path))
    return f"{directory}/{name}"


def shows_aux(behaviour: Behaviour) -> bool:
    """Whether `data` of this behaviour depends on the occurrence's `aux` (the fd or dirfd of the call)."""
    if behaviour.enforcer in _LSM_BACKENDS:
        return False
    operation = behaviour.operation
    return operation in _FD_OPERATIONS or (operation in _OPENS and behaviour.syscall_name.startswith("openat"))


def data(b: Behaviour, aux: int = 0, architecture: str = "x86_64") -> str:
    """`syscall=SYS_OPENAT fd=-100 flags=O_RDONLY|O_CLOEXEC`. `aux`: u32 of the occurrence, read as signed."""
    if b.operation is Operation.CAPABLE:
        return f"lsm=CAPABLE CAP_{b.detail.upper()}"
    if b.enforcer in _LSM_BACKENDS and b.operation in _LSM:
        return _lsm_data(b)
    if b.operation is Operation.DNS:
        return f"kfunc=UDP_SENDSKB domain={b.detail or b.resource} daddr={b.address}"
    if b.operation is Operation.ACCEPT and _tcp(b) and b.passed:
        return f"kprobe=tcp_accept domain={names.family(b.family)}"
    if b.operation is Operation.CONNECT and _tcp(b) and b.result not in (EPERM, EACCES):
        return f"kprobe=tcp_connect domain={names.family(b.family)}"
    fd = aux - (1 << 32) if aux >= 1 << 31 else aux
    return f"syscall=SYS_{b.syscall_name.upper()}{_call(b, fd, architecture)}"


def _lsm_data(b: Behaviour) -> str:
    hook = _LSM[b.operation]
    if b.operation is Operation.OPEN and b.access & (Access.WRITE | Access.APPEND):
        hook = "FILE_PERMISSION"
    if b.operation is Operation.DNS:
        return f"lsm={hook} domain={b.detail or b.resource}"
    return f"lsm={hook} {_protocol_and_type(b)}" if b.cls is Class.NETWORK else f"lsm={hook}"


def _call(b: Behaviour, fd: int, architecture: str) -> str:
    """The arguments of the call after its name, with a leading blank."""
    op, call = b.operation, b.syscall_name
    if op in _OPENS:
        flags = f" flags={names.open_flags(b.flags, architecture)}"
        return f" fd={fd}{flags}" if call.startswith("openat") else flags if call == "open" else ""
    if op in _FD_OPERATIONS:
        return f" fd={fd}"
    if call == "unlinkat":
        return f" flags={names.at_flags(b.flags)}"
    if op is Operation.CHOWN:
        mode = f" mode={b.flags}" if call == "fchownat" else ""
        return f" userid={b.args[0]} group={b.args[1]}{mode}"
    if op is Operation.CHMOD:
        return f" mode={b.args[0]:04o}"
    if op is Operation.RENAME:
        return f" newpath={b.resource2}" if b.resource2 else ""
    if op is Operation.LINK:
        flags = f" flags={names.at_flags(b.flags)}" if call == "linkat" else ""
        return f" oldpath={b.resource2}{flags}" if b.resource2 else flags
    if op is Operation.SYMLINK:
        return f" target={b.resource2}" if b.resource2 else ""
    if op in (Operation.SETUID, Operation.SETGID):
        return f" userid={b.args[0]}"
    if op is Operation.PTRACE:
        request = names.PTRACE.get(b.args[0], str(b.args[0]))
        return f" request={request} pid={b.args[1]}" + (f" process={b.resource}" if b.resource else "")
    if call == "move_mount":
        return f" source={b.resource2} target={b.resource} flags={b.flags:#x}"
    if op is Operation.MOUNT:
        return f" source={b.resource2} target={b.resource} filesystem={b.detail} mountflag={b.flags} data="
    if op is Operation.UMOUNT:
        return f" target={b.resource} flag={b.flags}"
    row = CALLS.get(call)
    if row is None or not row.words:
        return ""
    first = b.resource or b.detail
    told = {"resource": first, "resource2": b.resource2, "flags": b.flags, "arg0": b.args[0], "arg1": b.args[1]}
    return "".join(f" {word}={told[member]}" for member, word in words(row))


def resource(b: Behaviour, process: ProcessContext) -> str:
    """Exec: path and arguments; file: path; network: `sa_family=AF_INET sin_port=53 sin_addr=10.0.0.10` and its kin."""
    cls, op = b.cls, b.operation
    if op is Operation.EXEC:
        return command(b.resource, process, b.resource if b.resource2 else "")
    if cls is Class.CAPABILITIES:
        return f"CAP_{b.detail.upper()}"
    return _socket(b) if cls is Class.NETWORK else b.resource or b.detail


def _socket(b: Behaviour) -> str:
    op = b.operation
    if op is Operation.DNS:
        return b.detail or b.resource
    if b.enforcer in _LSM_BACKENDS:
        return _protocol_and_type(b)
    if op is Operation.SOCKET:
        kind = names.socket_type(b.socket_type, b.flags)
        return f"domain={names.family(b.family)} type={kind} protocol={names.protocol(b.protocol, b.socket_type, b.family)}"
    if op is Operation.LISTEN and not b.port:
        return ""
    told = b.result not in (EPERM, EACCES)
    if b.family in (names.INET, names.INET6) and (
        (op in (Operation.CONNECT, Operation.ACCEPT) and _tcp(b) and told) or op is Operation.SEND
    ):
        return f"remoteip={b.address} port={b.port} protocol={names.protocol(b.protocol, b.socket_type, b.family)}"
    return _address(b)


def _address(b: Behaviour) -> str:
    if b.family == names.INET:
        return f"sa_family=AF_INET sin_port={b.port} sin_addr={b.address}"
    if b.family == names.INET6:
        return f"sa_family=AF_INET6 sin6_port={b.port} sin6_addr={b.address}"
    if b.family == names.UNIX:
        return f"sa_family=AF_UNIX sun_path={b.resource}"
    return f"sa_family={names.family(b.family)}"


def _protocol_and_type(b: Behaviour) -> str:
    return f"protocol={names.protocol(b.protocol, b.socket_type, b.family)} type={names.socket_type(b.socket_type)}"


def _tcp(b: Behaviour) -> bool:
    return b.family in (names.INET, names.INET6) and b.socket_type == names.STREAM and b.protocol in names.TCP_STREAMS


def firewall_data(b: Behaviour) -> str:
    """`DestinationIP=8.8.8.8 DestinationPort=53 Protocol=UDP`, or `SourceIP=` of who came: the side that a socket call knows."""
    protocol = names.protocol(b.protocol, b.socket_type, b.family)
    side = "SourceIP" if b.operation is Operation.ACCEPT else "DestinationIP"
    return f"{side}={b.address} DestinationPort={b.port} Protocol={protocol}"


def event_data(text: str, network: str = "") -> dict[str, str]:
    """`{"Syscall": "SYS_OPENAT", "Fd": "-100"}` from `Data`, and from `Resource` of network events."""
    found = {}
    for word in f"{text} {network}".split(" "):
        key, equals, value = word.partition("=")
        if equals and key:
            found[key[0].upper() + key[1:]] = value
    return found


def labels(pairs: dict[str, str]) -> str:
    """`k=v,k=v`, sorted, so that equal label sets are equal text."""
    return ",".join(f"{key}={pairs[key]}" for key in sorted(pairs))


def updated_time(unix_ns: int) -> str:
    """`2006-01-02T15:04:05.000000Z`."""
    seconds, rest = divmod(unix_ns, 1_000_000_000)
    return f"{_second(seconds)}.{rest // 1000:06d}Z"


@lru_cache(64)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
