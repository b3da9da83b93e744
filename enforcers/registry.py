# SPDX-License-Identifier: Apache-2.0
"""Makes the enforcement backends of `schemas.backends`. To add one: a row there, a file here and a case in `make`."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import NamedTuple, assert_never, cast

from enforcers.apparmor import AppArmorEnforcer
from enforcers.bpf_lsm import LsmEnforcer
from enforcers.cgroup import CgroupEnforcer
from enforcers.contract import ProfileBackend, TableBackend
from enforcers.signal import SignalEnforcer
from schemas.backends import BACKENDS, BY_NAME, MODULES, Implemented, Module
from schemas.operations import Backend

log = logging.getLogger(__name__)


class Usable(NamedTuple):
    """The backends that this node can use, by contract, and for each other that was asked for the reason."""

    tables: tuple[TableBackend, ...] = ()
    profiles: tuple[ProfileBackend, ...] = ()
    problems: tuple[tuple[Backend, str], ...] = ()
    passed: tuple[tuple[Backend, str], ...] = ()
    """Those of `enforcement.lsm` that are not used because another one is."""


def make(
    name: Implemented,
    pin_dir: str,
    *,
    closed: bool = True,
    rings: bool = True,
    mounts: bool = True,
    shadow: bool = False,
    names: Sequence[str] = (),
) -> TableBackend | ProfileBackend:
    """The backend called `name`, over the pins in `pin_dir`. `closed`: what cannot be judged is stopped;
    `rings`: io_uring may be used; `mounts`: so may mounts. `shadow`: LSM hooks deny nothing. `names`: profiles to have loaded."""
    match name:
        case "apparmor":
            return AppArmorEnforcer(names)
        case "bpf-lsm":
            return LsmEnforcer(pin_dir, closed=closed, mounts=mounts, shadow=shadow)
        case "cgroup":
            return CgroupEnforcer(pin_dir)
        case "signal":
            return SignalEnforcer(pin_dir, closed=closed, rings=rings)
        case _:
            assert_never(name)


def usable(
    names: Iterable[Implemented],
    pin_dir: str,
    *,
    closed: bool = True,
    rings: bool = True,
    mounts: bool = True,
    shadow: bool = False,
    loaded: Sequence[str] = (),
    lsm: Sequence[Module] = (),
) -> Usable:
    """Makes each of `names` and asks it whether this node can use it. `loaded`: profiles to have loaded. `lsm`: of these the first
    that can be used goes before them."""
    tables: list[TableBackend] = []
    profiles: list[ProfileBackend] = []
    problems: list[tuple[Backend, str]] = []
    passed: list[tuple[Backend, str]] = []
    preferred = [name for module in dict.fromkeys(lsm) if (name := MODULES[module]) is not None]
    if "selinux" in lsm:
        log.warning("enforcement.lsm: `selinux` is left out: this version writes no module of policy for it")
    chosen = ""
    for name in dict.fromkeys((*preferred, *names)):
        if name in preferred and chosen:
            passed.append((BY_NAME[name], f"not used: `{chosen}` goes before it in `enforcement.lsm`"))
            continue
        made = make(name, pin_dir, closed=closed, rings=rings, mounts=mounts, shadow=shadow, names=loaded)
        if why := made.unusable():
            (passed if name in preferred else problems).append((BY_NAME[name], why))
            continue
        if name in preferred:
            chosen = name
            log.info("enforcement.lsm: `%s` is used, of %s", name, ", ".join(lsm))
        if BACKENDS[BY_NAME[name]].mechanism == "tables":
            tables.append(cast(TableBackend, made))
        else:
            profiles.append(cast(ProfileBackend, made))
    if not chosen:
        problems, passed = [*passed, *problems], []
    return Usable(tuple(tables), tuple(profiles), tuple(problems), tuple(passed))
