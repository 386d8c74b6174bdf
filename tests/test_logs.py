"""The levels in the output of real programs, the events of a script's stream, and the sink with a stalled reader."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watchdog.logs import level as level_module
from watchdog.logs import script_log, setup
from watchdog.logs import sink as sink_module
from watchdog.logs import text as text_module

DEBUG, INFO, WARNING, ERROR, CRITICAL = 10, 20, 30, 40, 50
ROOT = Path(__file__).parent.parent

# The name of a program, a line that it wrote in a real run, and the level. Only the paths were changed.
SHOWN = [
    ("Python 3.11 logging", "WARNING:root:no plant in photo.jpg", WARNING),
    ("Python 3.11 logging", "2026-11-24 22:59:41,305 WARNING no plant in photo.jpg", WARNING),
    ("Python 3.11 logging", "2026-11-24 22:59:41,305 - thumbs - WARNING - no plant in photo.jpg", WARNING),
    ("Python 3.11 logging", "2026-11-24 22:59:41,305:WARNING:no plant in photo.jpg", WARNING),
    ("Python 3.11 logging", "[2026-11-24 22:59:41,305] [14842] [WARNING] no plant in photo.jpg", WARNING),
    ("Python 3.11 logging", "2026-11-24 22:59:41,305 thumbs WARNING no plant in photo.jpg", WARNING),
    ("Python 3.11 logging", "thumbs: WARNING: no plant in photo.jpg", WARNING),
    ("Python 3.11 logging", "[WARNING] no plant in photo.jpg", WARNING),
    ("Python 3.11 logging", "WARNING  no plant in photo.jpg", WARNING),
    ("Python 3.11 logging", "WARNING - no plant in photo.jpg", WARNING),
    ("Python 3.11 logging", "2026-11-24 22:59:41,306 [MainThread] WARNING thumbs: no plant", WARNING),
    ("Python 3.11 logging", "2026-11-24 22:59:41,306 | WARNING  | a:6 - no plant in photo.jpg", WARNING),
    ("Python 3.11 logging", "thumbs - WARNING - no plant in photo.jpg", WARNING),
    ("Python 3.11 logging", "2026-11-24 22:59:41,306 14842 WARNING no plant in photo.jpg", WARNING),
    ("Python 3.11 logging", "[2026-11-24 22:59:41,306][thumbs][WARNING] - no plant in photo.jpg", WARNING),
    ("Python 3.11 logging", "(MainThread) WARNING: no plant in photo.jpg", WARNING),
    ("Python 3.11 warnings", "/srv/a.py:9: UserWarning: old option", WARNING),
    ("Python 3.11 argparse", "thumbs: error: unrecognized arguments: -x", ERROR),
    ("Python 3.11", "Exception in thread Thread-1 (<lambda>):", ERROR),
    ("Python 3.11", "Exception ignored in: <function A.__del__ at 0x7f157a49de40>", ERROR),
    ("loguru 0.7.3", "2026-11-24 22:59:41.377 | DEBUG    | __main__:<module>:5 - d", DEBUG),
    ("loguru 0.7.3", "2026-11-24 22:59:41.378 | SUCCESS  | __main__:<module>:5 - ok", INFO),
    ("loguru 0.7.3", "2026-11-24 22:59:41.378 | CRITICAL | __main__:<module>:5 - c", CRITICAL),
    ("absl-py 2.5.1", "WARNING: Logging before flag parsing goes to stderr.", WARNING),
    ("absl-py 2.5.1", "I1124 22:59:41.441764 140657664666496 tool.py:11] error is only a word here", INFO),
    ("absl-py 2.5.1", "W1124 22:59:41.441942 140657664666496 tool.py:11] w", WARNING),
    ("absl-py 2.5.1", "E1124 22:59:41.441964 140657664666496 tool.py:11] e", ERROR),
    ("absl-py 2.5.1", "F1124 22:59:41.678666 140179931667328 tool.py:12] x", CRITICAL),
    (
        "python-json-logger 4.2.0",
        '{"asctime": "2026-11-24 22:59:41,486", "levelname": "ERROR", "k": 1}',
        ERROR,
    ),
    (
        "structlog 26.1.0",
        '{"event": "d", "level": "debug", "timestamp": "2026-11-24T22:59:41.552398Z"}',
        DEBUG,
    ),
    ("structlog 26.1.0", '{"a": 1, "event": "c", "level": "critical"}', CRITICAL),
    ("structlog 26.1.0", "2026-11-24 22:59:41 [warning  ] w                             ", WARNING),
    ("java.util.logging 17.0.15", "Nov 24, 2026 10:59:42 PM M main", None),
    ("java.util.logging 17.0.15", "WARNING: w", WARNING),
    ("java.util.logging 17.0.15", "SEVERE: s", ERROR),
    ("java.util.logging 17.0.15", "FINE: f", DEBUG),
    ("java 17.0.15", 'Exception in thread "main" java.lang.RuntimeException: boom', ERROR),
    ("node 20.20.2", "TypeError: Cannot read properties of null (reading 'f')", ERROR),
    ("node 20.20.2", "(node:14949) Warning: old", WARNING),
    ("npm 11.19.1", "npm error code ENOENT", ERROR),
    ("gcc 12.2.0", "g.c:1:26: error: ‘y’ undeclared (first use in this function)", ERROR),
    ("gcc 12.2.0", "g.c:1:16: warning: unused variable ‘x’ [-Wunused-variable]", WARNING),
    ("gcc 12.2.0", "cc1: fatal error: nosuch.c: No such file or directory", CRITICAL),
    ("rustc 1.95.0", "error[E0425]: cannot find value `y` in this scope", ERROR),
    ("rustc 1.95.0", "error: aborting due to 1 previous error", ERROR),
    ("pip 23.2.1", "ERROR: Invalid requirement: 'nosuch@@'", ERROR),
    ("apt 2.6", "E: Unable to locate package nosuchpkg", ERROR),
    ("git 2", "fatal: not a git repository (or any of the parent directories): .git", CRITICAL),
    ("dpkg 1.21", "dpkg: error: cannot access archive 'nosuch': No such file or directory", ERROR),
    ("bash 5.2", "bash: nosuchcmd: command not found", None),
    ("perl 5.36", "dead at -e line 1.", None),
    (
        "systemd-tmpfiles 252, SYSTEMD_LOG_TARGET=console-prefixed",
        "<27>Failed to open 'tf.conf': No such file or directory",
        ERROR,
    ),
    (
        "systemd-tmpfiles 252, SYSTEMD_LOG_TARGET=console-prefixed",
        "<31>SELinux enabled state cached to: disabled",
        DEBUG,
    ),
    ("dmesg 2.38.1 --raw", "<4>[    0.346030] software IO TLB: No low mem", WARNING),
    ("dmesg 2.38.1 --raw", "<6>[    0.000000] BIOS-provided physical RAM map:", INFO),
    ("logger 2.38.1 -s", "<11>Nov 24 23:28:58 thumbs: hello", ERROR),
    ("logger 2.38.1 -s", "<11>Nov 24 23:28:58 thumbs[20912]: hello", ERROR),
    ("logger 2.38.1 -s --prio-prefix", "<8>Nov 24 23:43:04 thumbs: no error 0", CRITICAL),
    ("logger 2.38.1 -s --prio-prefix", "<10>Nov 24 23:43:04 thumbs: no error 2", CRITICAL),
    ("logger 2.38.1 -s --prio-prefix", "<11>Nov 24 23:43:04 thumbs: no error 3", ERROR),
    ("logger 2.38.1 -s --prio-prefix", "<12>Nov 24 23:43:04 thumbs: no error 4", WARNING),
    ("logger 2.38.1 -s --prio-prefix", "<13>Nov 24 23:43:04 thumbs: no error 5", INFO),
    ("logger 2.38.1 -s --prio-prefix", "<14>Nov 24 23:43:04 thumbs: no error 6", INFO),
    ("logger 2.38.1 -s --prio-prefix", "<15>Nov 24 23:43:04 thumbs: no error 7", DEBUG),
    (
        "nginx 1.22.1",
        '2026/11/24 23:32:26 [emerg] 21513#21513: unknown directive "bogus" in /srv/ng/bad.conf:1',
        CRITICAL,
    ),
    (
        "nginx 1.22.1",
        (
            '2026/11/24 23:32:26 [error] 21508#21508: *1 open() "/srv/html/x" failed (2: No '
            'such file or directory), client: 127.0.0.1, server: , request: "GET /x HTTP/1.1", host: '
            '"127.0.0.1:18471"'
        ),
        ERROR,
    ),
    ("nginx 1.22.1", "2026/11/24 23:32:26 [info] 21508#21508: epoll_wait() failed (4: Interrupted system call)", INFO),
    ("nginx 1.22.1", '2026/11/24 23:32:25 [notice] 21508#21508: using the "epoll" event method', INFO),
    ("nginx 1.22.1", "2026/11/24 23:32:25 [debug] 21508#21508: bind() 127.0.0.1:18471 #3 ", DEBUG),
    (
        "Apache httpd 2.4.71",
        (
            "[Tue Nov 24 23:32:28.209333 2026] [core:error] [pid 21524:tid 21589] [client "
            "127.0.0.1:58606] AH10244: invalid URI path (/%2e%2e/x)"
        ),
        ERROR,
    ),
    (
        "Apache httpd 2.4.71",
        (
            "[Tue Nov 24 23:32:28.227272 2026] [mpm_event:notice] [pid 21520:tid 21520] AH00491: "
            "caught SIGTERM, shutting down"
        ),
        INFO,
    ),
    (
        "Apache httpd 2.4.71",
        "[Tue Nov 24 23:32:28.210389 2026] [mpm_event:debug] [pid 21523:tid 21523] event.c(583): wake up listener",
        DEBUG,
    ),
    ("log4j 2.19.0", "23:43:03.872 [main] TRACE com.example.Log4 - t", DEBUG),
    ("log4j 2.19.0", "23:43:03.882 [main] INFO  com.example.Log4 - no error", INFO),
    ("log4j 2.19.0", "23:43:03.882 [main] WARN  com.example.Log4 - no error", WARNING),
    ("log4j 2.19.0", "23:43:03.882 [main] ERROR com.example.Log4 - no plant", ERROR),
    ("log4j 2.19.0", "23:43:03.882 [main] FATAL com.example.Log4 - no plant", CRITICAL),
    ("log4j 2.19.0", "2026-11-24 23:43:04,262 [main] WARN  com.example.Log4 - no error", WARNING),
    ("slf4j-simple 2.0.17", "[main] ERROR com.example.Slf - no plant", ERROR),
    ("slf4j-simple 2.0.17", "[main] INFO com.example.Slf - no error", INFO),
    ("slf4j-simple 2.0.17", "8 [main] WARN com.example.Slf - no error", WARNING),
    ("slf4j-simple 2.0.17", "8 [main] [ERROR] com.example.Slf - no plant", ERROR),
    ("slf4j-simple 2.0.17", "2026-11-24 23:43:03.557 [main] WARN com.example.Slf - no error", WARNING),
    ("logrus of runc 1.1.5", 'time="2026-11-24T23:43:04Z" level=error msg="container does not exist"', ERROR),
    ("logrus of runc 1.1.5", '{"level":"error","msg":"container does not exist","time":"2026-11-24T23:43:04Z"}', ERROR),
    (
        "TensorFlow 2.17.1",
        (
            "2026-11-24 23:42:41.167996: W tensorflow/core/framework/op_kernel.cc:1840] OP_REQUIRES "
            "failed at whole_file_read_ops.cc:116 : NOT_FOUND: /nosuch; No such file or directory"
        ),
        WARNING,
    ),
    (
        "TensorFlow 2.17.1",
        (
            "2026-11-24 23:42:41.168040: I tensorflow/core/framework/local_rendezvous.cc:404] Local "
            "rendezvous is aborting with status: NOT_FOUND: /nosuch; No such file or directory"
        ),
        INFO,
    ),
    (
        "TensorFlow 2.21.0",
        (
            "W0000 00:00:1795563243.467620   21921 op_kernel.cc:1858] OP_REQUIRES failed at "
            "whole_file_read_ops.cc:117 : NOT_FOUND: /nosuch; No such file or directory"
        ),
        WARNING,
    ),
    ("pino 10.4.0", '{"level":50,"time":1795563784431,"pid":26879,"hostname":"vm","msg":"no plant"}', ERROR),
    ("pino 10.4.0", '{"level":60,"time":1795563784431,"pid":26879,"hostname":"vm","msg":"no plant"}', CRITICAL),
    ("pino 10.4.0", '{"level":20,"time":1795563784432,"pid":26879,"hostname":"vm","msg":"no error"}', DEBUG),
    ("pino 10.4.0", '{"level":30,"time":1795563784432,"pid":26879,"hostname":"vm","error":1,"msg":"error"}', INFO),
    (
        "google-cloud-logging 3.17.0",
        (
            '{"message": "an error","severity": "NOTICE", "logging.googleapis.com/labels": '
            '{"python_logger": "thumbs"}, "logging.googleapis.com/trace": "", '
            '"logging.googleapis.com/spanId": "", "logging.googleapis.com/trace_sampled": false, '
            '"logging.googleapis.com/sourceLocation": {"line": 6, "file": "/srv/gcl.py", '
            '"function": "<module>"}, "httpRequest": {} }'
        ),
        INFO,
    ),
    (
        "google-cloud-logging 3.17.0",
        (
            '{"message": "no plant","severity": "CRITICAL", "logging.googleapis.com/labels": '
            '{"python_logger": "thumbs"}, "logging.googleapis.com/trace": "", '
            '"logging.googleapis.com/spanId": "", "logging.googleapis.com/trace_sampled": false, '
            '"logging.googleapis.com/sourceLocation": {"line": 6, "file": "/srv/gcl.py", '
            '"function": "<module>"}, "httpRequest": {} }'
        ),
        CRITICAL,
    ),
    ("R 4.2.2", "During startup - Warning messages:", WARNING),
    ("R 4.2.2", "Warning message:", WARNING),
    ("R 4.2.2", "Error in g() : no plant in photo.jpg", ERROR),
    ("R 4.2.2", "In f() : no plant", None),
]

# Lines that contain the word of a level, but have no level or another one.
NOT_SHOWN = [
    ("0 errors found", None),
    ("no error", None),
    ("INFO: no ERROR", INFO),
    ("2026-11-24 22:59:41,305 INFO no ERROR here", INFO),
    ("2026-11-24 22:59:41 no ERROR here", None),
    ("2026-11-24 22:59:41 found 3 ERROR lines", None),
    ("Error-free", None),
    ("ERROR.log written", None),
    ("error.log: 3 lines", None),
    ("warning-level=3", None),
    ("run with --level=debug", None),
    ("set level=debug", None),
    ("error: 0.031", None),
    ("Error: 12 %", None),
    ("Debug: False", None),
    ("Errors: none", None),
    ("epoch 3: error: 0.2", None),
    ("Note: ERROR handling is on", None),
    ("the word ERROR in a sentence", None),
    ("<1000> points", None),
    ("<b>bold</b>", None),
    ("W1124", None),
    ("Fine: all is well", None),
    ('{"level": true}', None),
    ('{"level": "high"}', None),
    ('{"level": {"a": 1}}', None),
    ('{"level": "error"', None),
    ('{"a": {"level": "error"}}', None),
    ("{" * 5000, None),
    ("", None),
]


@pytest.mark.parametrize(("program", "line", "level"), SHOWN)
def test_level_that_a_line_shows(program: str, line: str, level: int | None) -> None:
    assert level_module.classify(line) == level, program


@pytest.mark.parametrize(("line", "level"), NOT_SHOWN)
def test_level_that_a_line_only_speaks_of(line: str, level: int | None) -> None:
    assert level_module.classify(line) == level


@pytest.mark.parametrize(("program", "line", "level"), SHOWN)
def test_level_is_found_in_a_stream_too(capture: Capture, program: str, line: str, level: int | None) -> None:
    """A whole feed is searched first, so that most lines need no search. This must find the level of each line."""
    capture.level = 0
    assert levels(capture(f"{line}\n".encode())) == [logging.getLevelName(level or INFO).lower()], program


# ---- Programs that are run here ----


def run(code: str, *arguments: str) -> bytes:
    """Run a Python program, and return what it writes to stderr."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, cwd=ROOT).stderr


