# SPDX-License-Identifier: Apache-2.0
"""The client of Kubernetes is there without the objects that are generated for it, and whole where its parts ask for more."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

COUNT = "print(len([one for one in sys.modules if one.startswith('kubernetes_asyncio.client.models.')]))"
USED = """
import sys
from cluster.client_library import light
{before}
light()
from kubernetes_asyncio import client, config
from kubernetes_asyncio.stream import WsApiClient
client.ApiClient, client.Configuration
print(config.ConfigException.__name__, WsApiClient.__name__)
"""


def said(before: str = "") -> list[Any]:
    code = USED.replace("{before}", before) + COUNT
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_what_is_in_use_is_there_and_the_generated_objects_are_not() -> None:
    assert said() == ["ConfigException", "WsApiClient", "0"]


OTHER = """
class Other:
    asked = False
    def find_spec(self, name, path=None, target=None):
        if name == "kubernetes_asyncio.client.configuration" and not self.asked:
            self.asked = True
            raise ImportError("a version whose client asks for its objects at once")
sys.meta_path.insert(0, Other())
"""


@pytest.mark.parametrize("before", ["import kubernetes_asyncio", OTHER])
def test_the_whole_library_does_as_well(before: str) -> None:
    error, stream, models = said(before)
    assert (error, stream) == ("ConfigException", "WsApiClient")
    assert int(models) > 500
