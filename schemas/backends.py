# SPDX-License-Identifier: Apache-2.0
"""Every enforcement backend, as one table: its name, its contract, what alerts call it, and whether this version has it.

Planner, node, lint, settings, metrics and alerts read this table; nothing else lists backends. To add one: a row here, a file
in `enforcers/` and a line in `enforcers/registry.py`. Neighbours: `operations.Backend` (the numbers that records carry).
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, get_args

from schemas.operations import Backend

Mechanism = Literal["tables", "profiles"]
"""`tables`: writes rules to BPF maps. `profiles`: writes profiles for a security module. See `enforcers.contract`."""
Implemented = Literal["bpf-lsm", "cgroup", "signal", "apparmor"]
"""Names of the backends that this version has; the type of `enforcement.backends`."""


class About(NamedTuple):
    """`name`: in settings, tables and metrics. `alert`: the `Enforcer` field of an alert of what it stopped."""

    name: str
    mechanism: Mechanism
    alert: str


BACKENDS: Final = {
    Backend.BPF_LSM: About("bpf-lsm", "tables", "BPFLSM"),
    Backend.APPARMOR: About("apparmor", "profiles", "AppArmor"),
    Backend.CGROUP: About("cgroup", "tables", "Hauberk cgroup"),
    Backend.SIGNAL: About("signal", "tables", "Hauberk signal"),
}
BY_NAME: Final = {about.name: backend for backend, about in BACKENDS.items()}
_ASKED_FOR: Final = ("bpf-lsm", "apparmor")
DEFAULTS: Final[tuple[Implemented, ...]] = tuple(name for name in get_args(Implemented) if name not in _ASKED_FOR)
"""What a node uses unless its settings say otherwise. AppArmor holds nothing of a workload that was not started under a profile of
Hauberk's, so it is asked for. So are the LSM hooks, which take the rules that they carry from `signal`."""
Module = Literal["bpf", "apparmor", "selinux"]
"""Security modules of the kernel as its own list names them; the type of `enforcement.lsm`."""
MODULES: Final[dict[Module, Implemented | None]] = {"bpf": "bpf-lsm", "apparmor": "apparmor", "selinux": None}
"""The backend that works with each. SELinux: its policy is the distribution's, and this version writes no module for it."""
IMPLEMENTED: Final = tuple(BY_NAME[name] for name in DEFAULTS)
"""What the lint and `explain` count on."""
PLANNED: Final = (Backend.BPF_LSM, *IMPLEMENTED)
"""Whose rules are in every plan: a planner does not know what its nodes use. What a node leaves of them is in its receipt."""
FLOOR: Final = (Backend.CGROUP, Backend.SIGNAL)
"""Those that every supported kernel offers. What is said of a policy without looking at a node counts on these alone."""


def backend_name(backend: Backend) -> str:
    """`cgroup`, `signal`, ...; `observer` for nobody."""
    return BACKENDS[backend].name if backend in BACKENDS else "observer"
