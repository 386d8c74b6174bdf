"""The output of a script: text or binary data, its content type, and the single line of binary data in the log."""

from __future__ import annotations

import bz2
import contextlib
import functools
import gzip
import io
import itertools
import json
import lzma
import random
import sqlite3
import subprocess
import tarfile
import wave
import zipfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from running_server import StartServer, problem

from watchdog.logs import script_log
from watchdog.logs import sink as sink_module
from watchdog.output.media_type import guessed_type
from watchdog.output.printed import Printed, joined_type, type_of_start

NOISE = random.Random(5).randbytes(200_000)
TEXT = "text/plain"
BINARY = "application/octet-stream"


# ---- real files, made by other programs, and the beginnings of formats that no program here writes


@functools.cache
def picture(ending: str) -> bytes:
    command = ["convert", "-size", "40x30", "xc:red", f"{ending}:-"]
    return subprocess.run(command, capture_output=True, check=True).stdout


def zip_file() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", "text")
    return file.getvalue()


def empty_zip_file() -> bytes:
    file = io.BytesIO()
    zipfile.ZipFile(file, "w").close()
    return file.getvalue()


def tar_file(tar_format: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tar_format) as archive:
        archive.addfile(tarfile.TarInfo("a.txt"))
    return file.getvalue()


def wav_file() -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as audio:
        audio.setparams((1, 2, 8000, 0, "NONE", ""))
        audio.writeframes(bytes(100))
    return file.getvalue()


def sqlite_file() -> bytes:
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE t (x)")
        return connection.serialize()


# Make a file only when a test needs it, because each process of the tests imports this module.
PICTURES = {"a.png": "png", "a.jpg": "jpg", "a.gif": "gif", "a.tiff": "tiff", "a.bmp": "bmp", "old.bmp": "bmp2"}
FILES = {
    "a.zip": zip_file(),
    "empty.zip": empty_zip_file(),
    "gnu.tar": tar_file(tarfile.GNU_FORMAT),
    "pax.tar": tar_file(tarfile.PAX_FORMAT),
    "a.wav": wav_file(),
    "a.sqlite3": sqlite_file(),
    "a.gz": gzip.compress(b"text"),
    "a.bz2": bz2.compress(b"text"),
    "empty.bz2": bz2.compress(b""),
    "a.xz": lzma.compress(b"text"),
    "a.webp": b"RIFF\x24\0\0\0WEBPVP8 \x18\0\0\0",
    "a.jp2": b"\0\0\0\x0cjP  \r\n\x87\n",
    "a.avif": b"\0\0\0\x1cftypavif\0\0\0\0",
    "a.heic": b"\0\0\0\x18ftypheic\0\0\0\0",
    "a.mp4": b"\0\0\0\x20ftypisom\0\0\2\0",
    "a.m4a": b"\0\0\0\x20ftypM4A \0\0\2\0",
    "a.mov": b"\0\0\0\x14ftypqt  \0\0\2\0",
    "a.webm": b"\x1a\x45\xdf\xa3\x9fB\x86\x81\1B\xf7\x81\1B\xf2\x81\4B\xf3\x81\x08B\x82\x84webm",
    "a.mkv": b"\x1a\x45\xdf\xa3\xa3B\x86\x81\1B\xf7\x81\1B\xf2\x81\4B\xf3\x81\x08B\x82\x88matroska",
    "a.avi": b"RIFF\x24\0\0\0AVI LIST",
    "a.flac": b'fLaC\0\0\0"\x10\0\x10\0',
    "a.mp3": b"\xff\xfb\x90\x64" + bytes(100),
    "tagged.mp3": b"ID3\4\0\0\0\0\0\x23TSSE",
    "a.ogg": b"OggS\0\2" + bytes(20),
    "a.pdf": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
    "a.zst": b"\x28\xb5\x2f\xfd\x04\0",
    "a.7z": b"7z\xbc\xaf\x27\x1c\0\4",
    "a.h5": b"\x89HDF\r\n\x1a\n\0\0\0\0",
    "a.hdf5": b"\x89HDF\r\n\x1a\n\2\x08\x08\0",
    "a.nc": b"CDF\1\0\0\0\0",
    "a.fits": b"SIMPLE  =                    T / conforms to FITS standard",
    "a.dcm": bytes(128) + b"DICM\2\0",
    "a.parquet": b"PAR1\x15\x04\x15\x20",
    "a.arrow": b"ARROW1\0\0\xff\xff\xff\xff",
}


def content(name: str) -> bytes:
    return picture(PICTURES[name]) if name in PICTURES else FILES[name]


