# SPDX-License-Identifier: Apache-2.0
"""Compiles the programs on the host for a guest's kernel: seconds instead of half a minute, and what is kept is what the guest looks for.

The compiler takes from the kernel its BTF and its name (`kernel/compiled.py`, fingerprint), so a child sees the guest's BTF
mounted over the host's, in a mount namespace of its own, and the guest's uname. What the guest asks for and does not find
it compiles by itself, and keeps for the next guest: the directory is shared.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from vmrig.debian import NoPackage
from vmrig.kernels import Kernel

CHECKOUT = Path(__file__).parents[3]
HOOKED: dict[str, object] = {
    "new_visibility": ["none"], "occurrence_pages": 256, "definition_pages": 256, "hooks": True
}  # fmt: skip
"""Settings of the session of `tests/enforcers`, which is what `make test` runs in a guest."""
REST: tuple[dict[str, object], ...] = (
    {"new_visibility": ["none"], "definition_pages": 4096},
    {"new_visibility": ["none"], "new_per_second": 256},
    HOOKED | {"rules": 131072},
)
"""Of the loads of `make test-vm`: the session of `tests/kernel`, `test_budget.py`, and the upgrade of `tests/enforcers/test_lsm_swap.py`."""
WARM = (HOOKED, *REST) if os.environ.get("HAUBERK_TEST_VM") == "all" else (HOOKED,)
"""Settings of loads worth compiling for: each takes half a minute here, and minutes in a guest."""

_CHILD = """
import ctypes, json, os, sys, tempfile
libc = ctypes.CDLL(None, use_errno=True)
asked = json.load(sys.stdin)
if libc.unshare(0x20000):  # CLONE_NEWNS
    raise OSError(ctypes.get_errno(), "unshare")
# MS_REC | MS_PRIVATE: nothing of this is seen outside.
for words in ((b"none", b"/", None, 0x4000 | 0x40000, None), (asked["btf"].encode(), b"/sys/kernel/btf/vmlinux", None, 0x1000, None)):
    if libc.mount(*words):
        raise OSError(ctypes.get_errno(), "mount")
here = os.uname()
guest = os.uname_result((here.sysname, here.nodename, asked["release"], asked["version"], here.machine))
os.uname = lambda: guest
import msgspec
from kernel.loading import LoadSettings
from kernel.compiled import store, stored
from kernel.hook_compiler import compile_hooks, name_of
from kernel.loader_child import prepare
os.chdir("/")
for wanted in asked["settings"]:
    request = msgspec.convert(wanted, LoadSettings).request() | {"cache": asked["cache"]}
    with tempfile.TemporaryDirectory(prefix="hauberk-headers-") as request["directory"]:
        _, kept, why = prepare(request, lambda step: None)
        if wanted.get("hooks") and not why and stored(asked["cache"], name := name_of(request)) is None:
            why = store(asked["cache"], name, compile_hooks(request, lambda step: None))
    if why:
        raise SystemExit(why)
"""


def _bytecode() -> None:
    """The checkout's modules, compiled where that is quick: what a guest writes is gone with it, and the next one would compile again."""
    rooms = [str(path.parent) for path in CHECKOUT.glob("*/__init__.py")]
    command = [sys.executable, "-m", "compileall", "-q", *rooms, str(CHECKOUT / "tests")]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=False)


def precompile(kernel: Kernel, settings: tuple[dict[str, object], ...] = WARM) -> None:
    """What the guest will find under `kernel.home / "programs"`. Raises NoPackage with the compiler's words."""
    where = kernel.home / "programs"
    where.mkdir(mode=0o700, exist_ok=True)
    _bytecode()
    asked = {
        "btf": str(kernel.btf), "release": kernel.release, "version": kernel.version, "cache": str(where),
        "settings": settings,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", _CHILD], input=json.dumps(asked), capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
    )  # fmt: skip
    if done.returncode:
        raise NoPackage(f"programs for {kernel.release} could not be compiled here: {done.stderr.strip()[-1500:]}")
