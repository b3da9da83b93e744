# SPDX-License-Identifier: Apache-2.0
"""The short-lived process that compiles, loads, attaches and pins, then ends: `python -P -m kernel.loader_child`.

Why a process of its own: importing BCC and compiling with it cost 120 MB that never come back, and the agent is to stay
under 40. It reads one JSON request on stdin, writes one JSON object per line on stdout (`{"step": ...}` as it goes, at last
`{"done": ...}` or `{"error": ...}`), and leaves everything in bpffs. The only file of the house that imports BCC.
"""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import signal
import struct
import sys
import time
from pathlib import Path
from typing import Any, Final

from kernel import bpf, casts
from kernel.btf import VMLINUX, Btf
from kernel.catalogue import ENFORCING, GUARDS, HOPS, PROBES, RAW_TRACEPOINT, TABLES, source
from kernel.features import typed_loads
from kernel.generation import FIRST
from kernel.headers import installed, write_tree
from kernel.maps import possible_cpus
from kernel.members import offsets_by_headers, offsets_from
from kernel.syscalls import call_records
from schemas.c_header import c_header
from schemas.errors import HauberkError, KernelError, MissingDependency
from schemas.kernel import Config
from schemas.syscalls import number

_DISTRIBUTION: Final = "/usr/lib/python3/dist-packages"


def main() -> int:
    """Entry point of the child. Exit code 0 when everything is pinned."""
    # PR_SET_PDEATHSIG: without a parent nobody would take these pins down again.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
    request = json.load(sys.stdin)
    try:
        say({"done": load(request)})
    except HauberkError as error:
        say({"error": str(error), "kind": type(error).__name__})
        return 1
    return 0


def say(message: dict[str, Any]) -> None:
    """One line to the parent."""
    print(json.dumps(message), flush=True)


def import_bcc() -> Any:
    """The BPF class of the distribution's BCC. MissingDependency when it is absent or is PyPI's package of that name."""
    if _DISTRIBUTION not in sys.path:
        sys.path.append(_DISTRIBUTION)
    try:
        import bcc
    except ImportError as error:
        raise MissingDependency(
            f"BCC cannot be imported ({error}); install the distribution's package `python3-bpfcc` (Fedora: `python3-bcc`)"
        ) from error
    if not hasattr(bcc, "BPF"):
        raise MissingDependency(
            f"expected BCC, got the unrelated lattice library `bcc` of PyPI at `{bcc.__file__}`; remove it and install the distribution's `python3-bpfcc`"
        )
    return bcc.BPF


def load(request: dict[str, Any]) -> dict[str, Any]:
    """Compile, load, pin. Returns figures: seconds per step, programs, memory."""
    started = time.monotonic()
    times: dict[str, float] = {}

    def step(name: str) -> None:
        times[name] = round(time.monotonic() - started, 3)
        say({"step": name, "seconds": times[name]})

    # Strictly first: without privileges BCC's own message would be about a map, seconds later.
    os.close(bpf.map_create(2, 4, 8, 1, name="hauberk_test"))
    key = (secrets.randbits(64), secrets.randbits(64))
    directory = request["directory"]
    root = Path(directory)
    flags = ["-I" + directory, "-Wno-unused-function", "-Wno-macro-redefined", *definitions(request, key)]
    if VMLINUX.exists():
        write_tree(root)
        btf = Btf.of_kernel()
        typed = bool(request.get("typed_loads", True) and typed_loads().available)
        cast = bool(typed and request.get("casts", True) and casts.usable(btf))
        (root / "offsets.h").write_text(offsets_from(btf) + (casts.constants(btf) if cast else ""))
        os.environ["BCC_KERNEL_SOURCE"] = directory
    elif installed() is not None:
        btf, typed = None, False
        (root / "offsets.h").write_text(offsets_by_headers())
    else:
        raise MissingDependency(
            f"this kernel has neither BTF (`{VMLINUX}`) nor headers under `/lib/modules/{os.uname().release}/build`; install the headers package of this kernel"
        )
    (root / "records.h").write_text(c_header())
    if typed:
        flags.append("-DTYPED_LOADS=1")
        flags += [
            f"-DAT_{probe.tracepoint.upper()}=1"
            for probe in PROBES
            if btf is not None and btf.has_tracepoint(probe.tracepoint)
        ]
    step("headers")
    compiler = import_bcc()
    step("import")
    try:
        module = compiler(text=source(), cflags=flags)
    except Exception as error:  # BCC raises bare Exception; clang's messages are on stderr already
        raise KernelError(f"BCC could not compile the programs: {error}", operation="compile") from error
    step("compile")
    pins = install(module, request, key, btf)
    step("attach")
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next((int(line.split()[1]) for line in status if line.startswith("VmHWM")), 0)
    return {"seconds": times, "peak_kb": peak, **pins}


