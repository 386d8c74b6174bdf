"""Send one HTTP request to a storage: its URL, redirects, authorization, and the meaning of the answer."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Mapping
from urllib.parse import quote

import aiohttp
import msgspec
from yarl import URL

from ..errors import ObjectMissing, StorageError
from ..settings.storage_providers import Provider
from ..system.connect_error import why_not_connected, why_tls_fails
from .connections import Connections, aborted_on_failure
from .dialect import Dialect
from .retry import Progress, Transient

# The longest wait for 100 Continue, which some servers never send.
_CONTINUE_S = 3.0
_BODY_MOST_BYTES = 64 * 1024
_MOST_REDIRECTS = 5
# The server may answer a request with one of these, and accept the same request later.
_TEMPORARY = frozenset({408, 423, 425, 429, 500, 502, 503, 504})
_REDIRECTS = frozenset({301, 302, 307, 308})


class Answered(msgspec.Struct, frozen=True):
    """A small answer. The case of the names in ``headers`` has no meaning. ``body``: 64 KiB at most."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Requests:
    """Requests to one provider. ``timeout_s``: the longest silence of the server."""

    def __init__(self, provider: Provider, dialect: Dialect, *, timeout_s: float, ca_file: str | None) -> None:
        self.provider = provider
        self._dialect = dialect
        self._timeout_s = timeout_s
        self._connections = Connections(provider, timeout_s=timeout_s, ca_file=ca_file)

    def url(self, path: str, query: str = "") -> URL:
        """Return the URL of a path. The path is plain text, and ``query`` is encoded already."""
        encoded = quote(path, safe="/~")
        return URL(f"{self.provider.endpoint}/{encoded}{'?' + query if query else ''}", encoded=True)

    async def close(self) -> None:
        await self._connections.close()

    @contextlib.asynccontextmanager
    async def send(
        self,
        method: str,
        url: URL,
        path: str,
        progress: Progress,
        *,
        headers: Mapping[str, str] = {},
        body: bytes | Callable[[], AsyncIterator[bytes]] | None = None,
        asks_first: bool = False,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send one request, follow redirects, and yield the answer.

        Raises:
            Transient: the connection was lost, or the server was silent.
            StorageError: the server redirects too often or to an unusable URL, or its certificate is not trusted.
        """
        try:
            with aborted_on_failure():
                async with asyncio.timeout(self._timeout_s) as bound:
                    progress.bounded_by(bound, self._timeout_s)
                    connected = functools.partial(self._wait_for_continue, bound) if asks_first else None
                    for _ in range(_MOST_REDIRECTS + 1):
                        async with self._connections.session(for_large=callable(body)).request(
                            method,
                            url,
                            headers=self._headers_for(method, url, headers),
                            data=body() if callable(body) else body,
                            allow_redirects=False,
                            expect100=asks_first,
                            ssl=self._connections.trust,
                            trace_request_ctx=connected,
                        ) as response:
                            progress.alive()
                            connected = None
                            # S3 answers 301 without a URL if the bucket is in another region.
                            if response.status not in _REDIRECTS or "Location" not in response.headers:
                                yield response
                                return
                            url = self._redirected(url, response, method)
                    raise StorageError(f"{self.provider} redirects the {method} of {path} again and again")
        except BaseException as error:
            raise self._translated(error, method, path, progress) from None

    def _wait_for_continue(self, bound: asyncio.Timeout) -> None:
        # The wait begins here, because a slow connection does not show that the server never sends 100 Continue.
        bound.reschedule(asyncio.get_running_loop().time() + min(self._timeout_s, _CONTINUE_S))

    async def accepted(
        self, response: aiohttp.ClientResponse, what: str, accepted: frozenset[int], final: frozenset[int] = frozenset()
    ) -> Answered:
        """Return the answer if its status is in ``accepted`` and its body describes no error.

        Raises:
            Transient: the request failed, and a later request may succeed. The status is not in ``final``.
            StorageError: the request failed, and a later request would fail, too. Or the status is in ``final``.
        """
        body = await response.content.read(_BODY_MOST_BYTES)
        while len(body) < _BODY_MOST_BYTES and (more := await response.content.read(_BODY_MOST_BYTES - len(body))):
            body += more
        status = response.status
        error = self._dialect.error(status, response.headers, body, what, response.url.raw_query_string)
        if error is None and status in accepted:
            return Answered(status, response.headers, body)
        error = error or self._error(status, response.reason, what)
        if status in _TEMPORARY - final or (status < 400 and status in accepted):
            raise Transient(error, _retry_after_s(response))
        raise error

    def _translated(self, error: BaseException, method: str, path: str, progress: Progress) -> BaseException:
        """Return an error of aiohttp or the system as ``Transient`` or ``StorageError``. Other errors do not change."""
        what = f"the {method} of {path}"
        if isinstance(error, (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError)):
            return self._untrusted(error)
        # This error of aiohttp is a TimeoutError, too.
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            return self._unreachable(what, f"no connection could be made in {self._connections.connect_s:g} s")
        if isinstance(error, TimeoutError):
            how = f"let only {progress.window_bytes} bytes through in" if progress.window_bytes else "was silent for"
            text = f"{self.provider} {how} {self._timeout_s:g} s during {what} (storage_timeout)"
            return Transient(StorageError(text), is_silence=True)
        if isinstance(error, aiohttp.ClientConnectorError):
            return self._unreachable(what, why_not_connected(error.os_error))
        if isinstance(error, (aiohttp.ClientError, ConnectionError)):
            return Transient(StorageError(f"{self.provider} closed the connection during {what}"))
        return error

    def _unreachable(self, what: str, why: str) -> Transient:
        return Transient(
            StorageError(f"{self.provider} cannot be reached for {what}: {why}; check its address, and that it runs")
        )

    def _untrusted(self, error: aiohttp.ClientConnectorError | aiohttp.ClientConnectorCertificateError) -> StorageError:
        return StorageError(
            f"{self.provider} has a certificate that is not trusted ({why_tls_fails(error)}): give the certificate of "
            "its authority as ca_file (PEM) of the storage provider, or set its verify to false"
        )

    def _error(self, status: int, reason: str | None, what: str) -> StorageError:
        if status in (404, 410):
            return ObjectMissing(
                f"{self.provider} answers the {what} with {status}: there is no such file or directory"
            )
        if status in (401, 403):
            return StorageError(
                f"{self.provider} refuses the {what} ({status}): check login, password or token, and permissions"
            )
        if status in _REDIRECTS:
            return StorageError(f"{self.provider} redirects the {what} without a valid URL")
        if status in (413, 507):
            return StorageError(f"{self.provider} has no space for the {what} ({status}): free some space there")
        return StorageError(f"{self.provider} answers the {what} with {status} ({_printable(reason)})")

    def _redirected(self, url: URL, response: aiohttp.ClientResponse, method: str) -> URL:
        try:
            target = url.join(URL(response.headers["Location"], encoded=True))
            # `host` raises ValueError if the port is not possible.
            if not target.host and target.scheme in ("http", "https"):
                raise ValueError
        except ValueError:
            raise StorageError(f"{self.provider} redirects a {method} without a valid URL") from None
        if target.scheme not in ("http", "https") or (url.scheme == "https" and target.scheme == "http"):
            raise StorageError(f"{self.provider} redirects a {method} to {target.scheme}, which would not be safe")
        return target

    def _headers_for(self, method: str, url: URL, headers: Mapping[str, str]) -> dict[str, str]:
        if url.origin() != URL(self.provider.endpoint).origin():
            return dict(headers)
        return {**headers, **self._dialect.headers(method, url, headers)}


def _retry_after_s(response: aiohttp.ClientResponse) -> float:
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isdecimal() and len(value) < 6 else 0.0


def _printable(text: str | None) -> str:
    return (text or "").encode("ascii", "backslashreplace").decode()[:100]
