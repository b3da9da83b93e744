# SPDX-License-Identifier: Apache-2.0
"""Every enforcement backend there is, on one screen. To add one: a file, a name and a line here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, assert_never

from enforcers.cgroup import CgroupEnforcer
from enforcers.contract import Enforcer
from enforcers.signal import SignalEnforcer

Name = Literal["cgroup", "signal"]
DEFAULTS: tuple[Name, ...] = ("cgroup", "signal")


def make(name: Name, pin_dir: str, *, closed: bool = True, rings: bool = True) -> Enforcer:
    """The backend called `name`, over the pins in `pin_dir`. `closed`: what cannot be judged is stopped;
    `rings`: io_uring may be used."""
    match name:
        case "cgroup":
            return CgroupEnforcer(pin_dir)
        case "signal":
            return SignalEnforcer(pin_dir, closed=closed, rings=rings)
        case _:
            assert_never(name)


def usable(
    names: Iterable[Name], pin_dir: str, *, closed: bool = True, rings: bool = True
) -> tuple[list[Enforcer], list[str]]:
    """Backends that this node can carry, and a sentence for each that it cannot."""
    made = [(name, make(name, pin_dir, closed=closed, rings=rings)) for name in names]
    said = [(name, enforcer, enforcer.unusable()) for name, enforcer in made]
    return [enforcer for _, enforcer, why in said if not why], [f"{name}: {why}" for name, _, why in said if why]
