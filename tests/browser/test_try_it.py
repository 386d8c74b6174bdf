"""A person uses the try-it page in a real browser, with a real server."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import random
import shlex
import subprocess
import threading
import wave
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from running_server import StartServer, until

from browser.path_proxy import PathProxy
from browser.try_it import TryIt

pytestmark = pytest.mark.browser

OpenPage = Callable[..., TryIt]

PHOTO = Path(__file__).parent.parent.parent / "examples" / "grayify" / "photo.jpg"
COPY = 'cp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/copy-of-$(basename "$INPUT_FILE_PATH")"\n'
MARKUP = '<img src=x onerror="window.isHacked=1">'
END_OF_TAG = '"><script>window.isHacked=1</script>'
RIGHT_TO_LEFT = "\u202egnp.exe"
WAIT = 'touch "$HANDSHAKE/up"; while [ ! -e "$HANDSHAKE/go" ]; do sleep 0.02; done\n'


def script_with_files(directory: Path, files: dict[str, bytes]) -> str:
    """A script that leaves these files."""
    directory.mkdir()
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    return f'cp -r {shlex.quote(str(directory))}/. "$TMP_OUTPUT_DIR"\n'


def zip_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def sound() -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 1, 8000, 0, "NONE", ""))
        file.writeframes(bytes(800))
    return buffer.getvalue()


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


# ---- a run and its outputs


def test_a_picture_in_and_a_picture_out(start_server: StartServer, open_page: OpenPage) -> None:
    tab = open_page(start_server(COPY)).choose(PHOTO).run()
    assert tab.verdict == "Done"
    assert tab.facts["Exit code"] == "0"
    picture = tab.output("copy-of-photo.jpg").locator("img")
    picture.wait_for()
    assert picture.evaluate("async (img) => (await img.decode(), [img.naturalWidth, img.naturalHeight])") == [96, 64]
    assert tab.download("copy-of-photo.jpg") == ("copy-of-photo.jpg", PHOTO.read_bytes())


def test_a_typed_text_gets_the_text_that_the_script_prints(start_server: StartServer, open_page: OpenPage) -> None:
    tab = open_page(start_server('wc -w < "$INPUT_FILE_PATH"')).type("three short wörds").run()
    assert tab.outputs == ["Printed text"]
    assert tab.output("Printed text").locator("pre").inner_text() == "3\n"


def test_a_name_with_every_kind_of_character_reaches_the_script(start_server: StartServer, open_page: OpenPage) -> None:
    tab = open_page(start_server('basename "$INPUT_FILE_PATH"')).type("x")
    tab.page.fill("#name", "añ 漢字 100% 'q' \"d\" &.txt")
    tab.run()
    assert tab.output("Printed text").locator("pre").inner_text() == "añ 漢字 100% 'q' \"d\" &.txt\n"


def test_each_kind_of_output_is_shown_in_its_own_way(
    start_server: StartServer, open_page: OpenPage, tmp_path: Path
) -> None:
    files = {
        "archive.zip": zip_of({"a/b.txt": b"x" * 2000, "ü.png": b"y"}),
        "data.csv": b'name,score\r\n"a ""b"",\nc",1\r\nlast,2',
        "deep/note.txt": "grüße\n".encode(),
        "empty.txt": b"",
        "model.bin": bytes(range(256)),
        "result.json": b'{"label":"rose"}',
        "sound.wav": sound(),
    }
    tab = open_page(start_server(script_with_files(tmp_path / "files", files))).type("").run()
    assert tab.verdict == "Done"
    assert tab.outputs == sorted(files)
    assert tab.output("result.json").locator("pre").inner_text() == '{\n  "label": "rose"\n}'
    assert tab.output("deep/note.txt").locator("pre").inner_text() == "grüße\n"
    assert tab.output("data.csv").locator("td").all_text_contents() == ['a "b",\nc', "1", "last", "2"]
    assert tab.output("archive.zip").locator("td").all_text_contents() == ["a/b.txt", "2 kB", "ü.png", "1 B"]
    audio = tab.output("sound.wav").locator("audio").element_handle()
    tab.page.wait_for_function("(audio) => audio.duration > 0", arg=audio)
    assert tab.page.evaluate("(audio) => audio.duration", audio) == pytest.approx(0.1)
    for name, content in files.items():
        assert tab.download(name) == (name.split("/")[-1], content)


def test_a_file_of_50_mib_goes_there_and_back(start_server: StartServer, open_page: OpenPage, tmp_path: Path) -> None:
    content = random.Random(5).randbytes(50 << 20)
    (tmp_path / "large.bin").write_bytes(content)
    tab = open_page(start_server(COPY)).choose(tmp_path / "large.bin").run()
    assert tab.verdict == "Done"
    name, downloaded = tab.download("copy-of-large.bin")
    assert name == "copy-of-large.bin"
    assert hashlib.sha256(downloaded).digest() == hashlib.sha256(content).digest()


def test_more_outputs_than_the_page_shows(start_server: StartServer, open_page: OpenPage) -> None:
    server = start_server('cd "$TMP_OUTPUT_DIR"; for i in $(seq 1000 1600); do echo $i > $i; done')
    tab = open_page(server).type("").run()
    assert tab.verdict == "Done"
    assert len(tab.outputs) == 500
    assert "first 500 outputs" in tab.page.inner_text(".more")


@pytest.mark.parametrize("form", ["raw", "zip", "json", "base64"])
def test_another_form_is_the_answer_of_the_server(start_server: StartServer, open_page: OpenPage, form: str) -> None:
    tab = open_page(start_server(COPY)).choose(PHOTO)
    tab.page.select_option("#answer", form)
    tab.run()
    assert tab.verdict == "Done"
    assert tab.facts["Exit code"] == "0"
    (name,) = tab.outputs
    saved, content = tab.download(name)
    photo = PHOTO.read_bytes()
    if form == "raw":
        assert (saved, content) == ("copy-of-photo.jpg", photo)
    elif form == "zip":
        assert zipfile.ZipFile(io.BytesIO(content)).read("copy-of-photo.jpg") == photo
    elif form == "json":
        assert base64.b64decode(json.loads(content)["outputs"][0]["data"]) == photo
    else:
        assert base64.b64decode(content) == photo


def test_the_first_columns_of_a_wide_table_are_shown(
    start_server: StartServer, open_page: OpenPage, tmp_path: Path
) -> None:
    files = {"wide.csv": b"1," * 100_000 + b"1\n"}
    tab = open_page(start_server(script_with_files(tmp_path / "files", files))).type("").run()
    tab.output("wide.csv").get_by_text("download the output to see the rest").wait_for()
    assert tab.output("wide.csv").locator("th").count() == 100


def test_a_raw_answer_whose_name_is_not_utf_8_is_shown(start_server: StartServer, open_page: OpenPage) -> None:
    tab = open_page(start_server("""echo hi > "$TMP_OUTPUT_DIR/$(printf 'a\\377 b.txt')\"""")).type("")
    tab.page.select_option("#answer", "raw")
    assert tab.run().verdict == "Done"
    assert tab.outputs == ["a%FF%20b.txt"]


