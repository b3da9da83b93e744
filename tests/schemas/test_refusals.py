# SPDX-License-Identifier: Apache-2.0
"""The closed list of codes, and plans and receipts of the version before it."""

import ast
from pathlib import Path

import msgspec
import pytest

from schemas.backends import BACKENDS, BY_NAME, DEFAULTS, FLOOR, IMPLEMENTED, PLANNED, backend_name
from schemas.enforcement import InForce, Refusal, decode_plan, decode_receipt, encode
from schemas.operations import Backend
from schemas.refusals import MEANING, RefusalCode

ROOT = Path(__file__).parents[2]
ROOMS = ("policy", "enforcers", "hauberk", "processors", "sensors", "sinks")


def calls(name: str) -> list[tuple[Path, ast.Call]]:
    return [
        (path, node)
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
    ]


def test_each_code_has_a_meaning_and_is_given_by_somebody() -> None:
    assert MEANING.keys() == set(RefusalCode)
    assert all(text.endswith(".") for text in MEANING.values())
    text = "".join(path.read_text() for room in ROOMS for path in (ROOT / room).rglob("*.py"))
    unused = {code for code in RefusalCode if f"RefusalCode.{code.name}" not in text} - {RefusalCode.UNSPECIFIED}
    assert unused == set()


def test_every_refusal_that_is_made_carries_a_code() -> None:
    found = calls("Refusal")
    assert len(found) > 5
    bare = [f"{path}:{call.lineno}" for path, call in found if "code" not in {one.arg for one in call.keywords}]
    assert bare == []


def test_a_code_of_a_later_version_is_read_as_unspecified() -> None:
    data = msgspec.msgpack.encode([[["p", "", "", "", 0, -1], "u", 4, "why", "invented-later"]])
    (found,) = msgspec.msgpack.decode(data, type=tuple[Refusal, ...])
    assert (found.code, found.reason) == (RefusalCode.UNSPECIFIED, "why")


@pytest.mark.parametrize("code", RefusalCode)
def test_only_some_codes_leave_the_rule_in_force(code: RefusalCode) -> None:
    assert code.partial == (
        code in (RefusalCode.OTHER_FAMILIES, RefusalCode.AUTOBIND, RefusalCode.LATE, RefusalCode.MOVED)
    )


def test_one_table_names_every_backend() -> None:
    assert set(BACKENDS) == set(Backend) - {Backend.OBSERVER}
    assert [BY_NAME[name] for name in DEFAULTS] == list(IMPLEMENTED) == list(FLOOR)
    assert list(PLANNED) == [Backend.BPF_LSM, *IMPLEMENTED]
    assert [backend_name(one) for one in Backend] == ["observer", "bpf-lsm", "apparmor", "cgroup", "signal"]


def test_a_receipt_of_the_version_before_is_read() -> None:
    ref = ["p", "KubeArmorPolicy", "shop", "spec.file", 4, 0]
    old = ["n1", 3, "d", 1, 0.5, [3, 4], 1, 2, [[ref, "u", 4, "no pattern"]], [], [[ref, "u", 4, "too late"]]]
    receipt = decode_receipt(msgspec.msgpack.encode(old))
    assert [one.code for one in (*receipt.refused, *receipt.partial)] == [RefusalCode.UNSPECIFIED] * 2
    assert receipt.partial[0].reason == "too late"
    assert receipt.in_force == ()
    new = msgspec.structs.replace(receipt, in_force=(InForce(backend=Backend.SIGNAL, scopes=1, rules=2),))
    assert decode_receipt(encode(new)) == new


def test_a_plan_of_the_version_before_is_read() -> None:
    ref = ["p", "KubeArmorPolicy", "shop", "spec.file", 4, 0]
    scope = [
        "u",
        [7],
        "/box",
        "shop/box",
        [[1, "path", "/bin/x", "", "Block", False, False, ref]],
        [],
        [],
        [],
        True,
        -1,
    ]
    old = ["n1", 3, "d", [scope], ["KubeArmorPolicy/shop/p"], 5, [[ref, "u", 3, "in part: sockets"]], -1, -1, [], "", 9]
    plan = decode_plan(msgspec.msgpack.encode(old))
    assert (plan.generation, plan.scopes[0].paths[0].value, plan.linked_ns, plan.partial) == (3, "/bin/x", 9, ())
    assert plan.refused[0].code is RefusalCode.UNSPECIFIED
