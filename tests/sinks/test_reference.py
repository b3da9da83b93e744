# SPDX-License-Identifier: Apache-2.0
"""docs/sinks.md is about the sinks there are, and its example loads."""

from __future__ import annotations

import typing
from pathlib import Path

import msgspec
import yaml

from sinks import registry

PAGE = (Path(__file__).parents[2] / "docs" / "sinks.md").read_text()


def test_every_sink_has_a_row():
    for settings in typing.get_args(registry.SinkSettings):
        assert f"| `{settings.__struct_config__.tag}` |" in PAGE


def test_the_example_loads():
    example = yaml.safe_load(PAGE.split("```yaml\n")[1].split("```")[0])
    assert len(msgspec.convert(example["sinks"], list[registry.SinkSettings])) == 4
