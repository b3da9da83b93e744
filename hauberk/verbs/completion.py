# SPDX-License-Identifier: Apache-2.0
"""`hauberk completion`: scripts that ask `hauberk completion --words` for candidates, read from the verbs' own parsers."""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Final

from hauberk.policy_names import SHORT

if TYPE_CHECKING:
    from schemas.topics import Topic

POLICY_KINDS: Final = {"policy": "", "policies": ""} | SHORT
"""What `get`, `describe` and `delete` call policies -> the kind in a policy's key, "" for all."""
ASKED: Final = 5.0
"""Seconds that brokers have to answer: somebody waits at a prompt."""
PLAIN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""Names that are offered. bash expands what it completes with, so that `$(...)` in a container's name would run."""

SCRIPTS: Final = {
    "bash": """_hauberk() {
    local IFS=$'\\n'
    COMPREPLY=($(compgen -W "$(hauberk completion --words "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)" -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _hauberk hauberk""",
    "zsh": """#compdef hauberk
_hauberk() {
    local -a candidates
    candidates=(${(f)"$(hauberk completion --words "${words[@]:1:$((CURRENT-1))}" 2>/dev/null)"})
    compadd -a candidates || _files
}
compdef _hauberk hauberk""",
    "fish": """complete -c hauberk -a '(hauberk completion --words (commandline -opc)[2..] (commandline -ct) 2>/dev/null)'""",
}


def parser() -> argparse.ArgumentParser:
    """The shell, or the words typed so far."""
    made = argparse.ArgumentParser(prog="hauberk completion", description=__doc__, allow_abbrev=False,
        epilog="bash: source <(hauberk completion bash). After `get`, `describe` and `delete` the names of policies, workloads and "
        "nodes are offered that are on the bus, if it may be read; where a file or a number stands, what the shell has.")  # fmt: skip
    made.add_argument("shell", nargs="?", choices=tuple(SCRIPTS), help="whose script to print")
    made.add_argument("--words", nargs=argparse.REMAINDER, help="print candidates for the last of these words")
    return made


class Typed:
    """What the words before the one that is completed mean to a verb's parser. `slot`: the argument that comes next, None when
    there is none; `waiting`: the option whose value comes next; `seen`: dest -> words."""

    def __init__(self, made: argparse.ArgumentParser, words: Sequence[str]) -> None:
        self.parser = made
        self.waiting: argparse.Action | None = None
        self.seen: dict[str, list[str]] = {}
        self._slots = _slots(made)
        for word in words:
            self._take(word)

    @property
    def slot(self) -> argparse.Action | None:
        return self._slots[0] if self._slots else None

    def _take(self, word: str) -> None:
        waiting, self.waiting = self.waiting, None
        option = word.startswith("-") and word != "-"
        if waiting is not None and not (option and waiting.nargs == "?"):
            self._note(waiting, word)
        elif option:
            name, equals, value = word.partition("=")
            action = self.parser._option_string_actions.get(name)
            if action is not None and equals:
                self._note(action, value)
            elif action is not None and action.nargs != 0:
                self.waiting = action
        elif isinstance(self.slot, argparse._SubParsersAction):
            self.parser = self.slot.choices.get(word, self.parser)
            self._slots = _slots(self.parser)
        elif self.slot is not None:
            self._note(self.slot, word)
            if self.slot.nargs not in ("*", "+", argparse.REMAINDER):
                del self._slots[0]

    def _note(self, action: argparse.Action, word: str) -> None:
        self.seen.setdefault(action.dest, []).append(word)


def _slots(made: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in made._actions if not action.option_strings]


def candidates(words: Sequence[str]) -> list[str]:
    """What may stand where the last of `words` stands; nothing where only the user knows, and a shell then offers files."""
    from hauberk.cli import VERBS

    if len(words) <= 1:
        return sorted(VERBS)
    if words[0] not in VERBS:
        return []
    typed = Typed(import_module(f"hauberk.verbs.{words[0]}").parser(), words[1:-1])
    wanted = typed.waiting
    if wanted is None and not words[-1].startswith("-"):
        wanted = typed.slot
    if wanted is None:
        return sorted(typed.parser._option_string_actions)
    if wanted.choices is not None:
        return sorted(str(choice) for choice in wanted.choices)
    if wanted is typed.slot and wanted.metavar == "NAME":
        return sorted(set(_names(typed.seen)))
    return []


def _names(seen: dict[str, list[str]]) -> Iterator[str]:
    """Names on the bus of the things that are spoken of."""
    from schemas.topics import ENFORCEMENT_STATUS, INVENTORY, POLICIES

    what = seen.get("what", [""])[0]
    if what in POLICY_KINDS:
        namespace = seen.get("namespace", [""])[-1]
        for key, _ in _latest(seen, POLICIES):
            kind, _, rest = key.decode("utf-8", "replace").partition("/")
            of, _, name = rest.partition("/")
            if POLICY_KINDS[what] in ("", kind) and namespace in ("", of) and PLAIN.fullmatch(name):
                yield name
    elif what in ("node", "nodes"):
        keys = (key.decode("utf-8", "replace") for key, _ in _latest(seen, ENFORCEMENT_STATUS))
        yield from filter(PLAIN.fullmatch, keys)
    elif what in ("workload", "workloads"):
        from schemas.errors import DecodeError
        from schemas.identity import decode

        for _, value in _latest(seen, INVENTORY):
            with contextlib.suppress(DecodeError):
                name = decode(value).container_name
                if PLAIN.fullmatch(name):
                    yield name


def _latest(seen: dict[str, list[str]], topic: Topic) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of a compacted topic: of files without opening the bus, of brokers within ASKED seconds. Nothing when it
    cannot be had: whoever completes a word is told of no error."""
    from bus.embedded.read_only import peek
    from hauberk.settings import merge, state_directory
    from schemas.errors import HauberkError

    try:
        tree = merge(seen.get("config", [None])[-1], seen.get("set", ())).tree
    except HauberkError:
        return
    bus = tree.get("bus", {})
    if not isinstance(bus, dict):
        return
    if bus.get("type", "embedded") == "embedded":
        state = state_directory(seen.get("state", [None])[-1] or tree.get("state"))
        yield from peek(str(bus.get("directory") or state / "bus"), topic)
        return
    import asyncio

    import msgspec

    from bus.registry import BusSettings, open_bus

    async def asked() -> list[tuple[bytes, bytes]]:
        async with asyncio.timeout(ASKED):
            opened = await open_bus(msgspec.convert(bus, BusSettings), aloud=False)
            try:
                return [(key, one.value) for key, one in (await opened.latest(topic)).items() if one.value is not None]
            finally:
                await opened.close()

    with contextlib.suppress(HauberkError, TimeoutError, msgspec.ValidationError):
        yield from asyncio.run(asked())


def main(argv: Sequence[str]) -> int:
    """Print the script or the candidates."""
    made = parser()
    given = made.parse_args(argv)
    if given.words is not None:
        last = given.words[-1] if given.words else ""
        print("\n".join(word for word in candidates(given.words) if word.startswith(last)))
        return 0
    if not given.shell:
        made.error("expected bash, zsh or fish")
    print(SCRIPTS[given.shell])
    return 0
