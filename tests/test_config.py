from __future__ import annotations

import base64
import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watchdog.errors import ConfigError
from watchdog.settings import declarations, report
from watchdog.settings import load as load_module
from watchdog.settings.kinds import parse_duration_s, parse_size_bytes
from watchdog.settings.load import Configuration, load
from watchdog.system.cgroup import Cgroup


def b64(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


def valid(flags: dict[str, str] | None = None, /, **environ: str) -> Configuration:
    return load_module.require_valid(load(environ, flags or {}))


def value(name: str, flags: dict[str, str] | None = None, /, **environ: str) -> Any:
    return getattr(valid(flags, **environ).settings, declarations.SETTINGS[name].attribute)


def only_problem(flags: dict[str, str] | None = None, /, **environ: str) -> str:
    configuration = load(environ, flags or {})
    assert len(configuration.problems) == 1, configuration.problems
    return configuration.problems[0]


def only_warning(**environ: str) -> str:
    configuration = valid(**environ)
    assert len(configuration.warnings) == 1, configuration.warnings
    return configuration.warnings[0]


# Defaults and precedence


def test_defaults() -> None:
    configuration = valid()
    settings = configuration.settings
    cpus = declarations.usable_cpus(Cgroup())
    assert {name: getattr(settings, declared.attribute) for name, declared in declarations.SETTINGS.items()} == {
        "port": 8080,
        "bind": None,
        "script_path": "/oscar/config/script.sh",
        "service_definition": "/oscar/config/function_config.yaml",
        "fprocess": None,
        "content_type": None,
        "combine_output": False,
        "log_level": "INFO",
        "log_format": "auto",
        "max_log_rate": 10 * 1024 * 1024,
        "warm": 0,
        "warm_start_timeout": 300.0,
        "warm_max_calls": 0,
        "warm_max_memory": 0,
        "max_inflight": cpus,
        "max_queue": 10 * cpus,
        "queue_timeout": 60,
        "exec_timeout": 0,
        "linger_timeout": 5,
        "kill_grace": 5,
        "read_timeout": 30,
        "write_timeout": 15,
        "min_data_rate": 240,
        "healthcheck_interval": 5,
        "max_input_size": 0,
        "max_output_size": 0,
        "tmp_dir": "/tmp",
        "storage_timeout": 60,
        "secrets_dir": "/var/run/secrets/providers",
        "suppress_lock": False,
        "metrics_port": 8081,
        "auth_token": None,
        "auth_token_file": None,
        "auth_all": False,
        "cors_origins": (),
        "cgi_headers": True,
        "page": True,
        "error_status": True,
    }
    assert set(map(str, configuration.sources.values())) == {"default"}
    assert configuration.service is None
    assert configuration.script_text is None
    assert configuration.warnings == []
    assert configuration.ignored_names == []


def test_units_are_in_the_attributes_names() -> None:
    assert declarations.SETTINGS["kill_grace"].attribute == "kill_grace_s"
    assert declarations.SETTINGS["max_input_size"].attribute == "max_input_size_bytes"
    assert declarations.SETTINGS["max_queue"].attribute == "max_queue"


def test_precedence(tmp_path: Path) -> None:
    definition = tmp_path / "fdl.yaml"
    definition.write_text("name: x\nlog_level: error\n")
    environ = {"WATCHDOG_SERVICE_DEFINITION": str(definition)}

    def level_and_source(flags: dict[str, str]) -> tuple[str, str]:
        configuration = valid(flags, **environ)
        return configuration.settings.log_level, str(configuration.sources["log_level"])

    assert level_and_source({}) == ("ERROR", f"service definition {definition}")
    environ["LOG_LEVEL"] = "debug"
    assert level_and_source({}) == ("DEBUG", "environment LOG_LEVEL")
    environ["WATCHDOG_LOG_LEVEL"] = "critical"
    assert level_and_source({}) == ("CRITICAL", "environment WATCHDOG_LOG_LEVEL")
    assert level_and_source({"log_level": "notset"}) == ("NOTSET", "flag --log-level")


def test_only_the_value_that_wins_is_checked() -> None:
    assert value("port", {"port": "1"}, WATCHDOG_PORT="bad", PORT="worse") == 1


@pytest.mark.parametrize("text", ["0", "0s", "0.0ms"])
def test_storages_need_some_time(text: str) -> None:
    """With a time limit of 0, each transfer would fail at once."""
    assert only_problem(WATCHDOG_STORAGE_TIMEOUT=text) == (
        f"storage_timeout: environment WATCHDOG_STORAGE_TIMEOUT is '{text}'; expected more than 0: seconds like 90 or "
        "1.5, or a duration like 1m30s or 500ms, at most 1000000000s"
    )
    assert value("storage_timeout", WATCHDOG_STORAGE_TIMEOUT="1ms") == 0.001


@pytest.mark.parametrize("spelling", ["exec_timeout", "EXEC_TIMEOUT", "Exec_Timeout"])
def test_bare_names_in_upper_and_lower_case(spelling: str) -> None:
    assert value("exec_timeout", **{spelling: "7"}) == 7


def test_lower_case_spelling_comes_first() -> None:
    assert value("port", PORT="1", port="2", Port="3") == 2
    assert value("port", PORT="1", Port="3") == 1


@pytest.mark.parametrize("name", ["max_queue", "MAX_QUEUE", "AUTH_TOKEN", "TMP_DIR", "BIND", "watchdog_max_queue"])
def test_other_bare_names_belong_to_the_functions_author(name: str) -> None:
    assert set(map(str, valid(**{name: "1"}).sources.values())) == {"default"}


def test_empty_bare_variable_is_not_set() -> None:
    assert value("port", port="", PORT="5") == 5
    assert value("port", port="") == 8080


@pytest.mark.parametrize("declared", declarations.SETTINGS.values(), ids=lambda declared: declared.name)
def test_empty_variable_and_flag_are_problems(declared: declarations.Setting) -> None:
    # Settings of a classic function are checked only if there is one.
    classic = {"fprocess": "cat"} if declared.name in ("content_type", "combine_output") else {}
    problem = only_problem(**classic, **{declared.variable: ""})
    assert problem == f"{declared.name}: environment {declared.variable} is ''; expected {declared.kind.accepts}"
    assert only_problem({declared.name: " "}, **classic).startswith(f"{declared.name}: flag {declared.flag} is ' '; ")


# Every problem at once


def test_ten_broken_settings_are_all_named_in_one_go(tmp_path: Path) -> None:
    definition = tmp_path / "fdl.yaml"
    definition.write_text("name: x\ninput: oops\n")
    configuration = load(
        {
            "WATCHDOG_SERVICE_DEFINITION": str(definition),
            "PORT": "http",
            "WATCHDOG_BIND": "127.0.0.1:80",
            "max_inflight": "-1",
            "WATCHDOG_LOG_FORMAT": "xml",
            "exec_timeout": "1 hour",
            "WATCHDOG_MAX_INPUT_SIZE": "10 MB",
            "WATCHDOG_TMP_DIR": str(tmp_path / "nowhere"),
            "WATCHDOG_AUTH_TOKEN_FILE": str(tmp_path / "token"),
            "SCRIPT": "#!/bin/sh",
            "cgi_headers": "perhaps",
        },
        {"max_queue": "lots"},
    )

    expected = [
        ("service definition", str(definition), "input is text", "expected a list"),
        ("port", "environment PORT", "'http'", "a port number from 0 to 65535"),
        ("bind", "environment WATCHDOG_BIND", "'127.0.0.1:80'", "without a port"),
        ("log_format", "environment WATCHDOG_LOG_FORMAT", "'xml'", "auto, json or console"),
        ("max_inflight", "environment max_inflight", "'-1'", "a whole number from 0"),
        ("max_queue", "flag --max-queue", "'lots'", "a whole number from 0"),
        ("exec_timeout", "environment exec_timeout", "'1 hour'", "1m30s"),
        ("max_input_size", "environment WATCHDOG_MAX_INPUT_SIZE", "'10 MB'", "64Ki, 10Mi or 2G"),
        ("cgi_headers", "environment cgi_headers", "'perhaps'", "true, false"),
        ("tmp_dir", "environment WATCHDOG_TMP_DIR", str(tmp_path / "nowhere"), "is not a directory; make it"),
        ("auth_token_file", "environment WATCHDOG_AUTH_TOKEN_FILE", str(tmp_path / "token"), "No such file"),
        ("SCRIPT", "environment SCRIPT", "is not base64", "base64 -w0 script.sh"),
    ]
    assert len(configuration.problems) == len(expected)
    for problem, parts in zip(configuration.problems, expected, strict=True):
        assert problem.startswith(parts[0])
        assert all(part in problem for part in parts), problem
        assert "\n" not in problem

    with pytest.raises(ConfigError) as raised:
        load_module.require_valid(configuration)
    assert raised.value.problems == configuration.problems


def test_unknown_flag_is_a_problem() -> None:
    assert "nonsense" in only_problem({"nonsense": "1"})


@given(st.dictionaries(st.sampled_from([s.variable for s in declarations.SETTINGS.values()]), st.text(max_size=20)))
def test_load_never_raises(environ: dict[str, str]) -> None:
    configuration = load(environ, {})
    report.script_problems(configuration)
    report.report(configuration).encode()
    assert all("\n" not in line for line in configuration.problems)


# Kinds of values


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("90", 90),
        ("1.5", 1.5),
        (".5", 0.5),
        ("007", 7),
        (" 5 ", 5),
        ("+5s", 5),
        ("1m30s", 90),
        ("500ms", 0.5),
        ("700ms", 0.7),
        ("1h1m1s", 3661),
        ("1.5h", 5400),
        (".5m", 30),
        ("1.s", 1),
        ("0s", 0),
        ("100us", 0.0001),
        ("100µs", 0.0001),
        ("100μs", 0.0001),
        ("5ns", 5e-9),
        ("1s1s", 2),
        ("1000000000", 1e9),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "-1",
        "-1s",
        "1x",
        "s",
        "1m30",
        "1 m",
        "1e3",
        "nan",
        "inf",
        "1_0",
        "٣",
        "1,5",
        "5S",
        "1d",
        ".",
        ".s",
        "1000000001",
        "9" * 400,
        "300000h",
    ],
)
def test_no_durations(text: str) -> None:
    with pytest.raises(ValueError):  # the type is the contract
        parse_duration_s(text)


