# SPDX-License-Identifier: Apache-2.0
"""What the image is made of, as far as its recipe tells; `deploy/docker/try.sh` builds it."""

import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "deploy/docker/Dockerfile").read_text()
IGNORE = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
ROOMS = set(
    tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
)


def instructions() -> list[tuple[str, str]]:
    text = "\n".join(line for line in DOCKERFILE.splitlines() if not line.startswith("#"))
    joined = text.replace("\\\n", " ")
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def test_no_registry_is_asked_for_anything_but_the_base() -> None:
    assert not re.search(r"^#\s*syntax\s*=", DOCKERFILE, re.MULTILINE), "BuildKit would fetch a front end"
    assert "://" not in DOCKERFILE
    froms = [words for word, words in instructions() if word == "FROM"]
    assert all(words.startswith("${BASE}") for words in froms)
    assert ("ARG", "BASE=debian:bookworm-slim") in instructions()
    assert not [words for word, words in instructions() if word == "ADD"]


def test_python_packages_are_the_locked_ones() -> None:
    installs = re.findall(r"pip install ([^&\n]*)", DOCKERFILE.replace("\\\n", " "))
    assert len(installs) == 2
    assert "--require-hashes -r requirements.lock" in installs[0]
    assert "--no-deps --no-build-isolation ." in installs[1]
    assert "python3-bpfcc" in DOCKERFILE


def test_it_does_not_run_as_root_by_itself() -> None:
    order = instructions()
    assert [words for word, words in order if word == "USER"] == ["10001:10001"]
    assert ("ENTRYPOINT", '["entrypoint"]') in order
    assert any("PYTHONSAFEPATH=1" in words for word, words in order if word == "ENV")


def test_every_layer_that_fetches_lists_forgets_them() -> None:
    for word, words in instructions():
        if word == "RUN" and "apt-get" in words:
            assert "--no-install-recommends" in words
            assert "rm -rf /var/lib/apt/lists/*" in words


def test_only_what_is_listed_gets_in() -> None:
    assert IGNORE[0] == "*"
    let_in = {line[1:] for line in IGNORE if line.startswith("!")}
    assert let_in >= ROOMS
    assert all((ROOT / name).exists() for name in let_in)
    for name in ("requirements.lock", "pyproject.toml", "README.md", "LICENSE"):
        assert name in let_in
    for found in re.findall(r"deploy/docker/\S+", DOCKERFILE.replace("-f deploy/docker/Dockerfile", "")):
        assert found in let_in


@pytest.mark.parametrize("path", ["deploy/docker/entrypoint.sh", "deploy/docker/try.sh"])
def test_scripts_parse(path: str) -> None:
    shell = shlex.split((ROOT / path).read_text().splitlines()[0].removeprefix("#!"))[-1]
    subprocess.run([Path(shell).name, "-n", ROOT / path], check=True, capture_output=True)
    assert (ROOT / path).stat().st_mode & 0o111


def test_other_verbs_start_as_they_are(tmp_path: Path) -> None:
    """Through the real script, with a `hauberk` that says what it was given."""
    (tmp_path / "hauberk").write_text('#!/bin/sh\necho "got $*"\n')
    (tmp_path / "hauberk").chmod(0o755)
    done = subprocess.run(
        ["sh", ROOT / "deploy/docker/entrypoint.sh", "sink", "--set", "a=b c"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "got sink --set a=b c\n"
