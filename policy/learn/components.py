# SPDX-License-Identifier: Apache-2.0
"""What a name in a path is: a number, a hex string, a UUID, a date, a temporary name; and the glob that stands for its kind.

Two strengths. A *strong* name says by itself that the next one will differ (`5f0c9a1e77d2`, `report-2026-11-28`, tmp.Xa81kQ2b). A *weak* one
(`worker-7`) does so only beside another of its skeleton. Pure; the same name always gives the same answer.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import pairwise
from typing import Final

_DIGIT: Final = "[0-9]"
_HEX: Final = "[0-9a-f]"
UNDECODED: Final = re.compile("[\udc80-\udcff]")
"""A byte that is not UTF-8, as `os.fsdecode` has it."""
_SPECIAL: Final = re.compile(r"([*?\[\]{}\\])")

_ANY_DIGIT: Final = re.compile("[0-9]")
_UUID_LENGTH: Final = 36
_UUID = re.compile(r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}")
_DATE = re.compile(r"(?<![0-9])(?:19|20)[0-9]{2}([-_.]?)(?:0[1-9]|1[0-2])\1(?:0[1-9]|[12][0-9]|3[01])(?![0-9])")
_TIME = re.compile(r"(?<![0-9])[0-9]{2}[-:.][0-9]{2}[-:.][0-9]{2}(?![0-9])")
_LONG_HEX = re.compile(r"(?<![0-9A-Za-z])(?=[0-9a-f]*[0-9])(?=[0-9a-f]*[a-f])[0-9a-f]{8,}(?![0-9A-Za-z])")
_OBJECT = re.compile(r"[0-9a-f]{38}|[0-9a-f]{40}|[0-9a-f]{32}|[0-9a-f]{64}")
_LONG_NUMBER = re.compile(r"(?<![0-9])[0-9]{5,}(?![0-9])")
_ANY_STRONG = re.compile(
    "|".join(f"(?:{one.pattern})" for one in (_UUID, _TIME, _LONG_HEX, _LONG_NUMBER)) + "|(?:19|20)[0-9]{2}"
)
"""Of what has none of these no part is strong; a year stands for the dates."""
_STRONG: Final = ((_UUID, "uuid"), (_DATE, "date"), (_TIME, "time"), (_LONG_HEX, "hex"), (_LONG_NUMBER, "number"))
"""In this order: of what is one kind no part is another."""
_NUMBER = re.compile(r"[0-9]+")
_CAMEL = re.compile(r"[A-Z]?[a-z]+(?:[A-Z][a-z]+)*|[A-Z]+[a-z]*|[a-z]+[A-Z]+")
_AFTER_MARK = re.compile(r"(?P<head>.*[._-]|)(?P<random>[A-Za-z0-9_]{6,24})(?P<tail>\.[a-z]{1,5})?")
_TEMPORARY = re.compile(r"(?i)^\.?(tmp|temp|cc|sess|lua_|php|rb)|tmp|temp")

_TOKENS: Final = {
    "uuid": "-".join((f"{_HEX}*",) * 5),
    "date": f"{_DIGIT}*",
    "time": f"{_DIGIT}*",
    "hex": f"{_HEX}*",
    "number": f"{_DIGIT}*",
}


def escape(text: str) -> str:
    """`text` as a glob that matches it alone. No text of a policy can hold a byte that is not UTF-8: any one character, or its
    escape as stores tell it (`\\xff`), stands for it."""
    escaped = _SPECIAL.sub(r"\\\1", text)
    return escaped if text.isascii() else UNDECODED.sub(_one_byte, escaped)


def _one_byte(found: re.Match[str]) -> str:
    return f"{{?,\\\\x{ord(found[0]) - 0xDC00:02x}}}"


@lru_cache(maxsize=65536)
def strong(name: str, temporary: bool = False) -> str:
    """The glob of a name that will differ next time; "" when it does not look so. `temporary`: it lies where names are made up."""
    if name.isdigit() and name.isascii():
        return f"{_DIGIT}*"
    if _OBJECT.fullmatch(name):
        return f"{_HEX}*"
    if _ANY_DIGIT.search(name) is None and len(name) < _UUID_LENGTH:
        # Every other kind has a digit in it; a UUID may be letters alone.
        return _random(name, temporary)
    if _ANY_STRONG.search(name) is None:
        return _random(name, temporary)
    parts = _split(name, tuple(kind for kind in _STRONG if kind[0].search(name) is not None))
    return _joined(parts) if len(parts) > 1 or parts[0][0] else _random(name, temporary)


@lru_cache(maxsize=65536)
def skeleton(name: str, temporary: bool = False) -> str:
    """The glob of every name that differs from this one only in its numbers (and in what is strong); a plain name escaped."""
    found = strong(name, temporary)
    if found:
        return found
    if _ANY_DIGIT.search(name) is None:
        return escape(name)
    if name.isascii():
        # What escaping adds to it has no digits.
        return _NUMBER.sub(_TOKENS["number"].replace("\\", r"\\"), escape(name))
    return _joined(_split(name, ((_NUMBER, "number"),)))


def forget_names() -> None:
    """Lets go of what `strong` and `skeleton` remember: a few of those names keep much of what was beside them in memory."""
    strong.cache_clear()
    skeleton.cache_clear()


def _split(name: str, kinds: tuple[tuple[re.Pattern[str], str], ...]) -> list[tuple[str, str]]:
    """(kind, text) from left to right; the kind of plain text is ""."""
    parts = [("", name)]
    for pattern, kind in kinds:
        cut: list[tuple[str, str]] = []
        for known, text in parts:
            if known:
                cut.append((known, text))
                continue
            at = 0
            for match in pattern.finditer(text):
                if match.start() > at:
                    cut.append(("", text[at : match.start()]))
                cut.append((kind, match[0]))
                at = match.end()
            if at < len(text):
                cut.append(("", text[at:]))
        parts = cut
    return parts


def _joined(parts: list[tuple[str, str]]) -> str:
    made: list[str] = []
    for kind, text in parts:
        piece = _TOKENS[kind] if kind else escape(text)
        # Two numbers side by side are one run: `[0-9]*[0-9]*` would say the same at greater length.
        if not (kind and made and made[-1] == piece):
            made.append(piece)
    return "".join(made)


def _random(name: str, temporary: bool) -> str:
    """mktemp(1)'s names: a run of letters and digits that nobody would write, after a mark or in a directory of such names."""
    match = _AFTER_MARK.fullmatch(name)
    if match is None:
        return ""
    head, random, tail = match["head"], match["random"], match["tail"] or ""
    made_up = _made_up(random)
    if head and not (made_up or (temporary and _TEMPORARY.search(head) and _mixed(random))):
        return ""
    if not head:
        if temporary and (prefix := re.match(r"(?i)(tmp_?|temp_?|cc|lua_|php|rb|sess_|perl)", random)) is not None:
            rest = random[prefix.end() :]
            return f"{escape(prefix[0])}{'?' * len(rest)}{escape(tail)}" if len(rest) >= 4 else ""
        # A word with a random tail: `reportXk29Qa1z` of mkstemp(3).
        for length in (8, 6, 10):
            word, end = random[:-length], random[-length:]
            if len(word) >= 3 and word.isalpha() and word.islower() and _made_up(end):
                return f"{escape(word)}{'?' * length}{escape(tail)}"
        if not made_up:
            return ""
    return f"{escape(head)}{'?' * len(random)}{escape(tail)}"


def _mixed(text: str) -> bool:
    return sum((any(c.isupper() for c in text), any(c.islower() for c in text), any(c.isdigit() for c in text))) >= 2


def _made_up(text: str) -> bool:
    """Lower and upper case in turns and digits between them: at least three changes of kind. Without a digit only in the lengths that
    mkstemp(3) and mktemp(1) make, and never what people write as camel case."""
    kinds = ["d" if c.isdigit() else "u" if c.isupper() else "l" for c in text if c != "_"]
    turns = sum(before != after for before, after in pairwise(kinds))
    if len(text) > 12 or turns < 3:
        return False
    return (
        ("d" in kinds and "u" in kinds)
        or (turns >= 4 and "d" in kinds)
        or (len(text) in (6, 8, 10) and not _CAMEL.fullmatch(text))
    )
