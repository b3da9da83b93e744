# SPDX-License-Identifier: Apache-2.0
"""All settings together: one section per stage, the structs as they stand above their components.

What depends on the state directory (where the bus lies, where the alerts file and the summary store are) is filled in here
when nobody said otherwise. Verbs that only read the bus check only `bus`, so that they start fast.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from msgspec import Meta

from bus.embedded.settings import EmbeddedSettings
from bus.registry import BusSettings, open_bus
from hauberk.settings import LoadedSettings, check, merge, state_directory
from schemas.backends import DEFAULTS
from schemas.errors import PermissionMissing, SettingsError
from schemas.visibility import EVERYTHING

if TYPE_CHECKING:
    from pathlib import Path

    from bus.contract import Bus
    from bus.kafka.settings import KafkaSettings
    from hauberk.node_sections import NodeConfiguration
    from hauberk.sections import Configuration

STORE_FILE: Final = "summary.db"
ALERTS_FILE: Final = "alerts.jsonl"


SECTIONS: Final = (
    "state",
    "node",
    "bus",
    "sensor",
    "inventory",
    "processor",
    "planner",
    "enforcement",
    "cluster",
    "cluster_status",
    "cluster_webhook",
    "postures",
    "sinks",
    "spool",
    "metrics",
    "page",
    "memory",
)
"""The top of `sections.Configuration`, here so that a verb that reads the bus refuses a wrong one without importing them all."""


class BusOnly(msgspec.Struct, frozen=True, kw_only=True):
    """The part of the configuration that a reader of the bus needs; the other sections are not looked at."""

    bus: Annotated[BusSettings, Meta(description="Which bus.", examples=[{"type": "embedded"}])] = EmbeddedSettings()
    state: str = ""


def load(given: argparse.Namespace) -> tuple[LoadedSettings, Path]:
    """The merged tree of a verb's options with the state directory's places filled in, and that directory."""
    loaded = merge(given.config, given.set)
    tree = loaded.tree
    if not isinstance(chosen := tree.get("state", ""), str) or "\0" in chosen:
        raise SettingsError(
            f"settings: `state`: expected a path as text, got `{chosen!r}`; `hauberk settings --reference` lists the keys"
        )
    state = state_directory(given.state or chosen)
    for name in tree:
        if name not in SECTIONS:
            import difflib

            near = "".join(f"; did you mean `{one}`?" for one in difflib.get_close_matches(name, SECTIONS, n=1))
            by = loaded.origins.get(name) or next(
                (by for key, by in loaded.origins.items() if key.startswith(f"{name}.")), "the settings"
            )
            raise SettingsError(
                f"settings: `{name}`: expected one of {', '.join(SECTIONS)}, got `{name}` (from {by}){near}; "
                "`hauberk settings --reference` lists the keys"
            )
    bus = _table(tree, "bus")
    bus.setdefault("type", "embedded")
    if bus["type"] == "embedded":
        bus.setdefault("directory", str(state / "bus"))
    return loaded, state


async def client_bus(given: argparse.Namespace) -> Bus:
    """The configured bus, open, for a verb that reads or publishes. SettingsError when an embedded one is not there yet."""
    loaded, _state = load(given)
    settings = check(loaded, BusOnly).bus
    if isinstance(settings, EmbeddedSettings):
        import os

        try:
            os.listdir(settings.directory)
        except PermissionError as error:
            raise PermissionMissing(
                f"expected to read the bus in `{settings.directory}`, got no permission; run as root or name another with --state"
            ) from error
        except OSError as error:
            raise SettingsError(
                f"expected a bus in `{settings.directory}`, got: {error.strerror}; start `hauberk up`, or name another with --state or HAUBERK_STATE; "
                "a cluster's is Kafka: `--set bus.type=kafka --set bus.bootstrap=HOST:PORT`, or `kubectl exec -n hauberk deploy/hauberk-cluster -- hauberk ...`"
            ) from error
    return await open_bus(settings, aloud=False)


def kafka_settings(given: argparse.Namespace) -> KafkaSettings:
    """The settings of the Kafka bus, for a verb that is about the cluster. SettingsError when the bus is another."""
    from bus.kafka.settings import KafkaSettings

    settings = check(load(given)[0], BusOnly).bus
    if not isinstance(settings, KafkaSettings):
        raise SettingsError(
            f"expected `bus.type` kafka, got `{settings.__struct_config__.tag}`, which makes its topics itself; "
            "`--set bus.type=kafka --set bus.bootstrap=HOST:PORT` names a cluster"
        )
    return settings


def _table(tree: dict[str, Any], name: str) -> dict[str, Any]:
    below = tree.setdefault(name, {})
    if not isinstance(below, dict):
        raise SettingsError(f"settings: `{name}`: expected a table, got `{type(below).__name__}`")
    return below


def default_sinks(state: Path) -> list[dict[str, Any]]:
    """What `up` tells to when `sinks` is not set: a file of alerts, the summary store, a Prometheus endpoint."""
    return [
        {"type": "file", "path": str(state / ALERTS_FILE)},
        {"type": "store", "path": str(state / STORE_FILE)},
        {"type": "prometheus"},
    ]


def configuration(given: argparse.Namespace) -> tuple[Configuration, LoadedSettings, Path]:
    """Every section, checked."""
    from hauberk.sections import Configuration

    loaded, state = complete(given)
    return check(loaded, Configuration), loaded, state


def node_configuration(given: argparse.Namespace) -> tuple[NodeConfiguration, LoadedSettings, Path]:
    """The sections a node reads, checked."""
    from hauberk.node_sections import NodeConfiguration

    loaded, state = complete(given)
    return check(loaded, NodeConfiguration), loaded, state


def complete(given: argparse.Namespace) -> tuple[LoadedSettings, Path]:
    """The merged tree with every default that depends on the state directory or on another section."""
    from hauberk import memory
    from kernel.machine import machine
    from kernel.map_sizes import map_sizes

    loaded, state = load(given)
    tree = loaded.tree
    tree.setdefault("sinks", default_sinks(state))
    tree["state"] = str(state)
    sensor = _table(tree, "sensor")
    _table(sensor, "rings").setdefault("state_dir", str(state / "sensor"))
    _table(tree, "enforcement").setdefault("state_dir", str(state / "enforcement"))
    _table(tree, "spool").setdefault("directory", str(state / "spool"))
    memory.fill_in(tree, here := machine())
    for name, size in map_sizes(here).items():
        _table(sensor, "load").setdefault(name, size)
    # What is copied below is checked where it was written first: an error names that place.
    for name in [name for name in tree if name not in ("node", "postures")]:
        tree[name] = tree.pop(name)
    if "node" in tree:
        for section in ("sensor", "inventory"):
            _table(tree, section)["node"] = tree["node"]
    if "postures" in tree:
        # The judge and the planner must not disagree about what happens to the unmatched.
        for stage in ("processor", "planner"):
            _table(tree, stage)["postures"] = tree["postures"]
    _table(sensor, "load")["host_visibility"] = _host_visibility(tree)
    # Nobody verifies programs, some seconds of it, that no backend would use.
    enforcement = _table(tree, "enforcement")
    _table(sensor, "load")["hooks"] = any(
        isinstance(named, list | tuple) and hooks in named
        for named, hooks in ((enforcement.get("backends", DEFAULTS), "bpf-lsm"), (enforcement.get("lsm", ()), "bpf"))
    )
    return loaded, state


def _host_visibility(tree: dict[str, Any]) -> list[str]:
    """What is seen of the host until the first plan: as judge and planner have it."""
    postures = tree.get("postures")
    words = postures.get("host_visibility") if isinstance(postures, dict) else None
    if isinstance(words, list | tuple) and all(isinstance(word, str) for word in words):
        return list(words)
    # As KubeArmor on a machine without Kubernetes: the host is watched unless somebody says otherwise.
    return list(EVERYTHING)


def store_path(given: argparse.Namespace) -> Path:
    """Where the summary store lies: the first `store` sink of the settings, else the state directory's."""
    from pathlib import Path

    loaded, state = load(given)
    path = _store_sink(loaded).get("path")
    return Path(str(path)) if path else state / STORE_FILE


def existing_store(given: argparse.Namespace) -> Path:
    """`store_path`, where something is. SettingsError when nothing is."""
    from bus.registry import elsewhere

    path = store_path(given)
    if path.exists():
        return path
    advice = "is a `store` sink running? name its state with --state"
    if elsewhere(check(load(given)[0], BusOnly).bus):
        advice = (
            "it lies on the machine whose `hauberk sink` has a `store`: run this there, or look at the page it serves"
        )
    raise SettingsError(f"expected a summary store at `{path}`, there is none; {advice}")


def counting_groups(given: argparse.Namespace) -> tuple[str, str]:
    """The consumer groups that counts pass on their way to the store: the processors' and the store sink's."""
    loaded, _state = load(given)
    processor = loaded.tree.get("processor")
    group = processor.get("group") if isinstance(processor, dict) else None
    return str(group or "processors"), f"sink.{_store_sink(loaded).get('name') or 'store'}"


def _store_sink(loaded: LoadedSettings) -> dict[str, Any]:
    sinks = loaded.tree.get("sinks")
    found = (sink for sink in sinks or () if isinstance(sink, dict) and sink.get("type") == "store")
    return next(found, {}) if isinstance(sinks, list) else {}
