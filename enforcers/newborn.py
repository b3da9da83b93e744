# SPDX-License-Identifier: Apache-2.0
"""What of a container's rules holds while its runtime sets it up from inside its cgroup, before its first program.

A posture on files, rules on capabilities and presets would take from the runtime what it needs for that: it opens its own files,
mounts and changes users. They hold once the first program runs. Everything else does from the beginning, so a rule that blocks a file
which the setup opens (`/etc/passwd`, for the user) keeps the container from starting. Pure. Neighbours: `plan`, `pods`, `holding`.
"""

from __future__ import annotations

from typing import Final

import msgspec

from schemas.enforcement import ScopePlan
from schemas.operations import Class
from schemas.verdict import DEFAULT_POSTURE

_SETUP: Final = frozenset({Class.FILE, Class.CAPABILITIES})
_NEEDED: Final = frozenset({"capability", "preset"})


def while_starting(template: ScopePlan) -> ScopePlan:
    """`template` without what the setup needs."""
    return msgspec.structs.replace(
        template,
        paths=tuple(
            rule for rule in template.paths
            if rule.match not in _NEEDED and not (rule.ref.policy == DEFAULT_POSTURE and rule.cls in _SETUP)
        ),
        whitelist=tuple(one for one in template.whitelist if one not in _SETUP),
        posture=tuple((class_, action) for class_, action in template.posture if class_ not in _SETUP),
    )  # fmt: skip
