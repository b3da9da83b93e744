# SPDX-License-Identifier: Apache-2.0
"""bpf(2) and maps on the real kernel: every kind of map the house uses, batches against single calls, errors that say what to do."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kernel import bpf
from kernel.maps import BATCH, Map, possible_cpus
from kernel.ring import Ring
from schemas.errors import KernelError, PermissionMissing

HASH, ARRAY, PERCPU_HASH, PERCPU_ARRAY, LRU, RINGBUF = 1, 2, 5, 6, 9, 27
pytestmark = pytest.mark.kernel


def key(n: int) -> bytes:
    return struct.pack("=Q", n)


def refusal() -> str:
    try:
        os.close(bpf.map_create(ARRAY, 4, 8, 1))
    except KernelError as error:
        return str(error)
    return ""


if refusal():
    pytest.skip(f"no BPF here: {refusal()}", allow_module_level=True)


@pytest.fixture(params=["batches", "one by one"])
def table(request: pytest.FixtureRequest) -> Iterator[Map]:
    found = Map(bpf.map_create(HASH, 8, 8, 8192, name="table"))
    if request.param == "one by one":
        found._batches = False
    yield found
    found.close()


@pytest.mark.parametrize("count", [0, 1, BATCH, BATCH + 1, 5000])
def test_a_hash_keeps_what_it_is_given(table: Map, count: int) -> None:
    pairs = {key(n): key(n * n) for n in range(count)}
    assert table.put_many(pairs.items()) == count
    assert dict(table.items()) == pairs
    assert sorted(table.keys()) == sorted(pairs)
    table.delete_many([key(n) for n in range(0, count + 10, 2)])
    assert dict(table.items()) == {k: v for k, v in pairs.items() if k[0] % 2}


def test_clear_and_single_calls(table: Map) -> None:
    assert table.get(key(1)) is None
    assert table.delete(key(1)) is False
    table.put(key(1), key(2))
    assert table.get(key(1)) == key(2)
    with pytest.raises(KernelError, match="EEXIST"):
        table.put(key(1), key(3), bpf.NOEXIST)
    with pytest.raises(KernelError, match="ENOENT"):
        table.put(key(9), key(3), bpf.EXIST)
    assert table.delete(key(1)) is True
    table.put_many([(key(n), key(n)) for n in range(3000)])
    table.clear()
    assert list(table.keys()) == []


def test_sizes_are_checked_before_the_kernel_reads_beyond(table: Map) -> None:
    for call in (
        lambda: table.get(b"short"),
        lambda: table.put(key(1), b""),
        lambda: table.put_many([(key(1), b"no")]),
        lambda: table.delete_many([b"no"]),
    ):
        with pytest.raises(ValueError, match=r"expected \d+ bytes"):
            call()


def test_percpu_values_are_summed() -> None:
    with Map(bpf.map_create(PERCPU_ARRAY, 4, 8, 4, name="counts")) as counts:
        index = struct.pack("=I", 2)
        counts.put(index, b"".join(key(n + 1) for n in range(possible_cpus())))
        assert counts.sum_u64(index) == sum(range(1, possible_cpus() + 1))
        assert counts.percpu


def test_a_full_map_says_so() -> None:
    with Map(bpf.map_create(HASH, 8, 8, 2, name="small")) as small:
        small.put(key(0), key(0))
        small.put(key(1), key(1))
        with pytest.raises(KernelError, match="E2BIG") as caught:
            small.put(key(2), key(2))
    assert caught.value.operation == "MAP_UPDATE"
    assert caught.value.target == "small"
    assert "full" in str(caught.value)


def test_what_is_not_pinned_is_named(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match="ENOENT") as caught:
        Map.open(str(tmp_path / "nothing"))
    assert caught.value.operation == "OBJ_GET"
    assert str(tmp_path) in str(caught.value)


def test_pins_outlive_their_maker(bpffs_home: Callable[[str], str]) -> None:
    where = bpffs_home("pins")
    subprocess.run(["mount", "-t", "bpf", "bpf", where], check=True)
    try:
        path = f"{where}/map"
        with Map(bpf.map_create(HASH, 8, 8, 2, name="kept")) as made:
            bpf.pin(made.fd, path)
            made.put(key(1), key(2))
        with Map.open(path) as again:
            assert again.get(key(1)) == key(2)
            assert again.info.name == "kept"
        with pytest.raises(KernelError, match="map type 27"):
            Ring.open(path)
    finally:
        subprocess.run(["umount", "-l", where], check=True)


def instructions(*codes: tuple[int, int, int, int]) -> bytes:
    return b"".join(struct.pack("=BBhi", *code) for code in codes)


RETURN_1 = instructions((0xB7, 0, 0, 1), (0x95, 0, 0, 0))


def test_a_program_loads_runs_and_attaches_to_a_cgroup(cgroup: Path) -> None:
    program = bpf.program_load(18, RETURN_1, name="allow", attach_type=10)  # cgroup/connect4
    directory = os.open(cgroup, os.O_RDONLY)
    try:
        link = bpf.cgroup_attach(program, directory, 10, str(cgroup))
        assert link >= 0
        bpf.link_detach(link)
        bpf.link_detach(link)
        os.close(link)
    finally:
        os.close(directory)
        os.close(program)


def test_a_refused_program_shows_the_verifiers_words() -> None:
    with pytest.raises(KernelError, match=r"PROG_LOAD.*verifier: invalid bpf_context access"):
        bpf.program_load(1, instructions((0xBF, 0x10, 0, 0), (0x79, 0x11, 0, 0), (0x95, 0, 0, 0)), name="bad")


def test_without_privilege_the_error_says_which() -> None:
    code = (
        "import os\nfrom kernel import bpf\nfrom schemas.errors import PermissionMissing\n"
        "os.setuid(65534)\n"
        "try: bpf.program_load(17, bytes.fromhex('b700000001000000' '9500000000000000'))\n"
        "except PermissionMissing as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "EPERM" in done.stdout
    assert "CAP_BPF" in done.stdout
    assert issubclass(PermissionMissing, KernelError)


def test_ring_of_the_kernel_maps_and_is_empty() -> None:
    fd = bpf.map_create(RINGBUF, 0, 0, 4096, name="ring")
    with Ring.of(fd, "ring") as ring:
        os.close(fd)
        assert ring.waiting == 0
        assert ring.take_table(4096) == b""
        assert ring.take_records(4096) == []


def test_the_kernel_counts_what_programs_cost() -> None:
    program = bpf.program_load(17, struct.pack("=BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0), name="test_time")
    link = bpf.raw_tracepoint_open(program, "sys_exit")
    enabled = bpf.enable_stats()
    try:
        before = bpf.program_time(program)[1]
        for _ in range(100):
            os.getppid()
        nanoseconds, runs = bpf.program_time(program)
        assert runs >= before + 100
        assert 0 < nanoseconds / runs < 1e6
    finally:
        for fd in (enabled, link, program):
            os.close(fd)
