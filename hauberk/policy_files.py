# SPDX-License-Identifier: Apache-2.0
"""Policy files that a person names, or what is in force somewhere: found, read and parsed, with every diagnostic on standard error."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hauberk import in_force, inputs
from schemas.errors import SettingsError


def files(
    given: Sequence[str], recursive: bool, sources: argparse.Namespace | None = None
) -> Iterator[tuple[str, bytes]]:
    """(origin, bytes) of each file named, of the .yaml, .yml and .json files (but no NAME.tests.yaml) of each directory, of standard input for `-`.
    `sources`: the settings by which `bus:` and `cluster:` are read; without them these are files like others."""
    parts = [in_force.parted(named) if sources is not None else ("", named) for named in given]
    inputs.once(name for _, name in parts)
    for source, name in parts:
        if source and sources is not None:
            yield from in_force.policies(source, sources)
            if not name:
                continue
        if name == "-":
            data = inputs.read(name, "policies", inputs.POLICIES)
            if not data.strip():
                raise SettingsError(
                    "expected policies on standard input, got nothing; give them with `< FILE`, to a command in a pod with `kubectl exec -i`"
                )
            yield "<stdin>", data
            continue
        path = Path(name)
        if path.is_dir():
            found = sorted(
                file
                for file in (path.rglob("*") if recursive else path.glob("*"))
                if file.suffix in (".yaml", ".yml", ".json") and not file.stem.endswith(".tests")
            )
            if not found:
                raise SettingsError(f"expected policies (.yaml, .yml, .json) in `{name}`, found none")
        else:
            found = [path]
        for file in found:
            yield str(file), inputs.read(str(file), "a policy file", inputs.POLICIES)


def read(
    given: Sequence[str],
    recursive: bool,
    strict: bool = False,
    quiet: bool = False,
    sources: argparse.Namespace | None = None,
) -> list[Any]:
    """Every policy document in the files; all diagnostics go to stderr, PolicyError when one of them is an error. `sources`: as of `files`;
    a file's policy takes the place of the one in force that has its name."""
    from policy.parse import parse
    from policy.text.diagnostics import render
    from schemas.errors import PolicyError

    documents: list[Any] = []
    there: list[Any] = []
    found: list[object] = []
    errors = warnings = 0
    for origin, data in files(given, recursive, sources):
        parsed = parse(data, origin, strict=strict)
        if sources is not None and in_force.parted(origin)[0]:
            there += parsed.policies if parsed.ok else ()
            if not parsed.ok:
                print(
                    f"hauberk: {origin} is left out, it is no valid policy; `hauberk policy check` says why",
                    file=sys.stderr,
                )
            continue
        documents += parsed.policies
        found += parsed.diagnostics
        for diagnostic in parsed.diagnostics:
            errors += diagnostic.level == "error"
            warnings += diagnostic.level == "warning"
            if diagnostic.level == "error" or not quiet:
                print(render(diagnostic, parsed.text), file=sys.stderr)
    if errors:
        raise PolicyError(
            f"{errors} error{'s' * (errors != 1)}, {warnings} warning{'s' * (warnings != 1)}; nothing was applied",
            tuple(found),
        )
    named = {one.key for one in documents}
    documents = [one for one in there if one.key not in named] + documents
    if not documents:
        raise SettingsError(f"expected at least one policy in {', '.join(given)}, found none")
    return documents
