# SPDX-License-Identifier: Apache-2.0
"""Images by reference: of the engine of this machine where that was asked for, of their registry otherwise; with what to say of those that
could not be had. Neighbours: `images.engine`, `images.registry`, `pull_secrets`, `manifest_secrets`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hauberk.images.engine import image_store
from hauberk.images.image import ReadImage
from hauberk.images.registry import RegistryRefusal, pull
from hauberk.manifests import ImagePuller
from schemas.errors import SettingsError

if TYPE_CHECKING:
    from hauberk.manifest_secrets import ManifestSecrets
    from hauberk.pull_secret_objects import PullSecrets


class ImageFetching:
    """`secrets`, when it is set, reads the pull secrets of all workloads of a cluster that were asked for; once, and not before one is needed.
    `in_files`: those of manifest files."""

    def __init__(self, given: argparse.Namespace) -> None:
        self._given = given
        self._engine = image_store(given.engine) if given.engine is not None else None
        self._missing: set[str] = set()
        self._failed: dict[tuple[str, tuple[str, ...]], str] = {}
        self._read: PullSecrets | None = None
        self.secrets: Callable[[], PullSecrets] | None = None
        self.in_files: ManifestSecrets | None = None

    def named(self, text: str) -> ReadImage:
        """The image that somebody named. SettingsError when it is nowhere."""
        found = self._of_engine(text)
        if found is None and self._engine is not None and not self._given.pull:
            raise SettingsError(
                f"expected the image `{text}` in the container engine at `{self._engine.place}`, it has none; pull it there, or add --pull"
            )
        return found or self._pulled(text)

    def of_workload(self, text: str, puller: ImagePuller | None) -> ReadImage | None:
        """The image that a workload runs, where it was asked for; None where the engine has not got it, or a cluster's workload has one that its
        registry does not give: `tell` says so."""
        found = self._of_engine(text)
        if found is None and self._given.pull:
            if puller is None or puller.in_files:
                return self._pulled_of_files(text, puller)
            return self._pulled_for(text, puller)
        if found is None and self._engine is not None:
            self._missing.add(text)
        return found

    def tell(self) -> None:
        """What could not be had, a sentence for each reason."""
        if self._missing and self._engine is not None:
            are = "image is" if len(self._missing) == 1 else "images are"
            _say(
                f"{len(self._missing)} {are} not in the container engine at {self._engine.place} (`{min(self._missing)}`); "
                "their programs are named wherever they lie"
            )
        if self._read is not None and self._read.unread:
            name, why = min(self._read.unread.items())
            _say(
                f"{len(self._read.unread)} of the cluster's pull secrets could not be read ({name}: {why}); registries are asked without them"
            )
        if self.in_files is not None and self.in_files.unread:
            _say(_lacking(self.in_files.unread))
        if self._failed:
            (text, _), why = min(self._failed.items())
            images = len({text for text, _ in self._failed})
            _say(
                f"{images} image{'s' * (images != 1)} could not be read (`{text}`: {why}); their programs are named wherever they lie"
            )

    def _of_engine(self, text: str) -> ReadImage | None:
        return self._engine.image(text, self._given.platform) if self._engine is not None else None

    def _pulled(self, text: str) -> ReadImage:
        return pull(text, _docker_config(self._given), self._given.platform)

    def _pulled_of_files(self, text: str, puller: ImagePuller | None) -> ReadImage:
        """One that a manifest file names: what it is refused ends the run, as of an image that somebody named."""
        if self.in_files is None or puller is None:
            return self._pulled(text)
        secrets, lacking = self.in_files.of(puller)
        try:
            return pull(text, _docker_config(self._given), self._given.platform, secrets=secrets)
        except RegistryRefusal as error:
            raise (SettingsError(f"{error}; {_lacking(lacking)}") if lacking else error) from None

    def _pulled_for(self, text: str, puller: ImagePuller) -> ReadImage | None:
        """One of many of a cluster: what it is refused keeps the others from nothing."""
        config = _docker_config(self._given)
        if self._read is None and self.secrets is not None:
            self._read = self.secrets()
        secrets = self._read.by_puller.get(puller, ()) if self._read is not None else ()
        key = text, tuple(one.name for one in secrets)
        if key in self._failed:
            return None
        try:
            return pull(text, config, self._given.platform, secrets=secrets)
        except SettingsError as error:
            self._failed[key] = str(error)
            return None


def _lacking(unread: dict[str, str]) -> str:
    name, why = min(unread.items())
    them, give = ("it", "the Secret") if len(unread) == 1 else ("them", "the Secrets")
    return (
        f"{len(unread)} of the manifests' pull secrets could not be read ({name}: {why}); registries are asked without {them}: give the file of "
        f"{give} too (-f), or log in with docker or name a configuration of docker that has the credentials (--config)"
    )


def _docker_config(given: argparse.Namespace) -> Path:
    if given.docker_config and not Path(given.docker_config).exists():
        raise SettingsError(f"expected docker's configuration at `{given.docker_config}`, there is none")
    usual = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"
    return Path(given.docker_config or usual)


def _say(text: str) -> None:
    print(f"hauberk recommend: {text}", file=sys.stderr)
