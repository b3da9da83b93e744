# SPDX-License-Identifier: Apache-2.0
"""How answers are printed."""

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hauberk.output import age, as_json, as_yaml, paint, plain, printable, show, table
from schemas.behaviour import Behaviour
from schemas.operations import Access, Operation


def test_table_pads_to_the_widest_cell() -> None:
    assert table(("A", "LONG"), [("xyz", 1), ("日本", 22)]) == "A      LONG\nxyz    1\n日本   22"


@given(st.text())
def test_no_control_character_reaches_the_terminal(text: str) -> None:
    assert all(char.isprintable() for char in printable(text))


def test_structs_have_names_in_json_and_yaml() -> None:
    behaviour = Behaviour(operation=Operation.OPEN, access=Access.READ, resource="/etc/\udcff")
    assert json.loads(as_json(behaviour))["operation"] == "open"
    assert yaml.safe_load(as_yaml({"b": behaviour}))["b"]["resource"] == "/etc/\\xff"


@pytest.mark.parametrize(
    ("access", "shown"), [(0, ""), (1, "read"), (Access.READ | Access.OWN, "read|own"), (1 << 15, "")]
)
def test_flags_are_their_members(access: int, shown: str) -> None:
    assert plain(Access(access)) == shown


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "5s"), (119, "119s"), (120, "2m"), (190, "3m10s"), (3600, "60m"), (7200, "2h"), (172800, "2d"), (-1, "0s")],
)
def test_age(seconds: float, text: str) -> None:
    assert age(seconds) == text


def test_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    assert paint("x", "red", on=True) == "\x1b[31mx\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert paint("x", "red") == "x"


def test_wide_columns_appear_when_asked() -> None:
    rows = [("a", "b")]
    assert show([], ("X",), rows, "table", wide=("Y",)) == "X\na"
    assert show([], ("X",), rows, "wide", wide=("Y",)) == "X   Y\na   b"
    assert show([], ("X",), rows, "name", names=["k/a"]) == "k/a"
    assert show([], ("X",), rows, "table", headings=False) == "a"


def test_a_long_cell_is_cut_unless_wide_is_asked_for() -> None:
    from hauberk.output import show

    name = "/" + "x" * 4000 + "/end"
    short = show([], ("NAME",), [(name,)], "table")
    assert max(len(line) for line in short.splitlines()) == 120
    assert short.endswith("/end")
    assert name in show([], ("NAME",), [(name,)], "wide")
