"""The commands as a user types them."""

from __future__ import annotations

import base64
import os
import re
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from guards import changed_program
from running_server import StartServer, until

from watchdog import __version__, errors
from watchdog.cli import exit_code_of
from watchdog.commands.arguments import COMMANDS
from watchdog.commands.catalogue import CATALOGUE
from watchdog.commands.command_line import without_argparse
from watchdog.commands.parser import parse_all
from watchdog.commands.setting_groups import ALL as ALL_GROUPS
from watchdog.commands.setting_groups import setting_groups
from watchdog.logs import readable
from watchdog.settings.declarations import SETTINGS

ROOT = Path(__file__).parent.parent


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "tmp").mkdir()
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WATCHDOG_")}
    return clean | {
        "TMPDIR": str(tmp_path / "tmp"),
        "WATCHDOG_SCRIPT_PATH": str(tmp_path / "script.sh"),
        "WATCHDOG_LOG_FORMAT": "json",
        "PYTHONPATH": str(ROOT),
    }


def watchdog(
    environ: dict[str, str], *words: str, called_as: str = "watchdog", **options: object
) -> subprocess.CompletedProcess[str]:
    code = f"import sys; from watchdog.cli import main; sys.exit(main(sys.argv[1:], {called_as!r}))"
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [sys.executable, "-c", code, *words], env=environ, text=True, capture_output=True, **options
    )


def write_script(tmp_path: Path, text: str) -> None:
    (tmp_path / "script.sh").write_text(text)


def test_version_and_help(environ: dict[str, str]) -> None:
    for words in (["--version"], ["-version"], ["serve", "--version"]):
        done = watchdog(environ, *words)
        assert (done.returncode, done.stdout) == (0, f"oscar-watchdog {__version__}\n")


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["help"]])
def test_the_help_lists_every_command_with_examples(environ: dict[str, str], words: list[str]) -> None:
    done = watchdog(environ, *words)
    assert done.returncode == 0
    for name, command in CATALOGUE.items():
        assert re.search(rf"^  {name} +{re.escape(command.summary)}$", done.stdout, re.MULTILINE), name
    assert "\nExamples:\n  watchdog " in done.stdout
    assert "--max-queue" not in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_is_the_same_in_both_ways_and_has_examples(environ: dict[str, str], name: str) -> None:
    done = watchdog(environ, "help", name)
    assert done.returncode == 0
    assert done.stdout == watchdog(environ, name, "--help").stdout
    assert f"\nExamples:\n  watchdog {name}" in done.stdout


@pytest.mark.parametrize(
    ("command", "belongs", "does_not_belong"),
    [
        ("serve", ["--exec-timeout", "--max-queue", "--port"], ["--no-store"]),
        ("run", ["--exec-timeout", "--no-store", "FILE"], ["--max-queue", "--port", "--auth-token-file"]),
        ("job", ["--exec-timeout", "--secrets-dir"], ["--max-queue", "--port"]),
        ("health", ["--port", "--bind"], ["--exec-timeout", "--script-path"]),
        ("helper", ["NAME"], ["--port", "--log-level"]),
    ],
)
def test_the_help_of_a_command_shows_only_what_belongs_to_it(
    environ: dict[str, str], command: str, belongs: list[str], does_not_belong: list[str]
) -> None:
    text = watchdog(environ, command, "--help").stdout
    assert [each for each in belongs if each not in text] == []
    assert [each for each in does_not_belong if each in text] == []


def test_a_setting_that_the_help_of_a_command_does_not_show_is_still_accepted() -> None:
    assert parse_all(["health", "--exec-timeout", "1s"]).flags == {"exec_timeout": "1s"}
    assert parse_all(["run", "f", "--port", "1"]).flags == {"port": "1"}


