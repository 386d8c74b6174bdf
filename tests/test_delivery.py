"""Outputs become answers: their forms and bytes, files that change, and callers that disconnect."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import io
import json
import os
import re
import stat
import subprocess
import threading
import time
import tracemalloc
import zipfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest
from changes import lengthen, rewrite, shorten
from hypothesis import example, given, settings
from hypothesis import strategies as st
from live_call import Event, outputs_of

from watchdog.errors import AnswerNotAvailable, BadInput, OutputUnreadable
from watchdog.output import encode, zip_format
from watchdog.output import media_type as media_type_module
from watchdog.output.accept import AnswerForm, AnswerPreference, choose_form
from watchdog.output.answer import Answer, Result, prepare
from watchdog.output.call_warning import CallWarning
from watchdog.output.event_stream import result_events
from watchdog.workspace.outputs import Output

PIECE_BYTES = 384 * 1024
LARGE_BYTES = 3 * PIECE_BYTES + 1


# --------------------------------------------------------------------------------------- outputs of tests


@dataclass
class Stdout:
    """The stdout of a script, in memory."""

    data: bytes = b""
    size_bytes: int = -1
    threads: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.size_bytes < 0:
            self.size_bytes = len(self.data)

    def pieces(self, piece_bytes: int) -> Iterator[bytes]:
        for start in range(0, len(self.data), piece_bytes):
            self.threads.append(threading.get_ident())
            yield self.data[start : start + piece_bytes]


def output_of(root: Path, path: Path) -> Output:
    status = path.stat()
    return Output(str(path), str(path.relative_to(root)), status.st_size, status.st_mtime, status.st_mode)


def left(root: Path, files: dict[str, bytes], stdout: bytes = b"", **fields: object) -> Result:
    """Return the result of a script that left these files."""
    outputs = []
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        outputs.append(output_of(root, path))
    values: dict[str, object] = {"exit_code": 0, "duration_s": 1.5, **fields}
    return Result(outputs, Stdout(stdout), **values)  # type: ignore[arg-type]


def noise(size_bytes: int) -> bytes:
    return hashlib.shake_128(b"noise").digest(size_bytes)


async def whole(answer: Answer) -> bytes:
    return b"".join([chunk async for chunk in answer.chunks()])


async def answered(result: Result, *, output: str | None = None, accept: str | None = None) -> tuple[Answer, bytes]:
    """Return the answer and its body. Check that the body has the announced length."""
    answer = await prepare(result, choose_form(accept, output))
    body = await whole(answer)
    assert len(body) == answer.length
    assert answer.body is None or answer.body == body
    return answer, body


def unzipped(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


class OsWithPread:
    """The os module for the delivery, with another pread()."""

    def __init__(self, pread: object) -> None:
        self.pread = pread

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)


def open_descriptors() -> set[str]:
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add(fd + " " + os.readlink(f"/proc/self/fd/{fd}"))
    return found


# ------------------------------------------------------------------------------------ choice of the form

PNG = ["plant.png"]
SEVERAL = ["a.png", "b.csv"]
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
JAVA = "text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2"


@pytest.mark.parametrize(
    ("accept", "names", "form", "media_type"),
    [
        (None, PNG, AnswerForm.BASE64, "text/plain"),
        ("", PNG, AnswerForm.BASE64, "text/plain"),
        (" , ", PNG, AnswerForm.BASE64, "text/plain"),
        ("*/*", PNG, AnswerForm.BASE64, "text/plain"),
        ("*/*", [], AnswerForm.BASE64, "text/plain"),
        ("text/*", PNG, AnswerForm.BASE64, "text/plain"),
        ("text/*", ["page.html"], AnswerForm.BASE64, "text/plain"),
        ("TEXT/Plain; charset=utf-8", SEVERAL, AnswerForm.BASE64, "text/plain"),
        ("text/plain", ["notes.txt"], AnswerForm.BASE64, "text/plain"),
        ("application/zip", PNG, AnswerForm.ZIP, "application/zip"),
        ("application/zip", SEVERAL, AnswerForm.ZIP, "application/zip"),
        ("application/zip", ["all.zip"], AnswerForm.ZIP, "application/zip"),
        ("application/json", PNG, AnswerForm.JSON, "application/json"),
        ("application/json", [], AnswerForm.JSON, "application/json"),
        ("application/json", ["plant.json"], AnswerForm.JSON, "application/json"),
        ("image/png", PNG, AnswerForm.RAW, "image/png"),
        ("image/*", PNG, AnswerForm.RAW, "image/png"),
        ("IMAGE/PNG", PNG, AnswerForm.RAW, "image/png"),
        ("application/octet-stream", PNG, AnswerForm.RAW, "application/octet-stream"),
        ("application/octet-stream", ["notes.txt"], AnswerForm.RAW, "application/octet-stream"),
        ("application/octet-stream", [], AnswerForm.RAW, "application/octet-stream"),
        ("application/*", ["plant.json"], AnswerForm.RAW, "application/json"),
        ("application/*", SEVERAL, AnswerForm.ZIP, "application/zip"),
        # If no output fits a range, the next range counts.
        ("image/jpeg, application/zip;q=0.5", PNG, AnswerForm.ZIP, "application/zip"),
        ("image/jpeg, text/plain;q=0.1, application/zip;q=0.5", SEVERAL, AnswerForm.ZIP, "application/zip"),
        ("application/zip, */*;q=0.1", [], AnswerForm.BASE64, "text/plain"),
        # The weight decides, then the more specific range, then the server's order. With */* of the same weight, the
        # server's order decides.
        ("image/*, text/plain", PNG, AnswerForm.BASE64, "text/plain"),
        ("image/png, text/*", PNG, AnswerForm.RAW, "image/png"),
        ("application/json, image/*;q=0.9, */*;q=0.8", PNG, AnswerForm.JSON, "application/json"),
        ("image/png, */*;q=0.9", PNG, AnswerForm.RAW, "image/png"),
        ("application/json, */*", SEVERAL, AnswerForm.BASE64, "text/plain"),
        ("application/json;q=0.3, */*;q=0.5", PNG, AnswerForm.BASE64, "text/plain"),
        ("image/png, */*, text/plain;q=0.5", PNG, AnswerForm.RAW, "image/png"),
        ("image/png;q=0.5, application/json", PNG, AnswerForm.JSON, "application/json"),
        ("image/png, */*", PNG, AnswerForm.BASE64, "text/plain"),
        ("application/json, text/plain, */*", PNG, AnswerForm.BASE64, "text/plain"),
        ("image/*;q=0.9, image/png;q=0.1, text/plain;q=0.5", PNG, AnswerForm.BASE64, "text/plain"),
        ("*/*, text/plain;q=0", PNG, AnswerForm.RAW, "image/png"),
        ("*/*, text/plain;q=0", SEVERAL, AnswerForm.ZIP, "application/zip"),
        ("text/*, text/plain;q=0", ["page.html"], AnswerForm.RAW, "text/html"),
        # Headers that browsers and Java send by default.
        (BROWSER, ["page.html"], AnswerForm.RAW, "text/html"),
        (BROWSER, PNG, AnswerForm.BASE64, "text/plain"),
        (BROWSER, SEVERAL, AnswerForm.BASE64, "text/plain"),
        (JAVA, ["photo.jpg"], AnswerForm.RAW, "image/jpeg"),
        (JAVA, PNG, AnswerForm.BASE64, "text/plain"),
        ('application/zip;note="a, b;q=0";q=1.000 , , image/png ; q=0', PNG, AnswerForm.ZIP, "application/zip"),
    ],
)
def test_accept_chooses_the_form(accept: str | None, names: list[str], form: AnswerForm, media_type: str) -> None:
    offer = choose_form(accept, None).resolve([Output("/x", name, 1, 0.0, 0o100644) for name in names])
    assert (offer.form, offer.media_type) == (form, media_type)


@pytest.mark.parametrize(
    ("accept", "names", "advice"),
    [
        ("image/jpeg", PNG, ["'plant.png'", "image/png or application/octet-stream (?output=raw)"]),
        ("image/jpeg, image/png;q=0", PNG, ["'plant.png'"]),
        ("image/png", SEVERAL, ["2 files: 'a.png', 'b.csv'", "application/zip (?output=zip)"]),
        ("application/zip", [], ["no file in TMP_OUTPUT_DIR", "text/plain (?output=base64)"]),
        ("image/png", [], ["only its stdout", "application/octet-stream (?output=raw)"]),
        ("image/png", [f"{n}.png" for n in range(9)], ["9 files", "'4.png', …"]),
    ],
)
def test_an_accept_that_fits_no_output_is_rejected_with_the_possible_types(
    accept: str, names: list[str], advice: list[str]
) -> None:
    with pytest.raises(AnswerNotAvailable) as caught:
        choose_form(accept, None).resolve([Output("/x", name, 1, 0.0, 0o100644) for name in names])
    for text in advice:
        assert text in str(caught.value)


@pytest.mark.parametrize("accept", ["*/*;q=0", "text/plain;q=0.0, application/zip;q=0"])
def test_an_accept_that_refuses_everything_is_rejected_before_the_script_runs(accept: str) -> None:
    with pytest.raises(AnswerNotAvailable, match="refuses every form"):
        choose_form(accept, None)


@pytest.mark.parametrize(
    "accept",
    [
        "png",
        "image/",
        "/png",
        "*/png",
        "a/b/c",
        "ïmage/png",
        "image/png\x00",
        "image/png json",
        "image/png;q=2",
        "image/png;q=-1",
        "image/png;q=x",
        'image/png;q="1"',
        "image/png;=1",
        'image/png;a="b',
        ";q=1",
    ],
)
def test_a_malformed_accept_is_bad_input(accept: str) -> None:
    with pytest.raises(BadInput, match="Accept"):
        choose_form(accept, None)


@given(st.text(alphabet=' \t,;=/*"\\q0.1ab', max_size=60))
@example(";" + " \t" * 3000 + "\x00")
@example("a/b;" + " ;" * 4000 + '"')
@example("a/b" + ';a="' + '\\"' * 3000)
def test_no_accept_does_more_than_be_refused(accept: str) -> None:
    try:
        preference = choose_form(accept, None)
    except (BadInput, AnswerNotAvailable):
        return
    with contextlib.suppress(AnswerNotAvailable):
        preference.resolve([Output("/x", "a.png", 1, 0.0, 0o100644)])


@given(
    st.permutations(["text/plain;q=0.4", "application/json;q=0.3", "image/png;q=0.2", "*/*;q=0.1"]),
    st.sampled_from([PNG, SEVERAL, []]),
)
def test_the_order_of_ranges_does_not_count(ranges: list[str], names: list[str]) -> None:
    offer = choose_form(", ".join(ranges), None).resolve([Output("/x", n, 1, 0.0, 0o100644) for n in names])
    assert offer.form is AnswerForm.BASE64


@pytest.mark.parametrize("form", list(AnswerForm))
def test_the_output_parameter_wins_over_accept(form: AnswerForm) -> None:
    assert choose_form("image/jpeg;q=broken", form.value.upper()) == AnswerPreference(form)


@pytest.mark.parametrize("value", ["", "tar", "raw,zip"])
def test_an_unknown_output_parameter_names_the_known(value: str) -> None:
    with pytest.raises(BadInput, match="base64, raw, zip, json"):
        choose_form(None, value)


# --------------------------------------------------------------------------------------------- the bodies

SIZES = [
    0,
    1,
    2,
    3,
    65536,
    65537,
    PIECE_BYTES - 1,
    PIECE_BYTES,
    PIECE_BYTES + 1,
    2 * PIECE_BYTES,
    LARGE_BYTES,
]


@pytest.mark.parametrize("size_bytes", SIZES)
async def test_one_file_comes_as_base64_and_a_line_end(tmp_path: Path, size_bytes: int) -> None:
    data = noise(size_bytes)
    answer, body = await answered(left(tmp_path, {"plant.png": data}))
    assert body == base64.b64encode(data) + b"\n"
    assert answer.content_type == "text/plain; charset=utf-8"
    assert answer.headers == {"X-Output-Name": "plant.png", "X-Output-Content-Type": "image/png"}


@pytest.mark.parametrize("size_bytes", SIZES)
async def test_one_file_comes_raw(tmp_path: Path, size_bytes: int) -> None:
    data = noise(size_bytes)
    answer, body = await answered(left(tmp_path, {"out/plant.png": data}), output="raw")
    assert body == data
    assert answer.content_type == "image/png"
    assert answer.headers == {
        "X-Output-Name": "out/plant.png",
        "X-Output-Content-Type": "image/png",
        "Content-Disposition": 'attachment; filename="plant.png"',
    }


@pytest.mark.parametrize("output", [None, "raw"])
@pytest.mark.parametrize("size_bytes", [0, 5, 65537, LARGE_BYTES])
async def test_without_a_file_the_stdout_comes_as_it_is(output: str | None, size_bytes: int) -> None:
    data = noise(size_bytes)
    answer, body = await answered(Result([], Stdout(data), 0, 0.1), output=output)
    assert body == data
    assert answer.content_type == "text/plain; charset=utf-8"
    assert answer.headers == {}


FILES = {
    "small.txt": b"leaf\n",
    "deep/er/large.bin": noise(LARGE_BYTES),
    "empty": b"",
    "grün 🌿.txt": b"utf-8",
    os.fsdecode(b"latin-\xe9.txt"): b"latin",
}


async def test_several_files_come_as_a_zip(tmp_path: Path) -> None:
    answer, body = await answered(left(tmp_path, FILES), output="zip")
    assert answer.content_type == "application/zip"
    assert answer.headers == {"Content-Disposition": 'attachment; filename="outputs.zip"'}
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        assert archive.testzip() is None
        entries = archive.infolist()
        assert [archive.read(entry) for entry in entries] == list(FILES.values())
    # A name that is not UTF-8 keeps its bytes; without the flag they are read as the old code page 437.
    latin = b"latin-\xe9.txt".decode("cp437")
    assert [entry.filename for entry in entries] == [*list(FILES)[:-1], latin]
    assert [bool(entry.flag_bits & 0x800) for entry in entries] == [False, False, False, True, False]
    assert {entry.flag_bits & 8 for entry in entries} == {0}, "no data descriptors"
    assert {entry.compress_type for entry in entries} == {zipfile.ZIP_STORED}


@pytest.mark.parametrize("files", [FILES, {"a": b"1", "b": b"2"}])
async def test_several_files_come_as_base64_of_the_zip(tmp_path: Path, files: dict[str, bytes]) -> None:
    result = left(tmp_path, files)
    answer, body = await answered(result)
    _, zip_body = await answered(result, output="zip")
    assert body == base64.b64encode(zip_body) + b"\n"
    assert answer.content_type == "text/plain; charset=utf-8"
    # Printed text, which may be base64 of a ZIP as well, does not have this header.
    assert answer.headers == {"X-Output-Content-Type": "application/zip"}


async def test_one_file_comes_as_a_zip_too(tmp_path: Path) -> None:
    answer, body = await answered(left(tmp_path, {"a/b.txt": b"leaf"}), output="zip")
    assert unzipped(body) == {"a/b.txt": b"leaf"}
    assert answer.headers["X-Output-Name"] == "a/b.txt"


@pytest.mark.parametrize(
    ("output", "files"), [("zip", {}), ("raw", {"a": b"1", "b": b"2"})], ids=["zip of none", "raw of two"]
)
async def test_a_form_that_the_outputs_do_not_have(tmp_path: Path, output: str, files: dict[str, bytes]) -> None:
    with pytest.raises(AnswerNotAvailable, match=rf"\?output={output} cannot be answered"):
        await prepare(left(tmp_path, files), choose_form(None, output))


async def test_json_has_everything(tmp_path: Path) -> None:
    answer, body = await answered(
        left(
            tmp_path,
            FILES,
            exit_code=0,
            duration_s=1.23456789,
            stdout_tail='"\n',
            stderr_tail="é",
            warnings=[CallWarning("doubt", "latin-\udce9.txt is large")],
        ),
        output="json",
    )
    assert answer.content_type == "application/json"
    assert body.endswith(b"}\n")
    found = json.loads(body.decode("utf-8"))
    assert list(found) == ["exit_code", "duration_s", "outputs", "stdout", "stderr", "warnings"]
    assert (found["exit_code"], found["duration_s"]) == (0, 1.234568)
    assert (found["stdout"], found["stderr"]) == ('"\n', "é")
    assert found["warnings"] == [{"name": "doubt", "detail": "latin-\\xe9.txt is large"}]
    assert [entry["name"] for entry in found["outputs"]] == [*list(FILES)[:-1], "latin-\\xe9.txt"]
    for entry, data in zip(found["outputs"], FILES.values(), strict=True):
        assert list(entry) == ["name", "size", "content_type", "sha256", "data"]
        assert base64.b64decode(entry["data"], validate=True) == data
        assert (entry["size"], entry["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert found["outputs"][0]["content_type"] == "text/plain"
    assert found["outputs"][1]["content_type"] == "application/octet-stream"


async def test_json_without_a_file() -> None:
    answer, body = await answered(Result([], Stdout(b"leaf"), 3, 2.0, "leaf", ""), output="json")
    assert json.loads(body) == {
        "exit_code": 3,
        "duration_s": 2.0,
        "outputs": [],
        "stdout": "leaf",
        "stderr": "",
        "warnings": [],
    }
    assert answer.headers == {}


_NAME = st.binary(min_size=1, max_size=40).filter(lambda n: not {0, 0x2F} & set(n) and n not in (b".", b".."))


@settings(max_examples=60)
@given(
    st.dictionaries(_NAME, st.binary(max_size=100) | st.sampled_from([noise(n) for n in SIZES]), max_size=4),
    st.sampled_from(list(AnswerForm)),
)
async def test_every_form_gives_the_files_back(
    tmp_path_factory: pytest.TempPathFactory, files: dict[bytes, bytes], form: AnswerForm
) -> None:
    root = tmp_path_factory.mktemp("outputs")
    result = left(root, {os.fsdecode(name): data for name, data in files.items()}, b"stdout")
    if form is AnswerForm.EVENTS:
        events = [Event.read(event) for event in result_events(result, {}, result.printed_type)]
        assert list(outputs_of(events).values()) == (list(files.values()) or [b"stdout"])
        return
    try:
        answer, body = await answered(result, output=form.value)
    except AnswerNotAvailable:
        assert (form, len(files)) in [(AnswerForm.ZIP, 0)] or (form is AnswerForm.RAW and len(files) > 1)
        return
    for value in answer.headers.values():
        assert re.fullmatch(r"[ -~]+", value)
    if len(files) == 1:
        assert unquote_to_bytes(answer.headers["X-Output-Name"]) == next(iter(files))
    if form is AnswerForm.JSON:
        outputs = json.loads(body)["outputs"]
        assert [base64.b64decode(entry["data"]) for entry in outputs] == list(files.values())
        return
    if form is AnswerForm.BASE64 and files:
        assert body.endswith(b"\n")
        body = base64.b64decode(body[:-1], validate=True)
    if not files:
        assert body == b"stdout"
    elif form is AnswerForm.ZIP or len(files) > 1:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            entries = archive.infolist()
            assert [archive.read(entry) for entry in entries] == list(files.values())
        names = [e.filename.encode("utf-8" if e.flag_bits & 0x800 else "cp437") for e in entries]
        assert names == list(files)
    else:
        assert body == next(iter(files.values()))


@given(st.lists(st.integers(0, 3 * PIECE_BYTES), max_size=8))
def test_regrouping_changes_nothing_but_the_cuts(sizes: list[int]) -> None:
    data = [noise(size) for size in sizes]
    pieces = list(encode.regrouped(data))
    assert b"".join(pieces) == b"".join(data)
    assert all(len(piece) == PIECE_BYTES for piece in pieces[:-1])
    assert all(0 < len(piece) <= PIECE_BYTES for piece in pieces)


async def test_a_short_read_does_not_break_base64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read of a network or FUSE file system may return fewer bytes than requested, at any position."""
    pread = os.pread
    monkeypatch.setattr(encode, "os", OsWithPread(lambda fd, size, offset: pread(fd, min(size, 1000), offset)))
    data = noise(LARGE_BYTES)
    result = left(tmp_path, {"a": data})
    _, body = await answered(result)
    assert base64.b64decode(body) == data
    _, body = await answered(result, output="json")
    assert base64.b64decode(json.loads(body)["outputs"][0]["data"], validate=True) == data


