"""The try-it page in a tab of a browser, as a person uses it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Dialog, Locator, Page

PATIENCE_MS = 40_000
# Chromium reports each answer with an error status. The page shows these errors itself.
EXPECTED = re.compile(r"Failed to load resource: ")
# Collects violations of the page's policy, also those that the console does not show.
COLLECT = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => violations.push(event.violatedDirective));
"""


class TryIt:
    """The page in its own tab, as a person uses it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        page.set_default_timeout(PATIENCE_MS)
        page.add_init_script(COLLECT)
        page.on("console", lambda message: self._note(message.type, message.text))
        page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        page.on("dialog", self._dismiss)

    def _dismiss(self, dialog: Dialog) -> None:
        self.complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and not EXPECTED.match(text):
            self.complaints.append(f"{kind}: {text}")

    def open(self, url: str) -> TryIt:
        self.page.goto(url)
        return self

    def choose(self, path: Path) -> TryIt:
        self.page.set_input_files("#file", path)
        return self

    def type(self, text: str) -> TryIt:
        self.page.check("text=Text", force=True)
        self.page.fill("#text", text)
        return self

    def start(self) -> TryIt:
        self.page.click("#run")
        return self

    def run(self) -> TryIt:
        """Run the function, and wait for the verdict."""
        self.start().await_verdict()
        return self

    def await_verdict(self) -> None:
        self.page.wait_for_selector(".verdict .sign:not(.running)")
        self.page.wait_for_selector("#run:visible")

    def await_log(self, text: str) -> None:
        self.page.locator(".lines div", has_text=text).first.wait_for()

    @property
    def verdict(self) -> str:
        return str(self.page.inner_text(".verdict .title"))

    @property
    def detail(self) -> str:
        return self.page.locator(".detail").text_content() or ""

    @property
    def facts(self) -> dict[str, str]:
        names, values = (self.page.locator(f".facts {tag}").all_inner_texts() for tag in ("dt", "dd"))
        return dict(zip(names, values, strict=True))

    @property
    def log(self) -> list[str]:
        return list(self.page.locator(".lines div").all_inner_texts())

    @property
    def outputs(self) -> list[str]:
        """Return the names of the outputs."""
        return list(self.page.locator(".output h2").all_inner_texts())

    def output(self, name: str) -> Locator:
        """Return the part of the page that shows an output."""
        return self.page.locator(".output").filter(has=self.page.get_by_role("heading", name=name, exact=True))

    def download(self, name: str) -> tuple[str, bytes]:
        """Return the name under which the browser keeps an output, and its bytes."""
        with self.page.expect_download() as download:
            self.output(name).locator("a").click()
        return download.value.suggested_filename, download.value.path().read_bytes()

    def command(self, program: str) -> str:
        """Return the text that "Copy as" shows."""
        self.page.get_by_role("button", name=program, exact=True).click()
        return str(self.page.input_value("#command"))

    def is_wider_than_its_window(self) -> bool:
        return bool(self.page.evaluate("document.documentElement.scrollWidth > window.innerWidth"))

    def violations_of_accessibility(self) -> list[str]:
        from axe_playwright_python.sync_playwright import Axe

        found: list[dict[str, Any]] = Axe().run(self.page).response["violations"]
        return [f"{each['id']}: {[node['html'] for node in each['nodes']]}" for each in found]