LOGGING = """
import logging, sys
logging.basicConfig(format=sys.argv[1], level=10)
for level in (10, 20, 30, 40, 50): logging.getLogger("thumbs").log(level, "no error in photo.jpg")
"""


@pytest.mark.parametrize(
    "format_",
    [
        logging.BASIC_FORMAT,
        "%(asctime)s %(levelname)s %(message)s",
        "%(asctime)s - %(name)s - %(levelname)s - %(message)s",
        "%(asctime)s:%(levelname)s:%(message)s",
        "[%(asctime)s] [%(process)d] [%(levelname)s] %(message)s",
        "%(asctime)s [%(threadName)s] %(levelname)s %(name)s: %(message)s",
        "%(asctime)s | %(levelname)-8s | %(module)s:%(lineno)d - %(message)s",
        "[%(levelname)s] %(message)s",
        "%(levelname)-8s %(message)s",
        "%(name)s: %(levelname)s: %(message)s",
    ],
)
def test_python_logging(capture: Capture, format_: str) -> None:
    capture.level = 0
    assert levels(capture(run(LOGGING, format_))) == ["debug", "info", "warning", "error", "critical"]


def test_python_warning(capture: Capture) -> None:
    [first, *_] = capture(run("import warnings; warnings.warn('old option')"))
    assert first["level"] == "warning"


