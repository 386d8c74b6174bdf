"""Find the certificates that the system trusts."""

from __future__ import annotations

import os

# Files of the certificates that a system trusts. The first is for Debian and Alpine, then Fedora, openSUSE, and BSD.
_SYSTEM_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


def system_bundle() -> str:
    """Return the file of certificates that the image trusts, or this program's own file if the image has none."""
    for path in _SYSTEM_BUNDLES:
        if os.access(path, os.R_OK):
            return path
    import certifi

    return certifi.where()
