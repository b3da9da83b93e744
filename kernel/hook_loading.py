# SPDX-License-Identifier: Apache-2.0
"""The LSM hooks into the kernel: verified, attached, pinned beside the sensor's programs. Runs in the loader's process.

All that the kernel has of `HOOKS`, or none: a table that some hooks ask and others do not would be held in half. Neighbours:
`hooks` (what is loaded), `loader_child` (who calls), `features` (whether the kernel asks its hooks at all).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from kernel import bpf
from kernel.compiled import Compiled, relocated
from kernel.hooks import HOOKS, TABLES
from kernel.linker import subprogram_btf
from schemas.errors import KernelError

_LSM, _LSM_MAC = 29, 27  # BPF_PROG_TYPE_LSM, BPF_LSM_MAC
_VERIFYING: Final = 4
_LOG: Final = 1 << 20


def shared(compiled: Compiled, maps: Mapping[str, int]) -> dict[str, int]:
    """A descriptor for each of `compiled.maps`, in their order: the sensor's where it has one of that name, else a new one."""
    made: dict[str, int] = {}
    for name, shape in compiled.maps.items():
        made[name] = maps[name] if name in maps else _create(name, shape)
    return made


def verify(compiled: Compiled, maps: Mapping[str, int], key: tuple[int, int]) -> dict[str, int]:
    """A descriptor of each program. Raises KernelError when a needed hook is missing, or the kernel refuses one."""
    missing = [hook.name for hook in HOOKS if hook.needed and f"lsm_{hook.name}" not in compiled.programs]
    if missing:
        raise KernelError(
            f"expected the LSM hooks {', '.join(missing)}, this kernel has none (CONFIG_SECURITY_PATH, CONFIG_SECURITY_NETWORK)",
            operation="load",
        )

    def one(name: str) -> int:
        code = relocated(compiled.programs[name], maps, key)
        return load_program(name, code, compiled.starts[name], target=compiled.targets[name])

    with ThreadPoolExecutor(_VERIFYING) as pool:
        return dict(zip(compiled.programs, pool.map(one, compiled.programs), strict=True))


def install(programs: Mapping[str, int], maps: Mapping[str, int], pin_dir: Path) -> None:
    """Pin and attach. What fails takes back what was attached: all or none."""
    done: list[Path] = []

    def keep(fd: int, place: Path) -> None:
        bpf.pin(fd, str(place))
        done.append(place)

    try:
        for table in TABLES:
            keep(maps[table.name], pin_dir / "maps" / table.name)
        for name, program in programs.items():
            keep(program, pin_dir / "programs" / name)
        for name, program in programs.items():
            link = bpf.check(bpf.RAW_TRACEPOINT_OPEN, struct.pack("=QII", 0, program, 0), name)
            keep(link, pin_dir / "links" / name)
            os.close(link)
    except BaseException:
        for place in reversed(done):
            with contextlib.suppress(OSError):
                place.unlink()
        raise


def _create(name: str, shape: bpf.MapInfo) -> int:
    return bpf.map_create(
        shape.type, shape.key_size, shape.value_size, shape.max_entries, name=name, flags=shape.flags
    )  # fmt: skip


def load_program(name: str, code: bytes, starts: tuple[int, ...], *, kind: int = _LSM, target: int = 0) -> int:
    """A descriptor of the program `code` of `kind` (BPF_PROG_TYPE_*) with subprograms at `starts`; `target`: BTF id of its hook.
    KernelError carries the verifier's last words."""
    blob, ids = subprogram_btf(len(starts))
    records = b"".join(struct.pack("=II", start, ident) for start, ident in zip(starts, ids, strict=True))
    instructions = ctypes.create_string_buffer(code, len(code))
    license_text = ctypes.create_string_buffer(b"GPL")
    about = ctypes.create_string_buffer(records, len(records))
    btf = bpf.btf_load(blob)

    def attributes(log: int) -> bytes:
        # union bpf_attr of BPF_PROG_LOAD up to attach_prog_fd (include/uapi/linux/bpf.h).
        return struct.pack(
            "=IIQQIIQII16sIIIIQIIQIII", kind, len(code) // 8, ctypes.addressof(instructions),
            ctypes.addressof(license_text), 1 if log else 0, _LOG if log else 0, log, 0, 0, name.encode()[:15].ljust(16, b"\0"),
            0, _LSM_MAC if target else 0, btf, 8, ctypes.addressof(about), len(starts), 0, 0, 0, target, 0,
        )  # fmt: skip

    try:
        result = bpf.call(bpf.PROG_LOAD, attributes(0))
        if result >= 0:
            return result
        log = ctypes.create_string_buffer(_LOG)
        bpf.call(bpf.PROG_LOAD, attributes(ctypes.addressof(log)))
    finally:
        os.close(btf)
    said = log.value.decode(errors="replace").strip().splitlines()[-3:]
    error = bpf.refused("PROG_LOAD", name, -result)
    if -result == errno.ENOSPC:
        said = ["its log is larger than what was kept of it"]
    raise type(error)(f"{error}; verifier: {' / '.join(said)}", operation="PROG_LOAD", target=name, errno=-result)
