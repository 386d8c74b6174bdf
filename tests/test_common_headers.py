"""The headers that each answer has, whatever it answers; and that no answer names a library."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from every_answer import every_answer, head_of, metrics_answers, request
from running_server import StartServer

DATE = re.compile(r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d [A-Z][a-z][a-z] \d{4} \d\d:\d\d:\d\d GMT")
LIBRARIES = re.compile(rb"python|aiohttp|httptools|llhttp|asyncio|msgspec|Traceback \(", re.IGNORECASE)


def test_each_answer_names_the_server_once_and_no_library(start_server: StartServer, tmp_path: Path) -> None:
    for kind, answer in {**every_answer(start_server, tmp_path), **metrics_answers(start_server)}.items():
        headers = head_of(answer)
        assert [value for name, value in headers if name == "server"] == ["oscar-watchdog"], kind
        assert [value for name, value in headers if name == "x-content-type-options"] == ["nosniff"], kind
        (date,) = (value for name, value in headers if name == "date")
        assert DATE.fullmatch(date), kind
        # The metrics of Prometheus's client name the version of Python, for operators. The page shows code in Python.
        text = answer.partition(b"\r\n\r\n")[0] if kind in ("metrics", "page") else answer
        assert not LIBRARIES.search(text), kind


@pytest.mark.parametrize("line", ["Server: mine", "Date: today"])
def test_a_script_cannot_send_a_second_one(shared_server: StartServer, line: str) -> None:
    answer = shared_server('cat "$INPUT_FILE_PATH" > "$HTTP_RESPONSE_FILE"').raw(
        request(target="/?input=raw", body=line.encode())
    )
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert [value for name, value in head_of(answer) if name == "server"] == ["oscar-watchdog"]
