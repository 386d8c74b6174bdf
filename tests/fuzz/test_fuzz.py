"""The fuzz targets without the fuzzer: their seeds, each promise broken once, and earlier findings of the fuzzer."""

from __future__ import annotations

import json
import re
from pathlib import Path

import fuzz
import msgspec
import pytest
import targets

from watchdog.errors import BadInput, InputTooLarge
from watchdog.http import request_reader
from watchdog.input import detect, form, inflate, readers, receive
from watchdog.input import files as files_module
from watchdog.logs import console, formats, progress_line, script_log
from watchdog.output import accept as accept_module
from watchdog.settings.service_definition import Parsed, ServiceDefinition, parse
from watchdog.storage import event as event_module
from watchdog.storage.event import Event
from watchdog.storage.stored_object import StoredObject
from watchdog.system import base64_reader
from watchdog.system.base64_reader import Base64Reader
from watchdog.warm import protocol
from watchdog.workspace import response_file
from watchdog.workspace.held_input import HeldInput

HERE = Path(__file__).parent
SEEDS = sorted((HERE / "corpus").glob("*/*"))


def test_each_target_has_seeds_and_its_name_in_the_program() -> None:
    assert sorted(targets.TARGETS) == sorted(fuzz.TARGETS) == sorted({path.parent.name for path in SEEDS})


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_seeds(target: str) -> None:
    for path in sorted((HERE / "corpus" / target).iterdir()):
        try:
            targets.TARGETS[target](path.read_bytes())
        except Exception as error:
            error.add_note(f"the seed is {path}")
            raise


# ---- each target can fail ----


def seed(target: str, name: str) -> bytes:
    return (HERE / "corpus" / target / name).read_bytes()


def write_twice(self: files_module._File, data: bytes) -> None:
    write(self, data)
    write(self, data)


write = files_module._File.write


def write_reversed(self: readers.Raw, data: bytes) -> None:
    self._file.write(data[::-1])


def write_above(self: files_module._File, data: bytes) -> None:
    directory = Path(self._file._owner.directory)
    (directory.parent / "escaped").write_bytes(data)
    write(self, data)


def refuse(*_: object) -> None:
    raise BadInput("no")


def take_no_carry(self: Base64Reader, data: bytes) -> None:
    take(self, data)
    self._carry = b""


take = Base64Reader._take_characters


def lose_blanks(self: Base64Reader, data: bytes) -> bytes:
    return self._carry + data.translate(None, b" \t\r\n")


def take_either_alphabet(self: Base64Reader, data: bytes, alphabet: object) -> tuple[bytes, bytes] | None:
    return decode(self, data.replace(b"-", b"+").replace(b"_", b"/"), None)


decode = Base64Reader._decoded
decided = detect._Decided


@pytest.mark.parametrize(
    ("name", "where", "attribute", "broken_version"),
    [
        ("base64", files_module._File, "write", write_twice),
        ("base64", files_module._File, "write", write_above),
        ("raw-octets", files_module._File, "write", write_twice),
        ("json-object", files_module._File, "write", lambda self, data: write(self, data.strip())),
        ("form", form.KeyValueForm, "_json_text", lambda self, start, stop: iter([b"?"])),
        ("gzip-cut-off-raw", inflate._Inflater, "finish", lambda self: None),
        ("base64-lf-lines", Base64Reader, "_take_characters", take_no_carry),
        ("raw-too-large", files_module.Limit, "take", lambda self, count: None),
        ("base64-too-large", files_module.Limit, "take", lambda self, count: None),
        ("name-free", receive, "safe_file_name", lambda name: ".hidden"),
        ("name-free", receive, "safe_file_name", lambda name: "a\nb"),
        ("name-free", receive, "safe_file_name", lambda name: "../beside"),
        ("made-form-one-file", files_module.Files, "_unused", lambda self, name: name + "\u202e"),
        ("multipart-file", readers.Raw, "feed", write_reversed),
        ("made-form", readers.Raw, "feed", lambda self, data: None),
        ("html-is-refused", detect, "_reason", lambda *_: InputTooLarge("no")),
        ("base64-blank-inside", Base64Reader, "_without_blanks", lose_blanks),
        ("base64-mixed-alphabets", Base64Reader, "_decoded", take_either_alphabet),
        ("base64-non-canonical-last-bits", base64_reader, "_UNUSED_BITS", {2: 0, 3: 0}),
        ("base64-bom", detect, "BOM_UTF8", b"\0no mark"),
        ("form-base64-with-stray", form, "_is_meant_as_base64", lambda text: False),
        ("utf-16-json", detect, "_wide_characters", lambda head: None),
        ("csv", detect, "_BASE64_TYPES", {*detect._BASE64_TYPES, "text/csv"}),
        ("json-object", detect, "_Decided", lambda encoding, *args: decided("raw", *args)),
        ("base64", receive, "decide", refuse),
    ],
)
def test_intake_can_fail(
    monkeypatch: pytest.MonkeyPatch, name: str, where: object, attribute: str, broken_version: object
) -> None:
    monkeypatch.setattr(where, attribute, broken_version)
    with pytest.raises(AssertionError):
        targets.check_intake(seed("intake", name))