@pytest.mark.parametrize(
    ("code", "last"),
    [
        ("{}['a']", "KeyError: 'a'"),
        ("try:\n  {}['a']\nexcept KeyError as e:\n  raise RuntimeError('no a') from e", "RuntimeError: no a"),
        ("try:\n  {}['a']\nexcept KeyError:\n  int('x')", "ValueError: invalid literal"),
        ("raise ExceptionGroup('both', [ValueError(1), TypeError(2)])", "+------------------------"),
        (
            "try:\n  1/0\nexcept Exception as e:\n  raise ExceptionGroup('both', [ValueError(1)]) from e",
            "+------------------------",
        ),
        ("x = (", "SyntaxError: '(' was never closed"),
        ("def f(): f()\nf()", "RecursionError: maximum recursion depth exceeded"),
    ],
)
def test_traceback_is_one_error(capture: Capture, code: str, last: str) -> None:
    written = run(code)
    around = capture(b"before\n" + written + b"after\n")
    assert levels(around) == ["info", "error", "info"]
    assert around[1]["event"] == written.decode().rstrip()
    assert around[1]["event"].splitlines()[-1].strip().startswith(last)
    assert texts(capture(written)) == [written.decode().rstrip()], "the end of the stream ends it too"


def test_logged_traceback_follows_its_message(capture: Capture) -> None:
    code = "import logging\ntry: 1/0\nexcept Exception: logging.exception('failed'); logging.warning('went on')"
    message, traceback, after = capture(run(code))
    assert (message["event"], message["level"]) == ("ERROR:root:failed", "error")
    assert traceback["level"] == "error"
    assert traceback["event"].endswith("ZeroDivisionError: division by zero")
    assert (after["event"], after["level"]) == ("WARNING:root:went on", "warning")


