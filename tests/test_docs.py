"""The docs describe the program correctly, their links work, and their site needs no other host."""

from __future__ import annotations

import json
import os
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from running_server import RunningServer, StartServer, until

ROOT = Path(__file__).parent.parent
STATUSES_AND_OUTCOMES = ROOT / "docs" / "reference" / "statuses-and-outcomes.md"


@pytest.fixture(scope="module")
def tables() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs" / "tables.py"))


def test_the_tables_are_the_declarations(tables: dict[str, Any]) -> None:
    made = tables["pages"]()
    assert len(made) == 5
    for page, text in made.items():
        assert page.read_text() == text, "run `make docs`"


def test_every_metric_of_a_server_is_in_the_table(tables: dict[str, Any]) -> None:
    from watchdog.telemetry.metrics import Metrics

    exposition = Metrics(lambda: (0, 0, 0)).exposition()[0].decode()
    names = re.findall(r"^# TYPE (\S+) ", exposition, re.MULTILINE)
    assert len(names) > 20
    assert [name for name in names if f"| `{name}` | " not in tables["metrics_table"]()] == []


def test_labels_and_types_of_metrics_are_in_the_table(tables: dict[str, Any]) -> None:
    assert "| `http_requests_total` | counter | `code`, `method` | " in tables["metrics_table"]()
    assert "| `watchdog_callers_given_up_total` | counter | `direction` | " in tables["metrics_table"]()
    assert "| `watchdog_queue_wait_seconds` | histogram |  | " in tables["metrics_table"]()


def test_every_status_of_the_server_is_in_the_table_of_errors() -> None:
    from watchdog.http.problems import STATUS_OF_ERROR

    page = STATUSES_AND_OUTCOMES.read_text()
    for status in {status for _, status, _ in STATUS_OF_ERROR} | {405}:
        assert f"\n| {status} | " in page, status


def test_every_status_of_the_readme_is_one_of_the_server(tables: dict[str, Any]) -> None:
    statuses = re.findall(r"^\| (\d\d\d) \| ", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(statuses) > 5
    assert [status for status in statuses if f"\n| {status} | " not in tables["statuses_table"]()] == []


def test_every_outcome_is_named() -> None:
    from watchdog.invocation.outcome import _OUTCOME_OF_ERROR, OUTCOMES

    page = STATUSES_AND_OUTCOMES.read_text()
    names = {name for _, name in _OUTCOME_OF_ERROR}
    assert [name for name in names if f"\n| `{name}` | " not in page] == []
    assert set(OUTCOMES) == names | {"ok", "skipped", "error"}


def test_every_warning_is_explained() -> None:
    names = re.findall(r'CallWarning\(\s*"([a-z-]+)"', (ROOT / "watchdog" / "output" / "call_warning.py").read_text())
    page = (ROOT / "docs" / "reference" / "warnings.md").read_text()
    assert len(names) >= 6
    assert [name for name in names if f"| `{name}` | " not in page] == []


def example(page: str, beginning: str) -> tuple[str, str]:
    """Return the command of a page that begins like this, and the line that the page shows as its output."""
    found = re.search(rf"^\$ ({re.escape(beginning)}.*)\n(.*)\n", (ROOT / page).read_text(), re.MULTILINE)
    assert found is not None
    return found[1], found[2]


def output_of(command: str, server: RunningServer) -> str:
    command = command.replace("localhost:8080", f"127.0.0.1:{server.port}").replace("curl ", "curl --silent ")
    environ = os.environ | {"no_proxy": "127.0.0.1"}
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command], env=environ, capture_output=True, check=True, text=True
    ).stdout