@given(
    st.integers(0, 1000),
    st.integers(0, 59),
    st.integers(0, 59),
    st.integers(0, 999),
    st.sampled_from(["", "+"]),
)
def test_any_go_duration(hours: int, minutes: int, seconds: int, milliseconds: int, sign: str) -> None:
    text = f"{sign}{hours}h{minutes}m{seconds}s{milliseconds}ms"
    assert parse_duration_s(text) == (hours * 3_600_000 + minutes * 60_000 + seconds * 1000 + milliseconds) / 1000


@given(st.integers(0, 10**9))
def test_any_whole_seconds(seconds: int) -> None:
    assert parse_duration_s(str(seconds)) == seconds
    assert parse_duration_s(f"{seconds}s") == seconds


@given(st.floats(0, 1e9).map(lambda seconds: round(seconds, 3)))
def test_any_decimal_seconds(seconds: float) -> None:
    assert parse_duration_s(f"{seconds:.3f}") == seconds
    assert parse_duration_s(f"{seconds:.3f}s") == pytest.approx(seconds)


@given(st.text(max_size=30))
def test_any_text_is_a_bounded_duration_or_refused(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert 0 <= parse_duration_s(text) <= 1e9


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("1048576", 1 << 20),
        ("100B", 100),
        ("64Ki", 64 << 10),
        ("64KiB", 64 << 10),
        ("10Mi", 10 << 20),
        ("1Gi", 1 << 30),
        ("2Ti", 2 << 40),
        ("5k", 5000),
        ("5K", 5000),
        ("5KB", 5000),
        ("10M", 10**7),
        ("2G", 2 * 10**9),
        ("2GB", 2 * 10**9),
        ("1T", 10**12),
        (" 7 ", 7),
        (str(2**63 - 1), 2**63 - 1),
    ],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert parse_size_bytes(text) == size_bytes


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-1",
        "+1",
        "1.5Gi",
        "1m",
        "1g",
        "1mi",
        "1KI",
        "ki",
        "B",
        "1 Ki",
        "1e3",
        "1_0",
        "٣",
        "1P",
        str(2**63),
        "9" * 5000,
        "99999999Ti",
    ],
)
def test_no_sizes(text: str) -> None:
    with pytest.raises(ValueError):  # the type is the contract
        parse_size_bytes(text)


