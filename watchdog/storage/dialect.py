"""What makes one kind of storage differ from another, over HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from yarl import URL

from ..errors import StorageError


class Dialect(Protocol):
    """How requests to a storage are authorized, and what its answers say beside their status."""

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
