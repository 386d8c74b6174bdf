"""`watchdog invoke` against services that answer wrongly: no part of a wrong answer is kept, no call is repeated."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import io
import json
import os
import re
import resource
import select
import signal
import socket
import subprocess
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from client_command import (
    Done,
    answer,
    clean_environment,
    command,
    files_in,
    invoke,
    invoke_on_terminal,
    read_request,
    scripted,
    stderr_of,
)
from running_server import on_terminal, read_terminal, until

from watchdog.client import plain
from watchdog.client.folder import Folder
from watchdog.errors import AnswerNotKept

CONTENT = os.urandom(300_000)
BASE64 = base64.b64encode(CONTENT) + b"\n"
FILE = {"Content_Type": "text/plain", "X_Output_Name": "out.bin", "X_Output_Content_Type": "application/x"}
ZIP = {"Content_Type": "text/plain", "X_Output_Content_Type": "application/zip"}
PROBLEM = {"Content_Type": "application/problem+json"}


def call(
    tmp_path: Path,
    *answers: object,
    flags: tuple[object, ...] = ("-o", "out"),
    requests: int = 1,
    without: str | None = None,
) -> Done:
    """Call a service that gives these answers. The input is ``in``, with 3 bytes."""
    (tmp_path / "in").write_bytes(b"abc")
    with scripted(*answers) as service:  # type: ignore[arg-type]
        done = invoke(service.url, "in", *flags, cwd=tmp_path, without=without)
        assert len(service.requests) == requests
    assert list((tmp_path / "out").glob(".*")) == [], "a part of an answer was left"
    return done


def check(done: Done, exit_code: int, text: str) -> None:
    assert (done.returncode, stderr_of(done).count(text)) == (exit_code, 1), (done.returncode, stderr_of(done))


def zip_of(compression: int = zipfile.ZIP_STORED, /, **files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


# ------------------------------------------------------------------------------------------------ cut off


WHOLE = answer(BASE64, **FILE)
HEAD = WHOLE.index(b"\r\n\r\n") + 4


def test_the_whole_answer_is_kept(tmp_path: Path) -> None:
    assert call(tmp_path, WHOLE).returncode == 0
    assert files_in(tmp_path / "out") == {"out.bin": CONTENT}


@pytest.mark.parametrize(
    ("end", "text"),
    [
        (0, "the connection ended before the answer came"),
        (5, "the connection ended before the answer came"),
        (HEAD - 2, "the connection ended before the answer came"),
        (HEAD, "cut off"),
        (HEAD + 4, "cut off"),
        (HEAD + 200_001, "cut off"),
        (len(WHOLE) - 1, "cut off"),
    ],
)
def test_an_answer_that_is_cut_off_anywhere_is_an_error_and_nothing_is_kept(
    tmp_path: Path, end: int, text: str
) -> None:
    check(call(tmp_path, WHOLE[:end]), 76, text)
    assert files_in(tmp_path / "out") == {}


def test_chunks_without_their_end_are_an_error(tmp_path: Path) -> None:
    head = "\r\n".join(["HTTP/1.1 200 OK", *(f"{k.replace('_', '-')}: {v}" for k, v in FILE.items())])
    chunks = b"%b\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nQUJD\r\n" % head.encode()
    check(call(tmp_path, chunks), 76, "cut off")
    assert files_in(tmp_path / "out") == {}
    assert call(tmp_path, chunks + b"0\r\n\r\n").returncode == 0
    assert files_in(tmp_path / "out") == {"out.bin": b"ABC"}


def test_an_answer_without_a_length_is_an_error(tmp_path: Path) -> None:
    check(call(tmp_path, b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nprinted"), 76, "no length")


def test_a_reset_during_the_answer_is_an_error(tmp_path: Path) -> None:
    def reset(connection: socket.socket) -> None:
        connection.sendall(WHOLE[: HEAD + 1000])
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    done = call(tmp_path, reset)
    assert done.returncode == 76, stderr_of(done)
    assert files_in(tmp_path / "out") == {}


@pytest.mark.parametrize("size_bytes", [10, 25_000])
def test_a_longer_length_than_the_body_is_an_error(tmp_path: Path, size_bytes: int) -> None:
    body = base64.b64encode(CONTENT[:size_bytes])
    check(call(tmp_path, answer(body, Content_Length=str(len(body) + 1), **FILE)), 76, "cut off")
    assert files_in(tmp_path / "out") == {}


def test_a_shorter_length_than_the_base64_is_an_error(tmp_path: Path) -> None:
    done = call(tmp_path, answer(BASE64, Content_Length="10001", **FILE))
    assert done.returncode == 76
    assert len(stderr_of(done)) < 200
    assert files_in(tmp_path / "out") == {}


def test_the_reader_of_stdout_sees_an_error_after_a_part_of_the_answer(tmp_path: Path) -> None:
    done = call(tmp_path, WHOLE[:-1000], flags=())
    check(done, 76, "cut off")
    assert CONTENT.startswith(done.stdout)


# ------------------------------------------------------------------------------------------------ malformed


@pytest.mark.parametrize("wrong", [b"!", b" ", b"\xff", b"-", b"=", b"\0"])
def test_a_wrong_character_in_the_base64_is_an_error(tmp_path: Path, wrong: bytes) -> None:
    body = BASE64[:100_000] + wrong + BASE64[100_001:]
    done = call(tmp_path, answer(body, **FILE))
    assert done.returncode == 76
    assert "the answer is damaged" in stderr_of(done)
    assert "curl" not in stderr_of(done), "this hint is for somebody who sends base64"
    assert files_in(tmp_path / "out") == {}


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-10],
        lambda data: data[:60] + b"\xff" + data[61:],
        lambda data: b"no zip at all",
        lambda data: data.replace(b"first", b"f1rst"),
    ],
)
def test_a_damaged_zip_is_an_error(tmp_path: Path, damage: object) -> None:
    data = damage(zip_of(a=b"first" * 100, b=b"second"))  # type: ignore[operator]
    check(call(tmp_path, answer(base64.b64encode(data), **ZIP)), 76, "the ZIP in the answer is damaged")
    assert files_in(tmp_path / "out") == {}


def test_a_zip_with_compressed_files_is_unpacked(tmp_path: Path) -> None:
    data = zip_of(zipfile.ZIP_DEFLATED, a=b"first" * 100)
    assert call(tmp_path, answer(base64.b64encode(data), **ZIP)).returncode == 0
    assert files_in(tmp_path / "out") == {"a": b"first" * 100}


def test_damaged_compressed_data_in_a_zip_is_an_error(tmp_path: Path) -> None:
    data = bytearray(zip_of(zipfile.ZIP_DEFLATED, a=b"first" * 100))
    data[31] |= 0b110  # the first block then has a type that does not exist
    check(call(tmp_path, answer(base64.b64encode(data), **ZIP)), 76, "the ZIP in the answer is damaged")
    assert files_in(tmp_path / "out") == {}


@pytest.mark.guard("room-for-a-zip")
def test_a_zip_that_unpacks_to_more_than_the_disk_has_is_kept_packed(tmp_path: Path, removed_guard: str | None) -> None:
    """No byte is unpacked: the first file would fit."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("a", "d/b"):
            archive.writestr(name, bytes(1000))
        archive.filelist[1].file_size = 1 << 60
    done = call(tmp_path, answer(base64.b64encode(buffer.getvalue()), **ZIP), without=removed_guard)
    check(done, 73, "the files of the answer have 1152922 TB, and out has room for ")
    assert stderr_of(done).endswith("\nthe whole answer is kept as a ZIP in out/in.zip; unpack it elsewhere\n")
    assert files_in(tmp_path / "out") == {"in.zip": buffer.getvalue()}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,nr_inodes=20", "none", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.parametrize("is_taken", [False, True])