def test_a_classic_function_prints_its_answer(start_server: StartServer, open_page: OpenPage) -> None:
    tab = open_page(start_server(None, WATCHDOG_FPROCESS="tr a-z A-Z")).type("shout").run()
    assert tab.verdict == "Done"
    assert tab.download("Printed text")[1] == b"SHOUT"


def test_a_warm_script_shows_how_many_calls_its_worker_served(start_server: StartServer, open_page: OpenPage) -> None:
    loop = 'echo "ready sh" >&4; while IFS= read -r call <&3; do eval "export $call"; echo hi; echo "done 0" >&4; done'
    server = start_server(loop, WATCHDOG_WARM="1")
    tab = open_page(server).type("").run()
    assert tab.facts["Worker"] == "warm, 0 calls before"
    assert tab.run().facts["Worker"] == "warm, 1 call before"


def test_a_warning_of_the_server_is_shown(start_server: StartServer, open_page: OpenPage) -> None:
    tab = open_page(start_server("true")).type("").run()
    assert tab.verdict == "Done, with a warning"
    assert tab.page.inner_text(".warnings").startswith("no-output: ")


# ---- while it runs


def test_lines_are_shown_while_the_script_runs_and_cancel_ends_all_its_processes(
    start_server: StartServer, open_page: OpenPage, tmp_path: Path
) -> None:
    server = start_server(
        'sleep 1000 & echo $$ $! > "$PIDS"; echo "one line"; echo "WARNING: two" >&2; wait', PIDS=str(tmp_path / "pids")
    )
    tab = open_page(server).type("").start()
    tab.await_log("one line")
    tab.await_log("two")
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert not any(map(is_gone, pids))
    assert tab.page.evaluate("document.activeElement.id") == "cancel", "the focus stays at the button"
    tab.page.click("#cancel")
    tab.await_verdict()
    assert tab.verdict == "Cancelled"
    assert tab.page.evaluate("document.activeElement.id") == "run"
    until(lambda: all(map(is_gone, pids)), "the processes of the script to be gone")
    assert server.event("invocation ended")["outcome"] != "ok"


