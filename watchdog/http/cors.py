"""Let web pages of other origins call the server (CORS, part of the WHATWG Fetch standard).

Before some requests, the browser asks with OPTIONS whether the page may send them (a preflight). The server answers all
other requests as usual, and the browser shows the answer to the page only if the headers of the answer allow this. So
every answer needs these headers, also errors. The connection adds them to each answer, and no other code knows them.

The answers never allow credentials: a bearer token is an ordinary header, and the server uses no cookies. So ``*`` is
allowed in each of these headers, and in ``cors_origins``. For browsers, ``*`` does not include the request header
Authorization, so the answer to a preflight names this header.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from multidict import CIMultiDict

from ..settings.origins import ANY
from .http_message import Request, Response

_PREFIX = "access-control-"
# A browser keeps the answer to a preflight for at most this time. It is the most that Chromium accepts.
_MAX_AGE_S = 7200


class Cors:
    """The permission for the pages of some origins.

    Args:
        origins: the origins, as browsers send them; or only ``*``.
        methods: the methods that these pages may use.
    """

    def __init__(self, origins: Sequence[str], methods: Iterable[str]) -> None:
        self._origins = frozenset(origins)
        self._is_for_all = ANY in self._origins
        self._of_preflight = {
            "Access-Control-Allow-Methods": ", ".join(methods),
            "Access-Control-Allow-Headers": "*, Authorization",
            "Access-Control-Max-Age": str(_MAX_AGE_S),
        }

    def allows_preflight(self, request: Request) -> bool:
        """Return whether a request is a preflight for a page that may call."""
        return _is_preflight(request) and self._allowed(request) is not None

    def add_headers(self, response: Response, request: Request | None) -> None:
        """Add the headers that let the page read the response.

        Headers of this kind that the script chose are removed. If the answer had two headers with the same name, the
        browser would accept neither. And a script must not allow more than ``cors_origins`` allows.

        Args:
            request: None if the server could not read the head of the request.
        """
        headers = response.headers
        for name in {name.lower() for name in headers if name.lower().startswith(_PREFIX)}:
            headers.popall(name)
        if not self._is_for_all:
            _add_vary(headers)
        allowed = self._allowed(request)
        if allowed is None:
            return
        headers["Access-Control-Allow-Origin"] = allowed
        if request is None or not _is_preflight(request):
            headers["Access-Control-Expose-Headers"] = "*"
            return
        headers.update(self._of_preflight)
        if request.headers.get("Access-Control-Request-Private-Network") == "true":
            # The server is in a private network, and the page is not. The operator has allowed the page.
            headers["Access-Control-Allow-Private-Network"] = "true"

    def _allowed(self, request: Request | None) -> str | None:
        """Return the value of Access-Control-Allow-Origin, or None if the page must not read the answer."""
        if self._is_for_all:
            return ANY
        origin = None if request is None else request.headers.get("Origin")
        return origin if origin in self._origins else None


def _is_preflight(request: Request) -> bool:
    return (
        request.method == "OPTIONS"
        and "Origin" in request.headers
        and "Access-Control-Request-Method" in request.headers
    )


def _add_vary(headers: CIMultiDict[str]) -> None:
    """Let caches keep one answer for each origin. A ``Vary`` that the script chose is kept."""
    given = ", ".join(headers.popall("Vary", []))
    names = {name.strip().lower() for name in given.split(",")}
    if "*" not in names and "origin" not in names:
        given = f"{given}, Origin" if given.strip() else "Origin"
    headers["Vary"] = given