def definitions(request: dict[str, Any], key: tuple[int, int]) -> list[str]:
    """The -D constants: sizes, hop numbers, call numbers, the hash key."""
    values = {
        "OCCURRENCE_PAGES": request["occurrence_pages"],
        "DEFINITION_PAGES": request["definition_pages"],
        "NEW_PER_SECOND": request["new_per_second"],
        "BEHAVIOURS": request["behaviours"],
        "STRINGS": request["strings"],
        "PROCESSES": request["processes"],
        "SCOPES": request["scopes"],
        "RULES": request["rules"],
        "NET_RULES": request["net_rules"],
        "HASH_K0": f"{key[0]}ULL",
        "HASH_K1": f"{key[1]}ULL",
    }
    values |= {f"HOP_{name.upper()}": index for index, name in enumerate(HOPS)}
    calls = (
        "openat2", "sendto", "sendmsg", "sendmmsg", "execve", "execveat", "exit_group", "socket", "bind", "connect",
    )  # fmt: skip
    for name in calls:
        values[f"NR_{name.upper()}"] = number(name)
    return [f"-D{name}={value}" for name, value in values.items()]


def install(module: Any, request: dict[str, Any], key: tuple[int, int], btf: Btf | None) -> dict[str, Any]:
    """Load every program, fill the tables that do not change, attach, pin."""
    pin_dir = Path(request["pin_dir"])
    for room in ("maps", "programs", "links"):
        (pin_dir / room).mkdir(parents=True, exist_ok=True)
    maps = {table.name: module[table.name.encode()].map_fd for table in TABLES}

    def program(function: str, kind: int, attach_type: int = 0) -> int:
        code = module.dump_func(function.encode())
        if kind != RAW_TRACEPOINT:
            code = kernel_reads(code)
        if btf is not None:
            code = casts.resolve(code, btf)
        return bpf.program_load(kind, code, name=function, attach_type=attach_type)

    refused: dict[str, str] = {}

    def optional(function: str, kind: int, attach_type: int = 0) -> int | None:
        # A kernel that cannot enforce can still observe: what it refused is told, the rest goes on.
        try:
            return program(function, kind, attach_type)
        except KernelError as error:
            refused[function] = str(error)
            return None

    for index, name in enumerate(HOPS):
        if index == 0:
            continue
        if name in ENFORCING:
            step_fd = optional(f"hop_{name}", RAW_TRACEPOINT)
            if step_fd is None:
                step_fd = program("hop_finish", RAW_TRACEPOINT)
            put(maps["hops"], struct.pack("=I", index), struct.pack("=I", step_fd), "hops")
            continue
        put(maps["hops"], struct.pack("=I", index), struct.pack("=I", program(f"hop_{name}", RAW_TRACEPOINT)), "hops")
    for call, record in call_records({name: index for index, name in enumerate(HOPS)}):
        put(maps["calls"], struct.pack("=I", call), record, "calls")
    settings = {
        Config.LAYOUT: request["layout"],
        Config.HASH_K0: key[0],
        Config.HASH_K1: key[1],
        Config.HOST_VISIBILITY: request["host_visibility"],
        Config.NEW_VISIBILITY: request["new_visibility"],
        Config.GENERATION: FIRST,
    }
    for entry, value in settings.items():
        put(maps["config"], struct.pack("=I", entry), struct.pack("=Q", value), "config")
    # Event ids are node:boot:sequence, so a load must not count where an earlier one of this boot did: microseconds since
    # boot are ahead of any count below a million events a second and cpu, and 48 bits of them last 8.9 years.
    start = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000
    put(maps["sequences"], struct.pack("=I", 0), struct.pack("=Q", start) * possible_cpus(), "sequences")
    programs = {probe.name: program(probe.name, RAW_TRACEPOINT) for probe in PROBES}
    for guard in GUARDS:
        fd = optional(guard.name, guard.kind, guard.attach_type)
        if fd is not None:
            programs[guard.name] = fd
    for table, map_fd in maps.items():
        bpf.pin(map_fd, str(pin_dir / "maps" / table))
    for name, loaded in programs.items():
        bpf.pin(loaded, str(pin_dir / "programs" / name))
    # Strictly last, and on_sys_exit after the ones that keep the process map: from here on events flow.
    for probe in reversed(PROBES):
        where = (
            probe.tracepoint
            if not probe.instead or (btf is not None and btf.has_tracepoint(probe.tracepoint))
            else probe.instead
        )
        bpf.pin(bpf.raw_tracepoint_open(programs[probe.name], where), str(pin_dir / "links" / probe.name))
    return {"programs": len(programs) + len(HOPS) - 1, "refused": refused}


def kernel_reads(code: bytes) -> bytes:
    """`code` with bpf_probe_read (helper 4) made bpf_probe_read_kernel (113), for programs that read no user memory.

    BCC writes the older helper where /proc/kallsyms shows no addresses, as to who is not root; cgroup programs may not call it
    (bpf_base_func_proto, kernel/bpf/helpers.c).
    """
    older, kernel = struct.pack("=BBhi", 0x85, 0, 0, 4), struct.pack("=BBhi", 0x85, 0, 0, 113)
    return b"".join(kernel if code[at : at + 8] == older else code[at : at + 8] for at in range(0, len(code), 8))


def put(fd: int, key: bytes, value: bytes, target: str) -> None:
    """One map element."""
    k, v = ctypes.create_string_buffer(key, len(key)), ctypes.create_string_buffer(value, len(value))
    bpf.check(bpf.MAP_UPDATE, struct.pack("=IIQQQ", fd, 0, ctypes.addressof(k), ctypes.addressof(v), 0), target)


if __name__ == "__main__":
    sys.exit(main())
