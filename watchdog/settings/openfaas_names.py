"""Check the variables of OpenFaaS's watchdogs: the classic watchdog and of-watchdog."""

from __future__ import annotations

import os
import shlex

from .reading import Reading
from .source import DEFAULT, SettingSource
from .text import in_quotes

# Names of OpenFaaS's classic watchdog and of-watchdog that have no effect here. This server either always has the
# feature that a variable switches on, or never has it.
# fmt: off
IGNORED_NAMES = frozenset({
    "write_debug", "marshal_request", "debug_headers", "jwt_auth", "jwt_auth_debug", "jwt_auth_local",
    "function_process", "mode", "upstream_url", "http_upstream_url", "buffer_http",
    "http_buffer_req_body", "prefix_logs", "log_buffer_size", "ready_path", "log_callid", "static_path",
})
# fmt: on
OF_CLASSIC_FUNCTIONS = frozenset({"content_type", "combine_output"})
# Modes of of-watchdog in which the function is a server of its own, or in which there is no function.
_MODES_WITHOUT_STDIN = frozenset({"http", "inproc", "static"})


def check_fprocess(reading: Reading) -> None:
    command = reading.values["fprocess"]
    if command is None:
        return
    if os.path.basename(shlex.split(command)[0]) == "supervisor":
        # OSCAR sets this for its own supervisor. This server does the supervisor's work.
        reading.ignored_names.append(reading.sources["fprocess"].name)
        reading.values["fprocess"] = None
        reading.sources["fprocess"] = DEFAULT
        return
    from .shell_syntax import advice_on_shell_syntax

    if (advice := advice_on_shell_syntax(command)) is not None:
        reading.warnings.append(f"fprocess: {reading.sources['fprocess']} {advice}")
    for spelling in reading.spellings.get("mode", ()):
        if reading.environ[spelling] in _MODES_WITHOUT_STDIN:
            reading.warnings.append(
                f"environment {spelling} is {in_quotes(reading.environ[spelling])}, a mode of of-watchdog that is not "
                "offered: fprocess is started for each call, gets the body on stdin, and its stdout is the answer"
            )


def check_openfaas_names(reading: Reading) -> None:
    """Report missing features of OpenFaaS's watchdogs that change the answers, or decide which callers get answers."""
    for spelling in reading.spellings.get("jwt_auth", ()):
        # A user who sets this variable relies on the check of tokens. Without the check, every caller would get an
        # answer.
        if reading.environ[spelling].strip().lower() in ("true", "1"):
            reading.problem(
                "jwt_auth",
                SettingSource("environment", spelling),
                f"is {in_quotes(reading.environ[spelling])}, but this server does not check tokens of OpenFaaS's "
                "gateway; unset it, and set WATCHDOG_AUTH_TOKEN_FILE if calls must have a token",
            )
    for spelling in reading.spellings.get("marshal_request", ()):
        if reading.environ[spelling].strip().lower() in ("true", "1"):
            reading.warnings.append(
                f"environment {spelling} is not offered: the function gets the body as it is, and headers as "
                "Http_* variables"
            )
    for spelling in reading.spellings.get("function_process", ()):
        reading.warnings.append(f"environment {spelling} is a name of of-watchdog, so it is ignored; set fprocess")
