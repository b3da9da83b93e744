# SPDX-License-Identifier: Apache-2.0
"""The parent's side of loading: reuse pins that fit, else run the short-lived child; take everything down again.

Pins outlive the agent: enforcement, ids and the process map go on while it restarts. Pins are reused when the layout hash
in their `config` map equals ours (it covers the C text, the record layouts, the tables and the settings that size maps), and
replaced otherwise. Must never import BCC and never touch a directory it did not make. Neighbours: `loader` (runs the
child), `catalogue` (what is pinned), `bpf`, `maps`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

from kernel import attach, bpf, call_exits, hooks, listening
from kernel.catalogue import GUARDS, HOPS, LISTENERS, PROBES, TABLES, source
from kernel.compiled import DIRECTORY
from kernel.generation import renew
from kernel.loader import Halt, run_child
from kernel.maps import Map
from kernel.syscalls import call_records
from schemas.c_header import c_header
from schemas.errors import KernelError, PermissionMissing
from schemas.kernel import Config
from schemas.visibility import EVERYTHING, bits_of

log = logging.getLogger(__name__)

_ITERATORS: Final = frozenset({"maps.debug", "progs.debug"})
"""What a kernel with CONFIG_BPF_PRELOAD puts into every bpffs by itself."""


class LoadSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sizes of rings and maps, and what is watched until the first plan."""

    occurrence_pages: Annotated[
        int,
        msgspec.Meta(
            ge=1,
            le=1 << 18,
            description="size of the occurrences ring in 4096-byte pages, a power of two; by default by memory and processors of the machine, as `hauberk probe` says",
            examples=[4096],
        ),
    ] = 4096
    definition_pages: Annotated[
        int,
        msgspec.Meta(
            ge=1,
            le=1 << 18,
            description="size of the definitions ring in 4096-byte pages, a power of two; by default by the machine",
            examples=[1024],
        ),
    ] = 1024
    new_per_second: Annotated[
        int,
        msgspec.Meta(
            ge=256,
            le=1 << 24,
            description="new behaviours a second of the whole node that are announced by name before each container is limited to its share, a sixteenth of it; half of it for calls that passed, a sixteenth for those that failed",
            examples=[16384],
        ),
    ] = 16384
    behaviours: Annotated[
        int,
        msgspec.Meta(
            ge=1,
            le=1 << 24,
            description="behaviours remembered as announced; by default by the machine",
            examples=[65536],
        ),
    ] = 65536
    strings: Annotated[
        int,
        msgspec.Meta(
            ge=1,
            le=1 << 24,
            description="paths and arguments remembered as announced; by default by the machine",
            examples=[65536],
        ),
    ] = 65536
    processes: Annotated[
        int,
        msgspec.Meta(
            ge=1, le=1 << 24, description="live processes known at once; by default by the machine", examples=[65536]
        ),
    ] = 65536
    scopes: Annotated[
        int,
        msgspec.Meta(
            ge=1, le=1 << 24, description="cgroups with a visibility or a rule table of their own", examples=[16384]
        ),
    ] = 16384
    rules: Annotated[
        int,
        msgspec.Meta(
            ge=1,
            le=1 << 24,
            description="path rules of all tables together; by default by the machine",
            examples=[262144],
        ),
    ] = 262144
    net_rules: Annotated[
        int, msgspec.Meta(ge=1, le=1 << 24, description="network rules of all tables together", examples=[65536])
    ] = 65536
    host_visibility: Annotated[
        tuple[Literal["process", "file", "network", "capabilities", "dns", "none"], ...],
        msgspec.Meta(
            description="classes reported of cgroups without a scope; none: the host is not watched",
            extra={"setting": "derived"},
        ),
    ] = ("none",)
    new_visibility: Annotated[
        tuple[Literal["process", "file", "network", "capabilities", "dns", "none"], ...],
        msgspec.Meta(
            description="classes reported of a cgroup made later, until the first plan or its runtime names it; none: new cgroups are the host's",
            examples=[["process", "network"]],
        ),
    ] = EVERYTHING
    dns_answers: Annotated[
        bool,
        msgspec.Meta(
            description="hear the answers of name servers, so that an address outside the cluster is told by the name that its workload had asked for; needs CAP_NET_ADMIN and the root of cgroup v2, `hauberk probe` says whether it can be had",
            examples=[True],
        ),
    ] = True
    pattern_cells: Annotated[
        int,
        msgspec.Meta(
            ge=4096,
            le=1 << 26,
            description="cells of four bytes for the patterns of all tables of the LSM hooks together; only where these are loaded",
            examples=[1048576],
        ),
    ] = 1 << 20
    hooks: Annotated[
        bool,
        msgspec.Meta(description="load the LSM hooks too, where this kernel asks them", extra={"setting": "derived"}),
    ] = False
    calls_by: Annotated[
        Literal["auto", "tracepoint", "fexit"],
        msgspec.Meta(
            description="how system calls are seen: by the tracepoint that every call of the machine passes, or (fexit) at the kernel's functions behind the watched calls, so that other calls cost nothing; auto: at the functions where this kernel can and leaves out none, as `hauberk probe` says. What cannot be had is said, and the tracepoint is used",
            examples=["auto"],
        ),
    ] = "tracepoint"
    timeout: Annotated[
        float,
        msgspec.Meta(gt=0, le=86_400, description="seconds the loader may take before it is ended", examples=[180.0]),
    ] = 180.0

    def __post_init__(self) -> None:
        """ValueError for a ring that the kernel does not take."""
        for name in ("occurrence_pages", "definition_pages"):
            pages = getattr(self, name)
            if pages & (pages - 1):
                raise ValueError(f"expected a power of two as `{name}`, got {pages}")

    def request(self) -> dict[str, Any]:
        """The settings as `loader_child` takes them: visibility in bits."""
        asked = {name: getattr(self, name) for name in self.__struct_fields__}
        return asked | {name: bits_of(asked[name]) for name in ("host_visibility", "new_visibility")}


