# SPDX-License-Identifier: Apache-2.0
"""C text of the LSM hooks to `Compiled`, by BCC. Runs in the loader's short-lived process.

Neighbours: `compiler` (the same for the sensor), `linker` (callbacks and subprograms), `hooks` (what is compiled).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from kernel import bpf, casts
from kernel.btf import Btf
from kernel.catalogue import TABLES as SENSORS
from kernel.compiled import Compiled, fingerprint, without_descriptors
from kernel.compiler import definitions, import_bcc
from kernel.headers import write_tree
from kernel.hooks import HOOKS, TABLES, source
from kernel.linker import CALLBACKS, SUBPROGRAMS, linked
from kernel.members import macro, offsets_from
from schemas.c_header import c_header
from schemas.errors import Incompatible, KernelError

UNPINNED: Final = ("lsm_scratch", "lsm_texts", "lsm_actors", "scratch")

_MEMBERS: Final = (
    ("mount", "mnt_ns", "mnt_ns"),
    ("linux_binprm", "file", "file"),
    ("msghdr", "msg_name", "msg_name"),
    ("msghdr", "msg_namelen", "msg_namelen"),
    ("vm_area_struct", "vm_file", "vm_file"),
)
_NEWER: Final = (("backing_file", "user_path", "user_path"),)
"""Members that older kernels do not have; the C asks with #ifdef."""


def offsets(btf: Btf) -> str:
    """`offsets.h` of the unit. Incompatible when the kernel lacks a member that a hook reads."""
    lines = [offsets_from(btf)]
    for owner, name, path in _MEMBERS:
        member = btf.member(owner, path)
        if member is None:
            raise Incompatible(f"expected member `{path}` in struct `{owner}`, this kernel's BTF has none")
        lines.append(f"#define {macro(owner, name)} {member.offset}")
    for owner, name, path in _NEWER:
        if (newer := btf.member(owner, path)) is not None:
            lines.append(f"#define {macro(owner, name)} {newer.offset}")
    _, _, parameters = btf.functions("bpf_lsm_path_rename").get("bpf_lsm_path_rename", (0, 0, 0))
    if parameters > 4:
        lines.append("#define K_RENAME_FLAGS 1")
    if btf.function_id("bpf_preempt_disable") is not None and btf.function_id("bpf_preempt_enable") is not None:
        lines.append("#define K_PREEMPT 1")
    return "\n".join(lines) + "\n"


def name_of(request: dict[str, Any]) -> str:
    """The fingerprint of what `compile_hooks(request)` would give."""
    return fingerprint({"text": source(), "records": c_header(), "flags": " ".join(definitions(request))})


def compile_hooks(
    request: dict[str, Any],
    step: Callable[[str], None],
    *,
    more: str = "",
    programs: Sequence[str] = (),
    maps: Sequence[str] = (),
) -> Compiled:
    """Every hook that this kernel has, compiled and linked. `more`: C text behind the unit, of which `programs` are made instead and
    whose `maps` are kept. Raises MissingDependency, Incompatible, KernelError."""
    root = Path(request["directory"])
    btf = Btf.of_kernel()
    write_tree(root)
    (root / "offsets.h").write_text(offsets(btf))
    (root / "records.h").write_text(c_header())
    os.environ["BCC_KERNEL_SOURCE"] = request["directory"]
    flags = ["-I" + request["directory"], "-Wno-unused-function", "-Wno-macro-redefined", "-Wno-int-conversion"]
    compiler = import_bcc()
    try:
        module = compiler(text=(source() + more).encode(), cflags=[*flags, "-DTYPED_LOADS=1", *definitions(request)])
    except Exception as error:  # BCC raises bare Exception; clang's messages are on stderr already
        raise KernelError(f"BCC could not compile the LSM hooks: {error}", operation="compile") from error
    found: dict[str, int] = {}
    for name in (*(table.name for table in (*SENSORS, *TABLES)), *UNPINNED, *maps):
        try:
            found[name] = module[name.encode()].map_fd
        except KeyError:  # of the sensor alone
            continue
    targets = {f"lsm_{hook.name}": at for hook in HOOKS if (at := btf.function_id(f"bpf_lsm_{hook.name}")) is not None}
    wanted = tuple(programs) or tuple(targets)
    code = {
        name: casts.resolve(bytes(module.dump_func(name.encode())), btf)
        for name in (*CALLBACKS.values(), *SUBPROGRAMS.values(), *wanted)
    }
    made: dict[str, bytes] = {}
    starts: dict[str, tuple[int, ...]] = {}
    for name in wanted:
        instructions, starts[name] = linked(name, code, btf.function_id)
        made[name] = without_descriptors(instructions, found)
    shapes = {name: bpf.map_info(fd, name)._replace(id=0) for name, fd in found.items()}
    module.cleanup()
    step("compile hooks")
    return Compiled(
        maps=shapes, programs=made, attach_to={}, starts=starts,
        targets={name: targets[name] for name in wanted if name in targets},
    )  # fmt: skip
