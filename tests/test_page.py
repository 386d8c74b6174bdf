"""The try-it page: its headers, size, redirect, and what it reveals. tests/browser uses it in a browser."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from running_server import Answer, RunningServer, StartServer

from watchdog.http.page import DIRECTORY, SCRIPTS

ROOT = Path(__file__).parent.parent
MOST_BYTES = 40 * 1024
# The script shows that it ran, so a test sees whether a request called the function.
SCRIPT = "echo the script ran"
NAVIGATION = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}


def page_of(server: RunningServer, path: str = "/_/try") -> Answer:
    answer = server.call(None, path, "GET")
    assert answer.status == 200
    return answer


def facts_of(answer: Answer) -> dict[str, Any]:
    match = re.search(rb'<meta name="facts" content="([^"]*)">', answer.body)
    assert match is not None
    facts: dict[str, Any] = json.loads(html.unescape(match[1].decode()))
    return facts


def policy_of(answer: Answer) -> dict[str, list[str]]:
    """The sources of each directive."""
    directives = [each.split() for each in answer.headers["Content-Security-Policy"].split(";")]
    return {name: sources for name, *sources in directives}


def hash_of(text: bytes) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'"


def elements(document: bytes, name: str) -> list[bytes]:
    """The contents of all elements with this name."""
    return re.findall(rf"<{name}[^>]*>(.*?)</{name}>".encode(), document, re.DOTALL)


# ---- the document


def test_a_browser_may_run_only_the_script_and_the_style_of_the_page(shared_server: StartServer) -> None:
    page = page_of(shared_server(SCRIPT))
    (script,), (style,) = elements(page.body, "script"), elements(page.body, "style")
    assert policy_of(page) == {
        "default-src": ["'none'"],
        "script-src": [hash_of(script)],
        "style-src": [hash_of(style)],
        "connect-src": ["'self'"],
        "img-src": ["blob:", "data:"],
        "media-src": ["blob:"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
        "frame-ancestors": ["'none'"],
        "require-trusted-types-for": ["'script'"],
        "trusted-types": ["'none'"],
    }


def test_the_page_has_headers_against_frames_referrers_and_sniffing(shared_server: StartServer) -> None:
    headers = page_of(shared_server(SCRIPT)).headers
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["Cache-Control"] == "no-cache"


def test_the_page_has_at_most_40_kib(start_server: StartServer) -> None:
    server = start_server(SCRIPT, WATCHDOG_EXEC_TIMEOUT="1h", WATCHDOG_MAX_INPUT_SIZE="100Gi", K_SERVICE="n" * 63)
    assert len(page_of(server).body) <= MOST_BYTES


def test_the_page_names_no_other_host_and_no_absolute_path(shared_server: StartServer) -> None:
    document = page_of(shared_server(SCRIPT)).body
    urls = set(re.findall(rb"https?://[^\s'\"<>]*", document))
    assert urls == {b"http://www.w3.org/2000/svg"}, "only the name of a namespace, which nothing fetches"
    assert not re.search(rb"""(?:src|href|action)=["']/""", document)


def test_the_page_never_makes_markup_of_a_text() -> None:
    ways = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|srcdoc|\beval\b"
    for name in SCRIPTS:
        assert re.findall(ways, (DIRECTORY / name).read_text()) == [], name


def test_every_file_of_the_page_is_used() -> None:
    assert {path.name for path in DIRECTORY.iterdir()} == {"index.html", "style.css", *SCRIPTS}


@pytest.mark.guard("escaped-facts")
@pytest.mark.parametrize("name", ['"><script>alert(1)</script>', "{style}{script}", "&amp;'\"", "ü\u202e"])
def test_a_hostile_name_of_a_service_stays_a_text(start_server: StartServer, name: str, tmp_path: Path) -> None:
    path = tmp_path / "service.json"
    path.write_text(json.dumps({"name": name}))
    page = page_of(start_server(SCRIPT, WATCHDOG_SERVICE_DEFINITION=str(path)))
    assert facts_of(page)["service"] == name
    (script,) = elements(page.body, "script")
    assert policy_of(page)["script-src"] == [hash_of(script)]


def test_the_page_knows_the_limits_and_the_kind_of_the_function(start_server: StartServer) -> None:
    cold = facts_of(page_of(start_server(SCRIPT, WATCHDOG_MAX_INPUT_SIZE="1Mi", WATCHDOG_EXEC_TIMEOUT="2m")))
    assert (cold["max_input_size_bytes"], cold["exec_timeout_s"], cold["has_token"]) == (1 << 20, 120, False)
    assert cold["kind"].startswith("a script")
    assert facts_of(page_of(start_server(None, WATCHDOG_FPROCESS="cat")))["kind"] == "a classic function"
    warm = start_server('echo "ready sh" >&4; while read -r call <&3; do echo done >&4; done', WATCHDOG_WARM="1")
    assert facts_of(page_of(warm))["kind"].startswith("a warm script")