def test_a_disk_that_is_full_while_a_zip_is_unpacked_keeps_it_packed(
    tmp_path: Path, small_disk: Path, is_taken: bool
) -> None:
    """The disk has no inode left for the last files. Their bytes would fit."""
    data = zip_of(**{f"d/{number}": b"x" for number in range(50)})
    if is_taken:
        (small_disk / "in.zip").write_bytes(b"of the user")
    done = call(tmp_path, answer(base64.b64encode(data), **ZIP), flags=("-o", small_disk))
    name = "in-2.zip" if is_taken else "in.zip"
    check(done, 73, f": No space left on device\nthe whole answer is kept as a ZIP in {small_disk}/{name};")
    kept = files_in(small_disk)
    assert kept.pop(name) == data
    assert kept == ({"in.zip": b"of the user"} if is_taken else {})
    assert [path.name for path in small_disk.iterdir() if path.is_dir()] == []


@pytest.mark.parametrize("size_bytes", [0, 10, 1000])
def test_a_file_that_is_larger_than_its_size_in_the_zip_is_not_unpacked_further(
    tmp_path: Path, size_bytes: int
) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(1 << 20))
        archive.filelist[0].file_size = size_bytes
    done = call(tmp_path, answer(base64.b64encode(buffer.getvalue()), **ZIP))
    check(done, 76, "the ZIP in the answer is damaged: Bad CRC-32")
    assert files_in(tmp_path / "out") == {}


