# SPDX-License-Identifier: Apache-2.0
"""A behaviour: everything of an event that a policy can decide on, and nothing else (ARCHITECTURE.md)."""

from __future__ import annotations

import msgspec

from schemas.operations import Access, Backend, Class, Operation, class_of

NO_OWNER = 0xFFFFFFFF


class Behaviour(msgspec.Struct, frozen=True, array_like=True, kw_only=True, gc=False):
    """One decoded behaviour. Paths are absolute in the acting task's root; "" when there is none.

    exec: `resource` is what was executed, `resource2` the interpreter when that is a script (the new image then, otherwise
    `resource` is), `executable` the image that called exec, `parent` the image that forked the task.
    connect/send: `address`/`port` are remote; bind/listen: local; accept: remote address, local port.
    `result`: 0 or -errno. `syscall`: number on the node's architecture, `syscall_name` its name without `sys_`.
    `script`: the `#!` file that the acting `executable` runs (exec: that the caller ran); a source of it is a source of what it does.
    `detail`: what has no field of its own, as text (capability name, DNS name, filesystem type; of a counted connect or send the name that a
    DNS answer had given its address, which no policy decides on).
    """

    id: int = 0
    operation: Operation = Operation.OPEN
    access: Access = Access(0)
    result: int = 0
    enforcer: Backend = Backend.OBSERVER
    cgroup: int = 0
    pid_ns: int = 0
    mnt_ns: int = 0
    uid: int = 0
    owner: int = NO_OWNER
    tty: bool = False
    executable: str = ""
    parent: str = ""
    resource: str = ""
    resource2: str = ""
    syscall: int = 0
    syscall_name: str = ""
    flags: int = 0
    args: tuple[int, int] = (0, 0)
    family: int = 0
    socket_type: int = 0
    protocol: int = 0
    address: str = ""
    port: int = 0
    detail: str = ""
    script: str = ""

    @property
    def cls(self) -> Class:
        """The class whose posture and visibility apply."""
        return class_of(self.operation)

    @property
    def passed(self) -> bool:
        """Whether the operation went through."""
        return self.result == 0
