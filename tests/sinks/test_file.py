# SPDX-License-Identifier: Apache-2.0
"""Rotation, repair, full disks, moved files: a line is whole or absent, and nothing accepted is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.alert import encode_alert
from schemas.errors import DiskFull, SettingsError, Unavailable
from sinks.file import FileSettings, FileSink
from sinks.line_file import LineFile


def line_file(path, **options):
    values = {"rotate_bytes": 1 << 20, "rotate_seconds": 0, "keep": 3, "sync_each": False, "sync_rotate": False}
    return LineFile(str(path), **{**values, **options})


def numbers(*paths):
    return [json.loads(line)["n"] for path in paths if path.exists() for line in path.read_bytes().splitlines()]


def lines(first, last):
    return b"".join(b'{"n":%d}\n' % n for n in range(first, last))


async def test_lines_are_kubearmor_json_and_for_the_owner_alone(tmp_path, make):
    path = tmp_path / "alerts.jsonl"
    sink = FileSink(FileSettings(path=str(path), fsync="batch"))
    await sink.open()
    await sink.send([encode_alert(make.alert(1)), encode_alert(make.alert(2))])
    await sink.close()
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert first["PolicyName"] == "no-shadow"
    assert second["EventID"] == "node-1:boot:2"
    assert os.stat(path).st_mode & 0o777 == 0o600


def test_rotates_by_size_and_keeps_so_many(tmp_path):
    path = tmp_path / "a"
    file = line_file(path, rotate_bytes=4096, keep=2)
    for start in range(0, 2000, 100):
        file.append(lines(start, start + 100))
    file.close()
    assert sorted(os.listdir(tmp_path)) == ["a", "a.1", "a.2"]
    kept = numbers(tmp_path / "a.2", tmp_path / "a.1", path)
    assert kept == list(range(kept[0], 2000))
    assert max(os.stat(tmp_path / name).st_size for name in os.listdir(tmp_path)) <= 4096
    assert file.rotations >= 3


def test_keeps_none_when_told_so(tmp_path):
    file = line_file(tmp_path / "a", rotate_bytes=100, keep=0)
    for start in range(0, 100, 10):
        file.append(lines(start, start + 10))
    file.close()
    assert os.listdir(tmp_path) == ["a"]
    assert numbers(tmp_path / "a")[-1] == 99


def test_rotates_by_age(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(lines(0, 1))
    old = time.time() - 100
    os.utime(path, (old, old))
    file = line_file(path, rotate_seconds=50)
    file.open()
    file.rotate_if_old()
    assert numbers(tmp_path / "a.1") == [0]
    file.append(lines(1, 2))
    file.rotate_if_old()
    file.close()
    assert numbers(path) == [1]


@given(keep=st.integers(0, 5), junk=st.integers(1, 200_000))
def test_a_partial_line_is_cut_off_at_open(tmp_path_factory, keep, junk):
    path = tmp_path_factory.mktemp("file") / "a"
    path.write_bytes(lines(0, keep) + b'{"n":' + b"9" * junk)
    file = line_file(path, rotate_bytes=1 << 30)
    file.open()
    assert file.repaired_bytes == junk + 5
    file.append(lines(keep, keep + 1))
    file.close()
    assert numbers(path) == list(range(keep + 1))


def test_kill_9_leaves_whole_lines_and_everything_that_was_accepted(tmp_path):
    code = textwrap.dedent("""
        import sys
        from sinks.line_file import LineFile
        file = LineFile(sys.argv[1], rotate_bytes=1 << 30, rotate_seconds=0, keep=3, sync_each=False, sync_rotate=False)
        n = 0
        while True:
            file.append(b"".join(b'{"n":%d}\\n' % (n + i) for i in range(1000)))
            n += 1000
            print(n, flush=True)
    """)
    path = tmp_path / "a"
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        for _ in range(200):
            accepted = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        accepted = max([accepted, *[int(line) for line in writer.stdout.read().split()]])
        writer.wait()
    file = line_file(path, rotate_bytes=1 << 30)
    file.open()
    file.close()
    assert numbers(path)[:accepted] == list(range(accepted))


def test_a_full_disk_leaves_no_half_batch_and_goes_on_when_there_is_room(tmp_path):
    code = textwrap.dedent("""
        import resource, signal, sys
        from schemas.errors import DiskFull, Unavailable
        from sinks.line_file import LineFile
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        file = LineFile(sys.argv[1], rotate_bytes=1 << 30, rotate_seconds=0, keep=3, sync_each=True, sync_rotate=True)
        file.append(b'{"n":0}\\n')
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, resource.RLIM_INFINITY))
        batch = b"".join(b'{"n":%d}\\n' % n for n in range(1, 200))
        try:
            file.append(batch)
        except Unavailable as error:
            print(error)
        print(open(sys.argv[1]).read() == '{"n":0}\\n')
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        file.append(batch)
        file.close()
    """)
    path = tmp_path / "a"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"file sink: expected to write `{path}`, got File too large", "True"]
    assert numbers(path) == list(range(200))


def test_no_space_is_a_sentence(tmp_path):
    path = tmp_path / "a"
    file = line_file(path)
    file.open()
    # /dev/full refuses every write with ENOSPC, as a full disk does.
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, file._fd)
    os.close(full)
    with pytest.raises(DiskFull, match="the disk is full; free space, nothing is lost meanwhile"):
        file._write(b'{"n":1}\n')
    file.close()


def test_follows_a_file_that_was_moved_or_removed_or_cut(tmp_path):
    path = tmp_path / "a"
    file = line_file(path)
    file.append(lines(0, 1))
    path.rename(tmp_path / "moved")
    file.append(lines(1, 2))
    path.unlink()
    file.append(lines(2, 3))
    os.truncate(path, 0)
    file.append(lines(3, 4))
    file.close()
    assert (numbers(tmp_path / "moved"), numbers(path)) == ([0], [3])


def test_another_programs_file_is_left_alone(tmp_path):
    path = tmp_path / "passwd"
    path.write_text("root:x:0:0")
    with pytest.raises(SettingsError, match="its first byte is b'r'; it is not ours"):
        line_file(path).open()
    assert path.read_text() == "root:x:0:0"


def test_a_directory_that_goes_away_is_temporary_or_a_sentence(tmp_path):
    directory = tmp_path / "d"
    directory.mkdir()
    file = line_file(directory / "a")
    file.append(lines(0, 1))
    (directory / "a").unlink()
    directory.rmdir()
    with pytest.raises((Unavailable, SettingsError), match="d"):
        file.append(lines(1, 2))
    directory.mkdir()
    file.append(lines(1, 2))
    file.close()
    assert numbers(directory / "a") == [1]