@pytest.mark.parametrize("name", [*PICTURES, *FILES])
def test_the_first_bytes_give_the_type_that_the_file_name_gives(name: str) -> None:
    assert guessed_type(name) != BINARY
    assert type_of_start(content(name)[:265]) == guessed_type(name)


@pytest.mark.parametrize(
    "text",
    [
        "BM25 scores of all documents, sorted by rank\n",
        "GIF89a is a format of pictures\n",
        "PAR1 = 3\n",
        "CDF of the sample\n",
        "ID3 decision tree\n",
        "OggS pages: 3\n",
        "fLaC\n",
        "ARROW1 and ARROW2\n",
        "II* is significant\n",
        "MM 1\n",
        "PK pharmacokinetics\n",
        "BZh9\n",
        "7z archive\n",
        "SIMPLE  = T\n",
        "RIFF, WAVE\n",
        "ID3\n",
        "PDF\n",
        '{"a": 1}\n',
        "",
    ],
)
def test_text_that_begins_like_a_format_is_text(text: str) -> None:
    printed = Printed()
    assert not printed.take(text.encode())
    assert printed.media_type == TEXT


# ---- text or not


@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        ("Größe: 3 µm, 日本 🌿\n".encode(), TEXT),
        (b"\x1b[31mred\x1b(B\x0f\x1b[m 10%\r20%\b\x07\x0c\n", TEXT),
        (b"\xef\xbb\xbfwith a byte order mark\n", TEXT),
        ("Größe\n".encode("latin-1"), BINARY),
        ("Größe\n".encode("utf-16"), BINARY),
        ("Größe".encode()[:-4], BINARY),  # it ends in the middle of a character
        (b"a\0b\0", BINARY),
        (b"\x93NUMPY\1\0v\0{'descr': '<f8'}", BINARY),
        (NOISE, BINARY),
        (b"x" * 100_000 + b"\xff", BINARY),  # all of it is checked
    ],
    ids=lambda value: repr(value[:12]),
)
def test_text_is_utf_8_without_nul(data: bytes, media_type: str) -> None:
    printed = Printed()
    printed.take(data)
    assert printed.media_type == media_type


@given(
    data=st.one_of(
        st.binary(max_size=400), st.text().map(str.encode), st.sampled_from([*PICTURES, *FILES]).map(content)
    ),
    cuts=st.lists(st.integers(0, 400)),
)
@example(data=FILES["gnu.tar"], cuts=list(range(400)))
@example(data="é".encode(), cuts=[1])
def test_the_type_does_not_depend_on_how_the_stream_is_cut(data: bytes, cuts: list[int]) -> None:
    printed = Printed()
    ends = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    for start, end in itertools.pairwise(ends):
        printed.take(data[start:end])
    try:
        is_text = "\0" not in data.decode()
    except UnicodeDecodeError:
        is_text = False
    assert printed.media_type == (type_of_start(data[:265]) or (TEXT if is_text else BINARY))


def test_text_in_another_encoding_does_not_count_as_binary_data() -> None:
    for encoding in ("latin-1", "cp1252"):
        assert not Printed().take("Größe: 3 µm\tgut\n".encode(encoding))
    for encoding in ("shift_jis", "euc_jp", "gb18030", "big5"):
        assert not Printed().take("日本\n".encode(encoding))


def test_a_character_cut_in_two_is_not_binary_data() -> None:
    printed = Printed()
    data = "é".encode()
    assert [printed.take(data[:1]), printed.take(data[1:] + b"\x01\n")] == [False, False]
    assert printed.media_type == TEXT


def test_what_follows_binary_data_is_binary_data() -> None:
    printed = Printed()
    assert [printed.take(piece) for piece in (FILES["gnu.tar"], b"text in the archive\n")] == [True, True]
    printed = Printed()
    assert [printed.take(piece) for piece in (b"converting\n", NOISE, b"done\n")] == [False, True, True]


def test_the_type_of_several_streams() -> None:
    png = "image/png"
    assert joined_type([]) == TEXT
    assert joined_type([(3, TEXT), (5, TEXT)]) == TEXT
    assert joined_type([(0, TEXT), (5, png)]) == png
    assert joined_type([(5, png), (5, png)]) == BINARY
    assert joined_type([(3, TEXT), (5, png)]) == BINARY


# ---- through the server


def png() -> bytes:
    return picture("png") + NOISE


def printing(data: bytes, directory: Path) -> str:
    (directory / "data").write_bytes(data)
    return f"cat {directory}/data"


