"""The Python helper of warm functions, with real processes.

The tests run on this Python and on the oldest one that is found. The nightly tests also use all others.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from warm_worker import HELPERS, WarmWorker

HELPER = HELPERS / "watchdog_warm.py"
OLDEST = (3, 6)


def found_pythons() -> dict[tuple[int, ...], str]:
    """Return the path of an interpreter for each version of Python from 3.6 on that this machine has.

    Each process of the tests asks for this, so only interpreters are run whose directory does not name their version.
    """
    found: dict[tuple[int, ...], str] = {sys.version_info[:2]: sys.executable}
    for directory in Path.home().glob(".pyenv/versions/*"):
        if (named := re.match(r"(\d+)\.(\d+)\.", directory.name)) and (path := directory / "bin/python3").exists():
            found.setdefault((int(named[1]), int(named[2])), str(path))
    for minor in range(6, 20):
        path_or_none = shutil.which(f"python3.{minor}")
        if (3, minor) not in found and path_or_none is not None and is_python(path_or_none, minor):
            found[3, minor] = path_or_none
    return {version: path for version, path in found.items() if version >= OLDEST}


def is_python(path: str, minor: int) -> bool:
    """Return whether this interpreter starts as that version. A shim of pyenv starts only a selected version."""
    code = f"import sys; sys.exit(sys.version_info[:2] != (3, {minor}))"
    return subprocess.run([path, "-IS", "-c", code], capture_output=True, check=False).returncode == 0


PYTHONS = found_pythons()
USUAL = {sys.version_info[:2], min(PYTHONS)}


@pytest.fixture(
    params=[
        pytest.param(path, id=".".join(map(str, version)), marks=[] if version in USUAL else NIGHTLY)
        for NIGHTLY in [(pytest.mark.slow, pytest.mark.nightly)]
        for version, path in sorted(PYTHONS.items())
    ]
)
def python(request: pytest.FixtureRequest) -> str:
    path: str = request.param
    return path


class Start:
    """Starts workers that end with the test."""

    def __init__(self, python: str, directory: Path) -> None:
        self.python, self.directory = python, directory
        self.workers: list[WarmWorker] = []

    def __call__(self, script: str, **options: Any) -> WarmWorker:
        """Start this script. It may print while it loads, and the test checks that output first."""
        (self.directory / "script.py").write_text(textwrap.dedent(script))
        return self.command([self.python, str(self.directory / "script.py")], **options)

    def serving(self, body: str = "pass", *, fork: bool = False, load: str = "", **options: Any) -> WarmWorker:
        """Start a worker whose function has this body, and wait until it is ready."""
        parts = [
            "import ctypes, os, signal, subprocess, sys, threading",
            "from watchdog_warm import serve",
            textwrap.dedent(load),
            f"@serve(fork={fork})",
            "def call(input_path, output_dir):",
            textwrap.indent(textwrap.dedent(body), "    "),
        ]
        worker = self("\n".join(parts) + "\n", **options)
        if options.get("is_warm", True):
            assert worker.answer() == ("ready fork" if fork else "ready")
        return worker

    def command(self, words: list[str], **options: Any) -> WarmWorker:
        worker = WarmWorker(words, self.directory, **options)
        self.workers.append(worker)
        return worker


@pytest.fixture
def start(python: str, tmp_path: Path) -> Iterator[Start]:
    start = Start(python, tmp_path)
    yield start
    for worker in start.workers:
        worker.close()


@pytest.fixture
def version(python: str) -> tuple[int, ...]:
    return next(version for version, path in PYTHONS.items() if path == python)


both = pytest.mark.parametrize("fork", [False, True], ids=["loop", "fork"])


# The calls


@both
def test_the_function_gets_the_paths_of_each_call_and_what_was_loaded_once(start: Start, fork: bool) -> None:
    worker = start.serving("print(model, input_path, output_dir)", load="model = os.getpid()", fork=fork)
    assert worker.call(INPUT_FILE_PATH="/a", TMP_OUTPUT_DIR="/out/1") == "done 0"
    assert worker.call(TMP_OUTPUT_DIR="/out/2") == "done 0"
    assert worker.printed() == f"{worker.pid} /a /out/1\n{worker.pid} None /out/2\n"
    assert worker.end() == 0


def test_serve_works_without_arguments_and_as_a_plain_function(start: Start) -> None:
    worker = start("from watchdog_warm import serve\n@serve\ndef call(a, b): print(a)\nprint(call.__name__)\n")
    assert worker.answer() == "ready"
    assert worker.call(INPUT_FILE_PATH="/a") == "done 0"
    assert worker.end() == 0
    assert worker.printed() == "/a\ncall\n"
    worker = start("import watchdog_warm\nwatchdog_warm.serve(lambda a, b: print(b), fork=True)\n")
    assert worker.answer() == "ready fork"
    assert worker.call(TMP_OUTPUT_DIR="/b") == "done 0"
    assert worker.printed() == "/b\n"


def test_the_end_of_descriptor_3_lets_the_script_continue_and_end(start: Start) -> None:
    worker = start(
        """
        import sys
        from watchdog_warm import serve
        serve(lambda a, b: None)
        print("cleaned up")
        sys.exit(5)
        """
    )
    assert worker.answer() == "ready"
    assert worker.end() == 5
    assert worker.printed() == "cleaned up\n"


@both
@pytest.mark.parametrize(
    ("statement", "code", "text"),
    [
        ("sys.exit()", 0, ""),
        ("sys.exit(7)", 7, ""),
        ("sys.exit(-1)", 255, ""),
        ("sys.exit(300)", 44, ""),
        ("sys.exit(True)", 1, ""),
        ("sys.exit('no picture')", 1, "no picture\n"),
        ("sys.exit('')", 1, "\n"),
        ("exit(3)", 3, ""),
        ("1 / 0", 1, "ZeroDivisionError: division by zero\n"),
        ("raise MemoryError('too large')", 1, "MemoryError: too large\n"),
        ("raise GeneratorExit", 1, "GeneratorExit\n"),
        ("t = threading.Thread(target=sys.exit, args=(3,)); t.start(); t.join()", 0, ""),
    ],
)
def test_a_call_has_the_exit_code_and_the_message_of_a_plain_program(
    start: Start, fork: bool, statement: str, code: int, text: str
) -> None:
    worker = start.serving("exec(os.environ['CODE'])", fork=fork)
    assert worker.call(CODE=statement) == f"done {code}"
    printed = worker.complained()
    assert printed.endswith(text)
    assert printed == text or printed.startswith("Traceback")
    assert worker.call(CODE="print('next')") == "done 0"
    assert worker.printed() == "next\n"
    plain = subprocess.run([start.python, "-c", f"import sys, threading; {statement}"], capture_output=True, text=True)
    assert plain.returncode == code
    assert plain.stderr.endswith(text)


@both
def test_ctrl_c_during_a_call_fails_this_call_only(start: Start, fork: bool) -> None:
    worker = start.serving("os.kill(os.getpid(), signal.SIGINT); threading.Event().wait(40)", fork=fork)
    for _ in range(2):
        assert worker.call() == "done 1"
        assert worker.complained().endswith("KeyboardInterrupt\n")


def test_a_wrong_line_ends_the_worker_with_a_traceback(start: Start) -> None:
    worker = start.serving()
    worker.send(b"nonsense\n")
    assert worker.end() == 1
    assert "JSONDecodeError" in worker.complained()


@both
def test_a_variable_of_200_kib_arrives(start: Start, fork: bool) -> None:
    value = "é'\"\\\n" * 40_000
    worker = start.serving("print(ascii(os.environb[b'BIG'].decode()))", fork=fork)
    assert worker.call(BIG=value) == "done 0"
    assert ast.literal_eval(worker.printed()) == value


@both
@pytest.mark.parametrize("locale", [{}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])
def test_variables_arrive_byte_for_byte_in_any_locale(start: Start, fork: bool, locale: dict[str, str]) -> None:
    value = bytes(range(1, 256)) + "é€😀".encode()
    worker = start.serving("print(list(os.environb[b'X']), list(os.environb[b'\\xff']))", fork=fork, environ=locale)
    assert worker.call(**{"X": value.decode("utf-8", "surrogateescape"), "\udcff": "\udc80"}) == "done 0"
    assert worker.complained() == ""
    assert worker.printed() == f"{list(value)} [128]\n"


@both
def test_each_call_starts_with_the_own_environment_and_directory(start: Start, fork: bool) -> None:
    body = """
        print({name: value for name, value in os.environ.items() if name.startswith("MY_")}, os.getcwd())
        os.environ["MY_NEW"] = os.environ["MY_KEPT"] = "1"
        del os.environ["MY_GONE"]
        os.chdir("/")
        sys.exit(int(os.environ["CODE"]))
    """
    worker = start.serving(body, fork=fork, environ={"MY_KEPT": "0", "MY_GONE": "0"})
    assert worker.call(CODE="0", MY_KEPT="of the call", MY_OWN="x") == "done 0"
    assert worker.printed() == f"{{'MY_KEPT': 'of the call', 'MY_GONE': '0', 'MY_OWN': 'x'}} {os.getcwd()}\n"
    for code in range(2):
        assert worker.call(CODE=str(code)) == f"done {code}"
        assert worker.printed() == f"{{'MY_KEPT': '0', 'MY_GONE': '0'}} {os.getcwd()}\n"


@both
def test_the_environment_between_calls_is_the_own_one(start: Start, fork: bool) -> None:
    worker = start(
        f"""
        import os, sys
        from watchdog_warm import serve
        before = dict(os.environb)

        def call(input_path, output_dir):
            os.environ.update(PATH="changed", NEW="x")
            del os.environ["GONE"]
            sys.exit(3)

        serve(call, fork={fork})
        print(before == dict(os.environb), os.popen("echo $GONE$NEW$CALL_ID").read(), end="")
        """,
        environ={"GONE": "back"},
    )
    worker.answer()
    assert worker.call(INPUT_FILE_PATH="/x") == "done 3"
    assert worker.end() == 0
    assert worker.printed() == "True back\n"


# Output


def test_what_is_printed_while_loading_comes_before_ready(start: Start) -> None:
    load = "print('loading', end=''); print('weights', end='', file=sys.stderr)\nctypes.CDLL(None).printf(b'!')"
    worker = start.serving(load=load)
    assert sorted(worker.printed()) == sorted("loading!")
    assert worker.complained() == "weights"


@both
def test_buffers_of_python_and_c_are_written_before_done(start: Start, fork: bool) -> None:
    body = """
        libc = ctypes.CDLL(None)
        for n in range(int(os.environ["LINES"])):
            print("p" * 1000)
            libc.printf(b"c" * 1000 + b"\\n")
            print("e", end="", file=sys.stderr)
        if "FAILS" in os.environ:
            sys.exit(1)
    """
    worker = start.serving(body, fork=fork)
    for lines, more in ((1, {}), (600, {}), (3, {"FAILS": "1"})):
        assert worker.call(LINES=str(lines), **more) == f"done {int(bool(more))}"
        printed = worker.printed()
        assert (printed.count("p"), printed.count("c")) == (1000 * lines, 1000 * lines)
        assert worker.complained() == "e" * lines


@both
def test_closed_or_missing_standard_streams_do_not_end_the_worker(start: Start, fork: bool) -> None:
    worker = start.serving("exec(os.environ['CODE'])", fork=fork)
    assert worker.call(CODE="sys.stdout.close()") == "done 0"
    assert worker.call(CODE="sys.stderr.close()\n1 / 0") == "done 1"
    assert worker.call(CODE="sys.stdout = sys.stderr = sys.__stderr__ = None") == "done 0"
    assert worker.call(CODE="1 / 0") == "done 1"
    assert worker.call() == "done 1"
    assert worker.end() == 0


# Processes that a call starts


@both
@pytest.mark.parametrize(
    "code",
    [
        "subprocess.run(words, close_fds=False)",
        "os.system(' '.join(words))",
        "child = os.fork()\nif child == 0: os.execv(words[0], words)\nos.waitpid(child, 0)",
        """
