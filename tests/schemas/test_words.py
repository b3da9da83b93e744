# SPDX-License-Identifier: Apache-2.0
"""Words that are on disk and in the kernel stay what they are; every error is in the tree; topics agree with themselves."""

import inspect

import msgspec
import pytest

from schemas import errors, kernel
from schemas.alert import Alert, Log, decode_alert, encode_alert
from schemas.identity import Identity, Kind
from schemas.identity import decode as decode_identity
from schemas.identity import encode as encode_identity
from schemas.operations import Access, Backend, Class, Operation, class_of
from schemas.topics import BY_NAME, TOPICS, Cleanup


def test_numbers_never_move() -> None:
    """A change here breaks recordings and stored summaries: append instead."""
    first = {
        "EXEC": 1,
        "EXIT": 2,
        "OPEN": 10,
        "CREATE": 11,
        "UNLINK": 12,
        "RENAME": 13,
        "SOCKET": 30,
        "CONNECT": 33,
        "SETUID": 40,
    }
    assert {name: Operation[name].value for name in first} == first
    assert [
        member.value for member in (Class.PROCESS, Class.FILE, Class.NETWORK, Class.CAPABILITIES, Class.SYSCALL)
    ] == [1, 2, 3, 4, 5]
    assert [Access.READ.value, Access.WRITE.value, Access.EXEC.value] == [1, 2, 8]
    assert [
        member.value for member in (Backend.OBSERVER, Backend.BPF_LSM, Backend.APPARMOR, Backend.CGROUP, Backend.SIGNAL)
    ] == [0, 1, 2, 3, 4]
    assert (kernel.OCCURRENCE.size, kernel.STRIDE, kernel.DEFINITION.size) == (56, 64, 16)


@pytest.mark.parametrize("operation", Operation)
def test_every_operation_has_a_class(operation: Operation) -> None:
    assert class_of(operation).label


@pytest.mark.parametrize(
    ("operation", "cls"),
    [(Operation.EXEC, Class.PROCESS), (Operation.MMAP, Class.PROCESS), (Operation.OPEN, Class.FILE), (Operation.MKNOD, Class.FILE),
     (Operation.MOUNT, Class.SYSCALL), (Operation.DNS, Class.NETWORK), (Operation.SETUID, Class.SYSCALL),
     (Operation.CAPABLE, Class.CAPABILITIES), (Operation.PTRACE, Class.SYSCALL), (Operation.DEVICE, Class.DEVICE)],
)  # fmt: skip
def test_classes(operation: Operation, cls: Class) -> None:
    assert class_of(operation) is cls


def test_layouts_refuse_holes() -> None:
    with pytest.raises(ValueError, match="not aligned"):
        kernel.Layout("x", kernel.Field("a", "u8", ""), kernel.Field("b", "u64", ""))
    with pytest.raises(ValueError, match="multiple of 8"):
        kernel.Layout("x", kernel.Field("a", "u32", ""))


@pytest.mark.parametrize("layout", kernel.LAYOUTS, ids=[layout.name for layout in kernel.LAYOUTS])
def test_struct_and_offsets_agree(layout: kernel.Layout) -> None:
    assert layout.struct.size == layout.size
    assert layout.c_struct().count(";") >= len(layout.fields)


def test_every_error_is_drawn_in_the_tree_and_has_a_reason() -> None:
    drawn = errors.__doc__ or ""
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        if issubclass(kind, errors.HauberkError):
            assert isinstance(kind.reason, errors.Reason)
            assert issubclass(kind, errors.Temporary | errors.Permanent) or kind is errors.HauberkError
            assert name in drawn, f"{name} is not in the tree of errors.py"


def test_topics() -> None:
    assert len({topic.channel for topic in TOPICS}) == len(TOPICS)
    for topic in TOPICS:
        assert topic.channel == f"hauberk.{topic.name}.v1"
        assert BY_NAME[topic.name] is topic
        assert topic.compacted is (topic.cleanup is not Cleanup.DELETE)
        assert topic.retention_hours == 0 or topic.cleanup is not Cleanup.COMPACT


def test_alerts_leave_out_what_is_empty_and_keep_names() -> None:
    alert = Alert(Timestamp=1, UpdatedTime="2026-01-01T00:00:00.000000Z", PolicyName="p", UID=0, Action="Audit")
    assert msgspec.json.decode(encode_alert(alert)) == {
        "Timestamp": 1, "UpdatedTime": "2026-01-01T00:00:00.000000Z", "UID": 0, "PolicyName": "p", "Action": "Audit",
    }  # fmt: skip
    assert decode_alert(encode_alert(alert)) == alert
    assert set(Log.__struct_fields__) < set(Alert.__struct_fields__)


def test_an_identity_of_an_older_writer_is_read() -> None:
    whole = Identity(kind=Kind.CONTAINER, node="n", uid="u", labels={"a": "b"})
    raw = msgspec.msgpack.decode(encode_identity(whole))
    assert decode_identity(msgspec.msgpack.encode(raw[:3])) == Identity(kind=Kind.CONTAINER, node="n", uid="u")
    assert decode_identity(msgspec.msgpack.encode([*raw, "future"])) == whole
