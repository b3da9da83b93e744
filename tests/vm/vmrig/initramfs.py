# SPDX-License-Identifier: Apache-2.0
"""The initramfs of the guest: a static busybox, the modules that reach the host's files, `guest/init` and `guest/agent.py`."""

from __future__ import annotations

import hashlib
import lzma
import os
import stat
from pathlib import Path

from vmrig.debian import NoPackage
from vmrig.kernels import Kernel

GUEST = Path(__file__).with_name("guest")
MODULES = ("virtio_pci", "virtio_console", "virtio_rng", "9p", "9pnet_virtio", "overlay")
_BUSYBOX = ("/bin/busybox", "/usr/bin/busybox")


def initramfs(kernel: Kernel) -> Path:
    """A file beside the kernel, written anew when one of its parts changed."""
    busybox = next((Path(path) for path in _BUSYBOX if os.path.exists(path)), None)
    if busybox is None:
        raise NoPackage("no busybox here; install the package `busybox-static`")
    files = [
        ("init", (GUEST / "init").read_bytes(), 0o755),
        ("agent.py", (GUEST / "agent.py").read_bytes(), 0o644),
        ("bin/busybox", busybox.read_bytes(), 0o755),
    ]
    order = []
    for path in _in_order(kernel.modules, MODULES):
        data, name = path.read_bytes(), path.name
        if name.endswith(".xz"):
            data, name = lzma.decompress(data), name.removesuffix(".xz")
        files.append((f"mods/{name}", data, 0o644))
        order.append(name)
    files.append(("mods/order", "".join(f"{name}\n" for name in order).encode(), 0o644))
    archive = _archive(files)
    made = kernel.home / f"initramfs-{hashlib.blake2b(archive, digest_size=8).hexdigest()}"
    if not made.exists():
        for old in kernel.home.glob("initramfs-*"):
            old.unlink(missing_ok=True)
        beside = made.with_suffix(f".{os.getpid()}")
        beside.write_bytes(archive)
        beside.rename(made)
    return made


def _in_order(modules: Path, wanted: tuple[str, ...]) -> list[Path]:
    """Files of `wanted` and what they need, each after what it needs. A module that is built in needs no file."""
    needs: dict[str, list[str]] = {}
    names: dict[str, str] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
        names[_name(path)] = path
    built_in = {_name(line) for line in (modules / "modules.builtin").read_text().split()}
    order: list[str] = []
    for name in wanted:
        if name in built_in:
            continue
        # modules.dep lists the whole closure, what is needed last first.
        for path in (*reversed(needs[names[name]]), names[name]):
            if path not in order:
                order.append(path)
    return [modules / path for path in order]


def _name(path: str) -> str:
    return os.path.basename(path).split(".")[0].replace("-", "_")


def _archive(files: list[tuple[str, bytes, int]]) -> bytes:
    """cpio in the new ASCII format (Documentation/driver-api/early-userspace/buffer-format.rst)."""
    out = bytearray()

    def add(name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        text = name.encode() + b"\0"
        fields = (len(out) + 1, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(text), 0)
        out.extend(b"070701" + b"".join(b"%08X" % field for field in fields) + text)
        out.extend(bytes(-len(out) % 4) + data)
        out.extend(bytes(-len(out) % 4))

    for directory in ("bin", "mods", "dev", "proc", "sys", "lower", "rw", "new"):
        add(directory, stat.S_IFDIR | 0o755)
    add("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
    for name, data, mode in files:
        add(name, stat.S_IFREG | mode, data)
    add("TRAILER!!!", 0)
    return bytes(out)