@given(st.integers(0, 10**6), st.sampled_from("KMGT"), st.sampled_from(["", "B"]))
def test_any_size(number: int, prefix: str, b: str) -> None:
    power = "KMGT".index(prefix) + 1
    assert parse_size_bytes(f"{number}{prefix}{b}") == number * 1000**power
    assert parse_size_bytes(f"{number}{prefix}i{b}") == number * 1024**power


@given(st.text(max_size=30))
def test_any_text_is_a_bounded_size_or_refused(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert 0 <= parse_size_bytes(text) < 1 << 63


@pytest.mark.parametrize(
    ("text", "truth"),
    [
        ("true", True),
        ("1", True),
        ("YES", True),
        ("On", True),
        (" true ", True),
        ("false", False),
        ("0", False),
        ("no", False),
        ("OFF", False),
    ],
)
def test_truth(text: str, truth: bool) -> None:
    assert value("suppress_lock", suppress_lock=text) is truth


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("debug", "DEBUG"),
        ("Trace", "DEBUG"),
        ("warn", "WARNING"),
        ("FATAL", "CRITICAL"),
        ("NotSet", "NOTSET"),
    ],
)
def test_levels(text: str, level: str) -> None:
    assert value("log_level", WATCHDOG_LOG_LEVEL=text) == level
    assert value("log_level", LOG_LEVEL=text) == level


@pytest.mark.parametrize("address", ["127.0.0.1", "::", "::1", "fe80::1%eth0", "localhost", "my-host.example.org"])
def test_addresses(address: str) -> None:
    assert value("bind", WATCHDOG_BIND=address) == address


