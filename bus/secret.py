# SPDX-License-Identifier: Apache-2.0
"""A secret in settings: named, not written down, and shown as stars wherever it is printed.

The value is read at the moment of use, so that it can be rotated. It must never reach a log line, an error or a repr.
A file that others may read is no secret and is refused, also the key of a certificate. The group may read it: a secret that
Kubernetes mounts belongs to root and the group of the pod.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Annotated

import msgspec

from schemas.errors import SettingsError

_OTHERS = stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP


class Secret(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a secret is kept: an environment variable or a file (its trailing newline is not part of it)."""

    env: Annotated[
        str, msgspec.Meta(description="Environment variable that holds it.", examples=["SYSLOG_KEY_PASSWORD"])
    ] = ""
    file: Annotated[
        str,
        msgspec.Meta(
            description="File that holds it, mode 0600 or 0640; one that others may read is refused.",
            examples=["/etc/hauberk/syslog.pass"],
        ),
    ] = ""

    def __repr__(self) -> str:
        return "***"

    def __bool__(self) -> bool:
        return bool(self.env or self.file)

    def reveal(self) -> str:
        """The value, "" when none is configured; SettingsError names the missing variable or file, never a value."""
        if self.env:
            value = os.environ.get(self.env)
            if value is None:
                raise SettingsError(
                    f"expected a secret in environment variable `{self.env}`, it is not set; set it or use `file`"
                )
            return value
        if self.file:
            try:
                refuse_shared(self.file)
                return Path(self.file).read_text(encoding="utf-8").rstrip("\r\n")
            except (OSError, UnicodeDecodeError) as error:
                said = error.strerror if isinstance(error, OSError) else "bytes that are not UTF-8"
                raise SettingsError(
                    f"expected a secret in file `{self.file}`, got {said}; create it readable by this user"
                ) from error
        return ""


def refuse_shared(name: str) -> None:
    """SettingsError when others than owner and group may read the file of a secret, or others than its owner write it."""
    found = os.stat(name)
    if stat.S_ISREG(found.st_mode) and found.st_mode & _OTHERS:
        raise SettingsError(
            f"expected a secret that only its owner and group may read in `{name}`, got mode {stat.S_IMODE(found.st_mode):04o}; "
            f"`chmod 600 {name}`"
        )
