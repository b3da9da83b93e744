# SPDX-License-Identifier: Apache-2.0
"""Tokens of service accounts that end when a test wants them to, signed with the key of the API server; it gives none of under ten minutes."""

from __future__ import annotations

import base64
import json
import subprocess
import time
from typing import Any, Final

LEEWAY: Final = 60
"""Seconds after its end for which the API server takes a token all the same (go-jose's default)."""


def signed(api_server: Any, namespace: str, name: str, uid: str, seconds: float) -> str:
    """A token of that account that the server takes for `seconds` from now, or took until then."""
    now = int(time.time())
    claims = {
        "iss": "https://kubernetes.default.svc", "aud": ["https://kubernetes.default.svc"],
        "sub": f"system:serviceaccount:{namespace}:{name}", "iat": now - 7200, "nbf": now - 7200, "exp": int(now + seconds) - LEEWAY,
        "kubernetes.io": {"namespace": namespace, "serviceaccount": {"name": name, "uid": uid}},
    }  # fmt: skip
    parts = [base64.urlsafe_b64encode(json.dumps(one).encode()).rstrip(b"=") for one in ({"alg": "RS256"}, claims)]
    text = b".".join(parts)
    key = api_server.directory / "sa.key"
    made = subprocess.run(
        ["openssl", "dgst", "-sha256", "-sign", key], input=text, capture_output=True, check=True
    ).stdout
    return (text + b"." + base64.urlsafe_b64encode(made).rstrip(b"=")).decode()


def account(api_server: Any, namespace: str, name: str) -> str:
    """A service account that may do everything; its uid."""
    meta = {"name": f"{namespace}-{name}"}
    api_server.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": meta,
         "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
         "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}]},
    )  # fmt: skip
    return str(api_server.get(f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}")["metadata"]["uid"])
