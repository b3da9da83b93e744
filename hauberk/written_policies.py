# SPDX-License-Identifier: Apache-2.0
"""What `discover` and `recommend` made, as text and as files: each whole or not there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hauberk.output import as_json, as_yaml, printable
from schemas.errors import SettingsError

if TYPE_CHECKING:
    from policy.learn.learner import LearntPolicy


def comment(one: LearntPolicy, others: Sequence[str] = ()) -> str:
    """The line above a learnt policy. `others`: whom it selects that nothing was seen of."""
    also = f" {selects(', '.join(others))}." if others else ""
    free = [name for name in ("process", "file", "network") if name not in one.body["spec"]]
    if free:
        also += f" Without a rule for {' or '.join(free)} it restricts none of that{'; --isolate does' * (free == ['network'])}."
    return (
        f"{one.workload.label}: {len(one.rules)} rules from {one.sightings:,} behaviours ({one.events:,} events), of which it denies none. "
        f"{one.completeness.sentence()}.{also}"
    )


def selects(others: str) -> str:
    """That a policy is for them too, without a full stop."""
    return f"It selects {others} too, of which nothing was seen"


def yaml_text(body: dict[str, Any], comment: str) -> str:
    """A document under a line that says what it is."""
    return f"# {printable(comment)}\n{as_yaml(body)}\n"


def expect_directory(directory: Path) -> None:
    """SettingsError when something that is none stands in its place."""
    for place in (directory, *directory.parents):
        if place.is_dir():
            return
        if place.exists() or place.is_symlink():
            raise SettingsError(
                f"expected a directory to write policies to, `{place}` is none; name another, or remove it"
            )


def write_policies(directory: Path, bodies: list[tuple[dict[str, Any], str]], form: str) -> list[str]:
    """One file each, each whole or not there; their directories are made before the first. SettingsError when one cannot be written."""
    written = []
    places = [directory / body["metadata"].get("namespace", "hosts") for body, _ in bodies]
    try:
        for below in dict.fromkeys(places):
            expect_directory(below)
            below.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=below, prefix=".hauberk-")
            os.close(descriptor)
            os.unlink(name)
        for below, (body, comment) in zip(places, bodies, strict=True):
            path = below / f"{body['metadata']['name']}.{form}"
            write_whole(path, as_json(body) + "\n" if form == "json" else yaml_text(body, comment))
            written.append(str(path))
    except OSError as error:
        raise SettingsError(
            f"expected to write policies below `{directory}`, got: {error.strerror or error}; name another directory"
        ) from error
    return written


def write_whole(path: Path, text: str) -> None:
    """A file that is whole or not there; half of a character of UTF-16, as a manifest may hold, is written as `\\udc80`. OSError."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".hauberk-")
    try:
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
