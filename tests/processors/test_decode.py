# SPDX-License-Identifier: Apache-2.0
"""Bytes to behaviours: addresses, names per architecture, strings that are no text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processors.decode import DecodedDefinitions, address_text, tellable, text
from schemas import socket_names, syscalls
from schemas.errors import DecodeError
from schemas.operations import Access, Operation


@pytest.mark.parametrize(
    ("family", "raw", "told"),
    [
        (2, bytes([10, 1, 2, 3]) + bytes(12), "10.1.2.3"),
        (10, bytes(10) + b"\xff\xff" + bytes([10, 1, 2, 3]), "10.1.2.3"),
        (10, bytes(15) + b"\x01", "::1"),
        (10, bytes.fromhex("20010db8000000000000000000000001"), "2001:db8::1"),
        (1, bytes(16), ""),
    ],
)
def test_addresses(family, raw, told):
    assert address_text(family, raw) == told


def test_every_field_arrives(node):
    ident = node.behaviour(
        Operation.RENAME, "/a", resource2="/b", executable="/x", parent="/y", syscall=82, uid=7, owner=8, tty=True,
        access=Access.WRITE | Access.METADATA, flags=3, result=-13, args=(1, 2), cgroup=9, pid_ns=10, mnt_ns=11,
    )  # fmt: skip
    node.row(ident)
    found = DecodedDefinitions(node.frame().definitions, "x86_64").behaviour(ident)
    assert (found.resource, found.resource2, found.executable, found.parent) == ("/a", "/b", "/x", "/y")
    assert (found.syscall_name, found.uid, found.owner, found.tty, found.result) == ("rename", 7, 8, True, -13)
    assert (found.access, found.flags, found.args) == (Access.WRITE | Access.METADATA, 3, (1, 2))
    assert (found.cgroup, found.pid_ns, found.mnt_ns, found.id) == (9, 10, 11, ident)


def test_a_cgroup_id_that_no_identity_can_carry_is_damage(node):
    for cgroup in (1 << 63, (1 << 64) - 1):
        ident = node.behaviour(Operation.OPEN, "/a", cgroup=cgroup)
        node.row(ident)
        with pytest.raises(DecodeError, match="expected a cgroup id of at most 9223372036854775807"):
            DecodedDefinitions(node.frame().definitions, "x86_64").behaviour(ident)


def test_calls_are_named_for_the_nodes_architecture(node):
    ident = node.behaviour(Operation.OPEN, "/a", syscall=56)
    node.row(ident)
    run = node.frame().definitions
    assert DecodedDefinitions(run, "aarch64").behaviour(ident).syscall_name == "openat"
    assert DecodedDefinitions(run, "x86_64").behaviour(ident).syscall_name == "clone"
    assert syscalls.name("x86_64", 9999) == "syscall_9999"


def test_open_flags_differ_by_architecture():
    assert socket_names.open_flags(0o200000) == "O_RDONLY|O_DIRECTORY"
    assert socket_names.open_flags(0o200000, "aarch64") == "O_RDONLY|O_DIRECT"
    assert socket_names.open_flags(0o40000000) == "O_RDONLY|0x800000"


def test_arguments_are_split_and_the_unknown_is_empty(node):
    process = node.process("/bin/sh", ("sh", "-c", "", "é"), cwd="/tmp", tty="pts0")
    node.row(node.behaviour(Operation.OPEN, "/a"), process=process)
    found = DecodedDefinitions(node.frame().definitions, "x86_64")
    context = found.process(process)
    assert (context.arguments, context.cwd, context.tty) == (("sh", "-c", "", "é"), "/tmp", "pts0")
    assert found.process(1) is None
    assert found.behaviour(1) is None
    assert found.string(12345) == ""


@given(first=st.binary(max_size=12), second=st.binary(max_size=12))
def test_no_two_paths_become_one_and_all_can_be_told(first, second):
    assert (text(first) == text(second)) == (first == second)
    tellable(text(first)).encode("utf-8")
