# SPDX-License-Identifier: Apache-2.0
"""What the learner says of workloads, as the page shows it: words between its process and the page, and their frames. Pure.

The learner knows the policy language and the page does not, so it runs elsewhere (`hauberk.learner_worker`) and is heard here, one
frame at a time: four bytes of length (little-endian), then JSON of a `Told`. Neighbours: `learning` (when it is asked), `page`.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from schemas.errors import DecodeError

FRAME_MOST: Final = 4 << 20
"""Bytes of one frame: a policy that is longer is told without its text."""
RULES_MOST: Final = 500
NAMES_MOST: Final = 5
"""Pods and sources named beside a rule; the rest is a number."""
YAML_MOST: Final = 1 << 20
TEXT_MOST: Final = 400
"""Characters of a cell; the policy's text has all of them."""
PEERS_MOST: Final = 5000
"""Addresses that get names."""


class LearntLine(msgspec.Struct, frozen=True, kw_only=True):
    """One workload's container (or a node's service) in the list. `policy`: what its policy is called, and what the page asks for.
    `workloads`: under which names of `feed.Workload` its pods stand. `state`: Learning, Stabilizing or Stable. `unseen`: share of events
    that are of rules seen once only. `clean`: chance that the next instance needs no new rule. `newest`, `newest_at`: the rule that came
    last, and when (Unix seconds). `apart`: things set apart."""

    policy: str
    label: str
    workloads: tuple[str, ...]
    state: str
    unseen: float
    clean: float
    instances: int
    newest: str
    newest_at: int
    rules: int
    apart: int
    behaviours: int
    events: int


class RuleLine(msgspec.Struct, frozen=True, kw_only=True):
    """One rule with its evidence; times are Unix seconds. `pods`, `sources`: the first few by name, `more_*` the others' number."""

    rule: str
    count: int
    first: int
    last: int
    pods: tuple[str, ...]
    more_pods: int
    sources: tuple[str, ...]
    more_sources: int


class ApartLine(msgspec.Struct, frozen=True, kw_only=True):
    """Something that was not learnt. `ident` is what `hauberk discover --accept` takes."""

    ident: str
    reason: str
    operation: str
    resource: str
    count: int
    first: int


class LearntSheet(msgspec.Struct, frozen=True, kw_only=True):
    """One workload's discovered policy. `selects_unseen`: a sentence about others that its selector is for too and of which nothing was seen,
    "" where there are none. `yaml`: "" where it is too long for a page."""

    policy: str
    label: str
    sentence: str
    selects_unseen: str
    rules: tuple[RuleLine, ...]
    more_rules: int
    apart: tuple[ApartLine, ...]
    more_apart: int
    yaml: str


class Far(msgspec.Struct, frozen=True, kw_only=True, tag="far"):
    """How far it is: behaviours read, workloads learnt of how many."""

    read: int = 0
    learnt: int = 0
    of: int = 0


class FoundWorkload(msgspec.Struct, frozen=True, kw_only=True, tag="found"):
    """One workload is learnt."""

    line: LearntLine
    sheet: LearntSheet


class Peers(msgspec.Struct, frozen=True, kw_only=True, tag="peers"):
    """Who had the addresses that workloads spoke to, at the times they did: `pod/name`, `svc/name`, `node/name`."""

    names: dict[str, tuple[str, ...]]


class Remark(msgspec.Struct, frozen=True, kw_only=True, tag="remark"):
    """Something about all of it that a reader should know."""

    text: str


class LearnFailure(msgspec.Struct, frozen=True, kw_only=True, tag="failure"):
    """It ends without an answer."""

    why: str


class Done(msgspec.Struct, frozen=True, kw_only=True, tag="done"):
    """That was all. `more`: workloads beyond those that were told."""

    more: int = 0


Told = Far | FoundWorkload | Peers | Remark | LearnFailure | Done

LENGTH: Final = struct.Struct("<I")
_decoder: msgspec.json.Decoder[Told] = msgspec.json.Decoder(Told)


def frame(told: Told) -> bytes:
    """One word as bytes. ValueError above `FRAME_MOST`."""
    body = msgspec.json.encode(told)
    if len(body) > FRAME_MOST:
        raise ValueError(f"expected at most {FRAME_MOST} bytes of a frame, got {len(body)}")
    return LENGTH.pack(len(body)) + body


def fitting(found: FoundWorkload) -> FoundWorkload:
    """`found` without so much of its sheet that it fits a frame: who names what a container runs may fill one. Its text goes first, then half of
    the rules and of what is apart, as often as it takes."""
    while len(msgspec.json.encode(found)) > FRAME_MOST:
        sheet = found.sheet
        if sheet.yaml:
            sheet = msgspec.structs.replace(sheet, yaml="")
        elif sheet.rules or sheet.apart:
            rules, apart = sheet.rules[: len(sheet.rules) // 2], sheet.apart[: len(sheet.apart) // 2]
            sheet = msgspec.structs.replace(
                sheet, rules=rules, more_rules=sheet.more_rules + len(sheet.rules) - len(rules),
                apart=apart, more_apart=sheet.more_apart + len(sheet.apart) - len(apart),
            )  # fmt: skip
        else:
            break
        found = FoundWorkload(line=found.line, sheet=sheet)
    return found


def told(body: bytes) -> Told:
    """What a frame's body says. DecodeError when it is nothing of this."""
    try:
        return _decoder.decode(body)
    except msgspec.DecodeError as error:
        raise DecodeError(f"learner: expected words of this version, got {error}") from error
