# SPDX-License-Identifier: Apache-2.0
"""Golden diagnostics: each file of cases_diagnostics starts with the rendering it must give, as a comment.

After a deliberate change: `HAUBERK_REFRESH=1 python -m pytest tests/policy/test_diagnostics.py`, then read the diff.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import msgspec
import pytest

from policy.parse import parse
from policy.text import codes
from policy.text.diagnostics import LIMIT, Diagnostic, Report, render, to_json

ROOT = Path(__file__).resolve().parents[2]
CASES = sorted((Path(__file__).parent / "cases_diagnostics").glob("*.yaml"))
MARK = b"# expected:\n"


def split(data: bytes) -> tuple[bytes, bytes]:
    """The comment with the expected rendering, and the policy text below it."""
    if not data.startswith(MARK):
        return b"", data
    head, _, body = data.partition(b"\n\n")
    return head + b"\n\n", body


def header(rendering: str) -> bytes:
    return MARK + "".join(f"#   {line}".rstrip() + "\n" for line in rendering.splitlines()).encode() + b"\n"


def rendering(name: str, data: bytes) -> str:
    parsed = parse(data, name)
    return "\n\n".join(render(one, parsed.text) for one in parsed.diagnostics)


def settle(name: str, body: bytes) -> bytes:
    """The file whose comment is what it gives; line numbers depend on the length of the comment, hence the loop."""
    head = b""
    for _ in range(10):
        found = header(rendering(name, head + body))
        if found == head:
            break
        head = found
    return head + body


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_the_rendering_is_the_comment_on_top(path: Path) -> None:
    data = path.read_bytes()
    if os.environ.get("HAUBERK_REFRESH"):
        data = settle(path.name, split(data)[1])
        path.write_bytes(data)
    head, _ = split(data)
    assert head.decode() == header(rendering(path.name, data)).decode()


def test_cases_exist() -> None:
    assert len(CASES) > 60


def test_every_code_has_a_number_of_its_own_and_none_is_retired() -> None:
    numbers = [code.code for code in codes.CODES]
    assert len(set(numbers)) == len(numbers)
    assert numbers == sorted(numbers)
    assert not codes.RETIRED & set(numbers)
    assert all(re.fullmatch(r"P[1-7]\d\d", number) and code.title and code.advice for number, code in zip(numbers, codes.CODES, strict=True))  # fmt: skip


def test_every_code_is_raised_somewhere() -> None:
    sources = "\n".join(path.read_text() for path in (ROOT / "policy").rglob("*.py") if path.name != "codes.py")
    names = {name: code for name, code in vars(codes).items() if isinstance(code, codes.Code)}
    assert [name for name in names if not re.search(rf"\bcodes\.{name}\b", sources)] == []


def test_every_code_has_a_golden_case() -> None:
    told = set(re.findall(r"\[(P\d\d\d)\]", "\n".join(split(path.read_bytes())[0].decode() for path in CASES)))
    # P102 takes a file of eight megabytes; test_parse has it. P608 is said by `policy check` alone; tests/hauberk/test_unheld.py has it.
    assert {code.code for code in codes.CODES} - told == {"P102", "P608"}


def test_json_has_the_names_of_the_struct_and_leaves_empty_fields_out() -> None:
    parsed = parse("kind: KubeArmorPolicy\n", "f.yaml")
    (first, *_rest) = msgspec.json.decode(to_json(parsed.diagnostics))
    assert first["file"] == "f.yaml"
    assert first["code"].startswith("P")
    assert "notes" not in first
    assert msgspec.json.decode(to_json(parsed.diagnostics), type=tuple[Diagnostic, ...]) == parsed.diagnostics


def test_long_lines_are_cut_around_the_place() -> None:
    text = "x" * 5000 + "HERE" + "y" * 5000
    shown = render(Diagnostic(code="P1", level=codes.Level.ERROR, message="m", line=1, column=5001, width=4), text)
    line, carets = shown.splitlines()[3:5]
    assert len(line) < 200
    assert line[carets.index("^") :].startswith("HERE")


def test_a_place_outside_of_the_text_is_rendered_without_it() -> None:
    assert "^" not in render(Diagnostic(code="P1", level=codes.Level.ERROR, message="m", line=9, column=9), "one\n")


def test_wide_characters_keep_the_carets_in_place() -> None:
    shown = render(Diagnostic(code="P1", level=codes.Level.ERROR, message="m", line=1, column=3, width=1), "漢字x")
    assert shown.splitlines()[-1].endswith("|     ^")


def test_a_file_made_of_errors_gives_a_bounded_report() -> None:
    report = Report("f")
    for line in range(LIMIT * 2):
        report.add(codes.TYPE, "m", line=line + 1, column=1)
    assert len(report.found) == LIMIT
    assert report.errors == LIMIT * 2


def test_strict_makes_errors_of_warnings_only() -> None:
    report = Report("f", strict=True)
    report.add(codes.DUPLICATE_RULE, "m", line=1, column=1)
    report.add(codes.SKIPPED, "m", line=1, column=1)
    assert [found.level for found in report.found] == [codes.Level.ERROR, codes.Level.INFO]
