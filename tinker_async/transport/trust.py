"""Whom a TLS connection believes: the system's and certifi's authorities, or the user's own.

The rule: who names authorities gets those and no others.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tinker_async.errors import ConfigError

if TYPE_CHECKING:
    import ssl


def trusting_context(ca_bundle: str | None = None) -> ssl.SSLContext:
    """Return a client's context that verifies certificates and host names.

    Args:
        ca_bundle: File or folder of authorities; else `SSL_CERT_FILE` and `SSL_CERT_DIR`, else
            the system's and certifi's.

    Raises:
        ConfigError: The file or folder is missing or has no certificates.
    """
    if ca_bundle is not None:
        return _only(ca_bundle, name="ca_bundle")
    file, folder = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    if file:
        return _only(file, name="SSL_CERT_FILE", folder=folder or None)
    if folder:
        return _only(folder, name="SSL_CERT_DIR")
    import ssl  # noqa: PLC0415 - a local server needs no TLS

    import certifi  # noqa: PLC0415 - as above

    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


def _only(path: str, *, name: str, folder: str | None = None) -> ssl.SSLContext:
    import ssl  # noqa: PLC0415 - as above

    is_folder = os.path.isdir(path)  # noqa: PTH112 - pathlib costs more than all of this
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(
            cafile=None if is_folder else path, capath=path if is_folder else folder
        )
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"{name} {path!r} has no certificates: {error.strerror or error}",
            hint="name a PEM file of authorities, or a folder that c_rehash has prepared",
        ) from error
    return context