child = os.fork()
if child == 0:
    try:
        for fd in os.listdir("/proc/self/fd"):
            print(os.readlink("/proc/self/fd/" + fd) if os.path.lexists("/proc/self/fd/" + fd) else "")
        sys.stdout.flush()
    finally:
        os._exit(0)
os.waitpid(child, 0)
""",
    ],
    ids=["subprocess", "system", "exec", "fork"],
)
def test_no_process_of_a_call_has_the_pipes(start: Start, fork: bool, code: str, version: tuple[int, ...]) -> None:
    if "listdir" in code and not fork and version < (3, 7):
        pytest.skip("Python 3.6 cannot run a function after each fork")
    body = "words = ['/bin/ls', '-l', '/proc/self/fd']\n" + code.strip()
    worker = start.serving(body, fork=fork)
    pipes = [os.readlink(f"/proc/{worker.pid}/fd/{fd}") for fd in (3, 4)]
    assert worker.call() == "done 0"
    printed = worker.printed()
    assert "stdout" in printed
    assert not any(pipe in printed for pipe in pipes)


def test_a_process_that_is_started_while_loading_does_not_have_the_pipes(start: Start) -> None:
    worker = start.serving(load="os.system('ls -l /proc/self/fd')")
    pipes = [os.readlink(f"/proc/{worker.pid}/fd/{fd}") for fd in (3, 4)]
    printed = worker.printed()
    assert "stdout" in printed
    assert not any(pipe in printed for pipe in pipes)


# fork=True


def test_a_forked_call_leaves_no_trace_in_the_next_one(start: Start) -> None:
    worker = start.serving("seen.append(1); print(len(seen), os.getpid())", load="seen = []", fork=True)
    for _ in range(3):
        assert worker.call() == "done 0"
    lines = worker.printed().splitlines()
    assert [line.split()[0] for line in lines] == ["1"] * 3
    assert len({line.split()[1] for line in lines} | {str(worker.pid)}) == 4


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGTERM", "SIGABRT"])
def test_a_forked_call_that_a_signal_ended_is_reported_as_a_shell_does(start: Start, name: str) -> None:
    worker = start.serving(f"if 'KILL' in os.environ: os.kill(os.getpid(), signal.{name})", fork=True)
    assert worker.call(KILL="1") == f"done {128 + signal.Signals[name]}"
    assert worker.call() == "done 0"


def test_a_forked_call_ends_as_a_program_does(start: Start) -> None:
    """It waits for threads, runs its exit functions and writes all buffers, but runs no exit function of the parent."""
    load = """
        import atexit, tempfile
        from concurrent.futures import ThreadPoolExecutor
        pool = ThreadPoolExecutor(1)
        pool.submit(int).result()
        directory = tempfile.TemporaryDirectory()
        atexit.register(print, "exit of the parent")
    """
    body = """
        def late():
            started.wait(40)
            print("late")
        started = threading.Event()
        threading.Thread(target=late).start()
        atexit.register(print, "exit of the call")
        print(os.path.isdir(directory.name))
        started.set()
        sys.exit(4)
    """
    worker = start.serving(body, load=load, fork=True)
    for _ in range(2):
        assert worker.call() == "done 4"
        assert worker.printed() == "True\nlate\nexit of the call\n"
    assert worker.end() == 0
    assert worker.printed() == "exit of the parent\n"


def test_random_numbers_of_forked_calls_differ(start: Start) -> None:
    worker = start.serving("print(random.random())", load="import random; random.seed(1)", fork=True)
    for _ in range(3):
        assert worker.call() == "done 0"
    assert len(set(worker.printed().split())) == 3


def test_a_fork_that_is_not_possible_fails_the_call_only(start: Start) -> None:
    load = """
        forks = []
        def fork(real=os.fork):
            forks.append(1)
            if len(forks) == 1:
                raise BlockingIOError(11, "Resource temporarily unavailable")
            return real()
        os.fork = fork
    """
    worker = start.serving(load=load, fork=True)
    assert worker.call() == "done 1"
    assert "Resource temporarily unavailable" in worker.complained()
    assert worker.call() == "done 0"


def test_fork_warns_of_threads_of_python_and_of_c(start: Start) -> None:
    assert start.serving(fork=True).complained() == ""
    threads = {
        "threading.Thread(target=threading.Event().wait, daemon=True).start()": "2 threads",
        """
        libc = ctypes.CDLL(None)
        libc.pthread_create(ctypes.byref(ctypes.c_ulong()), None, ctypes.cast(libc.pause, ctypes.c_void_p), None)
        """: "2 threads",
    }
    for load, text in threads.items():
        worker = start.serving(load=load, fork=True)
        (line,) = worker.complained().splitlines()
        assert text in line
        assert start.serving(load=load).complained() == ""


# Cold


@pytest.mark.parametrize(
    ("statement", "code", "text"),
    [("pass", 0, ""), ("sys.exit(7)", 7, ""), ("sys.exit('no')", 1, "no\n"), ("1 / 0", 1, "division by zero\n")],
)
@both
def test_without_descriptors_the_function_runs_once(
    start: Start, fork: bool, statement: str, code: int, text: str
) -> None:
    environ = {"TMP_OUTPUT_DIR": "/out", "INPUT_FILE_PATH": "/in"}
    worker = start.serving(f"print(input_path, output_dir)\n{statement}", fork=fork, environ=environ, is_warm=False)
    assert worker.wait() == code
    assert worker.printed() == "/in /out\n"
    assert worker.complained().endswith(text)


def test_files_that_the_program_itself_opened_are_not_used_as_the_descriptors(start: Start, tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("model\n")
    paths = str(tmp_path / "weights"), str(tmp_path / "log")
    load = f"a = open({paths[0]!r}); b = open({paths[1]!r}, 'w')\nprint(a.fileno(), b.fileno())"
    script = f"{load}\nfrom watchdog_warm import serve\nserve(lambda a, b: print('once'))\n"
    worker = start(script, is_warm=False)
    assert worker.wait() == 0
    assert worker.printed() == "3 4\nonce\n"


@pytest.mark.parametrize(
    "redirection", ["3</dev/null", "4>/dev/null", "3>/dev/null 4>/dev/null", "3</dev/null 4</dev/null"]
)
def test_descriptors_that_do_not_fit_are_a_cold_run(python: str, tmp_path: Path, redirection: str) -> None:
    (tmp_path / "script.py").write_text("import watchdog_warm\nwatchdog_warm.serve(lambda a, b: print('once'))\n")
    command = f"exec '{python}' '{tmp_path}/script.py' {redirection}"
    done = subprocess.run(
        ["sh", "-c", command], env={"PYTHONPATH": str(HELPERS)}, capture_output=True, text=True, check=False, timeout=40
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "once\n", "")


def test_it_can_be_tried_by_hand_with_files(python: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import watchdog_warm\nwatchdog_warm.serve(lambda a, b: print(a))\n")
    (tmp_path / "calls").write_text('{"env": {"INPUT_FILE_PATH": "/a"}}\n{"env": {"INPUT_FILE_PATH": "/b"}}')
    command = f"cd {tmp_path}; exec '{python}' script.py 3<calls 4>answers"
    done = subprocess.run(
        ["sh", "-c", command], env={"PYTHONPATH": str(HELPERS)}, capture_output=True, text=True, check=False, timeout=40
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "/a\n/b\n", "")
    assert (tmp_path / "answers").read_text() == "ready\ndone 0\ndone 0\n"


# --preload

MODULE = "import os, sys\nprint('loaded by', os.getpid(), file=sys.stderr)\nmodel = 42\n"
PROGRAM = """
import atexit, os, pickle, sys
import my_model
class Result: pass
class Last:
    def __del__(self): print(len("end"))
