"""Web pages of other origins: preflights, and the headers that each answer needs so that a page may read it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from every_answer import SHELL, every_answer, head_of, metrics_answers, request
from running_server import RunningServer, StartServer, read_answer

from watchdog.http.cors import Cors
from watchdog.http.http_message import Request
from watchdog.http.http_server import HttpServer
from watchdog.http.idle_connections import IdleConnections
from watchdog.http.request import METHODS

PAGE = "https://a.example"
OTHER = "https://b.example"
ALLOWED = f"{PAGE}, http://localhost:3000"
# Nothing is known of the request if its head could not be read.
WITHOUT_ORIGIN = {"malformed", "request line", "headers", "part of a head"}
# The headers of the request that such an answer depends on, also without the setting.
OWN_VARY = {"redirect to the page": ["Sec-Fetch-Mode", "Sec-Fetch-Dest"]}


def values(answer: bytes, name: str) -> list[str]:
    return [value for each, value in head_of(answer) if each == name]


def preflight(
    server: RunningServer, target: str = "/", *, origin: str = PAGE, method: str = "POST", **headers: str
) -> bytes:
    asked = {"Origin": origin, "Access-Control-Request-Method": method}
    return server.raw(request("OPTIONS", target, headers={**asked, **headers}))


def cors_headers(answer: bytes) -> dict[str, str]:
    found = [(name, value) for name, value in head_of(answer) if name.startswith("access-control-")]
    assert len(dict(found)) == len(found), found
    return dict(found)


# ---- preflights


@pytest.mark.parametrize("target", ["/", "/any/path?output=events", "/_/openapi.json", "/_/ready", "/favicon.ico"])
@pytest.mark.parametrize(("setting", "allowed"), [(ALLOWED, PAGE), ("*", "*")], ids=["listed", "all"])
def test_a_preflight_of_an_allowed_page_is_answered(
    shared_server: StartServer, setting: str, allowed: str, target: str
) -> None:
    server = shared_server("true", WATCHDOG_CORS_ORIGINS=setting, WATCHDOG_AUTH_TOKEN="secret")
    answer = preflight(server, target, **{"Access-Control-Request-Headers": "authorization,x-timeout"})
    assert answer.startswith(b"HTTP/1.1 204 ")
    assert answer.endswith(b"\r\n\r\n")
    assert cors_headers(answer) == {
        "access-control-allow-origin": allowed,
        "access-control-allow-methods": ", ".join(METHODS),
        "access-control-allow-headers": "*, Authorization",
        "access-control-max-age": "7200",
    }
    assert values(answer, "vary") == (["Origin"] if setting == ALLOWED else [])


def test_a_preflight_runs_no_script_and_keeps_the_connection(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server('echo run >> "$RUNS"', RUNS=str(tmp_path / "runs"), WATCHDOG_CORS_ORIGINS=PAGE)
    asked = {"Connection": "keep-alive", "Origin": PAGE, "Access-Control-Request-Method": "POST"}
    with server.connect() as sock:
        sock.sendall(request("OPTIONS", headers=asked))
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += sock.recv(1)
        assert not (tmp_path / "runs").exists()
        sock.sendall(request(headers={"Connection": "keep-alive", "Origin": PAGE}))
        assert read_answer(sock).startswith(b"HTTP/1.1 200 ")
    assert (tmp_path / "runs").read_text() == "run\n"


@pytest.mark.parametrize(
    "origin",
    [OTHER, "null", "http://a.example", "https://a.example:8443", "https://a.example.", "https://A.example", "*", ""],
)
def test_a_preflight_of_another_page_is_405_and_allows_nothing(shared_server: StartServer, origin: str) -> None:
    answer = preflight(shared_server("true", WATCHDOG_CORS_ORIGINS=ALLOWED), origin=origin)
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert cors_headers(answer) == {}
    assert values(answer, "vary") == ["Origin"]


@pytest.mark.parametrize("headers", [{}, {"Origin": PAGE}, {"Access-Control-Request-Method": "POST"}])
def test_options_that_is_not_a_preflight_is_405(shared_server: StartServer, headers: dict[str, str]) -> None:
    server = shared_server("true", WATCHDOG_CORS_ORIGINS=ALLOWED)
    answer = server.raw(request("OPTIONS", headers=headers))
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert values(answer, "allow") == [", ".join(METHODS)]


def test_an_allowed_page_may_call_a_server_in_a_private_network(shared_server: StartServer) -> None:
    server = shared_server("true", WATCHDOG_CORS_ORIGINS=ALLOWED)
    asked = {"Access-Control-Request-Private-Network": "true"}
    name = "access-control-allow-private-network"
    assert values(preflight(server, **asked), name) == ["true"]
    assert values(preflight(server), name) == []
    assert values(preflight(server, origin=OTHER, **asked), name) == []


# ---- the headers of answers


def test_each_answer_can_be_read_by_a_listed_page(start_server: StartServer, tmp_path: Path) -> None:
    answers = every_answer(start_server, tmp_path, origin=PAGE, WATCHDOG_CORS_ORIGINS=ALLOWED)
    for kind, answer in answers.items():
        expected = {"access-control-allow-origin": PAGE, "access-control-expose-headers": "*"}
        assert cors_headers(answer) == ({} if kind in WITHOUT_ORIGIN else expected), kind
        assert values(answer, "vary") == [", ".join([*OWN_VARY.get(kind, []), "Origin"])], kind


def test_each_answer_can_be_read_by_all_pages(start_server: StartServer, tmp_path: Path) -> None:
    for kind, answer in every_answer(start_server, tmp_path, origin=PAGE, WATCHDOG_CORS_ORIGINS="*").items():
        expected = {"access-control-allow-origin": "*", "access-control-expose-headers": "*"}
        assert cors_headers(answer) == expected, kind
        assert values(answer, "vary") == [", ".join(names) for names in [OWN_VARY.get(kind)] if names], kind


def test_no_answer_can_be_read_by_another_page(start_server: StartServer, tmp_path: Path) -> None:
    for kind, answer in every_answer(start_server, tmp_path, origin=OTHER, WATCHDOG_CORS_ORIGINS=ALLOWED).items():
        assert cors_headers(answer) == {}, kind
        assert values(answer, "vary") == [", ".join([*OWN_VARY.get(kind, []), "Origin"])], kind


@pytest.mark.parametrize("setting", [{}, {"WATCHDOG_CORS_ORIGINS": ALLOWED}], ids=["no setting", "not listed"])
def test_a_form_of_another_site_runs_the_script(shared_server: StartServer, setting: dict[str, str]) -> None:
    """SECURITY.md gives the reasons. Such a page cannot read the answer, and only a token keeps it out."""
    marks = {"Origin": OTHER, "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = shared_server("echo ran", **setting).call(b"", "/", headers={**marks, **form})
    assert (answer.status, answer.body) == (200, b"ran\n")


def test_without_the_setting_nothing_changes(start_server: StartServer, tmp_path: Path) -> None:
    for kind, answer in every_answer(start_server, tmp_path, origin=PAGE).items():
        assert cors_headers(answer) == {}, kind
        assert values(answer, "vary") == [", ".join(names) for names in [OWN_VARY.get(kind)] if names], kind
    server = start_server("true")
    assert preflight(server).startswith(b"HTTP/1.1 405 ")


def test_metrics_cannot_be_read_by_a_page(start_server: StartServer) -> None:
    for answer in metrics_answers(start_server, WATCHDOG_CORS_ORIGINS="*").values():
        assert cors_headers(answer) == {}


def test_an_internal_error_can_be_read_by_a_listed_page() -> None:
    assert cors_headers(asyncio.run(answer_of_a_broken_handler())) == {
        "access-control-allow-origin": PAGE,
        "access-control-expose-headers": "*",
    }


async def answer_of_a_broken_handler() -> bytes:
    async def fail(request: Request) -> None:
        raise RuntimeError("the handler is broken")

    server = HttpServer(
        fail,
        read_timeout_s=0,
        write_timeout_s=0,
        idle=IdleConnections(give_up=lambda: None),
        cors=Cors([PAGE], METHODS),
    )
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(server, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
    writer.write(request(headers={"Origin": PAGE}))
    answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 500 ")
    writer.close()
    listener.close()
    await server.shutdown(1)
    return answer


# ---- headers of scripts


def called(server: RunningServer, headers: Sequence[str], origin: str = PAGE) -> bytes:
    lines = "".join(f"{line}\n" for line in headers)
    script = f"cat > \"$HTTP_RESPONSE_FILE\" <<'END'\n{lines}END\n"
    return server.raw(request(target="/?input=raw", body=script.encode(), headers={"Origin": origin}))


WIDE = [
    "Access-Control-Allow-Origin: *",
    "access-control-allow-origin: https://c.example",
    "Access-Control-Allow-Credentials: true",
    "Access-Control-Expose-Headers: X-One",
]


@pytest.mark.guard("cors-of-scripts")
@pytest.mark.parametrize("origin", [PAGE, OTHER])
def test_the_setting_replaces_all_such_headers_of_a_script(shared_server: StartServer, origin: str) -> None:
    answer = called(shared_server(SHELL, WATCHDOG_CORS_ORIGINS=ALLOWED), WIDE, origin)
    assert answer.startswith(b"HTTP/1.1 200 ")
    expected = {"access-control-allow-origin": PAGE, "access-control-expose-headers": "*"}
    assert cors_headers(answer) == (expected if origin == PAGE else {})


def test_without_the_setting_a_script_chooses_such_headers(shared_server: StartServer) -> None:
    answer = called(shared_server(SHELL), WIDE[1:])
    assert cors_headers(answer) == {
        "access-control-allow-origin": "https://c.example",
        "access-control-allow-credentials": "true",
        "access-control-expose-headers": "X-One",
    }


@pytest.mark.parametrize(
    ("chosen", "sent"),
    [
        (["Vary: Accept"], "Accept, Origin"),
        (["Vary: Accept", "vary: X-One"], "Accept, X-One, Origin"),
        (["Vary: Accept, origin"], "Accept, origin"),
        (["Vary: *"], "*"),
        (["Vary:"], "Origin"),
    ],
)
def test_vary_of_a_script_is_kept(shared_server: StartServer, chosen: Sequence[str], sent: str) -> None:
    answer = called(shared_server(SHELL, WATCHDOG_CORS_ORIGINS=ALLOWED), chosen)
    assert values(answer, "vary") == [sent]