# Traces that OpenJDK 17 wrote. The last two have the format of logback.
JAVA_TRACES = {
    "uncaught, with a cause": """\
Exception in thread "main" java.lang.IllegalStateException: cannot read x
	at Main.read(Main.java:4)
	at Main.main(Main.java:7)
Caused by: java.lang.NumberFormatException: For input string: "x"
	at java.base/java.lang.NumberFormatException.forInputString(NumberFormatException.java:67)
	at java.base/java.lang.Integer.parseInt(Integer.java:668)
	... 2 more
""",
    "suppressed": """\
Exception in thread "main" java.io.IOException: main failed
	at Main.main(Main.java:8)
	Suppressed: java.lang.IllegalArgumentException: close failed
		at Main$Res.close(Main.java:3)
		... 1 more
""",
    "printed": """\
java.lang.IllegalStateException: cannot read x
	at Main.read(Main.java:4)
	at Main.main(Main.java:9)
""",
    "lambda in a thread": """\
Exception in thread "worker 1" java.lang.IllegalStateException: cannot read y
	at Main.lambda$main$0(Main.java:12)
	at java.base/java.lang.Thread.run(Thread.java:840)
""",
    "behind a level": """\
ERROR: java.lang.IllegalStateException: cannot read x
	at Main.read(Main.java:4)
""",
    "behind time, thread, level and logger": """\
2026-11-28 01:58:20,123 [main] ERROR c.e.Main - failed: java.lang.IllegalStateException: cannot read x
	at Main.read(Main.java:4)
""",
    "circular": """\
Exception in thread "main" java.lang.Exception: a
	at Main.main(Main.java:13)
Caused by: java.lang.Exception: b
	... 1 more
Caused by: [CIRCULAR REFERENCE: java.lang.Exception: a]
""",
    "message of two lines": """\
Exception in thread "main" java.lang.IllegalArgumentException: first line
  second line
	at Main.main(Main.java:14)
""",
    "no message": """\
Exception in thread "main" java.lang.NullPointerException
	at Main.main(Main.java:15)
""",
    "error": """\
Exception in thread "main" java.lang.OutOfMemoryError: Requested array size exceeds VM limit
	at Main.main(Main.java:16)
""",
    "frames omitted": """\
java.lang.RuntimeException: a
	at com.example.Main.<init>(Main.java:3) ~[app.jar:1.0]
Caused by: java.io.IOException: b
	at com.example.Main.read(Main.java:4) ~[app.jar:1.0]
	... 23 common frames omitted
""",
    "root cause first": """\
java.io.IOException: b
	at com.example.Main.read(Main.java:4)
Wrapped by: java.lang.RuntimeException: a
	at com.example.Main.main(Main.java:3)
""",
}


@pytest.mark.parametrize("trace", JAVA_TRACES.values(), ids=JAVA_TRACES)
def test_java_trace_is_one_error(capture: Capture, trace: str) -> None:
    around = capture(b"before\n" + trace.encode() + b"after\n  indented\n")
    assert texts(around) == ["before", trace.rstrip(), "after", "  indented"]
    assert levels(around) == ["info", "error", "info", "info"]
    assert texts(capture(trace.encode())) == [trace.rstrip()], "the end of the stream ends it too"
    assert texts(capture(*[bytes([byte]) for byte in trace.encode()])) == [trace.rstrip()], "byte by byte"


def test_java_trace_has_the_level_that_its_first_line_shows(capture: Capture) -> None:
    trace = b"WARN: java.io.IOException: x\n\tat Main.read(Main.java:4)\n"
    assert levels(capture(trace)) == ["warning"]


def test_logged_java_trace_follows_its_message(capture: Capture) -> None:
    written = (
        b"Nov 28, 2026 1:58:20 AM Main main\nSEVERE: it failed\njava.lang.RuntimeException: why\n"
        b"\tat Main.main(Main.java:10)\n\nafter\n"
    )
    assert levels(capture(written)) == ["info", "error", "error", "info"]


def test_two_java_traces_are_two_events(capture: Capture) -> None:
    trace = b"java.io.IOException: x\n\tat Main.read(Main.java:4)\n"
    assert texts(capture(trace * 2)) == [trace.decode().rstrip()] * 2


def test_java_frames_without_their_first_line_are_one_event(capture: Capture) -> None:
    frames = b"\tat Main.read(Main.java:4)\n\tat Main.main(Main.java:7)\n"
    for first in (b"an error that spans\n", b"a message\n"):
        told = capture(first + b"two lines\n" + frames + b"after\n")
        assert texts(told) == [first.decode().rstrip(), "two lines", frames.decode().rstrip(), "after"]
        assert levels(told) == ["info", "info", "error", "info"]


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("java.io.IOException: no trace follows", "error"),
        ("INFO retrying after java.io.IOException: reset", "info"),
        ("the class java.io.IOException", "info"),
        ("requests.exceptions.ConnectionError: refused", "error"),
        ("WARN: com.example.Own.Error: x", "warning"),
    ],
)
def test_a_line_that_only_looks_like_a_java_trace_has_its_own_level(capture: Capture, line: str, level: str) -> None:
    told = capture(line.encode() + b"\nnext\n" + line.encode() + b"\n")
    assert texts(told) == [line, "next", line]
    assert levels(told) == [level, "info", level]


