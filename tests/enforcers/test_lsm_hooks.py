# SPDX-License-Identifier: Apache-2.0
"""Each LSM hook denies for real: a policy, the calls of `calls.py` inside the cgroup, and what each came to.

On a kernel that asks no LSM programs all of it is skipped with the reason; `make test` and `make test-vm` run it in guests.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from enforcers.bpf_lsm import LsmEnforcer
from enforcers.encoding import Encoded, Encoder
from enforcers.tables import KernelTables
from kernel.loading import LoadedPrograms, existing
from policy.ruleset import PostureSettings
from schemas.enforcement import PathRule, ScopePlan
from schemas.operations import Class
from schemas.refusals import RefusalCode
from schemas.verdict import Action, RuleRef

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(1200)]

DENIED = "EPERM"
CALLS = str(Path(__file__).parent / "calls.py")


@pytest.fixture(scope="module")
def loaded(hooked: LoadedPrograms) -> LoadedPrograms:
    return hooked


def files(*rules: str, action: str = "Block") -> str:
    return f"file: {{matchPaths: [{', '.join(rules)}]}}, action: {action}"


def test_every_change_of_a_file_is_denied_by_its_path(bench: Any, tmp_path: Path) -> None:
    for name in ("secret", "free", "other"):
        (tmp_path / name).write_text("x")
    (tmp_path / "dir").mkdir()
    bench.hold(files(*(f"{{path: {tmp_path}/{name}}}" for name in ("secret", "new", "dir"))))
    secret, new, free = f"{tmp_path}/secret", f"{tmp_path}/new", f"{tmp_path}/free"
    bench.expect(
        *((DENIED, (call, secret)) for call in (
            "read", "write", "append", "creat", "trunc", "unlink", "chmod", "chown", "truncate",
        )),
        *((DENIED, (call, new)) for call in ("creat", "mknod", "mkfifo", "mkdir", "symlink")),
        (DENIED, ("link", free, new)), (DENIED, ("link", secret, f"{tmp_path}/second")), (DENIED, ("rename", secret, new)),
        (DENIED, ("rename", free, secret)), (DENIED, ("rmdir", f"{tmp_path}/dir")),
        ("ok", ("read", free)), ("ok", ("chmod", free)), ("ok", ("fchmod", free)), ("ok", ("ftruncate", free)), ("ok", ("mkdir", f"{tmp_path}/made")),
        ("ok", ("rename", f"{tmp_path}/other", f"{tmp_path}/moved")),
    )  # fmt: skip
    assert not (tmp_path / "new").exists(), "nothing is left of what was denied"
    assert (tmp_path / "secret").read_text() == "x"


def test_limits_leave_their_part_free(bench: Any, tmp_path: Path) -> None:
    for name in ("config", "mine", "theirs"):
        (tmp_path / name).write_text("x")
    os.chown(tmp_path / "theirs", 4242, 4242)
    bench.hold(
        files(
            f"{{path: {tmp_path}/config, readOnly: true}}", f"{{path: {tmp_path}/mine, ownerOnly: true}}",
            f"{{path: {tmp_path}/theirs, ownerOnly: true}}",
        )
    )  # fmt: skip
    config = f"{tmp_path}/config"
    bench.expect(
        ("ok", ("read", config)), *((DENIED, (call, config)) for call in ("write", "trunc", "truncate", "unlink", "chmod", "fchmod")),
        ("ok", ("read", f"{tmp_path}/mine")), (DENIED, ("read", f"{tmp_path}/theirs")),
    )  # fmt: skip


def test_what_was_opened_before_the_rule(bench: Any, tmp_path: Path) -> None:
    """Its size, mode and owner are asked about by what it is, whatever descriptor leads to it."""
    (tmp_path / "secret").write_text("secret")
    with open(tmp_path / "secret", "r+b") as before, open(tmp_path / "free", "w+b") as free:
        bench.hold(files(f"{{path: {tmp_path}/secret}}"))
        numbers = before.fileno(), free.fileno()
        calls = [(call, number) for number in numbers for call in ("truncate", "chmod", "chown")]
        process = bench.box.start(
            sys.executable, "-S", CALLS, json.dumps(calls), stdout=subprocess.PIPE, pass_fds=numbers
        )
        assert json.loads(process.communicate(timeout=300)[0]) == [DENIED] * 3 + ["ok"] * 3
    assert (tmp_path / "secret").read_text() == "secret"


def test_a_file_without_a_name_is_one_of_its_directory(bench: Any, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir()
    bench.hold(f"file: {{matchDirectories: [{{dir: {tmp_path}/closed/, recursive: true}}]}}, action: Block")
    bench.expect((DENIED, ("tmpfile", f"{tmp_path}/closed")), ("ok", ("tmpfile", str(tmp_path))))


def test_directories_above_keep_their_names(bench: Any, tmp_path: Path) -> None:
    """Renamed or exchanged, from either side, they would give what lies below them another path."""
    for name in ("top/in/secret", "free/file", "other/file", "file"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    bench.hold(files(f"{{path: {tmp_path}/top/in/secret}}"))
    top, inner, secret, free, other, file = (
        f"{tmp_path}/{name}" for name in ("top", "top/in", "top/in/secret", "free", "other", "file")
    )
    bench.expect(
        (DENIED, ("rename", top, f"{tmp_path}/moved")), (DENIED, ("rename", inner, f"{tmp_path}/moved")),
        *((DENIED, ("exchange", *pair)) for held in (top, inner) for one in (free, file) for pair in ((one, held), (held, one))),
        (DENIED, ("exchange", file, secret)), (DENIED, ("exchange", secret, file)),
        ("ok", ("exchange", free, other)), ("ok", ("exchange", file, f"{free}/file")), ("ok", ("rename", free, f"{tmp_path}/moved")),
    )  # fmt: skip
    assert Path(secret).read_text() == "top/in/secret"


def test_the_owner_of_what_a_rename_replaces_counts(bench: Any, tmp_path: Path) -> None:
    for name in ("mine", "theirs", "new", "of-others", "more"):
        (tmp_path / name).write_text(name)
    for name in ("theirs", "of-others"):
        os.chown(tmp_path / name, 4242, 4242)
    bench.hold(files(*(f"{{path: {tmp_path}/{name}, ownerOnly: true}}" for name in ("mine", "theirs", "none"))))
    mine, theirs, new, of_others, more, none = (
        f"{tmp_path}/{name}" for name in ("mine", "theirs", "new", "of-others", "more", "none")
    )
    bench.expect(
        (DENIED, ("rename", new, theirs)), (DENIED, ("exchange", new, theirs)), (DENIED, ("exchange", theirs, new)),
        (DENIED, ("rename", of_others, none)), ("ok", ("rename", more, none)), ("ok", ("exchange", of_others, mine)),
    )  # fmt: skip
    assert (tmp_path / "theirs").read_text() == "theirs"
    assert (tmp_path / "mine").read_text() == "of-others"


def test_patterns_are_asked_in_the_kernel(bench: Any, tmp_path: Path) -> None:
    for name in ("note.key", "d/note.key", "d/id_rsa", "file_ä", "file_x", "file_", "open", "app/a/x.pem", "free/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    patterns = (
        f"{tmp_path}/*.key", "/**/id_rsa", f"{tmp_path}/file_?", f"{tmp_path}/[n-p]p[a-f]n", f"{tmp_path}/app/*/*.pem",
    )  # fmt: skip
    receipt = bench.hold(
        f"file: {{matchPatterns: [{', '.join(f'{{pattern: {json.dumps(one)}}}' for one in patterns)}]}}, action: Block"
    )
    assert receipt.refused == ()
    assert [(one.ref.position, one.code) for one in receipt.partial] == [
        ("spec.file.matchPatterns[4]", RefusalCode.MOVED)
    ]
    app, free = f"{tmp_path}/app", f"{tmp_path}/free"
    bench.expect(
        (DENIED, ("rename", app, f"{tmp_path}/moved")), (DENIED, ("exchange", free, app)), ("ok", ("rename", free, f"{tmp_path}/moved")),
        (DENIED, ("read", f"{tmp_path}/note.key")), ("ok", ("read", f"{tmp_path}/d/note.key")),
        (DENIED, ("read", f"{tmp_path}/d/id_rsa")), (DENIED, ("read", f"{tmp_path}/file_ä")),
        (DENIED, ("read", f"{tmp_path}/file_x")), ("ok", ("read", f"{tmp_path}/file_")), (DENIED, ("read", f"{tmp_path}/open")),
        (DENIED, ("creat", f"{tmp_path}/new.key")), (DENIED, ("rename", f"{tmp_path}/file_", f"{tmp_path}/x.key")),
    )  # fmt: skip


def test_paths_of_4096_bytes(bench: Any, tmp_path: Path) -> None:
    """Longer than any path can be named: known by the directories above."""
    top, here, many = str(tmp_path), os.open("/", os.O_RDONLY), (4090 - len(str(tmp_path)) - 5) // 2
    os.chdir(top)
    try:
        for _ in range(many):
            os.mkdir("q")
            os.chdir("q")
        Path("file").write_text("x")
    finally:
        os.fchdir(here)
        os.close(here)
    path = f"{top}{'/q' * many}/file"
    assert len(path) >= 4088
    bench.hold(files(f"{{path: {path}}}"))
    bench.expect((DENIED, ("deep", top, "q", many)))
    bench.hold(
        f"file: {{matchDirectories: [{{dir: {path[:2000].rpartition('/')[0]}/, recursive: true}}]}}, action: Block"
    )
    bench.expect((DENIED, ("deep", top, "q", many)))
    bench.hold(f'file: {{matchPatterns: [{{pattern: "{top}/**/file"}}]}}, action: Block')
    bench.expect((DENIED, ("deep", top, "q", many)))
    bench.hold(files(f"{{path: {path}x}}"))
    bench.expect(("ok", ("deep", top, "q", many)))


def test_programs_by_any_way_into_memory(bench: Any, tmp_path: Path) -> None:
    tool = shutil.copy("/bin/true", f"{tmp_path}/tool")
    loader = next(
        path for path in ("/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1") if os.path.exists(path)
    )
    bench.hold(f"process: {{matchPaths: [{{path: {tool}}}]}}, action: Block")
    bench.expect(
        (DENIED, ("run", tool)), (DENIED, ("mmap", tool)), (DENIED, ("mprotect", tool)), ("ok", ("run", "/bin/true")),
        (DENIED, ("run", loader, tool)), ("ok", ("run", loader, "/bin/true")),
    )  # fmt: skip
    bench.hold(f"process: {{matchDirectories: [{{dir: {tmp_path}/, recursive: true}}]}}, action: Block")
    bench.expect((DENIED, ("run", loader, tool)), ("ok", ("mmap", tool)))


def test_presets(bench: Any, tmp_path: Path) -> None:
    def preset(name: str) -> str:
        return f"presets: [{{name: {name}}}], action: Block"

    bench.hold(preset("filelessExec"))
    bench.expect((DENIED, ("memfd", "/bin/true")), ("ok", ("run", "/bin/true")))
    bench.hold(preset("anonymousMapExec"))
    bench.expect(
        (DENIED, ("anonymous",)),
        (DENIED, ("anonymous-later",)),
        ("ok", ("anonymous-data",)),
        ("ok", ("run", "/bin/true")),
    )
    other = os.getpid()
    bench.hold(preset("protectEnv"))
    bench.expect(
        (DENIED, ("read", f"/proc/{other}/environ")),
        ("ok", ("read", "/proc/self/environ")),
        ("ok", ("read", f"/proc/{other}/stat")),
    )
    bench.hold(preset("protectProc"))
    bench.expect(
        (DENIED, ("read", f"/proc/{other}/stat")), ("ok", ("read", "/proc/self/stat")), ("ok", ("read", "/proc/stat"))
    )
    runtime = shutil.copy("/bin/sh", f"{tmp_path}/runc")
    bench.hold(preset("exec"))
    bench.expect(
        (DENIED, ("terminal", runtime, "/bin/true;", "exit", "$?")), ("ok", ("terminal", "/bin/sh", "/bin/true;", "exit", "$?")),
        ("ok", ("run", runtime, "-c", "/bin/true; exit $?")),
    )  # fmt: skip


def test_a_process_that_another_attaches_to(bench: Any) -> None:
    """Its memory has its environment, and is read without any file below /proc."""
    attaching = ("ptrace", "read-memory", "take-descriptor", "open-memory")
    bench.expect(*(("ok", (call,)) for call in attaching))
    for name in ("protectEnv", "protectProc"):
        bench.hold(f"presets: [{{name: {name}}}], action: Block")
        # What the kernel makes of the refusal when a file below /proc is opened for it (fs/proc/base.c, mm_access).
        refused = {"open-memory": "EACCES"} if name == "protectEnv" else {}
        bench.expect(*((refused.get(call, DENIED), (call,)) for call in attaching), ("ok", ("run", "/bin/true")))


def test_rules_without_a_terminal(bench: Any, tmp_path: Path) -> None:
    tool = shutil.copy("/bin/true", f"{tmp_path}/tool")
    bench.hold(f"process: {{matchPaths: [{{path: {tool}, pts: false}}]}}, action: Block")
    bench.expect(("ok", ("run", tool)), (DENIED, ("terminal", "/bin/sh", f"{tool};", "exit", "$?")))


def test_capabilities(bench: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    file = f"{tmp_path}/file"
    python = os.path.realpath(sys.executable)
    names = ("chown", "sys_admin", "sys_module", "bpf")
    bench.hold(
        f"capabilities: {{matchCapabilities: [{', '.join(f'{{capability: {name}}}' for name in names)}]}}, action: Block"
    )
    bench.expect(
        (DENIED, ("chown", file)), (DENIED, ("sethostname",)), (DENIED, ("module",)), (DENIED, ("bpf",)),
        (DENIED, ("mount", str(tmp_path), str(tmp_path))), ("ok", ("chmod", file)), ("ok", ("socket", 2, 3, 1)),
    )  # fmt: skip
    bench.hold(
        f"capabilities: {{matchCapabilities: [{{capability: net_raw}}, {{capability: net_raw, fromSource: [{{path: {python}}}], action: Allow}}]}}, "
        "action: Block"
    )
    bench.expect(("ok", ("socket", 2, 3, 1)))
    bench.hold(
        "capabilities: {matchCapabilities: [{capability: net_raw}]}, action: Allow",
        postures=PostureSettings(capabilities="block"),
    )
    bench.expect(("ok", ("socket", 2, 3, 1)), (DENIED, ("sethostname",)))


def test_sockets_of_every_family(bench: Any) -> None:
    packet, unix, inet, netlink, vsock = 17, 1, 2, 16, 40
    bench.hold("network: {matchProtocols: [{protocol: all}]}, action: Block")
    bench.expect(*((DENIED, ("socket", family, 2)) for family in (packet, unix, inet, netlink, vsock)))
    bench.hold("network: {matchProtocols: [{protocol: raw}]}, action: Block")
    bench.expect(
        (DENIED, ("socket", packet, 3, 0x300)),
        (DENIED, ("socket", inet, 3, 1)),
        ("ok", ("socket", packet, 2)),
        ("ok", ("socket", netlink, 3)),
    )
    bench.hold("network: {matchProtocols: [{protocol: tcp}]}, action: Allow", postures=PostureSettings(network="block"))
    bench.expect(
        ("ok", ("socket", inet, 1)), (DENIED, ("socket", inet, 2)), (DENIED, ("socket", packet, 2)), ("ok", ("socket", unix, 1)),
        (DENIED, ("socket", inet, 3, 6)),
    )  # fmt: skip


@pytest.mark.parametrize("action", ["Block", "Allow"])
def test_sockets_without_a_terminal(bench: Any, server: int, action: str) -> None:
    """Both mean the same: who has none is free."""
    receipt = bench.hold(f"network: {{matchProtocols: [{{protocol: tcp, pts: false}}]}}, action: {action}")
    assert receipt.refused == ()
    inet, local = socket.AF_INET, ("connect", "127.0.0.1", server)
    bench.expect(
        ("ok", ("socket", inet, 1)), ("ok", local), (DENIED, ("on-terminal", "socket", inet, 1)), (DENIED, ("on-terminal", *local)),
        ("ok", ("on-terminal", "socket", inet, 2)), ("ok", ("on-terminal", "socket", socket.AF_UNIX, 1)),
    )  # fmt: skip


def test_a_preset_that_allows_denies_nothing_at_all(bench: Any, tmp_path: Path) -> None:
    tool = str(shutil.copy("/bin/true", tmp_path / "tool"))
    names = ("filelessExec", "anonymousMapExec", "protectEnv", "protectProc", "exec")
    bench.hold(f"presets: [{', '.join(f'{{name: {name}}}' for name in names)}], action: Allow")
    bench.expect(
        ("ok", ("memfd", tool)), ("ok", ("anonymous",)), ("ok", ("ptrace",)), ("ok", ("read", "/proc/1/environ"))
    )


def test_peers_and_ports(bench: Any, server: int) -> None:
    bench.hold(
        "",
        host=f"egress: [{{to: [{{ipBlock: {{cidr: 127.0.0.0/8}}}}], ports: [{{port: {server}, protocol: TCP}}], action: Block}}]",
    )
    bench.expect(
        (DENIED, ("connect", "127.0.0.1", server)), (DENIED, ("connect", "0.0.0.0", server)),
        (DENIED, ("connect", "::ffff:127.0.0.1", server)), (DENIED, ("fast-open", "127.0.0.1", server)),
        (DENIED, ("connect", "127.0.0.1", server, 1, 262)), ("ok", ("connect", "::1", server)),
    )  # fmt: skip


def test_ports_that_are_listened_on(bench: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    bench.hold("", host=f"ingress: [{{ports: [{{port: {port}, protocol: TCP}}], action: Block}}]")
    bench.expect((DENIED, ("bind", port)), ("ok", ("bind", 0)), ("ok", ("listen", True)))
    bench.hold("", host="ingress: [{ports: [{port: 1, endPort: 65535, protocol: TCP}], action: Block}]")
    bench.expect((DENIED, ("bind", port)), (DENIED, ("listen", False)))


def test_a_connection_on_a_port_that_nobody_asked_for(bench: Any, tmp_path: Path) -> None:
    """The socket was bound outside: at accept its port is asked about."""
    with socket.socket() as outside:
        outside.bind(("127.0.0.1", 0))
        outside.listen()
        port, number = outside.getsockname()[1], outside.fileno()
        bench.hold("", host=f"ingress: [{{ports: [{{port: {port}, protocol: TCP}}], action: Block}}]")
        process = bench.box.start(
            sys.executable, "-S", CALLS, json.dumps([("accept", number)]), stdout=subprocess.PIPE, pass_fds=(number,)
        )
        assert json.loads(process.communicate(timeout=300)[0]) == [DENIED]


def test_what_gives_files_other_paths(bench: Any, tmp_path: Path) -> None:
    """Off unless asked for; then where rules on paths deny something."""
    (tmp_path / "secret").write_text("x")
    (tmp_path / "there").mkdir()
    source, target = str(tmp_path), f"{tmp_path}/there"
    rules = files(f"{{path: {tmp_path}/secret}}")
    bench.hold(rules)
    bench.expect(("ok", ("mount", source, target)), ("ok", ("userns",)))
    bench.hold(rules, mounts=False)
    bench.expect(
        (DENIED, ("mount", source, target)), (DENIED, ("open-tree", source, target)), (DENIED, ("pivot", target))
    )
    if os.path.exists(f"{bench.pin_dir}/links/lsm_userns_create"):
        bench.expect((DENIED, ("userns",)))
    bench.hold("network: {matchProtocols: [{protocol: raw}]}, action: Block", mounts=False)
    bench.expect(("ok", ("mount", source, target)))


def test_a_large_table_is_switched_under_a_hammer(
    bench: Any, tmp_path: Path, identity: Any, policies: Any, ksp: Any, eventually: Callable[..., Any]
) -> None:
    """Two tables take each other's place, and every fiftieth time one is written anew and the old one deleted: no open of the denied path
    passes, none of the free one is denied."""
    swaps, rules = (1000, 10000) if os.environ.get("HAUBERK_TEST_VM") == "all" else (200, 1000)
    for name in ("secret", "free"):
        (tmp_path / name).write_text("x")
    names = iter(range(1 << 30))

    def scope() -> ScopePlan:
        paths = [f"{tmp_path}/secret", *(f"/srv/{next(names)}" for _ in range(rules - 1))]
        made = (
            PathRule(cls=Class.FILE, match="path", value=path, action=Action.BLOCK, ref=RuleRef("p")) for path in paths
        )
        return ScopePlan(uid="u", cgroups=(bench.box.id,), cgroup_path=bench.box.path, paths=tuple(made))

    bench.hold(files(f"{{path: {tmp_path}/secret}}"))
    hooks = LsmEnforcer(bench.pin_dir)
    pinned = existing(bench.pin_dir)
    assert pinned is not None
    encoder = Encoder((hooks,), pinned.key)
    tables = KernelTables(bench.pin_dir, (hooks,), 0.2)

    def filled() -> Encoded:
        encoder.begin()
        made = encoder.encode(scope())
        tables.fill(made.table, made.entries, made.cells)
        return made

    pair = [filled(), filled()]
    end = tmp_path / "end"
    process = bench.box.start(
        sys.executable, "-S", CALLS, json.dumps([("hammer", f"{tmp_path}/secret", f"{tmp_path}/free", str(end))])
    )
    try:
        eventually(lambda: Path(f"{end}-begun").exists())
        for number in range(swaps):
            if number % 50 == 49:
                pair[number & 1] = filled()
            now = pair[number & 1]
            assert tables.switch(bench.box.id, now.table, now.flags)
            tables.retire({one.table for one in pair})
            tables.sweep()
    finally:
        end.touch()
        process.wait(300)
        tables.close()
    rounds, missed, wrong = json.loads(end.read_text())
    assert rounds > 100
    assert (missed, wrong) == (0, 0), rounds