def test_progress_of_a_script_moves_the_bar(start_server: StartServer, open_page: OpenPage, tmp_path: Path) -> None:
    server = start_server('echo "progress 0.25 a quarter" >&4; ' + WAIT, HANDSHAKE=str(tmp_path))
    tab = open_page(server).type("").start()
    tab.page.get_by_text("25 % a quarter").wait_for()
    assert tab.page.locator("progress").evaluate("(bar) => bar.value") == 0.25
    (tmp_path / "go").touch()
    tab.await_verdict()


def test_a_call_in_the_queue_shows_its_position(start_server: StartServer, open_page: OpenPage, tmp_path: Path) -> None:
    server = start_server(WAIT, WATCHDOG_MAX_INFLIGHT="1", HANDSHAKE=str(tmp_path))
    first = threading.Thread(target=server.call, args=(b"",))
    first.start()
    until((tmp_path / "up").exists, "the first call to run")
    tab = open_page(server).type("").start()
    tab.page.get_by_text("Waiting at position 1 of the queue").first.wait_for()
    (tmp_path / "go").touch()
    tab.await_verdict()
    first.join()
    assert tab.verdict == "Done, with a warning"
    assert tab.facts["Waited in the queue"]


def test_the_log_keeps_the_last_lines_and_filters_them(
    start_server: StartServer, open_page: OpenPage, tmp_path: Path
) -> None:
    # The script waits until the page has shown the lines, so that the server never drops a line.
    batch = 'seq 1000; echo "batch $i"; while [ ! -e "$HANDSHAKE/$i" ]; do sleep 0.02; done'
    script = f'echo "DEBUG: detail"; for i in 1 2 3 4 5 6; do {batch}; done; echo "ERROR: bad"; echo end'
    server = start_server(script, WATCHDOG_LOG_LEVEL="NOTSET", HANDSHAKE=str(tmp_path))
    tab = open_page(server).type("").start()
    for number in range(1, 7):
        tab.await_log(f"batch {number}")
        (tmp_path / str(number)).touch()
    tab.await_verdict()
    tab.await_log("end")
    assert len(tab.log) == 5000
    assert tab.log[-3:] == ["batch 6", "ERROR: bad", "end"]
    assert tab.page.inner_text(".count") == "5000 lines, 1009 earlier ones not kept"
    tab.page.select_option(".level", "4")
    assert tab.log == ["ERROR: bad"]
    tab.page.select_option(".level", "0")
    tab.page.fill(".filter", "BATCH")
    assert tab.log == [f"batch {number}" for number in range(2, 7)]


# ---- failures


def test_a_script_that_fails_shows_its_exit_code_and_the_end_of_stderr(
    start_server: StartServer, open_page: OpenPage
) -> None:
    tab = open_page(start_server('echo "reading" ; echo "no model" >&2; exit 3')).type("x").run()
    assert tab.verdict == "Script failed"
    assert tab.facts["Exit code"] == "3"
    assert "no model" in tab.page.inner_text(".stderr")
    assert any("reading" in line for line in tab.log)


def test_a_time_limit_ends_the_run(start_server: StartServer, open_page: OpenPage) -> None:
    tab = open_page(start_server("sleep 1000")).type("")
    tab.page.fill("#timeout", "0.5s")
    tab.run()
    assert tab.verdict == "Script timed out"


def test_a_wrong_time_limit_is_explained_by_the_server(start_server: StartServer, open_page: OpenPage) -> None:
    tab = open_page(start_server("true")).type("")
    tab.page.fill("#timeout", "soon")
    tab.run()
    assert tab.verdict == "Bad input"
    assert "not a duration" in tab.detail


