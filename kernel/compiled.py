# SPDX-License-Identifier: Apache-2.0
"""Compiled programs: what BCC made of the C text, free of file descriptors and of the hash key, so that it can be kept in a file.

Compiling costs 11 of the 18 seconds of a load and 200 MB; the result depends on the text, the sizes, the kernel's types and
nothing else. `fingerprint` covers these, `stored` finds what was kept under it, `store` keeps it. Two things differ from load
to load and are written into the instructions by `relocated`: descriptors of maps, and the secret of the hash. Neighbours:
`compiler` makes it, `loader_child` loads it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from kernel.bpf import MapInfo
from kernel.btf import VMLINUX
from kernel.siphash import start
from schemas.errors import KernelError

DIRECTORY: Final = "/var/cache/hauberk/programs"
"""Where compiled programs are kept unless the settings name another place (FHS 3.0, section 5.5)."""
KEPT: Final = 16
"""Files kept in a cache directory, half a megabyte each: those used last."""

_SECRETS: Final = tuple(
    int.from_bytes(hashlib.blake2b(f"word {at} of the hash state".encode(), digest_size=8).digest(), "little")
    for at in range(4)
)
_INSTRUCTION: Final = struct.Struct("=BBhi")
_LOAD_64: Final = 0x18
"""BPF_LD | BPF_IMM | BPF_DW: two instructions, 32 bits of the value in each (Documentation/bpf/standardization)."""
_OF_MAP: Final = 1
"""BPF_PSEUDO_MAP_FD as source register: the value is a map's descriptor."""


class Compiled(msgspec.Struct, frozen=True, kw_only=True):
    """Maps to create, programs by C function name, and where each probe is attached. In the instructions a map's descriptor is
    its place in `maps`, and the four words of the hash state are placeholders."""

    maps: dict[str, MapInfo]
    programs: dict[str, bytes]
    attach_to: dict[str, str]
    starts: dict[str, tuple[int, ...]] = {}
    """Of a program with subprograms: the instruction that each starts at."""
    targets: dict[str, int] = {}
    """Of a program for a kernel function: its BTF id."""


def placeholders() -> dict[str, str]:
    """The -D constants that stand for the four start words of the hash."""
    return {f"HASH_START_{name}": f'"{word:#x}"' for name, word in zip("ABCD", _SECRETS, strict=True)}


def without_descriptors(code: bytes, maps: Mapping[str, int]) -> bytes:
    """`code` with each descriptor of `maps` (name -> fd) replaced by the map's place. KernelError for any other descriptor."""
    places = {fd: place for place, fd in enumerate(maps.values())}
    out = bytearray(code)
    for at, source in _loads(code):
        if source != _OF_MAP:
            continue
        fd = _value(code, at)
        if fd not in places:
            raise KernelError(
                f"expected programs to use the maps of the catalogue, got descriptor {fd} at instruction {at // 8}; list the map in `TABLES` or `UNPINNED`",
                operation="compile",
                target="maps",
            )
        _write(out, at, places[fd])
    return bytes(out)


def relocated(code: bytes, maps: Mapping[str, int], key: tuple[int, int]) -> bytes:
    """`code` ready to be loaded: descriptors of `maps` (name -> fd, in the order of `Compiled.maps`) and the hash key in place."""
    descriptors = list(maps.values())
    secrets = dict(zip(_SECRETS, start(key), strict=True))
    out = bytearray(code)
    for at, source in _loads(code):
        value = _value(code, at)
        if source == _OF_MAP:
            _write(out, at, descriptors[value])
        elif source == 0 and value in secrets:
            _write(out, at, secrets[value])
    return bytes(out)


def fingerprint(parts: Mapping[str, str]) -> str:
    """Hex digits over everything that decides what is compiled: `parts` (text, flags), this package's code, kernel and BTF."""
    digest = hashlib.blake2b(digest_size=16)
    release = os.uname()
    for name, text in sorted({**parts, "kernel": f"{release.release} {release.version} {release.machine}"}.items()):
        digest.update(f"{name}\0{len(text)}\0{text}".encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    if VMLINUX.exists():
        digest.update(VMLINUX.read_bytes())
    return digest.hexdigest()


def stored(directory: str, name: str) -> Compiled | None:
    """What is kept under the fingerprint `name`; None when nothing is, or when it is damaged or not only ours to write."""
    path = Path(directory) / name
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    with open(file, "rb") as kept:
        # Whoever can write here chooses what the kernel runs.
        if not (_ours(os.fstat(file)) and _ours(os.stat(directory))):
            return None
        data = kept.read()
    with contextlib.suppress(OSError):
        os.utime(path)
    digest, body = data[:32], data[32:]
    if hashlib.blake2b(body, digest_size=32).digest() != digest:
        return None
    try:
        return msgspec.msgpack.decode(body, type=Compiled)
    except (msgspec.DecodeError, ValueError):
        return None


def store(directory: str, name: str, compiled: Compiled) -> str:
    """Keep `compiled` under `name`, written whole or not at all, and forget all but the newest. Why it is not kept; empty when it is."""
    body = msgspec.msgpack.encode(compiled)
    place = Path(directory)
    beside = place / f".{name}.{os.getpid()}"
    try:
        place.mkdir(parents=True, mode=0o700, exist_ok=True)
        if not _ours(os.stat(place)):
            return f"`{directory}` can be written by others; make it mode 0700 and owned by the user of the sensor"
        # Of a process that was killed: in a container the next one has the same number.
        beside.unlink(missing_ok=True)
        file = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(file, "wb") as kept:
                kept.write(hashlib.blake2b(body, digest_size=32).digest() + body)
            os.replace(beside, place / name)
        except OSError:
            beside.unlink(missing_ok=True)
            raise
        kept_files = sorted(
            (one for one in place.iterdir() if len(one.name) == len(name)), key=lambda one: one.stat().st_mtime
        )
        for old in kept_files[:-KEPT]:
            old.unlink(missing_ok=True)
    except OSError as error:
        return f"`{directory}` cannot be written: {error.strerror}; name another directory as `sensor.program_cache`"
    return ""


def forget(directory: str, name: str) -> None:
    """Remove what is kept under `name`: the kernel refused it."""
    with contextlib.suppress(OSError):
        (Path(directory) / name).unlink()


def _ours(found: os.stat_result) -> bool:
    return found.st_uid in (0, os.geteuid()) and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _loads(code: bytes) -> list[tuple[int, int]]:
    """(offset in bytes, source register) of each 64-bit load."""
    found, at = [], 0
    while at < len(code):
        operation, registers, _offset, _value = _INSTRUCTION.unpack_from(code, at)
        if operation == _LOAD_64:
            found.append((at, registers >> 4))
            at += 8
        at += 8
    return found


def _value(code: bytes, at: int) -> int:
    low, high = struct.unpack_from("=I", code, at + 4)[0], struct.unpack_from("=I", code, at + 12)[0]
    return int(high << 32 | low)


def _write(code: bytearray, at: int, value: int) -> None:
    struct.pack_into("=I", code, at + 4, value & 0xFFFFFFFF)
    struct.pack_into("=I", code, at + 12, value >> 32)
