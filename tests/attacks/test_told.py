# SPDX-License-Identifier: Apache-2.0
"""What is done under another name than it looks like: scripts, modes that change under the call, names that are cut or left out.

SECURITY.md promises that a rule on a `#!` file holds for it, whatever it is called by; that access is the opened file's own; and
that what is told is what happened. What happens by name (unlink, rename, link) is answered after it has happened.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from waiting import eventually

POLICIES = """
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {{name: held, annotations: {{hauberk.io/signal: enabled}}}}
spec:
  selector: {{matchLabels: {{app: box}}}}
  severity: 9
  process:
    matchPaths: [{{path: {home}/backup.sh}}, {{execname: other.sh}}]
    matchDirectories: [{{dir: {home}/noexec/, recursive: true}}]
  file:
    matchPaths: [{{path: {home}/ro, readOnly: true}}, {{path: {home}/precious}}]
    matchDirectories: [{{dir: {home}/shut/}}]
  action: Block
---
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {{name: told}}
spec:
  selector: {{matchLabels: {{app: glass}}}}
  severity: 5
  process:
    matchPaths: [{{path: {home}/tool, allowedArgs: [-m, app.main], action: Block}}, {{path: {home}/bin/busybox}}]
    matchPatterns: [{{pattern: "{home}/*.sh"}}]
  file: {{matchPaths: [{{path: {home}/secret}}, {{path: {home}/ro, readOnly: true}}]}}
  syscalls: {{matchSyscalls: [{{syscall: [mount, execveat]}}]}}
  action: Audit
