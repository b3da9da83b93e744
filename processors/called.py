# SPDX-License-Identifier: Apache-2.0
"""What workloads call addresses: the names that name servers gave them, each for the time that the answer held.

An answer names addresses for the workload that heard it and for nobody else: who makes up answers makes up names of its own
peers only. Addresses are used again, so a name holds from its answer until its time to live is over and some time after, for connections
come after answers, and no longer than until the same workload is told another name for that address. Of two names that are one
address at a time the one asked for last is told. Bounded by workload and in all. Neighbours: `schemas.dns_answer` (reads the bytes),
`processors.inventory` (whose a cgroup is, and pods, services and nodes, which go before).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Annotated, Final, NamedTuple

import msgspec

from processors.decode import address_text
from schemas import frame as frames
from schemas.behaviour import Behaviour
from schemas.dns_answer import parse
from schemas.errors import DecodeError
from schemas.frame import LONGEST_NS, FrameHeader
from schemas.identity import Identity
from schemas.kernel import ANSWER, DefinitionKind
from schemas.operations import Operation
from schemas.socket_names import INET, INET6

CALLED: Final = frozenset({Operation.CONNECT, Operation.SEND})
"""Operations that go to an address that may have been asked for."""
_SECOND: Final = 1_000_000_000
_LEAST, _MOST = 30, 86_400
"""Seconds that an answer is taken to hold at least and at most: servers say 0 and resolvers keep no answer for a week (RFC 8767)."""
_HELD: Final = 4
"""Names of one address that are remembered of one workload, the newest."""
_OF_ONE: Final = 2048
"""Addresses of one workload that are remembered, those told last."""
_SIZE: Final = 450
"""Bytes of an address with a name, about (tracemalloc over 20,000)."""

Owner = Callable[[str, int], Identity | None]
"""(node, cgroup id): whose it is, as far as that is known."""
_Scope = tuple[str, str | int]


class CalledSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long and how many names of addresses are remembered."""

    grace_seconds: Annotated[
        int,
        msgspec.Meta(
            ge=0,
            le=86_400,
            description="Seconds after the time to live of a DNS answer in which a connection to its address is still told by its name: programs keep what they were told.",
            examples=[300],
        ),
    ] = 300
    addresses: Annotated[
        int,
        msgspec.Meta(
            ge=16,
            le=1 << 24,
            description="Addresses with names that are remembered over all workloads, about 450 bytes each; of the workload that has most, those that it was told longest ago go first.",
            examples=[8192],
        ),
    ] = 8192


class _Held(NamedTuple):
    """A name of an address. Unix ns."""

    since: int
    until: int
    name: str


class CalledCounts(msgspec.Struct):
    """Plain counts since start. `answers`: heard; `unread`: of these, no answer that gives an address or not well formed; `cut`: only in part there;
    `forgotten`: addresses that lost their names for want of room."""

    answers: int = 0
    unread: int = 0
    cut: int = 0
    forgotten: int = 0


class Called:
    """`learn` what frames bring, `name` what an address was called. `held`: addresses with names now."""

    def __init__(self, owner: Owner, settings: CalledSettings | None = None) -> None:
        settings = settings or CalledSettings()
        self._owner = owner
        self._grace, self._room = settings.grace_seconds, settings.addresses
        self._scopes: dict[_Scope, dict[str, list[_Held]]] = {}
        self.held = 0
        self.stats = CalledCounts()

    @property
    def held_bytes(self) -> int:
        """About what the names take."""
        return self.held * _SIZE

    def learn(self, header: FrameHeader, run: bytes) -> int:
        """Take in the answers of a frame; boot ns of the newest, 0 for none. DecodeError when the run is none of answers."""
        newest = 0
        for cgroup, kind, body in frames.definitions(run):
            if kind != DefinitionKind.ANSWER:
                continue
            if len(body) < ANSWER.size:
                raise DecodeError(
                    f"expected an answer of {ANSWER.size} bytes or more, got {len(body)}, of cgroup {cgroup}"
                )
            at, length, _ = ANSWER.struct.unpack_from(body)
            if at >= LONGEST_NS:
                raise DecodeError(f"expected an answer less than {LONGEST_NS} ns after the boot, got {at}")
            newest = max(newest, at)
            self.stats.answers += 1
            found = parse(body[ANSWER.size :], length)
            if found is None:
                self.stats.unread += 1
                continue
            self.stats.cut += found.cut
            since = at + header.clock_offset_ns
            scope = self._scope(header.node, cgroup)
            for address, ttl in found.addresses:
                until = since + (min(max(ttl, _LEAST), _MOST) + self._grace) * _SECOND
                text = address_text(INET if len(address) == 4 else INET6, address)
                self._put(scope, text, _Held(since, until, found.name))
        return newest

    def name(self, identity: Identity, behaviour: Behaviour, unix: int) -> str:
        """What the workload called the address that `behaviour` goes to, at Unix ns; "" when it is not known."""
        if not self._scopes or behaviour.operation not in CALLED or not behaviour.address:
            return ""
        node = identity.node
        # By its cgroup what was heard before anybody knew whose it is.
        for scope in ((node, identity.uid), (node, behaviour.cgroup)):
            known = self._scopes.get(scope)
            held = known.get(behaviour.address) if known is not None else None
            for one in reversed(held or ()):
                if one.since <= unix:
                    if unix < one.until:
                        return one.name
                    break
        return ""

    def _scope(self, node: str, cgroup: int) -> _Scope:
        owner = self._owner(node, cgroup)
        return (node, owner.uid if owner is not None else cgroup)

    def _put(self, scope: _Scope, address: str, new: _Held) -> None:
        known = self._scopes.setdefault(scope, {})
        held = known.pop(address, None)
        if held is None:
            held = []
            self.held += 1
        known[address] = held
        _insert(held, new)
        if len(known) > _OF_ONE:
            self._forget(scope, 1)
        if self.held > self._room:
            # Of who has most, and several at once: to look for it takes a while.
            most = max(self._scopes, key=lambda one: len(self._scopes[one]))
            self._forget(most, len(self._scopes[most]) // 8 + 1)

    def _forget(self, scope: _Scope, many: int) -> None:
        """Those that were told longest ago."""
        known = self._scopes[scope]
        for address in list(islice(known, many)):
            del known[address]
            self.held -= 1
            self.stats.forgotten += 1
        if not known:
            del self._scopes[scope]


def _insert(held: list[_Held], new: _Held) -> None:
    """In order of time, each until the next begins; the same name again goes on. Answers of several processors come a little out of order."""
    place = len(held)
    while place and held[place - 1].since > new.since:
        place -= 1
    if place < len(held):
        new = new._replace(until=min(new.until, held[place].since))
    if place:
        before = held[place - 1]
        if before.name == new.name and before.until >= new.since:
            held[place - 1] = before._replace(until=max(before.until, new.until))
            return
        held[place - 1] = before._replace(until=min(before.until, new.since))
    held.insert(place, new)
    del held[:-_HELD]
