# SPDX-License-Identifier: Apache-2.0
"""Hot. The five presets as questions to a behaviour (kubearmor.md 1.8). Pure; each is one function.

A behaviour does not carry its own pid: "another process" is everything under `/proc/<number>/` unless the sensor says OWN.
Neighbours: `policy/judge/judge.py` asks, `docs/semantics.md` section 8 says what cannot be known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from schemas.behaviour import Behaviour
from schemas.operations import Access, Operation

_MEMORY: Final = ("memfd:", "/memfd:", "/dev/shm/", "/run/shm/")
RUNTIMES: Final = frozenset({"runc", "crun", "youki", "kata-agent", "runsc"})
"""Executables that start containers, and commands in them."""
PROT_EXEC: Final = 4
_ATTACH: Final = (16, 0x4206)
"""PTRACE_ATTACH, PTRACE_SEIZE (include/uapi/linux/ptrace.h)."""
MAP_ANONYMOUS: Final = 0x20


def fileless_exec(behaviour: Behaviour) -> bool:
    """The executed image lies in memory: a memfd, /dev/shm, /run/shm."""
    return behaviour.operation is Operation.EXEC and behaviour.resource.startswith(_MEMORY)


def anonymous_map_exec(behaviour: Behaviour) -> bool:
    """Memory without a file is made executable: `args` are mmap's protection and flags."""
    if behaviour.operation is not Operation.MMAP or not behaviour.args[0] & PROT_EXEC:
        return False
    return bool(behaviour.args[1] & MAP_ANONYMOUS) or not behaviour.resource


def protect_env(behaviour: Behaviour) -> bool:
    """The environment of another process is opened, or that process attached to, whose memory has it."""
    return (_other_process(behaviour) and behaviour.resource.endswith("/environ")) or _attaches(behaviour)


def protect_proc(behaviour: Behaviour) -> bool:
    """Anything below /proc of another process is opened, or that process attached to."""
    return _other_process(behaviour) or _attaches(behaviour)


def exec_session(behaviour: Behaviour) -> bool:
    """A command comes into the container from outside with a terminal, as `kubectl exec -it` does.

    Told by the runtime's image before the exec, or by `setns` in `detail`. The first process of a container that was itself
    started with a terminal looks the same.
    """
    if behaviour.operation is not Operation.EXEC or not behaviour.tty:
        return False
    name = behaviour.executable.rpartition("/")[2]
    # runc runs from a sealed copy of itself: `memfd:runc_cloned:/proc/self/exe`.
    return behaviour.detail == "setns" or name in RUNTIMES or "memfd:runc_cloned" in behaviour.executable


def _attaches(behaviour: Behaviour) -> bool:
    return behaviour.operation is Operation.PTRACE and behaviour.args[0] in _ATTACH


def _other_process(behaviour: Behaviour) -> bool:
    path = behaviour.resource
    if not path.startswith("/proc/") or behaviour.operation is not Operation.OPEN or behaviour.access & Access.OWN:
        return False
    end = path.find("/", 6)
    return end > 6 and path[6:end].isdecimal()


PRESETS: Final[dict[str, Callable[[Behaviour], bool]]] = {
    "filelessExec": fileless_exec,
    "anonymousMapExec": anonymous_map_exec,
    "protectEnv": protect_env,
    "exec": exec_session,
    "protectProc": protect_proc,
}
"""Every preset name there is."""
