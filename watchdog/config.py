"""The settings: each declared once, read once at start, every problem found at once.

``Settings`` is the one declaration. From it come the reading of environment variables and flags, the help of
the command line, the README's table and ``watchdog check``. Lowest first: default, service definition,
environment variable, flag. Only the value that wins is looked at, so what has no effect cannot stop the
start.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, get_args, get_type_hints

import msgspec

from . import service_definition
from .cgroup import Cgroup
from .errors import ConfigError, quoted
from .files import small_file
from .service_definition import ServiceDefinition
from .storage import providers
from .storage.providers import Storages

# What `watchdog health` calls itself: a container engine runs it, and sends nobody elsewhere when it fails, so that
# the server does not count it as a probe.
LOCAL_PROBE = "watchdog-health"
DEFAULT_SCRIPT_PATH = "/oscar/config/script.sh"
DEFAULT_SERVICE_DEFINITION = "/oscar/config/function_config.yaml"
# Where OSCAR mounts the keys of a user's MinIO into jobs (`pkg/handlers/job.go`).
DEFAULT_SECRETS_DIR = "/var/run/secrets/providers"

# Bounds that nobody meets but by mistake; above them timers and file sizes overflow somewhere below us.
_MOST_COUNT = 1_000_000_000
_MOST_SECONDS = 1_000_000_000
_MOST_BYTES = (1 << 63) - 1
_TOKEN_FILE_MOST_BYTES = 65536
_SERVICE_DEFINITION_MOST_BYTES = 4 * 1024 * 1024


# -------------------------------------------------------------------------------------------- kinds of values


class Kind(NamedTuple):
    """How text becomes a value. ``parse`` raises ``ValueError``; ``unit`` ends the attribute's name."""

    parse: Callable[[str], Any]
    accepts: str
    metavar: str
    unit: str = ""


def parse_duration_s(text: str) -> float:
    """Seconds from ``90``, ``1.5`` or a Go duration like ``1m30s`` (``time.ParseDuration``, no minus).

    Raises ``ValueError`` for anything else and for more than 10**9 seconds.
    """
    text = text.strip()
    if _PLAIN_SECONDS.fullmatch(text):
        seconds = float(text)
    elif _GO_DURATION.fullmatch(text):
        # Summed in nanoseconds and divided once: 100ms is 0.1, not 0.1 and a bit.
        parts = _GO_PART.findall(text)
        seconds = sum(float(number) * _GO_UNIT_NS[unit] for number, unit in parts) / 1e9
    else:
        raise ValueError(f"no duration: {quoted(text)}")
    if seconds > _MOST_SECONDS:
        raise ValueError(f"over {_MOST_SECONDS} seconds: {quoted(text)}")
    return seconds


_GO_UNIT_NS = {"ns": 1, "us": 1e3, "µs": 1e3, "μs": 1e3, "ms": 1e6, "s": 1e9, "m": 60e9, "h": 3600e9}
# Possessive: X-Timeout may have 60,000 digits, and a search that goes back over each of them took half a minute.
_NUMBER = r"(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)"
_PLAIN_SECONDS = re.compile(rf"\+?{_NUMBER}")
_GO_PART = re.compile(rf"({_NUMBER})(ns|us|µs|μs|ms|s|m|h)")
_GO_DURATION = re.compile(rf"\+?(?:{_GO_PART.pattern})+")


