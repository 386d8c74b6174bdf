"""examples/openfaas: faas-cli knows all fields of its files, and each function runs here as in its image."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from running_server import RunningServer, StartServer, problem

from watchdog.settings.declarations import SETTINGS

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "openfaas"
STACK: dict[str, Any] = yaml.safe_load((EXAMPLE / "stack.yaml").read_text())
FUNCTIONS: dict[str, dict[str, Any]] = STACK["functions"]

# The fields of faas-cli's Go structs, in its package stack (Services, Provider, Function, FunctionResources,
# LanguageTemplate). It ignores unknown fields without a message.
SERVICES = {"version", "functions", "provider", "configuration"}
PROVIDER = {"name", "gateway", "network"}
FUNCTION = set(
    "lang handler image registry_auth fprocess environment secrets skip_build constraints environment_file labels "
    "limits requests readonly_root_filesystem build_options build_args platforms annotations namespace".split()
)
RESOURCES = {"memory", "cpu"}
TEMPLATE = {"language", "fprocess", "build_options", "welcome_message", "handler_folder"}


def template_of(name: str) -> Path:
    return EXAMPLE / "template" / str(FUNCTIONS[name]["lang"])


def environment_of(name: str) -> dict[str, str]:
    """Return the variables that OpenFaaS sets. ``fprocess`` is from the function, or else from its template."""
    template = yaml.safe_load((template_of(name) / "template.yml").read_text())
    fprocess = FUNCTIONS[name].get("fprocess") or template.get("fprocess")
    return dict(FUNCTIONS[name]["environment"]) | ({"fprocess": fprocess} if fprocess else {})


def build_context(name: str, directory: Path) -> Path:
    """Make the same folder as ``faas-cli build --shrinkwrap``: the template, with the handler in ``function``."""
    context = directory / "build" / name
    shutil.copytree(template_of(name), context)
    shutil.copytree(EXAMPLE / FUNCTIONS[name]["handler"], context / "function", dirs_exist_ok=True)
    return context


def serve(start_server: StartServer, name: str, directory: Path) -> RunningServer:
    function = build_context(name, directory) / "function"
    environ = environment_of(name)
    if "fprocess" not in environ:  # the link that the Dockerfile makes
        environ["WATCHDOG_SCRIPT_PATH"] = str(function / "script.sh")
    return start_server(None, prefix=("env", f"--chdir={function}"), **environ)


def test_there_is_a_script_and_a_classic_function() -> None:
    assert ["fprocess" in environment_of(name) for name in FUNCTIONS] == [False, True]


def test_stack_yaml_has_only_what_faas_cli_knows() -> None:
    assert STACK.keys() <= SERVICES
    assert STACK["version"] == 1.0
    assert STACK["provider"].keys() <= PROVIDER
    assert STACK["provider"]["name"] == "openfaas"
    for name, function in FUNCTIONS.items():
        assert re.fullmatch("[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", name)
        assert function.keys() <= FUNCTION
        assert {"lang", "handler", "image"} <= function.keys()
        for resources in (function["limits"], function["requests"]):
            assert resources.keys() <= RESOURCES
        assert all(isinstance(value, str) for value in function["environment"].values())
        assert (EXAMPLE / function["handler"]).is_dir()
        assert (template_of(name) / "template.yml").is_file()


def test_the_template_has_what_faas_cli_wants() -> None:
    (folder,) = (EXAMPLE / "template").iterdir()
    template = yaml.safe_load((folder / "template.yml").read_text())
    assert template.keys() <= TEMPLATE
    assert template["language"] == folder.name
    assert (folder / "Dockerfile").is_file()
    assert os.access(folder / "function" / "script.sh", os.X_OK)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_dockerfile_finds_all_in_the_build_context(name: str, tmp_path: Path) -> None:
    context = build_context(name, tmp_path)
    lines = (context / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    arguments = {line.split()[1].partition("=")[0] for line in lines if line.startswith("ARG ")}
    assert FUNCTIONS[name]["build_args"].keys() <= arguments
    sources = [line.split()[-2] for line in lines if line.startswith("COPY ")]
    assert sources == ["function/"]
    assert (context / "function").is_dir()
    link = next(line for line in lines if "ln -s" in line)
    (workdir,) = (line.split()[1] for line in lines if line.startswith("WORKDIR "))
    assert link.endswith(f"ln -s {workdir}/script.sh {SETTINGS['script_path'].default}")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_environment_is_known(name: str, tmp_path: Path) -> None:
    function = build_context(name, tmp_path) / "function"
    clean = {key: value for key, value in os.environ.items() if not key.startswith("WATCHDOG_")}
    of_script = () if "fprocess" in environment_of(name) else ("--script-path", "script.sh")
    checked = subprocess.run(
        [sys.executable, "-m", "watchdog", "check", *of_script],
        cwd=function,
        env=clean | environment_of(name),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert checked.returncode == 0, checked.stdout
    assert checked.stdout.endswith("problems: none\n\nwarnings: none\n")
    for setting in environment_of(name):
        assert re.search(rf"^{setting} .* environment {setting}$", checked.stdout, re.MULTILINE), setting


def test_times_and_places_fit_each_other() -> None:
    for name in FUNCTIONS:
        environment = environment_of(name)
        seconds = {key: float(environment[key].removesuffix("s")) for key in ("exec_timeout", "write_timeout")}
        assert seconds["write_timeout"] > seconds["exec_timeout"], "a drain must outlast what runs"


def test_wordcount(start_server: StartServer, tmp_path: Path) -> None:
    server = serve(start_server, "wordcount", tmp_path)
    text = (EXAMPLE / "text.txt").read_bytes()
    table = base64.b64decode(server.call(base64.b64encode(text)).body)
    lines = table.decode().splitlines()
    assert lines[:3] == ["word,count", "and,2", "i,2"]
    assert sum(int(line.split(",")[1]) for line in lines[1:]) == len(text.split())
    raw = server.call(text, "/?input=raw&output=raw")
    assert raw.body == table
    assert raw.headers["Content-Type"] == "text/csv"
    assert server.event("counting 43 words")["logger"] == "script"


def test_average(start_server: StartServer, tmp_path: Path) -> None:
    server = serve(start_server, "average", tmp_path)
    answer = server.call((EXAMPLE / "numbers.txt").read_bytes(), headers={"Content-Type": "text/plain"})
    assert answer.status == 200
    assert answer.json == {"count": 4, "mean": 3.3125, "min": -1.25, "max": 7.0}
    assert answer.headers["Content-Type"] == "application/json"
    refused = server.call((EXAMPLE / "text.txt").read_bytes())
    assert refused.status == 500
    assert refused.body.startswith(b"exit status 1\nline 1: 'Call me Ishmael.")
    document = problem(server.call(b"", headers={"Accept": "application/problem+json"}), 500)
    assert document["stderr"] == "there are no numbers\n"


def test_the_templates_own_function(start_server: StartServer) -> None:
    script = EXAMPLE / "template" / "oscar-watchdog" / "function" / "script.sh"
    server = start_server(None, WATCHDOG_SCRIPT_PATH=str(script))
    assert base64.b64decode(server.call(base64.b64encode(b"body")).body) == b"body"


def test_the_readme_shows_what_is_answered(start_server: StartServer, tmp_path: Path) -> None:
    readme = (EXAMPLE / "README.md").read_text()
    server = serve(start_server, "average", tmp_path)
    shown = server.call((EXAMPLE / "numbers.txt").read_bytes()).json
    assert json.dumps(shown) in readme
