# SPDX-License-Identifier: Apache-2.0
"""What a sink lets through, and what is blanked out of it before it leaves.

Pure. Runs once per alert or log line. Redaction knows words, not regular expressions: a name with `*` at its ends, so that
no input can make it slow. Neighbours: `reader` applies it, each component's settings hold one `Filter`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Annotated

import msgspec

from schemas.alert import ACTIONS, NOTICE, OPERATIONS, Alert, Log
from schemas.errors import SettingsError

STARS = "***"


class UnknownWord(SettingsError, ValueError):
    """A filter names what no alert carries. A ValueError too, so that msgspec adds the path of the key."""


class Filter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Empty lists let everything through. Alerts and logs only; summaries and receipts always pass, and so do notices of
    losses and of silenced alerts (`Type` `SystemEvent`) unless `notices` is false. SettingsError for a word that no alert
    carries."""

    min_severity: Annotated[
        int, msgspec.Meta(ge=0, le=10, description="Lowest alert severity that passes, 10 is worst.", examples=[5])
    ] = 0
    namespaces: Annotated[
        tuple[str, ...], msgspec.Meta(description="Only these namespaces.", examples=[["default", "shop"]])
    ] = ()
    actions: Annotated[
        tuple[str, ...],
        msgspec.Meta(
            description="Only alerts with these actions: Audit, Block, Allow, or exactly `Audit (Block)`, `Audit (Allow)`; `Audit` covers all three of its forms.",
            examples=[["Block", "Audit (Block)"]],
        ),
    ] = ()
    operations: Annotated[
        tuple[str, ...],
        msgspec.Meta(
            description="Only these operations, as alerts name them: Process, File, Network, Syscall, Capabilities, Device.",
            examples=[["Process", "File"]],
        ),
    ] = ()
    notices: Annotated[
        bool,
        msgspec.Meta(
            description="Notices of lost events and of silenced alerts pass, whatever else is asked for; false leaves them out.",
            examples=[True],
        ),
    ] = True
    redact: Annotated[
        tuple[str, ...],
        msgspec.Meta(
            description="Argument or variable names whose value is blanked; `*` at either end stands for anything.",
            examples=[["*password*", "--token"]],
        ),
    ] = ("*password*", "*passwd*", "*secret*", "*token*", "*api*key*", "*apikey*")

    def __post_init__(self) -> None:
        _check("actions", self.actions, ACTIONS)
        _check("operations", self.operations, OPERATIONS)

    def passes(self, item: Log) -> bool:
        """Whether the far side gets to see it."""
        if item.Type == NOTICE:
            return self.notices
        if self.namespaces and item.NamespaceName not in self.namespaces:
            return False
        if self.operations and item.Operation not in self.operations:
            return False
        if isinstance(item, Alert):
            if self.actions and item.Action not in self.actions and item.Action.split(" ", 1)[0] not in self.actions:
                return False
            if self.min_severity and _severity(item.Severity) < self.min_severity:
                return False
        return True

    def redactor(self) -> Callable[[str], str]:
        """A function that blanks `name=value`, `--name value` and `user:password@` in a command line; the very same
        string comes back when there was nothing to blank."""
        tests = tuple(_name_test(pattern.lower()) for pattern in self.redact)

        def redact(text: str) -> str:
            if " " not in text and "=" not in text and "://" not in text:
                return text
            words = text.split(" ")
            hide_next = changed = False
            for index, word in enumerate(words):
                if hide_next and word:
                    hide_next = False
                    if not word.startswith("-"):
                        words[index] = STARS
                        changed = True
                        continue
                name, equals, value = word.partition("=")
                lowered = name.lower()
                if (equals or name.startswith("-")) and any(test(lowered) for test in tests):
                    if equals and value:
                        words[index] = f"{name}={STARS}"
                        changed = True
                    elif not equals:
                        hide_next = True
                elif "://" in word:
                    words[index] = _hide_userinfo(word)
                    changed = changed or words[index] is not word
            return " ".join(words) if changed else text

        return redact


def _check(key: str, words: Sequence[str], known: Sequence[str]) -> None:
    for word in words:
        if word in known:
            continue
        folded = {one.casefold(): one for one in known}
        near = difflib.get_close_matches(word.casefold(), folded, n=1)
        hint = f"; did you mean `{folded[near[0]]}`?" if near else ""
        raise UnknownWord(f"`{key}`: expected one of {', '.join(known)}, got `{word}`{hint}")


def _severity(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        return 0


def _name_test(pattern: str) -> Callable[[str], bool]:
    # Pieces between stars must occur in order; that is linear, whatever the input.
    pieces = [piece for piece in pattern.split("*") if piece]
    anchored_start, anchored_end = not pattern.startswith("*"), not pattern.endswith("*")

    def test(name: str) -> bool:
        if not pieces:
            return False
        if anchored_start and not name.startswith(pieces[0]):
            return False
        if anchored_end and not name.endswith(pieces[-1]):
            return False
        if anchored_start and anchored_end and len(pieces) == 1:
            return name == pieces[0]
        at = 0
        for piece in pieces:
            at = name.find(piece, at)
            if at < 0:
                return False
            at += len(piece)
        return True

    return test


def _hide_userinfo(word: str) -> str:
    scheme, _, rest = word.partition("://")
    authority, slash, path = rest.partition("/")
    userinfo, at, host = authority.rpartition("@")
    if not at or ":" not in userinfo:
        return word
    return f"{scheme}://{userinfo.partition(':')[0]}:{STARS}@{host}{slash}{path}"
