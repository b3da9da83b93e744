# SPDX-License-Identifier: Apache-2.0
"""Debian's kernels by series ("6.1", "6.12"): looked up, downloaded, unpacked, and kept in the user's cache directory.

Kept per package version: `vmlinux` (uncompressed: starting it in the guest saves 3 s), `btf`, `banner`, `lib/modules/RELEASE`.
Neighbour: `debian` (asks apt).
"""

from __future__ import annotations

import json
import lzma
import re
import shutil
import struct
import subprocess
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

from vmrig.debian import Archive, NoPackage, cache, run

SOURCES = {
    "6.1": ("bookworm", "bookworm-security"),
    "6.12": ("bookworm-backports",),
}
"""Where each series comes from: the stable kernel of Debian 12, and what its backports carry."""
KEPT_DAYS = 30
"""How long it is not asked whether Debian has a newer one of the series."""
# Nothing that a test opens: three quarters of what the package holds.
_LEFT_OUT = (
    "sound", "drivers/gpu", "drivers/media", "drivers/net/ethernet", "drivers/net/wireless", "drivers/infiniband",
    "drivers/scsi", "drivers/usb", "drivers/iio", "drivers/staging", "drivers/input", "drivers/hwmon", "drivers/mtd",
    "drivers/isdn", "drivers/platform", "drivers/accel", "drivers/comedi", "drivers/bluetooth",
)  # fmt: skip


@dataclass(frozen=True)
class Kernel:
    """A kernel in the cache. `release`: uname -r; `version`: uname -v; `home`: its directory."""

    series: str
    release: str
    version: str
    home: Path

    @property
    def image(self) -> Path:
        """The uncompressed kernel, an ELF with the PVH note that qemu starts."""
        return self.home / "vmlinux"

    @property
    def btf(self) -> Path:
        """What the guest shows as /sys/kernel/btf/vmlinux."""
        return self.home / "btf"

    @property
    def modules(self) -> Path:
        """The modules, with modules.dep."""
        return self.home / "lib" / "modules" / self.release


def kernel(series: str) -> Kernel:
    """The kernel of `series`, fetched when it is not here. Raises NoPackage."""
    latest = cache() / f"{series}.json"
    known = _known(series, latest)
    if known is not None and time.time() - latest.stat().st_mtime < KEPT_DAYS * 86_400:
        return known
    try:
        made = _fetch(series)
    except NoPackage:
        if known is None:
            raise
        return known
    latest.write_text(json.dumps({"release": made.release, "version": made.version, "home": made.home.name}))
    return made


def _known(series: str, latest: Path) -> Kernel | None:
    try:
        found = json.loads(latest.read_text())
    except (OSError, ValueError):
        return None
    home = cache() / found["home"]
    return Kernel(series, found["release"], found["version"], home) if (home / "complete").exists() else None


def _fetch(series: str) -> Kernel:
    if shutil.which("depmod") is None:
        raise NoPackage("no `depmod` here; run `deploy/packages.sh test` as root")
    archive = Archive(series, SOURCES[series])
    shown = archive.shown("linux-image-amd64")
    depends = next(line for line in shown.splitlines() if line.startswith("Depends: "))
    package, version = depends.removeprefix("Depends: ").replace("(", "").replace(")", "").split(" = ")
    release = package.removeprefix("linux-image-")
    home = cache() / f"{package}_{version}"
    if not (home / "complete").exists():
        archive.unpack(f"{package}={version}", home)
        _unpack(home, release)
        (home / "complete").touch()
    return Kernel(series, release, (home / "banner").read_text(), home)


def _unpack(home: Path, release: str) -> None:
    image = _uncompressed((home / "boot" / f"vmlinuz-{release}").read_bytes())
    (home / "vmlinux").write_bytes(image)
    (home / "btf").write_bytes(_section(image, b".BTF"))
    (home / "banner").write_text(_version(image))
    for name in ("boot", "usr"):
        shutil.rmtree(home / name, ignore_errors=True)
    modules = home / "lib" / "modules" / release / "kernel"
    for name in _LEFT_OUT:
        shutil.rmtree(modules / name, ignore_errors=True)
    run("depmod", "-b", str(home), release)


def _uncompressed(image: bytes) -> bytes:
    # Documentation/arch/x86/boot.rst: setup_sects at 0x1f1, payload_offset and payload_length at 0x248.
    start = ((image[0x1F1] or 4) + 1) * 512
    offset, length = struct.unpack_from("<II", image, 0x248)
    payload = image[start + offset : start + offset + length]
    if payload.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMADecompressor(format=lzma.FORMAT_XZ).decompress(payload)
    if payload.startswith(b"\x1f\x8b"):
        return zlib.decompressobj(31).decompress(payload)
    if payload.startswith(b"\x28\xb5\x2f\xfd"):
        if shutil.which("zstd") is None:
            raise NoPackage("no `zstd` here; run `deploy/packages.sh test` as root")
        # Behind the frame stands the size of what is in it (scripts/Makefile.lib, size_append), which zstd calls an error.
        return subprocess.run(["zstd", "-dc"], input=payload, capture_output=True, check=False).stdout
    raise NoPackage(f"the kernel image is compressed in a way not known here: it starts {payload[:4].hex()}")


def _section(elf: bytes, wanted: bytes) -> bytes:
    (table,) = struct.unpack_from("<Q", elf, 40)
    size, count, names = struct.unpack_from("<HHH", elf, 58)
    rows = [struct.unpack_from("<IIQQQQ", elf, table + size * index) for index in range(count)]
    strings = rows[names][4]
    for name, _, _, _, offset, length in rows:
        if elf[strings + name : elf.index(b"\0", strings + name)] == wanted:
            return elf[offset : offset + length]
    raise NoPackage(f"this kernel has no section {wanted.decode()}")


def _version(image: bytes) -> str:
    """What uname -v will say: the end of the banner "Linux version RELEASE (BUILDER) (COMPILER) VERSION"."""
    # There is another one for the time before the build's number is known, with `# SMP`.
    found = re.search(rb"Linux version 6\.[^\n\0]* (#\d+ [^\n\0]*)\n", image)
    if found is None:
        raise NoPackage("this kernel image has no banner of the form `Linux version 6.X ... #N ...`")
    return found[1].decode()
