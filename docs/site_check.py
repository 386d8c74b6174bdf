"""Check that the pages of the docs site load nothing from another host.

    python docs/site_check.py build/site

A reader of the docs is then not reported to other hosts, and the site works without the internet.
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

# Attributes whose address a browser loads at once. The addresses in `a` are only loaded when a reader follows them.
_LOADED = {
    "audio": "src",
    "embed": "src",
    "iframe": "src",
    "image": "href",
    "img": "src",
    "input": "src",
    "link": "href",
    "object": "data",
    "script": "src",
    "source": "src",
    "track": "src",
    "use": "href",
    "video": "src",
}
_OTHER_HOST = re.compile(r"\s*(?:[a-z][a-z0-9+.-]*:)?//", re.IGNORECASE)
_IN_STYLES = re.compile(r"""(?:url\(\s*|@import\s+)["']?([^"')\s;]+)""", re.IGNORECASE)


def main(site: Path) -> None:
    found = []
    pages = sorted(site.rglob("*.html"))
    for path in pages:
        found += [f"{path.relative_to(site)} loads {what}" for what in from_other_hosts_in_page(path.read_text())]
    for path in (*site.rglob("*.css"), *site.rglob("*.svg")):
        found += [f"{path.relative_to(site)} loads {what}" for what in from_other_hosts_in_styles(path.read_text())]
    if not pages:
        sys.exit(f"{site} has no pages; build the site first (make docs-site)")
    if found:
        sys.exit("\n".join(["the site must not load anything from another host:", *found]))


def from_other_hosts_in_page(text: str) -> list[str]:
    """Return the addresses on other hosts that a browser loads when it shows this page."""
    reader = _Page()
    reader.feed(text)
    reader.close()
    return [*filter(_OTHER_HOST.match, reader.loaded), *reader.diagrams]


def from_other_hosts_in_styles(text: str) -> list[str]:
    """Return the addresses on other hosts that a browser loads for this style sheet or drawing."""
    return [address for address in _IN_STYLES.findall(text) if _OTHER_HOST.match(address)]


class _Page(HTMLParser):
    """Collect the addresses that a browser loads for a page. ``diagrams``: the theme would load Mermaid for them."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.diagrams: list[str] = []
        self._is_in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self._is_in_style = tag == "style"
        if (name := _LOADED.get(tag)) is not None and values.get("rel") != "canonical":
            self.loaded.append(values.get(name, ""))
        self.loaded += [part.split()[0] for part in values.get("srcset", "").split(",") if part.strip()]
        self.loaded += _IN_STYLES.findall(values.get("style", ""))
        if "mermaid" in values.get("class", "").split():
            self.diagrams.append("Mermaid, for a diagram; write the drawing as text")

    def handle_data(self, data: str) -> None:
        if self._is_in_style:
            self.loaded += _IN_STYLES.findall(data)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
