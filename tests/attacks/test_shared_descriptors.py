# SPDX-License-Identifier: Apache-2.0
"""Who else holds the file: a kill after the open comes too late for what shares the descriptor table with who opened it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

POLICY = """
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {{name: secret, annotations: {{hauberk.io/signal: enabled}}}}
spec:
  selector: {{matchLabels: {{app: box}}}}
  severity: 9
  file: {{matchPaths: [{{path: {secret}}}]}}
  action: Block
"""


@pytest.fixture(scope="module")
def attacked(
    make_container: Callable[[str], Any], make_node: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Any:
    home = Path(os.path.realpath(tmp_path_factory.mktemp("shared")))
    (home / "secret").write_text("s3cret-s3cret-s3cret")
    node = make_node(POLICY.format(secret=home / "secret"), make_container("box"))
    node.secret = home / "secret"
    return node


@pytest.mark.attack(
    "A process that shares its descriptor table (CLONE_FILES) reads what its killed child has opened",
    "told",
    by="signal",
)
def test_a_shared_descriptor_table(attacked: Any, build: Callable[[str], str]) -> None:
    done = attacked.containers["box"].run(build("shared_fds"), str(attacked.secret))
    assert "child signal=9" in done.stdout
    assert "s3cret" in done.stdout, "it is held now: change the marker and SECURITY.md"
    assert attacked.alert("shared_fds", Operation="File")["Action"] == "Block"


@pytest.mark.attack("Another thread reads the descriptor between the open and the kill", "told", by="signal")
def test_a_thread_that_races(attacked: Any, build: Callable[[str], str]) -> None:
    done = attacked.containers["box"].run(build("thread_race"), str(attacked.secret), "20")
    assert "leaked" in done.stdout
    assert attacked.alert("thread_race", Operation="File")["Action"] == "Block"
