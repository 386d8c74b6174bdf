"""The dashboard and the alert rules use only metrics and labels that ``/metrics`` has."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from running_server import RunningServer, StartServer, until

from watchdog.settings.declarations import SETTINGS

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "examples" / "grafana"
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "dashboard.json").read_text())
RULES: dict[str, Any] = yaml.safe_load((FOLDER / "alerts.yaml").read_text())
Series = dict[str, set[str]]
"""Names of metrics, each with its labels."""

# Prometheus adds these labels to each series.
OF_THE_SCRAPER = frozenset({"job", "instance"})
WORDS = frozenset(
    "and bool by changes count group_left group_right histogram_quantile ignoring increase label_values max min offset "
    "on or present_over_time rate sum unless vector without".split()
)
# Prometheus has this metric about each server that it scrapes.
OF_PROMETHEUS: Series = {"up": set()}
# Samples, one minute apart, for which each alert must come, and samples for which it must not come.
BAD: dict[str, dict[str, str]] = {
    "WatchdogIsDown": {"up{}": "1x50 0x10"},
    "WatchdogCallsFail": {'http_requests_total{code="500"}': "0+10x60", 'http_requests_total{code="200"}': "0+100x60"},
    "WatchdogCannotRunTheScript": {'watchdog_invocations_total{outcome="no_script"}': "0x55 1x5"},
    "WatchdogScriptsRunOutOfMemory": {'watchdog_invocations_total{outcome="out_of_memory"}': "0x50 1x10"},
    "WatchdogScriptsTimeOut": {
        'watchdog_invocations_total{outcome="timeout"}': "0+2x60",
        'watchdog_invocations_total{outcome="ok"}': "0+100x60",
    },
    "WatchdogRefusesCalls": {'watchdog_invocations_total{outcome="overloaded"}': "0+1x60"},
    "WatchdogCallsWaitLong": {
        'watchdog_queue_wait_seconds_bucket{le="10.0"}': "0+90x60",
        'watchdog_queue_wait_seconds_bucket{le="30.0"}': "0+100x60",
        'watchdog_queue_wait_seconds_bucket{le="+Inf"}': "0+100x60",
    },
    "WatchdogHasNoRoom": {'watchdog_invocations_total{outcome="no_space"}': "0x58 1x2"},
    "WatchdogGivesUpCallers": {'watchdog_callers_given_up_total{direction="answer"}': "0+1x60"},
    "WatchdogClosesIdleConnections": {"watchdog_idle_connections_closed_total{}": "0+1x60"},
    "WatchdogRunsOutOfDescriptors": {"process_open_fds{}": "900x60", "process_max_fds{}": "1000x60"},
    "WatchdogLeavesProcesses": {"watchdog_unattributed_processes{}": "0x10 1x50"},
    "WatchdogIsRestarted": {"process_start_time_seconds{}": "100x10 200x10 300x10 400x30"},
}
GOOD: dict[str, dict[str, str]] = {
    "WatchdogIsDown": {"up{}": "1x57 0x3"},
    "WatchdogCallsFail": {'http_requests_total{code="500"}': "0+1x60", 'http_requests_total{code="200"}': "0+100x60"},
    "WatchdogCannotRunTheScript": {'watchdog_invocations_total{outcome="no_script"}': "1x60"},
    "WatchdogScriptsRunOutOfMemory": {'watchdog_invocations_total{outcome="out_of_memory"}': "0x60"},
    "WatchdogScriptsTimeOut": {
        'watchdog_invocations_total{outcome="timeout"}': "0x60",
        'watchdog_invocations_total{outcome="ok"}': "0+100x60",
    },
    "WatchdogRefusesCalls": {'watchdog_invocations_total{outcome="overloaded"}': "0x50 1x10"},
    "WatchdogCallsWaitLong": {
        'watchdog_queue_wait_seconds_bucket{le="10.0"}': "0+99x60",
        'watchdog_queue_wait_seconds_bucket{le="+Inf"}': "0+100x60",
    },
    "WatchdogHasNoRoom": {'watchdog_invocations_total{outcome="no_space"}': "0x60"},
    "WatchdogGivesUpCallers": {'watchdog_callers_given_up_total{direction="answer"}': "0x50 1x10"},
    "WatchdogClosesIdleConnections": {"watchdog_idle_connections_closed_total{}": "0x50 1x10"},
    "WatchdogRunsOutOfDescriptors": {"process_open_fds{}": "20x60", "process_max_fds{}": "1000x60"},
    "WatchdogLeavesProcesses": {"watchdog_unattributed_processes{}": "0x55 1x5"},
    "WatchdogIsRestarted": {"process_start_time_seconds{}": "100x30 200x30"},
}
promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not here (Debian's package prometheus has it)"
)


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    """Return all expressions of the dashboard and the rules, with values in place of Grafana's variables."""
    texts = [target["expr"] for panel in panels() for target in panel["targets"]]
    texts += [rule["expr"] for group in RULES["groups"] for rule in group["rules"]]
    texts += [variable["query"]["query"] for variable in DASHBOARD["templating"]["list"] if variable["type"] == "query"]
    return [text.replace("$__rate_interval", "5m") for text in texts]


