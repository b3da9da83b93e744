# SPDX-License-Identifier: Apache-2.0
"""The programs that hear name servers, on the root of cgroup v2: attached by the loader, off when their pins go.

On the root and not on each container: a container's first question comes before anybody knows that it is one. They let every packet
pass. Both or none: an answer is told only where its question was heard. Neighbours: `catalogue` (LISTENERS), `loader_child`
(who attaches), `features` (who asks whether it can be had), kernel/programs/answers.c.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from kernel import bpf
from kernel.catalogue import LISTENERS
from kernel.features import ROOT_CGROUP, cgroup2_mount
from schemas.errors import KernelError

REFUSED: Final = "dns_answers"
"""Under this word the loader says why they are not attached."""


def listen(programs: Mapping[str, int], refused: Mapping[str, str], pin_dir: str) -> str:
    """Attach and pin LISTENERS, of which `programs` has the descriptors, or `refused` why the kernel did not take one. Why that cannot be
    had; "" when it is done."""
    if missing := [listener.name for listener in LISTENERS if listener.name not in programs]:
        return f"this kernel refuses `{missing[0]}`: {refused.get(missing[0], 'not loaded')}"
    where = cgroup2_mount()
    if where is None:
        return "cgroup v2 is not mounted"
    if os.stat(where).st_ino != ROOT_CGROUP:
        return f"`{where}` is not the root of cgroup v2; give the sensor the host's cgroup namespace and tree"
    pinned: list[Path] = []
    try:
        with ExitStack() as stack:
            root = os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, root)
            for listener in LISTENERS:
                link = bpf.cgroup_link(programs[listener.name], root, listener.attach_type, listener.name)
                stack.callback(os.close, link)
                place = Path(pin_dir, "links", listener.name)
                bpf.pin(link, str(place))
                pinned.append(place)
    except (KernelError, OSError) as error:
        for place in pinned:
            place.unlink(missing_ok=True)
        return str(error)
    return ""


def heard(pin_dir: str) -> bool:
    """Whether they are attached by the pins in `pin_dir`."""
    return all(Path(pin_dir, "links", listener.name).exists() for listener in LISTENERS)
