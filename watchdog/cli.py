"""Run the commands, and map each error to an exit code.

Modules that not every command needs are imported where they are used. The time to import is the time to start, and a
container's HEALTHCHECK starts a command every few seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, BinaryIO

from . import __version__
from .errors import (
    ConfigError,
    InputError,
    ListenError,
    NoSpace,
    ScriptFailed,
    ScriptKilled,
    ScriptTimedOut,
    ScriptUnavailable,
    StdoutClosed,
    StdoutUnwritable,
    StorageError,
    StoreFailed,
    WatchdogError,
)
from .logs.setup import configure, get_logger
from .logs.sink import LogWriter
from .settings.declarations import LOCAL_PROBE, secret_names
from .settings.load import Configuration, load, require_valid, without_outputs
from .settings.report import flag_specs, report, script_problems
from .system import proc, standard_output

if TYPE_CHECKING:
    from .output.answer import Result
    from .workspace.outputs import Output

_COMMANDS = ("serve", "run", "check", "health", "job")
# The one table from error to exit code, the first type that fits; ScriptFailed gives the script's own. 124 and 127
# are what timeout(1) and a shell give; 65, 66, 73 and 74 are EX_DATAERR, EX_NOINPUT, EX_CANTCREAT and EX_IOERR of
# sysexits.h.
_EXIT_CODES: tuple[tuple[type[WatchdogError], int], ...] = (
    (ConfigError, 2),
    (ListenError, 1),
    (StdoutClosed, 128 + signal.SIGPIPE),  # the exit code that a shell reports for `cat` in this case
    (InputError, 65),
    (ScriptTimedOut, 124),
    (ScriptUnavailable, 127),
    (StoreFailed, 74),
    (StorageError, 66),
    (NoSpace, 73),
    (WatchdogError, 1),
)
_COPY_BYTES = 256 * 1024


def main(
    argv: Sequence[str] | None = None, called_as: str | None = None, environ: Mapping[str, str] | None = None
) -> int:
    """Run the command that the arguments name; return the exit code.

    Args:
        argv: the arguments, of this process by default.
        called_as: the program's name, which may choose the command.
        environ: the image's environment, that of this process by default.
    """
    _open_standard_streams()
    called_as = os.path.basename(called_as or sys.argv[0])
    try:
        arguments = _parse(list(sys.argv[1:] if argv is None else argv), called_as)
    except SystemExit:  # argparse has printed the help, the version or an error
        try:
            standard_output.flush()
        except StdoutClosed as error:
            return exit_code_of(error)
        except StdoutUnwritable as error:
            print(error, file=sys.stderr)
            return exit_code_of(error)
        raise
    environ = _image_environment() if environ is None else environ
    proc.hide_memory()
    # Python's ssl would write the keys of our connections to this file, or end with an error if it cannot. No thread
    # runs yet that could read the environment meanwhile, and scripts have it still.
    # aiohttp reads the file of SSL_CERT_FILE when it is imported, and would wait for ever for a FIFO. Only connections
    # to storages need the file; they make sure that it is a regular file.
    for name in ("SSLKEYLOGFILE", "SSL_CERT_FILE"):
        os.environ.pop(name, None)
    flags = {name: value for name, _, _, _ in flag_specs() if (value := getattr(arguments, name, None)) is not None}
    try:
        configuration = load(environ, flags)
        if arguments.command == "check":
            return _check(configuration, environ)
        require_valid(configuration)
        if arguments.command == "health":
            return _health(configuration)
        _make_tmp_dir(configuration.settings.tmp_dir)
        if arguments.command == "run":
            return _run(configuration, environ, arguments.file, arguments.output, not arguments.no_store)
        if arguments.command == "job":
            return _job(configuration, environ)
        return _serve(configuration, environ)
    except StdoutClosed as error:
        return exit_code_of(error)
    except WatchdogError as error:
        print(error, file=sys.stderr)
        return exit_code_of(error)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def exit_code_of(error: WatchdogError) -> int:
    """The exit code that tells of this error."""
    if isinstance(error, ScriptFailed):
        return error.exit_code
    if isinstance(error, ScriptKilled):
        return 128 + proc.signal_number(error.signal)
    return next(code for kind, code in _EXIT_CODES if isinstance(error, kind))


def _parse(words: list[str], called_as: str) -> argparse.Namespace:
    if called_as == "supervisor":
        words = ["job", *words]
    elif words[:1] in (["-run-healthcheck"], ["--run-healthcheck"]):  # as OpenFaaS's watchdogs have it
        words = ["health"]
    elif words[:1] == ["-version"]:
        words = ["--version"]
    elif not words or (words[0].startswith("-") and words[0] not in ("-h", "--help", "--version")):
        words = ["serve", *words]

    parser = argparse.ArgumentParser(
        prog="watchdog",
        description="Runs a container's script for each file that is sent over HTTP, and answers with its outputs.",
        epilog="Without a command: serve. `watchdog COMMAND --help` lists the settings.",
    )
    version = f"oscar-watchdog {__version__}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    descriptions = {
        "serve": "the HTTP server",
        "run": "run the script once on a local file, without HTTP",
        "check": "print every setting, where it came from, and every problem; exit 2 if there are problems",
        "health": "exit 0 if the local server is ready, else 1 (for a container's HEALTHCHECK)",
        "job": "run the script on one event from stdin or $EVENT, store the outputs, print the answer",
    }
    for name, description in descriptions.items():
        command = commands.add_parser(name, help=description, description=description)
        command.add_argument("--version", action="version", version=version)
        if name == "run":
            command.add_argument("file", metavar="FILE", help="the input; - is stdin")
            command.add_argument(
                "-o",
                "--output",
                metavar="PATH",
                help="where the outputs go: a file for one, a directory for several",
            )
            command.add_argument(
                "--no-store", action="store_true", help="store nothing, whatever the service definition says"
            )
        settings = command.add_argument_group("settings", "each also an environment variable, see the README")
        for setting, text, metavar, default in flag_specs():
            settings.add_argument(
                "--" + setting.replace("_", "-"),
                dest=setting,
                metavar=metavar,
                help=f"{text} (default: {default})".replace("%", "%%"),
            )
        for setting in secret_names():
            command.add_argument("--" + setting.replace("_", "-"), action=_Secret, help=argparse.SUPPRESS)
    if words[0] not in _COMMANDS and not words[0].startswith("-"):
        parser.error(
            f"there is no command {words[0]!r}, but {', '.join(_COMMANDS)}; another program of an image is started by "
            f"docker run --entrypoint {shlex.quote(words[0])} IMAGE"
        )
    return parser.parse_args(words)


class _Secret(argparse.Action):
    """Refuses a secret on the command line. Without it, argparse would take it for short of --auth-token-file."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        variable = f"WATCHDOG_{self.dest.upper()}"
        parser.error(
            f"a secret on the command line can be read by every process (ps); set the environment variable {variable} "
            f"or --{self.dest.replace('_', '-')}-file"
        )