# ------------------------------------------------------------------------------------------------ headers


@pytest.mark.parametrize(
    ("name", "encoded"),
    [
        ("plant.png", "plant.png"),
        ("a/b c.txt", "a/b%20c.txt"),
        ("100%.txt", "100%25.txt"),
        ('";\\,~', '";\\,~'),
        ("grün.txt", "gr%C3%BCn.txt"),
        ("line\r\nX-Evil: 1", "line%0D%0AX-Evil:%201"),
        (os.fsdecode(b"\xff\x7f"), "%FF%7F"),
    ],
)
def test_a_name_as_a_header_value(name: str, encoded: str) -> None:
    assert media_type_module.encoded_name(name) == encoded


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("plant.png", 'attachment; filename="plant.png"'),
        ("a b.txt", 'attachment; filename="a b.txt"'),
        ("grün.txt", "attachment; filename=\"gr_n.txt\"; filename*=UTF-8''gr%C3%BCn.txt"),
        ('a"b\\c%20', "attachment; filename=\"a_b_c_20\"; filename*=UTF-8''a%22b%5Cc%2520"),
        ("it's(1)*é", "attachment; filename=\"it's(1)*_\"; filename*=UTF-8''it%27s%281%29%2A%C3%A9"),
        ("a\r\nb", "attachment; filename=\"a__b\"; filename*=UTF-8''a%0D%0Ab"),
        (os.fsdecode(b"\xff"), "attachment; filename=\"_\"; filename*=UTF-8''%EF%BF%BD"),
    ],
)
async def test_the_file_name_of_a_raw_answer(tmp_path: Path, name: str, value: str) -> None:
    answer, _ = await answered(left(tmp_path, {name: b"1"}), output="raw")
    assert answer.headers["Content-Disposition"] == value


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("plant.PNG", "image/png"),
        ("a.webp", "image/webp"),
        ("table.csv", "text/csv"),
        ("data.json", "application/json"),
        ("model.tar.gz", "application/gzip"),
        ("log.txt.xz", "application/x-xz"),
        ("page.html.br", "application/octet-stream"),
        ("model.pth", "application/octet-stream"),
        ("folder.png/README", "application/octet-stream"),
        ("data:image/png,x", "application/octet-stream"),
        ("data:text/html,x.png", "image/png"),
        ("http://[x.png", "image/png"),
        ("", "application/octet-stream"),
    ],
)
def test_the_type_is_guessed_from_the_ending(name: str, media_type: str) -> None:
    assert media_type_module.guessed_type(name) == media_type


