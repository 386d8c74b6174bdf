"""Open the try-it page in Debian's Chromium. After each test, the browser must have reported no error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from running_server import RunningServer

from browser.try_it import TryIt

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CHROMIUM = "/usr/bin/chromium"


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # As root, Chromium has no sandbox. It opens only pages of these tests.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., TryIt]]:
    """Open the page of a server: ``open_page(server, **options of the browser)``."""
    opened: list[TryIt] = []

    def open_page(server: RunningServer | str, path: str = "/_/try", **options: Any) -> TryIt:
        tab = TryIt(browser.new_context(**options).new_page())
        opened.append(tab)
        return tab.open(server if isinstance(server, str) else f"http://127.0.0.1:{server.port}{path}")

    yield open_page
    for tab in opened:
        try:
            assert tab.page.evaluate("window.violations") == []
            assert tab.complaints == []
        finally:
            tab.page.context.close()