def test_a_folder_that_cannot_be_opened_leaves_nothing(tmp_path: Path) -> None:
    """There is a descriptor for the directory of the user, and none for the hidden directory in it."""
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 1, hard))
    try:
        with pytest.raises(AnswerNotKept, match="Too many open files"):
            Folder(str(tmp_path), "", replaces=False).__enter__()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_signal_ends_the_unpacking_of_a_zip(tmp_path: Path) -> None:
    """A signal cancels the task. The ZIP has many pieces, so the task is not at its end."""

    async def cancelled() -> None:
        data = io.BytesIO(zip_of(zipfile.ZIP_DEFLATED, a=bytes(10 << 20)))
        with Folder(str(tmp_path), "", replaces=False) as folder:
            task = asyncio.create_task(plain._unpack(data, folder))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(cancelled())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_unusual_compression_in_a_zip_is_an_error(tmp_path: Path, compression: int) -> None:
    data = zip_of(compression, a=b"first" * 100)
    check(call(tmp_path, answer(base64.b64encode(data), **ZIP)), 76, "use --output zip")
    assert files_in(tmp_path / "out") == {}


def test_a_compressed_answer_is_an_error(tmp_path: Path) -> None:
    done = call(tmp_path, answer(gzip.compress(b"text"), Content_Encoding="gzip", Content_Type="text/plain"))
    check(done, 76, "the answer is compressed (gzip)")
    assert done.stdout == b""


@pytest.mark.parametrize(
    "raw",
    [
        b"nonsense\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        answer(b"x", X_Output_Name="x" * 100_000),
        b"HTTP/1.1 200 OK\r\nContent-Length: minus\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n",
    ],
)
def test_what_is_not_http_is_an_error(tmp_path: Path, raw: bytes) -> None:
    done = call(tmp_path, raw)
    assert done.returncode == 76, stderr_of(done)
    assert len(stderr_of(done)) < 1000
    assert files_in(tmp_path / "out") == {}


def test_an_answer_that_comes_byte_by_byte_is_read(tmp_path: Path) -> None:
    whole = answer(base64.b64encode(b"slow" * 20), **FILE)
    assert call(tmp_path, [whole[at : at + 1] for at in range(len(whole))]).returncode == 0
    assert files_in(tmp_path / "out") == {"out.bin": b"slow" * 20}


def test_an_answer_without_content_leaves_no_file(tmp_path: Path) -> None:
    assert call(tmp_path, b"HTTP/1.1 204 No Content\r\nX-Exit-Code: 0\r\n\r\n").returncode == 0
    assert files_in(tmp_path / "out") == {}