def test_a_missing_and_a_wrong_token_lead_to_the_field_and_the_right_one_works(
    start_server: StartServer, open_page: OpenPage
) -> None:
    tab = open_page(start_server("echo hi", WATCHDOG_AUTH_TOKEN="s3cret")).type("")
    for token in ("", "wrong"):
        tab.page.fill("#token", token)
        tab.run()
        assert tab.verdict == "Unauthorized"
        assert tab.facts["Status"] == "401"
        tab.page.wait_for_function("document.activeElement.id === 'token'")
        assert "right token" in tab.page.inner_text("#complaint")
    tab.page.fill("#token", "s3cret")
    assert tab.run().verdict == "Done"
    tab.page.reload()
    assert tab.page.input_value("#token") == "s3cret", "this tab keeps the token"
    assert tab.page.evaluate("[localStorage.length, document.cookie]") == [0, ""]


def test_a_token_is_not_sent_to_another_service_of_the_same_origin(
    start_server: StartServer, open_page: OpenPage
) -> None:
    """A gateway gives each service a path of its own, and these services may have different owners."""
    server = start_server("echo hi", WATCHDOG_AUTH_TOKEN="s3cret")
    with PathProxy(server.port, "/(?:first|second)") as proxy:
        url = proxy.url.removesuffix("/(?:first|second)")
        tab = open_page(f"{url}/first/_/try").type("")
        tab.page.fill("#token", "s3cret")
        assert tab.run().verdict == "Done"
        tab.open(f"{url}/second/_/try").type("")
        assert tab.page.input_value("#token") == ""
        assert tab.run().verdict == "Unauthorized"


def test_a_server_with_all_places_taken_says_when_to_try_again(
    start_server: StartServer, open_page: OpenPage, tmp_path: Path
) -> None:
    server = start_server(WAIT, WATCHDOG_MAX_INFLIGHT="1", WATCHDOG_MAX_QUEUE="0", HANDSHAKE=str(tmp_path))
    first = threading.Thread(target=server.call, args=(b"",))
    first.start()
    until((tmp_path / "up").exists, "the first call to run")
    tab = open_page(server).type("").run()
    assert tab.verdict == "Too many calls"
    assert "Try again in " in tab.detail
    (tmp_path / "go").touch()
    first.join()


def test_an_input_over_the_limit_is_not_sent(start_server: StartServer, open_page: OpenPage) -> None:
    server = start_server("true", WATCHDOG_MAX_INPUT_SIZE="1000")
    tab = open_page(server).choose(PHOTO).start()
    assert "over 1 kB, the limit of this server (max_input_size)" in tab.page.inner_text("#complaint")
    assert tab.page.locator(".verdict").count() == 0


def test_without_a_file_the_page_asks_for_one(start_server: StartServer, open_page: OpenPage) -> None:
    tab = open_page(start_server("true")).start()
    assert tab.page.inner_text("#complaint") == "Choose a file first, or select Text."
    assert tab.page.evaluate("document.activeElement.id") == "file"


def test_a_server_that_is_gone_is_reported(start_server: StartServer, open_page: OpenPage) -> None:
    server = start_server("true")
    tab = open_page(server).type("")
    server.stop()
    assert tab.run().verdict == "The server does not answer"


@pytest.mark.parametrize("cut", [b"event: started", b"one line", b"event: output", b'"offset":', b"event: completed"])
def test_a_stream_that_is_cut_never_looks_complete(start_server: StartServer, open_page: OpenPage, cut: bytes) -> None:
    server = start_server(f"echo one line; {COPY}")
    with PathProxy(server.port, "", cut) as proxy:
        tab = open_page(f"{proxy.url}/_/try").choose(PHOTO).run()
        assert tab.verdict == "The connection ended before the result"
        assert "outputs may be missing" in tab.detail
        assert tab.outputs in ([], ["copy-of-photo.jpg"]), "only a whole output may be shown"
        if cut == b'"offset":':
            assert tab.outputs == []


def test_a_stream_that_the_page_cannot_read_ends_the_script(start_server: StartServer, open_page: OpenPage) -> None:
    server = start_server("sleep 1000")
    tab = open_page(server).type("")
    tab.page.evaluate("() => { JSON.parse = () => { throw new Error('damaged'); }; }")
    assert tab.run().verdict == "The connection ended before the result"
    assert server.event("invocation ended")["outcome"] == "caller_gone"