def parse_size_bytes(text: str) -> int:
    """Bytes from ``1048576``, ``64Ki``, ``10MiB``, ``2G`` or ``2GB``; ``i`` is for powers of 1024.

    Raises ``ValueError`` for anything else and for more than 2**63 - 1.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"no size: {text!r}")
    number, prefix = match.groups()
    size_bytes = int(number) * _SIZE_UNIT_BYTES[prefix]
    if size_bytes > _MOST_BYTES:
        raise ValueError(f"over {_MOST_BYTES} bytes: {text!r}")
    return size_bytes


_SIZE_UNIT_BYTES = {"": 1, "k": 1000, "K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}
_SIZE_UNIT_BYTES |= {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}
_SIZE = re.compile(r"([0-9]{1,20})([KMGT]i|[kKMGT]|)B?")


def _parse_whole(most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        # Python's int() would take "1_000" and other scripts' digits too.
        if not re.fullmatch("[0-9]{1,20}", text.strip()) or int(text) > most:
            raise ValueError(text)
        return int(text)

    return parse


def _parse_truth(text: str) -> bool:
    word = text.strip().lower()
    if word in ("true", "1", "yes", "on"):
        return True
    if word in ("false", "0", "no", "off"):
        return False
    raise ValueError(text)


_LEVELS = ("NOTSET", "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_LEVEL_ALIASES = {"TRACE": "DEBUG", "WARN": "WARNING", "FATAL": "CRITICAL"}


def _parse_level(text: str) -> str:
    word = text.strip().upper()
    word = _LEVEL_ALIASES.get(word, word)
    if word not in _LEVELS:
        raise ValueError(text)
    return word


def _parse_log_format(text: str) -> str:
    word = text.strip().lower()
    if word not in ("auto", "json", "console"):
        raise ValueError(text)
    return word


def _parse_address(text: str) -> str:
    text = text.strip()
    address = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if ":" in address:
        try:
            socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
        except OSError as error:
            raise ValueError(text) from error
    elif not re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9._-]*)", address):
        raise ValueError(text)
    return address


def _parse_path(text: str) -> str:
    if b"\0" in os.fsencode(text):
        raise ValueError(text)
    return text


def _parse_directory(text: str) -> str:
    # Scripts get paths below it and may change their working directory.
    return os.path.abspath(_parse_path(text))


def _parse_command(text: str) -> str:
    # A shell's quotes, which the classic watchdog does not know: it splits at each space.
    if "\0" in text or not shlex.split(text):
        raise ValueError(text)
    return text


def _parse_media_type(text: str) -> str:
    text = text.strip()
    if not re.fullmatch(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+/[!#$%&'*+\-.^_`|~0-9A-Za-z]+(?:[ \t]*;[ -~]*)?", text):
        raise ValueError(text)
    return text


def _parse_token(text: str) -> str:
    token = text.strip()
    if not re.fullmatch(r"[!-~]+", token):
        raise ValueError("token")
    return token


PORT = Kind(_parse_whole(65535), "a port number from 0 to 65535", "PORT")
COUNT = Kind(_parse_whole(_MOST_COUNT), f"a whole number from 0 to {_MOST_COUNT}", "N")
DURATION = Kind(
    parse_duration_s,
    f"seconds like 90 or 1.5, or a duration like 1m30s or 500ms, at most {_MOST_SECONDS}s",
    "DURATION",
    "_s",
)
SIZE = Kind(parse_size_bytes, "bytes like 1048576, or a size like 64Ki, 10Mi or 2G", "SIZE", "_bytes")
TRUTH = Kind(_parse_truth, "true, false, 1, 0, yes, no, on or off", "BOOL")
LEVEL = Kind(_parse_level, f"{', '.join(_LEVELS[:-1])} or {_LEVELS[-1]}", "LEVEL")
LOG_FORMAT = Kind(_parse_log_format, "auto, json or console", "FORMAT")
ADDRESS = Kind(_parse_address, "an IPv4 or IPv6 address or a host name, without a port", "ADDRESS")
PATH = Kind(_parse_path, "a path", "PATH")
DIRECTORY = Kind(_parse_directory, "a path", "PATH")
COMMAND = Kind(_parse_command, "a command and its arguments, quoted as for a shell", "COMMAND")
MEDIA_TYPE = Kind(_parse_media_type, "a media type like text/plain; charset=utf-8", "TYPE")
TOKEN = Kind(_parse_token, "ASCII characters without white space, at least one", "TOKEN")


# ----------------------------------------------------------------------------------------------- the settings


class _Known(NamedTuple):
    """What a computed default may be made from. ``values``: the settings declared further up."""

    environ: Mapping[str, str]
    values: Mapping[str, Any]


class Setting(NamedTuple):
    """The declaration of one setting. ``name`` is what users write, ``attribute`` what the program reads."""

    name: str
    attribute: str
    help: str
    kind: Kind
    default: Any
    default_text: str
    bare: bool
    secret: bool

    @property
    def variable(self) -> str:
        return "WATCHDOG_" + self.name.upper()

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


class Declared(NamedTuple):
    help: str
    kind: Kind
    default: Any = None
    default_text: str | None = None
    bare: bool = False
    secret: bool = False


def usable_cpus(cgroup: Cgroup) -> int:
    """CPUs that this process may keep busy: those it may run on, or its quota's whole CPUs; at least 1."""
    quota = cgroup.cpu_quota()
    affinity = len(os.sched_getaffinity(0))
    return max(1, affinity if quota is None else min(affinity, int(quota)))