def test_an_endless_answer_ends_with_the_timeout_and_nothing_is_kept(tmp_path: Path) -> None:
    def endless(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Output-Name: a\r\n\r\n")
        while True:
            connection.sendall(b"4\r\nQUJD\r\n")

    check(call(tmp_path, endless, flags=("-o", "out", "--timeout", "3")), 124, "--timeout")
    assert files_in(tmp_path / "out") == {}


# ------------------------------------------------------------------------------------------------ hostile names


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/x", "a/../../x", "..", ".", "a//b", "a/", "%2e%2e/x", "%2Fetc/x", "a%00b", "..%2f..%2fx", "./x"],
)
@pytest.mark.guard("names-of-answers")
def test_a_name_that_leads_out_of_the_directory_is_refused(
    tmp_path: Path, name: str, removed_guard: str | None
) -> None:
    done = call(tmp_path, answer(BASE64, **(FILE | {"X_Output_Name": name})), without=removed_guard)
    check(done, 76, "is not the path of a file below a directory")
    assert files_in(tmp_path) == {"in": b"abc"}


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "\0"])
def test_a_name_in_a_zip_that_leads_out_of_the_directory_is_refused(tmp_path: Path, name: str) -> None:
    data = zip_of(**{"good": b"1", "bad-names": b"2"}).replace(b"bad-names", name.encode().ljust(9, b"_"))
    done = call(tmp_path, answer(base64.b64encode(data), **ZIP))
    if name.startswith("\0"):
        assert done.returncode == 76
    else:
        check(done, 76, "is not the path of a file below a directory")
    assert files_in(tmp_path) == {"in": b"abc"}


def test_a_name_that_is_too_long_is_an_error(tmp_path: Path) -> None:
    done = call(tmp_path, answer(BASE64, **(FILE | {"X_Output_Name": "x" * 300})))
    check(done, 73, "File name too long")
    assert files_in(tmp_path) == {"in": b"abc"}


def test_a_name_with_control_characters_does_not_reach_the_terminal(tmp_path: Path) -> None:
    done = call(tmp_path, answer(b"QUJD", **(FILE | {"X_Output_Name": "%1b%5b31mred%0anext%e2%80%ae"})))
    assert done.returncode == 0
    assert b"\\x1b[31mred\\nnext\\u202e" in done.stderr
    assert b"\x1b" not in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system")
@pytest.mark.parametrize("flags", [[], ["--force"]])
def test_a_folder_on_another_file_system_is_an_error_and_no_part_is_left(tmp_path: Path, flags: list[str]) -> None:
    folder = tmp_path / "out" / "sub"
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)], check=True)
    try:
        named = answer(b"QUJD", **(FILE | {"X_Output_Name": "sub/a"}))
        check(call(tmp_path, named, flags=("-o", "out", *flags)), 73, "on another file system than out; choose another")
        assert files_in(tmp_path / "out") == {}
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_two_names_that_exclude_each_other_are_an_error(tmp_path: Path) -> None:
    data = zip_of(**{"a": b"1", "a/b": b"2"})
    check(call(tmp_path, answer(base64.b64encode(data), **ZIP)), 73, "is a symbolic link or a file")
    assert files_in(tmp_path / "out") == {"a": b"1", "in.zip": data}


