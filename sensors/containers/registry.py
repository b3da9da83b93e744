# SPDX-License-Identifier: Apache-2.0
"""Every container runtime there is, on one screen. To add one: a file, a settings struct, one line in each place here."""

from __future__ import annotations

from typing import assert_never

from sensors.containers.contract import Runtime
from sensors.containers.cri import Cri, CriSettings
from sensors.containers.docker import Docker, DockerSettings
from sensors.containers.podman import Podman, PodmanSettings

RuntimeSettings = DockerSettings | CriSettings | PodmanSettings

DEFAULTS: tuple[RuntimeSettings, ...] = (
    DockerSettings(),
    CriSettings(),
    CriSettings(socket="/var/run/crio/crio.sock", runtime="cri-o"),
    PodmanSettings(),
)
"""What is watched when nobody says otherwise; a runtime that is not installed costs nothing and says nothing."""


def make(settings: RuntimeSettings) -> Runtime:
    """The runtime that `settings` describe."""
    match settings:
        case DockerSettings():
            return Docker(settings)
        case CriSettings():
            return Cri(settings)
        case PodmanSettings():
            return Podman(settings)
        case _:
            assert_never(settings)