# ---- hostile texts


def test_hostile_names_and_lines_stay_texts(start_server: StartServer, open_page: OpenPage, tmp_path: Path) -> None:
    name = f"{MARKUP}{END_OF_TAG.replace('/', '')}{RIGHT_TO_LEFT}.txt"
    (tmp_path / name).write_text("x")
    lines = [MARKUP, END_OF_TAG, RIGHT_TO_LEFT, "\x1b[31mred\x1b[0m\x1b]0;title\x07", "</script></style></template>"]
    printed = "; ".join(f"printf '%s\\n' {shlex.quote(line)}" for line in lines)
    copies = "; ".join(
        f'cp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR"/{shlex.quote(each)}' for each in (MARKUP, RIGHT_TO_LEFT)
    )
    server = start_server(
        f"{printed}; {copies}; echo 'progress 0.5 {MARKUP}' >&4; printf '%s' {shlex.quote(MARKUP)} >&2; exit 0"
    )
    tab = open_page(server).choose(tmp_path / name).run()
    assert tab.verdict == "Done"
    assert set(tab.outputs) == {MARKUP, "\\u202egnp.exe"}
    for line in (MARKUP, END_OF_TAG, "\\u202egnp.exe", "red", "</script></style></template>"):
        assert line in tab.log
    assert tab.page.inner_text("#chosen") == name.replace("\u202e", "\\u202e")
    assert "\u202e" not in tab.page.inner_text("body")
    assert tab.download("\\u202egnp.exe")[0] == "_gnp.exe"
    assert tab.page.evaluate("window.isHacked") is None
    assert tab.page.locator("img").count() == 0


def test_a_hostile_error_stays_a_text(start_server: StartServer, open_page: OpenPage) -> None:
    tab = open_page(start_server(f"printf '%s' {shlex.quote(MARKUP + END_OF_TAG)} >&2; exit 1")).type("").run()
    assert MARKUP + END_OF_TAG in tab.page.inner_text(".stderr")
    assert tab.page.evaluate("window.isHacked") is None


def test_documents_of_a_script_never_run_in_the_page(
    start_server: StartServer, open_page: OpenPage, tmp_path: Path
) -> None:
    code = "<script>parent.isHacked = window.isHacked = 1</script>"
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" width="40" height="20" onload="parent.isHacked=1">{code}</svg>'
    files = {
        "a.html": f"<body onload='isHacked=1'>{code}".encode(),
        "b.svg": svg.encode(),
        "c.png": f"<html>{code}".encode(),
        "d.csv": f"{MARKUP},x\n{END_OF_TAG},y\n".encode(),
        "e.zip": zip_of({MARKUP: b""}),
        "f.json": json.dumps({MARKUP: END_OF_TAG}).encode(),
    }
    tab = open_page(start_server(script_with_files(tmp_path / "files", files)))
    tab.page.evaluate(
        """() => {
            window.types = [];
            const make = URL.createObjectURL;
            URL.createObjectURL = (blob) => (types.push(blob.type), make(blob));
        }"""
    )
    tab.type("").run()
    assert tab.outputs == sorted(files)
    picture = tab.output("b.svg").locator("img")
    picture.wait_for()
    assert picture.evaluate("async (img) => (await img.decode(), img.naturalWidth)") == 40
    assert (picture.get_attribute("src") or "").startswith("data:image/svg+xml,")
    assert tab.output("a.html").locator("pre").inner_text() == files["a.html"].decode()
    assert tab.output("d.csv").locator("th").first.inner_text() == MARKUP
    assert set(tab.page.evaluate("types")) == {"application/octet-stream", "image/png"}
    assert tab.page.evaluate("window.isHacked") is None


def test_the_browser_refuses_markup_scripts_and_hosts_that_are_not_of_the_page(
    start_server: StartServer, open_page: OpenPage
) -> None:
    tab = open_page(start_server("true"))
    attempts = """async () => {
        const attempts = {
            markup: () => (document.body.innerHTML = "<b>x</b>"),
            script: () => (document.createElement("script").text = "1"),
            host: () => fetch("http://127.0.0.2:9/"),
        };
        const refused = [];
        for (const [name, attempt] of Object.entries(attempts)) {
            try { await attempt(); } catch { refused.push(name); }
        }
        return refused;
    }"""
    assert tab.page.evaluate(attempts) == ["markup", "script", "host"]
    assert {"require-trusted-types-for", "connect-src"} <= set(tab.page.evaluate("violations"))
    tab.page.evaluate("violations.length = 0")
    tab.complaints.clear()