def test_absl(capture: Capture) -> None:
    code = """
from absl import logging
logging.use_absl_handler(); logging.set_verbosity(logging.INFO)
logging.info("an error"); logging.warning("w"); logging.error("e")
"""
    told = [e for e in capture(run(code)) if "flag parsing" not in e["event"]]
    assert levels(told) == ["info", "warning", "error"]


def test_python_json_logger(capture: Capture) -> None:
    code = """
import logging
from pythonjsonlogger.json import JsonFormatter
handler = logging.StreamHandler(); handler.setFormatter(JsonFormatter("%(levelname)s %(message)s"))
logging.basicConfig(handlers=[handler])
logging.warning("w"); logging.error("e")
"""
    first, second = capture(run(code))
    assert (first["level"], second["level"]) == ("warning", "error")
    assert json.loads(second["event"])["message"] == "e", "the line stays whole"


def test_structlog(capture: Capture) -> None:
    code = """
import structlog, sys
p = structlog.processors
last = structlog.dev.ConsoleRenderer(colors=True) if sys.argv[1] else p.JSONRenderer()
structlog.configure([p.add_log_level, p.TimeStamper(fmt="%Y-%m-%d %H:%M:%S"), last],
    logger_factory=structlog.PrintLoggerFactory(sys.stderr))
log = structlog.get_logger(); log.debug("no error"); log.warning("w"); log.critical("c", a=1)
"""
    capture.level = 0
    assert levels(capture(run(code, ""))) == ["debug", "warning", "critical"]
    colored = capture(run(code, "colors"))
    assert levels(colored) == ["debug", "warning", "critical"]
    assert "\x1b" not in colored[0]["event"]


def test_tqdm_becomes_its_last_state(capture: Capture) -> None:
    code = "from tqdm import tqdm\nfor _ in tqdm(range(50), desc='work', mininterval=0): pass"
    written = run(code)
    assert written.count(b"\r") > 10
    [event] = capture(written)
    assert event["event"].startswith("work: 100%")
    assert "50/50" in event["event"]


# ---- The stream ----


def test_events_have_the_promised_keys(capture: Capture) -> None:
    [event] = capture(b"hello\n")
    assert list(event) == ["timestamp", "level", "event", "logger", "stream", "call_id"]
    assert event["timestamp"].endswith("Z")
    del event["timestamp"]
    assert event == {
        "level": "info",
        "event": "hello",
        "logger": "script",
        "stream": "stdout",
        "call_id": "c-1",
    }


def test_lines_below_the_level_are_dropped(capture: Capture) -> None:
    capture.level = WARNING
    assert texts(capture(b"plain\n")) == []
    told = capture(b"plain\nDEBUG: x\nWARNING: y\nINFO: z\nERROR: q\n" + b"x" * 70_000 + b"\n")
    assert texts(told) == ["WARNING: y", "ERROR: q"]


def test_levels_stay_in_order(capture: Capture) -> None:
    told = capture(b"a\nERROR: b\nc\nWARNING: d\n")
    assert list(zip(texts(told), levels(told), strict=True)) == [
        ("a", "info"),
        ("ERROR: b", "error"),
        ("c", "info"),
        ("WARNING: d", "warning"),
    ]


def test_empty_lines_are_dropped_and_crlf_is_a_line_end(capture: Capture) -> None:
    assert texts(capture(b"\n\na\r\n  \n\r\nb\r\n", b"c\r", b"\n\r\n", b"d")) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r  \r\n"])
@pytest.mark.parametrize("line", [b"b", b"a\rb", b"\ra\rb", b"\r\r b", b"a\r  \rb", b"ab\r \r\rb"])
def test_carriage_returns_within_whole_lines(capture: Capture, line: bytes, end: bytes) -> None:
    whole = texts(capture(b"x\n" + line + end + b"y\n"))
    cut = texts(capture(*[(b"x\n" + line + end + b"y\n")[at:][:1] for at in range(len(line + end) + 4)]))
    assert [text.strip() for text in whole] == ["x", "b", "y"]
    assert whole == cut


def test_bytes_that_are_not_utf8_are_escaped(capture: Capture) -> None:
    assert texts(capture(b"caf\xe9\nerr\xff\xc3\n" + "café\n".encode())) == [
        "caf\\xe9",
        "err\\xff\\xc3",
        "café",
    ]


def test_characters_cut_between_feeds_stay_whole(capture: Capture) -> None:
    first, second = "é".encode()[:1], "é".encode()[1:]
    assert texts(capture(b"a" + first, second + b"b\nc" + first, second + b"\n")) == ["aéb", "cé"]


def test_escape_sequences_are_stripped_before_the_level_is_looked_for(capture: Capture) -> None:
    [event] = capture(b"\x1b[31;1mERROR\x1b[0m: \x1b]8;;http://a/\x1b\\link\x1b]8;;\x07 gone\x1b[K\n")
    assert (event["event"], event["level"]) == ("ERROR: link gone", "error")


@pytest.mark.parametrize("size", [65_537, 200_000])
def test_long_line_is_cut_and_marked(capture: Capture, size: int) -> None:
    line = b"ERROR: " + b"x" * (size - 7)
    for feeds in (
        [line + b"\nnext\n"],
        [line[:65_536], line[65_536:] + b"\nnext\n"],
        [line[:100], line[100:100_000], line[100_000:], b"\nnext"],
    ):
        cut, after = capture(*feeds)
        assert (cut["event"], cut["level"]) == (line[:65_536].decode(), "error")
        assert (cut["truncated"], cut["line_bytes"]) == (True, size)
        assert after["event"] == "next"
        assert "truncated" not in after