def test_address_in_brackets() -> None:
    assert value("bind", WATCHDOG_BIND="[::1]") == "::1"


@pytest.mark.parametrize("address", ["localhost:80", "[::1]:80", "tcp://x", "a b", "1::2::3", "-"])
def test_no_addresses(address: str) -> None:
    assert "without a port" in only_problem(WATCHDOG_BIND=address)


@pytest.mark.parametrize("port", ["65536", "-1", "8080.0", "1_0", "٣", "9" * 5000, "0x50"])
def test_no_ports(port: str) -> None:
    problem = only_problem(PORT=port)
    assert "from 0 to 65535" in problem
    assert len(problem) < 400


# Levels that may be meant for the script


def test_unknown_bare_level_is_a_warning(tmp_path: Path) -> None:
    definition = tmp_path / "fdl.yaml"
    definition.write_text("name: x\nlog_level: ERROR\n")
    configuration = valid(LOG_LEVEL="verbose", WATCHDOG_SERVICE_DEFINITION=str(definition))
    assert configuration.settings.log_level == "INFO"
    [warning] = configuration.warnings
    assert "LOG_LEVEL is 'verbose'" in warning
    assert "WATCHDOG_LOG_LEVEL" in warning


def test_unknown_level_elsewhere_is_a_problem(tmp_path: Path) -> None:
    definition = tmp_path / "fdl.yaml"
    definition.write_text("name: x\nlog_level: verbose\n")
    assert "environment WATCHDOG_LOG_LEVEL is 'verbose'" in only_problem(WATCHDOG_LOG_LEVEL="verbose")
    assert "flag --log-level is 'verbose'" in only_problem({"log_level": "verbose"})
    assert f"service definition {definition} is 'verbose'" in only_problem(WATCHDOG_SERVICE_DEFINITION=str(definition))


# Defaults that are computed


def quota_of(tmp_path: Path, cpu_max: str) -> Cgroup:
    (tmp_path / "cpu.max").write_text(cpu_max)
    (tmp_path / "proc").write_text("0::/\n")
    return Cgroup(root=str(tmp_path), proc=str(tmp_path / "proc"))


@pytest.mark.parametrize(
    ("cpu_max", "quota"),
    [
        ("max 100000", None),
        ("50000 100000", 1),
        ("100000 100000", 1),
        ("190000 100000", 1),
        ("99900000 100000", None),
    ],
)
def test_usable_cpus(tmp_path: Path, cpu_max: str, quota: int | None) -> None:
    affinity = len(os.sched_getaffinity(0))
    assert declarations.usable_cpus(quota_of(tmp_path, cpu_max)) == (affinity if quota is None else quota)


def test_max_queue_follows_max_inflight() -> None:
    assert value("max_queue", max_inflight="3") == 30
    assert value("max_queue", max_inflight="0") == 0
    assert value("max_queue", max_inflight="3", WATCHDOG_MAX_QUEUE="0") == 0


@pytest.mark.parametrize(("max_inflight", "max_queue"), [("0", 30), ("2", 20), ("8", 30)])
def test_max_queue_of_a_warm_function_follows_the_number_of_its_workers(max_inflight: str, max_queue: int) -> None:
    assert value("max_queue", WATCHDOG_WARM="3", max_inflight=max_inflight) == max_queue


def test_tmp_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configuration = valid(TMPDIR=str(tmp_path))
    assert configuration.settings.tmp_dir == str(tmp_path)
    assert str(configuration.sources["tmp_dir"]) == "environment TMPDIR"
    assert value("tmp_dir", TMPDIR="") == "/tmp"
    assert value("tmp_dir", TMPDIR="/nowhere", WATCHDOG_TMP_DIR=str(tmp_path)) == str(tmp_path)
    assert "environment TMPDIR is '/nowhere', which is not a directory" in only_problem(TMPDIR="/nowhere")
    monkeypatch.chdir(tmp_path)
    assert value("tmp_dir", WATCHDOG_TMP_DIR=".") == str(tmp_path)


@pytest.fixture
def as_nobody() -> Iterator[None]:
    """Root may read and write everything, so the check must not run as root."""
    was_root = os.geteuid() == 0
    if was_root:
        os.seteuid(65534)
    yield
    if was_root:
        os.seteuid(0)


@pytest.mark.usefixtures("as_nobody")
def test_tmp_dir_that_cannot_be_written_to() -> None:
    problem = only_problem(WATCHDOG_TMP_DIR="/")
    assert "environment WATCHDOG_TMP_DIR is '/', which cannot be written to; mount a writable volume" in problem


def test_metrics_port_gives_way_to_port() -> None:
    configuration = valid(PORT="8081")
    assert configuration.settings.metrics_port == 0
    assert "metrics are off" in configuration.warnings[0]
    assert str(configuration.sources["metrics_port"]) == "default"


