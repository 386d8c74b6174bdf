"""The service that is called: its URL, its token, the proxy on the way, and the certificates that are trusted."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from urllib.parse import parse_qsl, urlsplit

import msgspec
from yarl import URL

from .. import __version__
from ..errors import ConfigError
from ..settings.kinds import TOKEN, parse_token
from ..settings.text import why_unreadable
from ..system.certificates import system_bundle

_TOKEN_FILE_MOST_BYTES = 65536
# Parameters of the query that `watchdog invoke` sets itself, and the flag for each.
_OWN_PARAMETERS = {"output": "--output", "input": "--input"}
_LOOPBACK = ("localhost", "127.", "[::1]", "::1")


class Service(msgspec.Struct, frozen=True):
    """A service, and how to reach it.

    ``url``: without a fragment. ``proxy``: the URL of the proxy; None for a direct connection. ``trust``: checks the
    certificate of the service; None if the URL begins with ``http:``.
    """

    url: str
    headers: dict[str, str]
    proxy: str | None
    trust: ssl.SSLContext | None

    def url_for(self, form: str) -> URL:
        """Return the URL that asks for this form of answer."""
        return URL(f"{self.url}{'&' if '?' in self.url else '?'}output={form}", encoded=True)


def service(url: str, *, token_file: str | None, ca_file: str | None, environ: Mapping[str, str]) -> Service:
    """Check what the user gave, and return the service.

    Raises:
        ConfigError: the URL, the token or the certificates cannot be used.
    """
    url = url.partition("#")[0]
    host, is_tls = _checked(url)
    headers = {"User-Agent": f"oscar-watchdog-invoke/{__version__}"}
    if token_file is not None:
        headers["Authorization"] = f"Bearer {_token(token_file)}"
    return Service(url, headers, _proxy_for(url, host, environ), _trust(ca_file, environ) if is_tls else None)


def _checked(url: str) -> tuple[str, bool]:
    """Return the host with its port, and whether the connection uses TLS."""
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ConfigError([f"the URL {url!r} has a character that a URL cannot contain; percent-encode it (%20)"])
    if not url:
        raise ConfigError(["the URL is empty; give the URL of the service, for example http://localhost:8080"])
    scheme, separator, _ = url.partition("://")
    if not separator:
        if os.path.isfile(url):
            raise ConfigError([f"the URL {url!r} is the name of a file; give the URL before the files"])
        scheme, separator, rest = url.partition(":/")
        if separator and scheme.lower() in ("http", "https"):
            raise ConfigError([f"the URL {url!r} has only one slash after {scheme}:; use {scheme}://{rest}"])
        host = url.partition("/")[0]
        likely = "http" if host.startswith(_LOOPBACK) else "https"
        raise ConfigError([f"the URL {url!r} does not begin with http:// or https://; use {likely}://{url}"])
    if scheme.lower() not in ("http", "https"):
        raise ConfigError([f"the URL {url!r} begins with {scheme}://; use http:// or https://"])
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        URL(url, encoded=True)
    except ValueError as error:
        raise ConfigError([f"the URL {url!r} cannot be read: {error}"]) from None
    if not host:
        raise ConfigError([f"the URL {url!r} has no host; use http://HOST:PORT/PATH"])
    if "@" in parts.netloc:
        raise ConfigError(
            ["the URL contains a user name or password (not shown), which others can read (ps); use --token-file"]
        )
    for name, _ in parse_qsl(parts.query, keep_blank_values=True):
        if name in _OWN_PARAMETERS:
            raise ConfigError([f"the URL has the parameter {name}=; use {_OWN_PARAMETERS[name]} instead"])
    return (host if port is None else f"{host}:{port}"), scheme.lower() == "https"


def _token(path: str) -> str:
    """Return the token in a file, which may also be a pipe: ``--token-file <(pass show service)``."""
    try:
        with open(path, "rb") as file:
            content = file.read(_TOKEN_FILE_MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError([f"the token file {path}: {why_unreadable(error)}"]) from None
    if len(content) > _TOKEN_FILE_MOST_BYTES:
        raise ConfigError([f"the token file {path} has over {_TOKEN_FILE_MOST_BYTES} bytes; give a file with a token"])
    try:
        return parse_token(content.decode("ascii"))
    except ValueError:
        found = "has no usable token (not shown)" if content.strip() else "is empty"
        raise ConfigError([f"the token file {path} {found}; expected {TOKEN.accepts}"]) from None


def _proxy_for(url: str, host: str, environ: Mapping[str, str]) -> str | None:
    """Return the proxy that the environment names for this URL, with curl's rules.

    ``HTTP_PROXY`` in capitals is not read: in a CGI program, the caller's header ``Proxy`` would set it.
    """
    from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]  # as urllib itself uses it

    scheme = urlsplit(url).scheme
    names = [f"{scheme}_proxy", "HTTPS_PROXY" if scheme == "https" else "", "all_proxy", "ALL_PROXY"]
    name = next((name for name in names if environ.get(name)), None)
    if name is None or proxy_bypass_environment(host, {"no": environ.get("no_proxy") or environ.get("NO_PROXY", "")}):
        return None
    proxy = environ[name]
    if "://" not in proxy:
        proxy = f"http://{proxy}"
    try:
        parts = urlsplit(proxy)
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 0) >= 0
    except ValueError:
        is_usable = False
    if not is_usable:
        raise ConfigError([f"the variable {name} has no usable proxy (not shown); expected http://HOST:PORT"])
    return proxy


def _trust(ca_file: str | None, environ: Mapping[str, str]) -> ssl.SSLContext:
    # Not ssl.create_default_context(), which reads the names of files from the environment.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    path = ca_file or environ.get("SSL_CERT_FILE") or system_bundle()
    try:
        context.load_verify_locations(path)
    except OSError as error:  # ssl.SSLError is an OSError, too
        flag = "--ca-file" if ca_file else "SSL_CERT_FILE"
        why = "it contains no certificate" if isinstance(error, ssl.SSLError) else error.strerror
        raise ConfigError([f"the certificates in {path} ({flag}) cannot be used: {why}; give a PEM file"]) from None
    return context