class LoadedPrograms(msgspec.Struct, frozen=True, kw_only=True):
    """What is pinned and how it came about. `key`: the two u64 of SipHash ids. `seconds`: per step, empty when reused."""

    pin_dir: str
    key: tuple[int, int]
    reused: bool
    seconds: dict[str, float] = {}
    peak_kb: int = 0
    refused: dict[str, str] = {}
    """Enforcing programs this kernel refused, with its reason; observation goes on without them. Empty when reused."""
    compiled: bool = False
    """Whether BCC compiled them now; else they were kept from an earlier load, or are reused."""
    not_kept: str = ""
    """Why what was compiled now is not kept for the next load; empty when it is, or nobody asked."""
    functions: int = 0
    """Functions of the kernel at which system calls are seen; 0: the tracepoint sees them."""
    tracepoint: str = ""
    """Why the tracepoint sees them; empty when it does not, and when reused."""

    def map(self, name: str) -> Map:
        """The map pinned as `name`; the caller closes it."""
        return Map.open(f"{self.pin_dir}/maps/{name}")

    def program(self, name: str) -> int:
        """A new fd of the program pinned as `name`; the caller closes it."""
        return bpf.pinned(f"{self.pin_dir}/programs/{name}")


def layout_hash(settings: LoadSettings) -> int:
    """u64 over everything that makes pins of one build unfit for another."""
    sizes = {
        name: getattr(settings, name)
        for name in settings.__struct_fields__
        if name not in ("timeout", "host_visibility", "new_visibility")
    }
    text = [
        source(), hooks.source(), c_header(), json.dumps(sizes, sort_keys=True),
        repr((TABLES, PROBES, GUARDS, LISTENERS, HOPS, hooks.HOOKS)),
    ]  # fmt: skip
    text.append(repr(call_records({name: index for index, name in enumerate(HOPS)})))
    return int.from_bytes(hashlib.blake2b("\0".join(text).encode(), digest_size=8).digest(), "little")