@pytest.mark.parametrize(
    ("path", "accept", "media_type"),
    [
        ("/", "*/*", "image/png"),
        ("/", "text/plain", "image/png"),
        ("/", "image/png", "image/png"),
        ("/", "image/*, text/html;q=0.5", "image/png"),
        ("/", "application/json, text/plain, */*", "image/png"),
        ("/?output=raw", "*/*", "image/png"),
        ("/?output=base64", "*/*", "image/png"),
        ("/", "application/octet-stream", "application/octet-stream"),
    ],
)
def test_a_printed_picture_has_its_type(
    start_server: StartServer, tmp_path: Path, path: str, accept: str, media_type: str
) -> None:
    server = start_server(printing(png(), tmp_path))
    answer = server.call(b"", path, headers={"Accept": accept})
    assert (answer.status, answer.headers["Content-Type"]) == (200, media_type)
    assert answer.body == png()
    assert answer.headers["X-Warning"] is None


def test_a_printed_zip_is_what_accept_zip_asks_for(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server(printing(FILES["a.zip"], tmp_path))
    answer = server.call(b"", headers={"Accept": "application/zip"})
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/zip")
    assert answer.body == FILES["a.zip"]


def test_what_accept_cannot_have_of_a_printed_picture(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server(printing(png(), tmp_path))
    detail = str(problem(server.call(b"", headers={"Accept": "image/jpeg"}), 406)["detail"])
    assert "only its stdout, of type image/png" in detail
    assert "image/png or application/octet-stream (?output=raw)" in detail


def test_printed_text_is_plain_text_as_before(start_server: StartServer) -> None:
    server = start_server("""echo '{"a": 1}'""")
    for headers in ({}, {"Accept": "text/plain"}):
        answer = server.call(b"", headers=headers)
        assert (answer.body, answer.headers["Content-Type"]) == (b'{"a": 1}\n', "text/plain; charset=utf-8")


def test_the_type_that_the_script_chose_wins(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server("echo 'Content-Type: image/x-mine' > $HTTP_RESPONSE_FILE; " + printing(png(), tmp_path))
    assert server.call(b"").headers.get_all("Content-Type") == ["image/x-mine"]


def test_the_type_of_a_classic_function_does_not_depend_on_what_it_prints(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server(None, fprocess=printing(png(), tmp_path))
    assert server.call(b"", headers={"Content-Type": "text/csv"}).headers["Content-Type"] == "text/csv"


@pytest.mark.guard("binary-data-left-out")
def test_printed_binary_data_is_one_line_in_the_log(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server(printing(png(), tmp_path))
    call_id = server.call(b"").headers["X-Call-Id"]
    server.event("invocation ended")
    assert server.stop() == 0
    lines = [event for event in server.logs if event["logger"] == "script"]
    assert [line["event"] for line in lines] == [f"{len(png()):,} bytes of binary data on stdout"]
    assert (lines[0]["level"], lines[0]["stream"], lines[0]["call_id"]) == ("info", "stdout", call_id)


def test_binary_data_in_small_pieces_is_one_line_in_the_log(tmp_path: Path) -> None:
    text, noise = b"converting\n", bytes(range(256)) * 64
    pieces = [text, *(noise[at : at + 7] for at in range(0, len(noise), 7))]
    printed, counted = Printed(), 0
    with (tmp_path / "log").open("wb") as file:
        sink = sink_module.LogWriter(file.fileno())
        log = script_log.ScriptLog(sink, stream="stdout", call_id="c")
        for piece in pieces:
            if printed.take(piece):
                log.leave_out(piece)
                counted += len(piece)
            else:
                log.feed(piece)
        log.close()
        assert sink.close(10)
    lines = [json.loads(line)["event"] for line in (tmp_path / "log").read_bytes().splitlines()]
    assert lines == ["converting", f"{len(noise):,} bytes of binary data on stdout"]
    assert counted == len(noise)


def test_text_before_printed_binary_data_is_logged(start_server: StartServer, tmp_path: Path) -> None:
    # The second write waits until the server has logged the first line.
    go = tmp_path / "go"
    server = start_server(
        f"echo converting; printf 'to png '; until [ -e {go} ]; do sleep 0.02; done; {printing(png(), tmp_path)}"
    )
    with server.connect() as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        server.event("converting")
        go.touch()
        server.event("to png ")
        binary = server.event(f"{len(png()):,} bytes of binary data on stdout")
    assert binary["stream"] == "stdout"


def test_json_of_a_call_that_printed_binary_data_is_json(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server(printing(png(), tmp_path))
    outcome = json.loads(server.call(b"", "/?output=json").body)
    assert (outcome["outputs"], outcome["warnings"]) == ([], [])
