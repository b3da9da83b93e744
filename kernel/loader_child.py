# SPDX-License-Identifier: Apache-2.0
"""The short-lived process that loads, attaches and pins, then ends: `python -P -m kernel.loader_child`.

Why a process of its own: importing BCC and compiling with it cost 120 MB that never come back, and the agent is to stay
under 40. It reads one JSON request on stdin, writes one JSON object per line on stdout (`{"step": ...}` as it goes, at last
`{"done": ...}` or `{"error": ...}`), and leaves everything in bpffs. Compiles only what it does not find compiled
(`compiled`). Neighbours: `compiler`, `loading` (the parent).
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
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from kernel import bpf, call_exits, hook_compiler, hook_loading, listening
from kernel.catalogue import CALL_HOPS, ENFORCING, GUARDS, HOPS, LISTENERS, PROBES, RAW_TRACEPOINT, TABLES
from kernel.compiled import Compiled, forget, relocated, store, stored
from kernel.compiler import compile_programs, name_of
from kernel.features import locked_down, lsm_programs
from kernel.generation import FIRST
from kernel.maps import possible_cpus
from kernel.syscalls import call_records
from schemas.errors import HauberkError, Incompatible, KernelError
from schemas.kernel import Config

_VERIFYING: Final = 4
"""Programs that the kernel verifies at once: it holds no lock for who has CAP_BPF (bpf_check, kernel/bpf/verifier.c)."""


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


def load(request: dict[str, Any]) -> dict[str, Any]:
    """Compile unless that was done before, load, pin. Returns figures: seconds per step, programs, memory, and why
    nothing is kept for the next load (`not_kept`, empty when it is)."""
    started = time.monotonic()
    times: dict[str, float] = {}

    def step(name: str) -> None:
        times[name] = round(time.monotonic() - started, 3)
        say({"step": name, "seconds": times[name]})

    # Strictly first: without privileges BCC's own message would be about a map, seconds later.
    os.close(bpf.map_create(2, 4, 8, 1, name="hauberk_test"))
    if why := locked_down():
        raise Incompatible(f"expected a kernel whose memory programs may read, {why}")
    key = (secrets.randbits(64), secrets.randbits(64))
    compiled, kept, not_kept = prepare(request, step)
    asked, without = prepare_hooks(request, step)
    maps = create(compiled)
    try:
        exits, tracepoint = prepare_exits(compiled, maps, key, request)
        programs, refused = verify(compiled, maps, key, _others(compiled) if exits else compiled.programs)
    except KernelError:
        if not kept:
            raise
        # What was kept was made under other privileges, or by a compiler whose output this kernel does not take.
        forget(request["cache"], name_of(request))
        compiled, _, not_kept = prepare(request, step)
        exits, tracepoint = prepare_exits(compiled, maps, key, request)
        programs, refused = verify(compiled, maps, key, _others(compiled) if exits else compiled.programs)
    step("verify")
    if without:
        refused["lsm"] = without
    if asked is not None and (why := load_hooks(asked, maps, key, request)):
        refused["lsm"] = why
    fill(maps, programs, request, key)
    pin(maps, programs, request)
    attach(compiled, programs, request)
    functions = 0
    if exits is not None:
        try:
            functions = call_exits.install(exits, Path(request["pin_dir"]), request["timeout"] / 3)
            number = struct.pack("=I", Config.CALL_FUNCTIONS)
            bpf.map_put(maps["config"], number, struct.pack("=Q", functions), "config")
        except HauberkError as error:
            tracepoint = str(error)
            late, more = verify(compiled, maps, key, set(compiled.programs) - _others(compiled))
            refused |= more
            fill(maps, programs | late, request, key)
            pin({}, late, request)
            attach(compiled, late, request)
    if request["dns_answers"] and (why := listening.listen(programs, refused, request["pin_dir"])):
        refused[listening.REFUSED] = why
    step("attach")
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next((int(line.split()[1]) for line in status if line.startswith("VmHWM")), 0)
    return {"seconds": times, "peak_kb": peak, "not_kept": not_kept, "programs": len(programs), "refused": refused,
            "functions": functions, "tracepoint": tracepoint, "fell_back": exits is not None and not functions}  # fmt: skip


def _others(compiled: Compiled) -> set[str]:
    """The programs that are needed when calls are seen at the kernel's functions."""
    return set(compiled.programs) - {"on_sys_exit", *(f"hop_{name}" for name in CALL_HOPS)}


def prepare_exits(
    compiled: Compiled, maps: dict[str, int], key: tuple[int, int], request: dict[str, Any]
) -> tuple[call_exits.CallExits | None, str]:
    """The programs of the functions behind the watched calls; None with the reason where calls are seen by the tracepoint."""
    if request.get("calls_by") == "tracepoint":
        return None, "`sensor.load.calls_by` says so"
    targets, why = call_exits.functions()
    if not targets:
        return None, why
    try:
        return call_exits.verify(compiled, maps, key, targets), ""
    except KernelError as error:
        return None, f"this kernel refuses them as programs of functions: {error}"


def prepare(request: dict[str, Any], step: Callable[[str], None]) -> tuple[Compiled, bool, str]:
    """The compiled programs; whether they were kept before; else why they are not kept now (empty: they are)."""
    directory = request.get("cache", "")
    if not directory:
        return compile_programs(request, step), False, ""
    name = name_of(request)
    if (found := stored(directory, name)) is not None:
        step("read")
        return found, True, ""
    made = compile_programs(request, step)
    return made, False, store(directory, name, made)


