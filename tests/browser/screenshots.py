"""Take the pictures of the try-it page for the docs: ``make screenshots``.

A real server runs the example `grayify`, and a script with progress. Chromium opens the page.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent.parent))

from running_server import RunningServer

from browser.conftest import CHROMIUM
from browser.try_it import TryIt

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).parent.parent.parent
IMAGES = ROOT / "docs" / "images"
PHOTO = ROOT / "examples" / "grayify" / "photo.jpg"
# The colours of a picture. More colours make the file larger, and nobody sees them.
COLOURS = "96"
LONG_RUN = """\
#!/bin/sh
echo "loading the model"
echo "WARNING: no GPU, so this takes longer"
for step in 1 2 3 4 5 6; do
    echo "INFO: step $step of 10, loss 0.$((90 - 9 * step))"
    echo "progress 0.$step training" >&4
done
sleep 1000
"""


def main() -> None:
    from playwright.sync_api import sync_playwright

    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as directory, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        take(browser, Path(directory), "try-it-page", (ROOT / "examples/grayify/script.sh").read_text(), finish)
        take(browser, Path(directory), "try-it-page-live", LONG_RUN, watch, is_dark=True)
        browser.close()


def finish(tab: TryIt) -> None:
    tab.run()
    tab.output("gray.jpg").locator("img").wait_for()
    tab.await_log("making")


def watch(tab: TryIt) -> None:
    tab.start().await_log("step 6")
    tab.page.get_by_text("60 % training").wait_for()


def take(
    browser: Browser, directory: Path, name: str, script: str, act: Callable[[TryIt], None], *, is_dark: bool = False
) -> None:
    """Take one picture of the page, after a person has acted on it."""
    own = directory / name
    server = RunningServer(own, script, K_SERVICE="grayify" if not is_dark else "train")
    try:
        context = browser.new_context(
            color_scheme="dark" if is_dark else "light",
            viewport={"width": 1120, "height": 600},
            reduced_motion="reduce",
        )
        tab = TryIt(context.new_page()).open(f"http://127.0.0.1:{server.port}/_/try").choose(PHOTO)
        act(tab)
        tab.page.mouse.move(0, 0)
        taken = own / "taken.png"
        tab.page.screenshot(path=taken, full_page=True)
        context.close()
    finally:
        server.kill()
    quality = ("-strip", "+dither", "-colors", COLOURS, "-define", "png:compression-level=9")
    subprocess.run(["convert", str(taken), *quality, str(IMAGES / f"{name}.png")], check=True)


if __name__ == "__main__":
    main()