def _make_tmp_dir(path: str) -> None:
    """The default one, where the image has none; of any other that is missing the configuration has complained."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(path)
        os.chmod(path, 0o1777)


def _serve(configuration: Configuration, environ: Mapping[str, str]) -> int:
    import asyncio

    from .process.decoy import why_needed

    if (why := why_needed()) is not None:
        configuration.warnings.append(why)
    sink = _start_logs(configuration)
    try:
        from .http.server import serve

        return asyncio.run(serve(configuration, environ, sink))
    finally:
        sink.close(2.0)


def _check(configuration: Configuration, environ: Mapping[str, str]) -> int:
    from .process.byte_order_mark import MARK_HINT, has_mark, refuse_utf16
    from .process.command import CRLF_HINT, command_for, found_command, has_crlf, read_start
    from .process.decoy import why_needed

    problems = [*configuration.problems, *script_problems(configuration)]
    fprocess = configuration.settings.fprocess
    path = environ.get("PATH", os.defpath)
    if not problems:
        try:
            if fprocess is not None:
                found_command(shlex.split(fprocess), path)
            elif configuration.script_text is not None:
                refuse_utf16(configuration.script_text, "SCRIPT")
            else:
                command_for(configuration.settings.script_path, path)
        except ScriptUnavailable as error:
            problems.append(str(error))
    if fprocess is None:
        text, script_path = configuration.script_text, configuration.settings.script_path
        name, start = (script_path, read_start(script_path)) if text is None else ("SCRIPT", text)
        if has_crlf(start):
            problems.append(f"{name}: {CRLF_HINT}")
        if has_mark(start):
            configuration.warnings.append(f"{name}: {MARK_HINT}")
    if (why := why_needed()) is not None:
        configuration.warnings.append(why)
    standard_output.write_line(report(configuration, problems))
    return 2 if problems else 0


def _health(configuration: Configuration) -> int:
    import http.client

    settings = configuration.settings
    host = settings.bind if settings.bind not in (None, "", "0.0.0.0", "::") else "127.0.0.1"
    connection = http.client.HTTPConnection(host, settings.port, timeout=5)
    try:
        connection.request("GET", "/_/ready", headers={"User-Agent": LOCAL_PROBE})
        response = connection.getresponse()
        text = response.read(1000).decode("utf-8", "replace").strip()
    except (OSError, http.client.HTTPException) as error:
        print(f"no server answers at {host}:{settings.port}: {error}", file=sys.stderr)
        return 1
    finally:
        connection.close()
    # 429: all places are taken, which is what a healthy busy server looks like.
    if response.status in (200, 429):
        return 0
    print(f"the server at {host}:{settings.port} is not ready: {text}", file=sys.stderr)
    return 1


def _run(configuration: Configuration, environ: Mapping[str, str], file: str, output: str | None, stores: bool) -> int:
    import asyncio

    try:
        source: BinaryIO = sys.stdin.buffer if file == "-" else open(file, "rb")  # noqa: SIM115
    except OSError as error:
        print(f"the input {file} cannot be read: {error.strerror}", file=sys.stderr)
        return 2
    if not stores:
        configuration = without_outputs(configuration)
    sink = _start_logs(configuration)
    try:
        from .input.detect import BodyHints
        from .invocation.call import Call, Record
        from .job import read_some, run_once

        async def body() -> AsyncIterator[bytes]:
            while piece := await read_some(source.fileno()):
                yield piece

        async def hand_over(result: Result, is_stored: bool) -> None:
            await asyncio.to_thread(_hand_over, result, output, is_stored)

        said = BodyHints(encoding="raw", file_name=None if file == "-" else os.path.basename(file))
        call = Call(environ.get("CALL_ID", "local"), body(), said)
        with source:
            return asyncio.run(run_once(configuration, environ, sink, call, Record(), hand_over))
    finally:
        sink.close(2.0)


def _job(configuration: Configuration, environ: Mapping[str, str]) -> int:
    import asyncio

    withheld = [line for line in configuration.storages.withheld() if line.startswith("output ")]
    if withheld:
        raise ConfigError(withheld)
    sink = _start_logs(configuration)
    try:
        from .invocation.call import Record
        from .job import run_job

        record = Record()
        try:
            return asyncio.run(run_job(configuration, environ, sink, record))
        except WatchdogError as error:
            if not record.is_logged:
                raise
            return exit_code_of(error)
    finally:
        sink.close(2.0)


def _hand_over(result: Result, target: str | None, is_stored: bool) -> None:
    """Copy the outputs, or stdout if there are none, to where the user wants them."""
    from .logs.text import printable

    if not result.outputs:
        with contextlib.ExitStack() as stack:
            write = standard_output.write if target is None else stack.enter_context(_created(target)).write
            for piece in result.stdout.pieces(_COPY_BYTES):
                write(piece)
    elif target is None and len(result.outputs) == 1 and not sys.stdout.isatty():
        _copy(result.outputs[0], standard_output.write)
    elif target is None:
        for output in result.outputs:
            standard_output.write_line(f"{output.size_bytes:>12}  {printable(output.name)}")
        if not is_stored:
            print("these outputs are removed now; -o PATH keeps them", file=sys.stderr)
    elif len(result.outputs) == 1 and not os.path.isdir(target) and not target.endswith("/"):
        with _created(target) as file:
            _copy(result.outputs[0], file.write)
    else:
        for output in result.outputs:
            with _created(os.path.join(target, output.name)) as file:
                _copy(output, file.write)


def _created(path: str) -> BinaryIO:
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        return open(path, "wb")
    except OSError as error:
        raise WatchdogError(f"the output {path} cannot be written: {error.strerror}") from error


def _copy(output: Output, write: Callable[[bytes], int]) -> None:
    from .workspace.outputs import open_output

    with open(open_output(output), "rb") as source:
        while piece := source.read(_COPY_BYTES):
            write(piece)


def _start_logs(configuration: Configuration) -> LogWriter:

    settings = configuration.settings
    sink = configure(level=settings.log_level, format=settings.log_format)
    log = get_logger("config")
    for warning in configuration.warnings:
        log.warning(warning)
    if configuration.ignored_names:
        log.debug("settings without effect", names=configuration.ignored_names)
    return sink


def _image_environment() -> dict[str, str]:
    """The environment as the image gave it.

    Python itself sets LC_CTYPE when it finds the C locale (PEP 538); a script must not see that.
    """
    environ = dict(os.environ)
    if "LC_CTYPE" in environ:
        with contextlib.suppress(OSError), open("/proc/self/environ", "rb") as file:
            if not any(each.startswith(b"LC_CTYPE=") for each in file.read().split(b"\0")):
                del environ["LC_CTYPE"]
    return environ


def _open_standard_streams() -> None:
    """Without them, a pipe to a script could get one of their numbers and lose itself in the duplication."""
    while True:
        try:
            fd = os.open(os.devnull, os.O_RDWR)
        except OSError as error:
            sys.exit(f"{os.devnull} cannot be opened: {error.strerror}; give the root file system a /dev")
        if fd > 2:
            os.close(fd)
            break
        if fd == 1:
            # Not writable: output must not be lost without an error.
            read_only = os.open(os.devnull, os.O_RDONLY)
            os.dup2(read_only, fd)
            os.close(read_only)
    # Python has none where the descriptor was closed at its start.
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
