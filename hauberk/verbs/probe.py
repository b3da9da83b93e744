# SPDX-License-Identifier: Apache-2.0
"""`hauberk probe`: what this kernel offers, what was chosen, and why not the rest."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from hauberk.client import add_output

if TYPE_CHECKING:
    from kernel.features import Feature

NEEDED: Final = ("raw tracepoints", "ring buffer", "LRU hash", "BCC", "bpffs")
"""Without any one of these nothing can be watched live; BTF or kernel headers are the sixth."""


def parser() -> argparse.ArgumentParser:
    """The form, or just the answer."""
    made = argparse.ArgumentParser(prog="hauberk probe", description=__doc__, allow_abbrev=False)
    add_output(made)
    made.add_argument(
        "-q",
        "--quiet",
        action="store_true",
        help="print no table; exit 0 when this node can be watched, 1 when not, with the reasons on stderr",
    )
    return made


CAP_PERFMON: Final = 38
CAP_BPF: Final = 39
"""include/uapi/linux/capability.h."""


def _may_load() -> bool:
    """Whether this process may load programs without being root."""
    with open("/proc/self/status", encoding="ascii") as file:
        effective = next((int(line.split()[1], 16) for line in file if line.startswith("CapEff:")), 0)
    return all(effective >> bit & 1 for bit in (CAP_BPF, CAP_PERFMON))


def missing() -> list[str]:
    """What keeps this node from being watched, a sentence each; empty when nothing does. Asks nothing that needs long."""
    import os

    from kernel.features import by_name, survey

    if os.geteuid() != 0 and not _may_load():
        return ["expected root (or CAP_BPF and CAP_PERFMON), got uid " + str(os.geteuid()) + "; run with sudo"]
    features = by_name(survey())
    lacks = [
        f"{name}: {features[name].why}"
        for name in NEEDED
        if name in features and not features[name].available and name != "bpffs"
    ]
    if not features["BTF"].available and not features["kernel headers"].available:
        lacks.append(f"BTF: {features['BTF'].why}; kernel headers: {features['kernel headers'].why}")
    return lacks


def chosen() -> list[tuple[str, str]]:
    """(what, how and why) of the choices that follow from the features."""
    from kernel.features import by_name, survey

    features = by_name(survey())

    def has(name: str) -> bool:
        return name in features and features[name].available

    return [
        ("observe", "raw tracepoints" if has("raw tracepoints") else "nothing: " + features["raw tracepoints"].why),
        ("see system calls", _calls(features["fexit"])),
        ("read tasks", "typed loads" if has("typed loads") else "probe reads"),
        (
            "struct layouts",
            "BTF" if has("BTF") else "kernel headers" if has("kernel headers") else "none: install linux-headers",
        ),
        ("tell containers apart", "cgroup v2 id" if has("cgroup v2") else "pid and mount namespaces"),
        (
            "name addresses",
            "answers of name servers" if has("DNS answers") else "nothing: " + features["DNS answers"].why,
        ),
        (
            "block network",
            "cgroup programs"
            if has("cgroup socket programs")
            else "nothing: " + features["cgroup socket programs"].why,
        ),
        (
            "block exec and open",
            "signal, opt-in per policy" if has("bpf_send_signal") else "nothing: " + features["bpf_send_signal"].why,
        ),
        (
            "LSM",
            _modules(features["LSM programs"]),
        ),
    ]


def _calls(functions: Feature) -> str:
    """How system calls are seen, and how where the settings ask for more."""
    asked = 'raw tracepoint sys_exit; with `sensor.load.calls_by = "auto"`'
    return f"{asked} at functions of the kernel" if functions.available else f"{asked} too: {functions.why}"


def sizes() -> list[tuple[str, str]]:
    """(what, how much and why) of the memory that is taken here where no setting says otherwise."""
    from hauberk.memory import BudgetSettings
    from kernel.machine import machine
    from kernel.map_sizes import map_sizes

    here = machine()
    maps = map_sizes(here)
    mib = 1 << 20
    why = f"for {here.memory // mib:,} MiB and {here.processors} processor{'s' * (here.processors != 1)}"
    return [
        ("ring of events", f"{maps['occurrence_pages'] * 4096 / mib:g} MiB, {why}"),
        ("ring of definitions", f"{maps['definition_pages'] * 4096 / mib:g} MiB"),
        ("remembered in the kernel", f"{maps['behaviours']:,} behaviours, {maps['strings']:,} texts, {maps['processes']:,} processes, {maps['rules']:,} rules"),
        ("caches of a process", f"{BudgetSettings().bytes(here) / mib:g} MiB"),
    ]  # fmt: skip


def _modules(programs: Feature) -> str:
    """What `enforcement.lsm = ["bpf", "apparmor"]` would use here, and why not the one before it."""
    from enforcers.apparmor import AppArmorEnforcer

    why = AppArmorEnforcer().unusable()
    if programs.available:
        return 'bpf-lsm, where `enforcement.lsm` names "bpf"' + (
            f"; not apparmor: {why}" if why else "; apparmor likewise"
        )
    if not why:
        return f"apparmor, where `enforcement.lsm` names it; not bpf: {programs.why}"
    return f"nothing; not bpf: {programs.why}; not apparmor: {why}"


def main(argv: Sequence[str]) -> int:
    """Exit 0 when this node can be watched, 1 when not."""
    import sys

    from hauberk.output import paint, show
    from kernel.features import survey

    given = parser().parse_args(argv)
    lacks = missing()
    if given.quiet:
        for lack in lacks:
            print(lack, file=sys.stderr)
        return 1 if lacks else 0
    features = survey()
    rows = [(feature.name, "yes" if feature.available else "no", feature.why) for feature in features]
    choices, memory = chosen(), sizes()
    value = {"features": features, "chosen": dict(choices), "memory": dict(memory), "missing": lacks}
    print(show(value, ("FEATURE", "HERE", "WHY"), rows, given.output, names=[f"feature/{row[0]}" for row in rows],
               headings=not given.no_headers))  # fmt: skip
    if given.output in ("table", "wide"):
        print("\nChosen:")
        for what, how in choices:
            print(f"  {what:<22} {how}")
        print("\nMemory, where no setting says otherwise:")
        for what, how in memory:
            print(f"  {what:<24} {how}")
        if lacks:
            print("\n" + paint("This node cannot be watched:", "red"))
            print("\n".join(f"  {lack}" for lack in lacks))
            print("  `hauberk up --replay examples/recordings/host.hbrk` shows Hauberk from a recording")
        else:
            print("\nThis node can be watched.")
    return 1 if lacks else 0
