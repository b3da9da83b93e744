# SPDX-License-Identifier: Apache-2.0
"""The TLS of a client, made of files that settings name: for brokers and for SIEMs. Neighbour: `secret`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bus.openssl import take_in
from bus.secret import Secret, refuse_shared
from schemas.errors import SettingsError

if TYPE_CHECKING:
    import ssl


def client_context(section: str, ca_file: str, cert_file: str, key_file: str, key_password: Secret) -> ssl.SSLContext:
    """PEM files; "" for none: the system's authorities, no certificate of our own, the key beside its certificate. SettingsError
    names `section` and the files that are wrong, and a key that others may read."""
    take_in()
    import ssl

    try:
        made = ssl.create_default_context(cafile=ca_file or None)
        if cert_file:
            password = key_password.reveal() or None
            refuse_shared(key_file or cert_file)
            made.load_cert_chain(cert_file, key_file or None, password)
    except (OSError, ssl.SSLError) as error:
        files = ", ".join(f"`{name}`" for name in (ca_file, cert_file, key_file) if name)
        why = error.strerror or (error.reason if isinstance(error, ssl.SSLError) else "") or str(error)
        raise SettingsError(f"{section}: expected PEM files {files}, got {why}; check them") from error
    return made
