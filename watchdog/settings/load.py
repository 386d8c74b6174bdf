"""Read the settings once at the start, and find every problem with them.

``Settings`` (``declarations.py``) is the one declaration. Environment variables, flags, the help of the command line,
the README's table and ``watchdog check`` follow from it. A value comes from the default, the service definition, an
environment variable or a flag; a later one of these wins. Only the value that wins is checked, so a value without
effect cannot stop the start.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from ..errors import ConfigError
from ..system.files import small_file
from . import service_definition, storage_providers
from .declarations import DEFAULT_SERVICE_DEFINITION, SETTINGS, Known, Setting, Settings
from .kinds import PORT, TOKEN, parse_token
from .service_definition import ServiceDefinition
from .storage_providers import Storages

_TOKEN_FILE_MOST_BYTES = 65536
_SERVICE_DEFINITION_MOST_BYTES = 4 * 1024 * 1024


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known at start. To be used only once ``require_valid`` has seen it.

    ``sources``: for each setting's name, ``default``, ``environment WATCHDOG_X``, ``flag --x``, ``service
    definition /path`` or ``auth_token_file /path``. ``storages``: where inputs of events come from, and where
    outputs go. ``ignored_names``: accepted, without effect, to be named once at DEBUG. ``script_text``: what
    ``SCRIPT`` held, decoded. ``secret_names``: variables of the environment that no script may see.
    ``service_name``: what the platform or the service definition calls it. ``unread``: the settings, and ``SCRIPT``,
    that were given but could not be read, so that their effect is not known.
    """

    settings: Settings
    service: ServiceDefinition | None
    storages: Storages
    sources: dict[str, str]
    problems: list[str]
    warnings: list[str]
    ignored_names: list[str]
    script_text: bytes | None
    secret_names: frozenset[str]
    service_name: str
    unread: frozenset[str]

    def __repr__(self) -> str:
        """Without the script's text, which may hold secrets."""
        return f"<Configuration {self.settings!r}, {self.service!r}, {len(self.problems)} problems>"


def load(environ: Mapping[str, str], flags: Mapping[str, str]) -> Configuration:
    """Read everything that is set. ``flags``: text from the command line by a setting's name (``max_queue``).

    Never raises for bad input: what is wrong is collected in ``problems``, and a setting with a bad value has
    its default meanwhile. Reads the service definition and the token's file.
    """
    reading = _Reading(environ, flags)
    reading.read("service_definition")
    service = reading.read_service_definition()
    reading.read("fprocess")
    reading.check_fprocess()
    reading.check_names_of_watchdogs()
    for name in SETTINGS:
        if name in _OF_CLASSIC_FUNCTIONS and reading.values["fprocess"] is None:
            reading.leave_out(name)
        elif name not in ("service_definition", "fprocess"):
            reading.read(name)
    reading.check_script()
    reading.check_metrics_port()
    reading.check_tmp_dir()
    reading.read_token_file()
    reading.check_auth_all()
    reading.check_unknown_names()
    storages = reading.read_storages(service)
    script_text = reading.decode("SCRIPT", "the script's text", "base64 -w0 script.sh")

    return Configuration(
        settings=Settings(**{SETTINGS[name].attribute: value for name, value in reading.values.items()}),
        service=service,
        storages=storages,
        sources={name: reading.sources[name] for name in SETTINGS},
        problems=reading.problems,
        warnings=reading.warnings,
        ignored_names=reading.ignored_names + [name for name in environ if name.lower() in _CLASSIC_NAMES],
        script_text=script_text,
        secret_names=frozenset(reading.secret_names),
        service_name=(
            environ.get("K_SERVICE")
            or environ.get("OSCAR_SERVICE_NAME")
            or (service.name if service is not None else "")
            or "oscar-watchdog"
        )
        # What is not UTF-8 could be sent in no header, document or span.
        .encode("utf-8", "backslashreplace")
        .decode(),
        unread=frozenset(reading.unread),
    )


