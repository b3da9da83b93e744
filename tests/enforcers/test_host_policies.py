# SPDX-License-Identifier: Apache-2.0
"""Host policies under the LSM hooks: they hold in a cgroup of the host and below it, and whoever runs the machine still gets in.

Where the kernel asks no LSM programs all of it is skipped with the reason; `make test-vm` runs it in guests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Any

import pytest

from kernel.loading import LoadedPrograms
from schemas.backends import DEFAULTS, Implemented
from schemas.identity import Kind
from schemas.refusals import RefusalCode

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(1200)]
DENIED = "Operation not permitted"
HSP = """---
apiVersion: security.kubearmor.com/v1
kind: KubeArmorHostPolicy
metadata: {{name: host, annotations: {{{annotations}}}}}
spec:
  nodeSelector: {{matchLabels: {{kubernetes.io/hostname: n1}}}}
  file: {{matchPaths: [{{path: /etc/shadow}}]}}
  process: {{matchPaths: [{{path: {shell}}}, {{path: {tool}}}]}}
  action: Block
"""


@pytest.fixture(scope="module")
def loaded(hooked: LoadedPrograms) -> LoadedPrograms:
    return hooked


@pytest.fixture
def backends() -> tuple[Implemented, ...]:
    return ("bpf-lsm", *DEFAULTS)


def status(box: Any, *command: str) -> str:
    """What a shell in the cgroup says of a command: `ok`, or the message of its errno."""
    process = box.start(*command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, said = process.communicate(timeout=90)
    return "ok" if process.returncode == 0 else said.decode().strip().rpartition(": ")[2]


async def test_the_operator_still_gets_in_and_nobody_else_reads_shadow(
    loaded: LoadedPrograms, house: Any, new_cgroup: Any, identity: Any
) -> None:
    service, session = new_cgroup(), new_cgroup()
    shell, tool = os.path.realpath("/bin/bash"), os.path.realpath("/usr/bin/id")
    labels = {"kubernetes.io/hostname": "n1"}
    words: dict[str, Any] = {"kind": Kind.HOST, "labels": {}, "namespace": "", "node_labels": labels}
    if shutil.which("su") is None:
        pytest.skip("no `su` here to get in by")
    async with house(host_cgroups=("/hauberk-enforce-*",)) as here:
        await here.know(identity(service, **words), identity(session, **words))
        await here.apply(HSP.format(annotations="", shell=shell, tool=tool))
        await here.enforced(service, session)
        await here.settled()
        assert [(one.code, one.ref.position) for one in here.agent.receipt.refused] == [
            (RefusalCode.LOCKOUT, "spec.process.matchPaths[0]")
        ]
        for box in (service, session):
            assert status(box, "cat", "/etc/shadow") == DENIED
            assert status(box, "id") == DENIED
            assert status(box, shell, "-c", "true") == "ok"
            # It reads /etc/shadow for its user, and starts the shell.
            assert status(box, "su", "-s", shell, "-c", "true", "root") == "ok"
        await here.apply(HSP.format(annotations="hauberk.io/force: enabled", shell=shell, tool=tool))
        await here.until(lambda: status(service, shell, "-c", "true") == DENIED)
        await here.settled()
        assert here.agent.receipt.refused == ()
        assert status(service, "su", "-s", shell, "-c", "true", "root") != "ok"