def _default_max_inflight(known: _Known) -> int:
    return usable_cpus(Cgroup())


def _default_max_queue(known: _Known) -> int:
    return 10 * int(known.values["max_inflight"])


def _default_tmp_dir(known: _Known) -> str:
    return os.path.abspath(known.environ.get("TMPDIR") or "/tmp")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Every setting, checked. Durations are in seconds, sizes in bytes; 0 means none where the help says so.

    The order is the README's, and a computed default may use what stands above it.
    """

    port: Annotated[int, Declared("port to listen on", PORT, 8080, bare=True)]
    bind: Annotated[str | None, Declared("address to listen on", ADDRESS, default_text="all interfaces, IPv4 and IPv6")]
    script_path: Annotated[
        str,
        Declared("the script's file; SCRIPT, base64 of its text, wins over it", PATH, DEFAULT_SCRIPT_PATH),
    ]
    service_definition: Annotated[
        str,
        Declared(
            "the service definition's file; at the default place it may be missing",
            PATH,
            DEFAULT_SERVICE_DEFINITION,
        ),
    ]
    fprocess: Annotated[
        str | None,
        Declared("command of a classic function: body to its stdin, its stdout as the answer", COMMAND, bare=True),
    ]
    content_type: Annotated[
        str | None,
        Declared(
            "of a classic function's answers",
            MEDIA_TYPE,
            default_text="the caller's, else application/octet-stream",
            bare=True,
        ),
    ]
    combine_output: Annotated[
        bool, Declared("a classic function's stderr goes into its answer, not into the log", TRUTH, False, bare=True)
    ]
    log_level: Annotated[
        str,
        Declared(
            "events and script lines below it are dropped: NOTSET, DEBUG, INFO, WARNING, ERROR or CRITICAL",
            LEVEL,
            "INFO",
            bare=True,
        ),
    ]
    log_format: Annotated[str, Declared("json, console, or auto: console on a terminal, else json", LOG_FORMAT, "auto")]
    max_log_rate_bytes: Annotated[
        int,
        Declared(
            "the most bytes of log that one call makes in a second; lines beyond them are dropped and counted; "
            "0 is no limit",
            SIZE,
            10 * 1024 * 1024,
            default_text="10Mi",
        ),
    ]
    max_inflight: Annotated[
        int,
        Declared(
            "invocations at once; 0 is no limit",
            COUNT,
            _default_max_inflight,
            default_text="usable CPUs, at least 1",
            bare=True,
        ),
    ]
    max_queue: Annotated[
        int,
        Declared("calls that may wait for a place", COUNT, _default_max_queue, default_text="10 x max_inflight"),
    ]
    queue_timeout_s: Annotated[float, Declared("the longest such wait", DURATION, 60.0)]
    exec_timeout_s: Annotated[
        float,
        Declared("the longest run of the script; 0 is none; X-Timeout may ask for less", DURATION, 0.0, bare=True),
    ]
    linger_timeout_s: Annotated[
        float,
        Declared(
            "how long processes that a script left may go on working after its exit; 0 ends them at once",
            DURATION,
            5.0,
        ),
    ]
    kill_grace_s: Annotated[float, Declared("time between SIGTERM and SIGKILL", DURATION, 5.0)]
    read_timeout_s: Annotated[
        float,
        Declared("the longest silence while request headers or body are awaited", DURATION, 30.0, bare=True),
    ]
    write_timeout_s: Annotated[
        float,
        Declared(
            "the longest silence while the caller does not take the answer; also how long a drain lets scripts run",
            DURATION,
            15.0,
            bare=True,
        ),
    ]
    min_data_rate_bytes: Annotated[
        int,
        Declared(
            "the lowest rate of a body and of an answer in bytes a second, on average over read_timeout or "
            "write_timeout (at least 5s); slower ones are ended; 0 is no minimum",
            SIZE,
            240,
        ),
    ]
    healthcheck_interval_s: Annotated[
        float,
        Declared(
            "how long a drain stays reachable but not ready before it stops accepting; if this is not set, a server "
            "outside Kubernetes that nobody probes does not wait",
            DURATION,
            5.0,
            bare=True,
        ),
    ]
    max_input_size_bytes: Annotated[int, Declared("the largest decoded input; 0 is no limit", SIZE, 0)]
    max_output_size_bytes: Annotated[
        int, Declared("the largest sum of output files, or stdout; 0 is no limit", SIZE, 0)
    ]
    tmp_dir: Annotated[
        str,
        Declared("where workspaces are made", DIRECTORY, _default_tmp_dir, default_text="$TMPDIR or /tmp"),
    ]
    storage_timeout_s: Annotated[
        float,
        Declared(
            "the longest silence of a storage server, and how long its failures are tried again",
            DURATION,
            60.0,
        ),
    ]
    secrets_dir: Annotated[
        str,
        Declared("where the platform mounts credentials: minio.ID/accessKey, secretKey", PATH, DEFAULT_SECRETS_DIR),
    ]
    suppress_lock: Annotated[bool, Declared("do not write the lock file", TRUTH, False, bare=True)]
    metrics_port: Annotated[int, Declared("port of the Prometheus metrics; 0 turns them off", PORT, 8081)]
    auth_token: Annotated[
        str | None,
        Declared(
            "bearer token that calls must carry; it has no flag",
            TOKEN,
            secret=True,
        ),
    ]
    auth_token_file: Annotated[str | None, Declared("file that holds the bearer token", PATH)]
    auth_all: Annotated[
        bool, Declared("/metrics and /_/openapi.json need the token, too; health and readiness never do", TRUTH, False)
    ]
    cgi_headers: Annotated[
        bool, Declared("request headers and query as Http_* variables of the script", TRUTH, True, bare=True)
    ]
    error_status: Annotated[
        bool,
        Declared("false restores OSCAR's old answer: 200 whatever the script's exit code", TRUTH, True),
    ]

    def __repr__(self) -> str:
        """Without the token: a repr ends in logs."""
        fields = (f"{s.attribute}={_shown(s, getattr(self, s.attribute))}" for s in SETTINGS.values())
        return f"Settings({', '.join(fields)})"


def _declarations() -> dict[str, Setting]:
    settings = {}
    for attribute, hint in get_type_hints(Settings, include_extras=True).items():
        declared = next(extra for extra in get_args(hint) if isinstance(extra, Declared))
        name = attribute.removesuffix(declared.kind.unit)
        text = declared.default_text or _plain(declared.kind, declared.default)
        settings[name] = Setting(
            name,
            attribute,
            declared.help,
            declared.kind,
            declared.default,
            text,
            declared.bare,
            declared.secret,
        )
    return settings


def _plain(kind: Kind, value: object) -> str:
    """A value as a user would write it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    if kind is DURATION:
        return f"{value:.9f}".rstrip("0").rstrip(".") + "s"
    return str(value)


