# SPDX-License-Identifier: Apache-2.0
"""A node's sensor opens, refuses a rival before it touches anything, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kernel import bpf
from kernel.loading import LoadSettings, existing, is_bpffs, layout_hash, unload, unmount
from schemas.errors import KernelError, SettingsError
from sensors.node.rings import RingSettings
from sensors.node.sensor import Node, NodeSettings, node_name, open_node

pytestmark = pytest.mark.kernel
QUIET = LoadSettings(host_visibility=("none",), new_visibility=("none",), timeout=100.0)


@pytest.fixture
def pins(bpffs_home: Callable[[str], str]) -> str:
    if not os.path.isdir("/usr/lib/python3/dist-packages/bcc"):
        pytest.skip("no BCC (python3-bpfcc)")
    try:
        os.close(bpf.map_create(2, 4, 8, 1))
    except KernelError as error:
        pytest.skip(f"no BPF here: {error}")
    return f"{bpffs_home('node')}/pins/sensor"


@contextmanager
def opened(settings: NodeSettings, **options: Any) -> Iterator[Node]:
    """A node that is closed whatever happens."""
    node = open_node(settings, **options)
    try:
        yield node
    finally:
        node.close()


def test_it_opens_refuses_a_rival_and_leaves_nothing(pins: str) -> None:
    settings = NodeSettings(node="n", pin_dir=pins, load=QUIET)
    steps: list[str] = []
    with opened(settings, progress=lambda step, _: steps.append(step)) as node:
        assert steps[-1] == "attach"
        # Another size would replace the pins under the first one's feet.
        other = NodeSettings(node="n", pin_dir=pins, load=LoadSettings(occurrence_pages=16))
        with pytest.raises(KernelError, match="only agent"):
            open_node(other)
        node.source.drain()
    assert not os.path.exists(pins)
    assert not is_bpffs(os.path.dirname(pins))


def test_a_failure_after_loading_takes_everything_down(pins: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    rings = RingSettings(state_dir=str(tmp_path / "file" / "state"))
    with pytest.raises(SettingsError, match="state_dir"):
        open_node(NodeSettings(node="n", pin_dir=pins, load=QUIET, rings=rings))
    assert not os.path.exists(pins)
    assert not is_bpffs(os.path.dirname(pins))


def test_a_failure_after_programs_were_replaced_lifts_nothing(pins: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    rings = RingSettings(state_dir=str(tmp_path / "file" / "state"))
    with opened(NodeSettings(node="n", pin_dir=pins, load=QUIET, keep=True)) as first:
        mounted = first._mounted
    other = msgspec.structs.replace(QUIET, rules=128)
    try:
        with pytest.raises(SettingsError, match="state_dir"):
            open_node(NodeSettings(node="n", pin_dir=pins, load=other, rings=rings))
        assert existing(pins, layout_hash(other)) is not None, "rules were carried over to these"
    finally:
        unload(pins)
        unmount(mounted)


def test_kept_pins_are_found_again(pins: str) -> None:
    settings = NodeSettings(node="n", pin_dir=pins, load=QUIET, keep=True)
    with opened(settings) as first:
        mounted = first._mounted
    with opened(NodeSettings(node="n", pin_dir=pins, load=QUIET)) as last:
        last._mounted = mounted
        assert last.loaded.reused
    assert not os.path.exists(pins)


def test_the_name_is_the_hosts_when_none_is_given() -> None:
    assert node_name(NodeSettings()) == os.uname().nodename
    assert node_name(NodeSettings(node="edge-7")) == "edge-7"


def test_priority_is_for_every_thread_and_given_back() -> None:
    code = (
        "import os, threading\n"
        "from sensors.node.priority import prefer\n"
        "stop = threading.Event(); thread = threading.Thread(target=stop.wait); thread.start()\n"
        "each = lambda: {os.getpriority(os.PRIO_PROCESS, int(one)) for one in os.listdir('/proc/self/task')}\n"
        "before = each(); prefer(5); during = each(); prefer(0); after = each(); stop.set(); thread.join()\n"
        "print(before, during, after)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=90)
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert done.stdout.split() == [f"{{{own}}}", "{5}", "{0}"]


def test_a_host_name_that_no_record_can_carry_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    release = os.uname()
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((release[0], "a/b", *release[2:])))
    with pytest.raises(SettingsError, match="expected a host name without `/`"):
        node_name(NodeSettings())
    assert node_name(NodeSettings(node="box")) == "box"