def find_in_one_piece(self: request_reader._EndFinder, data: bytes, begin: int) -> int:
    at = data.find(b"\r\n\r\n", begin)
    return at if at < 0 else at + 4


@pytest.mark.parametrize(
    ("where", "attribute", "broken_version"),
    [
        (request_reader._EndFinder, "find", lambda self, data, begin: len(data)),
        (request_reader._EndFinder, "find", find_in_one_piece),
        (request_reader.RequestReader, "on_header", lambda self, name, value: self._headers.append(("", ""))),
    ],
)
def test_request_can_fail(
    monkeypatch: pytest.MonkeyPatch, where: object, attribute: str, broken_version: object
) -> None:
    monkeypatch.setattr(where, attribute, broken_version)
    with pytest.raises(AssertionError):
        targets.TARGETS["request"](seed("request", "pipelined"))


def parse_leniently(text: str) -> response_file.ResponseOverrides:
    pairs = [line.partition(":") for line in text.split("\n") if ":" in line]
    return response_file.ResponseOverrides(None, [(name, value.strip(" \t")) for name, _, value in pairs])


@pytest.mark.parametrize(
    "name", ["header-cr-inside", "header-nul", "name-cr", "name-empty", "forbidden-content-length"]
)
def test_response_file_can_fail(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(response_file, "_parse", parse_leniently)
    with pytest.raises(AssertionError):
        targets.check_response_file(seed("response_file", name))


@pytest.mark.parametrize("status", [199, 600])
def test_response_file_can_fail_for_its_status(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setattr(response_file, "_parse", lambda text: response_file.ResponseOverrides(status))
    with pytest.raises(AssertionError):
        targets.check_response_file(b"")


def test_accept_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accept_module._Range, "includes", lambda self, media_type: True)
    with pytest.raises(AssertionError):
        targets.check_accept(seed("accept", "other-type"))


def test_accept_can_fail_for_its_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "choose_form", lambda accept, parameter: accept_module.choose_form(accept, None))
    with pytest.raises(AssertionError):
        targets.check_accept(seed("accept", "output-raw"))


def test_accept_can_fail_for_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "_MOST_CPU_S", 0.0)
    with pytest.raises(AssertionError, match="processor time"):
        targets.check_accept(seed("accept", "blow-up-ranges"))


@pytest.mark.parametrize(
    ("name", "where", "attribute", "broken_version"),
    [
        ("progress", script_log, "_OVERWRITTEN", re.compile(rb"(?!)")),
        ("line-without-end-all-levels", script_log.ScriptLog, "close", lambda self: None),
        ("long-line", script_log.ScriptLog, "_extend", lambda self, piece: self._line.extend(piece * 9)),
        ("words-below", script_log, "may_show_level", lambda text: "\n" not in text),
        ("colors", console, "printable_lines", lambda text: text + "\x1b[0m"),
        ("line", formats.JsonFormat, "script_lines", lambda *_, **__: b'{"level": "info"\n'),
    ],
)
def test_script_log_can_fail(
    monkeypatch: pytest.MonkeyPatch, name: str, where: object, attribute: str, broken_version: object
) -> None:
    monkeypatch.setattr(where, attribute, broken_version)
    with pytest.raises(AssertionError):
        targets.check_script_log(seed("script_log", name))


def feed_lines_of_any_length(self: protocol.AnswerLines, data: bytes) -> list[protocol.Answer | protocol.ProtocolError]:
    self._line += data
    *lines, rest = self._line.split(b"\n")
    self._line = rest
    return [self._answer(bytes(line)) for line in lines]


@pytest.mark.parametrize(
    ("name", "where", "attribute", "broken_version"),
    [
        ("cut-in-a-line", protocol.AnswerLines, "end", lambda self: None),
        ("done-256", protocol, "_DONE", re.compile(rb"done(?: ([0-9]{1,2}))?.*")),
        ("progress-over-1", progress_line, "_PROGRESS", re.compile(rb"progress ([0-9])[0-9.]*(.*)")),
        ("progress-not-utf8", progress_line, "printable", lambda text: "\x1b[0m"),
        ("binary", protocol, "quoted", lambda text: text),
        ("one-over", protocol.AnswerLines, "feed", feed_lines_of_any_length),
        ("small-too-long-no-end", protocol.AnswerLines, "feed", feed_lines_of_any_length),
        ("several", protocol.AnswerLines, "feed", lambda self, data: []),
        ("after-an-error", protocol.AnswerLines, "_error", lambda self, line, why: protocol.ProtocolError(why)),
    ],
)
def test_warm_answer_can_fail(
    monkeypatch: pytest.MonkeyPatch, name: str, where: object, attribute: str, broken_version: object
) -> None:
    monkeypatch.setattr(where, attribute, broken_version)
    with pytest.raises(AssertionError):
        targets.TARGETS["warm_answer"](seed("warm_answer", name))


