# SPDX-License-Identifier: Apache-2.0
"""`make fuzz`: mutated inputs through every door, for as long as asked; anything outside the error tree ends it with the case.

    python tests/fuzz/fuzz.py [--minutes 10] [--inputs 1000000] [--pairs 1000000] [--seed 1] [--target frames ...]

Each input is made from (seed, target, number) alone, so that a crash is found again by its line. What crashed is cut down and
written to `build/fuzz/`; keep it in `tests/fuzz/cases/`, which `tests/fuzz/test_doors.py` runs with every `make test`.
At last the kernel's matcher is held against the judge (`agreement.py`): --pairs of policies and behaviours, 0 for none.
Mutations: bytes changed, cut out, doubled, swapped with another sample's, lengths and numbers replaced by their extremes.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
CASES: Final = Path(__file__).parent / "cases"
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from agreement import compare  # noqa: E402 - the paths come first, so that it runs from anywhere
from doors import DOORS, Door  # noqa: E402
from matcher import Matcher, compile_matcher  # noqa: E402

from schemas.errors import HauberkError  # noqa: E402

_NUMBERS: Final = tuple(
    number.to_bytes(size, order)
    for size in (1, 2, 4, 8)
    for order in ("little", "big")
    for number in (0, 1, (1 << 8 * size) - 1, 1 << (8 * size - 1), (1 << (8 * size - 1)) - 1)
)
_TEXTS: Final = (
    b"[", b"{", b"}", b"]", b"- ", b": ", b"\n", b"\0", b"\xff", b"*", b"&a", b"..", b"/", b"-1", b"1e999", b"\\ud800", b'"', b"\xed\xa0\x80",
    b"[" * 64, b"{a: " * 64, b"9" * 64, b"\x91" * 64,
)  # fmt: skip
_SHARE: Final = {"frames": 25, "recordings": 5, "plans": 30, "settings": 5, "policies": 5, "words": 20, "requests": 10}
"""Inputs of each hundred: a recording takes some thirty times as long as a plan."""


def mutated(chance: random.Random, samples: list[bytes]) -> bytes:
    """One sample with up to eight changes."""
    data = bytearray(chance.choice(samples))
    for _ in range(chance.choice((1, 1, 2, 3, 5, 8))):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(8):
            case 0:
                if data:
                    data[at % len(data)] = chance.randrange(256)
            case 1:
                if data:
                    data[at % len(data)] ^= 1 << chance.randrange(8)
            case 2:
                number = chance.choice(_NUMBERS)
                data[at : at + len(number)] = number
            case 3:
                data[at:at] = chance.choice(_TEXTS)
            case 4:
                del data[at : at + chance.choice((1, 2, 8, 64))]
            case 5:
                data[at:at] = data[at : at + chance.choice((1, 8, 64, 512))]
            case 6:
                other = chance.choice(samples)
                start = chance.randrange(len(other) + 1)
                data[at : at + 32] = other[start : start + 32]
            case _:
                del data[at:]
    return bytes(data)


def case(seed: int, name: str, number: int, door: Door) -> bytes:
    """The input of one number: the same whenever it is asked for."""
    return mutated(random.Random(f"{seed}/{name}/{number}"), door.samples)


def shrunk(data: bytes, fails: Callable[[bytes], bool], seconds: float = 20.0) -> bytes:
    """`data` with as much cut out as still fails."""
    deadline = time.monotonic() + seconds
    step = max(1, len(data) // 2)
    while step and time.monotonic() < deadline:
        at, found = 0, False
        while at < len(data) and time.monotonic() < deadline:
            smaller = data[:at] + data[at + step :]
            if fails(smaller):
                data, found = smaller, True
            else:
                at += step
        if not found:
            step //= 2
    return data


def main() -> int:
    """0 when nothing escaped, 1 with the case on standard error."""
    made = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    made.add_argument("--minutes", type=float, default=10.0)
    made.add_argument("--inputs", type=int, default=1_000_000)
    made.add_argument("--pairs", type=int, default=1_000_000)
    made.add_argument("--seed", type=int, default=1)
    made.add_argument("--target", action="append", choices=sorted(DOORS), default=[])
    given = made.parse_args()
    names = given.target or list(DOORS)
    doors = {name: DOORS[name]() for name in names}
    whole = sum(_SHARE[name] for name in names)
    deadline = time.monotonic() + given.minutes * 60
    started, done, refused, slowest = (
        time.monotonic(),
        dict.fromkeys(names, 0),
        dict.fromkeys(names, 0),
        dict.fromkeys(names, 0.0),
    )
    spent = dict.fromkeys(names, 0.0)
    crashes = 0
    for turn in range(given.inputs):
        if time.monotonic() > deadline:
            break
        place = turn * 37 % whole
        for name in names:
            if place < _SHARE[name]:
                break
            place -= _SHARE[name]
        door = doors[name]
        data = case(given.seed, name, done[name], door)
        at = time.perf_counter()
        try:
            refused[name] += not door.try_one(data)
        except Exception as error:  # noqa: BLE001 - what this looks for.
            crashes += 1
            kind = type(error)

            def fails(smaller: bytes, door: Door = door, kind: type[Exception] = kind) -> bool:
                try:
                    door.try_one(smaller)
                except Exception as again:  # noqa: BLE001
                    return type(again) is kind
                return False

            small = shrunk(data, fails)
            kept = ROOT / "build/fuzz" / f"{name}-{given.seed}-{done[name]}.bin"
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_bytes(small)
            print(
                f"{name} {given.seed}/{done[name]}: {kind.__name__}: {error}; {len(small)} bytes in {kept}",
                file=sys.stderr,
                flush=True,
            )
            if crashes >= 20:
                break
        took = time.perf_counter() - at
        spent[name] += took
        slowest[name] = max(slowest[name], took)
        done[name] += 1
    seconds = time.monotonic() - started
    for name in names:
        print(
            f"{name}: {done[name]} inputs, {refused[name]} refused, {1e6 * spent[name] / max(1, done[name]):.0f} us each, "
            f"slowest {1e3 * slowest[name]:.0f} ms"
        )
    print(f"{sum(done.values())} inputs of seed {given.seed} in {seconds:.0f} s, {crashes} outside the error tree")
    return 1 if crashes + disagreements(given.seed, given.pairs) else 0


def disagreements(seed: int, pairs: int) -> int:
    """How many answers of the kernel's matcher were not the judge's, each kept under `build/fuzz/`."""
    if not pairs:
        return 0
    started = time.monotonic()
    try:
        matcher = Matcher(compile_matcher())
    except HauberkError as error:
        print(f"agreement: not asked: {error}")
        return 0
    said = compare(matcher, seed, pairs)
    found = said.found
    matcher.close()
    for number, (small, why) in enumerate(found):
        kept = ROOT / "build/fuzz" / f"agreement-{seed}-{number}.json"
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(small, ensure_ascii=False, indent=1) + "\n")
        print(f"agreement: {why}; {kept}", file=sys.stderr, flush=True)
    print(
        f"agreement: {said.asked} pairs of seed {seed} ({said.stopped} stopped) in {time.monotonic() - started:.0f} s, {len(found)} disagreements"
    )
    return len(found)


if __name__ == "__main__":
    sys.exit(main())
