# SPDX-License-Identifier: Apache-2.0
"""Generated pages are what the code says; every policy and every `hauberk` command in the pages is real."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from hauberk.cli import VERBS
from schemas.kernel import Loss

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def test_generated_pages_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs/generate.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stderr}run `make docs`"


def blocks(language: str) -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for number, match in enumerate(
            re.finditer(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
        ):
            found.append((f"{page.relative_to(ROOT)}-{number}", match[1]))
    return found


POLICIES = [(name, text) for name, text in blocks("ya?ml") if "security.kubearmor.com" in text]


@pytest.mark.parametrize("text", [text for _, text in POLICIES], ids=[name for name, _ in POLICIES])
def test_policies_in_pages_parse(text: str) -> None:
    from policy.parse import parse

    parsed = parse(text, "page")
    assert parsed.policies
    assert not [one for one in parsed.diagnostics if one.level == "error"]


def commands() -> list[tuple[str, str]]:
    found = []
    for name, text in [*blocks("(?:sh|bash|console)")]:
        for line in text.splitlines():
            words = line.strip().removeprefix("$ ").removeprefix("# ").removeprefix("sudo ")
            if words.startswith("hauberk "):
                found.append((name, words))
    return found


@pytest.mark.parametrize(("page", "line"), commands(), ids=[f"{page}: {line[:60]}" for page, line in commands()])
def test_commands_in_pages_are_understood(page: str, line: str) -> None:
    """Each is parsed by the verb's own parser; `tests/hauberk/test_show.py` runs what the README tells a reader to type."""
    import shlex
    from importlib import import_module

    words = shlex.split(line.split(" | ")[0].split(" > ")[0], comments=True)
    verb = words[1]
    if verb in ("--help", "--version", "-h"):
        return
    assert verb in VERBS, line
    rest = words[2 : words.index("--")] if "--" in words else words[2:]
    if "-h" in rest or "--help" in rest:
        return
    import_module(f"hauberk.verbs.{verb}").parser().parse_args(rest)


def test_the_policy_of_the_readme_is_the_example() -> None:
    shown = next(text for name, text in POLICIES if name.startswith("README"))
    assert shown.strip() == (ROOT / "examples/policies/host-audit-shadow.yaml").read_text().strip()


def test_no_placeholder_is_left_in_a_page() -> None:
    for page in PAGES:
        assert not re.search(r"^@[A-Z]+@$", page.read_text(), re.MULTILINE), page


def test_each_loss_is_explained() -> None:
    text = (ROOT / "docs/processors.md").read_text()
    for loss in Loss:
        assert f"`{loss.name.lower()}`" in text, (
            f"docs/processors.md, Losses: what {loss.name.lower()} says and what helps"
        )
