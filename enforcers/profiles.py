# SPDX-License-Identifier: Apache-2.0
"""Carries a plan out by one profile backend: the difference between the profiles that are loaded and those that are wanted.

A profile is replaced whole, read back, and released only when no scope of the plan runs under it any more. Scopes under one
profile must have equal rules: where they differ, the profile stays as it is and the receipt says so. Neighbours: `contract`
(what the backend owes), `apply` (who asks), `tables` (the same for kernel maps).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

import msgspec

from enforcers.contract import ProfileBackend, ProfilePart
from schemas.enforcement import Refusal, ScopePlan
from schemas.refusals import RefusalCode
from schemas.verdict import RuleRef


def fingerprint(text: str) -> str:
    """What identifies the text of a profile in `ProfileBackend.loaded`: 32 hexadecimal digits."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class Carried(msgspec.Struct, kw_only=True):
    """What came of it. `scopes`: cgroups of those seen to be under their rules; `rules`: counted in each of them."""

    scopes: set[int] = msgspec.field(default_factory=set)
    rules: int = 0
    refused: list[Refusal] = msgspec.field(default_factory=list)
    failed: list[str] = msgspec.field(default_factory=list)


_Members = list[tuple[ScopePlan, ProfilePart]]


def carry_out(backend: ProfileBackend, scopes: Sequence[ScopePlan], describe: Callable[[Exception], str]) -> Carried:
    """Make `scopes` what is in force by `backend`. What fails with one profile is that profile's: it keeps what it had.
    `describe`: an error as a sentence."""
    done = Carried()
    before = dict(backend.loaded())
    under: dict[str, _Members] = {}
    kept: set[str] = set()
    empty = False
    for scope in scopes:
        try:
            part, profile = backend.render(scope), backend.profile(scope)
        except Exception as error:  # noqa: BLE001 - it is this scope's, whatever it is
            done.failed.append(f"{_who(scope)}: {describe(error)}; its profile stays as it is")
            # Which profile that is may be what failed: this plan replaces and releases none that is loaded.
            kept |= before.keys()
            continue
        done.refused += [*part.refused, *part.partial]
        if profile is None:
            # Between two processes of a service that is started again: its next one is to find its rules.
            empty = True
        elif profile:
            under.setdefault(profile, []).append((scope, part))
        else:
            done.refused += [_homeless(ref, scope, backend) for ref in sorted(part.carried, key=str)]
    texts: dict[str, str] = {}
    for profile, members in under.items():
        different = {part.text for _, part in members}
        if len(different) > 1:
            kept.add(profile)
            names = ", ".join(_who(scope) for scope, _ in members)
            done.failed.append(f"{names}: run under the profile `{profile}` with different rules; it stays as it is")
        elif text := different.pop():
            texts[profile] = text
    if empty:
        kept |= before.keys() - texts.keys()
    _switch(backend, before, texts, kept, done, describe)
    after = backend.loaded()
    for profile, text in texts.items():
        if after.get(profile) == fingerprint(text):
            done.scopes.update(scope.cgroups[0] for scope, _ in under[profile])
            done.rules += sum(len(part.carried) for _, part in under[profile])
        elif profile not in kept:
            done.failed.append(f"profile `{profile}`: was loaded, and what is read back is something else")
    return done


def _switch(
    backend: ProfileBackend,
    before: Mapping[str, str],
    texts: Mapping[str, str],
    kept: set[str],
    done: Carried,
    describe: Callable[[Exception], str],
) -> None:
    for profile, text in texts.items():
        if profile in kept or before.get(profile) == fingerprint(text):
            continue
        try:
            backend.load(profile, text)
        except Exception as error:  # noqa: BLE001
            kept.add(profile)
            done.failed.append(f"profile `{profile}`: {describe(error)}; what was in force stays")
    for profile in before.keys() - texts.keys() - kept:
        try:
            backend.release(profile)
        except Exception as error:  # noqa: BLE001
            done.failed.append(f"profile `{profile}`: {describe(error)}; its rules stay in force")


def _homeless(ref: RuleRef, scope: ScopePlan, backend: ProfileBackend) -> Refusal:
    why = "its processes run under no profile that may be changed; start it again under one of Hauberk's"
    return Refusal(ref=ref, uid=scope.uid, backend=backend.backend, reason=why, code=RefusalCode.NO_PROFILE)


def _who(scope: ScopePlan) -> str:
    return scope.workload or scope.cgroup_path
