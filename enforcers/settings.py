# SPDX-License-Identifier: Apache-2.0
"""The settings of enforcement on a node. Neighbours: `agent`, `swap`."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from schemas.backends import DEFAULTS, Implemented, Module


class EnforceSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Enforcement on this node."""

    backends: Annotated[
        tuple[Implemented, ...],
        msgspec.Meta(
            description="Backends to use, as far as this kernel offers them; none: only audit.", examples=[[]]
        ),
    ] = DEFAULTS
    lsm: Annotated[
        tuple[Module, ...],
        msgspec.Meta(
            description="Security modules in the order they are to be tried; the first that this kernel offers goes before `backends`, the others are not used. Empty: `backends` alone says what is used.",
            examples=[["bpf", "apparmor"]],
        ),
    ] = ()
    profiles: Annotated[
        tuple[str, ...],
        msgspec.Meta(
            description="Profiles that `apparmor` has loaded from the start, without rules, for container runtimes and units to name. Their names begin with `hauberk-`; with `hauberk-host-` they have no baseline of denials for containers.",
            examples=[["hauberk-web", "hauberk-host-backup"]],
        ),
    ] = ()
    state_dir: Annotated[
        str, msgspec.Meta(description="Directory of the saved plan; empty saves none.", examples=["/var/lib/hauberk"])
    ] = ""
    grace_seconds: Annotated[
        float,
        msgspec.Meta(
            ge=0, le=315_360_000, description="Seconds an old rule table outlives its switch.", examples=[0.5]
        ),
    ] = 0.2
    unresolved: Annotated[
        Literal["stop", "pass"],
        msgspec.Meta(
            description="What the `signal` and `bpf-lsm` backends do with an exec or open whose path the kernel cannot resolve (thousands of directories deep, or closed by another thread meanwhile), where the scope has rules that stop something.",
            examples=["pass"],
        ),
    ] = "stop"
    shadow: Annotated[
        bool,
        msgspec.Meta(
            description="Let `bpf-lsm` deny nothing: what its hooks would deny is counted and told as `Audit (Block)`, and its rules are refused as not held.",
            examples=[True],
        ),
    ] = False
    io_uring: Annotated[
        Literal["pass", "stop"],
        msgspec.Meta(
            description="What the `signal` backend does with io_uring_setup in a scope that it enforces: what goes through such a ring is no system call, so that no rule about files sees or stops it. `stop` ends the process that makes one.",
            examples=["stop"],
        ),
    ] = "pass"
    mounts: Annotated[
        Literal["pass", "stop"],
        msgspec.Meta(
            description="What the `bpf-lsm` backend does with mounts, a change of the root and new user namespaces in a scope with rules on paths that deny something: a mount gives a file another path, under which no rule knows it. `stop` denies them. A container's own start mounts before it has a scope, unless `planner.plan.pods` gives it one from birth.",
            examples=["stop"],
        ),
    ] = "pass"
