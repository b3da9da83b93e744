# SPDX-License-Identifier: Apache-2.0
"""The `cgroup` backend: network rules by cgroup programs on the container's own cgroup. A denied call sees EPERM.

Works on any kernel with cgroup v2. The programs (`guard_*`) were loaded and pinned with the sensor; here each is attached to
one cgroup and that is pinned too, so it holds on while the agent is away and ends with the cgroup. It must never
touch the root cgroup. Neighbours: `networks` (the entries), `kernel.attach` (the programs on cgroups), `apply` (who calls).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from enforcers import networks
from enforcers.contract import Ident, TablePart
from kernel import attach
from kernel.catalogue import GUARDS
from schemas.enforcement import Refusal, ScopePlan
from schemas.errors import KernelError
from schemas.kernel import NET_KEY, Direction, ScopeFlag
from schemas.operations import Backend, Class
from schemas.refusals import RefusalCode
from schemas.verdict import DEFAULT_POSTURE, Action, RuleRef

ROOT_CGROUP: Final = 1


def cgroup2_mount() -> str:
    """Where cgroup v2 is mounted, "" when it is not."""
    with open("/proc/self/mounts", encoding="utf-8") as file:
        return next((line.split(" ")[1] for line in file if line.split(" ")[2] == "cgroup2"), "")


class CgroupEnforcer:
    """See `contract.TableBackend`. `pin_dir`: where the sensor's programs are pinned."""

    backend = Backend.CGROUP
    maps: Final = {"net_rules": NET_KEY.offsets["table"]}
    enforces = ScopeFlag.ENFORCE_CGROUP

    def __init__(self, pin_dir: str) -> None:
        self._pin_dir = pin_dir
        self._programs = Path(pin_dir, "programs")
        self._mount = cgroup2_mount()

    def unusable(self) -> str:
        if not self._mount:
            return "cgroup v2 is not mounted; mount -t cgroup2 none /sys/fs/cgroup/unified"
        missing = [guard.name for guard in GUARDS if not (self._programs / guard.name).exists()]
        return (
            f"expected `{missing[0]}` under {self._programs}, it is not pinned; load the sensor first"
            if missing
            else ""
        )

    def encode(self, scope: ScopePlan, ident: Ident) -> TablePart:
        entries, refused, holes = networks.encode(scope.network, ident, self.backend, scope.uid)
        flags = ScopeFlag.ENFORCE_CGROUP if entries else ScopeFlag(0)
        if (Class.NETWORK, Action.BLOCK) in scope.posture:
            if Direction.CREATE in holes:
                why = "an Allow rule cannot be carried out, and without it the posture would deny too much"
                ref = RuleRef(DEFAULT_POSTURE)
                refused = (
                    *refused,
                    Refusal(ref=ref, uid=scope.uid, backend=self.backend, reason=why, code=RefusalCode.POSTURE),
                )
            else:
                flags |= ScopeFlag.ENFORCE_CGROUP | ScopeFlag.WHITELIST_NETWORK
        carried = {rule.ref for rule in scope.network} - {one.ref for one in refused}
        return TablePart(entries={"net_rules": entries}, flags=flags, rules=len(carried), refused=refused)

    def hold(self, cgroup: int, path: str) -> None:
        if cgroup == ROOT_CGROUP or path in ("", "/"):
            raise KernelError(
                "expected a cgroup below the root, got the root; it is never enforced", operation="attach"
            )
        wanted = set(attach.missing(self._pin_dir, cgroup))
        for guard in GUARDS:
            if guard.name in wanted:
                attach.hold(self._pin_dir, guard.name, guard.attach_type, self._mount + path, cgroup)

    def release(self, cgroup: int) -> None:
        attach.release(self._pin_dir, cgroup)

    def held(self) -> set[int]:
        return attach.held(self._pin_dir)
