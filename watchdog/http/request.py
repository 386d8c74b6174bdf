"""Read what the headers of a request ask for."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping
from hmac import compare_digest
from urllib.parse import unquote

from aiohttp import web

from ..errors import BadInput, quoted
from ..input import content_disposition
from ..input.detect import ENCODINGS, BodyHints
from ..output.accept import AnswerPreference, choose_form

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
READING_METHODS = ("GET", "HEAD")  # of the server's own paths
# The User-Agent of the kubelet's probes, whatever their path (Kubernetes, pkg/probe/http).
_KUBERNETES_PROBE = "kube-probe/"
_NOT_FOR_SCRIPTS = frozenset({"authorization", "proxy-authorization", "cookie", "proxy"})
_CALL_ID = re.compile(r"[!-~]{1,256}")
_HEADER_NAME = re.compile(r"[A-Za-z0-9_-]+")
_LONGEST_KEPT = 256  # characters of a header's name whose variable is kept for the next call


def preference_of(request: web.BaseRequest) -> AnswerPreference:
    return choose_form(", ".join(request.headers.getall("Accept", [])) or None, request.query.get("output"))


def body_hints(request: web.BaseRequest) -> BodyHints:
    headers = request.headers
    encoding = request.query.get("input", headers.get("X-Input-Encoding"))
    if encoding is not None and encoding.lower() not in ENCODINGS:
        raise BadInput(f"the input encoding {quoted(encoding)} is not known; known are {', '.join(ENCODINGS)}")
    return BodyHints(
        content_type=headers.get("Content-Type", ""),
        content_encoding=", ".join(headers.getall("Content-Encoding", ())),
        encoding=encoding and encoding.lower(),
        file_name=_file_name(request),
    )


def is_token(authorization: str, token: str) -> bool:
    """Whether a header holds the token, in a time that does not tell how much of it is right."""
    scheme, _, given = authorization.partition(" ")
    is_right = compare_digest(os.fsencode(given.strip()), os.fsencode(token))
    return is_right and scheme.lower() == "bearer"


def call_id_of(request: web.BaseRequest, fallback: str) -> str:
    given = request.headers.get("X-Call-Id")
    if given is None:
        return fallback
    if not _CALL_ID.fullmatch(given):
        raise BadInput("X-Call-Id must be 1 to 256 visible ASCII characters without spaces")
    return given


def _file_name(request: web.BaseRequest) -> str | None:
    if (name := request.headers.get("X-Filename")) is not None:
        return _percent_decoded(name, "X-Filename")
    disposition = request.headers.get("Content-Disposition")
    if disposition is not None and (name := content_disposition.file_name(disposition)) is not None:
        return name
    return request.query.get("filename")


def _percent_decoded(text: str, what: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise BadInput(f"{what}: {quoted(text)} is not percent-encoded UTF-8") from None


def base_path_of(environ: Mapping[str, str]) -> str:
    """Return the path below which OSCAR exposes the service, or the empty string: `/system/services/NAME/exposed`.

    OSCAR's ingress removes it from a request's path, except with `rewrite_target: true`; its probes always keep it
    (`pkg/backends/resources/expose.go`).
    """
    path = environ.get("OSCAR_SERVICE_BASE_PATH", "").strip("/")
    return "/" + path if path else ""


def below(base_path: str, path: str) -> str:
    """Return the path without the base path before it."""
    if not base_path or not path.startswith(base_path) or path[len(base_path) :][:1] not in ("", "/"):
        return path
    return path[len(base_path) :] or "/"


def is_probe(request: web.BaseRequest) -> bool:
    """Return whether the sender only asks if the server lives.

    MinIO sends HEAD to see whether a webhook is there, and link checkers do so. Neither wants the script to run.
    """
    if request.method == "HEAD":
        return True
    return request.method == "GET" and request.headers.get("User-Agent", "").startswith(_KUBERNETES_PROBE)


def cgi_variables(request: web.BaseRequest, base_path: str) -> dict[str, str]:
    """Method, path, query and headers under the names of OpenFaaS's classic watchdog.

    It is a Go program, and Go writes `X-Api-Key` however a header's name was sent (net/textproto).
    """
    length = "-1" if request.content_length is None else str(request.content_length)
    if request.content_length is None and not request.body_exists:
        length = "0"
    # A request through a proxy may have the whole URL for its target (RFC 9112, section 3.2.2).
    target = request.raw_path if request.raw_path.startswith("/") else request.url.raw_path_qs
    variables = {
        "Http_Method": request.method,
        "Http_Path": below(base_path, target.partition("?")[0]),
        "Http_Query": target.partition("?")[2],
        "Http_Host": request.headers.get("Host", ""),
        "Http_ContentLength": length,
        "Http_Content_Length": length,
    }
    with_underscores = []
    for name, value in request.headers.items():
        kept = _variable_of if len(name) <= _LONGEST_KEPT else _variable_of.__wrapped__
        if (variable := kept(name)) is None:
            continue
        if "_" in name:
            with_underscores.append((variable, value))
        else:
            variables.setdefault(variable, value)
    # A proxy that vouches for `X-1` may let the caller's `X_1` through, before it or after it.
    if with_underscores:
        taken = {variable.lower() for variable in variables}
        for variable, value in with_underscores:
            if variable.lower() not in taken:
                variables.setdefault(variable, value)
    return variables


@functools.lru_cache(maxsize=128)
def _variable_of(name: str) -> str | None:
    """The variable of a header; None if it has none."""
    if name.lower() in _NOT_FOR_SCRIPTS or not _HEADER_NAME.fullmatch(name):
        return None
    return "Http_" + "_".join(map(str.capitalize, name.split("-")))
