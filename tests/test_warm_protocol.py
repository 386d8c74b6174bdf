"""The answers of a warm worker, cut anywhere, and the line of JSON for a call."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from watchdog.logs.progress_line import LONGEST_LINE_BYTES, Progress
from watchdog.warm.protocol import (
    Answer,
    AnswerLines,
    Done,
    ProtocolError,
    Ready,
    json_line,
)


def read(*pieces: bytes) -> list[Answer | str]:
    """Return the answers in the pieces, and the text of an error as the last one."""
    lines = AnswerLines()
    answers = [answer for piece in pieces for answer in lines.feed(piece)]
    if (error := lines.end()) is not None:
        answers.append(error)
    return [str(answer) if isinstance(answer, ProtocolError) else answer for answer in answers]


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        (b"ready", Ready(dialect="json", forks=False)),
        (b"ready sh", Ready(dialect="sh", forks=False)),
        (b"ready fork", Ready(dialect="json", forks=True)),
        (b"done", Done(exit_code=0)),
        (b"done 0", Done(exit_code=0)),
        (b"done 255", Done(exit_code=255)),
        (b"progress 0", Progress(0.0, "")),
        (b"progress 1.0", Progress(1.0, "")),
        (b"progress .5 ", Progress(0.5, "")),
        (b"progress 1e-05 of it", Progress(0.00001, "of it")),
        (b"progress 0.4 any  text 100 % ", Progress(0.4, "any  text 100 % ")),
        ("progress 0.4 ñandú".encode(), Progress(0.4, "ñandú")),
        (b"progress 0.4 \xff\x07\x1b[31mred\x1b[0m\ta\rb", Progress(0.4, "\\xff\\x07red\ta\\rb")),
    ],
)
def test_a_line_is_its_answer_also_with_a_line_end_of_windows(line: bytes, answer: Answer) -> None:
    assert read(line + b"\n") == read(line + b"\r\n") == [answer]


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"\r", b"Ready", b" ready", b"ready ", b"ready bash", b"ready sh fork", b"ready\r\r", b"hello"),
        *(b"done 256", b"done -1", b"done ", b"done  1", b"done 1 ", b"done one", b"done 1.0", "done ٣".encode()),
        *(b"progress", b"progress ", b"progress 1.1", b"progress -0.1", b"progress 0,4", b"progress nan"),
        *(b"progress inf", b"progress 1e999", b"progress .", b"progress 0_1", b"progress  0.4", b"progress 40%"),
        *(b"\xef\xbb\xbfready", b"\0", b"\xff\xfe", b"ready\0"),
    ],
)
def test_any_other_line_is_an_error_after_the_answers_before_it(line: bytes) -> None:
    *answers, error = read(b"ready\ndone 1\n" + line + b"\ndone\n", b"done\n")
    assert answers == [Ready(), Done(1)]
    assert isinstance(error, str)
    assert error.isprintable()


def test_the_error_quotes_the_line_and_names_all_answers() -> None:
    error = (
        "the worker wrote the line 'Loading \\x1b[1mmodel\\udcff' to fd 4, which is not an answer; a line has at most "
        "4096 bytes and is `ready`, `ready sh`, `ready fork`, `progress F` or `progress F TEXT` with F from 0 to 1, "
        "`done`, or `done N` with N from 0 to 255"
    )
    assert read(b"Loading \x1b[1mmodel\xff\n") == [error]


def test_the_error_quotes_only_the_beginning_of_a_long_line() -> None:
    (error,) = read("é".encode() * 2000 + b"\n")
    assert isinstance(error, str)
    assert f"the line '{'é' * 100}'... to fd 4" in error


def test_the_longest_line_is_read_and_one_more_byte_is_an_error() -> None:
    text = "x" * (LONGEST_LINE_BYTES - len("progress 0 \n"))
    assert read(f"progress 0 {text}\ndone\n".encode()) == [Progress(0.0, text), Done()]
    (error,) = read(f"progress 0 {text}x\ndone\n".encode())
    assert isinstance(error, str)
    assert "is too long" in error


def test_a_line_without_an_end_is_an_error_as_soon_as_it_is_too_long() -> None:
    lines = AnswerLines()
    for _ in range(LONGEST_LINE_BYTES - 1):
        assert lines.feed(b"x") == []
    (error,) = lines.feed(b"x")
    assert isinstance(error, ProtocolError)
    assert lines.feed(b"\nready\n") == []
    assert lines.end() is None


def test_a_line_that_the_end_of_the_file_cuts_is_an_error() -> None:
    *answers, error = read(b"ready\ndone")
    assert answers == [Ready()]
    assert isinstance(error, str)
    assert "'done' to fd 4, which has no newline at its end" in error
    assert read(b"ready\ndone\n") == [Ready(), Done()]


def test_garbage_without_a_line_end_is_not_kept() -> None:
    lines = AnswerLines()
    answers = [answer for _ in range(100) for answer in lines.feed(os.urandom(64).replace(b"\n", b"") * 1000)]
    assert len(answers) == 1
    assert isinstance(answers[0], ProtocolError)
    assert len(lines._line) == 0


well_formed = st.sampled_from(
    [b"ready\n", b"ready sh\r\n", b"ready fork\n", b"done\n", b"done 7\n", b"progress 0.5\n", b"progress 1 x\xc3\xa9\n"]
)
some_bytes = st.one_of(st.binary(max_size=40), st.sampled_from([b"x" * 4095, b"\n", b"\r\n", b"done", b"progress 0 "]))


@given(st.lists(st.one_of(well_formed, well_formed, some_bytes), max_size=10).map(b"".join), st.data())
@example(b"progress 0 " + b"x" * (LONGEST_LINE_BYTES - 12) + b"\ndone\n", None)
def test_answers_are_the_same_wherever_the_bytes_are_cut(data: bytes, choose: st.DataObject | None) -> None:
    whole = read(data)
    at = choose.draw(st.lists(st.integers(0, len(data)), max_size=5)) if choose is not None else []
    cuts = [0, *sorted(at), len(data)]
    assert read(*(data[begin:end] for begin, end in itertools.pairwise(cuts))) == whole
    assert read(*(data[index : index + 1] for index in range(len(data)))) == whole


@given(st.lists(well_formed, min_size=1, max_size=6))
def test_each_line_is_one_answer(lines: list[bytes]) -> None:
    assert read(b"".join(lines)) == [answer for line in lines for answer in read(line)]


# ---- the line of JSON ----


def test_the_json_line_is_as_documented() -> None:
    line = json_line("c-1", 1764000000.5, {"A": "é\n\u2028", "INPUT_FILE_PATH": "/tmp/\udcff"})
    assert line == (
        b'{"call_id":"c-1","deadline":1764000000.5,"env":{"A":"\\u00e9\\n\\u2028","INPUT_FILE_PATH":"/tmp/\\udcff"}}\n'
    )
    assert json_line("c-2", None, {}) == b'{"call_id":"c-2","deadline":null,"env":{}}\n'


@given(st.dictionaries(st.binary(), st.binary()))
@example({b"A": b"\xed\xa0\xbd\xed\xb8\x80"})
@example({b"A": "😀".encode() + b"\x80\xf0\x9f"})
def test_every_byte_of_a_variable_comes_back_from_the_json_line(variables: dict[bytes, bytes]) -> None:
    line = json_line("c", None, {os.fsdecode(name): os.fsdecode(value) for name, value in variables.items()})
    assert line.isascii()
    assert line.count(b"\n") == 1
    read_back = json.loads(line)["env"]
    assert {os.fsencode(name): os.fsencode(value) for name, value in read_back.items()} == variables


def test_the_module_does_not_import_json_before_the_first_call() -> None:
    code = "import sys; import watchdog.warm.protocol; print('json' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout == "False\n"
