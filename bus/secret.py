# SPDX-License-Identifier: Apache-2.0
"""A secret in settings: named, not written down, and shown as stars wherever it is printed.

The value is read at the moment of use, so that it can be rotated. It must never reach a log line, an error or a repr.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import msgspec

from schemas.errors import SettingsError


class Secret(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a secret is kept: an environment variable or a file (its trailing newline is not part of it)."""

    env: Annotated[
        str, msgspec.Meta(description="Environment variable that holds it.", examples=["SYSLOG_KEY_PASSWORD"])
    ] = ""
    file: Annotated[
        str, msgspec.Meta(description="File that holds it, mode 0600.", examples=["/etc/hauberk/syslog.pass"])
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
                return Path(self.file).read_text(encoding="utf-8").rstrip("\r\n")
            except OSError as error:
                raise SettingsError(
                    f"expected a secret in file `{self.file}`, got {error.strerror}; create it readable by this user"
                ) from error
        return ""
