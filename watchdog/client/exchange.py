"""Send a call, and send it again if the service refuses it for now.

A call is not idempotent: the script may have side effects. So a call is sent again only if the service has said that it
did not run the script (:func:`is_refused_for_now`). If a connection was lost, the script may have run, and the call
fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import time
import unicodedata
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import quote

import aiohttp

from ..errors import AnswerBroken, RefusedForNow, ServiceUnreachable, WatchdogError
from ..logs.readable import seconds
from ..logs.text import printable
from ..system.connect_error import why_not_connected, why_tls_fails
from .progress import Display
from .refusal import error_of, is_answer_of_script
from .service import Service
from .source import Source

_CONNECT_S = 15.0
_HEADER_MOST_BYTES = 64 * 1024
_PROBLEM_MOST_BYTES = 64 * 1024
_PROBLEM_S = 30.0
# The waits between attempts if the answer does not have Retry-After. The first one is also the shortest of all waits,
# because a Retry-After of 0, or a date that a fast clock of this computer puts into the past, must not mean no wait.
_FIRST_WAIT_S = 1.0
_LONGEST_WAIT_S = 15.0
# A server that was switched off sends nothing. The kernel then ends the connection after about two minutes.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))
_T = TypeVar("_T")


class Exchange:
    """Sends calls to one service. Use it as a context.

    Args:
        is_base64: whether inputs are sent as base64, and not as they are.
        retry_for_s: for how long a call that is refused for now is sent again.
    """

    def __init__(self, service: Service, *, is_base64: bool, retry_for_s: float) -> None:
        self._service = service
        self._is_base64 = is_base64
        self._retry_for_s = retry_for_s
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Exchange:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True, socket_factory=_socket),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
            auto_decompress=False,
            trust_env=False,
            max_line_size=_HEADER_MOST_BYTES,
            max_field_size=_HEADER_MOST_BYTES,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()

    async def call(
        self,
        source: Source,
        form: str,
        accept: str,
        display: Display,
        receive: Callable[[aiohttp.ClientResponse], Awaitable[_T]],
    ) -> _T:
        """Send an input, and return what ``receive`` makes of the answer.

        Args:
            form: the form of answer, for ``?output=``.

        Raises:
            WatchdogError: the call failed, or the service cannot be reached.
        """
        until_s = time.monotonic() + self._retry_for_s
        backoff_s = _FIRST_WAIT_S
        while True:
            try:
                async with self._sent(source, form, accept, display) as response:
                    if response.status >= 300 and not is_answer_of_script(response.headers):
                        raise error_of(response.status, response.headers, await _beginning(response))
                    _check_coding(response.headers)
                    return await receive(response)
            except RefusedForNow as error:  # a live call reports in its verdict that it got no place
                if not error.is_sent_again:
                    raise
                refusal = error
            least_s = None if refusal.retry_after_s is None else max(_FIRST_WAIT_S, refusal.retry_after_s)
            # A random wait, so that callers that were refused at the same time do not try again at the same time.
            wait_s = (backoff_s if least_s is None else least_s) * random.uniform(1.0, 1.25)
            if time.monotonic() + wait_s > until_s:
                raise _given_up(refusal, least_s, self._retry_for_s)
            display.status(f"the service is busy; trying again in {seconds(wait_s)}")
            await asyncio.sleep(wait_s)
            backoff_s = min(2 * backoff_s, _LONGEST_WAIT_S)

    @contextlib.asynccontextmanager
    async def _sent(
        self, source: Source, form: str, accept: str, display: Display
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send the call once, and yield the answer, whose body is still to be read."""
        assert self._session is not None
        length = source.body_bytes(is_base64=self._is_base64)
        headers = self._service.headers | {
            "Accept": accept,
            "Accept-Encoding": "identity",
            "Content-Length": str(length),
            "Content-Type": "text/plain" if self._is_base64 else "application/octet-stream",
            "X-Input-Encoding": "base64" if self._is_base64 else "raw",
        }
        if source.name is not None:
            headers["X-Filename"] = quote(_sendable(source.name), safe="")
        sent_bytes = 0

        def sent(count: int) -> None:
            nonlocal sent_bytes
            sent_bytes += count
            display.moved(count)
            if sent_bytes == source.size_bytes:
                display.status("waiting for the answer")

        display.begin("sending", source.size_bytes)
        try:
            async with self._session.post(
                self._service.url_for(form),
                headers=headers,
                data=source.body(sent, is_base64=self._is_base64) if length else b"",
                allow_redirects=False,
                proxy=self._service.proxy,
                ssl=self._service.trust or True,
            ) as response:
                yield response
        except (aiohttp.ClientError, OSError) as error:
            raise source.error or _translated(error) from None


def _socket(address: tuple[Any, ...]) -> socket.socket:
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made


def _sendable(name: str) -> str:
    """Return a file name that the server accepts: valid UTF-8 without control characters."""
    text = os.fsencode(name).decode("utf-8", "replace")
    return "".join("_" if unicodedata.category(character) == "Cc" else character for character in text)


def _check_coding(headers: Mapping[str, str]) -> None:
    coding = headers.get("Content-Encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        raise AnswerBroken(
            f"the answer is compressed ({printable(coding)}), although the client accepts only uncompressed answers; "
            "a proxy on the way must not compress them"
        )


async def _beginning(response: aiohttp.ClientResponse) -> bytes:
    """Return the beginning of the body of an error. An error is reported even if its body is cut off or stalls."""
    body = b""
    with contextlib.suppress(aiohttp.ClientError, ConnectionError, TimeoutError):
        async with asyncio.timeout(_PROBLEM_S):
            while len(body) < _PROBLEM_MOST_BYTES and (piece := await response.content.readany()):
                body += piece
    return body[:_PROBLEM_MOST_BYTES]


def _given_up(refusal: WatchdogError, least_s: float | None, retry_for_s: float) -> RefusedForNow:
    when = "later" if least_s is None else f"in {seconds(least_s)}"
    return RefusedForNow(f"{refusal}\ntry again {when}; this call was tried for {retry_for_s:g} s (--retry-for)")


def _translated(error: Exception) -> WatchdogError:
    """Return an error of the HTTP client as an error of the program."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientConnectorSSLError):
        return ServiceUnreachable(
            f"no safe connection to {error.host}:{error.port} can be made ({why_tls_fails(error)}); give the "
            "certificate of its authority with --ca-file, or use http:// if the service has no TLS"
        )
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return ServiceUnreachable(f"the proxy refuses the connection: {error.status} {printable(error.message)}")
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return ServiceUnreachable(f"the host {error.host} is not known; check the URL")
    if isinstance(error, aiohttp.ClientConnectorError):
        what = "the proxy " if isinstance(error, aiohttp.ClientProxyConnectionError) else ""
        reason = why_not_connected(error.os_error)
        return ServiceUnreachable(
            f"{what}{error.host}:{error.port} cannot be reached: {reason}; check the URL, and that the service runs"
        )
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return ServiceUnreachable(f"no connection could be made in {_CONNECT_S:g} s; check the URL")
    if isinstance(error, aiohttp.ClientPayloadError):
        return AnswerBroken("the answer was cut off: the connection ended too early")
    if isinstance(error, aiohttp.ClientResponseError):
        why = printable(error.message.partition("\n")[0])[:100].rstrip(" :")
        return AnswerBroken(f"the answer is not HTTP that this client reads: {why}")
    if isinstance(error, aiohttp.InvalidURL):
        return ServiceUnreachable(f"the URL cannot be used: {printable(str(error))}")
    return AnswerBroken(
        "the connection ended before the answer came; the script may have run, so the call was not sent again"
    )
