# SPDX-License-Identifier: Apache-2.0
"""The `apparmor` backend: profiles of AppArmor whose rules are replaced in place. A denied call sees EACCES, before it happens.

A workload is started under a profile by its runtime (docker `--security-opt apparmor=hauberk-web`, Kubernetes and
systemd have a field for it): a task cannot be put under another one from outside. Profiles whose names begin
with `hauberk-` are this backend's; those of `enforcement.profiles` are loaded at start without rules, for runtimes to name. What is loaded is read from the kernel alone: the
child profile `NAME//rules-FINGERPRINT`, loaded with its parent, says which text it was. Neighbours: `apparmor_profile`
(the text), `profiles` (what is replaced when), `contract.ProfileBackend`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from enforcers import apparmor_profile
from enforcers.cgroup import cgroup2_mount
from enforcers.contract import ProfilePart
from enforcers.profiles import fingerprint
from kernel.features import has_capability
from schemas.enforcement import ScopePlan
from schemas.errors import KernelError
from schemas.operations import Backend

PREFIX: Final = "hauberk-"
HOST: Final = "hauberk-host"
"""Profiles of this name, or whose names go on with a `-`, are for services of the host and privileged containers: no `BASELINE`."""
SECURITYFS: Final = "/sys/kernel/security"
PARSER: Final = "apparmor_parser"
ABI: Final = "/etc/apparmor.d/abi/3.0"
_NAME: Final = re.compile(r"hauberk-[a-zA-Z0-9_.-]{1,200}")
_MARK: Final = "rules-"
_MAC_ADMIN: Final = 33  # include/uapi/linux/capability.h
_EMPTY: Final = "empty"
"""The fingerprint of a profile that allows everything; not one of `loaded`."""
_PARSING: Final = 60.0
"""Seconds that the parser may take: a profile of some hundred rules takes a fraction of one."""
BASELINE: Final = (
    "deny /proc/* w,",
    "deny /proc/{[^1-9],[^1-9][^0-9],[^1-9s][^0-9y][^0-9s],[^1-9][^0-9][^0-9][^0-9/]*}/** w,",
    "deny /proc/sys/[^k]** w,",
    "deny /proc/sys/kernel/{?,??,[^s][^h][^m]**} w,",
    "deny /proc/sysrq-trigger rwklx,",
    "deny /proc/kcore rwklx,",
    "deny /sys/[^f]*/** wklx,",
    "deny /sys/f[^s]*/** wklx,",
    "deny /sys/fs/[^c]*/** wklx,",
    "deny /sys/fs/c[^g]*/** wklx,",
    "deny /sys/fs/cg[^r]*/** wklx,",
    "deny /sys/firmware/** rwklx,",
    "deny /sys/devices/virtual/powercap/** rwklx,",
    "deny /sys/kernel/security/** rwklx,",
    "deny mount,",
)
"""What the profile that a runtime gives to every container denies (moby, profiles/apparmor/template.go): one of Hauberk's takes
its place and is not to allow more."""


class AppArmorEnforcer:
    """See `contract.ProfileBackend`. `names`: profiles to have loaded from the start."""

    backend = Backend.APPARMOR

    def __init__(self, names: Sequence[str] = (), *, securityfs: str = SECURITYFS, parser: str = PARSER) -> None:
        self._names = tuple(names)
        self._securityfs = securityfs
        self._parser = parser
        self._mount = cgroup2_mount()
        self.under: dict[str, set[str]] = {}
        """Profile -> uids of the scopes that were last seen under it."""

    def unusable(self) -> str:
        """Why not; otherwise the profiles of `names` that are missing are loaded."""
        if why := _why_not(self._securityfs, self._parser):
            return why
        try:
            there = self._marks()
            for name in self._names:
                if not _NAME.fullmatch(name):
                    return f"expected the name of a profile to be `hauberk-` and letters, digits, `_`, `.` or `-`, got `{name}`"
                if name not in there:
                    self._replace(name, "")
        except KernelError as error:
            return str(error)
        return ""

    def render(self, scope: ScopePlan) -> ProfilePart:
        return apparmor_profile.render(scope)

    def profile(self, scope: ScopePlan) -> str | None:
        """The profile of every process in the scope's cgroup and below; None when there is none. KernelError when they run under several and one is ours: what is
        in force then stays."""
        found: dict[str, int] = {}
        for pid in _members(Path(f"{self._mount}{scope.cgroup_path}")):
            name = _confined(pid)
            if name is not None:
                found.setdefault(name, pid)
        if not found:
            return None
        ours = [name for name in found if name.startswith(PREFIX)]
        if not ours:
            return ""
        if len(found) > 1:
            others = ", ".join(f"`{name}` (pid {pid})" for name, pid in sorted(found.items()))
            raise KernelError(
                f"expected all processes to run under one profile, got {others}; start the workload again under one of them",
                operation="profile",
                target=scope.cgroup_path,
            )
        self.under.setdefault(ours[0], set()).add(scope.uid)
        return ours[0]

    def load(self, profile: str, text: str) -> None:
        self._replace(profile, text)

    def release(self, profile: str) -> None:
        if profile in self._marks():
            self._replace(profile, "")

    def loaded(self) -> Mapping[str, str]:
        # Two marks: a replacement that was cut short. It is taken for neither, and made again.
        marks = self._marks().items()
        return {name: "+".join(sorted(found)) for name, found in marks if found and found != {_EMPTY}}

    def _marks(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        try:
            text = Path(self._securityfs, "apparmor", "profiles").read_text("utf-8", "replace")
        except OSError as error:
            raise _failed("read the loaded profiles", error.strerror or str(error), error.errno or 0) from error
        for line in text.split("\n"):
            name, _, mark = line.rpartition(" ")[0].partition("//")
            # Not enforced: it holds nothing, whatever its text is.
            if name.startswith(PREFIX) and line.endswith("(enforce)"):
                found.setdefault(name, set())
                if mark.startswith(_MARK):
                    found[name].add(mark.removeprefix(_MARK))
        return found

    def _replace(self, name: str, text: str) -> None:
        mark = fingerprint(text) if text else _EMPTY
        try:
            done = subprocess.run(
                [self._parser, "--replace", "--skip-cache"], input=source(name, text, mark), capture_output=True,
                encoding="utf-8", errors="surrogateescape", timeout=_PARSING, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise _failed(f"load `{name}`", str(error)) from error
        if done.returncode:
            raise _failed(f"load `{name}`", " / ".join(done.stderr.strip().splitlines()[-3:]), done.returncode)
        # The kernel keeps children that the new text does not have.
        for old in self._marks().get(name, set()) - {mark}:
            try:
                Path(self._securityfs, "apparmor", ".remove").write_text(f"{name}//{_MARK}{old}")
            except OSError as error:
                raise _failed(f"remove the mark of the old rules of `{name}`", error.strerror or str(error)) from error


def source(name: str, text: str, mark: str) -> str:
    """The whole profile as the parser takes it. Pure."""
    body = text or "\n".join((*apparmor_profile.OPEN, "file,"))
    baseline = () if name == HOST or name.startswith(f"{HOST}-") else BASELINE
    # Not splitlines: a path may hold what that takes for the end of a line (U+2028).
    lines = "\n".join(f"  {line}" for line in (*body.split("\n"), *baseline))
    flags = "flags=(attach_disconnected,mediate_deleted)"
    return f"abi <abi/3.0>,\nprofile {name} {flags} {{\n{lines}\n  profile {_MARK}{mark} {{\n  }}\n}}\n"


def _why_not(securityfs: str, parser: str) -> str:
    try:
        modules = Path(securityfs, "lsm").read_text().strip().split(",")
    except OSError as error:
        return f"expected the list of security modules at `{securityfs}/lsm`, got: {error.strerror}; mount securityfs there, on a kernel with CONFIG_SECURITY"
    if "apparmor" not in modules:
        held = " SELinux is on: its policy is the distribution's, and this version writes no module for it." if "selinux" in modules else ""  # fmt: skip
        return f"AppArmor is not among this kernel's security modules ({','.join(modules)}); boot with `lsm=...,apparmor`.{held}"
    if not (os.access(f"{securityfs}/apparmor/.replace", os.W_OK) and has_capability(_MAC_ADMIN)):
        return f"`{securityfs}/apparmor/.replace` cannot be written; run as root with CAP_MAC_ADMIN"
    if shutil.which(parser) is None:
        return f"no `{parser}` here; install the package `apparmor`"
    if not os.path.exists(ABI):
        return f"`{ABI}` is missing: this `{parser}` is older than 3.0 and cannot say what the rules are written for; install apparmor 3.0 or newer"
    return ""


def _members(cgroup: Path) -> list[int]:
    pids: list[int] = []
    for directory, _, _ in os.walk(cgroup):
        try:
            pids += [int(line) for line in Path(directory, "cgroup.procs").read_text().split()]
        except OSError:
            continue
    return pids


def _confined(pid: int) -> str | None:
    """The profile of a process, without mode and child; the word "unconfined" for none; None when the process is gone."""
    for file in ("attr/apparmor/current", "attr/current"):
        try:
            text = Path(f"/proc/{pid}/{file}").read_text("utf-8", "replace")
        except FileNotFoundError:
            continue
        except OSError:
            # EINVAL from attr/current is another module's; ESRCH is a process that ended.
            continue
        return text.rstrip("\n\0").rpartition(" (")[0].partition("//")[0] or text.strip("\n\0")
    return None


def _failed(what: str, why: str, errno: int = 0) -> KernelError:
    return KernelError(
        f"expected to {what}, got: {why}; see dmesg for AppArmor's own words",
        operation="apparmor",
        target=PARSER,
        errno=errno,
    )