def test_an_ending_has_the_same_type_on_each_python() -> None:
    endings = sorted(media_type_module._mime_types().types_map[True])
    types = "".join(f"{ending} {media_type_module.guessed_type('a' + ending)}\n" for ending in endings)
    # This holds for Python 3.11 to 3.14. If a new Python differs, add its types to _MORE_TYPES.
    assert hashlib.sha256(types.encode()).hexdigest().startswith("bc775fde2b98daa7"), types


# ---------------------------------------------------------------------------------------- ZIP, at its edges


def written(parts: Iterator[bytes | Output], path: Path) -> None:
    """Write a ZIP with holes where the files' bytes belong."""
    with path.open("wb") as file:
        for part in parts:
            if isinstance(part, bytes):
                file.write(part)
            else:
                file.seek(part.size_bytes, os.SEEK_CUR)


def unzip(*arguments: str | Path) -> str:
    return subprocess.run(["unzip", *arguments], capture_output=True, text=True, errors="replace", check=True).stdout


@pytest.mark.parametrize(
    "size_bytes", [0xFFFFFFFF - len("a.bin") - 30, 0xFFFFFFFE, 0xFFFFFFFF, 0x100000000, 0x1000000001]
)
def test_files_and_offsets_of_4_gib(tmp_path: Path, size_bytes: int) -> None:
    outputs = [
        Output("/a", "a.bin", size_bytes, 1e9, 0o100644),
        Output("/b", "b.bin", 0, 1e9, 0o100600),
        Output("/c", "c.bin", size_bytes, 1e9, 0o100644),
    ]
    path = tmp_path / "large.zip"
    written(zip_format.zip_parts(outputs, [1, 0, 2]), path)
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        assert archive.read("b.bin") == b""
        with archive.open("c.bin") as last:
            assert last.read(9) == bytes(9)
    assert [(e.filename, e.file_size, e.compress_size) for e in entries] == [
        ("a.bin", size_bytes, size_bytes),
        ("b.bin", 0, 0),
        ("c.bin", size_bytes, size_bytes),
    ]
    first = 45 if size_bytes >= 0xFFFFFFFF else 20
    assert [e.extract_version for e in entries] == [first, 45, 45]
    assert re.search(rf"uncompressed size: +{size_bytes} bytes", unzip("-Z", "-v", path))


