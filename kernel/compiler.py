# SPDX-License-Identifier: Apache-2.0
"""C text to `Compiled`, by BCC: the only file of the project that imports it. Runs in the loader's short-lived process.

Writes the directory of headers that the text includes (from the kernel's BTF where it has one), chooses what this kernel can
do (typed loads, casts), compiles, and takes from the result what is independent of this process. Neighbours: `headers`,
`members`, `casts`, `compiled`.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from kernel import bpf, casts
from kernel.btf import VMLINUX, Btf
from kernel.catalogue import GUARDS, HOPS, LISTENERS, PROBES, RAW_TRACEPOINT, TABLES, UNPINNED, source
from kernel.compiled import Compiled, fingerprint, placeholders, without_descriptors
from kernel.features import typed_loads
from kernel.headers import installed, write_tree
from kernel.linker import refuse_unresolved
from kernel.members import offsets_by_headers, offsets_from
from schemas.c_header import c_header
from schemas.errors import KernelError, MissingDependency
from schemas.syscalls import number

_DISTRIBUTION: Final = "/usr/lib/python3/dist-packages"


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


def name_of(request: dict[str, Any]) -> str:
    """The fingerprint of what `compile_programs(request)` would give. About 20 ms: it reads the kernel's BTF."""
    version = Path(_DISTRIBUTION, "bcc", "version.py")
    flags = [*definitions(request), *(f"{name}={request.get(name, True)}" for name in ("typed_loads", "casts"))]
    return fingerprint(
        {
            "text": source(),
            "records": c_header(),
            "flags": " ".join(flags),
            "bcc": version.read_text() if version.exists() else "",
            "headers": str(installed() or ""),
        }
    )


def compile_programs(request: dict[str, Any], step: Callable[[str], None]) -> Compiled:
    """Everything of the catalogue, compiled for this kernel. Raises MissingDependency, KernelError (clang's messages go to stderr)."""
    directory = request["directory"]
    root = Path(directory)
    flags = ["-I" + directory, "-Wno-unused-function", "-Wno-macro-redefined", *definitions(request)]
    btf: Btf | None = None
    typed = False
    if VMLINUX.exists():
        write_tree(root)
        btf = Btf.of_kernel()
        typed = bool(request.get("typed_loads", True) and typed_loads().available)
        cast = bool(typed and request.get("casts", True) and casts.usable(btf))
        (root / "offsets.h").write_text(offsets_from(btf) + (casts.constants(btf) if cast else ""))
        os.environ["BCC_KERNEL_SOURCE"] = directory
    elif installed() is not None:
        (root / "offsets.h").write_text(offsets_by_headers())
    else:
        raise MissingDependency(
            f"this kernel has neither BTF (`{VMLINUX}`) nor headers under `/lib/modules/{os.uname().release}/build`; install the headers package of this kernel"
        )
    (root / "records.h").write_text(c_header())
    known = {probe.tracepoint for probe in PROBES if btf is not None and btf.has_tracepoint(probe.tracepoint)}
    if typed:
        flags.append("-DTYPED_LOADS=1")
        flags += [f"-DAT_{tracepoint.upper()}=1" for tracepoint in sorted(known)]
    step("headers")
    compiler = import_bcc()
    step("import")
    try:
        module = compiler(text=source(), cflags=flags)
    except Exception as error:  # BCC raises bare Exception; clang's messages are on stderr already
        raise KernelError(f"BCC could not compile the programs: {error}", operation="compile") from error
    maps = {name: module[name.encode()].map_fd for name in (*(table.name for table in TABLES), *UNPINNED)}

    def code_of(function: str, kind: int = RAW_TRACEPOINT) -> bytes:
        code = refuse_unresolved(function, bytes(module.dump_func(function.encode())))
        if kind != RAW_TRACEPOINT:
            code = kernel_reads(code)
        if btf is not None:
            code = casts.resolve(code, btf)
        return without_descriptors(code, maps)

    made = Compiled(
        maps={name: bpf.map_info(fd, name)._replace(id=0) for name, fd in maps.items()},
        programs={f"hop_{name}": code_of(f"hop_{name}") for name in HOPS[1:]}
        | {probe.name: code_of(probe.name) for probe in PROBES}
        | {guard.name: code_of(guard.name, guard.kind) for guard in (*GUARDS, *LISTENERS)},
        attach_to={
            probe.name: probe.instead if probe.instead and probe.tracepoint not in known else probe.tracepoint
            for probe in PROBES
        },
    )
    # BCC's own maps go with it: the real ones are created by the loader, and both at once would take the memory twice.
    module.cleanup()
    step("compile")
    return made


def definitions(request: dict[str, Any]) -> list[str]:
    """The -D constants: sizes, hop numbers, call numbers, placeholders of the hash key."""
    values: dict[str, Any] = {
        "OCCURRENCE_PAGES": request["occurrence_pages"],
        "DEFINITION_PAGES": request["definition_pages"],
        "NEW_PER_SECOND": request["new_per_second"],
        "BEHAVIOURS": request["behaviours"],
        "STRINGS": request["strings"],
        "PROCESSES": request["processes"],
        "SCOPES": request["scopes"],
        "RULES": request["rules"],
        "NET_RULES": request["net_rules"],
        "PATTERN_CELLS": request["pattern_cells"],
        **placeholders(),
    }
    values |= {f"HOP_{name.upper()}": index for index, name in enumerate(HOPS)}
    calls = (
        "openat2", "sendto", "sendmsg", "sendmmsg", "execve", "execveat", "exit_group", "socket", "bind", "connect",
    )  # fmt: skip
    for name in calls:
        values[f"NR_{name.upper()}"] = number(name)
    return [f"-D{name}={value}" for name, value in values.items()]


def kernel_reads(code: bytes) -> bytes:
    """`code` with bpf_probe_read (helper 4) made bpf_probe_read_kernel (113), for programs that read no user memory.

    BCC writes the older helper where /proc/kallsyms shows no addresses, as to who is not root; cgroup programs may not call it
    (bpf_base_func_proto, kernel/bpf/helpers.c).
    """
    older, kernel = struct.pack("=BBhi", 0x85, 0, 0, 4), struct.pack("=BBhi", 0x85, 0, 0, 113)
    return b"".join(kernel if code[at : at + 8] == older else code[at : at + 8] for at in range(0, len(code), 8))
