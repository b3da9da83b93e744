# SPDX-License-Identifier: Apache-2.0
"""The bytes agree: records.h compiled by a C compiler, BTF against the kernel's own answers, SipHash against its twin."""

from __future__ import annotations

import re
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel import hooks
from kernel.btf import VMLINUX, Btf
from kernel.catalogue import GUARDS, HOPS, LISTENERS, PROBES, PROGRAM_DIRECTORY, SOURCES, TABLES
from kernel.features import survey, typed_loads
from kernel.headers import write_tree
from kernel.members import offsets_by_headers, offsets_from
from kernel.siphash import siphash13, string_id
from kernel.syscalls import call_records
from schemas.c_header import c_header
from schemas.errors import DecodeError, Incompatible, MissingDependency
from schemas.kernel import CALL, LAYOUTS
from schemas.socket_names import EXTENSION_HEADERS
from schemas.syscalls import I386_FIRST, ROWS, number
from schemas.watched import CALLS

DOCS = Path(__file__).parents[2] / "docs" / "kernel.md"


def test_c_and_python_agree_on_every_offset(tmp_path: Path, compiler: str) -> None:
    lines = ["#include <stdio.h>", "#include <stddef.h>", "#include <stdint.h>"]
    lines += [
        "typedef uint8_t u8; typedef uint16_t u16; typedef uint32_t u32; typedef uint64_t u64; typedef int32_t s32;"
    ]
    lines += ["typedef int64_t s64;", '#include "records.h"', "int main(void) {"]
    expected = []
    for layout in LAYOUTS:
        lines.append(f'printf("{layout.name} %zu\\n", sizeof(struct {layout.name}));')
        expected.append(f"{layout.name} {layout.size}")
        for field in layout.fields:
            lines.append(f'printf("{layout.name}.{field.name} %zu\\n", offsetof(struct {layout.name}, {field.name}));')
            expected.append(f"{layout.name}.{field.name} {layout.offsets[field.name]}")
    lines.append("return 0; }")
    (tmp_path / "records.h").write_text(c_header())
    (tmp_path / "print.c").write_text("\n".join(lines))
    subprocess.run([compiler, "-o", str(tmp_path / "print"), str(tmp_path / "print.c")], check=True, cwd=tmp_path)
    printed = subprocess.run([tmp_path / "print"], capture_output=True, text=True, check=True).stdout.split("\n")
    assert printed[:-1] == expected


def test_the_agreed_sizes() -> None:
    sizes = {layout.name: layout.size for layout in LAYOUTS}
    assert (sizes["occurrence"], sizes["behaviour"], sizes["process"], sizes["definition"]) == (56, 112, 96, 16)


def test_siphash_reference() -> None:
    # Key 00..0f over 00..0e: the vector of the SipHash paper's construction with 1 and 3 rounds, as Rust's SipHasher13 has it.
    key = struct.unpack("<QQ", bytes(range(16)))
    assert siphash13(key, b"") == 0xABAC0158050FC4DC
    assert siphash13(key, bytes(range(8))) != siphash13(key, bytes(range(7)))


@pytest.mark.kernel
def test_the_kernel_computes_the_same_ids(sensor: Any, tmp_path: Path) -> None:
    names = ["n" * length for length in (*range(1, 50), 255)]

    def act() -> None:
        for name in names:
            (tmp_path / name).touch()

    sensor.run(act)
    texts = {text.decode(): ident for ident, text in sensor.texts.items() if ident}
    for name in names:
        assert texts[f"{tmp_path}/{name}"] == string_id(sensor.key, f"{tmp_path}/{name}")
    assert all(string_id(sensor.key, text) == ident for ident, text in sensor.texts.items() if ident)


@given(st.binary(max_size=64), st.binary(max_size=64))
def test_different_texts_have_different_ids(left: bytes, right: bytes) -> None:
    key = (0x0123456789ABCDEF, 0xFEDCBA9876543210)
    assert (siphash13(key, left) == siphash13(key, right)) == (left == right)


@pytest.mark.kernel
@pytest.mark.skipif(not VMLINUX.exists(), reason="no BTF")
def test_btf_knows_this_kernel() -> None:
    btf = Btf.of_kernel()
    assert btf.size("list_head") == 16
    second = btf.member("list_head", "prev")
    assert second is not None
    assert (second.offset, second.size) == (8, 8)
    assert btf.member("task_struct", "no_such_member") is None
    assert btf.member("no_such_struct", "x") is None
    assert btf.has_tracepoint("sys_exit")
    assert not btf.has_tracepoint("no_such_tracepoint")
    assert btf.enumerator("bpf_map_type", "BPF_MAP_TYPE_HASH") == 1
    assert btf.function_id("do_exit") is not None
    nested = btf.member("file", "f_path.dentry")
    whole = btf.member("file", "f_path")
    assert nested is not None
    assert whole is not None
    assert nested.offset == whole.offset + 8


