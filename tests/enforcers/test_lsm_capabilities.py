# SPDX-License-Identifier: Apache-2.0
"""What the backends of security modules need to be allowed: each capability is left out in turn, of a process that is not root.

docs/deploy.md has the same table. What `cgroup` and `signal` need is asked in tests/deploy.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from enforcers.apparmor import AppArmorEnforcer
from kernel.audit import AuditStream
from kernel.compiled import DIRECTORY
from kernel.features import lsm_programs
from kernel.hooks import HOOKS
from kernel.loading import mount_bpffs, unload, unmount
from schemas.errors import HauberkError

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(1200)]
ROOT = Path(__file__).parents[2]
USER = 10001
NUMBERS = {
    "BPF": 39, "PERFMON": 38, "NET_ADMIN": 12, "SYS_PTRACE": 19, "DAC_READ_SEARCH": 2, "AUDIT_READ": 37, "MAC_ADMIN": 33,
}  # fmt: skip
"""Capabilities of include/uapi/linux/capability.h: the six of the entry point, and the one that only `apparmor` needs."""
LOST = {
    "BPF": {"hooks": "run as root or with CAP_BPF and CAP_PERFMON"},
    "PERFMON": {"hooks": "run as root or with CAP_BPF and CAP_PERFMON"},
    "AUDIT_READ": {"stream": "run as root or with CAP_AUDIT_READ"},
    "MAC_ADMIN": {"profiles": "run as root with CAP_MAC_ADMIN"},
}
"""What fails without one, and the words that say so; nothing does without the others."""
_KEEPCAPS, _VERSION = 8, 0x20080522
libc = ctypes.CDLL(None, use_errno=True)


def asked() -> dict[str, str]:
    """What is missing of each part, "" where nothing is."""
    try:
        AuditStream().close()
        stream = ""
    except HauberkError as error:
        stream = str(error)
    hooks = lsm_programs()
    return {
        "hooks": "" if hooks.available else hooks.why,
        "profiles": AppArmorEnforcer().unusable(),
        "stream": stream,
    }


def as_nobody(capabilities: set[str]) -> dict[str, str]:
    """`asked` by a process that is user 10001 with these capabilities, in the group of root: AppArmor shows what is loaded to nobody else
    (security/apparmor/policy.c, aa_policy_view_capable)."""
    bits = sum(1 << NUMBERS[name] for name in capabilities)
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        said = {"child": "ended early"}
        try:
            libc.prctl(_KEEPCAPS, 1, 0, 0, 0)
            os.setgroups([0])
            os.setresgid(USER, USER, USER)
            os.setresuid(USER, USER, USER)
            halves = [bits & 0xFFFFFFFF, bits >> 32]
            words = struct.pack("=6I", halves[0], halves[0], 0, halves[1], halves[1], 0)
            if libc.capset(struct.pack("=Ii", _VERSION, 0), words):
                raise OSError(ctypes.get_errno(), "capset")
            said = asked()
        except BaseException as error:  # noqa: BLE001 - the parent is told
            said = {"child": repr(error)}
        finally:
            os.write(writing, json.dumps(said).encode())
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = json.loads(pipe.read())
    os.waitpid(pid, 0)
    assert "child" not in said, said
    return dict(said)


@pytest.fixture(scope="module")
def offered() -> list[str]:
    """The parts that this kernel has for root."""
    if os.geteuid():
        pytest.skip("needs root to drop capabilities")
    found = [part for part, why in asked().items() if not why]
    if not {"hooks", "profiles"} & set(found):
        pytest.skip("neither LSM programs nor AppArmor here")
    return found


def test_these_are_enough(offered: list[str]) -> None:
    said = as_nobody(set(NUMBERS))
    assert {part: said[part] for part in offered} == dict.fromkeys(offered, "")


@pytest.mark.parametrize("one", NUMBERS)
def test_without_one_this_is_lost_and_said(one: str, offered: list[str]) -> None:
    said = as_nobody(set(NUMBERS) - {one})
    lost = LOST.get(one, {})
    for part in offered:
        assert lost.get(part, "") in said[part], (part, said[part])
        assert bool(said[part]) is (part in lost), (part, said[part])


def test_what_each_part_needs_is_all_it_needs(offered: list[str]) -> None:
    for part in offered:
        needed = {name for name, lost in LOST.items() if part in lost}
        assert as_nobody(needed)[part] == ""


def test_in_another_network_namespace_nothing_is_heard_and_that_is_said() -> None:
    try:
        os.readlink("/proc/1/ns/net")
    except OSError as error:
        pytest.skip(f"process 1 cannot be looked at: {error}")
    code = "from kernel.audit import AuditStream\ntry:\n AuditStream()\n print('open')\nexcept Exception as error:\n print(error)"
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "a network namespace that is not the machine's" in done.stdout, done.stderr


def test_the_documentation_has_the_same_table() -> None:
    """No kernel is asked."""
    text = (ROOT / "docs/deploy.md").read_text()
    for name in NUMBERS:
        assert f"\n| `{name}` | " in text, name
    for name in NUMBERS.keys() - {"MAC_ADMIN"}:
        assert f"CAP_{name}" in (ROOT / "deploy/systemd/hauberk-node.service").read_text()


@pytest.mark.skipif(os.environ.get("HAUBERK_TEST_VM") != "all", reason="a load of all hooks once more: make test-vm")
def test_all_hooks_load_as_nobody_with_two_capabilities(offered: list[str]) -> None:
    if "hooks" not in offered:
        pytest.skip("this kernel asks no LSM programs")
    mounted = mount_bpffs("/sys/fs/bpf")
    # Below /tmp and not tmp_path: its parents are root's alone.
    home, kept = Path("/sys/fs/bpf", f"hauberk-nobody-{os.getpid()}"), Path("/tmp", f"hauberk-nobody-{os.getpid()}")
    try:
        home.mkdir()
        shutil.copytree(DIRECTORY, kept)
        for path in (home, kept, *kept.rglob("*")):
            os.chown(path, USER, USER)
        code = (
            "from kernel.loading import LoadSettings, load\nfound = load(LoadSettings(new_visibility=('none',), occurrence_pages=256, "
            f"definition_pages=256, hooks=True, timeout=900.0), '{home}/pins', cache='{kept}')\nprint(found.refused.get('lsm', 'all'))"
        )
        words = ["setpriv", "--reuid", str(USER), "--regid", str(USER), "--clear-groups", "--no-new-privs"]
        words += [f"--{which}=-all,+bpf,+perfmon" for which in ("inh-caps", "ambient-caps", "bounding-set")]
        done = subprocess.run(
            [*words, sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "TMPDIR": "/tmp"}
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (0, "all\n"), done.stderr
        assert {f"lsm_{hook.name}" for hook in HOOKS if hook.needed} <= set(os.listdir(home / "pins/links"))
    finally:
        unload(str(home / "pins"))
        home.rmdir()
        shutil.rmtree(kept, ignore_errors=True)
        if mounted:
            unmount("/sys/fs/bpf")