def asked_for(expression: str) -> Series:
    """Return the metrics that an expression names, with the labels that each must have.

    A label to group by must belong to one of the metrics of the expression. These labels have the name "".
    """
    wanted: Series = defaultdict(set)
    text = re.sub(r'"(?:[^"\\]|\\.)*"', '""', expression)
    if match := re.fullmatch(r"label_values\((\w+)(\{.*\})?, (\w+)\)", text):
        text = f"sum by ({match[3]}) ({match[1]}{match[2] or ''})"
    for labels in re.findall(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)", text):
        wanted[""] |= set(re.findall(r"\w+", labels))
    text = re.sub(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", text)
    text = re.sub(r"\[[^\]]*\]", " ", text)
    for name, selector in re.findall(r"\b([a-z_:][\w:]*)\b\s*(\{[^}]*\})?", re.sub(r"(?<![\w:])\d[\w.]*", " ", text)):
        if name not in WORDS:
            wanted[name] |= set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))
    return dict(wanted)


def missing(expression: str, there: Series) -> list[str]:
    """Return the metrics and labels that an expression uses and the server does not have."""
    wanted = asked_for(expression)
    grouped = wanted.pop("", set()) - OF_THE_SCRAPER
    problems = [f"no metric {name}" for name in wanted if name not in there]
    for name, labels in wanted.items():
        lacking = labels - OF_THE_SCRAPER - there.get(name, labels)
        problems += [f"{name} has no label {label}" for label in sorted(lacking)]
    for label in sorted(grouped - set().union(*(there.get(name, set()) for name in wanted))):
        problems.append(f"nothing has a label {label}")
    return problems


def after_some_calls(server: RunningServer, port: int) -> Series:
    """Return the metrics of a server that has answered good and failed calls."""
    server.call(b"")
    server.call(b"", headers={"X-Exit": "3"})

    def text() -> str:
        return server.call(None, "/metrics", "GET", port=port).body.decode()

    until(lambda: "\nhttp_requests_in_flight 0.0\n" in text(), "the calls to end")
    there: Series = defaultdict(set)
    for family in text_string_to_metric_families(text()):
        for sample in family.samples:
            there[sample.name] |= sample.labels.keys()
    return dict(there)


def test_a_server_has_all_metrics_of_the_dashboard_and_rules(start_server: StartServer, free_port: int) -> None:
    server = start_server("exit ${Http_X_Exit:-0}", WATCHDOG_METRICS_PORT=str(free_port))
    there = after_some_calls(server, free_port) | OF_PROMETHEUS
    assert {text: problems for text in expressions() if (problems := missing(text, there))} == {}


