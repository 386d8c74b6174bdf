"""Clients that generators make from ``/_/openapi.json``: they have the right types, and they call a real server."""

from __future__ import annotations

import base64
import importlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from every_answer import SHELL
from running_server import RunningServer, StartServer

ROOT = Path(__file__).parent.parent
TOKEN = "the-token"
NODE_MODULES = ROOT / "build" / "clients" / "node_modules"
# A generator may be slow on a busy machine.
GENERATOR_S = 300
ONE_FILE = 'printf text > "$TMP_OUTPUT_DIR/x.txt"'

pytestmark = pytest.mark.timeout(2 * GENERATOR_S)


def run(*command: str, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=GENERATOR_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def generate(server: RunningServer, directory: Path, *flags: str) -> str:
    """Generate the package ``function_client``, and return what the generator printed."""
    (directory / "openapi.json").write_bytes(server.call(None, "/_/openapi.json", "GET").body)
    generator = (sys.executable, "-m", "openapi_python_client", "generate", "--path", "openapi.json")
    return run(*generator, "--output-path", "function_client", "--meta", "none", *flags, cwd=directory)


class Client:
    """The generated client in Python, for a server."""

    def __init__(self, server: RunningServer) -> None:
        self.models = importlib.import_module("function_client.models")
        self.types = importlib.import_module("function_client.types")
        self.package = importlib.import_module("function_client")
        self._url = f"http://127.0.0.1:{server.port}"
        self.of_token = self.package.AuthenticatedClient(self._url, token=TOKEN)
        self.without_token = self.package.Client(self._url)

    def invoke(self, body: Any, client: Any = None, **parameters: Any) -> Any:
        module = importlib.import_module("function_client.api.function.invoke")
        parameters = {"output": self.models.InvokeOutput.JSON, **parameters}
        return module.sync(client=client or self.of_token, body=body, **parameters)

    def file(self, text: str) -> Any:
        return self.types.File(payload=BytesIO(text.encode()))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    server = RunningServer(tmp_path_factory.mktemp("server"), SHELL, WATCHDOG_AUTH_TOKEN=TOKEN)
    yield server
    server.kill()


@pytest.fixture(scope="module")
def client(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    directory = tmp_path_factory.mktemp("python")
    printed = generate(server, directory)
    # The generator knows no bodies of these types. Nothing else is missing in the client.
    assert re.findall(r"^WARNING .*\n\n(.*)$", printed, re.MULTILINE) == [
        "Unsupported content type text/plain",
        "Could not find reference in parsed models or enums",  # the schema of any JSON
        "Unsupported content type */*",
    ]
    sys.path.insert(0, str(directory))
    client = Client(server)
    yield client
    for each in (client.of_token, client.without_token):
        each.get_httpx_client().close()
    sys.path.remove(str(directory))
    for name in [name for name in sys.modules if name.partition(".")[0] == "function_client"]:
        del sys.modules[name]


# ---- openapi-python-client


def test_a_client_in_python_gets_a_typed_result(client: Client) -> None:
    result = client.invoke(client.file(ONE_FILE), input_=client.models.InvokeInput.RAW)
    assert isinstance(result, client.models.Outcome)
    assert (result.exit_code, result.warnings) == (0, [])
    (output,) = result.outputs
    assert isinstance(output, client.models.Output)
    assert (output.name, output.size, base64.b64decode(output.data)) == ("x.txt", 4, b"text")


def test_a_client_in_python_gets_typed_errors(client: Client) -> None:
    failed = client.invoke(client.file("echo reason >&2; exit 3"))
    assert isinstance(failed, client.models.Problem)
    assert (failed.status, failed.exit_code, failed.stderr) == (500, 3, "reason\n")
    refused = client.invoke(client.file("true"), client.without_token)
    assert isinstance(refused, client.models.Problem)
    assert refused.status == 401
    late = client.invoke(client.file("sleep 60"), x_timeout="1ms")
    assert isinstance(late, client.models.Problem)
    assert late.status == 504


def test_a_client_in_python_sends_forms(client: Client) -> None:
    show = 'cat "$INPUT_FILE_PATH" > "$TMP_OUTPUT_DIR/x"'
    parts = client.models.InvokeFilesBody(file=client.types.File(BytesIO(show.encode()), file_name="x.sh"))
    assert [output.data for output in client.invoke(parts).outputs] == [base64.b64encode(show.encode()).decode()]


def test_a_client_in_python_checks_the_server(client: Client) -> None:
    for name in ("health", "ready"):
        module = importlib.import_module(f"function_client.api.operation.{name}")
        assert module.sync(client=client.without_token) == "OK"


def test_a_client_in_python_of_a_classic_function_gets_bytes(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server(None, fprocess="cat")
    generate(server, tmp_path)
    code = f"""
from io import BytesIO
from function_client import Client
from function_client.api.function import invoke
from function_client.types import File
print(invoke.sync(client=Client("http://127.0.0.1:{server.port}"), body=File(BytesIO(b"text"))).payload.read())
"""
    assert run(sys.executable, "-c", code, cwd=tmp_path) == "b'text'\n"


def test_the_example_of_the_docs_works(start_server: StartServer, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "reference" / "http.md").read_text()
    (example,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert "http://localhost:8080" in example
    server = start_server('cp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/gray.jpg"')
    generate(server, tmp_path)
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff picture")
    (tmp_path / "example.py").write_text(example.replace("http://localhost:8080", f"http://127.0.0.1:{server.port}"))
    assert run(sys.executable, "example.py", cwd=tmp_path) == "gray.jpg 11\n"
    server.script.write_text("exit 3")
    failed = subprocess.run([sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True)
    assert failed.returncode == 1
    assert failed.stderr == "Script failed: the script ended with exit code 3\n"


# ---- openapi-typescript


@pytest.mark.slow
@pytest.mark.skipif(
    not NODE_MODULES.exists(), reason="the generator is missing: install npm, then `make build/clients/.ready`"
)
def test_a_client_in_typescript_has_types_and_works(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server(SHELL)
    (tmp_path / "openapi.json").write_bytes(server.call(None, "/_/openapi.json", "GET").body)
    (tmp_path / "package.json").write_text(json.dumps({"type": "module"}))
    (tmp_path / "node_modules").symlink_to(NODE_MODULES)
    for name in ("use.ts", "tsconfig.json"):
        shutil.copy(ROOT / "tests" / "clients" / name, tmp_path)
    programs = NODE_MODULES / ".bin"
    run(str(programs / "openapi-typescript"), "openapi.json", "--output", "client.ts", cwd=tmp_path)
    run(str(programs / "tsc"), cwd=tmp_path)
    printed = run("node", "use.js", f"http://127.0.0.1:{server.port}", cwd=tmp_path)
    assert printed == "0 x.txt 4 text\n500 3 reason\n"
