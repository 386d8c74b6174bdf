"""Run the commands, and map each error to an exit code.

A module that only some commands need is imported where it is used. Imports take most of the time of a start, and a
container's HEALTHCHECK starts a command every few seconds.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import BinaryIO

from .commands.command_line import parse
from .errors import (
    AnswerBroken,
    AnswerNotKept,
    CallTookTooLong,
    ConfigError,
    FileUnreadable,
    InputError,
    ListenError,
    NoSpace,
    OutOfResources,
    RefusedForNow,
    ScriptFailed,
    ScriptKilled,
    ScriptTimedOut,
    ScriptUnavailable,
    ServiceUnreachable,
    StdoutClosed,
    StdoutUnwritable,
    StorageError,
    StoreFailed,
    Unauthorized,
    WatchdogError,
)
from .logs.setup import configure, get_logger
from .logs.sink import LogWriter
from .process.progress_descriptor import open_progress_descriptor
from .settings.load import Configuration, load, require_valid, without_outputs
from .system import proc, standard_output

# The exit code of each error. The first row whose type matches is used. ScriptFailed is not in the table, because the
# exit code of the script is used. 124 is from timeout(1), 127 from shells. 65 (EX_DATAERR),
# 66 (EX_NOINPUT), 69 (EX_UNAVAILABLE), 73 (EX_CANTCREAT), 74 (EX_IOERR), 75 (EX_TEMPFAIL), 76 (EX_PROTOCOL) and 77
# (EX_NOPERM) are from sysexits.h.
_EXIT_CODES: tuple[tuple[type[WatchdogError], int], ...] = (
    (ConfigError, 2),
    (ListenError, 1),
    (StdoutClosed, 128 + signal.SIGPIPE),  # the code that shells show for a program that SIGPIPE ended
    (InputError, 65),
    (ScriptTimedOut, 124),
    (ScriptUnavailable, 127),
    (StoreFailed, 74),
    (StorageError, 66),
    (OutOfResources, 71),
    (NoSpace, 73),
    (StdoutUnwritable, 73),
    (Unauthorized, 77),
    (ServiceUnreachable, 69),
    (RefusedForNow, 75),
    (CallTookTooLong, 124),
    (AnswerBroken, 76),
    (FileUnreadable, 66),
    (AnswerNotKept, 73),
    (WatchdogError, 1),
)


def main(
    argv: Sequence[str] | None = None, called_as: str | None = None, environ: Mapping[str, str] | None = None
) -> int:
    """Run the command that the arguments name, and return the exit code.

    Args:
        argv: the arguments; by default, those of this process.
        called_as: the name under which the program was started. The name ``supervisor`` chooses the command ``job``.
        environ: the image's environment; by default, the environment of this process.
    """
    _open_standard_streams()
    called_as = os.path.basename(called_as or sys.argv[0])
    try:
        arguments = parse(list(sys.argv[1:] if argv is None else argv), called_as)
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
    # SSLKEYLOGFILE: Python's ssl would write the keys of the server's connections to this file, or raise an error if it
    # cannot. SSL_CERT_FILE: aiohttp reads this file at import, and would wait forever if it is a FIFO. Only connections
    # to storages need it, and they check first that it is a regular file. Both variables are removed from this process
    # only: scripts still get them. No other thread runs yet, so none can read the environment during the change.
    for name in ("SSLKEYLOGFILE", "SSL_CERT_FILE"):
        os.environ.pop(name, None)
    try:
        if arguments.command == "helper":  # `helper` reads no settings, so it also works while an image is built
            from .commands.helper import helper

            return helper(arguments.own["name"])
        if arguments.command == "init":
            from .commands.init import init

            return init(arguments.own["directory"])
        if arguments.command == "invoke":  # `invoke` is a client, so it reads no settings of a server
            from .commands.invoke import invoke
            from .commands.invoke_arguments import invoke_arguments

            _collect_garbage()
            return invoke(invoke_arguments(arguments.own), environ)
        configuration = load(environ, arguments.flags)
        if arguments.command == "check":
            from .commands.check import check

            return check(configuration, environ)
        require_valid(configuration)
        if arguments.command == "health":
            from .commands.health import health

            return health(configuration)
        _make_tmp_dir(configuration.settings.tmp_dir)
        shows_progress = open_progress_descriptor()
        if arguments.command == "run":
            own = arguments.own
            return _run(
                configuration,
                environ,
                own["file"],
                own["output"],
                stores=not own["no_store"],
                shows_progress=shows_progress,
            )
        if arguments.command == "job":
            return _job(configuration, environ)
        if arguments.command == "serve":
            return _serve(configuration, environ)
        raise AssertionError(f"cli.py does not run the command {arguments.command}")
    except StdoutClosed as error:
        return exit_code_of(error)
    except WatchdogError as error:
        print(error, file=sys.stderr)
        return exit_code_of(error)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def exit_code_of(error: WatchdogError) -> int:
    """Return the exit code for this error."""
    if isinstance(error, ScriptFailed):
        return error.exit_code
    if isinstance(error, ScriptKilled):
        number = proc.signal_number(error.signal)
        assert number is not None  # it is the name of a signal of this system
        return 128 + number
    return next(code for kind, code in _EXIT_CODES if isinstance(error, kind))


def _make_tmp_dir(path: str) -> None:
    """Create ``tmp_dir`` if it is the default directory and the image does not have it.

    If any other ``tmp_dir`` is missing, the configuration has already reported that.
    """
    with contextlib.suppress(FileExistsError):
        os.mkdir(path)
        os.chmod(path, 0o1777)


def _serve(configuration: Configuration, environ: Mapping[str, str]) -> int:
    _import_asyncio(configuration)
    import asyncio

    from .http.server import serve
    from .process.decoy import why_needed

    if (why := why_needed()) is not None:
        configuration.warnings.append(why)
    _collect_garbage()
    sink = _start_logs(configuration)
    try:
        return asyncio.run(serve(configuration, environ, sink))
    finally:
        sink.close(2.0)


def _import_asyncio(configuration: Configuration) -> None:
    """Import asyncio, without the module ssl if the server makes no connections to storages.

    The import of ssl takes 5 ms of processor time and 4 MiB of memory for OpenSSL. asyncio then works as in a Python
    that was built without OpenSSL: everything except connections with TLS. Other modules can still import ssl.
    """
    if not configuration.storages.providers and "ssl" not in sys.modules:
        sys.modules["ssl"] = None  # type: ignore[assignment]  # the import system then raises ModuleNotFoundError
    try:
        import asyncio  # noqa: F401
    finally:
        if sys.modules.get("ssl", ...) is None:
            del sys.modules["ssl"]


def _collect_garbage() -> None:
    """Start Python's garbage collector, which ``__main__`` has stopped. The objects of all imports are never freed."""
    gc.freeze()
    gc.enable()


