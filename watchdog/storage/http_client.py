"""Send requests to storages: tried again, resumed, and bounded in time.

aiohttp is the client. This module follows redirects itself, uses no cookies, and no proxy or ``.netrc`` of the
environment. Names are encoded only here.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import os
import random
import re
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

import aiohttp
from yarl import URL

from ..errors import InputTooLarge, ObjectMissing, StorageError
from ..settings.storage_providers import Provider
from ..system.files import open_regular
from ..system.nameless_file import write_all
from ..system.threads import to_its_end
from ..workspace.outputs import Output, raise_if_changed
from ..workspace.space import raise_if_no_space
from .base import Moved, tidied

_T = TypeVar("_T")

_PIECE_BYTES = 1 << 20
# Sent at a time: a slow link must be seen to move.
_STEP_BYTES = 64 * 1024
# A large body is not sent before the server has said that it wants it: dCache sends clients elsewhere.
_ASK_FIRST_BYTES = 1 << 20
# Some never say that they want it; they are not asked again.
_WORD_S = 3.0
_BODY_MOST_BYTES = 64 * 1024
_MOST_REDIRECTS = 5
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_CONNECT_S = 10.0
# Of a transfer, on average over ``timeout_s``: as much as a caller must send (min_data_rate).
_LEAST_BYTES_PER_S = 240
# What waits here for a slow link is seen as sent: little, so that its progress shows.
_SEND_BUFFER_BYTES = 128 * 1024
_PASSING = frozenset({408, 423, 425, 429, 500, 502, 503, 504})
_STORED = frozenset({200, 201, 202, 204})
_REMOVED = frozenset({200, 202, 204, 404})
_REMOVE_PAUSES_S = (0.1, 0.3, 0.6)
_REDIRECTS = frozenset({301, 302, 307, 308})
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class Dialect(Protocol):
    """What makes one kind of storage differ from another."""

    def headers(self, method: str, url: URL, headers: Mapping[str, str]) -> Mapping[str, str]:
        """What authorizes a request with these headers; made anew for each try, for the provider's own origin alone."""

    def error(self, status: int, body: bytes, what: str, query: str) -> StorageError | None:
        """Return the error for an answer that is not a success; the error knows more than the status.

        ``what``: ``GET of a/b``; ``query``: of the request, encoded.
        """


class WithHeaders:
    """A dialect in which the same headers authorize each request, and answers tell no more than their status."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = headers

    def headers(self, method: str, url: URL, headers: Mapping[str, str]) -> Mapping[str, str]:
        return self._headers

    def error(self, status: int, body: bytes, what: str, query: str) -> StorageError | None:
        return None


@dataclass(frozen=True, slots=True)
class Answered:
    """A small answer, whole. ``headers``: names in any case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class _Passing(Exception):
    """What may be over at the next try. ``after_s``: what the server asks to wait."""

    def __init__(self, error: StorageError, after_s: float = 0.0, *, is_silence: bool = False) -> None:
        super().__init__(str(error))
        self.error = error
        self.after_s = after_s
        self.is_silence = is_silence


