# SPDX-License-Identifier: Apache-2.0
"""Credentials for registries out of docker's configuration, written there or with a helper that it names (docker-credential-helpers), and out
of pull secrets of a cluster.

A helper is a program of this user's PATH that is asked for one registry, `docker-credential-NAME get`. What it says goes to that registry
and to the token service that this one names; no sentence repeats it.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import shutil
import subprocess
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

import msgspec

from hauberk.images.references import HUB, ImageReference
from schemas.errors import SettingsError
from schemas.file_text import not_utf8

_HELPER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SECONDS: Final = 60.0
"""For a helper, which may ask its owner first."""
_HUB_NAME: Final = "https://index.docker.io/v1/"
"""What docker calls its own registry."""
_NOT_THERE: Final = "credentials not found in native keychain"
"""What a helper says that has none for a registry."""
_OF_DOCKER: Final = frozenset({"auths", "credHelpers", "credsStore", "HttpHeaders", "currentContext"})
_IDENTITY: Final = "<token>"
"""The user's name that a helper gives with an identity token."""


class RegistryCredentials(msgspec.Struct, frozen=True):
    """`basic`: user and password, in base64. `identity`: a token that the token service takes for another. `bearer`: one for the registry
    itself. `without`: why a helper gave none."""

    basic: str = ""
    identity: str = ""
    bearer: str = ""
    without: str = ""

    def __repr__(self) -> str:
        return "RegistryCredentials(***)"


class PullSecret(msgspec.Struct, frozen=True):
    """What a secret of a cluster has written down by registry. `name`: `secret NAMESPACE/NAME`."""

    name: str
    auths: dict[str, Any]

    def __repr__(self) -> str:
        return f"PullSecret({self.name}, ***)"


class _HelperAnswer(msgspec.Struct, frozen=True):
    Username: str = ""
    Secret: str = ""


def is_docker_configuration(path: Path) -> bool:
    """Whether a file has what docker's configuration has and Hauberk's settings never do."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and not _OF_DOCKER.isdisjoint(found)


def credentials(config: Path, of: ImageReference) -> RegistryCredentials:
    """Those for the image's registry: its own helper's, else what is written, else the common helper's. SettingsError when the
    configuration cannot be read."""
    try:
        found = json.loads(config.read_bytes())
    except FileNotFoundError:
        return RegistryCredentials()
    except UnicodeDecodeError as error:
        raise SettingsError(f"expected docker's configuration at `{config}`, got {not_utf8(error)}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise SettingsError(f"expected docker's configuration at `{config}`, got: {error}") from error
    known = (
        {name: found.get(name) for name in ("auths", "credHelpers", "credsStore")} if isinstance(found, dict) else {}
    )
    names = _names(of)
    helpers, auths = known.get("credHelpers"), known.get("auths")
    own = next((helpers[name] for name in names if name in helpers), "") if isinstance(helpers, dict) else ""
    if own:
        return _of_helper(own, of.host)
    for name in names:
        entry = auths.get(name) if isinstance(auths, dict) else None
        if isinstance(entry, dict) and (written := _written(entry, of.host, str(config))) is not None:
            return written
    return _of_helper(known["credsStore"], of.host) if known.get("credsStore") else RegistryCredentials()


def of_secret(secret: PullSecret, of: ImageReference) -> RegistryCredentials | None:
    """Those of the image's registry; None when it has none for it. SettingsError, which does not repeat them, for credentials that are none."""
    several = sorted((name for name in secret.auths if _stands_for(name, of)), key=len, reverse=True)
    for name in (*_names(of), *several):
        entry = secret.auths.get(name)
        if isinstance(entry, dict) and (written := _written(entry, of.host, secret.name)) is not None:
            return written
    return None


def _stands_for(name: str, of: ImageReference) -> bool:
    """Whether it is `*.example.com` or so, as Kubernetes takes it: a star for one part of the registry's name, with the beginning of a path."""
    host, _, path = name.partition("://")[2 if "://" in name else 0].partition("/")
    domain, _, port = host.partition(":")
    its, _, its_port = of.host.partition(":")
    parts, its_parts = domain.split("."), its.split(".")
    below = path.strip("/") in ("", "v1", "v2", of.name) or of.name.startswith(f"{path.strip('/')}/")
    alike = len(parts) == len(its_parts) and all(map(fnmatchcase, its_parts, parts))
    return "*" in domain and port == its_port and alike and below


def _names(of: ImageReference) -> list[str]:
    """Under which an entry may be, the nearest first: of the repository and those above it (podman, Kubernetes), of the registry."""
    parts = of.name.split("/")
    hosts = [of.host, "docker.io"] if of.host == HUB else [of.host]
    names = [f"{host}/{'/'.join(parts[:end])}" for end in range(len(parts), 0, -1) for host in hosts]
    names += [of.host, f"https://{of.host}", f"https://{of.host}/v1/", f"https://{of.host}/v2/"]
    return [*names, _HUB_NAME, "index.docker.io", "docker.io"] if of.host == HUB else names


def _written(entry: dict[str, Any], host: str, where: str) -> RegistryCredentials | None:
    def text(name: str) -> str:
        return entry[name] if isinstance(entry.get(name), str) else ""

    if text("registrytoken"):
        return RegistryCredentials(bearer=text("registrytoken"))
    basic = _of_base64(text("auth"), host, where) if text("auth") else ""
    if not basic and text("username"):
        basic = _basic(text("username"), text("password"))
    return RegistryCredentials(basic=basic, identity=text("identitytoken")) if basic or text("identitytoken") else None


def _of_base64(given: str, host: str, where: str) -> str:
    """In one line. SettingsError, which does not repeat them, for credentials that are none."""
    try:
        return base64.b64encode(base64.b64decode("".join(given.split()), validate=True)).decode()
    except (binascii.Error, ValueError):
        raise SettingsError(f"expected `auth` of {host} in `{where}` to be base64, it is not") from None


def _basic(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode("utf-8", "surrogatepass")).decode()


def _of_helper(name: object, host: str) -> RegistryCredentials:
    """What is wrong with a helper is told when the registry refuses: many images need no credentials."""
    if not isinstance(name, str) or not _HELPER.fullmatch(name):
        return RegistryCredentials(without=f"its credential helper has no name of a program: {str(name)[:80]!r}")
    program = f"docker-credential-{name}"
    if shutil.which(program) is None:
        return RegistryCredentials(without=f"its credentials are with the helper `{program}`, which is not on the PATH")
    asked = (_HUB_NAME if host == HUB else host).encode()
    try:
        done = subprocess.run([program, "get"], input=asked, capture_output=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        why = "does not answer" if isinstance(error, subprocess.TimeoutExpired) else f"cannot be run: {error.strerror}"
        return RegistryCredentials(without=f"its credentials are with the helper `{program}`, which {why}")
    if done.returncode:
        has_none = _NOT_THERE.encode() in done.stdout[:1000]
        why = "has none for it" if has_none else f"ended with code {done.returncode}"
        return RegistryCredentials(without=f"its credentials are with the helper `{program}`, which {why}")
    try:
        said = msgspec.json.decode(done.stdout, type=_HelperAnswer)
    except (ValueError, RecursionError):
        return RegistryCredentials(without=f"the helper `{program}` gives no credentials, but something else")
    if said.Username == _IDENTITY:
        return RegistryCredentials(identity=said.Secret)
    return RegistryCredentials(basic=_basic(said.Username, said.Secret))