def test_a_file_of_a_zip_that_cannot_have_its_name_is_not_lost(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub").symlink_to(tmp_path)
    data = zip_of(**{"a": b"1", "sub/b": b"2", "sub/c": b"3", "d": b"4"})
    done = call(tmp_path, answer(base64.b64encode(data), **ZIP))
    assert done.returncode == 73
    assert stderr_of(done).splitlines() == [
        "out/sub is a symbolic link or a file, and not a directory; remove it, or choose another -o DIR",
        "2 other files are kept in out",
        "the whole answer is kept as a ZIP in out/in.zip; unpack it elsewhere",
    ]
    assert files_in(tmp_path / "out") == {"a": b"1", "d": b"4", "in.zip": data}


# ------------------------------------------------------------------------------------------------ errors of others


@pytest.mark.parametrize(
    ("status", "exit_code"),
    [
        ("400 Bad Request", 65),
        ("403 Forbidden", 77),
        ("404 Not Found", 69),
        ("413 Content Too Large", 65),
        ("500 Internal Server Error", 1),
        ("502 Bad Gateway", 69),
        ("504 Gateway Timeout", 124),
    ],
)
def test_a_page_of_a_proxy_is_shown_as_text(tmp_path: Path, status: str, exit_code: int) -> None:
    page = b"<html><head><title>x</title></head><body>\x1b[31m<h1>Not <b>here</b></h1>" + b"z" * 100_000
    done = call(tmp_path, answer(page, status, Content_Type="text/html"))
    check(done, exit_code, "Not here")
    assert f"the server answered {status.split()[0]} " in stderr_of(done)
    assert "<" not in stderr_of(done)
    assert "\x1b" not in stderr_of(done)
    assert len(stderr_of(done)) < 600
    assert done.stdout == b""


@pytest.mark.parametrize("status", ["401 Unauthorized", "404 Not Found", "502 Bad Gateway"])
def test_an_error_after_the_run_does_not_doubt_the_service(tmp_path: Path, status: str) -> None:
    document = b'{"title": "Outputs not stored", "exit_code": 0}'
    headers = {"X_Exit_Code": "0", "X_Duration_Seconds": "0.5", **PROBLEM}
    done = call(tmp_path, answer(document, status, **headers))
    assert (done.returncode, stderr_of(done)) == (1, "Outputs not stored\n")


def test_the_failure_of_a_classic_function_has_its_exit_code(tmp_path: Path) -> None:
    done = call(tmp_path, answer(b"why", "500 Internal Server Error", Content_Type="text/plain", X_Exit_Code="3"))
    check(done, 3, "the server answered 500 Internal Server Error: why")


def test_a_problem_document_with_odd_members_is_shown(tmp_path: Path) -> None:
    document = {"title": "T\x1b[2J", "detail": ["no text"], "exit_code": "3", "signal": "../../x", "stderr": 7}
    done = call(tmp_path, answer(json.dumps(document).encode(), "500 Odd", **PROBLEM))
    assert (done.returncode, stderr_of(done)) == (1, "T\\x1b[2J\n")
    done = call(tmp_path, answer(b"[1]", "500 Odd", **PROBLEM))
    assert done.returncode == 1


@pytest.mark.parametrize(("name", "expected"), [("SIGPOLL", 1), ("SIGNONE", 1), ("SIGSEGV", 139), ("SIGRTMIN+6", 168)])
def test_a_signal_that_this_system_does_not_have_is_an_error_of_the_service(
    tmp_path: Path, name: str, expected: int
) -> None:
    document = json.dumps({"title": "Script killed", "signal": name}).encode()
    check(call(tmp_path, answer(document, "500 X", **PROBLEM)), expected, "Script killed")


def test_the_end_of_stderr_is_shown_without_control_characters(tmp_path: Path) -> None:
    document = {"title": "Script failed", "detail": "why", "exit_code": 9, "stderr": "one\n\x1b[31mtwo\n"}
    done = call(tmp_path, answer(json.dumps(document).encode(), "500 X", X_Exit_Code="9", **PROBLEM))
    assert (done.returncode, stderr_of(done)) == (9, "Script failed: why\n  one\n  \\x1b[31mtwo\n")


@pytest.mark.parametrize("status", ["301 Moved Permanently", "307 Temporary Redirect", "308 Permanent Redirect"])
def test_a_redirect_is_not_followed(tmp_path: Path, status: str) -> None:
    (tmp_path / "token").write_text("secret")
    with scripted(answer(b"QUJD", **FILE)) as other:
        done = call(tmp_path, answer(b"", status, Location=other.url), flags=("--token-file", "token"))
        check(done, 69, f"to {other.url}; if you trust this address, use it as the URL")
        assert other.requests == []


# ------------------------------------------------------------------------------------------------ again, or not


def busy(status: str = "429 Too Many Requests", retry_after: str = "0", **headers: str) -> bytes:
    return answer(b'{"title":"Too many calls"}', status, Retry_After=retry_after, **PROBLEM, **headers)


@pytest.mark.parametrize("status", ["429 Too Many Requests", "503 Service Unavailable"])
def test_a_call_that_was_refused_for_now_is_sent_again_with_its_whole_body(tmp_path: Path, status: str) -> None:
    (tmp_path / "in").write_bytes(b"abc")
    with scripted(busy(status), busy(status), answer(b"QUJD", **FILE)) as service:
        done = invoke(service.url, "in", "-o", "out", cwd=tmp_path)
        assert done.returncode == 0, stderr_of(done)
        assert [request.partition(b"\r\n\r\n")[2] for request in service.requests] == [b"YWJj"] * 3
    assert files_in(tmp_path / "out") == {"out.bin": b"ABC"}


def test_stdin_is_sent_again_as_well(tmp_path: Path) -> None:
    with scripted(busy(), answer(b"printed", Content_Type="text/plain")) as service:
        assert invoke(service.url, "-", cwd=tmp_path, stdin=b"abc").stdout == b"printed"
        assert [request.partition(b"\r\n\r\n")[2] for request in service.requests] == [b"YWJj"] * 2


@pytest.mark.parametrize(
    "retry_after",
    [
        "1000",
        "99999999999999999999",
        "Fri, 31 Dec 2999 23:59:59 GMT",
        "Fri, 31 Dec 99999 23:59:59 GMT",
        "nonsense",
        "-1",
        "0",
        "Fri, 31 Dec 1999 23:59:59 GMT",
    ],
)
def test_a_wait_that_would_be_too_long_is_not_begun(tmp_path: Path, retry_after: str) -> None:
    done = call(tmp_path, busy(retry_after=retry_after), flags=("--retry-for", "0.5"))
    check(done, 75, "try again ")


def test_a_script_that_answers_503_itself_is_not_run_again(tmp_path: Path) -> None:
    document = b'{"title":"Script failed","detail":"why","exit_code":5}'
    refused = answer(document, "503 Service Unavailable", Retry_After="0", X_Exit_Code="5", **PROBLEM)
    assert call(tmp_path, refused, flags=("--retry-for", "3")).returncode == 5


@pytest.mark.guard("calls-that-ran")
def test_a_script_that_a_stopping_service_ended_is_not_run_again(tmp_path: Path, removed_guard: str | None) -> None:
    document = b'{"title":"Server is stopping"}'
    ended = answer(document, "503 Service Unavailable", Retry_After="0", X_Duration_Seconds="0.5", **PROBLEM)
    check(call(tmp_path, ended, flags=("--retry-for", "3"), without=removed_guard), 75, "Server is stopping")


def test_a_503_of_a_proxy_that_lost_the_service_is_not_tried_again(tmp_path: Path) -> None:
    done = call(
        tmp_path, answer(b"upstream connect error or disconnect/reset before headers", "503 Service Unavailable")
    )
    check(done, 75, "upstream connect error")


@pytest.mark.parametrize(("code", "expected"), [("7", 7), ("256", 1), ("99999999999", 1), ("-1", 0), ("0", 0)])
def test_an_exit_code_of_a_kept_answer_is_never_turned_into_success(tmp_path: Path, code: str, expected: int) -> None:
    done = call(tmp_path, answer(b"QUJD", X_Exit_Code=code, **FILE))
    assert done.returncode == expected, stderr_of(done)
    assert files_in(tmp_path / "out") == {"out.bin": b"ABC"}


def test_an_exit_code_of_thousands_of_digits_is_an_error_of_the_service(tmp_path: Path) -> None:
    done = call(tmp_path, answer(b'{"title": "Script failed"}', "500 X", X_Exit_Code="9" * 5000, **PROBLEM))
    check(done, 1, "Script failed")


@pytest.mark.parametrize("body", [b"[" * 60_000, b'{"a":' + b"[" * 60_000])
def test_a_problem_document_that_is_nested_too_deeply_is_shown_as_text(tmp_path: Path, body: bytes) -> None:
    check(call(tmp_path, answer(body, "500 X", **PROBLEM)), 1, "the server answered 500 Internal Server Error: ")


def test_a_page_full_of_open_tags_is_searched_quickly(tmp_path: Path) -> None:
    check(
        call(tmp_path, answer(b"x" + b"<head" * 13_000, "500 X", Content_Type="text/html")),
        1,
        "the server answered 500",
    )


def test_a_lost_connection_is_not_tried_again(tmp_path: Path) -> None:
    done = call(tmp_path, b"", requests=1)
    check(done, 76, "the script may have run, so the call was not sent again")


@contextlib.contextmanager
def sending_a_large_file(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """The command, and the connection on which the first bytes of its file ``in`` have come."""
    (tmp_path / "in").write_bytes(bytes(30_000_000))
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        subprocess.Popen(
            command(f"http://127.0.0.1:{listener.getsockname()[1]}", "in"),
            cwd=tmp_path,
            env=clean_environment(),
            stderr=subprocess.PIPE,
        ) as running,
    ):
        connection, _ = listener.accept()
        with connection:
            connection.recv(1000)
            yield running, connection


def test_an_answer_that_comes_before_the_whole_body_was_sent_is_shown(tmp_path: Path) -> None:
    """The body is larger than all buffers, and the service does not read it."""
    with sending_a_large_file(tmp_path) as (running, connection):
        connection.sendall(answer(b'{"title":"Input too large"}', "413 X", **PROBLEM))
        _, errors = running.communicate(timeout=60)
    assert (running.returncode, errors) == (65, b"Input too large\n")


def test_a_file_that_becomes_shorter_while_it_is_sent_is_an_error(tmp_path: Path) -> None:
    with sending_a_large_file(tmp_path) as (running, connection):
        os.truncate(tmp_path / "in", 1000)
        while connection.recv(1 << 20):
            pass
        _, errors = running.communicate(timeout=60)
    assert (running.returncode, errors) == (66, b"the file in became shorter while it was sent; send it again\n")


# ------------------------------------------------------------------------------------------------ local disk


def test_a_file_size_limit_is_an_error_and_no_part_is_left(tmp_path: Path) -> None:
    """RLIMIT_FSIZE acts like a full disk: the write fails."""
    (tmp_path / "in").write_bytes(b"abc")
    with scripted(WHOLE) as service:
        done = subprocess.run(
            ["prlimit", "--fsize=1000", *command(service.url, "in", "-o", "out")],
            cwd=tmp_path,
            env=clean_environment(),
            capture_output=True,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stderr) == (73, b"the answer cannot be written to out.bin: File too large\n")
    assert files_in(tmp_path / "out") == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_during_the_answer_leaves_no_file(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "in").write_bytes(b"abc")

    def half(connection: socket.socket) -> None:
        connection.sendall(WHOLE[: HEAD + 200_000])
        connection.recv(1)

    with (
        scripted(half) as service,
        subprocess.Popen(command(service.url, "in", "-o", "out"), cwd=tmp_path, env=clean_environment()) as running,
    ):
        while not any(len(content) > 100_000 for content in files_in(tmp_path / "out").values()):
            assert running.poll() is None
        (name,) = files_in(tmp_path / "out")
        assert re.fullmatch(r"\.invoke-[0-9a-f]{8}\.part/0", name)
        running.send_signal(number)
        assert running.wait(timeout=60) == 128 + number
    assert list((tmp_path / "out").iterdir()) == []


def test_a_terminal_shows_the_progress_in_both_directions(tmp_path: Path) -> None:
    """The service goes on only after the terminal has shown each step."""
    (tmp_path / "in").write_bytes(bytes(30 << 20))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        words = command(f"http://127.0.0.1:{listener.getsockname()[1]}", "in", "-o", "out")
        with on_terminal(words, cwd=tmp_path, env=clean_environment(TERM="xterm")) as (running, terminal):
            connection, _ = listener.accept()
            with connection:
                shown = read_terminal(terminal, through=b" of 30.0 MiB")
                assert b"sending  [" in shown
                read_request(connection)
                read_terminal(terminal, through=b"waiting for the answer")
                connection.sendall(WHOLE[: HEAD + 200_000])
                read_terminal(terminal, through=b"receiving  [")
                connection.sendall(WHOLE[HEAD + 200_000 :])
                shown = read_terminal(terminal)
    assert running.wait(timeout=60) == 0
    assert b"in 31 MB -> out/out.bin 300 kB" in shown


@pytest.mark.parametrize("flags", [[], ["--live"]])
def test_a_service_cannot_make_a_hidden_file_in_the_current_directory(tmp_path: Path, flags: list[str]) -> None:
    (tmp_path / "in").write_bytes(b"abc")
    data = {"name": ".bashrc", "content_type": "application/x", "size": 3, "data": "QUJD"}
    stream = b"event: output\ndata: %b\n\n" % json.dumps(data).encode()
    live = answer(stream, Content_Type="text/event-stream")
    plain = answer(b"QUJD", **(FILE | {"X_Output_Name": ".bashrc"}))
    code, shown = on_a_terminal(tmp_path, live if flags else plain, "in", *flags)
    assert code == 73
    assert b"use -o DIR to keep it there" in shown
    assert files_in(tmp_path) == {"in": b"abc"}


def on_a_terminal(tmp_path: Path, service_answer: bytes, *words: object) -> tuple[int, bytes]:
    """Return the exit code of a command on a terminal, and what the terminal shows."""
    with scripted(service_answer) as service:
        return invoke_on_terminal(service.url, *words, cwd=tmp_path)


def test_an_answer_that_is_named_after_a_hidden_input_is_kept(tmp_path: Path) -> None:
    """The user chose this name, and not the service."""
    (tmp_path / ".photo").write_bytes(b"abc")
    code, shown = on_a_terminal(tmp_path, answer(b"\0x", Content_Type="image/png"), ".photo")
    assert code == 0, shown
    assert files_in(tmp_path) == {".photo": b"abc", ".photo.png": b"\0x"}


def test_a_content_type_with_control_characters_does_not_reach_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"abc")
    code, shown = on_a_terminal(tmp_path, answer(b"x", Content_Type="\x9b31m\u202e/x"), "in", "-o", "-")
    assert code == 73
    assert b"\\x9b31m\\u202e/x" in shown