def _shown(setting: Setting, value: object) -> str:
    """A value for people: one printable line, secrets masked."""
    if setting.secret and value is not None:
        return "(set, not shown)"
    text = _plain(setting.kind, value)
    return text if text.isprintable() else ascii(text)


SETTINGS: Mapping[str, Setting] = _declarations()


# ----------------------------------------------------------------------------------------------- reading them


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
                        f"log_level: {source} is {_quoted(text)}, which is no known level, so INFO is used; "
                        f"to choose one, set {setting.variable} to {setting.kind.accepts}"
                    )
                else:
                    shown = "no usable token (not shown)" if setting.secret and text.strip() else _quoted(text)
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
        self.values[name] = default(_Known(self.environ, self.values)) if callable(default) else default
        self.sources[name] = "default"

    def find(self, setting: Setting) -> tuple[str | None, str]:
        if setting.name in self.flags:
            return self.flags[setting.name], f"flag {setting.flag}"
        value = self.environ.get(setting.variable)
        if value is not None:
            if setting.kind is PORT and _SERVICE_LINK_VALUE.match(value):
                self.warnings.append(
                    f"{setting.name}: environment {setting.variable} is {_quoted(value)}, which Kubernetes "
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
        from .base64_reader import decoded_text  # most services have files in the place of variables

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
                self.problem("service_definition", source, f"is {_quoted(path)}; there is no such file")
        except OSError as error:
            text = None
            source = self.sources["service_definition"]
            self.problem("service_definition", source, f"is {_quoted(path)}; {_why_unreadable(error)}")

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
                f"{source}: script {_quoted(script_path)} is ignored, as a variable has no file beside it; "
                "set SCRIPT or WATCHDOG_SCRIPT_PATH"
            )
        return parsed.service

    def read_storages(self, service: ServiceDefinition | None) -> Storages:
        if service is None:
            return Storages()
        storages, problems, warnings = providers.read(service, self.values["secrets_dir"])
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
        from .shell_syntax import advice_on_shell_syntax  # most functions are scripts and need not wait for it

        if (advice := advice_on_shell_syntax(command)) is not None:
            self.warnings.append(f"fprocess: {self.sources['fprocess']} {advice}")
        for spelling in self.spellings.get("mode", ()):
            if self.environ[spelling] in _MODES_WITHOUT_STDIN:
                self.warnings.append(
                    f"environment {spelling} is {_quoted(self.environ[spelling])}, a mode of of-watchdog that is not "
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
                    f"is {_quoted(self.environ[spelling])}; accepted is false, as tokens of OpenFaaS's gateway are not "
                    "checked here: unset it, and set WATCHDOG_AUTH_TOKEN_FILE for a token of this server's own",
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
                f"fprocess: {self.sources['fprocess']} is {_quoted(self.values['fprocess'])}, which is the function, "
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
        self.problem("tmp_dir", source, f"is {_quoted(path)}, which {wrong} in WATCHDOG_TMP_DIR")

    def read_token_file(self) -> None:
        path = self.values["auth_token_file"]
        if path is None:
            return
        source = self.sources["auth_token_file"]
        if self.find(SETTINGS["auth_token"])[0] is not None:
            self.problem("auth_token_file", source, f"is {_quoted(path)}, but auth_token is set too; give one of them")
            return
        try:
            content = small_file(path, _TOKEN_FILE_MOST_BYTES)
        except OSError as error:
            self.problem("auth_token_file", source, f"is {_quoted(path)}; {_why_unreadable(error)}")
            return
        try:
            self.values["auth_token"] = _parse_token(content.decode("ascii"))
            self.sources["auth_token"] = f"auth_token_file {path}"
        except ValueError:
            found = "holds no usable token (not shown)" if content.strip() else "is empty"
            self.problem("auth_token_file", source, f"is {_quoted(path)}, which {found}; accepted is {TOKEN.accepts}")

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
            self.warnings.append(f"environment {_line(name)} is not known, ignored{_nearest(name.upper(), known)}")


def _nearest(name: str, known: Iterable[str]) -> str:
    import difflib  # only a misspelt variable needs it

    nearest = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.0)
    return f"; the nearest name is {nearest[0]}"


