# SPDX-License-Identifier: Apache-2.0
"""AppArmor's words in the kernel's audit stream: which profile denied what to whom. Needs CAP_AUDIT_READ, no audit daemon.

Every listener of multicast group 1 gets a copy of each record (include/uapi/linux/audit.h, AUDIT_NLGRP_READLOG); records of type
1400 (AUDIT_AVC) are those of security modules. What a listener is too slow for is lost, and the socket says so (ENOBUFS): counted.
Records that an audit daemon would have to ask for are never waited for. Neighbours: `enforcers.apparmor`.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import struct
from typing import Final

import msgspec

from schemas.errors import KernelError, PermissionMissing

_NETLINK_AUDIT: Final = 9
_READ_LOG: Final = 1
_AVC: Final = 1400
_HEADER: Final = struct.Struct("=IHHII")
_LONGEST: Final = 65536
"""Bytes of one message: the kernel cuts a record at 8,970 (MAX_AUDIT_MESSAGE_LENGTH)."""
_WAITING: Final = 1 << 20
"""Bytes that wait in the socket: some 3,000 records."""
_FIELD: Final = re.compile(r'(\w+)=(?:"([^"]*)"|(\S*))')
_UNTRUSTED: Final = frozenset({"name", "comm", "target", "profile", "peer", "info"})
"""Fields that are hexadecimal where their text has quotes, spaces or control characters (audit_log_untrustedstring)."""


class AuditDenial(msgspec.Struct, frozen=True):
    """One record of a denial. `operation`: AppArmor's word (`open`, `exec`, `link`, `create`, ...); `name`: path, capability or ""; `mask`: the
    permissions denied; `pid` as the host counts; `serial`: of the record, in this boot; `seconds`: Unix time."""

    profile: str
    operation: str
    name: str
    pid: int
    comm: str
    mask: str
    serial: int
    seconds: float


def parse(text: str) -> AuditDenial | None:
    """A record `audit(SECONDS:SERIAL): apparmor="DENIED" ...`; None for one that is not AppArmor's or denies nothing."""
    stamp = re.match(r"audit\((\d+\.\d+):(\d+)\):", text)
    fields = {key: _plain(key, quoted, bare) for key, quoted, bare in _FIELD.findall(text)}
    if stamp is None or fields.get("apparmor") != "DENIED":
        return None
    pid = fields.get("pid", "")
    return AuditDenial(
        profile=fields.get("profile", ""), operation=fields.get("operation", ""), name=fields.get("name") or fields.get("capname", ""),
        pid=int(pid) if pid.isdecimal() else 0, comm=fields.get("comm", ""), mask=fields.get("denied_mask", ""),
        serial=int(stamp[2]), seconds=float(stamp[1]),
    )  # fmt: skip


def _plain(key: str, quoted: str, bare: str) -> str:
    if bare and key in _UNTRUSTED and len(bare) % 2 == 0:
        try:
            return bytes.fromhex(bare).decode("utf-8", "surrogateescape")
        except ValueError:
            return bare
    return quoted or bare


class AuditStream:
    """The stream from now on. `fileno` is readable when something waits; `lost`: times that the kernel dropped records."""

    def __init__(self) -> None:
        """Raises PermissionMissing, KernelError."""
        self.lost = 0
        if why := _elsewhere():
            raise KernelError(
                f"expected to listen to the kernel's audit stream, got: {why}", operation="bind", target="NETLINK_AUDIT"
            )
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_AUDIT)
        except OSError as error:
            raise _refused(error) from error
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _WAITING)
            self._socket.bind((0, _READ_LOG))
        except OSError as error:
            self._socket.close()
            raise _refused(error) from error

    def fileno(self) -> int:
        return self._socket.fileno()

    def take(self) -> list[AuditDenial]:
        """Denials that wait now, oldest first. Never blocks."""
        found: list[AuditDenial] = []
        while True:
            try:
                data, sender = self._socket.recvfrom(_LONGEST)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise _refused(error) from error
                self.lost += 1
                continue
            # Anybody on this machine may send to the socket; only the kernel has port 0.
            if sender[0] or len(data) < _HEADER.size or _HEADER.unpack_from(data)[1] != _AVC:
                continue
            denial = parse(data[_HEADER.size :].rstrip(b"\0\n").decode("utf-8", "surrogateescape"))
            if denial is not None:
                found.append(denial)

    def close(self) -> None:
        self._socket.close()


def _elsewhere() -> str:
    """Why nothing would be heard here: records go to the network namespace of the machine alone (kernel/audit.c,
    kauditd_send_multicast_skb), and a listener in another one waits for good. Who cannot see process 1 tries."""
    try:
        if os.readlink("/proc/self/ns/net") == os.readlink("/proc/1/ns/net"):
            return ""
    except OSError:
        return ""
    return "a network namespace that is not the machine's, where it says nothing; run in the machine's (PrivateNetwork=no, network_mode: host, hostNetwork)"


def _refused(error: OSError) -> KernelError:
    kind = PermissionMissing if error.errno == errno.EPERM else KernelError
    return kind(
        f"expected to listen to the kernel's audit stream, got: {error.strerror}; run as root or with CAP_AUDIT_READ, on a kernel with "
        "CONFIG_AUDIT",
        operation="bind",
        target="NETLINK_AUDIT",
        errno=error.errno or 0,
    )
