# SPDX-License-Identifier: Apache-2.0
"""What a cluster's definitions of policies lack beside ours, for `hauberk doctor`: they may be KubeArmor's own, or of an older version.

The API server drops what a definition does not name, of policies and of statuses, as a rule without a word. Everybody who is
authenticated may ask it what it serves; nothing here needs a right of its own. Neighbours: `policy.tools.custom_resources` (ours),
`sinks.kubernetes.teller` (tells of a status that was not kept whole).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from cluster.policy_object import KINDS
from policy.tools.custom_resources import definition
from schemas.errors import DecodeError, Incompatible
from schemas.policy import API_VERSION

if TYPE_CHECKING:
    from cluster.server import Server
    from cluster.settings import ServerSettings

_APPLY: Final = "`kubectl apply --server-side -f deploy/kubernetes/crds` defines it"
_FORCE: Final = (
    "`kubectl apply --server-side --force-conflicts -f deploy/kubernetes/crds` puts ours in its place; policies stay"
)
_TOKEN: Final = "/var/run/secrets/kubernetes.io/serviceaccount/token"
_SHOWN: Final = 5
"""Fields that a sentence names."""

Finding = tuple[str, str, str]


def asked(settings: ServerSettings) -> bool:
    """Whether there is a cluster to ask: one that is named, or the one of this pod."""
    return bool(settings.kubeconfig) or ("KUBERNETES_SERVICE_HOST" in os.environ and Path(_TOKEN).exists())


async def findings(settings: ServerSettings) -> list[Finding]:
    """One for each kind, or more. Raises HauberkError where the cluster cannot be asked."""
    from cluster.server import connected

    async with connected(settings) as server:
        served = await _served(server)
        schemas = await _schemas(server) if served else {}
    return [one for plural, kind in KINDS.items() for one in _of(plural, kind, served, schemas.get(kind, {}))]


async def _served(server: Server) -> set[str]:
    """Names of the resources of the group, `kubearmorpolicies/status` among them."""
    try:
        found = _json(await server.get(f"/apis/{API_VERSION}"))
    except Incompatible:
        return set()
    return {str(one.get("name", "")) for one in found.get("resources") or () if isinstance(one, dict)}


async def _schemas(server: Server) -> dict[str, dict[str, Any]]:
    """Schema by kind, as the server checks with it."""
    found = _json(await server.get(f"/openapi/v3/apis/{API_VERSION}"))
    schemas = (found.get("components") or {}).get("schemas") or {}
    return {
        str(named.get("kind")): schema
        for schema in schemas.values()
        for named in schema.get("x-kubernetes-group-version-kind") or ()
    }


def _json(body: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, ValueError) as error:
        raise DecodeError(f"expected JSON of the API server, got: {error}") from error


def _of(plural: str, kind: str, served: set[str], schema: dict[str, Any]) -> Iterator[Finding]:
    if plural not in served:
        yield "warn", kind, f"expected a definition of it in the cluster, got none; {_APPLY}"
        return
    ours = definition(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    lacks = sorted(_lacking("", ours, schema))
    fields = [one for one in lacks if one.startswith("spec")]
    if f"{plural}/status" not in served:
        yield "warn", kind, f"its definition has no status, so what became of its policies is told nowhere; {_FORCE}"
    elif any(one.startswith("status") for one in lacks):
        yield (
            "warn",
            kind,
            (
                f"its definition keeps of a status the word alone, as KubeArmor's own does: numbers, reasons and hits are dropped; {_FORCE}"
            ),
        )
    if fields:
        more = f" and {len(fields) - _SHOWN} more" if len(fields) > _SHOWN else ""
        named = ", ".join(f"`{one}`" for one in fields[:_SHOWN])
        yield (
            "warn",
            kind,
            (
                f"its definition drops from policies what it does not name: {named}{more}; a policy that needs one of these is not what its "
                f"author wrote; {_FORCE}"
            ),
        )
    if not lacks and f"{plural}/status" in served:
        yield "ok", kind, "its definition is ours, or says as much"


def _lacking(path: str, ours: dict[str, Any], theirs: dict[str, Any]) -> Iterator[str]:
    """Paths of fields that `ours` names and `theirs` does not; of what is missing whole its own alone."""
    if "items" in ours:
        yield from _lacking(f"{path}[]", ours["items"], theirs.get("items") or {})
    for name, schema in (ours.get("properties") or {}).items():
        where = f"{path}.{name}" if path else name
        known = (theirs.get("properties") or {}).get(name)
        if theirs.get("x-kubernetes-preserve-unknown-fields") or where == "metadata":
            continue
        if known is None:
            yield where
        else:
            yield from _lacking(where, schema, known)