@pytest.mark.parametrize("page", ["README.md", "docs/guide/first-call.md"])
def test_the_first_call_gets_the_answer_that_the_page_shows(page: str, start_server: StartServer) -> None:
    script = re.search(r"^```sh\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    assert script is not None
    command, answer = example(page, "echo ")
    assert output_of(command, start_server(script[1])) == f"{answer}\n"


@pytest.mark.parametrize(
    ("page", "beginning", "script"),
    [
        ("README.md", "echo abc ", "echo no picture >&2; exit 3"),
        ("docs/reference/statuses-and-outcomes.md", "curl -d 'QUJD!' ", "true"),
    ],
)
def test_a_call_that_fails_gets_the_error_that_the_page_shows(
    page: str, beginning: str, script: str, start_server: StartServer
) -> None:
    command, answer = example(page, beginning)
    shown, real = json.loads(answer), json.loads(output_of(command, start_server(script)))
    assert shown.pop("call_id")
    assert real.pop("call_id")
    assert real == shown


def test_the_warm_function_of_the_guide_answers_as_the_page_shows(tmp_path: Path, start_server: StartServer) -> None:
    page = (ROOT / "docs" / "guide" / "keep-your-model-loaded.md").read_text()
    code = re.search(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    script = re.search(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert code is not None
    assert script is not None
    (tmp_path / "script.py").write_text(code[1].replace("time.sleep(3)", "time.sleep(0)"))
    (tmp_path / "watchdog_warm.py").write_bytes((ROOT / "watchdog/warm/helper/watchdog_warm.py").read_bytes())
    text = script[1].replace("/opt/my-function", str(tmp_path)).replace("exec python3", f"exec {sys.executable}")
    server = start_server(text, WATCHDOG_WARM="1")

    first, second, failing = re.findall(r"^\$ (\S.*grep X-Warm head\.txt)\n(.*)\n(.*)\n", page, re.MULTILINE)
    for command, answer, header in (first, second):
        assert output_of(f"cd {tmp_path}; {command}", server) == f"{answer}\n{header}\n"
    command, answer, header = failing
    body, real_header = output_of(f"cd {tmp_path}; {command}", server).splitlines()
    assert real_header == header
    shown, real = json.loads(answer), json.loads(body)
    assert (real["status"], real["detail"], real["exit_code"]) == (shown["status"], shown["detail"], shown["exit_code"])
    assert real["stderr"].splitlines()[-1] == shown["stderr"].splitlines()[-1]


def test_the_model_server_of_the_guide_starts_again_after_its_end(
    tmp_path: Path, start_server: StartServer, free_port: int
) -> None:
    page = (ROOT / "docs" / "guide" / "keep-your-model-loaded.md").read_text()
    script = re.search(r"^```sh\n(#!/bin/sh\n\. .*?)^```", page, re.MULTILINE | re.DOTALL)
    assert script is not None
    (tmp_path / "watchdog_warm.sh").write_bytes((ROOT / "watchdog/warm/helper/watchdog_warm.sh").read_bytes())
    model_server = tmp_path / "my-model-server"
    model_server.write_text(f"""#!{sys.executable}
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"%d" % os.getpid())
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()
http.server.HTTPServer(("localhost", int(sys.argv[2])), Handler).serve_forever()
""")
    model_server.chmod(0o755)
    text = script[1].replace("/opt/my-function", str(tmp_path)).replace("my-model-server", str(model_server))
    server = start_server(text.replace("5000", str(free_port)), WATCHDOG_WARM="1")

    first = server.call(b"text", "/?input=raw&output=raw")
    assert first.status == 200, first.body
    os.kill(int(first.body), signal.SIGKILL)
    assert server.call(b"text", "/?input=raw&output=raw").status == 500
    until(lambda: server.call(b"text", "/?input=raw&output=raw").status == 200, "the model server to start again")


PATTERNS = ("*.md", "docs/*.md", "docs/*/*.md", "examples/*.md", "examples/*/*.md")
PAGES = [path for pattern in PATTERNS for path in ROOT.glob(pattern)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target, _, heading in re.findall(r"\]\(([^)#]*)(#([^)]*))?\)", page.read_text()):
        if "://" in target:
            continue
        file = page.parent / target if target else page
        assert file.exists(), target
        if heading:
            assert heading in headings(file), f"{target}#{heading}"


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs" / "index.md"
    linked = {(index.parent / target).resolve() for target in re.findall(r"\]\(([^)#]+)\)", index.read_text())}
    # Releases are for maintainers; results.md is a part of another page.
    others = {
        index,
        ROOT / "docs" / "guide" / "releases.md",
        ROOT / "docs" / "explanation" / "performance" / "results.md",
    }
    assert set(ROOT.glob("docs/**/*.md")) - linked == others


def headings(page: Path) -> set[str]:
    """Return the ends of links to the headings of a page, as GitHub and the site make them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


FOLDERS = ("watchdog", "tests", "benchmarks", "docs", "examples", "image", ".github")
SUFFIXES = (".py", ".yaml", ".yml", ".json", ".sh", ".md")


def test_pages_that_files_mention_exist() -> None:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES]
    files += [*ROOT.glob("*.md"), ROOT / "Makefile", ROOT / "Dockerfile.base", ROOT / "pyproject.toml"]
    mentioned = {
        (str(path.relative_to(ROOT)), name)
        for path in files
        if path.is_file() and ".venv" not in path.parts
        for name in re.findall(r"(?<![\w/])docs/[\w/-]+\.md", path.read_text(errors="replace"))
        # A page of OSCAR.
        if name != "docs/fdl.md"
    }
    assert len(mentioned) > 30
    assert {(file, name) for file, name in mentioned if not (ROOT / name).is_file()} == set()


CHECK = runpy.run_path(str(ROOT / "docs" / "site_check.py"))


@pytest.mark.parametrize(
    "loads_from_elsewhere",
    [
        '<script src="https://cdn.example/x.js"></script>',
        '<link rel="stylesheet" href="//fonts.example/css?family=Roboto">',
        '<link rel="preconnect" href="https://fonts.example">',
        '<img src="http://images.example/badge.svg">',
        '<img src="a.png" srcset="a.png 1x, https://images.example/a.png 2x">',
        "<style>@import 'https://fonts.example/a.css';</style>",
        '<p style="background: url(https://images.example/a.png)">',
        '<pre class="mermaid">graph</pre>',
    ],
)
def test_a_page_that_loads_from_another_host_is_found(loads_from_elsewhere: str) -> None:
    assert len(CHECK["from_other_hosts_in_page"](f"<p>{loads_from_elsewhere}</p>")) == 1


@pytest.mark.parametrize(
    "harmless",
    [
        '<a href="https://knative.dev">Knative</a>',
        '<script src="../assets/bundle.js"></script>',
        '<img src="data:image/png;base64,AAAA">',
        '<link rel="canonical" href="https://docs.example/">',
        "<code>curl https://example.org; url(https://example.org)</code>",
    ],
)
def test_a_page_that_only_links_to_another_host_passes(harmless: str) -> None:
    assert CHECK["from_other_hosts_in_page"](harmless) == []


def test_a_style_sheet_that_loads_from_another_host_is_found() -> None:
    found = CHECK["from_other_hosts_in_styles"]("@font-face{src:url(https://fonts.example/a.woff2)}a{b:url(x.png)}")
    assert found == ["https://fonts.example/a.woff2"]


def test_a_site_that_loads_from_another_host_fails_the_check(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<p>fine</p>")
    CHECK["main"](tmp_path)
    (tmp_path / "guide").mkdir()
    (tmp_path / "guide" / "page.html").write_text('<img src="https://images.example/a.png">')
    with pytest.raises(SystemExit, match=r"guide/page\.html loads https://images\.example/a\.png"):
        CHECK["main"](tmp_path)


def test_a_site_without_pages_fails_the_check(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="has no pages"):
        CHECK["main"](tmp_path)
