"""Declare the settings, each once.

Unlike the other modules, this one does not keep annotations as text: ``SETTINGS`` is made from the annotations of
``Settings``, and each text would have to be compiled at every start.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple, get_args, get_type_hints

import msgspec

from ..system.cgroup import Cgroup
from .kinds import (
    ADDRESS,
    COMMAND,
    COUNT,
    DIRECTORY,
    DURATION,
    LEVEL,
    LOG_FORMAT,
    MEDIA_TYPE,
    ORIGINS,
    PATH,
    PORT,
    POSITIVE_DURATION,
    SIZE,
    TOKEN,
    TRUTH,
    Kind,
)

# The User-Agent of `watchdog health`, which container engines run. The server does not note its request as a probe of a
# platform. If a probe fails, a platform sends calls to another server, but a container engine does not.
LOCAL_PROBE = "watchdog-health"
DEFAULT_SCRIPT_PATH = "/oscar/config/script.sh"
DEFAULT_SERVICE_DEFINITION = "/oscar/config/function_config.yaml"
# Where OSCAR mounts the keys of a user's MinIO into jobs (`pkg/handlers/job.go`).
DEFAULT_SECRETS_DIR = "/var/run/secrets/providers"


class Known(NamedTuple):
    """The values that the computation of a default may use. ``values``: the settings that are declared before it."""

    environ: Mapping[str, str]
    values: Mapping[str, Any]


class Setting(NamedTuple):
    """The declaration of one setting. Users write ``name``. The program reads the field ``attribute``."""

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
    """Return how many CPUs this process may use, at least 1.

    This is the number of CPUs in its affinity, or its CPU quota rounded down, whichever is smaller.
    """
    quota = cgroup.cpu_quota()
    affinity = len(os.sched_getaffinity(0))
    return max(1, affinity if quota is None else min(affinity, int(quota)))


def _default_max_inflight(known: Known) -> int:
    return int(known.values["warm"]) or usable_cpus(Cgroup())


def _default_max_queue(known: Known) -> int:
    return 10 * _places(known.values["max_inflight"], known.values["warm"])


def _places(max_inflight: int, warm: int) -> int:
    """Return how many calls may run at the same time; 0 means no limit. A worker serves one at a time."""
    return min(max_inflight or warm, warm) if warm else max_inflight


def _default_tmp_dir(known: Known) -> str:
    return os.path.abspath(known.environ.get("TMPDIR") or "/tmp")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The checked values of all settings. Durations are in seconds, sizes in bytes.

    The order is that of the docs. A computed default may use the settings that are declared above it.
    """

    port: Annotated[int, Declared("port to listen on", PORT, 8080, bare=True)]
    bind: Annotated[str | None, Declared("address to listen on", ADDRESS, default_text="all interfaces, IPv4 and IPv6")]
    script_path: Annotated[
        str,
        Declared(
            "file of the script; if SCRIPT is set (base64 of the script's text), SCRIPT is used",
            PATH,
            DEFAULT_SCRIPT_PATH,
        ),
    ]
    service_definition: Annotated[
        str,
        Declared(
            "file of the service definition; the file at the default place may be missing",
            PATH,
            DEFAULT_SERVICE_DEFINITION,
        ),
    ]
    fprocess: Annotated[
        str | None,
        Declared(
            "command of a classic function: it gets the body on stdin, and its stdout is the answer", COMMAND, bare=True
        ),
    ]
    content_type: Annotated[
        str | None,
        Declared(
            "content type of the answers of a classic function",
            MEDIA_TYPE,
            default_text="the content type of the request, or else application/octet-stream",
            bare=True,
        ),
    ]
    combine_output: Annotated[
        bool,
        Declared("put the stderr of a classic function into its answer, not into the log", TRUTH, False, bare=True),
    ]
    log_level: Annotated[
        str,
        Declared(
            "lowest level in the log (NOTSET, DEBUG, INFO, WARNING, ERROR, CRITICAL), also for the lines of scripts",
            LEVEL,
            "INFO",
            bare=True,
        ),
    ]
    log_format: Annotated[
        str,
        Declared("json, console (coloured text), or auto: console on a terminal, json elsewhere", LOG_FORMAT, "auto"),
    ]
    max_log_rate_bytes: Annotated[
        int,
        Declared(
            "how many bytes per second the lines of one call may take in the log; further lines are dropped and "
            "counted; 0 means no limit",
            SIZE,
            10 * 1024 * 1024,
            default_text="10Mi",
        ),
    ]
    warm: Annotated[
        int,
        Declared(
            "number of workers: processes of the script that stay alive and serve many calls; 0 starts the script "
            "for each call",
            COUNT,
            0,
        ),
    ]
    warm_start_timeout_s: Annotated[
        float,
        Declared(
            "longest time that a worker may take to load, until it writes `ready`; 0 means no limit", DURATION, 300.0
        ),
    ]
    warm_max_calls: Annotated[
        int, Declared("a worker is replaced after this number of calls; 0 means no limit", COUNT, 0)
    ]
    warm_max_memory_bytes: Annotated[
        int,
        Declared(
            "a worker is replaced if its processes have more memory than this after a call; 0 means no limit", SIZE, 0
        ),
    ]
    max_inflight: Annotated[
        int,
        Declared(
            "how many invocations may run at the same time; 0 means no limit; for a warm function, never more than "
            "warm",
            COUNT,
            _default_max_inflight,
            default_text="the value of warm if it is set, or else the number of usable CPUs (at least 1)",
            bare=True,
        ),
    ]
    max_queue: Annotated[
        int,
        Declared(
            "how many calls may wait in the queue; further calls are answered 429",
            COUNT,
            _default_max_queue,
            default_text="10 x max_inflight; for a warm function, 10 x the number of workers",
        ),
    ]
    queue_timeout_s: Annotated[
        float,
        Declared(
            "longest time that a call waits in the queue; then it is answered 429; with 0, no call waits",
            DURATION,
            60.0,
        ),
    ]
    exec_timeout_s: Annotated[
        float,
        Declared(
            "longest time that the script may run; 0 means no limit; a caller can set a shorter time with X-Timeout",
            DURATION,
            0.0,
            bare=True,
        ),
    ]
    linger_timeout_s: Annotated[
        float,
        Declared(
            "how long processes that a script left may continue to work after its exit; with 0 they are ended at once",
            DURATION,
            5.0,
        ),
    ]
    kill_grace_s: Annotated[float, Declared("time between SIGTERM and SIGKILL", DURATION, 5.0)]
    read_timeout_s: Annotated[
        float,
        Declared(
            "longest time until the headers of a request are complete, and longest pause in its body; 0 means no limit",
            DURATION,
            30.0,
            bare=True,
        ),
    ]
    write_timeout_s: Annotated[
        float,
        Declared(
            "how long the server waits for a caller that reads no byte of its answer; also how long running scripts "
            "may continue when the server stops; 0 means no limit for both",
            DURATION,
            15.0,
            bare=True,
        ),
    ]
    min_data_rate_bytes: Annotated[
        int,
        Declared(
            "lowest rate of a body or an answer in bytes per second, on average over read_timeout or write_timeout (at "
            "least 5s); slower transfers are ended; 0 means no minimum; bodies also have no minimum if read_timeout is "
            "0, and answers if write_timeout is 0",
            SIZE,
            240,
        ),
    ]
    healthcheck_interval_s: Annotated[
        float,
        Declared(
            "how long a stopping server still accepts calls, so that the platform has time to notice the stop; if this "
            "is not set, the server waits only if it runs on Kubernetes or was probed shortly before",
            DURATION,
            5.0,
            bare=True,
        ),
    ]
    max_input_size_bytes: Annotated[int, Declared("largest input after decoding; 0 means no limit", SIZE, 0)]
    max_output_size_bytes: Annotated[
        int, Declared("largest total size of the output files, or of stdout; 0 means no limit", SIZE, 0)
    ]
    tmp_dir: Annotated[
        str,
        Declared("directory for the files of the calls", DIRECTORY, _default_tmp_dir, default_text="$TMPDIR or /tmp"),
    ]
    storage_timeout_s: Annotated[
        float,
        Declared(
            "how long the program waits for the next byte from a storage, and how long it retries a failed transfer; "
            "must be more than 0",
            POSITIVE_DURATION,
            60.0,
        ),
    ]
    secrets_dir: Annotated[
        str,
        Declared(
            "directory into which the platform mounts credentials: minio.ID/accessKey and minio.ID/secretKey",
            PATH,
            DEFAULT_SECRETS_DIR,
        ),
    ]
    suppress_lock: Annotated[bool, Declared("do not write the lock file", TRUTH, False, bare=True)]
    metrics_port: Annotated[int, Declared("port of the metrics for Prometheus; 0 turns them off", PORT, 8081)]
    auth_token: Annotated[
        str | None,
        Declared(
            "bearer token that each call must have; this setting has no flag",
            TOKEN,
            secret=True,
        ),
    ]
    auth_token_file: Annotated[str | None, Declared("file with the bearer token that each call must have", PATH)]
    auth_all: Annotated[
        bool,
        Declared("/metrics and /_/openapi.json also need the token; health and readiness never need it", TRUTH, False),
    ]
    cors_origins: Annotated[
        Sequence[str],
        Declared("origins of the web pages that may call the function, separated by commas; * allows all", ORIGINS, ()),
    ]
    cgi_headers: Annotated[
        bool, Declared("give the script the request headers and the query as Http_* variables", TRUTH, True, bare=True)
    ]
    page: Annotated[
        bool,
        Declared(
            "serve a page at /_/try with which a person calls the function from a browser",
            TRUTH,
            True,
        ),
    ]
    error_status: Annotated[
        bool,
        Declared(
            "false: the status is 200 for every exit code of the script, as with faas-supervisor",
            TRUTH,
            True,
        ),
    ]

    @property
    def places(self) -> int:
        """The largest number of calls that run at the same time; 0 means no limit."""
        return _places(self.max_inflight, self.warm)

    def __repr__(self) -> str:
        """Return the settings without the token, because a repr may get into logs."""
        fields = (f"{s.attribute}={shown_value(s, getattr(self, s.attribute))}" for s in SETTINGS.values())
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
    """Return a value as a user would write it."""
    if value is None or value == ():
        return "-"
    if isinstance(value, tuple):
        return ", ".join(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if kind.unit == DURATION.unit:
        return f"{value:.9f}".rstrip("0").rstrip(".") + "s"
    return str(value)


def shown_value(setting: Setting, value: object) -> str:
    """Return a value as one printable line, with secrets masked."""
    if setting.secret and value is not None:
        return "(set, not shown)"
    text = _plain(setting.kind, value)
    return text if text.isprintable() else ascii(text)


SETTINGS: Mapping[str, Setting] = _declarations()


def settings_with_flags() -> list[Setting]:
    """Return all settings except secrets, because every process can read a command line (``ps``)."""
    return [setting for setting in SETTINGS.values() if not setting.secret]
