"""``examples/grafana/compose.yaml`` with a real Docker daemon: the function, and a Prometheus that scrapes it.

No registry can be reached. So an image with Debian's Prometheus replaces the real image. The service ``grafana`` is not
started: ``contract/test_grafana.py`` checks its configuration.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml
from running_server import until

from dockerd import pages
from dockerd.daemon import Daemon

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900, func_only=True)]

README = "examples/grafana/README.md"
# The same user, directory for data and entry point as in the real image.
_PROMETHEUS = """
FROM debian:trixie-slim
RUN apt-get update && apt-get install --yes --no-install-recommends prometheus && rm -rf /var/lib/apt/lists/*
RUN mkdir -p /etc/prometheus /prometheus && chown nobody:nogroup /etc/prometheus /prometheus
USER nobody
ENTRYPOINT ["/usr/bin/prometheus"]
"""
# The commands of compose that start services, without the service that cannot be started here.
_SERVICES = " cowsay prometheus"


def command(verb: str) -> str:
    (found,) = [each for each in pages.commands(README) if re.search(rf"compose\.yaml {verb}\b", each)]
    return found


@pytest.fixture(scope="module")
def repository_with_images(daemon: Daemon, repository: Path, base_image: str) -> Path:
    services = yaml.safe_load((repository / "examples/grafana/compose.yaml").read_text())["services"]
    (repository / "build/prometheus").mkdir(parents=True)
    (repository / "build/prometheus/Dockerfile").write_text(_PROMETHEUS)
    daemon.run(f"docker build --tag {services['prometheus']['image']} build/prometheus", repository)
    return repository


@pytest.fixture
def started(daemon: Daemon, repository_with_images: Path) -> Iterator[Path]:
    try:
        daemon.run(command("up") + _SERVICES, repository_with_images)
        yield repository_with_images
    finally:
        daemon.run(command("down"), repository_with_images)


def ask(daemon: Daemon, path: str) -> Any:
    """Return the answer of Prometheus; nothing while it starts."""
    done = daemon.run(f"curl --silent --fail 'http://127.0.0.1:9090/api/v1/{path}'", check=False)
    return json.loads(done.stdout)["data"] if done.returncode == 0 else None


def value(daemon: Daemon, expression: str) -> str | None:
    answer = ask(daemon, f"query?query={quote(expression)}")
    return answer["result"][0]["value"][1] if answer and answer["result"] else None


def test_compose_understands_the_file(daemon: Daemon, repository: Path) -> None:
    done = daemon.run("docker compose --file examples/grafana/compose.yaml config --format json", repository)
    assert json.loads(done.stdout)["services"].keys() == {"cowsay", "prometheus", "grafana"}


def test_prometheus_sees_the_calls_and_the_end_of_the_function(daemon: Daemon, started: Path) -> None:
    call = next(line for line in pages.text_of(README).splitlines() if line.startswith("base64 "))
    until(lambda: daemon.run("curl --silent --fail localhost:8080/_/health", check=False).returncode == 0, "health", 60)
    assert "Moo from a container" in daemon.run(call, started).stdout
    until(lambda: value(daemon, 'watchdog_invocations_total{job="cowsay",outcome="ok"}') == "1", "the call", 120)
    assert value(daemon, 'up{job="cowsay"}') == "1"
    (group,) = ask(daemon, "rules")["groups"]
    wanted = yaml.safe_load((started / "examples/grafana/alerts.yaml").read_text())["groups"][0]["rules"]
    assert [rule["name"] for rule in group["rules"]] == [rule["alert"] for rule in wanted]
    assert {rule["health"] for rule in group["rules"]} <= {"ok", "unknown"}

    daemon.run(command("stop"), started)
    until(lambda: value(daemon, 'up{job="cowsay"}') == "0", "the end of the function", 120)
    until(lambda: alerts(daemon) == {("WatchdogIsDown", "pending")}, "the alert", 120)


def alerts(daemon: Daemon) -> set[tuple[str, str]]:
    found = ask(daemon, "alerts")["alerts"]
    return {(alert["labels"]["alertname"], alert["state"]) for alert in found}


def test_nothing_is_left_after_down(daemon: Daemon, repository_with_images: Path) -> None:
    daemon.run(command("up") + _SERVICES, repository_with_images)
    daemon.run(command("down"), repository_with_images)
    assert daemon.run("docker ps --all --quiet; docker volume ls --quiet").stdout == ""
    networks = daemon.run("docker network ls --format '{{.Name}}'").stdout.split()
    assert sorted(networks) == ["bridge", "host", "none"]