def require_valid(configuration: Configuration) -> Configuration:
    """The configuration itself, or ``ConfigError`` with every problem."""
    if configuration.problems:
        raise ConfigError(configuration.problems)
    return configuration


def without_outputs(configuration: Configuration) -> Configuration:
    """The same, but that nothing is stored."""
    storages = msgspec.structs.replace(configuration.storages, outputs=[])
    return msgspec.structs.replace(configuration, storages=storages)


# Names of OpenFaaS's classic watchdog and of-watchdog that change nothing here: what they switch is either
# always so or has no counterpart.
# fmt: off
_CLASSIC_NAMES = frozenset({
    "write_debug", "marshal_request", "debug_headers", "jwt_auth", "jwt_auth_debug", "jwt_auth_local",
    "function_process", "mode", "upstream_url", "http_upstream_url", "buffer_http",
    "http_buffer_req_body", "prefix_logs", "log_buffer_size", "ready_path", "log_callid", "static_path",
})
# fmt: on
_OF_CLASSIC_FUNCTIONS = frozenset({"content_type", "combine_output"})
# Of of-watchdog: the function would be a server, or there would be none.
_MODES_WITHOUT_STDIN = frozenset({"http", "inproc", "static"})
# Kubernetes gives a pod the address of every Service of its namespace in variables. A Service named
# `watchdog` or `watchdog-...` makes these.
_SERVICE_LINK_NAME = re.compile(
    r"WATCHDOG_(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT_[0-9]+_(?:TCP|UDP|SCTP)(?:_\w+)?)"
)
_SERVICE_LINK_VALUE = re.compile(r"(?:tcp|udp|sctp)://", re.IGNORECASE)
_SYSTEMD_NAMES = frozenset({"WATCHDOG_USEC", "WATCHDOG_PID"})