def test_metrics_port_set_to_port_is_a_problem() -> None:
    assert "flag --metrics-port is 80" in only_problem({"metrics_port": "80"}, PORT="80")
    assert valid({"metrics_port": "0", "port": "0"}).warnings == []


def test_problems_of_storage_name_the_definition(tmp_path: Path) -> None:
    definition = tmp_path / "fdl.yaml"
    definition.write_text("name: x\noutput: [{storage_provider: minio.default, path: bucket}]\n")
    problem = only_problem({"service_definition": str(definition)})
    assert problem.startswith(f"service definition {definition}: output[0].storage_provider is 'minio.default'")


def test_keys_that_the_platform_withholds_are_a_warning(tmp_path: Path) -> None:
    definition = tmp_path / "fdl.yaml"
    definition.write_text(
        "storage_providers: {minio: {default: {endpoint: 'https://minio', access_key: hidden, secret_key: hidden}}}\n"
        "output: [{storage_provider: minio.default, path: bucket}]\n"
    )
    given = {"service_definition": str(definition), "secrets_dir": str(tmp_path / "secrets")}
    (warning,) = valid(given).warnings
    assert "output minio.default:bucket: the platform withholds the keys" in warning
    assert "calls are answered as usual" in warning
    keys = tmp_path / "secrets" / "minio.default"
    keys.mkdir(parents=True)
    (keys / "accessKey").write_text("a")
    (keys / "secretKey").write_text("b")
    assert valid(given).warnings == []


def test_outputs_of_a_classic_function_are_not_stored_and_this_is_reported(tmp_path: Path) -> None:
    definition = tmp_path / "fdl.yaml"
    definition.write_text(
        "storage_providers: {s3: {default: {access_key: a, secret_key: b}}}\n"
        "output: [{storage_provider: s3, path: bucket}]\n"
    )
    configuration = valid({"service_definition": str(definition)}, fprocess="cat")
    (warning,) = configuration.warnings
    assert "output has no effect with fprocess" in warning
    assert configuration.storages.outputs == []


# Names of other programs


@pytest.mark.parametrize(
    "command", ["/oscar/bin/supervisor", "supervisor", "/oscar/bin/alpine/supervisor", "supervisor x"]
)
def test_oscars_fprocess_has_no_effect(command: str) -> None:
    configuration = valid(fprocess=command, write_debug="true", COMBINE_OUTPUT="true")
    assert configuration.settings.fprocess is None
    assert configuration.ignored_names == ["fprocess", "COMBINE_OUTPUT", "write_debug"]
    assert configuration.warnings == []


@pytest.mark.parametrize("command", ["cat", "/bin/my-supervisor", "python supervisor", """sh -c 'cat; echo "x y"'"""])
def test_a_command_of_its_own_is_the_function(command: str) -> None:
    configuration = valid(fprocess=command, content_type="text/plain; charset=utf-8", combine_output="true")
    assert configuration.settings.fprocess == command
    assert configuration.settings.content_type == "text/plain; charset=utf-8"
    assert configuration.settings.combine_output
    assert (configuration.ignored_names, configuration.warnings) == ([], [])


@pytest.mark.parametrize("command", ["sh -c 'cat", '""\\'])
def test_a_command_that_no_shell_understands_is_a_problem(command: str) -> None:
    assert "expected a command and its arguments" in only_problem(fprocess=command)


@pytest.mark.parametrize("value", ["plain", "text/plain\nX-A: b", "text/"])
def test_a_wrong_media_type_is_a_problem_only_for_classic_functions(value: str) -> None:
    assert "expected a media type" in only_problem(fprocess="cat", content_type=value)
    assert valid(content_type=value).ignored_names == ["content_type"]


def test_a_script_beside_a_classic_function_is_reported() -> None:
    assert "the script of environment SCRIPT is never run" in valid(fprocess="cat", SCRIPT="Zm9v").warnings[0]


@pytest.mark.parametrize(("mode", "told"), [("http", True), ("static", True), ("streaming", False), ("x", False)])
def test_a_mode_of_of_watchdog_without_stdin_is_reported(mode: str, told: bool) -> None:
    warnings = valid(fprocess="cat", mode=mode).warnings
    assert [("a mode of of-watchdog that is not offered" in warning) for warning in warnings] == [True] * told
    assert valid(mode=mode).warnings == []


def test_variables_that_oscar_sets_are_not_problems() -> None:
    configuration = valid(
        fprocess="/oscar/bin/supervisor",
        max_inflight="1",
        write_debug="true",
        exec_timeout="0",
        read_timeout="300",
        write_timeout="300",
        healthcheck_interval="5",
    )
    assert configuration.warnings == []
    assert configuration.settings.max_inflight == 1
    assert configuration.settings.read_timeout_s == 300


