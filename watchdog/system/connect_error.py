"""Describe why a connection could not be made. aiohttp's errors for this contain the errors of asyncio and OpenSSL."""

from __future__ import annotations

import os


def why_tls_fails(error: Exception) -> str:
    """Return the reason that an error of aiohttp gives for a certificate or a TLS handshake."""
    cause = getattr(error, "certificate_error", None) or getattr(error, "os_error", None)
    return getattr(cause, "verify_message", "") or getattr(cause, "reason", "") or "TLS fails"


def why_not_connected(error: OSError) -> str:
    """Return the system's text for an error of connect(2). asyncio replaces ``strerror`` by a text of its own.

    If the addresses of a host fail for different reasons, the error has no number, and its text has all reasons.
    """
    if error.errno and error.errno > 0:
        return os.strerror(error.errno)
    text = error.strerror or str(error) or type(error).__name__
    return text if text.isprintable() else ascii(text)