@pytest.mark.parametrize(
    "parsed",
    [
        Parsed(None, [], []),
        Parsed(ServiceDefinition(), ["service definition /o.yaml: x"], []),
        Parsed(None, ["service definition /o.yaml: a\nb"], []),
        Parsed(ServiceDefinition(), [], ["no origin"]),
        Parsed(ServiceDefinition(variables={"a=b": "c"}), [], []),
        Parsed(ServiceDefinition(variables={"": "c"}), [], []),
        Parsed(ServiceDefinition(variables={"a": "\0"}), [], []),
        Parsed(ServiceDefinition(variables={"a": "b" * 131_072}), [], []),
    ],
)
def test_service_definition_can_fail(monkeypatch: pytest.MonkeyPatch, parsed: Parsed) -> None:
    monkeypatch.setattr(targets, "parse", lambda text, origin: parsed)
    with pytest.raises(AssertionError):
        targets.check_service_definition(b"")


@pytest.mark.parametrize(
    "event",
    [
        Event(),
        Event((StoredObject("minio", "", "k", "", "", b"{}"),)),
        Event((StoredObject("minio", "b", "k\0", "", "", b"{}"),)),
        Event((StoredObject("minio", "b", "k", "", "", b"{"),)),
        Event(data=b"", variables={"PATH": "x"}),
    ],
)
def test_storage_event_can_fail(monkeypatch: pytest.MonkeyPatch, event: Event) -> None:
    monkeypatch.setattr(event_module, "read", lambda text: event)
    with pytest.raises((AssertionError, msgspec.DecodeError)):
        targets.check_storage_event(b"")


# ---- the program ----


def test_an_unknown_target_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        fuzz.main(["nothing"])
    assert caught.value.code == 2
    assert "invalid choice: 'nothing'" in capsys.readouterr().err


def test_files_are_replayed_and_what_is_found_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "good").write_bytes(b"A: b")
    (tmp_path / "bad").write_bytes(b"A: b\0")
    files = [str(tmp_path / "good"), str(tmp_path / "bad")]
    assert fuzz.main(["response_file", *files]) == 0
    monkeypatch.setattr(response_file, "_parse", parse_leniently)
    assert fuzz.main(["response_file", *files]) == 1
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"found: {tmp_path / 'bad'}",
        "response_file: 2 replayed, 1 of them found to break a promise",
    ]


# ---- findings of the fuzzer ----


@pytest.mark.parametrize(
    "name",
    [
        "multipart-extended-name-utf-7",
        "multipart-extended-name-half-character",
        "multipart-extended-name-undefined",
        "multipart-extended-name-idna",
        "type-boundary-not-utf8",
    ],
)
def test_what_no_codec_can_read_is_bad_input(tmp_path: Path, name: str) -> None:
    request = targets._request(seed("intake", name))
    with pytest.raises(BadInput):
        receive.Receiver(request.said, HeldInput(str(tmp_path))).feed(request.packed)


def events(output: bytes) -> list[tuple[object, object]]:
    sink = targets._logged([output], formats.JsonFormat(), 0)
    shown = [json.loads(line) for line in sink.data.splitlines()]
    return [(event["level"], event["event"]) for event in shown]


def test_a_title_that_is_never_closed_swallows_no_line() -> None:
    assert events(b"\x1b]0;title\nERROR: kept\n\x07hello\n")[1] == ("error", "ERROR: kept")


@pytest.mark.parametrize("blank", [b"", b"   ", b"\t", b"\x0b"])
def test_a_blank_line_of_a_traceback_is_the_same_however_it_is_cut(blank: bytes) -> None:
    output = b'  File "a.py", line 1\n' + blank + b"\nSyntaxError: invalid syntax\n"
    assert events(output) == [("error", '  File "a.py", line 1\n\nSyntaxError: invalid syntax')]
    targets.check_script_log(b"bab" + output)


def test_the_blanks_at_the_end_of_a_progress_bar_are_the_same_however_it_is_cut() -> None:
    assert events(b"5%\r10%\t\r") == events(b"5%\r10%\t\r\n") == [("info", "10%\t")]
    targets.check_script_log(b"aaa5%\r10%\t\r")


def test_an_integer_too_large_for_decimal_digits_is_read() -> None:
    assert parse(b"name: !!int 0x" + b"f" * 3800, "x").problems == []


@pytest.mark.parametrize("name", ["functions-cluster-not-printable", "functions-two-not-printable"])
def test_a_problem_of_a_cluster_is_one_line(name: str) -> None:
    (problem,) = parse(seed("service_definition", name), "x").problems
    assert problem.isprintable()
