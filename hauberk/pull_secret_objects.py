# SPDX-License-Identifier: Apache-2.0
"""Secrets and service accounts as objects of Kubernetes, as far as they open registries. Pure.

Of a secret only written credentials count (`auths`): a helper that it named would be a program of this machine. Neighbours: `pull_secrets`
(objects of a cluster), `manifest_secrets` (objects in files), `images.credentials`, which finds a registry's own.
"""

from __future__ import annotations

import base64
import json
from typing import Any, Final

import msgspec

from hauberk.images.credentials import PullSecret
from hauberk.manifests import ImagePuller

_FORMS: Final = {"kubernetes.io/dockerconfigjson": ".dockerconfigjson", "kubernetes.io/dockercfg": ".dockercfg"}
NO_CREDENTIALS: Final = "it holds no credentials of docker"
"""Why a secret is of no use. What it says instead is in none of these words."""

NO_ACCOUNT: Final = "it is not formed as service accounts are"


class _Named(msgspec.Struct, frozen=True):
    name: str = ""


class AccountObject(msgspec.Struct, frozen=True):
    """A ServiceAccount."""

    imagePullSecrets: list[_Named] | None = None

    @property
    def secrets(self) -> tuple[str, ...]:
        """Names of those that its pods pull with."""
        return tuple(one.name for one in self.imagePullSecrets or () if one.name)


class SecretObject(msgspec.Struct, frozen=True):
    """A Secret. `stringData`: in files alone; it goes before `data`."""

    type: str = ""
    data: dict[str, str] | None = None
    stringData: dict[str, str] | None = None

    def __repr__(self) -> str:
        return "SecretObject(***)"

    def auths(self) -> dict[str, Any]:
        """Its entries by registry. ValueError, which repeats nothing of it, when it has none."""
        form = _FORMS.get(self.type, "")
        text = (self.stringData or {}).get(form)
        # Lines of base64 may end where they like, as in a file of YAML: the API server takes them so.
        coded = (self.data or {}).get(form, "").replace("\n", "").replace("\r", "")
        try:
            found = json.loads(base64.b64decode(coded, validate=True) if text is None else text)
        except (ValueError, RecursionError):
            raise ValueError(NO_CREDENTIALS) from None
        auths = found.get("auths") if form == ".dockerconfigjson" and isinstance(found, dict) else found
        if not isinstance(auths, dict):
            raise ValueError(NO_CREDENTIALS)
        return auths


class PullSecrets(msgspec.Struct, frozen=True):
    """By who pulls. `unread`: why some could not be read, by `secret namespace/name` or `service account namespace/name`."""

    by_puller: dict[ImagePuller, tuple[PullSecret, ...]]
    unread: dict[str, str]
