"""Read the headers of a request: its options, its call id, its token, and the variables for the script."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping

from ..errors import AnswerNotAvailable, BadInput, quoted
from ..input import content_disposition
from ..input.detect import ENCODINGS, BodyHints
from ..output.accept import AnswerForm, AnswerPreference, choose_form
from ..system.pattern import pattern
from .http_message import Request

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
READING_METHODS = ("GET", "HEAD")  # for the server's own paths
OWN_PATHS = "/_/"  # all paths that begin with this belong to the server
# The User-Agent of the kubelet's probes begins with this text, for every path (Kubernetes, pkg/probe/http).
_KUBERNETES_PROBE = "kube-probe/"
_NOT_FOR_SCRIPTS = frozenset({"authorization", "proxy-authorization", "cookie", "proxy"})
_CALL_ID = pattern(r"[!-~]{1,256}")
_HEADER_NAME = pattern(r"[A-Za-z0-9_-]+")
# Characters. The variable for a header is cached if the header's name is not longer than this.
_LONGEST_CACHED = 256


def preference_of(request: Request) -> AnswerPreference:
    return choose_form(", ".join(request.headers.getall("Accept", [])) or None, request.query.get("output"))


def wants_events(request: Request) -> bool:
    """Return whether the caller of a classic function wants a stream of events.

    The caller cannot choose any other form of the answer.
    """
    if request.query_string and request.query.get("output", "").lower() == AnswerForm.EVENTS.value:
        return True
    accept = ", ".join(request.headers.getall("Accept", []))
    if "event-stream" not in accept.lower():
        return False
    try:
        return choose_form(accept, None).form is AnswerForm.EVENTS
    except (AnswerNotAvailable, BadInput):
        return False


def is_reconnection(request: Request) -> bool:
    """Return whether the ``EventSource`` of a browser sends its request again, because its stream of events has ended.

    An ``EventSource`` also does so after the last event. So each page that uses one would run the script again and
    again. An ``EventSource`` stops if the answer is 204 (WHATWG HTML, section 9.2.3). Other clients decide for
    themselves whether to call again, and use POST.
    """
    return request.method == "GET" and "Last-Event-ID" in request.headers


def body_hints(request: Request) -> BodyHints:
    headers = request.headers
    encoding = request.query.get("input", headers.get("X-Input-Encoding"))
    if encoding is not None and encoding.lower() not in ENCODINGS:
        raise BadInput(f"the input encoding {quoted(encoding)} is not known; use one of {', '.join(ENCODINGS)}")
    return BodyHints(
        content_type=headers.get("Content-Type", ""),
        content_encoding=", ".join(headers.getall("Content-Encoding", ())),
        encoding=encoding and encoding.lower(),
        file_name=_file_name(request),
    )


def is_token(authorization: str, token: str) -> bool:
    """Return whether a header has the token. The time of this check does not depend on how many characters match."""
    import hmac  # loads OpenSSL (1 ms, 4 MiB), which a server without a token does not need

    scheme, _, given = authorization.partition(" ")
    is_right = hmac.compare_digest(os.fsencode(given.strip()), os.fsencode(token))
    return is_right and scheme.lower() == "bearer"


def call_id_of(request: Request, fallback: str) -> str:
    given = request.headers.get("X-Call-Id")
    if given is None:
        return fallback
    if not _CALL_ID.fullmatch(given):
        raise BadInput("X-Call-Id must be 1 to 256 visible ASCII characters without spaces")
    return given


def _file_name(request: Request) -> str | None:
    if (name := request.headers.get("X-Filename")) is not None:
        return _percent_decoded(name, "X-Filename")
    disposition = request.headers.get("Content-Disposition")
    if disposition is not None and (name := content_disposition.file_name(disposition)) is not None:
        return name
    return request.query.get("filename")


def _percent_decoded(text: str, what: str) -> str:
    from urllib.parse import unquote

    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise BadInput(f"{what}: {quoted(text)} is not percent-encoded UTF-8") from None


def base_path_of(environ: Mapping[str, str]) -> str:
    """Return the path at which OSCAR exposes the service (`/system/services/NAME/exposed`), or an empty string.

    OSCAR's ingress removes this prefix from the path of a request, except with `rewrite_target: true`. Probes always
    have the prefix (`pkg/backends/resources/expose.go`).
    """
    path = environ.get("OSCAR_SERVICE_BASE_PATH", "").strip("/")
    return "/" + path if path else ""


def without_base_path(base_path: str, path: str) -> str:
    """Return the path without the base path at its start."""
    if not base_path or not path.startswith(base_path) or path[len(base_path) :][:1] not in ("", "/"):
        return path
    return path[len(base_path) :] or "/"


def is_probe(request: Request) -> bool:
    """Return whether a request only checks that the server is alive.

    MinIO sends HEAD to check that a webhook exists, and link checkers send HEAD, too. Such a request must
    not run the script.
    """
    return request.method == "HEAD" or is_probe_of_kubernetes(request)


def is_probe_of_kubernetes(request: Request) -> bool:
    """Return whether the kubelet sends a request, to check that the server is alive. It may have any path."""
    if request.method not in READING_METHODS:
        return False
    return request.headers.get("User-Agent", "").startswith(_KUBERNETES_PROBE)


def cgi_variables(request: Request, base_path: str) -> dict[str, str]:
    """Return the method, path, query and headers as variables, with the names of OpenFaaS's classic watchdog.

    That watchdog is a Go program. Go always changes the name of a header to the form `X-Api-Key` (net/textproto).
    """
    length = "-1" if request.content_length is None else str(request.content_length)
    if request.content_length is None and not request.has_body:
        length = "0"
    variables = {
        "Http_Method": request.method,
        "Http_Path": without_base_path(base_path, request.raw_path),
        "Http_Query": request.query_string,
        "Http_Host": request.headers.get("Host", ""),
        "Http_ContentLength": length,
        "Http_Content_Length": length,
    }
    with_underscores = []
    for name, value in request.headers.items():
        variable_of = _variable_of if len(name) <= _LONGEST_CACHED else _variable_of.__wrapped__
        if (variable := variable_of(name)) is None:
            continue
        if "_" in name:
            with_underscores.append((variable, value))
        else:
            variables.setdefault(variable, value)
    # A proxy may set the header `X-1`, which scripts trust, and pass on the caller's own header `X_1`. Both headers
    # give the same variable. So this variable always gets the value of `X-1`.
    if with_underscores:
        taken = {variable.lower() for variable in variables}
        for variable, value in with_underscores:
            if variable.lower() not in taken:
                variables.setdefault(variable, value)
    return variables


@functools.lru_cache(maxsize=128)
def _variable_of(name: str) -> str | None:
    """Return the name of the variable for a header, or None if scripts do not get this header."""
    if name.lower() in _NOT_FOR_SCRIPTS or not _HEADER_NAME.fullmatch(name):
        return None
    return "Http_" + "_".join(map(str.capitalize, name.split("-")))