class _Reading:
    """One reading of all sources: the values so far, where they came from, and what is wrong."""

    def __init__(self, environ: Mapping[str, str], flags: Mapping[str, str]) -> None:
        self.environ = environ
        self.flags = flags
        self.from_service: dict[str, tuple[str, str]] = {}  # name -> text, source
        self.values: dict[str, Any] = {}
        self.sources: dict[str, str] = {}
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self.ignored_names: list[str] = []
        self.service_source = ""
        self.unread: set[str] = set()
        self.secret_names = {"WATCHDOG_AUTH_TOKEN"}
        # Only bare names are read in any case. Upper case comes before mixed in ASCII's order.
        self.spellings: dict[str, list[str]] = {}
        for spelling in sorted(environ, key=lambda name: (name != name.lower(), name)):
            self.spellings.setdefault(spelling.lower(), []).append(spelling)

    def read(self, name: str) -> None:
        """One setting: the highest source that sets it wins."""
        setting = SETTINGS[name]
        text, source = self.find(setting)
        if text is not None:
            try:
                if not text.strip():
                    raise ValueError(text)
                self.values[name] = setting.kind.parse(text)
                self.sources[name] = source
                return
            except ValueError:
                if name == "log_level" and source.startswith("environment ") and setting.variable not in source:
                    # The one exception to "nothing falls back silently": this may be meant for the script.
                    self.warnings.append(
                        f"log_level: {source} is {in_quotes(text)}, which is no known level, so INFO is used; "
                        f"to choose one, set {setting.variable} to {setting.kind.accepts}"
                    )
                else:
                    shown = "no usable token (not shown)" if setting.secret and text.strip() else in_quotes(text)
                    self.problem(name, source, f"is {shown}; accepted is {setting.kind.accepts}")

        self.set_default(setting)

    def leave_out(self, name: str) -> None:
        """A setting that has no effect: its value is not even looked at."""
        text, source = self.find(SETTINGS[name])
        if text is not None:
            self.ignored_names.append(source.rpartition(" ")[2])
        self.set_default(SETTINGS[name])

    def set_default(self, setting: Setting) -> None:
        name, default = setting.name, setting.default
        self.values[name] = default(Known(self.environ, self.values)) if callable(default) else default
        self.sources[name] = "default"

    def find(self, setting: Setting) -> tuple[str | None, str]:
        if setting.name in self.flags:
            return self.flags[setting.name], f"flag {setting.flag}"
        value = self.environ.get(setting.variable)
        if value is not None:
            if setting.kind is PORT and _SERVICE_LINK_VALUE.match(value):
                self.warnings.append(
                    f"{setting.name}: environment {setting.variable} is {in_quotes(value)}, which Kubernetes "
                    "sets for a Service of that name, so it is ignored; to be rid of it, set "
                    "enableServiceLinks: false for the pod"
                )
            else:
                return value, f"environment {setting.variable}"
        if setting.bare:
            for spelling in self.spellings.get(setting.name, ()):
                if self.environ[spelling]:
                    return self.environ[spelling], f"environment {spelling}"
        return self.from_service.get(setting.name, (None, "default"))

    def problem(self, name: str, source: str, text: str) -> None:
        self.unread.add(name)
        self.problems.append(f"{name}: {source} {text}")

    def decode(self, variable: str, meaning: str, command: str) -> bytes | None:
        """What a variable holds in base64: one alphabet, line breaks, padding or none. None: not set, or not base64."""
        text = self.environ.get(variable)
        if not text or not text.strip():
            return None
        from ..system.base64_reader import decoded_text

        decoded = decoded_text(text.encode(errors="replace"))
        if decoded is None:
            # Without the value: scripts and service definitions hold secrets.
            self.problem(
                variable,
                f"environment {variable}",
                f"is not base64; accepted is base64 of {meaning}: {command}",
            )
        return decoded

    # The service definition

    def read_service_definition(self) -> ServiceDefinition | None:
        """Of both the file and ``FUNCTION_CONFIG`` the file wins, as in OSCAR."""
        variable = self.environ.get("FUNCTION_CONFIG") or ""
        if service_definition.holds_secrets(variable.encode(errors="replace")):
            self.secret_names.add("FUNCTION_CONFIG")

        path = self.values["service_definition"]
        text: bytes | None
        try:
            text = small_file(path, _SERVICE_DEFINITION_MOST_BYTES)
        except (FileNotFoundError, NotADirectoryError):
            text = None
            if path != DEFAULT_SERVICE_DEFINITION:
                source = self.sources["service_definition"]
                self.problem("service_definition", source, f"is {in_quotes(path)}; there is no such file")
        except OSError as error:
            text = None
            source = self.sources["service_definition"]
            self.problem("service_definition", source, f"is {in_quotes(path)}; {why_unreadable(error)}")

        before = len(self.problems)
        from_variable = self.decode(
            "FUNCTION_CONFIG", "the service definition's text", "base64 -w0 function_config.yaml"
        )
        if from_variable is not None and service_definition.holds_secrets(from_variable):
            self.secret_names.add("FUNCTION_CONFIG")
        if text is not None:
            del self.problems[before:]  # FUNCTION_CONFIG has no effect beside a file
            return self.take_service(text, path, beside=os.path.dirname(path))
        if from_variable is not None:
            return self.take_service(from_variable, "FUNCTION_CONFIG", beside=None)
        return None

    def take_service(self, text: bytes, origin: str, *, beside: str | None) -> ServiceDefinition | None:
        parsed = service_definition.parse(text, origin)
        self.problems += parsed.problems
        self.warnings += parsed.warnings
        if parsed.service is None:
            self.unread.add("service_definition")
            return None
        source = f"service definition {origin}"
        if parsed.service.log_level.strip():
            self.from_service["log_level"] = (parsed.service.log_level, source)
        self.service_source = source
        script_path = parsed.service.script_path
        if script_path and (beside is not None or os.path.isabs(script_path)):
            self.from_service["script_path"] = (os.path.join(beside or "", script_path), source)
        elif script_path:
            self.warnings.append(
                f"{source}: script {in_quotes(script_path)} is ignored, as a variable has no file beside it; "
                "set SCRIPT or WATCHDOG_SCRIPT_PATH"
            )
        return parsed.service

    def read_storages(self, service: ServiceDefinition | None) -> Storages:
        if service is None:
            return Storages()
        storages, problems, warnings = storage_providers.read(service, self.values["secrets_dir"])
        self.problems += [f"{self.service_source}: {line}" for line in problems]
        self.warnings += [f"{self.service_source}: {line}" for line in warnings]
        self.warnings += [
            f"{self.service_source}: {line}, so nothing is fetched from it or stored in it; calls are answered as ever"
            for line in storages.withheld()
        ]
        if storages.outputs and self.values["fprocess"] is not None:
            self.warnings.append(
                f"{self.service_source}: output has no effect beside fprocess: what a classic function prints is its "
                "caller's answer"
            )
            return Storages()
        return storages

    # What concerns more than one setting, or the system

    def check_fprocess(self) -> None:
        command = self.values["fprocess"]
        if command is None:
            return
        if os.path.basename(shlex.split(command)[0]) == "supervisor":
            # OSCAR sets this for its own supervisor, whose work is done here.
            self.ignored_names.append(self.sources["fprocess"].rpartition(" ")[2])
            self.values["fprocess"] = None
            self.sources["fprocess"] = "default"
            return
        from .shell_syntax import advice_on_shell_syntax

        if (advice := advice_on_shell_syntax(command)) is not None:
            self.warnings.append(f"fprocess: {self.sources['fprocess']} {advice}")
        for spelling in self.spellings.get("mode", ()):
            if self.environ[spelling] in _MODES_WITHOUT_STDIN:
                self.warnings.append(
                    f"environment {spelling} is {in_quotes(self.environ[spelling])}, a mode of of-watchdog that is not "
                    "offered: fprocess is started for each call, gets the body on stdin, and its stdout is the answer"
                )

    def check_names_of_watchdogs(self) -> None:
        """What OpenFaaS's watchdogs offer and this server does not, where that changes who is answered, or what."""
        for spelling in self.spellings.get("jwt_auth", ()):
            # Whoever sets it relies on it: without it everybody would be answered.
            if self.environ[spelling].strip().lower() in ("true", "1"):
                self.problem(
                    "jwt_auth",
                    f"environment {spelling}",
                    f"is {in_quotes(self.environ[spelling])}; accepted is false, as tokens of OpenFaaS's gateway are "
                    "not checked here: unset it, and set WATCHDOG_AUTH_TOKEN_FILE for a token of this server's own",
                )
        for spelling in self.spellings.get("marshal_request", ()):
            if self.environ[spelling].strip().lower() in ("true", "1"):
                self.warnings.append(
                    f"environment {spelling} is not offered: the function gets the body as it is, and headers as "
                    "Http_* variables"
                )
        for spelling in self.spellings.get("function_process", ()):
            self.warnings.append(f"environment {spelling} is a name of of-watchdog, ignored; set fprocess")

    def check_script(self) -> None:
        if self.values["fprocess"] is None:
            return
        source = "environment SCRIPT" if self.environ.get("SCRIPT") else self.sources["script_path"]
        if source != "default":
            self.warnings.append(
                f"fprocess: {self.sources['fprocess']} is {in_quotes(self.values['fprocess'])}, which is the function, "
                f"so the script of {source} is never run; unset one of them"
            )

    def check_metrics_port(self) -> None:
        port = self.values["metrics_port"]
        if self.unread & {"port", "metrics_port"}:
            return
        if port == 0 or port != self.values["port"]:
            return
        if self.sources["metrics_port"] == "default":
            self.values["metrics_port"] = 0
            self.warnings.append(
                f"metrics_port: port is {port} too, so metrics are off; for metrics set WATCHDOG_METRICS_PORT"
            )
        else:
            self.problem("metrics_port", self.sources["metrics_port"], f"is {port}; accepted is another than port's")

    def check_tmp_dir(self) -> None:
        if "tmp_dir" in self.unread:
            return
        path = self.values["tmp_dir"]
        source = self.sources["tmp_dir"]
        if source == "default" and self.environ.get("TMPDIR"):
            source = self.sources["tmp_dir"] = "environment TMPDIR"
        # An image made from nothing has no /tmp; it is made at the start (`cli`).
        if source == "default" and not os.path.lexists(path) and os.access(os.path.dirname(path), os.W_OK | os.X_OK):
            return
        if not os.path.isdir(path):
            wrong = "is no directory; make it, or name another one"
        elif not os.access(path, os.W_OK | os.X_OK, effective_ids=True):
            wrong = "cannot be written to; mount a writable volume there, or name another directory"
        else:
            return
        self.problem("tmp_dir", source, f"is {in_quotes(path)}, which {wrong} in WATCHDOG_TMP_DIR")

    def read_token_file(self) -> None:
        path = self.values["auth_token_file"]
        if path is None:
            return
        source = self.sources["auth_token_file"]
        if self.find(SETTINGS["auth_token"])[0] is not None:
            self.problem(
                "auth_token_file", source, f"is {in_quotes(path)}, but auth_token is set too; give one of them"
            )
            return
        try:
            content = small_file(path, _TOKEN_FILE_MOST_BYTES)
        except OSError as error:
            self.problem("auth_token_file", source, f"is {in_quotes(path)}; {why_unreadable(error)}")
            return
        try:
            self.values["auth_token"] = parse_token(content.decode("ascii"))
            self.sources["auth_token"] = f"auth_token_file {path}"
        except ValueError:
            found = "holds no usable token (not shown)" if content.strip() else "is empty"
            self.problem("auth_token_file", source, f"is {in_quotes(path)}, which {found}; accepted is {TOKEN.accepts}")

    def check_auth_all(self) -> None:
        is_unread = not self.unread.isdisjoint({"auth_all", "auth_token", "auth_token_file"})
        if not self.values["auth_all"] or is_unread or self.values["auth_token"] is not None:
            return
        if self.values["auth_token_file"] is None:  # else its own problem is reported
            self.problem(
                "auth_all", self.sources["auth_all"], "is true, but there is no token; set auth_token_file, too"
            )

    def check_unknown_names(self) -> None:
        for name in self.flags:
            if name not in SETTINGS:
                self.problem(name, "flag", "is not known; `watchdog --help` lists all flags")
        known = {setting.variable for setting in SETTINGS.values()}
        for name in sorted(self.environ):
            if not name.upper().startswith("WATCHDOG_") or name in known or name in _SYSTEMD_NAMES:
                continue
            if _SERVICE_LINK_NAME.fullmatch(name):
                continue
            if name.endswith("_PORT") and _SERVICE_LINK_VALUE.match(self.environ[name]):
                continue
            # Without the value: it may be a misspelt token.
            self.warnings.append(f"environment {one_line(name)} is not known, ignored{_nearest(name.upper(), known)}")


def _nearest(name: str, known: Iterable[str]) -> str:
    import difflib  # only a misspelt variable needs it

    nearest = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.0)
    return f"; the nearest name is {nearest[0]}"


def in_quotes(value: str) -> str:
    """A value in a line of text: printable, and short enough to read."""
    return repr(value) if len(value) <= 200 else repr(value[:200]) + " and more"


def one_line(text: str) -> str:
    return text if text.isprintable() else ascii(text)


def why_unreadable(error: OSError) -> str:
    if isinstance(error, IsADirectoryError):
        return "it is a directory (docker makes one when the file to mount does not exist); give a file"
    if isinstance(error, PermissionError):
        return f"user {os.geteuid()} may not read it; allow that (chmod, or a mount's mode)"
    return f"it cannot be read: {error.strerror}"