def test_a_json_line_that_is_cut_keeps_its_level() -> None:
    assert level_module.classify('{"time": 1, "level": "error", "msg": "' + "x" * 65_000) == ERROR


def test_line_of_exactly_64_kib_is_whole(capture: Capture) -> None:
    [event] = capture(b"x" * 65_536, b"\n")
    assert len(event["event"]) == 65_536
    assert "truncated" not in event


def test_progress_is_logged_once_a_second_and_at_its_end(capture: Capture) -> None:
    capture.at(0.0, b"\r 10%")
    capture.at(0.5, b"\r 20%")
    capture.at(1.2, b"\r 30%\r 40%")
    capture.at(1.5, b"\r 50%")
    capture.at(2.3, b"\r 60%")
    capture.at(2.4, b"\r 99%\r100%\n")
    assert texts(capture.end()) == [" 40%", " 60%", "100%"]


def test_progress_that_ends_in_a_logged_state_is_not_logged_again(capture: Capture) -> None:
    capture.at(0.0, b" 10%\r")
    capture.at(1.5, b"100%\r")
    capture.at(1.6, b"\n")
    assert texts(capture.end()) == ["100%"]


def test_progress_that_wipes_itself_leaves_its_last_state(capture: Capture) -> None:
    assert texts(capture(b"\r 50%\r100%", b"\r    \r", b"\nnext\n")) == ["100%", "next"]
    assert texts(capture(b" 50%\r100%\r    \r")) == ["100%"]
    assert texts(capture(b"10", b"0%\r", b"\r")) == ["100%"]


TRACEBACK = b'Traceback (most recent call last):\n  File "a.py", line 1, in f\n    g()\nKeyError: 1\n'


def test_traceback_ends_with_a_pause(capture: Capture) -> None:
    capture.at(0.0, TRACEBACK)
    capture.at(0.9, b"\nDuring handling of the above exception, another exception occurred:\n\n" + TRACEBACK)
    capture.at(2.1, b"  next\n")
    told = capture.end()
    assert levels(told) == ["error", "info"]
    assert told[0]["event"].count("KeyError") == 2


class Loop:
    """The timers of an event loop, with a time of its own."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.timers: list[Loop.Timer] = []

    class Timer:
        def __init__(self, at_s: float, call: Callable[[], None], timers: list[Loop.Timer]) -> None:
            self.at_s, self.call, self._timers = at_s, call, timers

        def cancel(self) -> None:
            self._timers.remove(self)

    def call_later(self, delay_s: float, call: Callable[[], None]) -> Loop.Timer:
        timer = Loop.Timer(self.now_s + delay_s, call, self.timers)
        self.timers.append(timer)
        return timer

    def pass_to(self, now_s: float) -> None:
        while due := [timer for timer in self.timers if timer.at_s <= now_s]:
            timer = min(due, key=lambda timer: timer.at_s)
            self.timers.remove(timer)
            self.now_s = timer.at_s
            timer.call()
        self.now_s = now_s


LOOKS_LIKE_JAVA = b"WARN java.net.ConnectException: retrying\n"


@pytest.mark.parametrize(
    ("feeds", "longest_s"),
    [
        ([LOOKS_LIKE_JAVA], 0.11),
        ([b"x\n" + LOOKS_LIKE_JAVA], 0.11),
        ([JAVA_TRACES["uncaught, with a cause"].encode()], 1.01),
        ([TRACEBACK], 1.01),
        ([TRACEBACK + b"\nnext\n" + LOOKS_LIKE_JAVA], 0.11),
        ([TRACEBACK, b"next\n" + LOOKS_LIKE_JAVA], 0.11),
    ],
    ids=["line", "line after another", "java", "python", "line after python", "line in the feed after python"],
)
def test_what_waits_for_more_is_logged_in_silence(tmp_path: Path, feeds: list[bytes], longest_s: float) -> None:
    loop = Loop()
    with (tmp_path / "log").open("wb") as file:
        sink = sink_module.LogWriter(file.fileno())
        log = script_log.ScriptLog(
            sink, stream="stderr", call_id="c", clock=lambda: loop.now_s, call_later=loop.call_later
        )
        for data in feeds:
            log.feed(data)
        assert sink.flush(10)
        before = len((tmp_path / "log").read_bytes().splitlines())
        assert len(loop.timers) == 1
        loop.pass_to(longest_s)
        assert sink.flush(10)
        assert len((tmp_path / "log").read_bytes().splitlines()) == before + 1
        assert not loop.timers
        log.close()
        assert sink.close(10)
    assert len((tmp_path / "log").read_bytes().splitlines()) == before + 1


def test_more_of_a_trace_within_the_pause_belongs_to_it(capture: Capture) -> None:
    loop = Loop()
    first, rest = JAVA_TRACES["uncaught, with a cause"].encode().split(b"\n", 1)
    capture.loop = loop
    capture.at(0.0, first + b"\n")
    loop.pass_to(0.09)
    capture.at(0.09, rest)
    loop.pass_to(1.0)
    capture.at(1.0, b"next\n")
    assert not loop.timers
    assert texts(capture.end()) == [JAVA_TRACES["uncaught, with a cause"].rstrip(), "next"]


def test_ordinary_lines_set_no_timer(capture: Capture) -> None:
    capture.loop = Loop()
    capture.at(0.0, b"one\nERROR: two\n unfinished")
    assert not capture.loop.timers
    assert texts(capture.end()) == ["one", "ERROR: two", " unfinished"]


def test_a_closed_stream_leaves_no_timer(capture: Capture) -> None:
    capture.loop = Loop()
    capture.at(0.0, LOOKS_LIKE_JAVA)
    assert len(capture.end()) == 1
    assert not capture.loop.timers


@pytest.mark.parametrize("data", [LOOKS_LIKE_JAVA, TRACEBACK], ids=["java", "python"])
def test_what_has_waited_has_the_time_of_its_arrival(capture: Capture, data: bytes) -> None:
    capture.at(0.0, data)
    capture.at(86_400.0, b"next\n")
    waited, following = (datetime.fromisoformat(event["timestamp"]) for event in capture.end())
    assert following - waited > timedelta(hours=23)


def test_traceback_that_comes_byte_by_byte(capture: Capture) -> None:
    told = capture(*[TRACEBACK[at : at + 1] for at in range(len(TRACEBACK))], b"\nnext")
    assert texts(told) == [TRACEBACK.decode().rstrip(), "next"]


def test_traceback_with_an_endless_message(capture: Capture) -> None:
    [event] = capture(TRACEBACK[:-2] + b"x" * 100_000 + b"\n")
    assert event["level"] == "error"
    assert event["event"].startswith("Traceback")
    assert event["truncated"]


def test_traceback_that_breaks_off(capture: Capture) -> None:
    told = capture(b'Traceback (most recent call last):\n  File "a.py", line 1, in f\nand now to something else\n')
    assert levels(told) == ["error", "info"]
    assert texts(told)[1] == "and now to something else"


def test_two_tracebacks_are_two_events(capture: Capture) -> None:
    assert levels(capture(TRACEBACK + TRACEBACK + b"\n" + TRACEBACK)) == ["error"] * 3


def test_endless_traceback_is_cut_and_marked(capture: Capture) -> None:
    frames = b'  File "a.py", line 1, in f\n' * 2000
    feeds = [b"Traceback (most recent call last):\n", *[frames] * 3, b"KeyError: 1\n", b"next\n"]
    cut, after = capture(*feeds)
    assert cut["level"] == "error"
    assert len(cut["event"]) <= 65_536
    assert cut["truncated"]
    assert cut["line_bytes"] == sum(map(len, feeds[:-1]))
    assert after["event"] == "next"


PIECES = st.sampled_from(
    [
        b"\n",
        b"\r\n",
        b"ERROR: x",
        b"plain",
        TRACEBACK,
        b"\xff",
        b"\x1b[1m",
        b"  + Exception Group ",
        b"{",
        b"<3>",
        b"\n\n",
    ]
)


@given(st.lists(PIECES | st.binary(max_size=20)), st.lists(st.integers(1, 60)))
def test_where_a_stream_is_cut_makes_no_difference(pieces: list[bytes], cuts: list[int]) -> None:
    data = b"".join(pieces).replace(b"\r", b"")
    feeds, at = [], 0
    for cut in cuts:
        feeds.append(data[at : at + cut])
        at += cut
    told = [feed_all([data]), feed_all([*feeds, data[at:]])]
    assert told[0] == told[1]


@given(st.lists(PIECES | st.sampled_from([b"\r", b"a\r", b"\r\n"]) | st.binary(max_size=20)))
def test_no_stream_breaks_it(feeds: list[bytes]) -> None:
    feed_all(feeds)


def feed_all(feeds: list[bytes]) -> list[tuple[str, str]]:
    """Levels and texts, without a writer thread for each of Hypothesis's examples."""
    sink = Kept(0)
    log = script_log.ScriptLog(sink, stream="stderr", call_id="c", clock=lambda: 0.0)
    for data in feeds:
        log.feed(data)
    log.close()
    events = [json.loads(line) for line in b"".join(sink.kept).splitlines()]
    return [(event["level"], event["event"]) for event in events]


