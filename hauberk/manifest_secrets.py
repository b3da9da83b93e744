# SPDX-License-Identifier: Apache-2.0
"""Pull secrets that lie in manifest files beside the workloads that name them: kept in memory, told by name alone.

As Kubernetes has it: those that a pod names, else those of its service account. Of two objects of one name the later counts, as with
`kubectl apply`. Neighbours: `manifests` (which reads the files), `pull_secrets` (the same of a cluster).
"""

from __future__ import annotations

from typing import Any

import msgspec

from hauberk.images.credentials import PullSecret
from hauberk.manifests import ImagePuller, PullObject
from hauberk.pull_secret_objects import NO_ACCOUNT, NO_CREDENTIALS, AccountObject, SecretObject


class ManifestSecrets:
    """`objects`: Secrets and ServiceAccounts by kind, namespace and name. `unread`: why some could not be read that were asked for, by
    `secret namespace/name` or `service account namespace/name`."""

    def __init__(self, objects: dict[PullObject, dict[str, Any]]) -> None:
        self._objects = objects
        self.unread: dict[str, str] = {}

    def of(self, puller: ImagePuller) -> tuple[tuple[PullSecret, ...], dict[str, str]]:
        """What a pod's image is pulled with, and what of it could not be read, which is among `unread` too."""
        unread: dict[str, str] = {}
        names = puller.secrets or self._of_account(puller, unread)
        found = [self._secret(puller.namespace, name, unread) for name in names]
        self.unread |= unread
        return tuple(one for one in found if one is not None), unread

    def _of_account(self, puller: ImagePuller, unread: dict[str, str]) -> tuple[str, ...]:
        found = self._objects.get(("ServiceAccount", puller.namespace, puller.account), {})
        try:
            return msgspec.convert(found, AccountObject).secrets
        except msgspec.ValidationError:
            unread[f"service account {puller.namespace}/{puller.account}"] = NO_ACCOUNT
            return ()

    def _secret(self, namespace: str, name: str, unread: dict[str, str]) -> PullSecret | None:
        key = f"secret {namespace}/{name}"
        found = self._objects.get(("Secret", namespace, name))
        if found is None:
            unread[key] = self._missing(name)
            return None
        try:
            return PullSecret(name=key, auths=msgspec.convert(found, SecretObject).auths())
        except ValueError:
            # An error of msgspec is a ValueError too; what it says is in none of these words.
            unread[key] = NO_CREDENTIALS
            return None

    def _missing(self, name: str) -> str:
        elsewhere = sorted(space for kind, space, its in self._objects if (kind, its) == ("Secret", name))
        if elsewhere:
            return f"the files have one of this name in the namespace `{elsewhere[0]}`"
        return "it is in none of the files"
