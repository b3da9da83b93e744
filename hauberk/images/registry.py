# SPDX-License-Identifier: Apache-2.0
"""Images in registries (OCI distribution-spec, Docker's token protocol), with the credentials of docker's configuration or of pull secrets.

Registries on loopback are spoken to without TLS, as docker does. Credentials go to the registry and to the token service that it names over
TLS or on loopback, never to where a blob is redirected to.
"""

from __future__ import annotations

import http.client
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from hauberk.images.archives import architecture
from hauberk.images.credentials import PullSecret, RegistryCredentials, credentials, of_secret
from hauberk.images.image import DIGEST, ImageManifest, ReadImage, from_manifest, read_json
from hauberk.images.references import LOOPBACK, ImageReference, reference
from hauberk.images.streams import ByteSource, ImageLimits
from schemas.errors import SettingsError

_ACCEPT: Final = ", ".join((
    "application/vnd.oci.image.index.v1+json", "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json", "application/vnd.docker.distribution.manifest.v2+json",
))  # fmt: skip
_TIMEOUT: Final = 30.0
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*")
"""A token of RFC 6750: anything else would not go into a header."""


class RegistryRefusal(SettingsError):
    """A registry does not let it be read, or says that there is none: some say that to who may not know."""


def pull(
    text: str, docker_config: Path, wanted: str = "", limits: ImageLimits = ImageLimits(), secrets: Iterable[PullSecret] = (),  # noqa: B008
) -> ReadImage:  # fmt: skip
    """The image of a reference, layer after layer, nothing kept; with those of `secrets` that are for its registry, one after the other, then
    with docker's own credentials. SettingsError when the registry does not give it."""
    of = reference(text)
    for secret in secrets:
        known = of_secret(secret, of)
        if known is not None:
            try:
                return _pulled(text, of, known, wanted, limits)
            except RegistryRefusal:
                continue
    return _pulled(text, of, credentials(docker_config, of), wanted, limits)


def _pulled(text: str, of: ImageReference, known: RegistryCredentials, wanted: str, limits: ImageLimits) -> ReadImage:
    registry = _Registry(of, known)
    with registry.get(f"{of.base}/manifests/{of.digest or of.tag}", _ACCEPT) as answer:
        manifest = read_json(answer, f"the manifest of `{text}`", ImageManifest, limits, of.digest)
    return from_manifest(registry, manifest, text, (text,), wanted or architecture(), limits)


class _Token(msgspec.Struct, frozen=True):
    token: str = ""
    access_token: str = ""


class _Registry:
    def __init__(self, of: ImageReference, known: RegistryCredentials) -> None:
        self._of, self._known = of, known
        self._authorization = f"Basic {known.basic}" if known.basic else ""
        if known.bearer:
            self._authorization = f"Bearer {_token(known.bearer, of.host)}"

    @contextmanager
    def open(self, digest: str) -> Iterator[ByteSource]:
        if not DIGEST.fullmatch(digest):
            raise SettingsError(f"expected a digest of sha256, got `{digest[:80]}`")
        with self.get(f"{self._of.base}/blobs/{digest}", "*/*") as answer:
            yield answer

    @contextmanager
    def get(self, url: str, accept: str) -> Iterator[ByteSource]:
        """An answer; asked again once with a token where the registry wants one."""
        try:
            answer = self._ask(url, accept)
        except urllib.error.HTTPError as error:
            challenge = error.headers.get("WWW-Authenticate", "")
            error.close()
            if error.code != 401 or not challenge.lower().startswith("bearer "):
                raise self._refusal(error) from error
            self._authorization = f"Bearer {self._token(challenge)}"
            try:
                answer = self._ask(url, accept)
            except urllib.error.HTTPError as again:
                again.close()
                raise self._refusal(again) from again
        with answer:
            try:
                yield answer
            except (OSError, http.client.HTTPException) as error:
                raise SettingsError(
                    f"expected {self._of.host} to send a blob whole, got: {error or type(error).__name__}"
                ) from error

    def _ask(self, url: str, accept: str) -> Any:
        asked = urllib.request.Request(url, headers={"Accept": accept, "User-Agent": "hauberk"})
        if self._authorization:
            asked.add_unredirected_header("Authorization", self._authorization)
        return self._opened(asked)

    def _opened(self, asked: urllib.request.Request) -> Any:
        try:
            return urllib.request.urlopen(asked, timeout=_TIMEOUT)
        except urllib.error.HTTPError:
            raise
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise SettingsError(
                f"expected an answer of the registry {self._of.host}, got: {getattr(error, 'reason', error) or type(error).__name__}"
            ) from error

    def _refusal(self, error: urllib.error.HTTPError) -> SettingsError:
        name = f"{self._of.name}:{self._of.tag}"
        if error.code in (401, 403) and self._known.without:
            return RegistryRefusal(
                f"expected to be let read `{name}` at {self._of.host}, it refuses ({error.code}): {self._known.without}; log in with docker, or name "
                "a configuration that has them in `auths` with -c"
            )
        if error.code in (401, 403):
            return RegistryRefusal(
                f"expected to be let read `{name}` at {self._of.host}, it refuses ({error.code}); log in with docker, or name its configuration with -c"
            )
        if error.code == 404:
            return RegistryRefusal(f"expected `{name}` at {self._of.host}, it has no such image")
        return SettingsError(f"expected `{name}` of {self._of.host}, it answers {error.code} {error.reason}")

    def _token(self, challenge: str) -> str:
        fields = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
        try:
            realm = urllib.parse.urlsplit(fields.get("realm", ""))
        except ValueError:
            realm = urllib.parse.SplitResult("", "", "", "", "")
        if realm.scheme != "https" and not (realm.scheme == "http" and LOOPBACK.fullmatch(realm.netloc)):
            raise SettingsError(
                f"expected {self._of.host} to name a token service with TLS, got `{fields.get('realm', '')[:100]}`"
            )
        query = {
            "service": fields.get("service", ""),
            "scope": fields.get("scope") or f"repository:{self._of.name}:pull",
        }
        try:
            with self._opened(self._question(fields["realm"], query)) as answer:
                found = read_json(answer, f"a token for {self._of.host}", _Token, ImageLimits())
        except urllib.error.HTTPError as error:
            error.close()
            raise self._refusal(error) from error
        return _token(found.token or found.access_token, self._of.host)

    def _question(self, realm: str, query: dict[str, str]) -> urllib.request.Request:
        """With an identity token it is OAuth 2 that is spoken (distribution, token/oauth), which is a POST."""
        agent = {"User-Agent": "hauberk"}
        if self._known.identity:
            form = {
                **query,
                "grant_type": "refresh_token",
                "client_id": "hauberk",
                "refresh_token": self._known.identity,
            }
            return urllib.request.Request(realm, data=urllib.parse.urlencode(form).encode(), headers=agent)
        asked = urllib.request.Request(f"{realm}?{urllib.parse.urlencode(query)}", headers=agent)
        if self._known.basic:
            asked.add_unredirected_header("Authorization", f"Basic {self._known.basic}")
        return asked


def _token(text: str, host: str) -> str:
    """A token that goes into a header. SettingsError, which does not repeat it, for none."""
    if not _TOKEN.fullmatch(text):
        raise SettingsError(f"expected a token for {host}, its token service or docker's configuration gives none")
    return text
