"""Describe why a connection could not be made. aiohttp's errors for this contain the errors of asyncio and OpenSSL."""

from __future__ import annotations

import os


def why_tls_fails(error: Exception) -> str:
    """Return the reason that an error of aiohttp gives for a certificate or a TLS handshake."""
    cause = getattr(error, "certificate_error", None) or getattr(error, "os_error", None)
    return getattr(cause, "verify_message", "") or getattr(cause, "reason", "") or "TLS fails"


def why_not_connected(error: OSError) -> str:
    """Return the system's text for an error of connect(2). asyncio replaces ``strerror`` by a text of its own."""
    return os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or type(error).__name__