def test_every_command_is_declared_and_every_setting_has_a_group() -> None:
    assert set(CATALOGUE) == set(COMMANDS)
    groups = setting_groups()
    assert "" not in groups, "the first setting has no group"
    assert list(groups) == list(ALL_GROUPS), "a group begins with a setting that does not exist"
    assert [name for names in groups.values() for name in names] == list(SETTINGS)
    for command in CATALOGUE.values():
        assert set(command.settings) <= set(groups)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["chekc"], "there is no command 'chekc'; the nearest name is check"),
        (["SERVE"], "the nearest name is serve"),
        (["help", "rum"], "there is no command 'rum'; the nearest name is run"),
        (["--prot", "80"], "there is no flag '--prot'; the nearest name is --port"),
        (["serve", "--max_inflght=2"], "the nearest name is --max-inflight"),
        (["run", "file", "--outptu", "x"], "there is no flag '--outptu'; the nearest name is --output"),
        (["helper", "--port", "1"], "there is no flag '--port'"),
        (["serve", "--zzzzzz"], "there is no flag '--zzzzzz'\n"),
        (["serve", "surplus"], "the argument 'surplus' is not expected; name the script with --script-path PATH"),
        (["run", "script.sh", "photo.jpg"], "the script with --script-path PATH; name the output with -o PATH"),
        (["health", "surplus"], "the argument 'surplus' is not expected\n"),
        ([__file__], f"to run this file for each call, use watchdog serve --script-path {__file__}"),
    ],
)
def test_a_mistyped_word_gets_the_nearest_name(environ: dict[str, str], words: list[str], text: str) -> None:
    done = watchdog(environ, *words)
    assert done.returncode == 2
    assert text in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["serve"],
        ["check", "--port", "1"],
        ["job", "--port=1", "--max-queue", "x y", "--port", "2"],
        ["health", "--bind="],
        ["serve", "--script-path", ""],
        ["serve", "--script-path", "=a=b"],
        ["serve", "--script-path=a=b"],
    ],
)
def test_a_usual_command_line_is_read_without_argparse_as_argparse_reads_it(words: list[str]) -> None:
    assert without_argparse(words) == parse_all(words)


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["nonsense"],
        ["run", "--port", "1", "file"],
        ["serve", "--por", "1"],
        ["serve", "--port"],
        ["serve", "--port", "-1"],
        ["serve", "--port", "--", "1"],
        ["serve", "--", "--port", "1"],
        ["serve", "-h"],
        ["serve", "surplus"],
        ["serve", "--auth-token", "secret"],
        ["serve", "--auth-token=secret"],
        ["serve", "--suppress_lock", "true"],
    ],
)
def test_any_other_command_line_is_left_to_argparse(words: list[str]) -> None:
    assert without_argparse(words) is None


@pytest.mark.parametrize("words", [["nonsense"], ["run"], ["serve", "--no-such-flag"], ["serve", "surplus"]])
def test_usage_errors_exit_2(environ: dict[str, str], words: list[str]) -> None:
    done = watchdog(environ, *words)
    assert done.returncode == 2
    assert "usage: watchdog" in done.stderr


def test_a_user_who_wants_a_shell_in_the_image_gets_the_command(environ: dict[str, str]) -> None:
    """With ``docker run IMAGE bash``, the entry point of the image gets the word "bash"."""
    done = watchdog(environ, "bash", "-c", "ls")
    assert done.returncode == 2
    assert "docker run --entrypoint bash IMAGE" in done.stderr
    assert "Traceback" not in done.stderr