@pytest.mark.parametrize("fraction", [1e15, -1e15, 1e308])
def test_a_progress_of_any_size_does_not_stop_a_call_on_a_terminal(tmp_path: Path, fraction: float) -> None:
    (tmp_path / "in").write_bytes(b"abc")
    stream = b'event: progress\ndata: {"fraction": %a, "text": "x"}\n\n' % fraction
    stream += b'event: completed\ndata: {"status": 200}\n\n'
    live = answer(stream, Content_Type="text/event-stream")
    code, shown = on_a_terminal(tmp_path, live, "in", "-o", "out", "--live")
    assert code == 0, shown


def test_a_second_signal_ends_a_command_whose_reader_has_stalled(tmp_path: Path) -> None:
    """The first signal cannot cancel the call, because the command waits for the reader of its stdout."""
    (tmp_path / "in").write_bytes(b"abc")
    with (
        scripted(answer(bytes(3_000_000), Content_Type="text/plain")) as service,
        subprocess.Popen(
            command(service.url, "in"), cwd=tmp_path, env=clean_environment(), stdout=subprocess.PIPE
        ) as running,
    ):
        assert running.stdout is not None
        with open(f"/proc/self/fd/{running.stdout.fileno()}", "wb") as pipe:
            until(lambda: not select.select([], [pipe], [], 0)[1], "the pipe to be full")
        while running.poll() is None:
            running.send_signal(signal.SIGTERM)
            time.sleep(0.05)
        # While Python ends, it has no handler any more.
        assert running.returncode in (143, -signal.SIGTERM)
