# SPDX-License-Identifier: Apache-2.0
"""Hashes in alerts: of the image that runs or of the file in its container, read once, within bytes and time, or none."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bus.contract import Record
from schemas.alert import Alert, decode_alert, encode_alert
from sensors.containers.hashes import Hashes, HashSettings, executed

PYTHON = os.path.realpath(sys.executable)


def alert(**fields: Any) -> Alert:
    words = {"Timestamp": 1, "UpdatedTime": "", "Type": "MatchedPolicy", "Operation": "File", "Resource": "/etc/hosts"}
    hashed = {"ProcessHash": "", "ParentHash": "", "ResourceHash": "", "HashAlgo": ""}
    return Alert(**(words | hashed | fields))


def sha(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


async def filled(hashes: Hashes, *alerts: Alert) -> list[Alert]:
    records = await hashes.fill([Record(b"k", encode_alert(one)) for one in alerts])
    return [decode_alert(record.value or b"") for record in records]


@pytest.fixture
async def hashes() -> AsyncIterator[Hashes]:
    made = Hashes(HashSettings(enabled=True, seconds=60), lambda container: os.getpid() if container == "mine" else 0)
    yield made
    made.close()


async def test_a_process_that_runs_and_its_parent_answer_by_their_images(hashes: Hashes) -> None:
    with subprocess.Popen(["/bin/sleep", "60"]) as child:
        told = alert(
            HostPID=child.pid,
            ProcessName=os.path.realpath("/bin/sleep"),
            HostPPID=os.getpid(),
            ParentProcessName=PYTHON,
        )
        (done,) = await filled(hashes, told)
        child.kill()
    assert (done.ProcessHash, done.ParentHash) == (sha("/bin/sleep"), sha(PYTHON))
    assert (done.ResourceHash, done.HashAlgo) == ("", "sha256"), "a file that was opened is not hashed"


async def test_of_an_exec_also_what_it_named(hashes: Hashes, tmp_path: Path) -> None:
    (tmp_path / "tool").write_bytes(b"x")
    told = alert(Operation="Process", ContainerID="mine", ProcessName="/gone", Resource=f"{tmp_path}/tool --flag")
    (done,) = await filled(hashes, told)
    assert (done.ProcessHash, done.ResourceHash) == ("", sha(tmp_path / "tool"))


async def test_a_file_is_read_once_until_it_changes(hashes: Hashes, tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    tool.write_bytes(b"first")
    told = alert(ContainerID="mine", ProcessName=str(tool))
    first, again = await filled(hashes, told, told)
    assert first.ProcessHash == again.ProcessHash == sha(tool)
    assert (hashes.stats.files, hashes.stats.remembered) == (1, 1)
    tool.write_bytes(b"other")
    (changed,) = await filled(hashes, told)
    assert changed.ProcessHash == sha(tool)


async def test_a_process_that_has_changed_its_image_is_not_asked(hashes: Hashes, tmp_path: Path) -> None:
    (done,) = await filled(hashes, alert(HostPID=os.getpid(), ContainerID="mine", ProcessName=f"{tmp_path}/none"))
    assert (done.ProcessHash, done.HashAlgo) == ("", "")


@pytest.fixture
def odd(tmp_path: Path) -> list[str]:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "large").write_bytes(bytes(2000))
    (tmp_path / "directory").mkdir()
    return [str(tmp_path / name) for name in ("fifo", "large", "directory", "absent")] + ["/proc/self/exe", "relative"]


async def test_what_is_no_regular_file_or_too_large_has_none(odd: list[str]) -> None:
    hashes = Hashes(HashSettings(enabled=True, max_bytes=1000, seconds=60), lambda _: os.getpid())
    for done in await filled(hashes, *(alert(ContainerID="mine", ProcessName=path) for path in odd)):
        assert (done.ProcessHash, done.HashAlgo) == ("", "")
    assert hashes.stats.large == 1
    hashes.close()


async def test_a_file_system_that_hangs_costs_hashes_and_no_alert(tmp_path: Path) -> None:
    hanging = threading.Event()

    def root_of(_: str) -> int:
        hanging.wait(60)
        return 0

    hashes = Hashes(HashSettings(enabled=True, seconds=0.01), root_of)
    told = alert(ContainerID="c", ProcessName="/bin/true")
    for late in (1, 2, 3):
        assert await filled(hashes, told) == [told]
        assert hashes.stats.late == late
    hanging.set()
    async with asyncio.timeout(60):
        while hashes._busy is not None and not hashes._busy.done():  # noqa: ASYNC110 - a thread
            await asyncio.sleep(0.001)
    hashes.close()


async def test_notices_and_bytes_that_are_no_alert_pass_as_they_are(hashes: Hashes) -> None:
    notice = Record(b"k", encode_alert(Alert(Timestamp=1, UpdatedTime="", Type="SystemEvent", Operation="EventsLost")))
    bad = Record(b"k", b"{")
    assert await hashes.fill([notice, bad]) == [notice, bad]


@pytest.mark.parametrize(
    ("process", "resource", "path"),
    [("/bin/a b", "/bin/a b -c", "/bin/a b"), ("/bin/a", "/bin/a", "/bin/a"), ("/bin/sh", "/bin/cat /x", "/bin/cat"), ("", "", "")],
)  # fmt: skip
def test_the_file_that_an_exec_named(process: str, resource: str, path: str) -> None:
    assert executed(alert(Operation="Process", ProcessName=process, Resource=resource)) == path