def _quoted(value: str) -> str:
    """A value in a line of text: printable, and short enough to read."""
    return repr(value) if len(value) <= 200 else repr(value[:200]) + " and more"


def _line(text: str) -> str:
    return text if text.isprintable() else ascii(text)


def _why_unreadable(error: OSError) -> str:
    if isinstance(error, IsADirectoryError):
        return "it is a directory (docker makes one when the file to mount does not exist); give a file"
    if isinstance(error, PermissionError):
        return f"user {os.geteuid()} may not read it; allow that (chmod, or a mount's mode)"
    return f"it cannot be read: {error.strerror}"


# ----------------------------------------------------------------------------------------------- telling them


def script_problems(configuration: Configuration) -> list[str]:
    """What keeps the script from being read now. Does not stop a start: the script may be given later.

    Return nothing if the setting that names the script could not be read, because the script is not known then.
    """
    if configuration.script_text is not None or configuration.settings.fprocess is not None:
        return []
    if configuration.unread & {"SCRIPT", "fprocess", "script_path"}:
        return []
    is_defined = configuration.service is not None or not configuration.unread & {
        "service_definition",
        "FUNCTION_CONFIG",
    }
    if configuration.sources["script_path"] == "default" and not is_defined:
        return []
    path = configuration.settings.script_path
    source = configuration.sources["script_path"]
    prefix = f"script_path: {source} is {_quoted(path)}; "
    try:
        # Without O_NONBLOCK a FIFO would keep us waiting.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return [prefix + "there is no such file; mount the script there, or set SCRIPT to base64 of its text"]
    except OSError as error:
        return [prefix + _why_unreadable(error)]
    try:
        mode = os.fstat(descriptor).st_mode
    finally:
        os.close(descriptor)
    if stat.S_ISDIR(mode):
        return [prefix + _why_unreadable(IsADirectoryError())]
    if not stat.S_ISREG(mode):
        return [prefix + "it is no regular file; give a file"]
    return []