def _run(
    configuration: Configuration,
    environ: Mapping[str, str],
    file: str,
    output: str | None,
    *,
    stores: bool,
    shows_progress: bool,
) -> int:
    import asyncio

    from .commands.local_run import run_file, with_script_here
    from .invocation.call import Record

    try:
        source: BinaryIO = sys.stdin.buffer if file == "-" else open(file, "rb")  # noqa: SIM115
    except OSError as error:
        print(f"the input {file} cannot be read: {error.strerror}", file=sys.stderr)
        return 2
    configuration = with_script_here(configuration if stores else without_outputs(configuration))
    sink = _start_logs(configuration)
    try:
        name = None if file == "-" else os.path.basename(file)
        _collect_garbage()
        record = Record()
        try:
            with source:
                return asyncio.run(
                    run_file(
                        configuration,
                        environ,
                        sink,
                        source,
                        record,
                        name=name,
                        target=output,
                        shows_progress=shows_progress,
                    )
                )
        except WatchdogError as error:
            # The log has shown the reason, unless it shows only events of higher levels.
            if not record.is_logged or sink.level > logging.WARNING:
                raise
            return exit_code_of(error)
    finally:
        sink.close(2.0)


def _job(configuration: Configuration, environ: Mapping[str, str]) -> int:
    import asyncio

    withheld = [line for line in configuration.storages.withheld() if line.startswith("output ")]
    if withheld:
        raise ConfigError(withheld)
    sink = _start_logs(configuration)
    try:
        from .commands.job import run_job
        from .invocation.call import Record

        _collect_garbage()
        record = Record()
        try:
            return asyncio.run(run_job(configuration, environ, sink, record))
        except WatchdogError as error:
            if not record.is_logged:
                raise
            return exit_code_of(error)
    finally:
        sink.close(2.0)


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
    """Return the environment as the image defines it.

    In the C locale, Python itself sets LC_CTYPE (PEP 538). Scripts must not get this variable.
    """
    environ = dict(os.environ)
    if "LC_CTYPE" in environ:
        with contextlib.suppress(OSError), open("/proc/self/environ", "rb") as file:
            if not any(each.startswith(b"LC_CTYPE=") for each in file.read().split(b"\0")):
                del environ["LC_CTYPE"]
    return environ


def _open_standard_streams() -> None:
    """Open ``/dev/null`` in place of each standard stream that is closed.

    Otherwise a pipe to a script could get the number 0, 1 or 2. It would then be overwritten when the script's own
    streams are set up.
    """
    while True:
        try:
            fd = os.open(os.devnull, os.O_RDWR)
        except OSError as error:
            sys.exit(f"{os.devnull} cannot be opened: {error.strerror}; give the root file system a /dev")
        if fd > 2:
            os.close(fd)
            break
        if fd == 1:
            # Open it only for reading: then a write fails, and output is not lost without an error.
            read_only = os.open(os.devnull, os.O_RDONLY)
            os.dup2(read_only, fd)
            os.close(read_only)
    # Python sets these to None if the descriptor was closed when Python started.
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
