# SPDX-License-Identifier: Apache-2.0
"""`hauberk completion`: scripts that ask `hauberk completion --words` for candidates, read from the verbs' own parsers."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from typing import Final

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
        epilog="bash: source <(hauberk completion bash)")  # fmt: skip
    made.add_argument("shell", nargs="?", choices=tuple(SCRIPTS), help="whose script to print")
    made.add_argument("--words", nargs=argparse.REMAINDER, help="print candidates for the last of these words")
    return made


def candidates(words: Sequence[str]) -> list[str]:
    """What may stand where the last of `words` stands."""
    from hauberk.cli import VERBS

    if len(words) <= 1:
        return sorted(VERBS)
    if words[0] not in VERBS:
        return []
    made: argparse.ArgumentParser = import_module(f"hauberk.verbs.{words[0]}").parser()
    for word in words[1:-1]:
        for action in made._actions:
            if isinstance(action, argparse._SubParsersAction) and word in action.choices:
                made = action.choices[word]
    found: list[str] = []
    for action in made._actions:
        if len(words) > 2 and words[-2] in action.option_strings and action.choices:
            return [str(choice) for choice in action.choices]
        found += action.option_strings
        if not action.option_strings and action.choices:
            found += [str(choice) for choice in action.choices]
    return sorted(found)


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
