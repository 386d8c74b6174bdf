"""Describe how the kinds of storage differ over HTTP: authorization and errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from yarl import URL

from ..errors import StorageError


class Dialect(Protocol):
    """The authorization of requests to one kind of storage, and the errors in its answers."""

    def headers(self, method: str, url: URL, headers: Mapping[str, str]) -> Mapping[str, str]:
        """Return the headers that authorize a request. ``headers``: the request's other headers.

        The authorizing headers are made for each attempt, and sent only to the provider's own origin.
        """

    def error(self, status: int, headers: Mapping[str, str], body: bytes, what: str, query: str) -> StorageError | None:
        """Return the error that the headers or the body of an answer describe; None if they describe none.

        ``what``: the request in words, such as ``GET of a/b``; ``query``: the query of the request, encoded.
        """


class WithHeaders:
    """A dialect in which the same headers authorize each request, and only the status of an answer shows an error."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = headers

    def headers(self, method: str, url: URL, headers: Mapping[str, str]) -> Mapping[str, str]:
        return self._headers

    def error(self, status: int, headers: Mapping[str, str], body: bytes, what: str, query: str) -> StorageError | None:
        return None
