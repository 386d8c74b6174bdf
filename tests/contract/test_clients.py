"""The ``Accept`` that common clients send by default, and the answers: the table in docs/explanation/platforms.md."""

from __future__ import annotations

import asyncio
import re
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest
import requests
from running_server import RunningServer, StartServer

from watchdog.output.accept import choose_form
from watchdog.workspace.outputs import Output

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "explanation" / "platforms.md").read_text().partition("\n## Clients\n")[2]
ROWS = re.findall(r"^\| (.+?) \| (`.+?`|none) \| (\w+) \| (\w+) \| (\w+) \|$", PAGE.partition("\n## ")[0], re.MULTILINE)
OUTPUTS = (["photo.jpg"], ["page.html"], ["a.png", "b.csv"])
SHOW_ACCEPT = 'printf %s "${Http_Accept-none}"'


def curl(url: str) -> str:
    done = subprocess.run(["curl", "-sS", url], capture_output=True, check=True, timeout=RunningServer.patience_s)
    return done.stdout.decode()


def with_requests(url: str) -> str:
    return requests.get(url, timeout=RunningServer.patience_s).text


def with_urllib(url: str) -> str:
    with urllib.request.urlopen(url, timeout=RunningServer.patience_s) as answer:
        text: bytes = answer.read()
        return text.decode()


def with_aiohttp(url: str) -> str:
    async def get() -> str:
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            return await answer.text()

    return asyncio.run(get())


@pytest.mark.parametrize(("client", "accept", "picture", "page", "several"), ROWS)
def test_each_row_of_the_page(client: str, accept: str, picture: str, page: str, several: str) -> None:
    preference = choose_form(None if accept == "none" else accept.strip("`"), None)
    forms = [preference.resolve([Output("/x", name, 1, 0.0, 0o100644) for name in names]).form for names in OUTPUTS]
    assert [form.value for form in forms] == [picture, page, several], client


def test_the_page_has_the_common_clients() -> None:
    clients = ", ".join(row[0] for row in ROWS)
    for name in ("curl", "wget", "python-requests", "axios", "fetch", "HttpURLConnection", "browser", "PHP"):
        assert name in clients


@pytest.mark.parametrize(
    ("call", "name"),
    [(curl, "curl"), (with_requests, "python-requests"), (with_urllib, "urllib"), (with_aiohttp, "aiohttp")],
    ids=["curl", "requests", "urllib", "aiohttp"],
)
def test_what_a_real_client_sends(start_server: StartServer, call: Callable[[str], str], name: str) -> None:
    server = start_server(SHOW_ACCEPT)
    (accept,) = {row[1].strip("`") for row in ROWS if name in row[0]}
    assert call(f"http://127.0.0.1:{server.port}/") == accept
