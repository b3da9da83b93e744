# SPDX-License-Identifier: Apache-2.0
"""A place of its own for the programs and maps that a benchmark loads, which leaves nothing behind."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from kernel.loading import mount_bpffs, unload, unmount


@contextmanager
def own_pins() -> Iterator[str]:
    """A directory for pins on a bpffs of its own. In the end what is pinned there is unloaded, whatever happened."""
    home = tempfile.mkdtemp(prefix="hauberk-bench-")
    mounted = False
    try:
        mounted = mount_bpffs(home)
        yield f"{home}/pins"
    finally:
        unload(f"{home}/pins")
        if mounted:
            unmount(home)
        shutil.rmtree(home, ignore_errors=True)