last = Last()
def main(): pass
print(sys.argv, os.path.abspath(sys.path[0]) == os.path.dirname(os.path.realpath(sys.argv[0])))
print(my_model.model, __name__)
print(__file__, __spec__ and __spec__.name, __package__)
print(os.path.basename(os.getcwd()), end="")
pickle.loads(pickle.dumps(Result()))
out = open(os.environ["OUT"], "w")
out.write("left open")
atexit.register(lambda: print(" end of", __name__, type(main).__name__))
if "CODE" in os.environ:
    sys.exit(int(os.environ["CODE"]))
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program with a module, and the same program as a package."""
    for path in (tmp_path / "my_model.py", tmp_path / "my_package" / "__init__.py"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(MODULE if path.name == "my_model.py" else "")
    for path in (tmp_path / "predict.py", tmp_path / "my_package" / "__main__.py", tmp_path / "my_package" / "tool.py"):
        path.write_text(PROGRAM)
    return tmp_path / "predict.py"


@pytest.mark.parametrize("name", ["predict.py", "-m predict", "-m my_package", "-m my_package.tool"])
@pytest.mark.parametrize("is_warm", [True, False], ids=["warm", "cold"])
def test_a_program_runs_as_python_would_run_it(
    start: Start, program: Path, name: str, is_warm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(program.parent)
    arguments = ["-i", "@INPUT", "--to=@OUTPUT/@INPUT", "", "a b", "me@host"]
    paths = {"INPUT_FILE_PATH": "/in/@OUTPUT.jpg", "TMP_OUTPUT_DIR": "/out"}
    variables = {**paths, "OUT": str(program.parent / "out.txt"), "CODE": "6"}
    replaced = ["-i", "/in/@OUTPUT.jpg", "--to=/out//in/@OUTPUT.jpg", "", "a b", "me@host"]
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(program.parent), **variables}
    plain = subprocess.run([start.python, *name.split(), *replaced], env=environ, capture_output=True, text=True)
    assert (plain.returncode, (program.parent / "out.txt").read_text()) == (6, "left open"), plain.stderr
    (program.parent / "out.txt").unlink()

    words = [start.python, str(HELPER), "--preload", "my_model,json", "--", *name.split(), *arguments]
    worker = start.command(
        words, environ={"PYTHONPATH": environ["PYTHONPATH"], **({} if is_warm else variables)}, is_warm=is_warm
    )
    if is_warm:
        assert worker.answer() == "ready fork"
        assert [worker.call(**variables) for _ in range(3)] == ["done 6"] * 3
        assert worker.end() == 0
    else:
        assert worker.wait() == 6
    expected = plain.stdout * (3 if is_warm else 1)
    printed = worker.printed()
    if name == "predict.py" and min(PYTHONS, key=lambda v: PYTHONS[v] != start.python) < (3, 9):
        printed = printed.replace(f"{program} None", "predict.py None")  # __file__ was relative before Python 3.9
    assert printed == expected
    assert worker.complained() == f"loaded by {worker.pid}\n"
    assert (program.parent / "out.txt").read_text() == "left open"


def test_a_program_with_serve_works_with_preload_too(start: Start, program: Path) -> None:
    program.write_text("from watchdog_warm import serve\n@serve\ndef call(a, b): print(a)\n")
    worker = start.command([start.python, str(HELPER), "--preload", "watchdog_warm", "--", str(program)])
    assert worker.answer() == "ready fork"
    assert worker.call(INPUT_FILE_PATH="/a") == "done 0"
    assert worker.printed() == "/a\n"


def test_an_exception_of_a_program_is_shown_with_its_line(start: Start, program: Path) -> None:
    program.write_text("def inner():\n    raise ValueError('bad picture')\ninner()\n")
    worker = start.command([start.python, str(HELPER), "--preload", "json", "--", str(program)])
    assert worker.answer() == "ready fork"
    for _ in range(2):
        assert worker.call() == "done 1"
        printed = worker.complained()
        assert f'File "{program}", line 2, in inner\n    raise ValueError' in printed
        assert printed.endswith("ValueError: bad picture\n")


def test_a_call_without_input_gives_the_program_an_empty_argument(start: Start, program: Path) -> None:
    program.write_text("import sys; print(sys.argv[1:])")
    worker = start.command([start.python, str(HELPER), "--preload", "json", "--", str(program), "@INPUT", "@OUTPUT"])
    assert worker.answer() == "ready fork"
    assert worker.call(TMP_OUTPUT_DIR="/out") == "done 0"
    assert worker.printed() == "['', '/out']\n"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["predict.py"],
        ["--preload"],
        ["--preload", "json"],
        ["--preload", "json", "--"],
        ["--preload", "json", "predict.py"],
        ["--preload", "json", "--", "-m"],
        ["--preload", "json", "--", "no_such_program.py"],
        ["--load", "json", "--", "predict.py"],
        ["--help"],
    ],
)
def test_a_wrong_command_line_gets_one_line_and_exit_code_2(python: str, program: Path, words: list[str]) -> None:
    done = subprocess.run(
        [python, str(HELPER), *words], cwd=program.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "--preload MODULE" in line
    assert ("there is no file 'no_such_program.py'; " in line) == ("no_such_program.py" in words)


@pytest.mark.parametrize(("words", "text"), [(["--preload", "no_such", "--", "predict.py"], "no_such")])
def test_a_module_that_cannot_be_imported_fails_the_load(
    python: str, program: Path, words: list[str], text: str
) -> None:
    done = subprocess.run(
        [python, str(HELPER), *words], cwd=program.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.endswith(f"No module named '{text}'\n")


# The file


def test_the_helper_has_less_than_100_lines() -> None:
    assert len(HELPER.read_text().splitlines()) < 100


# The parts of the standard library that the helper uses. Each was tried on Python 3.6 to 3.14.
KNOWN_NAMES = set(
    """
    atexit._clear atexit._run_exitfuncs atexit.register contextlib.suppress gc.collect importlib.import_module
    json.loads os.WEXITSTATUS os.WIFEXITED os.WTERMSIG os.O_RDONLY os._exit os.environ os.environb os.fchdir os.fork
    os.get_inheritable os.listdir os.open os.path os.read os.set_inheritable os.waitpid os.write re.sub
    runpy._run_module_as_main sys.__excepthook__ sys.__stderr__ sys.__stdout__ sys.argv sys.exc_info sys.exit
    sys.modules sys.path sys.stderr sys.stdout sys.version_info threading._shutdown threading.active_count
    """.split()
)


def test_the_helper_has_the_syntax_and_uses_the_library_of_python_3_6() -> None:
    tree = ast.parse(HELPER.read_text(), feature_version=OLDEST)
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    used = {
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules
    }
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert used <= KNOWN_NAMES


def test_every_python_has_what_the_helper_uses(python: str) -> None:
    modules = sorted({name.split(".")[0] for name in KNOWN_NAMES})
    code = f"import {', '.join(modules)}\nfor name in {sorted(KNOWN_NAMES)}: eval(name)"
    assert subprocess.run([python, "-W", "error", "-c", code], check=False).returncode == 0