def test_unknown_name_of_ours_is_a_warning_with_the_nearest_name() -> None:
    warning = only_warning(WATCHDOG_AUTHTOKEN="hunter2")
    assert "WATCHDOG_AUTHTOKEN" in warning
    assert "WATCHDOG_AUTH_TOKEN" in warning
    assert "hunter2" not in warning
    assert "WATCHDOG_MAX_QUEUE" in only_warning(watchdog_max_queue="3")


def test_kubernetes_service_links() -> None:
    configuration = valid(
        WATCHDOG_SERVICE_HOST="10.0.0.1",
        WATCHDOG_SERVICE_PORT="80",
        WATCHDOG_SERVICE_PORT_HTTP="80",
        WATCHDOG_PORT="tcp://10.0.0.1:80",
        WATCHDOG_PORT_80_TCP="tcp://10.0.0.1:80",
        WATCHDOG_PORT_80_TCP_PROTO="tcp",
        WATCHDOG_PORT_80_TCP_PORT="80",
        WATCHDOG_PORT_80_TCP_ADDR="10.0.0.1",
        WATCHDOG_TEST_SERVICE_HOST="10.0.0.1",
        WATCHDOG_TEST_PORT="udp://10.0.0.1:80",
        WATCHDOG_TEST_PORT_53_UDP="udp://10.0.0.1:53",
        PORT="9000",
    )
    assert configuration.settings.port == 9000
    assert str(configuration.sources["port"]) == "environment PORT"
    [warning] = configuration.warnings
    assert warning.startswith("port: environment WATCHDOG_PORT is 'tcp://10.0.0.1:80'")
    assert "enableServiceLinks" in warning


def test_systemd_names_are_fine() -> None:
    assert valid(WATCHDOG_USEC="30000000", WATCHDOG_PID="1").warnings == []


# Secrets


def test_auth_token() -> None:
    assert value("auth_token", WATCHDOG_AUTH_TOKEN=" s3cret\n") == "s3cret"
    assert valid().secret_names == {"WATCHDOG_AUTH_TOKEN"}


def test_auth_token_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("s3cret\n")
    configuration = valid(WATCHDOG_AUTH_TOKEN_FILE=str(file))
    assert configuration.settings.auth_token == "s3cret"
    assert str(configuration.sources["auth_token"]) == f"auth_token_file {file}"