class HttpClient:
    """Requests to one provider.

    Args:
        timeout_s: the longest silence, and how long failures are tried again without any progress. Less than 240
            bytes a second are no progress.
    """

    def __init__(self, provider: Provider, dialect: Dialect, *, timeout_s: float, ca_file: str | None) -> None:
        self._provider = provider
        self._dialect = dialect
        self._timeout_s = timeout_s
        self._ca_file = ca_file
        self._sessions: dict[bool, aiohttp.ClientSession] = {}
        self._says_continue = True

    def url(self, path: str, query: str = "") -> URL:
        """The address of a path, whose parts are text as it is; ``query``: encoded."""
        encoded = quote(path, safe="/~")
        return URL(f"{self._provider.endpoint}/{encoded}{'?' + query if query else ''}", encoded=True)

    async def close(self) -> None:
        while self._sessions:
            _, session = self._sessions.popitem()
            await session.close()

    async def ask(
        self,
        method: str,
        path: str,
        *,
        accepted: frozenset[int],
        query: str = "",
        headers: Mapping[str, str] = {},
        body: bytes = b"",
    ) -> Answered:
        """Send a small request until it is accepted; return the answer, of whose body 64 KiB are read at most.

        Raises:
            ObjectMissing: 404 or 410, if that is not accepted.
            StorageError: another status than those accepted; the server fails or is silent for too long.
        """
        url = self.url(path, query)

        async def attempt(progress: _Progress) -> Answered:
            async with self._answered(method, url, path, progress, headers=headers, body=body or None) as response:
                return await self._accepted(response, f"{method} of {path}", accepted)

        return await self._tried(attempt)

    async def remove(self, path: str, query: str = "") -> None:
        """Remove what is left of a transfer that failed or was cancelled, if the server still answers."""

        async def remove() -> None:
            for pause_s in _REMOVE_PAUSES_S:
                answer = await self.ask("DELETE", path, query=query, accepted=_REMOVED)
                if answer.status != 404:
                    return
                # A server may still be about to make a file of what it got before the connection ended.
                await asyncio.sleep(pause_s)

        await tidied(remove())

    async def download(self, path: str, fd: int, *, most_bytes: int, moved: Moved, query: str = "") -> int:
        """Write what GET answers to an empty file, resumed where it was cut; return its size.

        Raises: as :meth:`Storage.fetch`.
        """
        try:
            return await self._tried(_Download(self, path, query, fd, most_bytes, moved).attempt)
        except OSError as error:
            raise_if_no_space(error, f"the object {path}")
            raise

    async def upload(
        self,
        path: str,
        output: Output,
        fd: int,
        *,
        moved: Moved,
        query: str = "",
        headers: Mapping[str, str] = {},
        offset: int = 0,
        size_bytes: int | None = None,
        final: frozenset[int] = frozenset(),
    ) -> Answered:
        """PUT a file, or a part of it, from its begin at each try. ``final``: statuses not to be tried again.

        Raises: as :meth:`Storage.store`; a file that changed may be there then.
        """
        url = self.url(path, query)
        whole_bytes = output.size_bytes if size_bytes is None else size_bytes

        async def attempt(progress: _Progress) -> Answered:
            asks_first = whole_bytes > _ASK_FIRST_BYTES and self._says_continue
            sent_bytes = 0

            async def body() -> AsyncIterator[bytes]:
                nonlocal sent_bytes
                # Anew after a redirect, too.
                moved(-sent_bytes)
                sent_bytes = 0
                while sent_bytes < whole_bytes:
                    left_bytes = whole_bytes - sent_bytes
                    piece = await asyncio.to_thread(os.pread, fd, min(_PIECE_BYTES, left_bytes), offset + sent_bytes)
                    if not piece:  # cut short: the server must not wait for the rest
                        raise ConnectionAbortedError
                    for at in range(0, len(piece), _STEP_BYTES):
                        step = piece[at : at + _STEP_BYTES]
                        yield step
                        sent_bytes += len(step)
                        progress.reached(sent_bytes, len(step))
                        moved(len(step))

            try:
                async with self._answered(
                    "PUT",
                    url,
                    path,
                    progress,
                    headers={**headers, "Content-Length": str(whole_bytes)},
                    body=body if whole_bytes else b"",
                    asks_first=asks_first,
                ) as response:
                    return await self._accepted(response, f"PUT of {path}", _STORED, final)
            except BaseException as error:
                moved(-sent_bytes)
                raise_if_changed(fd, output)
                if isinstance(error, _Passing) and error.is_silence and asks_first and not sent_bytes:
                    self._says_continue = False
                raise

        answer = await self._tried(attempt)
        raise_if_changed(fd, output)
        return answer

    async def _tried(self, attempt: Callable[[_Progress], Awaitable[_T]]) -> _T:
        """Try again what may pass, until it has failed for ``timeout_s`` without getting any further.

        A server that is silent is so given up after twice that time.
        """
        progress = _Progress()
        pause_s, failing_since_s = _FIRST_PAUSE_S, 0.0
        while True:
            try:
                return await attempt(progress)
            except _Passing as failure:
                now_s = time.monotonic()
                if progress.is_enough(now_s) or not failing_since_s:
                    pause_s, failing_since_s = _FIRST_PAUSE_S, now_s
                wait_s = max(pause_s * random.uniform(0.5, 1.0), failure.after_s)
                if now_s + wait_s - failing_since_s > self._timeout_s:
                    raise failure.error from None
            await asyncio.sleep(wait_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    @contextlib.asynccontextmanager
    async def _answered(
        self,
        method: str,
        url: URL,
        path: str,
        progress: _Progress,
        *,
        headers: Mapping[str, str] = {},
        body: bytes | Callable[[], AsyncIterator[bytes]] | None = None,
        asks_first: bool = False,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer to one request, redirects followed. Raises ``_Passing`` for lost connections and silence."""
        sockets: list[socket.socket] = []
        made = _sockets.set(sockets)
        try:
            async with asyncio.timeout(min(self._timeout_s, _WORD_S) if asks_first else self._timeout_s) as bound:
                progress.bounded_by(bound, self._timeout_s)
                for _ in range(_MOST_REDIRECTS + 1):
                    async with self._opened(for_large=callable(body)).request(
                        method,
                        url,
                        headers=self._headers_for(method, url, headers),
                        data=body() if callable(body) else body,
                        allow_redirects=False,
                        expect100=asks_first,
                        ssl=self._trust,
                    ) as response:
                        progress.alive()
                        if response.status not in _REDIRECTS:
                            yield response
                            return
                        url = self._redirected(url, response, method)
                raise StorageError(f"{self._provider} redirects the {method} of {path} again and again")
        except BaseException as error:
            _abort(sockets)
            raise self._as_ours(error, method, path, progress) from None
        finally:
            _sockets.reset(made)

    def _as_ours(self, error: BaseException, method: str, path: str, progress: _Progress) -> BaseException:
        """What aiohttp and the system raise, as something that may pass or not; all else as it is."""
        what = f"the {method} of {path}"
        if isinstance(error, (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError)):
            return self._untrusted(error)
        if isinstance(error, TimeoutError):
            how = f"let only {progress.window_bytes} bytes through in" if progress.window_bytes else "was silent for"
            text = f"{self._provider} {how} {self._timeout_s:g} s during {what} (storage_timeout)"
            return _Passing(StorageError(text), is_silence=True)
        if isinstance(error, aiohttp.ClientConnectorError):
            text = f"{self._provider} cannot be reached for {what}: {_reason(error.os_error)}"
            return _Passing(StorageError(f"{text}; check its address, and that it runs"))
        if isinstance(error, (aiohttp.ClientError, ConnectionError)):
            return _Passing(StorageError(f"{self._provider} broke the connection off during {what}"))
        return error

    async def _accepted(
        self, response: aiohttp.ClientResponse, what: str, accepted: frozenset[int], final: frozenset[int] = frozenset()
    ) -> Answered:
        """An answer of a status that is wanted. Raises ``_Passing`` for others that may pass and are not ``final``."""
        body = await response.content.read(_BODY_MOST_BYTES)
        while len(body) < _BODY_MOST_BYTES and (more := await response.content.read(_BODY_MOST_BYTES - len(body))):
            body += more
        status = response.status
        error = self._dialect.error(status, body, what, response.url.raw_query_string)
        if error is None and status in accepted:
            return Answered(status, response.headers, body)
        error = error or self._error(status, response.reason, what)
        if status in _PASSING - final or (status < 400 and status in accepted):
            raise _Passing(error, _retry_after_s(response))
        raise error

    def _error(self, status: int, reason: str | None, what: str) -> StorageError:
        if status in (404, 410):
            return ObjectMissing(
                f"{self._provider} answers the {what} with {status}: there is no such file or directory"
            )
        if status in (401, 403):
            return StorageError(
                f"{self._provider} refuses the {what} ({status}): check login, password or token, and rights"
            )
        if status in (413, 507):
            return StorageError(f"{self._provider} has no room for the {what} ({status}): make room there")
        return StorageError(f"{self._provider} answers the {what} with {status} ({_printable(reason)})")

    def _redirected(self, url: URL, response: aiohttp.ClientResponse, method: str) -> URL:
        try:
            target = url.join(URL(response.headers["Location"], encoded=True))
        except (KeyError, ValueError):
            raise StorageError(f"{self._provider} redirects a {method} to no address") from None
        if target.scheme not in ("http", "https") or (url.scheme == "https" and target.scheme == "http"):
            raise StorageError(f"{self._provider} redirects a {method} to {target.scheme}, where it would not be safe")
        return target

    def _headers_for(self, method: str, url: URL, headers: Mapping[str, str]) -> dict[str, str]:
        if url.origin() != URL(self._provider.endpoint).origin():
            return dict(headers)
        return {**headers, **self._dialect.headers(method, url, headers)}

    def _opened(self, *, for_large: bool) -> aiohttp.ClientSession:
        """``for_large``: a new connection for each request, which can be aborted."""
        if for_large not in self._sessions:
            self._sessions[for_large] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, socket_factory=_socket, force_close=for_large),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"Accept-Encoding": "identity", "User-Agent": "oscar-watchdog"},
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=min(self._timeout_s, _CONNECT_S)),
                auto_decompress=False,
                trust_env=False,
            )
        return self._sessions[for_large]

    @functools.cached_property
    def _trust(self) -> ssl.SSLContext | bool:
        """False: any certificate will do."""
        if not self._provider.verify:
            return False
        # Not the default context, which goes by the environment.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if self._ca_file is not None:
            try:
                # OpenSSL would wait for a process that writes to a FIFO.
                os.close(open_regular(self._ca_file))
                context.load_verify_locations(self._ca_file)
            except OSError as error:  # of which ssl's own errors are a kind
                raise StorageError(
                    f"the certificates of {self._ca_file} cannot be read ({error.strerror}): give a file in PEM, as "
                    "ca_file of the storage provider or in SSL_CERT_FILE"
                ) from None
        return context

    def _untrusted(self, error: aiohttp.ClientConnectorError | aiohttp.ClientConnectorCertificateError) -> StorageError:
        cause = getattr(error, "certificate_error", None) or getattr(error, "os_error", None)
        why = getattr(cause, "verify_message", "") or getattr(cause, "reason", "") or "TLS fails"
        return StorageError(
            f"{self._provider} shows a certificate that is not trusted ({why}): give its authority as ca_file (PEM) of "
            "the storage provider, or set its verify to false"
        )


class _Progress:
    """How far the tries of one transfer have come.

    ``window_bytes``: how many bytes have moved since the bound of this try was set.
    """

    def __init__(self) -> None:
        self.window_bytes = 0
        self._reached_bytes = 0
        self._gained_bytes, self._gained_since_s = 0, time.monotonic()
        self._bound: asyncio.Timeout | None = None
        self._timeout_s = 0.0
        self._has_begun = False

    def bounded_by(self, bound: asyncio.Timeout, timeout_s: float) -> None:
        self._bound, self._timeout_s = bound, timeout_s
        self._has_begun = False
        self.window_bytes = 0

    def alive(self) -> None:
        """The server does something: its silence begins anew."""
        self.window_bytes = 0
        if self._bound is not None and not self._bound.expired():
            self._bound.reschedule(asyncio.get_running_loop().time() + self._timeout_s)

    def reached(self, count: int, step_bytes: int) -> None:
        """So many bytes of the whole are there, with those of this step. Enough of them move the bound on."""
        if not self._has_begun or self.window_bytes + step_bytes >= _LEAST_BYTES_PER_S * self._timeout_s:
            self._has_begun = True
            self.alive()
        else:
            self.window_bytes += step_bytes
        self._gained_bytes += max(count - self._reached_bytes, 0)
        self._reached_bytes = max(count, self._reached_bytes)

    def is_enough(self, now_s: float) -> bool:
        """Return whether the transfer got on fast enough since this was last true. Only bytes that no try before has
        reached count."""
        wanted_bytes = _LEAST_BYTES_PER_S * (now_s - self._gained_since_s)
        if not self._gained_bytes or self._gained_bytes < wanted_bytes:
            return False
        self._gained_bytes, self._gained_since_s = 0, now_s
        return True


class _Download:
    """One object on its way to a file."""

    def __init__(self, client: HttpClient, path: str, query: str, fd: int, most_bytes: int, moved: Moved) -> None:
        self._client = client
        self._path = path
        self._query = query
        self._fd = fd
        self._most_bytes = most_bytes
        self._moved = moved
        self._done_bytes = 0
        self._validator = ""
        self._whole_bytes: int | None = None
        self._has_ranges = True

    async def attempt(self, progress: _Progress) -> int:
        headers = {}
        asks_for_rest = bool(self._done_bytes and self._validator and self._has_ranges)
        if asks_for_rest:
            headers = {"Range": f"bytes={self._done_bytes}-", "If-Range": self._validator}
        else:
            self._begin_anew()
        url = self._client.url(self._path, self._query)
        async with self._client._answered("GET", url, self._path, progress, headers=headers) as response:
            if response.status == 416:
                self._begin_anew()
                raise _Passing(StorageError(f"the object {self._path} changed while it was fetched"))
            if response.status not in (200, 206):
                await self._client._accepted(response, f"GET of {self._path}", frozenset())
            size_bytes = self._size(response, asks_for_rest)
            if self._most_bytes and (size_bytes or 0) > self._most_bytes:
                raise self._too_large()
            async for piece in response.content.iter_chunked(_PIECE_BYTES):
                if self._most_bytes and self._done_bytes + len(piece) > self._most_bytes:
                    raise self._too_large()
                await to_its_end(asyncio.get_running_loop().run_in_executor(None, write_all, self._fd, piece))
                self._done_bytes += len(piece)
                self._moved(len(piece))
                progress.reached(self._done_bytes, len(piece))
        if size_bytes is not None and self._done_bytes != size_bytes:
            raise _Passing(
                StorageError(f"{self._path} came with {self._done_bytes} bytes of the {size_bytes} that were announced")
            )
        return self._done_bytes

    def _size(self, response: aiohttp.ClientResponse, asked_for_rest: bool) -> int | None:
        """The size of the whole object, if the server tells it; where it does not go on, all begins anew."""
        told = response.headers.get("Content-Range", "")
        if response.status == 206:
            part = _CONTENT_RANGE.fullmatch(told)
            # Many ignore If-Range (Ceph): the rest may be that of another object.
            is_same = response.headers.get("ETag") == self._validator
            if is_same and part is not None and int(part[1]) == self._done_bytes:
                return None if part[2] == "*" else int(part[2])
        elif not asked_for_rest or (not told and response.content_length == self._whole_bytes):
            self._begin_anew()
            etag = response.headers.get("ETag", "")
            # A weak one says that the object means the same, not that its bytes are the same (RFC 9110, 8.8.1).
            self._validator = "" if etag.startswith("W/") else etag
            self._whole_bytes = response.content_length
            return self._whole_bytes
        # Some send the rest as if it were the whole (rclone's S3, with 200).
        self._has_ranges = False
        raise _Passing(StorageError(f"{self._client._provider} sent another part of {self._path} than asked for"))

    def _begin_anew(self) -> None:
        if self._done_bytes:
            self._moved(-self._done_bytes)
            self._done_bytes = 0
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)

    def _too_large(self) -> InputTooLarge:
        return InputTooLarge(f"the object {self._path} is over {self._most_bytes} bytes (max_input_size)")


# Those that the request of this task has made.
_sockets: contextvars.ContextVar[list[socket.socket]] = contextvars.ContextVar("sockets")


def _socket(address: tuple[Any, ...]) -> socket.socket:
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
    _sockets.get().append(made)
    return made


def _abort(sockets: list[socket.socket]) -> None:
    """Reset connections whose request failed or is cancelled.

    asyncio would keep one open until all that was written is sent, which to a server that stands still is never; and
    the server would hold what it has of a file locked.
    """
    for each in sockets:
        with contextlib.suppress(OSError):  # closed already
            each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            each.shutdown(socket.SHUT_RDWR)


def _retry_after_s(response: aiohttp.ClientResponse) -> float:
    told = response.headers.get("Retry-After", "")
    return float(told) if told.isdecimal() and len(told) < 6 else 0.0


def _reason(error: OSError) -> str:
    # asyncio puts a text of its own into strerror.
    return os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or type(error).__name__


def _printable(text: str | None) -> str:
    return (text or "").encode("ascii", "backslashreplace").decode()[:100]