def test_another_page_cannot_show_the_page_in_a_frame(start_server: StartServer, open_page: OpenPage) -> None:
    url = f"http://127.0.0.1:{start_server('true').port}/_/try"
    command = f"printf '<iframe src={url}></iframe>'"
    other = start_server(None, WATCHDOG_FPROCESS=command, WATCHDOG_CONTENT_TYPE="text/html")
    tab = open_page(other, "/page")
    assert [frame.url for frame in tab.page.frames[1:]] == ["chrome-error://chromewebdata/"]
    tab.complaints.clear()


# ---- copy as


HOSTILE_NAME = 'it\'s $(touch hacked) `touch hacked` "x" ; &.txt'


@pytest.mark.parametrize("program", ["curl", "Python"])
def test_a_copied_command_makes_the_same_call(
    start_server: StartServer, open_page: OpenPage, tmp_path: Path, program: str
) -> None:
    (tmp_path / HOSTILE_NAME).write_text("content")
    server = start_server('basename "$INPUT_FILE_PATH"; cat "$INPUT_FILE_PATH"', WATCHDOG_AUTH_TOKEN="s3cret")
    tab = open_page(server).choose(tmp_path / HOSTILE_NAME)
    tab.page.fill("#token", "s3cret")
    command = tab.command(program)
    assert "s3cret" not in command
    arguments = ["bash", "-c", command] if program == "curl" else ["python3", "-c", command]
    environ = os.environ | {"TOKEN": "s3cret", "no_proxy": "127.0.0.1"}
    subprocess.run(arguments, cwd=tmp_path, env=environ, check=True, capture_output=True)
    assert (tmp_path / "answer.bin").read_text() == f"{HOSTILE_NAME}\ncontent"
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("text", ["@/etc/passwd", "it's\n\x1b[201~7\u202e\x85 $(touch hacked)\t\\", "", "ü漢"])
@pytest.mark.parametrize("program", ["curl", "Python"])
def test_a_copied_command_sends_the_typed_text(
    start_server: StartServer, open_page: OpenPage, tmp_path: Path, program: str, text: str
) -> None:
    """In the locale C, bash does not know the characters of Unicode."""
    server = start_server('cat "$INPUT_FILE_PATH" > "$TMP_OUTPUT_DIR/x"')
    command = open_page(server).type(text).command(program)
    assert "\x1b" not in command
    arguments = ["bash", "-c", command] if program == "curl" else ["python3", "-c", command]
    environ = os.environ | {"no_proxy": "127.0.0.1", "LC_ALL": "C" if program == "curl" else "C.UTF-8"}
    subprocess.run(arguments, cwd=tmp_path, env=environ, check=True, capture_output=True)
    assert (tmp_path / "answer.bin").read_text() == text
    assert not (tmp_path / "hacked").exists()


def test_a_copied_command_names_a_file_if_the_bytes_of_a_text_are_too_long_for_an_argument(
    start_server: StartServer, open_page: OpenPage
) -> None:
    tab = open_page(start_server("true")).type("漢" * 40_000)
    assert "--data-binary @'./FILE'" in tab.command("curl")


def test_the_command_for_oscar_cli_has_the_words_of_its_usage(
    start_server: StartServer, open_page: OpenPage, tmp_path: Path
) -> None:
    (tmp_path / HOSTILE_NAME).write_text("content")
    server = start_server("true", K_SERVICE="plants")
    command = open_page(server).choose(tmp_path / HOSTILE_NAME).command("oscar-cli")
    words = shlex.split(command.replace("\\\n", ""))
    assert words == ["oscar-cli", "service", "run", "plants", "--input", f"./{HOSTILE_NAME}", "--output", "answer"]