def test_the_guard_looks_behind_the_headers_that_alerts_know() -> None:
    source = (PROGRAM_DIRECTORY / "guard.c").read_text()
    named = {int(number) for number in re.findall(r"#define NEXT_\w+ (\d+)", source)}
    (asked,) = re.findall(r"more = (next .+);", source)
    assert asked.count("next == ") == len(named | {0}) == len(EXTENSION_HEADERS)
    assert named | {0} == EXTENSION_HEADERS


def test_btf_refuses_what_is_not_btf(tmp_path: Path) -> None:
    with pytest.raises(DecodeError, match="expected BTF"):
        Btf(b"\x7fELF" + bytes(60))
    with pytest.raises(MissingDependency, match="no BTF at"):
        Btf.of_kernel(tmp_path / "vmlinux")


@pytest.mark.kernel
@pytest.mark.skipif(not VMLINUX.exists(), reason="no BTF")
def test_offsets_name_what_is_missing() -> None:
    btf = Btf.of_kernel()
    assert re.search(r"^#define K_task_struct__tgid \d+$", offsets_from(btf), re.MULTILINE)
    with pytest.raises(Incompatible, match="expected machine"):
        offsets_from(btf, "pdp11")


def test_headers_give_the_same_names_as_btf() -> None:
    named = set(re.findall(r"#define (K_\w+)", offsets_by_headers("x86_64")))
    used = set(re.findall(r"\bK_\w+", "".join((PROGRAM_DIRECTORY / f"{name}.c").read_text() for name in SOURCES)))
    # What the programs do without, by #ifdef; the cast and its types come with the cast, which needs BTF.
    optional = {"K_task_struct__compat", "K_TIF_32BIT", "K_proc_fs_info__pid_ns", "K_CAST", "K_TYPE_"}
    optional |= {"K_linux_binprm__executable", "K_task_struct__io_uring"}
    assert used <= named | {"K_O_DIRECTORY", "K_NAME_WORDS"} | optional


def test_the_header_tree_compiles(tmp_path: Path, compiler: str) -> None:
    write_tree(tmp_path)
    (tmp_path / "t.c").write_text(
        "#include <linux/types.h>\n#include <linux/log2.h>\nu64 f(__be32 x) { return ilog2(x); }\n"
    )
    subprocess.run([compiler, "-c", "-nostdinc", "-I", "include", "t.c"], cwd=tmp_path, check=True)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_call_has_a_record(machine: str) -> None:
    records = call_records({name: index for index, name in enumerate(HOPS)}, machine)
    assert len({number for number, _ in records}) == len(records)
    assert all(len(record) == CALL.size for _, record in records)
    native = {row for row, record in records if record[0] and row < I386_FIRST}
    assert native == {value for name in CALLS if (value := number(name, machine)) is not None}
    assert {row for row, _ in records if row >= ROWS} == set()
    with pytest.raises(Incompatible):
        number("openat", "pdp11")


def test_docs_list_every_pin() -> None:
    text = DOCS.read_text()
    for table in TABLES:
        row = f"| `{table.name}` | {table.kind} | {table.key} | {table.value} | {table.writer} | {table.why} |"
        assert row in text
    for probe in PROBES:
        assert f"| `{probe.name}` | raw tracepoint `{probe.tracepoint}` | {probe.why} |" in text
    for guard in GUARDS:
        assert f"| `{guard.name}` | per cgroup, attach type {guard.attach_type} | {guard.why} |" in text
    for listener in LISTENERS:
        assert f"| `{listener.name}` | root of cgroup v2, attach type {listener.attach_type} | {listener.why} |" in text
    listed = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    for hook in hooks.HOOKS:
        assert f"| `lsm_{hook.name}` | {hook.why} |" in text
    for table in hooks.TABLES:
        row = f"| `{table.name}` | {table.kind} | {table.key} | {table.value} | {table.writer} | {table.why} |"
        assert row in text
    assert len(listed) == len(TABLES) + len(PROBES) + len(GUARDS) + len(LISTENERS) + len(hooks.HOOKS) + len(
        hooks.TABLES
    )


@pytest.mark.kernel
def test_the_survey_is_quick_and_gives_reasons() -> None:
    import time

    start = time.process_time()
    features = survey()
    assert time.process_time() - start < 3
    assert len({feature.name for feature in features}) == len(features)
    assert all(feature.why for feature in features)
    assert typed_loads() in features
