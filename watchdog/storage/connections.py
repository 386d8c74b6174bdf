"""Connect to one provider: the certificates that are trusted, and the reset of connections whose request failed."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import aiohttp

from ..errors import StorageError
from ..settings.storage_providers import Provider
from ..system.files import open_regular
from ..system.tcp import reset_at_close

_CONNECT_S = 10.0
# Bytes in this buffer count as sent. A small buffer keeps the reported progress close to the real one on a slow link.
_SEND_BUFFER_BYTES = 128 * 1024


class Connections:
    """The connections to one provider.

    Args:
        timeout_s: the longest silence of the server. Half of it is the longest time to establish a connection; 10 s at
            most.
    """

    def __init__(self, provider: Provider, *, timeout_s: float, ca_file: str | None) -> None:
        self._provider = provider
        self.connect_s = min(timeout_s / 2, _CONNECT_S)
        self._ca_file = ca_file
        self._sessions: dict[bool, aiohttp.ClientSession] = {}

    async def close(self) -> None:
        while self._sessions:
            _, session = self._sessions.popitem()
            await session.close()

    def session(self, *, for_large: bool) -> aiohttp.ClientSession:
        """Return the session for small requests. With ``for_large``, return one that opens a connection per request.

        With ``for_large``, ``trace_request_ctx`` of a request is called when its connection is established.
        """
        if for_large not in self._sessions:
            trace = aiohttp.TraceConfig()
            trace.on_connection_create_end.append(_connected)
            self._sessions[for_large] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, socket_factory=_socket, force_close=for_large),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"Accept-Encoding": "identity", "User-Agent": "oscar-watchdog"},
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self.connect_s),
                trace_configs=[trace] if for_large else None,
                auto_decompress=False,
                trust_env=False,
            )
        return self._sessions[for_large]

    @functools.cached_property
    def trust(self) -> ssl.SSLContext | bool:
        """Return the TLS context that checks the server's certificate, or False to accept any certificate.

        Raises:
            StorageError: the file of certificates cannot be read.
        """
        if not self._provider.verify:
            return False
        # Not ssl.create_default_context(), which reads the names of files from the environment.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if self._ca_file is not None:
            try:
                # This rejects a FIFO: OpenSSL would wait for a process that writes to it.
                os.close(open_regular(self._ca_file))
                context.load_verify_locations(self._ca_file)
            except OSError as error:  # ssl.SSLError is an OSError, too
                raise StorageError(
                    f"the certificates in {self._ca_file} cannot be read ({error.strerror}): give a PEM file, as "
                    "ca_file of the storage provider or in SSL_CERT_FILE"
                ) from None
        return context


async def _connected(_: aiohttp.ClientSession, context: Any, __: aiohttp.TraceConnectionCreateEndParams) -> None:
    if context.trace_request_ctx is not None:
        context.trace_request_ctx()


# The sockets that the current request of this task has opened.
_sockets: contextvars.ContextVar[list[socket.socket]] = contextvars.ContextVar("sockets")


@contextlib.contextmanager
def aborted_on_failure() -> Iterator[None]:
    """Reset the connections that were opened in this context if the request fails or is cancelled.

    asyncio would keep a connection open until all written data is sent. If the server has stalled, that never happens.
    The server would then keep the incomplete file, which it has locked.
    """
    sockets: list[socket.socket] = []
    made = _sockets.set(sockets)
    try:
        yield
    except BaseException:
        _abort(sockets)
        raise
    finally:
        _sockets.reset(made)


def _socket(address: tuple[Any, ...]) -> socket.socket:
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
    _sockets.get().append(made)
    return made


def _abort(sockets: list[socket.socket]) -> None:
    for each in sockets:
        with contextlib.suppress(OSError):  # closed already
            reset_at_close(each)
            each.shutdown(socket.SHUT_RDWR)