def test_run_copies_one_output_to_a_file(environ: dict[str, str], tmp_path: Path) -> None:
    write_script(
        tmp_path, 'basename "$INPUT_FILE_PATH" >&2; tr a-z A-Z < "$INPUT_FILE_PATH" > "$TMP_OUTPUT_DIR/up.txt"'
    )
    (tmp_path / "in.txt").write_text("hello")
    done = watchdog(environ, "run", str(tmp_path / "in.txt"), "-o", str(tmp_path / "new" / "out"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "new" / "out").read_text() == "HELLO"
    assert '"event":"in.txt"' in done.stderr
    assert list((tmp_path / "tmp").iterdir()) == []
    done = watchdog(environ, "run", "-", "-o", str(tmp_path), input="from stdin")
    assert (tmp_path / "up.txt").read_text() == "FROM STDIN"
    assert watchdog(environ, "run", str(tmp_path / "in.txt")).stdout == "HELLO"


def test_run_copies_several_outputs_to_a_directory(environ: dict[str, str], tmp_path: Path) -> None:
    write_script(tmp_path, 'mkdir "$TMP_OUTPUT_DIR/d"; echo 1 > "$TMP_OUTPUT_DIR/a"; echo 2 > "$TMP_OUTPUT_DIR/d/b"')
    done = watchdog(environ, "run", "/dev/null", "-o", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "d" / "b").read_text() == "2\n"
    done = watchdog(environ, "run", "/dev/null")
    assert done.stdout.split() == ["2", "a", "2", "d/b"]
    assert "use -o PATH to keep them" in done.stderr


def test_run_reports_what_it_wrote_and_where(environ: dict[str, str], tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    for script, target, report in (
        ("printf 123", "printed", f"wrote {out}/printed (3 B, which the script printed)"),
        ('printf 123 > "$TMP_OUTPUT_DIR/a"', "one", f"wrote {out}/one (3 B)"),
        (
            'printf 1 > "$TMP_OUTPUT_DIR/a"; printf 2 > "$TMP_OUTPUT_DIR/b"',
            "d",
            f"wrote 2 files (2 B) into {out}/d/: a, b",
        ),
    ):
        write_script(tmp_path, script)
        done = watchdog(environ, "run", "/dev/null", "-o", f"{out}/{target}")
        assert done.stderr.splitlines()[-1] == report


def test_run_writes_a_zip_if_the_name_says_so(environ: dict[str, str], tmp_path: Path) -> None:
    write_script(tmp_path, 'mkdir "$TMP_OUTPUT_DIR/d"; echo 1 > "$TMP_OUTPUT_DIR/a"; echo 2 > "$TMP_OUTPUT_DIR/d/b"')
    target = tmp_path / "new" / "out.ZIP"
    done = watchdog(environ, "run", "/dev/null", "-o", str(target))
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(target) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == {"a": b"1\n", "d/b": b"2\n"}
    size = readable.size(target.stat().st_size)
    assert done.stderr.splitlines()[-1] == f"wrote {target} (2 files, {size})"


def test_run_copies_an_output_that_is_itself_a_zip(environ: dict[str, str], tmp_path: Path) -> None:
    write_script(tmp_path, 'printf PK-and-more > "$TMP_OUTPUT_DIR/result.zip"')
    done = watchdog(environ, "run", "/dev/null", "-o", str(tmp_path / "out.zip"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.zip").read_bytes() == b"PK-and-more"


def test_run_makes_no_zip_of_a_printed_text(environ: dict[str, str], tmp_path: Path) -> None:
    write_script(tmp_path, "echo only text")
    done = watchdog(environ, "run", "/dev/null", "-o", str(tmp_path / "out.zip"))
    assert done.returncode == 1
    assert "the script left no file for" in done.stderr
    assert not (tmp_path / "out.zip").exists()


@pytest.mark.parametrize("script", ["echo 1", 'echo 1 > "$TMP_OUTPUT_DIR/a"'])
def test_run_reports_an_output_that_a_full_disk_refuses(environ: dict[str, str], tmp_path: Path, script: str) -> None:
    write_script(tmp_path, script)
    done = watchdog(environ, "run", "/dev/null", "-o", "/dev/full")
    assert done.returncode == 1
    assert "the output /dev/full cannot be written to its end: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_run_leaves_no_part_of_an_output_that_does_not_fit(environ: dict[str, str], tmp_path: Path) -> None:
    write_script(tmp_path, 'head -c 3000000 /dev/zero > "$TMP_OUTPUT_DIR/a"')
    target = tmp_path / "out"
    code = f"""
import resource, sys
from watchdog.commands import local_run
def limited(path, *arguments, created=local_run._created):
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000000, 1000000))
    return created(path, *arguments)
local_run._created = limited
from watchdog.cli import main
sys.exit(main(["run", "/dev/null", "-o", {str(target)!r}]))
"""
    done = subprocess.run([sys.executable, "-c", code], env=environ, text=True, capture_output=True, timeout=60)
    assert done.returncode == 1
    assert f"the output {target} cannot be written to its end: File too large" in done.stderr
    assert not target.exists()


def test_run_uses_the_script_of_this_directory_if_none_is_configured(environ: dict[str, str], tmp_path: Path) -> None:
    del environ["WATCHDOG_SCRIPT_PATH"]
    write_script(tmp_path, "echo here")
    done = watchdog(environ, "run", "/dev/null", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "here\n")
    assert done.stderr.startswith("no script is configured, so ./script.sh is used\n")
    (tmp_path / "other.sh").write_text("echo other")
    done = watchdog(environ, "run", "/dev/null", "--script-path", "other.sh", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "other\n")
    assert "./script.sh" not in done.stderr
    done = watchdog(environ, "run", "/dev/null", "--fprocess", "echo classic", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "classic\n")
    (tmp_path / "script.sh").unlink()
    done = watchdog(environ, "run", "/dev/null", cwd=tmp_path)
    assert done.returncode == 127
    assert f"there is no script at {tmp_path}/script.sh" in done.stderr


@pytest.mark.parametrize("format_", ["json", "console"])
def test_run_gives_the_reason_of_a_failure_once(environ: dict[str, str], tmp_path: Path, format_: str) -> None:
    write_script(tmp_path, "sleep 60")
    done = watchdog(environ, "run", "/dev/null", "--exec-timeout", "200ms", "--log-format", format_)
    assert done.returncode == 124
    assert done.stderr.count("longer than 0.2 s") == 1


def test_run_gives_the_reason_of_a_failure_if_the_log_hides_it(environ: dict[str, str], tmp_path: Path) -> None:
    write_script(tmp_path, "exit 3")
    done = watchdog(environ, "run", "/dev/null", "--log-level", "CRITICAL")
    assert (done.returncode, done.stderr) == (3, "the script ended with exit code 3\n")


def test_run_prints_stdout_where_there_is_no_output(environ: dict[str, str], tmp_path: Path) -> None:
    write_script(tmp_path, "echo out; echo err >&2")
    done = watchdog(environ, "run", "/dev/null")
    assert done.stdout == "out\n"
    assert '"event":"err"' in done.stderr


def test_run_waits_for_a_filter(environ: dict[str, str], tmp_path: Path) -> None:
    write_script(tmp_path, "#!/bin/bash\nexec > >(sort -rn)\nseq 1 200000\n")
    done = watchdog(environ, "run", "/dev/null", "--linger-timeout", "300")
    assert done.returncode == 0
    assert done.stdout == "".join(f"{n}\n" for n in range(200_000, 0, -1))


@pytest.mark.parametrize(
    ("script", "flags", "code", "text"),
    [
        ("exit 7", [], 7, "exit code 7"),
        ("kill -9 $$", [], 137, "SIGKILL"),
        ("kill -40 $$", [], 168, "SIGRTMIN+6"),
        ("sleep 60", ["--exec-timeout", "200ms"], 124, "longer than 0.2 s"),
        (None, [], 127, "there is no script"),
        ("true", ["--max-input-size", "1"], 65, "max_input_size"),
        ("true", ["--exec-timeout", "soon"], 2, "exec_timeout"),
    ],
)
def test_exit_codes_of_run(
    environ: dict[str, str], tmp_path: Path, script: str | None, flags: list[str], code: int, text: str
) -> None:
    if script is not None:
        write_script(tmp_path, script)
    (tmp_path / "in").write_text("12")
    done = watchdog(environ, "run", str(tmp_path / "in"), *flags)
    assert done.returncode == code
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_run_of_a_file_that_is_not_there(environ: dict[str, str]) -> None:
    done = watchdog(environ, "run", "/no/such/file")
    assert (done.returncode, done.stderr) == (2, "the input /no/such/file cannot be read: No such file or directory\n")


@pytest.mark.parametrize("target", ["out.bin", "out/"])
def test_ctrl_c_while_run_writes_an_output_leaves_no_incomplete_file(
    environ: dict[str, str], tmp_path: Path, target: str
) -> None:
    write_script(tmp_path, 'echo 1 > "$TMP_OUTPUT_DIR/a"')
    endless = """
import os
from watchdog.commands import local_run
local_run.open_output = lambda output: os.open("/dev/zero", os.O_RDONLY)
local_run._COPY_BYTES = 1  # the file then grows slowly
"""
    run = subprocess.Popen(
        [sys.executable, *changed_program(endless, None), "run", "/dev/null", "-o", f"{tmp_path}/{target}"],
        env=environ,
        stderr=subprocess.PIPE,
        text=True,
    )
    path = tmp_path / (f"{target}a" if target.endswith("/") else target)
    with run:
        try:
            until(lambda: path.exists() and path.stat().st_size, "the output to be written")
            run.send_signal(signal.SIGINT)
            _, text = run.communicate(timeout=60)
        finally:
            run.kill()
    assert run.returncode == 130
    assert text.splitlines()[-1] == "the script has ended, but Ctrl-C came before all of its output was written"
    assert "Traceback" not in text
    assert not path.exists()


def test_ctrl_c_ends_run_and_its_script_at_once(environ: dict[str, str], tmp_path: Path) -> None:
    write_script(tmp_path, "trap '' TERM INT; echo up >&2; setsid sleep 60 & sleep 60; sleep 60")
    run = subprocess.Popen(
        [sys.executable, "-m", "watchdog", "run", "/dev/null"],
        env=environ | {"WATCHDOG_KILL_GRACE": "60"},
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert run.stderr is not None
    with run:
        lines: list[str] = []
        while '"event":"up"' not in "".join(lines):
            lines.append(run.stderr.readline())
            assert lines[-1], lines
        run.send_signal(signal.SIGINT)
        text = run.stderr.read()
        assert run.wait() == 130
    assert text.splitlines()[-1] == "Ctrl-C stopped the run; no process of the script is left"
    assert "Traceback" not in text
    assert list((tmp_path / "tmp").iterdir()) == []
    needle = str(tmp_path).encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            assert needle not in path.read_bytes() or path.parent.name == str(os.getpid())
        except OSError:
            continue


def test_check_names_every_problem_at_once(environ: dict[str, str]) -> None:
    broken = {
        "WATCHDOG_PORT": "http",
        "exec_timeout": "soon",
        "WATCHDOG_MAX_INFLIGHT": "-1",
        "WATCHDOG_MAX_INPUT_SIZE": "10 apples",
        "WATCHDOG_LOG_LEVEL": "LOUD",
        "WATCHDOG_LOG_FORMAT": "xml",
        "WATCHDOG_TMP_DIR": "/no/such/dir",
        "WATCHDOG_AUTH_TOKEN_FILE": "/no/such/token",
        "WATCHDOG_SERVICE_DEFINITION": "/no/such/definition",
        "WATCHDOG_ERROR_STATUS": "maybe",
        "SCRIPT": "no base64!",
    }
    done = watchdog(environ | broken, "check")
    assert done.returncode == 2
    for name, value in broken.items():
        assert name in done.stdout, name
        assert value in done.stdout or name == "SCRIPT", value
    started = watchdog(environ | broken, "serve")
    assert started.returncode == 2
    assert len(started.stderr.splitlines()) == len(broken)


def test_check_of_a_good_configuration_shows_values_and_sources(environ: dict[str, str], tmp_path: Path) -> None:
    write_script(tmp_path, "true")
    secret = {"WATCHDOG_AUTH_TOKEN": "s3cret", "MAX_INFLIGHT": "3"}
    done = watchdog(environ | secret, "check", "--exec-timeout", "5m")
    assert done.returncode == 0, done.stdout
    assert "s3cret" not in done.stdout
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    assert "3" in rows["max_inflight"]
    assert "MAX_INFLIGHT" in rows["max_inflight"]
    assert "--exec-timeout" in rows["exec_timeout"]


def test_check_finds_a_missing_interpreter(environ: dict[str, str], tmp_path: Path) -> None:
    write_script(tmp_path, "#!/no/such/interpreter\n")
    done = watchdog(environ, "check")
    assert done.returncode == 2
    assert "/no/such/interpreter" in done.stdout


def test_health(environ: dict[str, str], start_server: StartServer) -> None:
    server = start_server("echo hi")
    here = environ | {"WATCHDOG_BIND": "127.0.0.1"}
    assert watchdog(here, "health", "--port", str(server.port)).returncode == 0
    assert watchdog(here, "-run-healthcheck").returncode in (0, 1)
    server.script.unlink()
    done = watchdog(here, "health", "--port", str(server.port))
    assert done.returncode == 1
    assert "there is no script" in done.stderr
    server.kill()
    done = watchdog(here, "health", "--port", str(server.port))
    assert done.returncode == 1
    assert "no server answers" in done.stderr


def test_a_port_in_use_is_reported(environ: dict[str, str], start_server: StartServer) -> None:
    server = start_server("echo hi")
    done = watchdog(environ | {"WATCHDOG_BIND": "127.0.0.1"}, "serve", "--port", str(server.port))
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{server.port} (port): Address already in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_closed_standard_streams_do_not_harm(environ: dict[str, str], tmp_path: Path) -> None:
    write_script(tmp_path, 'echo out; echo err >&2; echo made > "$TMP_OUTPUT_DIR/x"')
    command = f'{sys.executable} -m watchdog run /dev/null -o "{tmp_path}/out" <&- >&- 2>&-'
    done = subprocess.run(["/bin/sh", "-c", command], env=environ, cwd=ROOT)
    assert done.returncode == 0
    assert (tmp_path / "out").read_text() == "made\n"


def test_every_error_has_an_exit_code() -> None:
    def leaves(kind: type[errors.WatchdogError]) -> list[type[errors.WatchdogError]]:
        below = kind.__subclasses__()
        return [leaf for each in below for leaf in leaves(each)] if below else [kind]

    for kind in leaves(errors.WatchdogError):
        if issubclass(kind, (errors.ScriptFailed, errors.ScriptKilled)):
            continue  # the error itself has the exit code
        assert exit_code_of(kind.__new__(kind)) >= 1
    assert exit_code_of(errors.ScriptFailed("", exit_code=9)) == 9
    assert exit_code_of(errors.ScriptKilled("", signal="SIGSEGV")) == 139


@pytest.mark.parametrize(("script", "code"), [("echo printed", 73), ("true", 0)], ids=["printed", "nothing"])
def test_run_with_closed_standard_streams(environ: dict[str, str], tmp_path: Path, script: str, code: int) -> None:
    write_script(tmp_path, script)
    command = f'"{sys.executable}" -m watchdog run "{tmp_path}/script.sh" <&- >&- 2>&-'
    assert subprocess.run(["sh", "-c", command], env=environ, timeout=60).returncode == code


@pytest.mark.parametrize(
    ("environ", "only"),
    [
        ({"FUNCTION_CONFIG": base64.b64encode(b"name: [").decode()}, "is not YAML"),
        ({"FUNCTION_CONFIG": "!"}, "FUNCTION_CONFIG"),
        ({"WATCHDOG_SERVICE_DEFINITION": "/no/such/file"}, "there is no such file"),
        ({"SCRIPT": "!"}, "SCRIPT"),
        ({"fprocess": "cat '"}, "fprocess"),
        ({"PORT": "abc", "WATCHDOG_METRICS_PORT": "8080", "fprocess": "cat"}, "port: environment PORT is 'abc'"),
    ],
    ids=["broken definition", "definition in no base64", "no definition", "script in no base64", "fprocess", "port"],
)
def test_check_reports_nothing_that_follows_from_what_could_not_be_read(environ: dict[str, str], only: str) -> None:
    command = [sys.executable, "-m", "watchdog", "check"]
    environ = {"PATH": os.environ["PATH"]} | environ
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=40)
    assert done.returncode == 2
    problems = done.stdout.partition("problems:\n")[2].partition("\n\n")[0].splitlines()
    assert len(problems) == 1, problems
    assert only in problems[0]