@pytest.mark.parametrize("count", [0xFFFE, 0xFFFF, 70_000])
def test_very_many_entries(tmp_path: Path, count: int) -> None:
    path = tmp_path / "many.zip"
    written(zip_format.zip_parts((Output("/x", f"{n}", 0, 1e9, 0o644) for n in range(count)), [0] * count), path)
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == [str(n) for n in range(count)]
    assert (b"PK\6\6" in path.read_bytes()[-200:]) == (count >= 0xFFFF)
    unzip("-t", path)


async def test_the_length_of_very_many_files_is_known(tmp_path: Path) -> None:
    (tmp_path / "leaf").write_bytes(b"leaf")
    one = output_of(tmp_path, tmp_path / "leaf")
    outputs = [Output(one.path, f"folder/{n}", one.size_bytes, one.mtime_s, one.mode) for n in range(0x10001)]
    answer = await prepare(Result(outputs, Stdout(), 0, 1.0), choose_form(None, "zip"))
    body = await whole(answer)
    assert len(body) == answer.length
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        assert len(archive.namelist()) == 0x10001
        assert archive.read("folder/65536") == b"leaf"


async def test_info_zip_reads_it_and_restores_modes_and_times(tmp_path: Path) -> None:
    files = {"run.sh": b"#!/bin/sh\n", "grün/leaf": noise(LARGE_BYTES), os.fsdecode(b"\xe9"): b"latin"}
    left(tmp_path / "out", files)
    (tmp_path / "out/run.sh").chmod(0o750)
    os.utime(tmp_path / "out/run.sh", (1_600_000_000, 1_600_000_000))
    outputs = [output_of(tmp_path / "out", tmp_path / "out" / name) for name in files]
    _, body = await answered(Result(outputs, Stdout(), 0, 1.0), output="zip")
    (tmp_path / "a.zip").write_bytes(body)
    unzip("-t", tmp_path / "a.zip")
    unzip(tmp_path / "a.zip", "run.sh", "-d", tmp_path / "in")
    status = (tmp_path / "in/run.sh").stat()
    assert stat.S_IMODE(status.st_mode) == 0o750
    assert status.st_mtime == 1_600_000_000


