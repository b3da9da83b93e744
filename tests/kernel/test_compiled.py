# SPDX-License-Identifier: Apache-2.0
"""Compiled programs kept for the next load: found only when they fit, trusted only when nobody else could write them."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel import compiled
from kernel.bpf import MapInfo
from kernel.compiled import Compiled, fingerprint, placeholders, relocated, store, stored, without_descriptors
from kernel.siphash import start
from schemas.errors import KernelError

u32 = st.integers(0, (1 << 32) - 1)
u64 = st.integers(0, (1 << 64) - 1)
SECRETS = [int(text.strip('"'), 16) for text in placeholders().values()]


def load_64(value: int, source: int = 0, register: int = 1) -> bytes:
    """The two instructions of `register = value ll`."""
    return struct.pack("=BBhIBBhI", 0x18, source << 4 | register, 0, value & 0xFFFFFFFF, 0, 0, 0, value >> 32)


MADE = Compiled(
    maps={"one": MapInfo(2, 7, 4, 8, 1, 0, "one"), "two": MapInfo(1, 8, 8, 8, 64, 1, "two")},
    programs={"hop_call": load_64(1, 1) + struct.pack("=BBhi", 0x95, 0, 0, 0)},
    attach_to={"on_exec": "sched_process_exec"},
)


@given(st.lists(st.sampled_from([3, 9, 2**31 - 1])), st.lists(u64), u64, u64)
def test_descriptors_and_key_are_written_and_nothing_else(
    fds: list[int], constants: list[int], k0: int, k1: int
) -> None:
    maps = {"a": 9, "b": 3, "c": 2**31 - 1}
    constants = [one for one in constants if one not in SECRETS]
    code = b"".join(load_64(fd, 1) for fd in fds) + b"".join(map(load_64, constants + SECRETS))
    kept = without_descriptors(code, maps)
    assert kept == b"".join(load_64(list(maps.values()).index(fd), 1) for fd in fds) + b"".join(
        map(load_64, constants + SECRETS)
    )
    later = {"a": 30, "b": 31, "c": 32}
    names = {fd: name for name, fd in maps.items()}
    words = start((k0, k1))
    assert relocated(kept, later, (k0, k1)) == b"".join(load_64(later[names[fd]], 1) for fd in fds) + b"".join(
        map(load_64, [*constants, *words])
    )


def test_a_second_half_is_not_taken_for_an_instruction() -> None:
    # The upper half of a constant may look like the start of another load.
    trap = load_64(0x18 << 32 | 0x18)
    assert relocated(trap, {}, (1, 2)) == trap


def test_a_map_nobody_listed_is_an_error() -> None:
    with pytest.raises(KernelError, match="got descriptor 5 at instruction 2; list the map"):
        without_descriptors(load_64(4, 1) + load_64(5, 1), {"a": 4})


def test_what_is_kept_is_found_under_its_name_only(tmp_path: Path) -> None:
    directory = str(tmp_path / "programs")
    assert stored(directory, "a" * 32) is None
    assert store(directory, "a" * 32, MADE) == ""
    assert stored(directory, "a" * 32) == MADE
    assert stored(directory, "b" * 32) is None
    assert os.stat(directory).st_mode & 0o777 == 0o700
    assert os.stat(f"{directory}/{'a' * 32}").st_mode & 0o777 == 0o600
    compiled.forget(directory, "a" * 32)
    compiled.forget(directory, "a" * 32)
    assert stored(directory, "a" * 32) is None


@given(st.data())
def test_a_damaged_file_is_not_there(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    directory = str(tmp_path_factory.mktemp("programs", numbered=True))
    os.chmod(directory, 0o700)
    store(directory, "c" * 32, MADE)
    path = Path(directory, "c" * 32)
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    damaged = whole[:at] if data.draw(st.booleans()) else whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    path.write_bytes(damaged)
    assert stored(directory, "c" * 32) is None


@pytest.mark.parametrize(
    "what", ["file of others", "directory of others", "file anybody writes", "directory anybody writes", "link"]
)
def test_what_others_can_write_is_not_loaded(tmp_path: Path, what: str) -> None:
    directory = tmp_path / "programs"
    name = "d" * 32
    store(str(directory), name, MADE)
    target = directory if "directory" in what else directory / name
    if "of others" in what:
        if os.geteuid():
            pytest.skip("only root gives files away")
        os.chown(target, 12345, 12345)
    elif what == "link":
        os.rename(target, tmp_path / "elsewhere")
        target.symlink_to(tmp_path / "elsewhere")
    else:
        target.chmod(0o777)
    assert stored(str(directory), name) is None
    if "directory" in what:
        assert "can be written by others" in store(str(directory), name, MADE)


def test_a_directory_that_cannot_be_written_is_a_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be written: Not a directory" in store(str(tmp_path / "file" / "programs"), "e" * 32, MADE)
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_only_the_files_used_last_are_kept(tmp_path: Path) -> None:
    names = [f"{number:032x}" for number in range(compiled.KEPT + 2)]
    for age, name in enumerate(names[:-1]):
        store(str(tmp_path), name, MADE)
        os.utime(tmp_path / name, (1000 + age, 1000 + age))
    assert stored(str(tmp_path), names[1]) == MADE, "used now"
    store(str(tmp_path), names[-1], MADE)
    left = {one.name for one in tmp_path.iterdir()}
    assert left == {names[1], *names[3:]}


def test_the_fingerprint_knows_text_flags_and_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    base = fingerprint({"text": "a", "flags": "b"})
    assert base == fingerprint({"flags": "b", "text": "a"})
    assert base != fingerprint({"text": "ab", "flags": ""})
    release = os.uname()
    other = os.uname_result((release.sysname, release.nodename, release.release, "#2 another build", release.machine))
    monkeypatch.setattr(os, "uname", lambda: other)
    assert base != fingerprint({"text": "a", "flags": "b"})


def test_what_a_killed_process_of_this_number_left_keeps_nothing_from_being_kept(tmp_path: Path) -> None:
    name = "a" * 32
    tmp_path.chmod(0o700)
    (tmp_path / f".{name}.{os.getpid()}").touch()
    assert store(str(tmp_path), name, MADE) == ""
    assert stored(str(tmp_path), name) == MADE
    assert [one.name for one in tmp_path.iterdir()] == [name]
