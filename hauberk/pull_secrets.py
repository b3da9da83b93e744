# SPDX-License-Identifier: Apache-2.0
"""Pull secrets of a cluster, for the images of its workloads: read with the rights of the kubeconfig, kept in memory, told by name alone.

As Kubernetes has it: those that a pod names, else those of its service account. Neighbours: `live_workloads`, `pull_secret_objects` (what an
object says), `manifest_secrets` (the same of files).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from typing import Final

import msgspec

from cluster.server import Server, connected
from cluster.settings import ServerSettings
from hauberk.images.credentials import PullSecret
from hauberk.manifests import ImagePuller
from hauberk.pull_secret_objects import NO_ACCOUNT, NO_CREDENTIALS, AccountObject, PullSecrets, SecretObject
from schemas.errors import HauberkError, Incompatible, SettingsError

_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")
"""Nobody checks the names that a pod gives: one with a slash in it would lead to the secrets of others."""


def pull_secrets(settings: ServerSettings, pullers: Iterable[ImagePuller]) -> PullSecrets:
    """The secrets of these. SettingsError when there is no usable kubeconfig."""
    return asyncio.run(_read(settings, sorted(set(pullers))))


async def _read(settings: ServerSettings, pullers: list[ImagePuller]) -> PullSecrets:
    found: dict[ImagePuller, tuple[PullSecret, ...]] = {}
    async with connected(settings) as server:
        reading = _SecretReading(server)
        for puller in pullers:
            names = puller.secrets or await reading.of_account(puller.namespace, puller.account)
            some = [await reading.secret(puller.namespace, name) for name in names]
            found[puller] = tuple(one for one in some if one is not None)
    return PullSecrets(found, reading.unread)


class _SecretReading:
    """Each is asked for once."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._accounts: dict[str, tuple[str, ...]] = {}
        self._secrets: dict[str, PullSecret | None] = {}
        self.unread: dict[str, str] = {}

    async def of_account(self, namespace: str, name: str) -> tuple[str, ...]:
        """Names of the secrets of a service account; none of one that is not there."""
        key = f"service account {namespace}/{name}"
        if key not in self._accounts:
            body = await self._get(key, namespace, "serviceaccounts", name)
            try:
                account = msgspec.json.decode(body, type=AccountObject) if body else AccountObject()
            except msgspec.MsgspecError:
                self.unread[key] = NO_ACCOUNT
                account = AccountObject()
            self._accounts[key] = account.secrets
        return self._accounts[key]

    async def secret(self, namespace: str, name: str) -> PullSecret | None:
        """None for one that could not be read."""
        key = f"secret {namespace}/{name}"
        if key not in self._secrets:
            self._secrets[key] = None
            body = await self._get(key, namespace, "secrets", name)
            try:
                self._secrets[key] = (
                    PullSecret(name=key, auths=msgspec.json.decode(body, type=SecretObject).auths()) if body else None
                )
            except (ValueError, RecursionError):
                # An error of msgspec is a ValueError too.
                self.unread[key] = NO_CREDENTIALS
        return self._secrets[key]

    async def _get(self, key: str, namespace: str, plural: str, name: str) -> bytes:
        """Empty when it cannot be had."""
        if not _NAME.fullmatch(namespace) or not _NAME.fullmatch(name):
            self.unread[key] = "Kubernetes takes no such name"
            return b""
        try:
            return await self._server.get(f"/api/v1/namespaces/{namespace}/{plural}/{name}")
        except Incompatible:
            if plural == "secrets":
                self.unread[key] = "there is none"
        except SettingsError:
            raise
        except HauberkError as error:
            self.unread[key] = str(error)
        return b""