class Kept(sink_module.LogWriter):
    def __init__(self, level: int) -> None:
        super().__init__(-1, level=level)
        self.kept: list[bytes] = []

    def put(self, data: bytes, events: int = 1) -> bool:
        self.kept.append(data)
        return True


# ---- The sink ----


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    for fd in (reading, writing):
        try:
            os.close(fd)
        except OSError:  # the test has closed it
            continue


def flood(sink: sink_module.LogWriter, feeds: int) -> int:
    """Feed many lines to a sink, and return their number."""
    log = script_log.ScriptLog(sink, stream="stdout", call_id="c")
    data = b"a line of the flood\n" * 3000
    for _ in range(feeds):
        log.feed(data)
    log.close()
    return 3000 * feeds


def drain(fd: int, into: list[bytes]) -> threading.Thread:
    def read() -> None:
        while data := os.read(fd, 65536):
            into.append(data)

    thread = threading.Thread(target=read)
    thread.start()
    return thread


@pytest.mark.parametrize("blocking", [True, False])
def test_stalled_reader_blocks_nobody_and_losses_are_counted(pipe: tuple[int, int], blocking: bool) -> None:
    reading, writing = pipe
    os.set_blocking(writing, blocking)
    sink = sink_module.LogWriter(writing, limit_bytes=256 * 1024)
    lines = flood(sink, 20)  # a sink that waits for the reader would wait here for ever
    was_full = sink.is_full
    sink.put_own(sink.form.event("info", {"event": "an event of the program itself", "logger": "x"}))
    assert not sink.flush(0.01)
    assert not sink.close(0.01)
    assert was_full

    read: list[bytes] = []
    thread = drain(reading, read)
    assert sink.flush(10)
    assert not sink.is_full
    script_log.ScriptLog(sink, stream="stdout", call_id="c").feed(b"the flood is over\n")
    assert sink.close(10)
    os.close(writing)
    thread.join()

    events = [json.loads(line) for line in b"".join(read).splitlines()]
    told = sum(event["event"] == "a line of the flood" for event in events)
    dropped = [event for event in events if event["event"] == "log lines dropped"]
    assert told > 0
    assert [event["level"] for event in dropped] == ["warning"]
    assert told + dropped[0]["count"] == lines
    assert any(event["event"] == "an event of the program itself" for event in events)
    assert events[-1]["event"] == "the flood is over"


def test_memory_of_a_flood_is_bounded(pipe: tuple[int, int]) -> None:
    sink = sink_module.LogWriter(pipe[1], limit_bytes=256 * 1024)
    flood(sink, 50)
    for _ in range(10_000):
        sink.put_own(b"x" * 1000)
        sink.put(b"x" * 1000)
    # One slice of lines, and one event, may go over the limits.
    assert sink._pending_bytes < 2 * 256 * 1024 + 100_000
    pipe_is_read = drain(pipe[0], [])
    sink.close(10)
    os.close(pipe[1])
    pipe_is_read.join()


