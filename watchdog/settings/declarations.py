"""Declare the settings, each once."""

from __future__ import annotations

import os
from collections.abc import Mapping
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
    PATH,
    PORT,
    SIZE,
    TOKEN,
    TRUTH,
    Kind,
)

# What `watchdog health` calls itself: a container engine runs it, and sends nobody elsewhere when it fails, so that
# the server does not count it as a probe.
LOCAL_PROBE = "watchdog-health"
DEFAULT_SCRIPT_PATH = "/oscar/config/script.sh"
DEFAULT_SERVICE_DEFINITION = "/oscar/config/function_config.yaml"
# Where OSCAR mounts the keys of a user's MinIO into jobs (`pkg/handlers/job.go`).
DEFAULT_SECRETS_DIR = "/var/run/secrets/providers"


class Known(NamedTuple):
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


def _default_max_inflight(known: Known) -> int:
    return usable_cpus(Cgroup())


def _default_max_queue(known: Known) -> int:
    return 10 * int(known.values["max_inflight"])


def _default_tmp_dir(known: Known) -> str:
    return os.path.abspath(known.environ.get("TMPDIR") or "/tmp")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Every setting, checked. Durations are in seconds, sizes in bytes; 0 means none where the help says so.

    The order is that of the docs, and a computed default may use what stands above it.
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
    """A value as a user would write it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    if kind is DURATION:
        return f"{value:.9f}".rstrip("0").rstrip(".") + "s"
    return str(value)


def shown_value(setting: Setting, value: object) -> str:
    """A value for people: one printable line, secrets masked."""
    if setting.secret and value is not None:
        return "(set, not shown)"
    text = _plain(setting.kind, value)
    return text if text.isprintable() else ascii(text)


SETTINGS: Mapping[str, Setting] = _declarations()


def secret_names() -> list[str]:
    """The settings that have no flag."""
    return [s.name for s in SETTINGS.values() if s.secret]