def test_each_metric_is_used_in_the_dashboard_or_a_rule(start_server: StartServer, free_port: int) -> None:
    """If no panel and no rule uses a metric, nobody sees it."""
    server = start_server("exit ${Http_X_Exit:-0}", WATCHDOG_METRICS_PORT=str(free_port))
    families = {re.sub(r"_(bucket|count|sum)$", "", name) for name in after_some_calls(server, free_port)}
    asked = {re.sub(r"_(bucket|count|sum)$", "", name) for text in expressions() for name in asked_for(text)}
    assert families - asked == {"process_virtual_memory_bytes"}


@pytest.mark.parametrize(
    ("expression", "problems"),
    [
        ("rate(no_such_total[5m])", ["no metric no_such_total"]),
        ("sum by (code) (a_total) / sum(b)", ["no metric b"]),
        ('a_total{kind="x", code=~"5.."}', ["a_total has no label kind"]),
        ("sum by (kind) (a_total)", ["nothing has a label kind"]),
        ("label_values(a_total, kind)", ["nothing has a label kind"]),
        ('sum by (code, job) (rate(a_total{code=~"5..", instance="no_such{x}"}[5m])) > 0.5 or vector(0)', []),
    ],
)
def test_the_check_sees_what_is_not_there(expression: str, problems: list[str]) -> None:
    assert missing(expression, {"a_total": {"code"}}) == problems


def test_panels_have_ids_of_their_own_and_lie_side_by_side() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert 0 <= at["x"] < at["x"] + at["w"] <= 24, panel["title"]
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies on {taken[x, y]}"
                taken[x, y] = panel["title"]


def test_the_dashboard_can_be_imported_anywhere() -> None:
    """It names no data source, id or instance of its author."""
    assert DASHBOARD["id"] is None
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == ["datasource", "job", "instance"]
    for panel in panels():
        assert panel["description"], panel["title"]
        for part in (panel, *panel["targets"]):
            assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        for target in panel["targets"]:
            selectors = re.findall(r"\{[^}]*\}", target["expr"])
            assert selectors
            assert all('job=~"$job", instance=~"$instance"' in selector for selector in selectors)


def test_each_row_and_each_alert_is_explained() -> None:
    readme = (FOLDER / "README.md").read_text()
    page = (ROOT / "docs" / "guide" / "operations.md").read_text()
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert [title for title in rows if f"| {title} |" not in readme] == []
    alerts = [rule["alert"] for group in RULES["groups"] for rule in group["rules"]]
    assert [name for name in alerts if f"`{name}`" not in page] == []


@promtool
def test_promtool_understands_every_expression(tmp_path: Path) -> None:
    texts = [text for text in expressions() if not text.startswith("label_values")]
    rules = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(texts)]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    assert promtool_check("rules", file).returncode == 0, promtool_check("rules", file).stderr
    file.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": [{"record": "a", "expr": "sum(rate(b))"}]}]}))
    assert promtool_check("rules", file).returncode != 0


@promtool
def test_promtool_understands_the_rules() -> None:
    done = promtool_check("rules", FOLDER / "alerts.yaml")
    assert done.returncode == 0, done.stderr


@promtool
@pytest.mark.parametrize("alert", [rule["alert"] for group in RULES["groups"] for rule in group["rules"]])
def test_each_alert_comes_when_it_should_and_only_then(alert: str, tmp_path: Path) -> None:
    assert fires(alert, BAD[alert], tmp_path)
    assert not fires(alert, GOOD[alert], tmp_path)


@promtool
def test_a_program_that_is_not_a_watchdog_is_not_reported_as_down(tmp_path: Path) -> None:
    assert not fires("WatchdogIsDown", BAD["WatchdogIsDown"], tmp_path, {})


ALWAYS = {'watchdog_build_info{version="1"}': "1x60"}