def test_reader_that_is_gone_does_no_harm(pipe: tuple[int, int]) -> None:
    os.close(pipe[0])
    sink = sink_module.LogWriter(pipe[1])
    flood(sink, 3)
    assert sink.flush(10)
    flood(sink, 200)
    assert not sink.is_full
    assert sink.close(10)
    sink.put(b"one more\n")
    assert sink._thread is None, "there is nothing left to do for a thread"


def test_full_disk_does_no_harm() -> None:
    with open("/dev/full", "wb") as full:
        sink = sink_module.LogWriter(full.fileno())
        flood(sink, 3)
        assert sink.close(10)


def test_line_that_a_full_disk_cuts_off_does_not_damage_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_write = os.write
    room = [3, 0]

    def write(fd: int, data: memoryview) -> int:
        if not room:
            return real_write(fd, data)
        if not (count := room.pop(0)):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real_write(fd, data[:count])

    with (tmp_path / "log").open("wb") as file:
        sink = sink_module.LogWriter(file.fileno())
        monkeypatch.setattr(os, "write", write)
        for line in (b"first\n", b"second\n", b"third\n"):
            sink.put(line)
            assert sink.close(60)
    cut, second, lost, third = (tmp_path / "log").read_text().splitlines()
    assert (cut, second, third) == ("fir", "second", "third")
    assert json.loads(lost)["event"] == "log lines dropped"


def test_events_after_close_are_still_written(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        sink = sink_module.LogWriter(file.fileno())
        sink.put(b"one\n")
        assert sink.close(10)
        sink.put(b"two\n")
        assert sink.close(10)
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"


# ---- This program's own events ----


CONFIGURE = (
    "from watchdog.logs.setup import configure, get_logger; import sys; "
    "sink = configure(level={level!r}, format={format!r})\n"
)


def own(code: str, level: str = "INFO", format_: str = "json") -> list[dict[str, Any]]:
    written = run(CONFIGURE.format(level=level, format=format_) + code + "\nsink.close(5)")
    return [json.loads(line) for line in written.splitlines()]


def test_own_event() -> None:
    [event] = own("get_logger('server').info('listening', port=8080, level='x', path='\\udcff', big=2**70)")
    assert list(event) == ["timestamp", "level", "event", "logger", "port", "path", "big"]
    assert (event["level"], event["event"], event["logger"]) == ("info", "listening", "server")
    assert (event["port"], event["path"], event["big"]) == (8080, "\\xff", str(2**70))


def test_own_events_below_the_level_are_dropped() -> None:
    code = "for name in ('debug', 'info', 'warning', 'error', 'critical'): getattr(get_logger('a'), name)('x')"
    assert levels(own(code)) == ["info", "warning", "error", "critical"]
    assert levels(own(code, level="ERROR")) == ["error", "critical"]
    assert levels(own(code, level="NOTSET"))[0] == "debug"


def test_own_exception() -> None:
    [event] = own("try: 1/0\nexcept Exception: get_logger('a').exception('internal error')")
    assert event["level"] == "error"
    assert event["exception"].startswith("Traceback")
    assert "ZeroDivisionError" in event["exception"]


def test_stdlib_logging_and_warnings_are_routed() -> None:
    code = """
import logging, warnings, asyncio
logging.getLogger("asyncio").debug("no")
logging.getLogger("aiohttp.server").error("broken %s", "pipe", exc_info=ValueError("v"))
logging.getLogger("a").log(35, "between")
logging.getLogger("a").warning("%d", "not a number")
warnings.warn("old")
"""
    broken, between, misfit, warning = own(code)
    assert (broken["level"], broken["event"], broken["logger"]) == ("error", "broken pipe", "aiohttp.server")
    assert "ValueError: v" in broken["exception"]
    assert between["level"] == "warning"
    assert "not a number" in misfit["event"]
    assert (warning["level"], warning["logger"]) == ("warning", "py.warnings")
    assert "UserWarning: old" in warning["event"]


@pytest.mark.parametrize(("level", "format_"), [("LOUD", "json"), ("INFO", "xml")])
def test_unknown_level_or_format_is_refused(level: str, format_: str) -> None:
    with pytest.raises(ValueError):
        setup.configure(level=level, format=format_)


def test_printable() -> None:
    assert (
        text_module.printable("caf\xe9 \t\x1b[31m\n\udcff\u202e\ud800") == "caf\xe9 \t\\x1b[31m\\n\\xff\\u202e\\ud800"
    )


# ---- Fixtures ----


class Capture:
    """Feed a script's stream; get the events that come out of the sink as parsed JSON."""

    def __init__(self, path: Path) -> None:
        self.level = INFO
        self.stream: Literal["stdout", "stderr"] = "stdout"
        self._path = path
        self._now_s = 0.0
        self.loop: Loop | None = None
        self._log: tuple[script_log.ScriptLog, sink_module.LogWriter] | None = None

    def __call__(self, *feeds: bytes) -> list[dict[str, Any]]:
        """All events of one stream."""
        for data in feeds or (b"",):
            self.at(0.0, data)
        return self.end()

    def at(self, now_s: float, data: bytes) -> None:
        """Feed at a time."""
        if self._log is None:
            self._file = self._path.open("wb")
            sink = sink_module.LogWriter(self._file.fileno(), level=self.level)
            log = script_log.ScriptLog(
                sink,
                stream=self.stream,
                call_id="c-1",
                clock=lambda: self._now_s,
                call_later=self.loop.call_later if self.loop else None,
            )
            self._log = (log, sink)
        self._now_s = now_s
        # The reader of a pipe passes at most this number of bytes at a time.
        for at in range(0, len(data), 65536):
            self._log[0].feed(data[at : at + 65536])

    def end(self) -> list[dict[str, Any]]:
        assert self._log is not None
        log, sink = self._log
        self._log = None
        log.close()
        assert sink.close(10)
        self._file.close()
        return [json.loads(line) for line in self._path.read_bytes().splitlines()]


@pytest.fixture
def capture(tmp_path: Path) -> Capture:
    return Capture(tmp_path / "log")


def levels(events: list[dict[str, Any]]) -> list[str]:
    return [event["level"] for event in events]


def texts(events: list[dict[str, Any]]) -> list[str]:
    return [event["event"] for event in events]