# ---- the path


def test_a_wrong_method_for_the_page_does_not_run_the_script(shared_server: StartServer) -> None:
    answer = shared_server(SCRIPT).call(b"", "/_/try")
    assert answer.status == 405
    assert answer.headers["Allow"] == "GET, HEAD"


def test_head_of_the_page_has_its_headers_and_no_body(shared_server: StartServer) -> None:
    server = shared_server(SCRIPT)
    answer = server.call(None, "/_/try", "HEAD")
    assert (answer.status, answer.body) == (200, b"")
    assert int(answer.headers["Content-Length"]) == len(page_of(server).body)


def test_the_page_is_below_the_path_at_which_oscar_exposes_the_service(start_server: StartServer) -> None:
    base = "/system/services/plants/exposed"
    server = start_server(SCRIPT, OSCAR_SERVICE_BASE_PATH=base)
    assert page_of(server, base + "/_/try").body == page_of(server).body
    for path in ("/", base, base + "/"):
        answer = server.call(None, path, "GET", NAVIGATION)
        assert (answer.status, answer.headers["Location"]) == (303, base + "/_/try")


@pytest.mark.parametrize("headers", [NAVIGATION, {"Sec-Fetch-Mode": "navigate"}])
def test_a_browser_that_opens_the_server_is_sent_to_the_page(
    shared_server: StartServer, headers: dict[str, str]
) -> None:
    answer = shared_server(SCRIPT).call(None, "/", "GET", headers)
    assert (answer.status, answer.body) == (303, b"")
    assert answer.headers["Location"] == "_/try", "relative, because a proxy may have removed a prefix"
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.guard("only-for-navigation")
@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/", {"Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}),
        ("/", {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}),
        ("/", {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}),
        ("/?name=value", NAVIGATION),
    ],
)
def test_a_browser_that_asks_for_another_reason_calls_the_function(
    shared_server: StartServer, path: str, headers: dict[str, str]
) -> None:
    answer = shared_server(SCRIPT).call(None, path, "GET", headers)
    assert (answer.status, answer.body) == (200, b"the script ran\n")


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("GET", "/", {}),
        ("GET", "/other", NAVIGATION),
        ("POST", "/", NAVIGATION),
    ],
)
def test_any_other_request_still_calls_the_function(
    shared_server: StartServer, method: str, path: str, headers: dict[str, str]
) -> None:
    answer = shared_server(SCRIPT).call(None, path, method, headers)
    assert (answer.status, answer.body) == (200, b"the script ran\n")


@pytest.mark.parametrize(("method", "agent"), [("GET", "kube-probe/1.31"), ("HEAD", "curl/8")])
def test_a_probe_of_the_root_stays_a_probe(shared_server: StartServer, method: str, agent: str) -> None:
    answer = shared_server(SCRIPT).call(None, "/", method, {"User-Agent": agent, **NAVIGATION})
    assert (answer.status, answer.headers["Location"]) == (200, None)


def test_with_page_false_the_root_calls_the_function_and_there_is_no_page(start_server: StartServer) -> None:
    server = start_server(SCRIPT, WATCHDOG_PAGE="false")
    answer = server.call(None, "/", "GET", NAVIGATION)
    assert (answer.status, answer.body) == (200, b"the script ran\n")
    assert server.call(None, "/_/try", "GET", NAVIGATION).status == 404


def test_a_classic_function_has_the_page_too(start_server: StartServer) -> None:
    server = start_server(None, WATCHDOG_FPROCESS="cat")
    assert b"<title>" in page_of(server).body
    assert server.call(None, "/", "GET", NAVIGATION).headers["Location"] == "_/try"


# ---- the token


def test_the_page_needs_no_token_but_its_calls_do(start_server: StartServer) -> None:
    server = start_server(SCRIPT, WATCHDOG_AUTH_TOKEN="s3cret", WATCHDOG_MAX_INPUT_SIZE="1Mi")
    page = page_of(server)
    assert b"s3cret" not in page.body
    facts = facts_of(page)
    assert (facts["has_token"], facts["max_input_size_bytes"]) == (True, 1 << 20)
    assert server.call(b"", "/?input=raw").status == 401
    assert server.call(b"", "/?input=raw", headers={"Authorization": "Bearer s3cret"}).body == b"the script ran\n"


@pytest.mark.guard("facts-need-the-token")
def test_with_auth_all_the_page_reveals_only_that_a_token_is_needed(start_server: StartServer) -> None:
    server = start_server(SCRIPT, WATCHDOG_AUTH_TOKEN="s3cret", WATCHDOG_AUTH_ALL="true", K_SERVICE="plants")
    page = page_of(server)
    assert facts_of(page) == {"has_token": True}
    assert b"plants" not in page.body


# ---- the package


def test_a_wheel_has_the_files_of_the_page(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for path in DIRECTORY.iterdir():
            assert archive.read(f"watchdog/page/{path.name}") == path.read_bytes()