def load(
    settings: LoadSettings,
    pin_dir: str,
    *,
    progress: Callable[[str, float], None] | None = None,
    fresh: bool = False,
    cache: str = DIRECTORY,
    halt: Halt | None = None,
    prepare: Callable[[str], None] | None = None,
) -> LoadedPrograms:
    """Programs loaded, attached and pinned under `pin_dir`, in a bpffs that is mounted already (`mount_bpffs`).

    Reuses fitting pins unless `fresh`. Others go only when the new programs are attached: a load that fails changes nothing,
    and what was enforced is enforced until then. `cache`: directory of compiled programs, found there or kept there; empty: compile
    each time. `progress(step, seconds)` is called as each step ends: headers, import, compile (or read), verify, attach. Blocks for
    some seconds. `prepare(directory)` is called with the pins of the new programs once they are attached, before they take the
    place of others: what it puts in their maps holds through the swap. Raises PermissionMissing, MissingDependency, KernelError
    (with the verifier's last lines), Unavailable (timeout, or `halt`).
    """
    directory = Path(pin_dir)
    _require_bpffs(directory)
    expected = layout_hash(settings)
    # A bpffs takes no name with a dot (bpf_lookup, kernel/bpf/inode.c).
    beside = f"{pin_dir.rstrip('/')}-new"
    if existing(pin_dir) is None and existing(beside) is not None:
        # A load that was killed between taking the old ones down and the rename: the rules are on these alone.
        _take_place(beside, pin_dir)
    if not fresh and (found := existing(pin_dir, expected)) is not None:
        # One that was killed before that: both are attached, and each event is there twice.
        unload(beside)
        _set_visibility(found, settings)
        return found
    unload(beside)
    request = settings.request()
    request |= {"pin_dir": beside, "layout": expected, "cache": cache}
    try:
        done = run_child(request, settings.timeout, progress, halt)
        if prepare is not None:
            prepare(beside)
    except BaseException:
        unload(beside)
        raise
    _hand_on(pin_dir, beside)
    # Not undone: from here on the rules may be on the new ones alone.
    _take_place(beside, pin_dir)
    found = existing(pin_dir, expected)
    if found is None:
        raise KernelError(
            f"the loader ended well but left no usable pins under `{pin_dir}`", operation="load", target=pin_dir
        )
    if why := done["refused"].get("lsm"):
        log.warning("no LSM hooks are attached: %s", why)
    if why := done["refused"].get(listening.REFUSED):
        log.warning("answers of name servers are not heard, so addresses have no names from DNS: %s", why)
    if done["tracepoint"] and (settings.calls_by == "fexit" or done["fell_back"]):
        log.warning("the tracepoint sees system calls: %s", done["tracepoint"])
    return msgspec.structs.replace(
        found, reused=False, seconds=done["seconds"], peak_kb=done["peak_kb"], refused=done["refused"],
        compiled="compile" in done["seconds"], not_kept=done["not_kept"], tracepoint=done["tracepoint"],
    )  # fmt: skip


def existing(pin_dir: str, expected: int | None = None) -> LoadedPrograms | None:
    """What is pinned under `pin_dir` now; None when nothing is, or its layout hash is not `expected` (None: any)."""
    functions = call_exits.attached(pin_dir)
    probes = [probe.name for probe in PROBES if not functions or probe.tracepoint != "sys_exit"]
    paths = [f"maps/{table.name}" for table in TABLES]
    paths += [f"{room}/{name}" for room in ("links", "programs") for name in probes]
    if not all(os.path.exists(f"{pin_dir}/{path}") for path in paths):
        return None
    with Map.open(f"{pin_dir}/maps/config") as config:
        values = {name: config.sum_u64(struct.pack("=I", name)) for name in Config}
    if functions != values[Config.CALL_FUNCTIONS] or (expected is not None and values[Config.LAYOUT] != expected):
        return None
    key = values[Config.HASH_K0], values[Config.HASH_K1]
    return LoadedPrograms(pin_dir=pin_dir, key=key, reused=True, functions=functions)


def unload(pin_dir: str) -> None:
    """Remove every pin under `pin_dir` and the directory: programs detach when the last reference goes. Twice is once."""
    # An attachment without a link would outlive every pin, and nobody could find it any more.
    attach.release_all(pin_dir)
    # Strictly before their links: to detach a function takes the kernel 10 ms and more, and it does so afterwards.
    call_exits.disarm(pin_dir)
    # Links strictly first: nothing runs any more while its maps disappear.
    for room in ("links", "programs", "maps"):
        shutil.rmtree(f"{pin_dir}/{room}", ignore_errors=True)
    if os.path.isdir(pin_dir):
        shutil.rmtree(pin_dir, ignore_errors=True)