@pytest.mark.parametrize("content", [b"", b" \n", b"hunter2 two words", b"hunter2\xff", b"hunter2\0", b"a" * 70000])
def test_no_usable_token_in_the_file(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    problem = only_problem(WATCHDOG_AUTH_TOKEN_FILE=str(file))
    assert f"is '{file}'" in problem
    assert "hunter2" not in problem


def test_auth_token_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert "it is a directory" in only_problem(WATCHDOG_AUTH_TOKEN_FILE=str(tmp_path))


def test_both_tokens(tmp_path: Path) -> None:
    assert "set only one" in only_problem({"auth_token_file": "/x"}, WATCHDOG_AUTH_TOKEN="a")


def test_secrets_are_never_shown(tmp_path: Path) -> None:
    environ = {
        "WATCHDOG_AUTH_TOKEN": "hunter2",
        "FUNCTION_CONFIG": b64("name: x\nstorage_providers: {s3: {a: {secret_key: hunter2}}}"),
        "SCRIPT": b64("PASSWORD=hunter2"),
    }
    configuration = load(environ, {})
    assert configuration.problems == []
    assert "hunter2" not in repr(configuration) + report.report(configuration) + repr(configuration.settings)
    bad = load({"WATCHDOG_AUTH_TOKEN": "hunter2 \xff", "SCRIPT": "hunter2!", "FUNCTION_CONFIG": "hunter2!"}, {})
    assert len(bad.problems) == 3
    assert "hunter2" not in repr(bad) + report.report(bad)


# The script


@pytest.mark.parametrize(
    "text",
    [
        b64("#!/bin/sh\necho hello\n"),
        base64.encodebytes(b"#!/bin/sh\necho hello\n").decode(),
        b64("#!/bin/sh\necho hello\n").rstrip("="),
    ],
)
def test_script_in_the_environment(text: str) -> None:
    configuration = valid(SCRIPT=text)
    assert configuration.script_text == b"#!/bin/sh\necho hello\n"
    assert report.script_problems(configuration) == []


def test_script_in_url_safe_base64() -> None:
    assert valid(SCRIPT=base64.urlsafe_b64encode(b"\xfb\xff\xfe").decode()).script_text == b"\xfb\xff\xfe"


@pytest.mark.parametrize("text", ["#!/bin/sh", "YWJj*", "YWJjA", "YW=Jj", "é", "ab+/ab-_", "QUJ"])
def test_script_that_is_not_base64(text: str) -> None:
    assert "base64 -w0 script.sh" in only_problem(SCRIPT=text)


def test_empty_script_is_not_set() -> None:
    assert valid(SCRIPT="").script_text is None


def script_problem(path: Path) -> str:
    [problem] = report.script_problems(valid(WATCHDOG_SCRIPT_PATH=str(path)))
    assert problem.startswith(f"script_path: environment WATCHDOG_SCRIPT_PATH is '{path}'; ")
    return problem


def test_script_problems(tmp_path: Path) -> None:
    assert "set SCRIPT to base64" in script_problem(tmp_path / "nowhere")
    assert "it is a directory" in script_problem(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    assert "not a regular file" in script_problem(tmp_path / "fifo")
    script = tmp_path / "script.sh"
    script.write_text("echo hello")
    assert report.script_problems(valid(WATCHDOG_SCRIPT_PATH=str(script))) == []


def test_unreadable_files_are_reported_with_the_user(tmp_path: Path, as_nobody: None) -> None:
    file = tmp_path / "private"
    if os.geteuid() != 65534:
        file.touch(mode=0)  # otherwise this user cannot enter the directory of pytest
    says = f"is '{file}'; user {os.geteuid()} has no permission to read it"
    assert says in only_problem(WATCHDOG_SERVICE_DEFINITION=str(file))
    assert says in only_problem(WATCHDOG_AUTH_TOKEN_FILE=str(file))
    assert says in script_problem(file)


# The service definition


def test_file_wins_over_function_config(tmp_path: Path) -> None:
    definition = tmp_path / "fdl.yaml"
    definition.write_text("name: from-file")
    service = valid(WATCHDOG_SERVICE_DEFINITION=str(definition), FUNCTION_CONFIG="!").service
    assert service is not None
    assert service.name == "from-file"


def test_function_config() -> None:
    configuration = valid(FUNCTION_CONFIG=b64("name: from-variable\nlog_level: ERROR"))
    assert configuration.service is not None
    assert configuration.service.name == "from-variable"
    assert str(configuration.sources["log_level"]) == "service definition FUNCTION_CONFIG"
    assert "FUNCTION_CONFIG" not in configuration.secret_names


@pytest.mark.parametrize("wins", ["file", "variable"])
def test_function_config_with_credentials_is_secret(tmp_path: Path, wins: str) -> None:
    environ = {"FUNCTION_CONFIG": b64("name: x\nstorage_providers: {minio: {}}")}
    if wins == "file":
        (tmp_path / "fdl.yaml").write_text("name: x")
        environ["WATCHDOG_SERVICE_DEFINITION"] = str(tmp_path / "fdl.yaml")
    assert "FUNCTION_CONFIG" in valid(**environ).secret_names


def test_bad_function_config() -> None:
    assert "base64 -w0 function_config.yaml" in only_problem(FUNCTION_CONFIG="name: x")
    assert "service definition FUNCTION_CONFIG: is not YAML: line 1" in only_problem(FUNCTION_CONFIG=b64("a: b: c"))


def test_missing_service_definition_elsewhere_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "fdl.yaml"
    problem = only_problem({"service_definition": str(path)})
    assert problem == f"service_definition: flag --service-definition is '{path}'; there is no such file"
    assert "it is a directory" in only_problem({"service_definition": str(tmp_path)})
    assert valid({"service_definition": declarations.DEFAULT_SERVICE_DEFINITION}).service is None


def test_script_beside_a_whole_document(tmp_path: Path) -> None:
    definition = tmp_path / "fdl.yaml"
    definition.write_text("functions: {oscar: [{c: {name: x, script: plants.sh}}]}")
    flags = {"service_definition": str(definition)}
    configuration = valid(flags)
    assert configuration.settings.script_path == str(tmp_path / "plants.sh")
    assert str(configuration.sources["script_path"]) == f"service definition {definition}"
    assert value("script_path", flags, WATCHDOG_SCRIPT_PATH="/x") == "/x"


def test_script_of_a_document_in_a_variable() -> None:
    def document(script: str) -> str:
        return b64(f"functions: {{oscar: [{{c: {{name: x, script: {script}}}}}]}}")

    assert value("script_path", FUNCTION_CONFIG=document("/a/b.sh")) == "/a/b.sh"
    configuration = valid(FUNCTION_CONFIG=document("b.sh"))
    assert configuration.settings.script_path == declarations.DEFAULT_SCRIPT_PATH
    assert "'b.sh' is ignored" in configuration.warnings[0]


def test_script_text_of_a_flat_object_is_not_a_path() -> None:
    configuration = valid(FUNCTION_CONFIG=b64('name: x\nscript: "#!/bin/sh\\necho hello"'))
    assert configuration.settings.script_path == declarations.DEFAULT_SCRIPT_PATH


# Texts made from the declaration


def test_report(tmp_path: Path) -> None:
    configuration = load(
        {
            "WATCHDOG_AUTH_TOKEN": "hunter2",
            "WATCHDOG_MAX_QUEU": "1",
            "exec_timeout": "1m30.5s",
            "fprocess": "/oscar/bin/supervisor",
            "FUNCTION_CONFIG": b64("name: plants\ninput: [{storage_provider: minio.default, path: in}]"),
            "WATCHDOG_SCRIPT_PATH": "/a\nb\udcff",
        },
        {"port": "x"},
    )
    text = report.report(configuration)
    text.encode()

    def row(name: str) -> list[str]:
        [line] = [line for line in text.splitlines() if line.startswith(name + " ")]
        return re.split(" {2,}", line)

    assert row("exec_timeout") == ["exec_timeout", "90.5s", "environment exec_timeout"]
    assert row("auth_token") == ["auth_token", "(set, not shown)", "environment WATCHDOG_AUTH_TOKEN"]
    assert row("script_path")[1] == r"'/a\nb\udcff'"
    assert row("max_output_size") == ["max_output_size", "0", "default"]
    assert all(row(name) for name in declarations.SETTINGS)
    assert "service definition: plants" in text
    assert "minio.default:in" in text
    assert "accepted without effect: fprocess" in text
    assert text.index("problems:\n  port: flag --port is 'x'") < text.index(
        "warnings:\n  environment WATCHDOG_MAX_QUEU "
    )


def test_report_of_more_problems() -> None:
    configuration = valid()
    assert "problems: none" in report.report(configuration)
    assert "problems:\n  no script" in report.report(configuration, ["no script"])


def test_each_setting_except_the_token_has_a_flag() -> None:
    names = [setting.name for setting in declarations.settings_with_flags()]
    assert names == [name for name in declarations.SETTINGS if name != "auth_token"]


def test_a_warm_function_has_a_place_for_each_worker() -> None:
    assert value("max_inflight", WATCHDOG_WARM="3") == 3
    assert value("max_inflight", WATCHDOG_WARM="3", WATCHDOG_MAX_INFLIGHT="0") == 0


def test_a_variable_of_the_service_definition_sets_a_setting(tmp_path: Path) -> None:
    definition = tmp_path / "function_config.yaml"
    definition.write_text("name: x\nenvironment:\n  variables:\n    WATCHDOG_WARM: '2'\n    WATCHDOG_KILL_GRACE: '7'\n")
    environ = {"WATCHDOG_SERVICE_DEFINITION": str(definition)}
    assert value("warm", **environ) == 2
    assert value("kill_grace", **environ) == 7
    assert value("kill_grace", **environ, WATCHDOG_KILL_GRACE="8") == 8
    source = valid(**environ).sources["warm"]
    assert str(source) == f"service definition {definition}, variable WATCHDOG_WARM"


def test_a_wrong_variable_of_the_service_definition_is_a_problem(tmp_path: Path) -> None:
    definition = tmp_path / "function_config.yaml"
    definition.write_text("name: x\nenvironment:\n  variables:\n    WATCHDOG_WARM: many\n")
    problem = only_problem(WATCHDOG_SERVICE_DEFINITION=str(definition))
    assert problem.startswith(f"warm: service definition {definition}, variable WATCHDOG_WARM is 'many'; expected")


def test_warm_with_fprocess_is_a_problem() -> None:
    problem = only_problem(fprocess="cat", WATCHDOG_WARM="1")
    assert problem.startswith("warm: environment WATCHDOG_WARM keeps a script loaded, but fprocess is the function")


def test_fewer_places_than_workers_cause_a_warning() -> None:
    warning = only_warning(WATCHDOG_WARM="3", WATCHDOG_MAX_INFLIGHT="2")
    assert "is 3, but max_inflight is 2, so there are only 2 workers" in warning


def test_the_report_says_that_the_script_is_warm() -> None:
    lines = report.report(valid(WATCHDOG_WARM="3", WATCHDOG_WARM_MAX_CALLS="100")).splitlines()
    (line,) = [line for line in lines if line.startswith("warm:")]
    assert line.startswith("warm: 3 workers; the script starts once")
    assert line.endswith("each replaced after 100 calls")


def test_start_without_a_service_definition_does_not_wait_for_yaml() -> None:
    program = "import sys; from watchdog.settings.load import load; load({}, {}); print('yaml' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == "False\n"


def test_auth_all_without_a_token_is_a_problem() -> None:
    problems = load({"WATCHDOG_AUTH_ALL": "true"}, {}).problems
    assert [problem for problem in problems if "auth_all" in problem]
    assert load({"WATCHDOG_AUTH_ALL": "true", "WATCHDOG_AUTH_TOKEN": "a-token"}, {}).settings.auth_all