"""


def script(path: Path, text: str, interpreter: str = "/bin/sh") -> None:
    path.write_text(f"#!{interpreter}\n{text}\n")
    path.chmod(0o755)


@pytest.fixture(scope="module")
def attacked(
    make_container: Callable[[str], Any], make_node: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Any:
    home = Path(os.path.realpath(tmp_path_factory.mktemp("told")))
    (home / "noexec").mkdir()
    (home / "shut").mkdir()
    (home / "bin").mkdir()
    for name in ("backup.sh", "other.sh", "noexec/deep.sh"):
        script(home / name, "echo ran")
    script(home / "outer", "", str(home / "noexec/deep.sh"))
    (home / "innocent").symlink_to("backup.sh")
    for name in ("ro", "precious", "secret"):
        (home / name).write_text("text")
    shutil.copy("/bin/true", home / "tool")
    shutil.copy("/bin/true", home / "noexec/tool")
    shutil.copy("/bin/true", home / "bin/busybox")
    (home / "bin/cat").symlink_to("busybox")
    node = make_node(POLICIES.format(home=home), make_container("box"), make_container("glass"))
    node.files = home
    return node


@pytest.mark.parametrize("name", ["backup.sh", "other.sh", "noexec/deep.sh", "innocent", "outer"])
@pytest.mark.attack(
    "Exec of a blocked `#!` file, by its path, a symbolic link or as another's interpreter", "held", by="signal"
)
def test_a_script(attacked: Any, name: str) -> None:
    done = attacked.containers["box"].run(str(attacked.files / name))
    assert (done.returncode, done.stdout) == (-9, "")
    told = attacked.files / "noexec/deep.sh" if name == "outer" else (attacked.files / name).resolve()
    alert = attacked.alert(Operation="Process", Resource=str(told), Enforcer="Hauberk signal")
    assert (alert["Action"], alert["PolicyName"]) == ("Block", "held")
    assert (alert["ProcessName"], alert["Script"]) == (os.path.realpath("/bin/sh"), str(told))


@pytest.mark.attack(
    "Exec of a blocked `#!` file while the kernel forgets it (an io_uring ends with the old image)", "held", by="signal"
)
def test_a_script_that_the_kernel_forgets(attacked: Any, build: Callable[[str], str]) -> None:
    """Its path is not known then, and an enforced scope stops what it does not know (`fail closed`)."""
    done = attacked.containers["box"].run(build("script_after_ring"), str(attacked.files / "innocent"))
    assert (done.returncode, done.stdout) == (-9, "")


LOADERS = [path for path in ("/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1") if os.path.exists(path)]


@pytest.mark.parametrize(
    ("way", "name"), [*((loader, "noexec/tool") for loader in LOADERS[:1]), ("/bin/sh", "backup.sh")]
)
@pytest.mark.attack(
    "Blocked program run by the loader (`ld.so PROGRAM`), or blocked script by its interpreter", "not held", by="signal"
)
def test_a_program_that_another_runs(attacked: Any, way: str, name: str) -> None:
    """Nobody executes it then: it is a file that the loader, or the interpreter, reads. A rule on files holds, and the other program is told."""
    box = attacked.containers["box"]
    assert box.run(str(attacked.files / name)).returncode == -9
    assert box.run(way, str(attacked.files / name)).returncode == 0


@pytest.mark.attack("File that bind(2) of a Unix socket makes in a blocked directory", "not held", by="signal")
def test_a_socket_as_a_file(attacked: Any) -> None:
    code = f"import socket; socket.socket(socket.AF_UNIX).bind('{attacked.files}/shut/made')"
    assert attacked.containers["box"].run(sys.executable, "-S", "-c", code).returncode == 0
    assert (attacked.files / "shut/made").is_socket()
    assert attacked.containers["box"].run("touch", f"{attacked.files}/shut/other").returncode == -9


@pytest.mark.attack("Write to a readOnly file by an openat2 whose flags another thread changes", "held", by="signal")
def test_flags_that_change_under_the_call(attacked: Any, build: Callable[[str], str]) -> None:
    done = attacked.containers["box"].run(build("flipped_open"), str(attacked.files / "ro"))
    assert (done.returncode, done.stdout) == (-9, "")
    assert (attacked.files / "ro").read_text() == "text"


def test_a_name_for_a_file_is_no_change(attacked: Any) -> None:
    code = f"import os; os.open('{attacked.files}/ro', os.O_PATH | os.O_RDWR)"
    for name in ("box", "glass"):
        assert attacked.containers[name].run(sys.executable, "-c", code).returncode == 0
    code = code.replace("os.O_PATH | ", "")
    assert attacked.containers["glass"].run(sys.executable, "-c", code).returncode == 0
    attacked.alert(ContainerName="glass", Resource=str(attacked.files / "ro"))
    assert not attacked.alerts("O_PATH")


@pytest.mark.parametrize("change", ["unlink", "rename", "link"])
@pytest.mark.attack("Unlink, rename or link of a blocked file", "told", by="signal")
def test_a_change_by_name(attacked: Any, change: str) -> None:
    """The process is killed, and the change has happened: the receipt and `explain` say so, rule by rule."""
    precious = attacked.files / "precious"
    precious.write_text("text")
    second = "" if change == "unlink" else f", '{attacked.files}/{change}'"
    code = f"import os; os.{change}('{precious}'{second}); print('went on')"
    done = attacked.containers["box"].run(sys.executable, "-c", code)
    assert (done.returncode, done.stdout) == (-9, "")
    assert precious.exists() == (change == "link")
    call = {"unlink": "SYS_UNLINK", "rename": "SYS_RENAME", "link": "SYS_LINK"}[change]
    assert attacked.alert(call, ContainerName="box")["Action"] == "Block"
    for words in (("describe", "policy", "held"), ("policy", "explain", "-f", str(attacked.home / "policies.yaml"))):
        said = attacked.hauberk(*words).stdout
        assert "unlink, rename, link" in said, said


@pytest.mark.attack("Arguments that are not allowed behind 4,096 bytes of allowed ones", "told", by="sensor")
def test_arguments_behind_those_that_are_kept(attacked: Any, eventually: Callable[..., Any]) -> None:
    """Wherever the cut falls, also between two arguments."""
    tool = str(attacked.files / "tool")
    for length in range(1, 13):
        code = f"import os; os.execv('{tool}', ['x' * {length}, *['-m', 'app.main'] * 400, 'http.server'])"
        assert attacked.containers["glass"].run(sys.executable, "-c", code).returncode == 0
    allowed = f"import os; os.execv('{tool}', ['x', *['-m', 'app.main'] * 20])"
    assert attacked.containers["glass"].run(sys.executable, "-c", allowed).returncode == 0
    attacked.containers["glass"].run(tool, "last")
    attacked.alert(f"{tool} last")
    # A busy machine may shed the texts of some: then their arguments are unknown, which is not allowed either.
    eventually(lambda: len(attacked.alerts(ProcessName=tool)) >= 13)
    told = attacked.alerts(ProcessName=tool)
    assert {one["Action"] for one in told} == {"Audit (Block)"}
    long = [one for one in told if len(one["Resource"]) > 2000]
    assert long
    assert {(one["Resource"][-5:], one["Data"], one["Cut"]) for one in long} == {
        ("[cut]", "syscall=SYS_EXECVE arguments=cut", "arguments")
    }


def test_a_hard_link_is_told_with_both_names(attacked: Any) -> None:
    secret, alias = attacked.files / "secret", attacked.files / "alias"
    assert attacked.containers["glass"].run("ln", str(secret), str(alias)).returncode == 0
    alert = attacked.alert("SYS_LINKAT", ContainerName="glass", Resource=str(alias))
    assert alert["Resource2"] == str(secret)
    assert f"oldpath={secret}" in alert["Data"]


def test_a_mount_is_told_the_right_way_round(attacked: Any) -> None:
    place = attacked.files / "mnt"
    place.mkdir()
    code = (
        "import ctypes; c = ctypes.CDLL(None); assert c.unshare(0x20000) == 0; c.mount(b'none', b'/', None, 0x44000, None); "
        f"assert c.mount(b'my-device', b'{place}', b'tmpfs', 0, None) == 0"
    )
    assert attacked.containers["glass"].run(sys.executable, "-c", code).returncode == 0
    alert = attacked.alert("source=my-device")
    assert (alert["Resource"], alert["Resource2"]) == (str(place), "my-device")
    assert alert["Data"].startswith(f"syscall=SYS_MOUNT source=my-device target={place} ")


def test_execveat_and_the_name_of_a_multi_call_program(attacked: Any) -> None:
    code = f"import os; os.execve(os.open('{attacked.files}/bin/cat', os.O_PATH), ['cat', '/etc/shadow'], {{}})"
    assert attacked.containers["glass"].run(sys.executable, "-c", code).returncode == 0
    assert attacked.containers["glass"].run(str(attacked.files / "bin/cat"), "/etc/hosts").returncode == 0
    alert = attacked.alert("SYS_EXECVEAT", Operation="Process")
    assert alert["Resource"] == f"{attacked.files}/bin/cat /etc/shadow"
    alert = attacked.alert("/etc/hosts", Operation="Process")
    assert (alert["Resource"], alert["ProcessName"]) == (
        f"{attacked.files}/bin/cat /etc/hosts", f"{attacked.files}/bin/busybox",
    )  # fmt: skip


def test_what_was_told_is_judged_the_same_again(attacked: Any) -> None:
    """The alerts of this module, as they stand in the file, given to `policy test`."""
    glass = attacked.containers["glass"]
    for name in ("backup.sh", "outer"):
        assert glass.run(str(attacked.files / name)).returncode == 0
    glass.run(str(attacked.files / "tool"), "not allowed")
    assert glass.run("ln", str(attacked.files / "secret"), str(attacked.files / "alias2")).returncode == 0
    assert attacked.containers["box"].run(str(attacked.files / "backup.sh")).returncode == -9
    attacked.alert("alias2")
    attacked.alert("not allowed")
    attacked.alert(ContainerName="box", Operation="Process")

    def of_policies() -> list[dict[str, Any]]:
        return [row for row in attacked.alerts() if row["Type"] == "MatchedPolicy" and row.get("PolicyName")]

    # In the order in which the ring told them, which is not the order of the waits above.
    eventually(lambda: len(of_policies()) >= 4)
    told = of_policies()
    events = attacked.home / "again.jsonl"
    events.write_text("".join(json.dumps(row) + "\n" for row in told))
    done = attacked.hauberk(
        "policy", "test", "-f", str(attacked.home / "policies.yaml"), "--events", str(events), "-o", "json"
    )
    verdicts = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(verdicts) == len(told) >= 4, done.stderr
    differ = [
        (row, verdict)
        for row, verdict in zip(told, verdicts, strict=True)
        if (verdict["action"], verdict["policy"])
        != (row["Action"].replace("Audit (Block)", "Block"), row["PolicyName"])
    ]
    assert not differ, json.dumps(differ, indent=1)
