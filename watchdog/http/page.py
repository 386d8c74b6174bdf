"""The try-it page: one HTML document with which a person calls the function from a browser.

::

    watchdog/page/index.html   {facts} {style} {script}
                                  │       │       └── the *.js files of SCRIPTS, one after the other
                                  │       └── style.css
                                  └── what the page must know about this server, as JSON

The page is put together at the first request. It contains no text of a caller or of a script. The browser runs only the
script and the style whose hashes the Content-Security-Policy names, and connects only to this server. A call of the
page is an ordinary ``POST``, so it needs the token if calls need one. The page itself needs no token.
"""

from __future__ import annotations

import base64
import hashlib
import html
from pathlib import Path

import msgspec

from ..settings.load import Configuration
from .http_message import Request, Response

DIRECTORY = Path(__file__).parent.parent / "page"
# All of them are one module in the page, so a file may use the names of the others.
SCRIPTS = ("text.js", "stream.js", "log.js", "outputs.js", "request.js", "run.js", "main.js")
# The page shows a picture and plays a sound from memory (blob:), and an SVG and its own icon from text (data:).
_POLICY = (
    "default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src blob: data:; "
    "media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)


def page(configuration: Configuration) -> Response:
    """Return the page of a server."""
    style = _read("style.css")
    script = "".join(_read(name) for name in SCRIPTS)
    facts = html.escape(msgspec.json.encode(_facts(configuration)).decode())
    # Split the page at its markers first. str.replace would also replace a marker inside a text that is inserted.
    before_facts, _, rest = _without_indentation(_read("index.html")).partition("{facts}")
    before_style, _, rest = rest.partition("{style}")
    before_script, _, end = rest.partition("{script}")
    document = "".join((before_facts, facts, before_style, style, before_script, script, end))
    headers = [
        ("Content-Type", "text/html; charset=utf-8"),
        ("Content-Security-Policy", _POLICY.format(script=_source(script), style=_source(style))),
        ("Referrer-Policy", "no-referrer"),
        ("X-Frame-Options", "DENY"),
        ("Cross-Origin-Resource-Policy", "same-origin"),
        ("Cache-Control", "no-cache"),
    ]
    return Response(200, headers, document.encode())


def is_navigation(request: Request) -> bool:
    """Return whether a person opened the URL in a browser, in a tab of its own and without parameters.

    Browsers send these headers if the server has TLS or the host is local (W3C Fetch Metadata). A script of a page and
    other programs do not send them. A query is for the function, so a URL with a query calls the function.
    """
    headers = request.headers
    return (
        headers.get("Sec-Fetch-Mode") == "navigate"
        and headers.get("Sec-Fetch-Dest", "document") == "document"
        and not request.query_string
    )


def redirect(base_path: str) -> Response:
    """Return the redirect from ``/`` to the page.

    A proxy may have removed the beginning of the path, so the target is relative to the URL that the browser opened.
    If the platform names the whole path, the target begins with this path. Such a target is also right
    if the URL that the browser opened does not end with a slash.
    """
    headers = [
        ("Location", f"{base_path}/_/try" if base_path else "_/try"),
        ("Cache-Control", "no-store"),
        ("Vary", "Sec-Fetch-Mode, Sec-Fetch-Dest"),
    ]
    return Response(303, headers)


def _facts(configuration: Configuration) -> dict[str, object]:
    """Return what the page must know. This is almost nothing if the description of the server needs the token, too."""
    settings = configuration.settings
    has_token = settings.auth_token is not None
    if has_token and settings.auth_all:
        return {"has_token": True}
    if settings.fprocess is not None:
        kind = "a classic function"
    elif settings.warm:
        kind = "a warm script, which stays alive between calls"
    else:
        kind = "a script, which starts for each call"
    return {
        "has_token": has_token,
        "service": configuration.service_name,
        "kind": kind,
        "max_input_size_bytes": settings.max_input_size_bytes,
        "exec_timeout_s": settings.exec_timeout_s,
    }


def _read(name: str) -> str:
    return (DIRECTORY / name).read_text("utf-8")


def _without_indentation(document: str) -> str:
    """Return an HTML document that looks the same in a browser, and is shorter."""
    return "\n".join(line.lstrip(" ") for line in document.split("\n"))


def _source(text: str) -> str:
    """Return the source expression that allows exactly this text (CSP Level 3, section 2.3.1)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
