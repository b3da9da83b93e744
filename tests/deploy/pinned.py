# SPDX-License-Identifier: Apache-2.0
"""Programs and links pinned below a directory of a bpffs, by the kernel's own ids: `pinned.py DIR` lists them, and
`pinned.py --left < LIST` says which of a list the kernel still has, and exits 1 if any."""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path

from kernel import bpf
from schemas.errors import KernelError

INFO, PROGRAM_BY_ID, LINK_BY_ID = 15, 13, 30
"""BPF_OBJ_GET_INFO_BY_FD, BPF_PROG_GET_FD_BY_ID, BPF_LINK_GET_FD_BY_ID."""
BY_ID = {"programs": PROGRAM_BY_ID, "links": LINK_BY_ID}
"""Directory of pins, command. Both structs of information begin with the type and the id."""


def listed(home: Path) -> list[tuple[str, int]]:
    """(`programs` or `links`, id) of every pin."""
    found = []
    for kind in BY_ID:
        for path in sorted(home.rglob(f"{kind}/*")):
            fd = bpf.pinned(str(path))
            try:
                found.append((kind, struct.unpack_from("=I", bpf.object_info(fd, 16, str(path)), 4)[0]))
            finally:
                os.close(fd)
    return found


def there(kind: str, ident: int) -> bool:
    try:
        os.close(bpf.check(BY_ID[kind], struct.pack("=I8x", ident), kind))
    except KernelError:
        return False
    return True


if __name__ == "__main__":
    if sys.argv[1] == "--left":
        rows = [line.split() for line in sys.stdin]
        left = [f"{kind} {ident}" for kind, ident in rows if there(kind, int(ident))]
        print(f"{len(rows)} were pinned, {len(left)} are left: {left}")
        sys.exit(1 if left or not rows else 0)
    for kind, ident in listed(Path(sys.argv[1])):
        print(kind, ident)
