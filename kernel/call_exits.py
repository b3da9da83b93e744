# SPDX-License-Identifier: Apache-2.0
"""Watched calls seen at the kernel's own functions (fexit), so that a call that nobody watches runs no program at all.

`on_sys_exit` and its hops, loaded once more as programs of functions: what such a program is given, the registers and the result, is
what the tracepoint gives. Each function gets a program of ten instructions that leads to it. All functions or none: one that
cannot be had leaves every call to the tracepoint. Runs in the loader's process. Neighbours: `entry_points` (which functions),
`preemption` (why not everywhere), `loader_child` (who calls).
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import struct
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import msgspec

from kernel import bpf, preemption
from kernel.btf import Btf
from kernel.catalogue import HOPS, PROCESS_HOPS
from kernel.compiled import Compiled, relocated
from kernel.entry_points import PREFIXES, symbols, watched_functions
from kernel.instructions import END, MAP, MAP_VALUE, helper, instruction, wide
from kernel.preemption import TRACE_FEXIT, TRACING
from schemas.errors import HauberkError, KernelError

KALLSYMS: Final = Path("/proc/kallsyms")
ARMED: Final = "call_armed"
"""Pin of an array of one u64: the programs of the functions do nothing while it is 0."""
PINNED: Final = "call_hops_"
"""Pins of the program arrays, numbered; an array is emptied when the last descriptor and pin of it go."""
_ARRAY, _PROGRAM_ARRAY = 2, 3
_TAIL_CALL: Final = 12
_FIRST: Final = len(HOPS)
"""Where `on_sys_exit` is in an array."""
_VERIFYING: Final = 4

Functions = dict[str, tuple[int, int]]
"""function -> (its BTF id, that of its prototype)"""


class CallExits(msgspec.Struct, frozen=True):
    """Verified, not attached. `armed`, `arrays`: descriptors of maps; `entries`: function -> descriptor of its program."""

    armed: int
    arrays: list[int]
    entries: dict[str, int]


def functions() -> tuple[Functions, str]:
    """The functions that have to be watched here; else none, and why. Takes half a second."""
    try:
        btf = Btf.of_kernel()
        typed = {name: found for prefix in PREFIXES for name, found in btf.functions(prefix).items()}
        found = watched_functions(symbols(KALLSYMS.read_bytes()), typed, platform.machine())
        if why := preemption.why_not():
            return {}, why
    except KernelError as error:
        name = errno.errorcode.get(error.errno, str(error.errno))
        return {}, f"this kernel attaches no programs to its functions ({name})"
    except HauberkError as error:
        return {}, str(error)
    except OSError as error:
        return {}, f"expected the kernel's symbols in `{KALLSYMS}`, got: {error.strerror}"
    return found, ""


def verify(compiled: Compiled, maps: Mapping[str, int], key: tuple[int, int], watched: Functions) -> CallExits:
    """The programs of the functions `watched`. Raises KernelError when the kernel refuses one, enforcing ones too: what the
    tracepoint would hold is not to be held in part."""
    names = ["on_sys_exit", *(f"hop_{name}" for name in HOPS[1:] if name not in PROCESS_HOPS)]
    made = CallExits(bpf.map_create(_ARRAY, 4, 8, 1, name=ARMED), [], {})
    with ThreadPoolExecutor(_VERIFYING) as pool:
        # A program array takes programs of one prototype alone (__bpf_prog_map_compatible, kernel/bpf/core.c, since 6.12 and 6.1.135),
        # and the compiler's BTF has two: the parameter is `regs` in some declarations and `__unused` in others.
        for prototype in sorted({each for _, each in watched.values()}):
            targets = {name: ident for name, (ident, each) in watched.items() if each == prototype}
            array = bpf.map_create(_PROGRAM_ARRAY, 4, 4, compiled.maps["hops"].max_entries, name="call_hops")
            made.arrays.append(array)
            own, any_of = {**maps, "hops": array}, next(iter(targets.values()))

            def step(name: str, own: Mapping[str, int] = own, target: int = any_of) -> int:
                return _load(name, relocated(compiled.programs[name], own, key), target)

            steps = dict(zip(names, pool.map(step, names), strict=True))
            for index, name in enumerate(HOPS[1:], 1):
                _put(array, index, steps.get(f"hop_{name}", steps["hop_finish"]))
            _put(array, _FIRST, steps["on_sys_exit"])
            for program in steps.values():
                os.close(program)
            # if (armed) tail_call(ctx, array, _FIRST): a flag, because the kernel takes milliseconds for each program to empty an array.
            lead = wide(2, made.armed, MAP_VALUE) + instruction(0x79, 0, 2) + instruction(0x15, 0, offset=4)
            lead += wide(2, array, MAP) + instruction(0xB7, 3, value=_FIRST) + helper(_TAIL_CALL) + END
            for name, target in targets.items():
                made.entries[name] = _load(f"exit{name[1:]}", lead, target)
    return made


def install(exits: CallExits, pin_dir: Path, seconds: float) -> int:
    """Attach, pin, then arm: how many functions. What fails takes back what was attached: all or none. KernelError also after `seconds`: the
    kernel attaches a function in milliseconds, but waits while it detaches others, each for a tenth of a second and more."""
    done: list[Path] = []
    late = time.monotonic() + seconds

    def keep(fd: int, place: Path) -> None:
        bpf.pin(fd, str(place))
        done.append(place)

    try:
        keep(exits.armed, pin_dir / "maps" / ARMED)
        for number, array in enumerate(exits.arrays):
            keep(array, pin_dir / "maps" / f"{PINNED}{number}")
        for name, program in exits.entries.items():
            link = bpf.target_attach(program, name)
            if time.monotonic() > late:
                raise KernelError(
                    f"expected to attach {len(exits.entries)} functions in {seconds:g} s, got to {len(done)}; the kernel may be detaching those of "
                    "a sensor before this one: start again in a minute, or raise `timeout`", operation="attach", target=name,
                )  # fmt: skip
            try:
                keep(link, pin_dir / "links" / name)
            finally:
                os.close(link)
        _arm(exits.armed, True)
    except BaseException:
        for place in reversed(done):
            with contextlib.suppress(OSError):
                place.unlink()
        raise
    return len(exits.entries)


def attached(pin_dir: str) -> int:
    """How many functions programs are attached to by the pins under `pin_dir`."""
    try:
        return sum(name.startswith(PREFIXES) for name in os.listdir(f"{pin_dir}/links"))
    except OSError:
        return 0


def disarm(pin_dir: str) -> None:
    """Have the programs of the functions under `pin_dir` do nothing from here on, attached or not."""
    if os.path.exists(f"{pin_dir}/maps/{ARMED}"):
        armed = bpf.pinned(f"{pin_dir}/maps/{ARMED}")
        try:
            _arm(armed, False)
        finally:
            os.close(armed)


def _arm(armed: int, on: bool) -> None:
    bpf.map_put(armed, bytes(4), struct.pack("=Q", on), ARMED)


def _load(name: str, code: bytes, target: int) -> int:
    return bpf.program_load(TRACING, code, name=name, attach_type=TRACE_FEXIT, target=target)


def _put(array: int, index: int, program: int) -> None:
    bpf.map_put(array, struct.pack("=I", index), struct.pack("=I", program), "call_hops")
