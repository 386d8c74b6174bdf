"""Check what concerns more than one setting, or the system."""

from __future__ import annotations

import os
from collections.abc import Iterable

from ..system.pattern import pattern
from .declarations import SETTINGS
from .reading import SERVICE_LINK_VALUE, Reading
from .source import DEFAULT, SettingSource
from .text import in_quotes, one_line

# Kubernetes gives a pod the address of every Service of its namespace in variables. A Service named `watchdog` or
# `watchdog-...` leads to variables with these names.
_SERVICE_LINK_NAME = pattern(
    r"WATCHDOG_(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT_[0-9]+_(?:TCP|UDP|SCTP)(?:_\w+)?)"
)
# Variables that are not settings: two of systemd, and one that the server gives to scripts.
_OTHER_NAMES = frozenset({"WATCHDOG_USEC", "WATCHDOG_PID", "WATCHDOG_WARM_PY"})


def check_script(reading: Reading) -> None:
    if reading.values["fprocess"] is None:
        return
    source = SettingSource("environment", "SCRIPT") if reading.environ.get("SCRIPT") else reading.sources["script_path"]
    if source != DEFAULT:
        reading.warnings.append(
            f"fprocess: {reading.sources['fprocess']} is {in_quotes(reading.values['fprocess'])}. This command is the "
            f"function, so the script of {source} is never run; unset one of them"
        )


def check_warm(reading: Reading) -> None:
    if not reading.values["warm"] or reading.unread & {"warm", "fprocess"}:
        return
    if reading.values["fprocess"] is not None:
        reading.problem(
            "warm",
            reading.sources["warm"],
            "keeps a script loaded, but fprocess is the function, and it is started for each call; unset one of them",
        )
    elif 0 < reading.values["max_inflight"] < reading.values["warm"] and "max_inflight" not in reading.unread:
        reading.warnings.append(
            f"warm: {reading.sources['warm']} is {reading.values['warm']}, but max_inflight is "
            f"{reading.values['max_inflight']}, so there are only {reading.values['max_inflight']} workers; raise "
            "max_inflight to use more"
        )


def check_metrics_port(reading: Reading) -> None:
    port = reading.values["metrics_port"]
    if reading.unread & {"port", "metrics_port"}:
        return
    if port == 0 or port != reading.values["port"]:
        return
    if reading.sources["metrics_port"] == DEFAULT:
        reading.values["metrics_port"] = 0
        reading.warnings.append(
            f"metrics_port: port is {port} too, so metrics are off; to get metrics, set WATCHDOG_METRICS_PORT"
        )
    else:
        reading.problem(
            "metrics_port", reading.sources["metrics_port"], f"is {port}, the same as port; set another port"
        )


def check_tmp_dir(reading: Reading) -> None:
    if "tmp_dir" in reading.unread:
        return
    path = reading.values["tmp_dir"]
    source = reading.sources["tmp_dir"]
    if source == DEFAULT and reading.environ.get("TMPDIR"):
        source = reading.sources["tmp_dir"] = SettingSource("environment", "TMPDIR")
    # An image without a base has no /tmp. The program makes it when it starts (`cli`).
    if source == DEFAULT and not os.path.lexists(path) and os.access(os.path.dirname(path), os.W_OK | os.X_OK):
        return
    if not os.path.isdir(path):
        wrong = "is not a directory; make it, or name another one"
    elif not os.access(path, os.W_OK | os.X_OK, effective_ids=True):
        wrong = "cannot be written to; mount a writable volume there, or name another directory"
    else:
        return
    reading.problem("tmp_dir", source, f"is {in_quotes(path)}, which {wrong} in WATCHDOG_TMP_DIR")


def check_unknown_names(reading: Reading) -> None:
    for name in reading.flags:
        if name not in SETTINGS:
            reading.problem(name, SettingSource("flag"), "is not known; `watchdog --help` lists all flags")
    known = {setting.variable for setting in SETTINGS.values()}
    for name in sorted(reading.environ):
        if not name.upper().startswith("WATCHDOG_") or name in known or name in _OTHER_NAMES:
            continue
        if _SERVICE_LINK_NAME.fullmatch(name):
            continue
        if name.endswith("_PORT") and SERVICE_LINK_VALUE.match(reading.environ[name]):
            continue
        # The value is not shown, because it may be the token under a misspelt name.
        reading.warnings.append(
            f"environment {one_line(name)} is not known, so it is ignored{_nearest(name.upper(), known)}"
        )


def _nearest(name: str, known: Iterable[str]) -> str:
    import difflib  # imported only for a misspelt variable

    nearest = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.0)
    return f"; the nearest name is {nearest[0]}"
