# SPDX-License-Identifier: Apache-2.0
"""One budget: shares add up to it, a setting made by hand comes out of it, and what is used is shown beside what is allowed."""

from __future__ import annotations

import argparse
import sqlite3
import subprocess
import sys

import pytest

from hauberk import configuration
from hauberk.memory import FLOOR, SHARES, BudgetSettings, ProcessMemory, allowed, fill_in, shared
from kernel.machine import Machine
from schemas.errors import SettingsError
from schemas.topics import TOPICS

MIB = 1 << 20


def given(tmp_path, *sets: str, config: str | None = None) -> argparse.Namespace:
    return argparse.Namespace(config=config, set=list(sets), state=str(tmp_path))


def every(settings) -> dict[str, int]:
    return {name: allowed(settings, name) for name in SHARES}


@pytest.mark.parametrize("budget", [16 * MIB, 48 * MIB, 1 << 30])
def test_shares_are_the_budget(tmp_path, budget):
    settings, _, _ = configuration.configuration(given(tmp_path, f"memory.budget_bytes={budget}"))
    held = every(settings)
    assert budget * 0.99 < sum(held.values()) <= budget
    assert held["judge"] > held["sqlite"] > held["definitions"] > held["store"] > 0


def test_what_is_set_by_hand_stays_and_the_others_share_the_rest(tmp_path):
    settings, _, _ = configuration.configuration(
        given(
            tmp_path,
            "memory.budget_bytes=33554432",
            "processor.judge.cached_behaviours=20000",
            "bus.memory_bytes=65536",
        )
    )
    held = every(settings)
    assert settings.processor.judge.cached_behaviours == 20_000
    assert held["records"] == 65536 * len(TOPICS)
    assert 32 * MIB * 0.98 < sum(held.values()) <= 32 * MIB
    assert held["sqlite"] == pytest.approx((32 * MIB - 20_000 * 1152 - 65536 * len(TOPICS)) * 10 / 22, rel=0.01)


def test_a_hand_that_takes_all_leaves_the_others_their_least():
    held = shared(16 * MIB, {"judge": 1 << 30})
    assert held["judge"] == 1 << 30
    assert {name: size for name, size in held.items() if name != "judge"} == {
        name: share.least * share.unit for name, share in SHARES.items() if name != "judge"
    }


def test_a_default_by_the_machine():
    sizes = [
        BudgetSettings().bytes(Machine(memory=memory << 20, processors=1)) >> 20 for memory in (256, 512, 2048, 65536)
    ]
    assert sizes == [12, 12, 32, 48]
    assert BudgetSettings(budget_bytes=FLOOR).bytes(Machine(memory=1 << 40, processors=1)) == FLOOR


def test_a_budget_below_what_the_caches_need_is_refused(tmp_path):
    assert sum(shared(0, {}).values()) <= FLOOR, "the smallest budget is held"
    with pytest.raises(SettingsError, match=f"`memory`.*budget_bytes of 0 or at least {FLOOR} bytes"):
        configuration.configuration(given(tmp_path, "memory.budget_bytes=12"))


def test_a_node_shares_alike(tmp_path):
    node, _, _ = configuration.node_configuration(given(tmp_path, "memory.budget_bytes=25165824"))
    whole, _, _ = configuration.configuration(given(tmp_path, "memory.budget_bytes=25165824"))
    for cache in ("definitions", "records", "sqlite"):
        assert allowed(node, cache) == allowed(whole, cache) > 0
    assert node.sensor.load == whole.sensor.load
    assert allowed(node, "judge") == 0


def test_every_store_has_its_share_and_another_bus_has_no_records(tmp_path):
    tree = {
        "bus": {"type": "kafka"},
        "sinks": [{"type": "store"}, {"type": "file"}, {"type": "store", "cached_behaviours": 5}],
    }
    fill_in(tree, Machine(memory=1 << 40, processors=1))
    assert "memory_bytes" not in tree["bus"]
    assert "cached_behaviours" not in tree["sinks"][1]
    assert tree["sinks"][2]["cached_behaviours"] == 5


@pytest.mark.parametrize(
    "text", ["memory.budget_bytes=-1", "memory.budget_bytes=much", "memory=5", "processor=5", "processor.judge=[]", "sinks={}",
             "memory.sqlite_bytes=none", "bus.memory_bytes=none", "page=x"],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_its_name(tmp_path, text):
    with pytest.raises(SettingsError, match=f"`{text.partition('=')[0]}`"):
        configuration.configuration(given(tmp_path, text))


@pytest.fixture
def memory(tmp_path):
    settings, _, _ = configuration.configuration(given(tmp_path, "memory.sqlite_bytes=3000000"))
    yield ProcessMemory(settings)
    with sqlite3.connect(":memory:") as db:
        db.execute("PRAGMA soft_heap_limit=0")
    db.close()


def test_used_stands_beside_allowed(memory):
    memory.watch("judge", lambda: 5)
    stats = memory.stats()
    assert stats.used_bytes["judge"] == 5
    assert stats.used_bytes.keys() == stats.allowed_bytes.keys() == {"judge", "sqlite"}
    assert stats.allowed_bytes["sqlite"] == 3_000_000
    assert stats.resident_bytes > 10 * MIB


def test_sqlite_stays_near_its_share(memory, tmp_path):
    """All connections together, each of which might keep 8 MiB by itself."""
    before = memory.stats().used_bytes["sqlite"]
    opened = []
    for number in range(4):
        db = sqlite3.connect(tmp_path / f"{number}.db")
        db.execute("PRAGMA cache_size=-8192")
        db.execute("CREATE TABLE t(a)")
        with db:
            db.executemany("INSERT INTO t VALUES(?)", [(bytes(8000),)] * 1000)
        assert db.execute("SELECT sum(length(a)) FROM t").fetchone() == (8_000_000,)
        opened.append(db)
    assert memory.stats().used_bytes["sqlite"] - before < 2 * 3_000_000
    for db in opened:
        db.close()


HOLES = """
import argparse, asyncio, sys
from hauberk import configuration, memory
from hauberk.allocator import free_bytes, settle
if not settle() or not free_bytes():
    print("no mallinfo2"); raise SystemExit
memory.until_look = lambda: 0.05
settings, _, _ = configuration.configuration(argparse.Namespace(config=None, set=[], state=sys.argv[1]))
kept = memory.ProcessMemory(settings)
before = kept.stats().resident_bytes
blobs = [b"x" * 60_000 for _ in range(1000)]
last = blobs[-1]
peak = kept.stats().resident_bytes
del blobs
async def main():
    low = asyncio.create_task(kept.keep_low())
    async with asyncio.timeout(60):
        while not kept.stats().given_back or kept.stats().resident_bytes > before + (16 << 20):
            await asyncio.sleep(0.01)
    low.cancel()
asyncio.run(main())
print(peak - before)
"""


def test_what_a_flood_leaves_free_is_given_back(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", HOLES, str(tmp_path)], capture_output=True, text=True, check=True, timeout=90
    )
    if done.stdout.startswith("no mallinfo2"):
        pytest.skip("this C library has no mallinfo2(3)")
    assert int(done.stdout) > 40 * MIB
