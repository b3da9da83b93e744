# SPDX-License-Identifier: Apache-2.0
"""Every error Hauberk raises on purpose, in one tree.

::

    HauberkError
    ├── Temporary                 the same call may succeed later; carries `retry_after`
    │   ├── Unavailable           the far side did not answer (broker, socket, server)
    │   │   └── Unserved          it answered, and does not serve this one thing (a topic) now; it may serve others
    │   │       └── NotGranted    it refuses this to our account until somebody grants it
    │   ├── Backpressure          the far side is full; take less, later
    │   └── DiskFull              no space where the bus, a spool or a store writes
    └── Permanent                 the same call fails again until somebody changes something
        ├── SettingsError         an unknown key, a wrong type, a value out of range
        ├── PolicyError           policy text refused; carries its diagnostics
        ├── DecodeError           bytes that are not what their header or topic says
        ├── KernelError           bpf(2), BTF, BCC or tracefs refused
        │   └── PermissionMissing not root, or a capability is missing
        ├── MissingDependency     a package, file or kernel feature is absent
        ├── Refused               the far side will never take this record
        └── Incompatible          a version, schema or layout newer or older than this build knows

Message form: what was expected, what came, where, what to do; one line. `reason` comes from a closed enum, because it
is the only part of an error that becomes a metric label. Caught at three places only: the pump, delivery, the command line.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class Reason(StrEnum):
    """Why something failed: the closed set used as metric label and dead-letter header."""

    UNAVAILABLE = "unavailable"
    BACKPRESSURE = "backpressure"
    SETTINGS = "settings"
    POLICY = "policy"
    DECODE = "decode"
    KERNEL = "kernel"
    PERMISSION = "permission"
    MISSING_DEPENDENCY = "missing_dependency"
    REFUSED = "refused"
    INCOMPATIBLE = "incompatible"
    DISK_FULL = "disk_full"
    INTERNAL = "internal"


class HauberkError(Exception):
    """Root of the tree. `str(error)` is one line a person can act on."""

    reason: ClassVar[Reason] = Reason.INTERNAL


class Temporary(HauberkError):
    """The same call may succeed later. `retry_after`: seconds, None when the far side did not say."""

    reason = Reason.UNAVAILABLE

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Unavailable(Temporary):
    """The far side did not answer."""


class Unserved(Unavailable):
    """The far side answered: what was asked for, such as a topic that is not there, cannot be had now. Others may go on."""


class NotGranted(Unserved):
    """The far side refuses this to our account; the message names the grant. Nothing of what was asked is wrong, so it waits."""

    reason = Reason.PERMISSION


class Backpressure(Temporary):
    """The far side is full."""

    reason = Reason.BACKPRESSURE


class DiskFull(Temporary):
    """No space left where the embedded bus, a spool or a store writes."""

    reason = Reason.DISK_FULL


class Permanent(HauberkError):
    """The same call fails again until somebody changes something."""

    reason = Reason.REFUSED


class SettingsError(Permanent):
    """A settings key, type or value that is not known; the message holds the path of the key."""

    reason = Reason.SETTINGS


class PolicyError(Permanent):
    """Policy text refused. `diagnostics`: what `policy` found, ready to be rendered, all at once."""

    reason = Reason.POLICY

    def __init__(self, message: str, diagnostics: tuple[object, ...] = ()) -> None:
        super().__init__(message)
        self.diagnostics = diagnostics


class DecodeError(Permanent):
    """Bytes that are not what their topic, header or file name says."""

    reason = Reason.DECODE


class KernelError(Permanent):
    """The kernel refused. `operation` and `target` name the call and its object; `errno` is 0 when there was none."""

    reason = Reason.KERNEL

    def __init__(self, message: str, *, operation: str = "", target: str = "", errno: int = 0) -> None:
        super().__init__(message)
        self.operation = operation
        self.target = target
        self.errno = errno


class PermissionMissing(KernelError):
    """The process lacks a capability or is not root."""

    reason = Reason.PERMISSION


class MissingDependency(Permanent):
    """A package, file or kernel feature is absent; the message says how to get it."""

    reason = Reason.MISSING_DEPENDENCY


class Refused(Permanent):
    """The far side will never take this record."""


class Incompatible(Permanent):
    """Something was written by a version of the schema that this build does not know."""

    reason = Reason.INCOMPATIBLE