def test_after_a_run_with_several_outputs_the_command_asks_for_a_zip(
    start_server: StartServer, open_page: OpenPage, tmp_path: Path
) -> None:
    server = start_server(script_with_files(tmp_path / "files", {"a": b"1", "b": b"2"}))
    tab = open_page(server).type("").run()
    subprocess.run(["bash", "-c", tab.command("curl")], cwd=tmp_path, check=True, capture_output=True)
    assert zipfile.ZipFile(tmp_path / "answer.zip").namelist() == ["a", "b"]


# ---- where it runs, and for whom


def test_behind_a_path_of_a_proxy_a_browser_that_opens_the_path_gets_a_page_that_works(
    start_server: StartServer, open_page: OpenPage
) -> None:
    with PathProxy(start_server("echo hi").port, "/system/services/plants/exposed") as proxy:
        tab = open_page(f"{proxy.url}/").type("")
        assert tab.page.url == f"{proxy.url}/_/try"
        assert tab.run().verdict == "Done"


def test_the_page_can_be_used_with_the_keyboard_alone(start_server: StartServer, open_page: OpenPage) -> None:
    tab = open_page(start_server('cat "$INPUT_FILE_PATH"'))
    keys = tab.page.keyboard
    keys.press("Tab")
    keys.press("ArrowRight")  # from File to Text
    keys.press("Tab")
    keys.type("typed")
    keys.press("Control+Enter")
    tab.await_verdict()
    assert tab.output("Printed text").locator("pre").inner_text() == "typed"
    assert "Done" in tab.page.inner_text("#status")


def test_a_dropped_file_is_chosen(start_server: StartServer, open_page: OpenPage) -> None:
    tab = open_page(start_server('basename "$INPUT_FILE_PATH"; cat "$INPUT_FILE_PATH"'))
    drop = """() => {
        const dataTransfer = new DataTransfer();
        dataTransfer.items.add(new File(["content"], "dropped.txt"));
        document.body.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
    }"""
    tab.page.evaluate(drop)
    tab.run()
    assert tab.output("Printed text").locator("pre").inner_text() == "dropped.txt\ncontent"


def test_an_earlier_run_can_be_shown_again(start_server: StartServer, open_page: OpenPage) -> None:
    tab = open_page(start_server('cat "$INPUT_FILE_PATH"'))
    for count in range(12):
        tab.type(f"text {count}").run()
    runs = tab.page.locator("#history button")
    assert runs.count() == 10, "older runs are removed"
    runs.last.click()
    assert tab.output("Printed text").locator("pre").inner_text() == "text 2"
    assert runs.last.get_attribute("aria-current") == "true"


@pytest.mark.parametrize("look", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_every_state_of_the_page_is_accessible_and_fits_into_its_window(
    start_server: StartServer, open_page: OpenPage, tmp_path: Path, look: str, width: int
) -> None:
    files = {
        "archive.zip": zip_of({"a": b"1"}),
        "data.csv": b"a,b\n1,2\n",
        "a-name-of-an-output-that-is-longer-than-a-small-window-is-wide-" * 2 + ".json": b"{}",
        "photo.jpg": PHOTO.read_bytes(),
        "sound.wav": sound(),
    }
    lines = 'echo "DEBUG: a"; echo "WARNING: b"; echo "ERROR: c"; echo "progress 0.5 half" >&4\n'
    link = 'ln -s /etc "$TMP_OUTPUT_DIR/l"\n'
    script = (
        lines + link + script_with_files(tmp_path / "files", files) + WAIT + '[ "$(cat "$INPUT_FILE_PATH")" != fail ]'
    )
    server = start_server(script, HANDSHAKE=str(tmp_path), WATCHDOG_LOG_LEVEL="NOTSET", WATCHDOG_AUTH_TOKEN="s3cret")
    tab = open_page(server, color_scheme=look, viewport={"width": width, "height": 740}, reduced_motion="reduce")

    def check(state: str) -> None:
        assert tab.violations_of_accessibility() == [], state
        assert not tab.is_wider_than_its_window(), state

    check("empty")
    tab.choose(PHOTO).run()
    check("a wrong token")
    tab.page.fill("#token", "s3cret")
    tab.start().await_log("c")
    tab.page.get_by_text("50 % half").wait_for()
    check("a run")
    (tmp_path / "go").touch()
    tab.await_verdict()
    tab.page.locator(".output table").first.wait_for()
    check("a success with several outputs")
    tab.command("curl")
    check("a command")
    tab.type("fail").run()
    check("a failure, with a history")
