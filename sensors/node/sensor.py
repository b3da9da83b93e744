# SPDX-License-Identifier: Apache-2.0
"""A node's sensor, put together: programs loaded or found, rings opened, the agent built. What `hauberk node` and `up` start.

`open_node` blocks for some seconds when the programs must be compiled, so it is called before the loop is busy or in
a thread. Must never import BCC. Neighbours: `kernel.loading`, `rings`, `agent`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Annotated

import msgspec

from bus.contract import Bus
from kernel.compiled import DIRECTORY
from kernel.loader import Halt
from kernel.loading import LoadedPrograms, LoadSettings, existing, load, mount_bpffs, unload, unmount
from schemas.decoding import NAME_OR_EMPTY
from schemas.errors import SettingsError
from sensors.containers.hashes import HashSettings
from sensors.node.agent import Agent, AgentSettings
from sensors.node.backlog import Backlog, Read, steps_of
from sensors.node.pins import require_free
from sensors.node.priority import NICE, current, prefer
from sensors.node.rings import OnCgroup, RingSettings, RingSource
from sensors.source import Batch


class NodeSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The sensor of one node."""

    node: Annotated[
        str,
        msgspec.Meta(
            max_length=253,
            pattern=NAME_OR_EMPTY,
            description="Name of this node; empty takes the host name.",
            extra={"setting": "derived"},
        ),
    ] = ""
    pin_dir: Annotated[
        str, msgspec.Meta(description="Directory of pins, in a bpffs.", examples=["/sys/fs/bpf/hauberk"])
    ] = "/sys/fs/bpf/hauberk"
    keep: Annotated[
        bool,
        msgspec.Meta(description="Leave programs and pins in place at the end, so that the next start is instant."),
    ] = False
    program_cache: Annotated[
        str,
        msgspec.Meta(
            description="Directory of compiled programs, writable by the sensor's user alone: what is found there is not compiled again. Empty: compile at each start.",
            examples=["/var/cache/hauberk/programs", ""],
        ),
    ] = DIRECTORY
    load: Annotated[LoadSettings, msgspec.Meta(description="Sizes and visibility.", examples=[{}])] = LoadSettings()
    rings: Annotated[RingSettings, msgspec.Meta(description="How the rings are drained.", examples=[{}])] = (
        RingSettings()
    )
    agent: Annotated[AgentSettings, msgspec.Meta(description="The drain timer.", examples=[{}])] = AgentSettings()
    hashes: Annotated[
        HashSettings, msgspec.Meta(description="Hashes of executables in alerts.", examples=[{"enabled": True}])
    ] = HashSettings()
    nice: Annotated[
        int,
        msgspec.Meta(
            ge=-20, le=19, description="CPU priority of this process; 0 leaves it alone. Below 0 needs CAP_SYS_NICE.", examples=[-10]
        ),
    ] = NICE  # fmt: skip


def node_name(settings: NodeSettings) -> str:
    """The configured name, else the host's. SettingsError when no record could carry it."""
    name = settings.node or os.uname().nodename
    if re.match(NAME_OR_EMPTY, name) is None or len(name) > 253:
        # Every record of the node would be refused by who reads it.
        raise SettingsError(
            f"expected a host name without `/` and control characters, of 253 characters at most, got `{name!r}`; set `node`"
        )
    return name


class Node:
    """A loaded sensor. `source` is open, `agent(bus)` runs it; `close()` undoes what `open_node` did (pins only without `keep`)."""

    def __init__(
        self, settings: NodeSettings, loaded: LoadedPrograms, opening: Callable[[], RingSource], mounted: str
    ) -> None:
        self.settings = settings
        self.loaded = loaded
        self.source = opening()
        self.source.take_over()
        self._opening = opening
        self._mounted = mounted
        self._nice = current()
        if settings.nice:
            prefer(settings.nice)

    def agent(
        self,
        bus: Bus,
        published: Callable[[Batch], None] | None = None,
        read: Read | None = None,
        *,
        elsewhere: bool = False,
    ) -> Agent:
        """The engine over this node's rings. `read`: how far those who judge its frames are, where that is known here. `elsewhere`:
        see `Agent`."""
        backlog = None
        if read is not None:
            backlog = Backlog(read, self.source.spare, steps=steps_of(self.settings.load.new_per_second))
        return Agent(self.source, bus, self.settings.agent, published, backlog, elsewhere=elsewhere)

    def reopen(self) -> None:
        """Open the rings anew, with nothing left of what was known of them. Raises what `RingSource` raises."""
        self.source.close()
        self.source = self._opening()

    def close(self, *, take_down: bool | None = None) -> None:
        """Close the rings. `take_down`: also detach and remove every program with its rules; None: unless `keep`. Whoever
        enforces says it himself: only a stop that was asked for may lift rules."""
        self.source.close()
        if self.settings.nice:
            prefer(self._nice)
        if not self.settings.keep if take_down is None else take_down:
            unload(self.settings.pin_dir)
            if self._mounted:
                unmount(self._mounted)


def open_node(
    settings: NodeSettings,
    on_cgroup: OnCgroup | None = None,
    progress: Callable[[str, float], None] | None = None,
    *,
    exclude: tuple[int, ...] = (),
    halt: Halt | None = None,
    prepare: Callable[[str], None] | None = None,
) -> Node:
    """Load (or reuse) the programs and open their rings. `exclude`: more host tgids never to be reported. `halt`, `prepare`: see
    `kernel.loading.load`.

    Raises what `kernel.loading.load` and `RingSource` raise; nothing is left behind then unless programs were there before: those,
    or what has taken their place, go on with their rules.
    """
    parent = os.path.dirname(settings.pin_dir.rstrip("/"))
    require_free(settings.pin_dir)
    mounted = parent if mount_bpffs(parent) else ""
    before = existing(settings.pin_dir) is not None
    loaded: LoadedPrograms | None = None
    try:
        loaded = load(
            settings.load, settings.pin_dir, progress=progress, cache=settings.program_cache, halt=halt, prepare=prepare
        )

        def opening() -> RingSource:
            run = os.urandom(8).hex()
            source = RingSource(settings.pin_dir, node_name(settings), run, settings.rings, on_cgroup)
            for pid in exclude:
                source.exclude(pid)
            return source

        return Node(settings, loaded, opening, mounted)
    except BaseException:
        if mounted or (loaded is not None and not loaded.reused and not before):
            unload(settings.pin_dir)
        if mounted:
            unmount(mounted)
        raise