def fires(alert: str, samples: dict[str, str], directory: Path, always: dict[str, str] = ALWAYS) -> bool:
    """Return whether Prometheus has the alert after an hour of these samples."""
    of_the_scraper = 'job="plants", instance="pod-1"'
    series = [
        {"series": re.sub(r"\{(?=.)", "{" + of_the_scraper + ", ", name).replace(", }", "}"), "values": values}
        for name, values in (always | samples).items()
    ]
    # The test expects no alert, so promtool prints an alert that comes nevertheless.
    test = {"interval": "1m", "input_series": series, "alert_rule_test": [{"eval_time": "1h", "alertname": alert}]}
    file = directory / "test.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(FOLDER / "alerts.yaml")], "tests": [test]}))
    done = subprocess.run(
        ["promtool", "test", "rules", str(file)], capture_output=True, text=True, timeout=RunningServer.patience_s
    )
    text = done.stdout + done.stderr
    assert ("SUCCESS" in text) != ("got:[" in text.replace("\n", "").replace(" ", "")), text
    return done.returncode != 0


@promtool
@pytest.mark.parametrize("name", ["prometheus.yaml", "prometheus-compose.yaml", "prometheus-knative.yaml"])
def test_promtool_understands_the_configuration(name: str, tmp_path: Path) -> None:
    configuration = yaml.safe_load((FOLDER / name).read_text())
    for job in configuration["scrape_configs"]:
        # Debian's Prometheus is built without Kubernetes. For the rest of the configuration, a list of addresses is
        # equivalent.
        if job.pop("kubernetes_sd_configs", None) is not None:
            job["static_configs"] = [{"targets": ["localhost:8080"]}]
    (tmp_path / "alerts.yaml").write_text((FOLDER / "alerts.yaml").read_text())
    file = tmp_path / name
    file.write_text(yaml.safe_dump(configuration))
    done = promtool_check("config", file)
    assert done.returncode == 0, done.stdout + done.stderr
    file.write_text(yaml.safe_dump({**configuration, "scrape_config": []}))
    assert promtool_check("config", file).returncode != 0


def promtool_check(what: str, file: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["promtool", "check", what, str(file)], capture_output=True, text=True, timeout=RunningServer.patience_s
    )


# ---- compose.yaml, with which tests/dockerd/test_compose.py starts the function and Prometheus

COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())


def mounts(service: str) -> dict[str, Path]:
    """Return the files of this folder, by their paths in the container."""
    found = [volume.split(":") for volume in COMPOSE["services"][service]["volumes"] if volume.startswith("./")]
    assert all(options == "ro" for _, _, options in found)
    return {target: FOLDER / source for source, target, _ in found}


def test_only_this_machine_reaches_the_services() -> None:
    ports = [port for service in COMPOSE["services"].values() for port in service["ports"]]
    assert len(ports) == 3
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_all_files_that_the_services_mount_exist() -> None:
    files = [*mounts("prometheus").values(), *mounts("grafana").values()]
    assert len(files) == 5
    assert [path for path in files if not path.is_file()] == []


def test_prometheus_finds_its_rules_and_the_function() -> None:
    (option,) = [each for each in COMPOSE["services"]["prometheus"]["command"] if each.startswith("--config.file=")]
    at = Path(option.partition("=")[2])
    configuration = yaml.safe_load(mounts("prometheus")[str(at)].read_text())
    (rules,) = configuration["rule_files"]
    assert mounts("prometheus")[str(at.parent / rules)] == FOLDER / "alerts.yaml"
    (job,) = configuration["scrape_configs"]
    (host, _, port) = job["static_configs"][0]["targets"][0].partition(":")
    assert host in COMPOSE["services"]
    assert int(port) == SETTINGS["metrics_port"].default


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    files = mounts("grafana")
    (source,) = yaml.safe_load(files["/etc/grafana/provisioning/datasources/datasource.yaml"].read_text())[
        "datasources"
    ]
    assert source["type"] == DASHBOARD["templating"]["list"][0]["query"] == "prometheus"
    assert source["isDefault"] is True
    host, _, port = source["url"].removeprefix("http://").partition(":")
    assert COMPOSE["services"][host]["ports"] == [f"127.0.0.1:{port}:{port}"]
    (provider,) = yaml.safe_load(files["/etc/grafana/provisioning/dashboards/dashboards.yaml"].read_text())["providers"]
    home = COMPOSE["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert str(Path(home).parent) == provider["options"]["path"]
    assert files[home] == FOLDER / "dashboard.json"
