# SPDX-License-Identifier: Apache-2.0
"""Policy documents on the bus: what the author wrote, as JSON, under the key kind/namespace/name.

The value of `policies.v1` is the KubeArmor document unchanged, so any consumer can read it. Positions do not travel:
after `from_json` a rule keeps its path (`spec.process.matchPaths[2]`), its line counts in the JSON.
"""

from __future__ import annotations

from policy.parse import parse
from schemas.errors import PolicyError
from schemas.policy import PolicyDocument


def to_json(document: PolicyDocument) -> bytes:
    """The record value."""
    return document.raw


def key(document: PolicyDocument) -> bytes:
    """The record key."""
    return document.key.encode()


def from_json(data: bytes, origin: str = "policies.v1") -> PolicyDocument:
    """The document of a record value. PolicyError, with diagnostics, when it is not exactly one valid policy."""
    parsed = parse(data, origin)
    if not parsed.ok or len(parsed.policies) != 1:
        first = next(iter(parsed.diagnostics), None)
        said = str(first) if first is not None else f"{origin}: expected one policy, found {len(parsed.policies)}"
        raise PolicyError(said, parsed.diagnostics)
    return parsed.policies[0]
