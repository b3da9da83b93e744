# SPDX-License-Identifier: Apache-2.0
"""Files that a person gives and that are not UTF-8 text: one sentence with the file, the line and what to do, and exit code 2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hauberk.settings_text import parse
from schemas.file_text import not_utf8

LATIN = b"# caf\xe9\n"
SAID = "got byte 0xe9 at line 2 (offset {}), which is not UTF-8; save it as UTF-8 text"
POLICY = """\
apiVersion: security.kubearmor.com/v1
kind: KubeArmorHostPolicy
metadata: {name: shadow}
spec: {nodeSelector: {}, file: {matchPaths: [{path: /etc/shadow}]}, action: Audit}
"""


@pytest.mark.parametrize(
    ("name", "first", "words"),
    [
        ("a.toml", b'state = "/x"\n', "settings --config FILE"),
        ("a.yaml", b"state: /x\n", "settings --config FILE"),
        ("a.json", b'{"state":\n', "settings --config FILE"),
        ("a.yaml", b"kind: Pod\n", "recommend -f FILE"),
        ("a.yaml", b"version: '1'\n", "recommend update FILE"),
        ("a.json", b'{"auths":\n', "recommend --docker-config FILE -i registry.invalid/web"),
        ("a.yaml", b"- event: {}\n", "policy test -f policy.yaml --tests FILE"),
        ("policy.tests.yaml", b"- event: {}\n", "policy test -f policy.yaml"),
        ("kubeconfig", b"kind: Config\n", "policy check cluster: --set cluster.server.kubeconfig=FILE"),
        # The loader of a kubeconfig reads in pieces.
        ("kubeconfig", b"#" + b"x" * 10_000 + b"\n", "policy check cluster: --set cluster.server.kubeconfig=FILE"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_text(hauberk: Any, name: str, first: bytes, words: str) -> None:
    (hauberk.home / "policy.yaml").write_text(POLICY)
    file = hauberk.home / name
    file.write_bytes(first + LATIN)
    done = hauberk(*words.replace("FILE", str(file)).split())
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert f"{name}`" in line
    assert SAID.format(len(first) + 5).removeprefix("got ") in line


@pytest.mark.parametrize("verb", ["policy check", "policy lint", "policy test", "apply -f", "delete -f"])
def test_so_is_a_policy_file(hauberk: Any, verb: str) -> None:
    assert hauberk.replay().returncode == 0
    (hauberk.home / "bad.yaml").write_bytes(POLICY.encode() + LATIN)
    done = hauberk(*verb.split(), "bad.yaml")
    assert done.returncode == 2
    said = done.stdout + done.stderr
    assert f"byte {len(POLICY) + 5} is not UTF-8 text\n --> bad.yaml:5:1\n" in said
    assert "name a file of text, saved as UTF-8" in said
    assert "Traceback" not in said


def test_text_of_other_kinds(tmp_path: Path) -> None:
    with pytest.raises(UnicodeDecodeError) as error:
        'state = "/x"\n'.encode("utf-16").decode()
    assert not_utf8(error.value) == "UTF-16 text; save it as UTF-8"
    # A mark at the start is no part of the text, whatever the form.
    for form, text in (("toml", 'state = "/x"\n'), ("json", '{"state": "/x"}'), ("yaml", "state: /x\n")):
        assert parse(text.encode("utf-8-sig"), form, f"a.{form}") == {"state": "/x"}
