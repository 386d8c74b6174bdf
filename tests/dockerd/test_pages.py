"""Each command with Docker in the pages has a case: how it is run, or why it is not run. No daemon is needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from dockerd import pages
from dockerd.cases import CASES, NotRun


def test_each_command_of_the_pages_has_a_case() -> None:
    found = {(page, command) for page in pages.PAGES for command in pages.commands(page)}
    assert len(found) > 30
    assert sorted(found - CASES.keys()) == [], "say in tests/dockerd/cases.py how to run these commands, or why not"
    assert sorted(CASES.keys() - found) == [], "no page has these commands any more"


def test_each_reason_is_a_sentence() -> None:
    reasons = [case.reason for case in CASES.values() if isinstance(case, NotRun)]
    assert len(reasons) < len(CASES) / 2
    assert [reason for reason in reasons if len(reason.split()) < 4] == []


PAGE = """
Some `docker run` and `docker stop --time 3 NAME`.

```console
$ docker build -t x \\
    --target y .
the output: docker says nothing
$ id=$(docker create x) && docker rm $id
$ echo docker is a word
```

```
make
sudo docker compose up
```

```dockerfile
RUN docker version
```
"""


def test_commands_are_found_in_blocks_and_in_sentences(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(PAGE)
    monkeypatch.setattr(pages, "PROJECT", tmp_path)
    assert pages.commands("page.md") == [
        "docker stop --time 3 NAME",
        "docker build -t x --target y .",
        "id=$(docker create x) && docker rm $id",
        "sudo docker compose up",
    ]
