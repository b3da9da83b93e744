# SPDX-License-Identifier: Apache-2.0
"""Makes the enforcement backends of `schemas.backends`. To add one: a row there, a file here and a case in `make`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, assert_never, cast

from enforcers.apparmor import AppArmorEnforcer
from enforcers.bpf_lsm import LsmEnforcer
from enforcers.cgroup import CgroupEnforcer
from enforcers.contract import ProfileBackend, TableBackend
from enforcers.signal import SignalEnforcer
from schemas.backends import BACKENDS, BY_NAME, Implemented
from schemas.operations import Backend


class Usable(NamedTuple):
    """The backends that this node can use, by contract, and for each other that was asked for the reason."""

    tables: tuple[TableBackend, ...] = ()
    profiles: tuple[ProfileBackend, ...] = ()
    problems: tuple[tuple[Backend, str], ...] = ()


def make(
    name: Implemented, pin_dir: str, *, closed: bool = True, rings: bool = True, names: Sequence[str] = ()
) -> TableBackend | ProfileBackend:
    """The backend called `name`, over the pins in `pin_dir`. `closed`: what cannot be judged is stopped;
    `rings`: io_uring may be used. `names`: profiles to have loaded."""
    match name:
        case "apparmor":
            return AppArmorEnforcer(names)
        case "bpf-lsm":
            return LsmEnforcer(pin_dir, closed=closed)
        case "cgroup":
            return CgroupEnforcer(pin_dir)
        case "signal":
            return SignalEnforcer(pin_dir, closed=closed, rings=rings)
        case _:
            assert_never(name)


def usable(
    names: Iterable[Implemented], pin_dir: str, *, closed: bool = True, rings: bool = True, loaded: Sequence[str] = ()
) -> Usable:
    """Makes each of `names` and asks it whether this node can use it. `loaded`: profiles to have loaded."""
    tables: list[TableBackend] = []
    profiles: list[ProfileBackend] = []
    problems: list[tuple[Backend, str]] = []
    for name in dict.fromkeys(names):
        made = make(name, pin_dir, closed=closed, rings=rings, names=loaded)
        if why := made.unusable():
            problems.append((BY_NAME[name], why))
        elif BACKENDS[BY_NAME[name]].mechanism == "tables":
            tables.append(cast(TableBackend, made))
        else:
            profiles.append(cast(ProfileBackend, made))
    return Usable(tuple(tables), tuple(profiles), tuple(problems))