def _hand_on(pin_dir: str, beside: str) -> None:
    """What a killed agent left word of, the next one is to find on the new programs too."""
    key = struct.pack("=I", Config.IN_HAND)
    # Nothing is there, or it is of a version without.
    with contextlib.suppress(KernelError), Map.open(f"{pin_dir}/maps/config") as old:
        if events := old.sum_u64(key):
            with Map.open(f"{beside}/maps/config") as new:
                new.put(key, struct.pack("=Q", events))


def _take_place(beside: str, pin_dir: str) -> None:
    unload(pin_dir)
    try:
        os.rename(beside, pin_dir)
    except OSError as error:
        raise KernelError(
            f"expected to move `{beside}` to `{pin_dir}`, got: {error.strerror}; the programs run with their rules, remove what "
            "else lies there and start again",
            operation="pin", target=pin_dir, errno=error.errno or 0,
        ) from error  # fmt: skip


def exclude(loaded: LoadedPrograms, pid: int) -> None:
    """Neither report nor ever stop the process with host tgid `pid`; its children are not excluded."""
    with loaded.map("excluded") as table, loaded.map("config") as config:
        table.put(struct.pack("=I", pid), struct.pack("=I", 1))
        renew(config)


def mount_bpffs(where: str) -> bool:
    """Make sure a bpffs is mounted at `where`; True when it was mounted here and is the caller's to unmount (`unmount`)."""
    if is_bpffs(where):
        return False
    try:
        os.makedirs(where, exist_ok=True)
        hidden = os.listdir(where)
    except OSError as error:
        raise KernelError(
            f"expected to make `{where}` for a bpffs, got: {error.strerror}; name a directory under /sys/fs/bpf",
            operation="mount", target=where, errno=error.errno or 0,
        ) from error  # fmt: skip
    if hidden:
        # A mount over them would take these files from everybody on the machine.
        raise KernelError(
            f"expected a bpffs or an empty directory at `{where}` to mount one, got a directory with files; name one under /sys/fs/bpf",
            operation="mount", target=where,
        )  # fmt: skip
    result = subprocess.run(["mount", "-t", "bpf", "bpf", where], capture_output=True, text=True, check=False)
    if result.returncode:
        raise PermissionMissing(
            f"cannot mount a bpffs at `{where}`: {result.stderr.strip()}; run as root or mount it beforehand",
            operation="mount", target=where,
        )  # fmt: skip
    return True


def unmount(where: str) -> None:
    """Undo `mount_bpffs` when it returned True. Not while anybody has pins there: without their mount they would go, and what
    they enforce with them."""
    with contextlib.suppress(OSError):
        if set(os.listdir(where)) - _ITERATORS:
            return
    subprocess.run(["umount", "-l", where], capture_output=True, check=False)


def is_bpffs(where: str) -> bool:
    """Whether `where`, or what exists of its parents, lies in a bpffs."""
    path = Path(where)
    while not path.exists() and path != path.parent:
        path = path.parent
    best = ("", "")
    with open("/proc/self/mounts", encoding="utf-8") as mounts:
        for line in mounts:
            _, point, kind, *_ = line.split(" ")
            if (str(path) + "/").startswith(point.rstrip("/") + "/") and len(point) >= len(best[0]):
                best = (point, kind)
    return best[1] == "bpf"


def _require_bpffs(directory: Path) -> None:
    if not is_bpffs(str(directory)):
        raise KernelError(
            f"expected `{directory}` to lie in a bpffs, it does not; mount one (`mount -t bpf bpf /sys/fs/bpf`) or name another directory",
            operation="pin", target=str(directory),
        )  # fmt: skip


def _set_visibility(loaded: LoadedPrograms, settings: LoadSettings) -> None:
    with loaded.map("config") as config:
        config.put(struct.pack("=I", Config.HOST_VISIBILITY), struct.pack("=Q", bits_of(settings.host_visibility)))
        config.put(struct.pack("=I", Config.NEW_VISIBILITY), struct.pack("=Q", bits_of(settings.new_visibility)))