def report(configuration: Configuration, problems: Sequence[str] | None = None) -> str:
    """The text of ``watchdog check``: each setting, its value and source; then problems, then warnings.

    ``problems``: the list to show in place of ``configuration.problems``, for a caller that found more.
    Secrets are masked, and whatever is in a value, the text can be printed.
    """
    rows = [("setting", "value", "from")]
    for name, setting in SETTINGS.items():
        value = getattr(configuration.settings, setting.attribute)
        rows.append((name, _shown(setting, value), _line(configuration.sources[name])))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"{name:{widths[0]}}  {value:{widths[1]}}  {source}" for name, value, source in rows]

    lines.append("")
    if configuration.settings.fprocess is not None:
        lines.append(f"classic function: {_line(configuration.settings.fprocess)}")
    elif configuration.script_text is not None:
        lines.append(f"script: environment SCRIPT, {len(configuration.script_text)} bytes")
    else:
        lines.append(f"script: {_line(configuration.settings.script_path)}")
    service = configuration.service
    if service is None:
        lines.append("service definition: none")
    else:
        lines.append(f"service definition: {_line(service.name) or 'without a name'}")
        for title, names in (
            ("variables", list(service.variables)),
            ("input", [f"{entry.storage_provider}:{entry.path}" for entry in service.inputs]),
            ("output", [f"{entry.storage_provider}:{entry.path}" for entry in service.outputs]),
            ("storage providers", [str(provider) for provider in configuration.storages.providers.values()]),
            ("not usable", [f"{name} ({reason})" for name, reason in configuration.storages.unusable.items()]),
        ):
            if names:
                lines.append(f"  {title}: {_line(', '.join(names))}")
    if configuration.ignored_names:
        lines.append(f"accepted without effect: {_line(', '.join(configuration.ignored_names))}")

    for title, found in (
        ("problems", configuration.problems if problems is None else problems),
        ("warnings", configuration.warnings),
    ):
        lines += ["", f"{title}:"] if found else ["", f"{title}: none"]
        lines += [f"  {_line(line)}" for line in found]
    return "\n".join(lines)


def settings_table() -> str:
    """The README's table, in Markdown."""
    lines = ["| name | default | meaning | environment |", "|---|---|---|---|"]
    for setting in SETTINGS.values():
        variables = f"`{setting.variable}`" + (f", `{setting.name}`" if setting.bare else "")
        lines.append(f"| `{setting.name}` | {setting.default_text} | {setting.help} | {variables} |")
    return "\n".join(lines) + "\n"


class FlagSpec(NamedTuple):
    """One flag. ``name``: the setting's, and the key in ``load``'s ``flags``; the flag has dashes in it."""

    name: str
    help: str
    metavar: str
    default: str


def flag_specs() -> list[FlagSpec]:
    """A flag for each setting, in the README's order; none for a secret, which every process could read (``ps``)."""
    return [FlagSpec(s.name, s.help, s.kind.metavar, s.default_text) for s in SETTINGS.values() if not s.secret]


def secret_names() -> list[str]:
    """The settings that have no flag."""
    return [s.name for s in SETTINGS.values() if s.secret]