def prepare_hooks(request: dict[str, Any], step: Callable[[str], None]) -> tuple[Compiled | None, str]:
    """The LSM hooks, compiled now or before; None with the reason where this kernel or this machine cannot have them."""
    if not request.get("hooks"):
        return None, ""
    offered = lsm_programs()
    if not offered.available:
        return None, offered.why
    directory = request.get("cache", "")
    try:
        name = hook_compiler.name_of(request)
        found = stored(directory, name) if directory else None
        if found is None:
            found = hook_compiler.compile_hooks(request, step)
            if directory:
                store(directory, name, found)
    except HauberkError as error:
        return None, str(error)
    except Exception as error:  # noqa: BLE001 - BCC raises bare ones; whatever it is, the sensor can do without the hooks
        return None, f"the LSM hooks could not be compiled: {type(error).__name__}: {error}"
    return found, ""


def load_hooks(compiled: Compiled, maps: dict[str, int], key: tuple[int, int], request: dict[str, Any]) -> str:
    """Why the kernel did not take the hooks; "" when they are attached and pinned. What observes goes on without them."""
    pin_dir = Path(request["pin_dir"])
    try:
        own = hook_loading.shared(compiled, maps)
        programs = hook_loading.verify(compiled, own, key)
        for room in ("maps", "programs", "links"):
            (pin_dir / room).mkdir(parents=True, exist_ok=True)
        hook_loading.install(programs, own, pin_dir)
    except Exception as error:  # noqa: BLE001 - `install` has taken back what it did; the sensor can do without the hooks
        if request.get("cache"):
            forget(request["cache"], hook_compiler.name_of(request))
        return str(error) if isinstance(error, HauberkError) else f"{type(error).__name__}: {error}"
    return ""


def create(compiled: Compiled) -> dict[str, int]:
    """A descriptor of a new map for each of `compiled.maps`, in their order."""
    return {
        name: bpf.map_create(
            shape.type, shape.key_size, shape.value_size, shape.max_entries, name=name, flags=shape.flags
        )
        for name, shape in compiled.maps.items()
    }


def verify(
    compiled: Compiled, maps: dict[str, int], key: tuple[int, int], names: Collection[str]
) -> tuple[dict[str, int], dict[str, str]]:
    """A descriptor of each program of `names` that the kernel took, and why it did not take others: a kernel that cannot enforce can
    still observe. KernelError when it refuses one that observes."""
    kinds = {guard.name: (guard.kind, guard.attach_type) for guard in (*GUARDS, *LISTENERS)}
    may_lack = {*kinds, *(f"hop_{name}" for name in ENFORCING)}

    def one(name: str) -> int | KernelError:
        kind, attach_type = kinds.get(name, (RAW_TRACEPOINT, 0))
        try:
            return bpf.program_load(
                kind, relocated(compiled.programs[name], maps, key), name=name, attach_type=attach_type
            )
        except KernelError as error:
            return error

    # The guards take the verifier longest, so they go first.
    order = sorted(names, key=lambda name: name not in kinds)
    with ThreadPoolExecutor(_VERIFYING) as pool:
        answers = dict(zip(order, pool.map(one, order), strict=True))
    taken: dict[str, int] = {}
    refused: dict[str, str] = {}
    for name, answer in answers.items():
        if isinstance(answer, int):
            taken[name] = answer
        elif name in may_lack:
            refused[name] = str(answer)
        else:
            raise answer
    return taken, refused


def fill(maps: dict[str, int], programs: dict[str, int], request: dict[str, Any], key: tuple[int, int]) -> None:
    """What does not change: steps, calls, the first settings."""
    for index, name in enumerate(HOPS[1:], 1):
        hop = programs.get(f"hop_{name}", programs["hop_finish"])
        bpf.map_put(maps["hops"], struct.pack("=I", index), struct.pack("=I", hop), "hops")
    for call, record in call_records({name: index for index, name in enumerate(HOPS)}):
        bpf.map_put(maps["calls"], struct.pack("=I", call), record, "calls")
    settings = {
        Config.LAYOUT: request["layout"],
        Config.HASH_K0: key[0],
        Config.HASH_K1: key[1],
        Config.HOST_VISIBILITY: request["host_visibility"],
        Config.NEW_VISIBILITY: request["new_visibility"],
        Config.GENERATION: FIRST,
    }
    for entry, value in settings.items():
        bpf.map_put(maps["config"], struct.pack("=I", entry), struct.pack("=Q", value), "config")
    # Event ids are node:boot:sequence, so a load must not count where an earlier one of this boot did: microseconds since
    # boot are ahead of any count below a million events a second and cpu, and 48 bits of them last 8.9 years.
    start = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000
    bpf.map_put(maps["sequences"], struct.pack("=I", 0), struct.pack("=Q", start) * possible_cpus(), "sequences")


def pin(maps: dict[str, int], programs: dict[str, int], request: dict[str, Any]) -> None:
    """What of `maps` and `programs` the catalogue pins."""
    pin_dir = Path(request["pin_dir"])
    for room in ("maps", "programs", "links"):
        (pin_dir / room).mkdir(parents=True, exist_ok=True)
    for table in TABLES:
        if table.name in maps:
            bpf.pin(maps[table.name], str(pin_dir / "maps" / table.name))
    for name in (one.name for one in (*PROBES, *GUARDS, *LISTENERS)):
        if name in programs:
            bpf.pin(programs[name], str(pin_dir / "programs" / name))


def attach(compiled: Compiled, programs: dict[str, int], request: dict[str, Any]) -> None:
    """The probes of `programs` to their tracepoints."""
    # Strictly last, and on_sys_exit after the ones that keep the process map: from here on events flow.
    for probe in reversed(PROBES):
        if probe.name in programs:
            link = bpf.raw_tracepoint_open(programs[probe.name], compiled.attach_to[probe.name])
            bpf.pin(link, str(Path(request["pin_dir"]) / "links" / probe.name))


if __name__ == "__main__":
    sys.exit(main())