@pytest.mark.parametrize(
    ("mtime_s", "expected"),
    [
        (-1e12, (1980, 1, 1, 0, 0, 0)),
        (0.0, (1980, 1, 1, 0, 0, 0)),
        (time.mktime((2024, 2, 29, 23, 59, 59, 0, 0, -1)), (2024, 2, 29, 23, 59, 58)),
        (1e18, (2107, 12, 31, 23, 59, 58)),
    ],
)
def test_times_of_entries(tmp_path: Path, mtime_s: float, expected: tuple[int, ...]) -> None:
    written(zip_format.zip_parts([Output("/x", "x", 0, mtime_s, 0o644)], [0]), tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.infolist()[0].date_time == expected


# ---------------------------------------------------------------------------------- small, large, in threads


@pytest.mark.parametrize("output", ["base64", "raw", "zip", "json"])
async def test_a_small_answer_is_one_chunk_made_without_a_thread(
    tmp_path: Path, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = left(tmp_path, {"a": b"leaf"})
    monkeypatch.setattr(asyncio.get_running_loop(), "run_in_executor", None)
    answer = await prepare(result, choose_form(None, output))
    assert [chunk async for chunk in answer.chunks()] == [answer.body]


@pytest.mark.parametrize("output", ["base64", "raw", "zip", "json"])
@pytest.mark.parametrize("count", [1, 17])
async def test_what_is_large_is_read_in_threads_only(
    tmp_path: Path, output: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if output == "raw" and count > 1:
        count = 1
    size_bytes = LARGE_BYTES if count == 1 else 10
    result = left(tmp_path, {str(n): noise(size_bytes) for n in range(count)})
    readers: set[int] = set()
    pread = os.pread

    def noted_pread(fd: int, size: int, offset: int) -> bytes:
        readers.add(threading.get_ident())
        return pread(fd, size, offset)

    monkeypatch.setattr(encode, "os", OsWithPread(noted_pread))
    answer, _ = await answered(result, output=output)
    assert answer.body is None
    assert readers
    assert threading.get_ident() not in readers


async def test_stdout_is_read_in_threads_only() -> None:
    stdout = Stdout(noise(LARGE_BYTES))
    await answered(Result([], stdout, 0, 1.0))
    assert stdout.threads
    assert threading.get_ident() not in stdout.threads


@pytest.mark.parametrize("output", ["base64", "raw", "zip", "json"])
async def test_memory_does_not_grow_with_the_answer(tmp_path: Path, output: str) -> None:
    (tmp_path / "sparse").touch()
    os.truncate(tmp_path / "sparse", 64 * 1024 * 1024)
    result = Result([output_of(tmp_path, tmp_path / "sparse")], Stdout(), 0, 1.0)
    tracemalloc.start()
    try:
        answer = await prepare(result, choose_form(None, output))
        sent = 0
        async for chunk in answer.chunks():
            sent += len(chunk)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sent == answer.length > 64 * 1024 * 1024 - 1
    assert peak_bytes < 4 * 1024 * 1024


# --------------------------------------------------------------------------------------- files that change


@pytest.mark.parametrize("output", ["base64", "raw", "zip", "json"])
@pytest.mark.parametrize("change", [shorten, lengthen, os.unlink])
@pytest.mark.parametrize("size_bytes", [10, LARGE_BYTES])
async def test_a_file_that_changed_is_found_before_a_status_is_sent(
    tmp_path: Path, output: str, change: object, size_bytes: int
) -> None:
    result = left(tmp_path, {"leaf": noise(size_bytes)})
    change(tmp_path / "leaf")  # type: ignore[operator]
    before = open_descriptors()
    with pytest.raises(OutputUnreadable, match="'leaf'"):
        await prepare(result, choose_form(None, output))
    assert open_descriptors() == before


@pytest.mark.parametrize("output", ["base64", "raw", "zip", "json"])
@pytest.mark.parametrize("change", [shorten, lengthen, rewrite, os.unlink])
async def test_a_file_that_changes_before_it_is_sent_cuts_the_answer(
    tmp_path: Path, output: str, change: object
) -> None:
    answer = await prepare(left(tmp_path, {"leaf": noise(LARGE_BYTES)}), choose_form(None, output))
    change(tmp_path / "leaf")  # type: ignore[operator]
    before = open_descriptors()
    with pytest.raises(OutputUnreadable, match="'leaf'"):
        await whole(answer)
    assert open_descriptors() == before


@pytest.mark.parametrize("output", ["base64", "raw", "zip", "json"])
@pytest.mark.parametrize("change", [shorten, lengthen, rewrite])
async def test_a_file_that_changes_while_it_is_sent_cuts_the_answer(
    tmp_path: Path, output: str, change: object
) -> None:
    answer = await prepare(left(tmp_path, {"leaf": noise(20 * PIECE_BYTES)}), choose_form(None, output))
    chunks = answer.chunks()
    sent = [await anext(chunks)]
    change(tmp_path / "leaf")  # type: ignore[operator]
    with pytest.raises(OutputUnreadable, match="became shorter" if change is shorten else "changed"):
        await collect(chunks, sent)
    assert sum(map(len, sent)) < answer.length


async def collect(chunks: AsyncIterator[bytes], into: list[bytes]) -> None:
    async for chunk in chunks:
        into.append(chunk)


async def test_a_read_error_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = left(tmp_path, {"leaf": b"1"})

    def broken(fd: int, size: int, offset: int) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(encode, "os", OsWithPread(broken))
    with pytest.raises(OutputUnreadable, match="'leaf': Input/output error"):
        await prepare(result, choose_form(None, None))


@pytest.mark.parametrize("length", [10, 70_000])
@pytest.mark.parametrize("surplus", [-1, 1])
async def test_a_stdout_of_another_size_cuts_the_answer(length: int, surplus: int) -> None:
    result = Result([], Stdout(noise(length), size_bytes=length + surplus), 0, 1.0)
    with pytest.raises(OutputUnreadable, match="stdout"):
        await answered(result)


# ---------------------------------------------------------------------------- a caller that has disconnected


@pytest.mark.parametrize("output", ["base64", "raw", "zip", "json"])
async def test_closing_early_closes_the_file(tmp_path: Path, output: str) -> None:
    answer = await prepare(left(tmp_path, {"leaf": noise(20 * PIECE_BYTES)}), choose_form(None, output))
    before = open_descriptors()
    chunks = answer.chunks()
    await anext(chunks)
    assert open_descriptors() != before
    await chunks.aclose()
    assert open_descriptors() == before


async def test_an_answer_that_is_never_read_holds_nothing(tmp_path: Path) -> None:
    before = open_descriptors()
    answer = await prepare(left(tmp_path, {"leaf": noise(LARGE_BYTES)}), choose_form(None, "zip"))
    await answer.chunks().aclose()
    assert open_descriptors() == before


@dataclass
class SlowStdout:
    """A stdout that gives one piece, and then waits in the reading thread for ``go_on``."""

    size_bytes: int = 3 * PIECE_BYTES
    is_waiting: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)
    is_closed: bool = False

    def pieces(self, piece_bytes: int) -> Iterator[bytes]:
        try:
            yield bytes(piece_bytes)
            self.is_waiting.set()
            self.go_on.wait()
            yield bytes(piece_bytes)
            yield bytes(piece_bytes)
        finally:
            self.is_closed = True


async def test_closing_waits_until_the_reading_thread_is_out() -> None:
    stdout = SlowStdout()
    answer = await prepare(Result([], stdout, 0, 1.0), choose_form(None, None))
    chunks = answer.chunks()
    await anext(chunks)
    await asyncio.to_thread(stdout.is_waiting.wait)
    closing = asyncio.create_task(chunks.aclose())
    # Even after a cancellation, it waits for the thread, which still reads.
    await asyncio.wait({closing}, timeout=0)
    closing.cancel()
    await asyncio.wait({closing}, timeout=0)
    assert not closing.done()
    assert not stdout.is_closed
    stdout.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert stdout.is_closed


async def test_a_cancelled_reader_waits_until_the_reading_thread_is_out() -> None:
    stdout = SlowStdout()
    answer = await prepare(Result([], stdout, 0, 1.0), choose_form(None, None))
    reading = asyncio.create_task(whole(answer))
    await asyncio.to_thread(stdout.is_waiting.wait)
    reading.cancel()
    await asyncio.wait({reading}, timeout=0)
    assert not reading.done()
    stdout.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert stdout.is_closed


async def test_a_cancelled_first_pass_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sparse").touch()
    os.truncate(tmp_path / "sparse", 1 << 43)
    result = Result([output_of(tmp_path, tmp_path / "sparse")], Stdout(), 0, 1.0)
    is_reading = threading.Event()
    pread = os.pread

    def noted_pread(fd: int, size: int, offset: int) -> bytes:
        is_reading.set()
        return pread(fd, size, offset)

    monkeypatch.setattr(encode, "os", OsWithPread(noted_pread))
    before = open_descriptors()
    preparing = asyncio.create_task(prepare(result, choose_form(None, "zip")))
    await asyncio.to_thread(is_reading.wait)
    preparing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await preparing
    assert open_descriptors() == before
