"""The examples, each called as its README says: a real server, curl and base64, and the example's real program."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from running_server import RunningServer, StartServer, arguments_of, problem, until

from watchdog.system import proc

EXAMPLES = Path(__file__).parent.parent / "examples"
DIGITS = EXAMPLES / "image-classification"
PLANTS = EXAMPLES / "plant-classification-sync"
NAMES = ["cowsay", "grayify", "image-classification", "plant-classification-sync", "thumbnails-job"]


@pytest.fixture
def digits_path() -> str:
    """A PATH with the real deepaas-predict and the classifier of digits."""
    assert (DIGITS / ".venv" / "set-up").exists(), f"run {DIGITS / 'setup.sh'} first, as make test does"
    return f"{DIGITS / '.venv' / 'bin'}:{os.environ['PATH']}"


def serve(start_server: StartServer, name: str, script: str = "script.sh", **environ: str) -> RunningServer:
    return start_server(
        None,
        WATCHDOG_SERVICE_DEFINITION=str(EXAMPLES / name / "function_config.yaml"),
        WATCHDOG_SCRIPT_PATH=str(EXAMPLES / name / script),
        **environ,
    )


def shell(command: str, server: RunningServer, name: str) -> bytes:
    """Run a command of a README in the folder of the example, and return its output. ``$URL`` is the server's URL."""
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        env=os.environ | {"URL": f"http://127.0.0.1:{server.port}"},
        cwd=EXAMPLES / name,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        check=True,
    ).stdout


def answers_of_one_worker(server: RunningServer, name: str, picture: str) -> list[bytes]:
    """Call a warm function twice, as a README does. Check that one worker gave both answers, and return them."""
    answers = []
    for served_before in range(2):
        command = f"base64 {picture} | curl -sS --include --data @- $URL/run/{name}"
        head, _, body = shell(command, server, name).partition(b"\r\n\r\n")
        assert f"X-Warm: {served_before}".encode() in head.splitlines()
        answers.append(base64.b64decode(body))
    return answers


def top_labels(answer: bytes) -> list[str]:
    predictions = json.loads(answer)["predictions"]
    shares = [prediction["probability"] for prediction in predictions]
    assert shares == sorted(shares, reverse=True)
    return [prediction["label"] for prediction in predictions]


def test_every_example_is_complete() -> None:
    for name in NAMES:
        for file in ("script.sh", "function_config.yaml", "Dockerfile", "README.md"):
            assert (EXAMPLES / name / file).is_file(), f"{name} has no {file}"
        assert os.access(EXAMPLES / name / "script.sh", os.X_OK)


def answers_after(server: RunningServer, served_before: int, body: bytes, **headers: str) -> bytes:
    """Return the answer of a worker, and check how many calls it served before."""
    answer = server.call(body, "/?input=raw&output=raw", headers=headers)
    assert answer.status == 200, answer.body
    assert answer.headers["X-Warm"] == str(served_before)
    return answer.body


@pytest.mark.parametrize("name", NAMES)
def test_check_finds_the_script_beside_the_service_definition(name: str) -> None:
    definition = EXAMPLES / name / "function_config.yaml"
    checked = subprocess.run(
        [sys.executable, "-m", "watchdog", "check", "--service-definition", str(definition)],
        cwd=EXAMPLES.parent,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    assert str(EXAMPLES / name / "script.sh") in checked
    level = "CRITICAL" if name == "plant-classification-sync" else "INFO"
    (line,) = [line for line in checked.splitlines() if line.startswith("log_level ")]
    assert level in line
    assert "service definition" in line


def gray_photo(tmp_path: Path) -> bytes:
    expected = tmp_path / "expected.jpg"
    subprocess.run(["convert", EXAMPLES / "grayify" / "photo.jpg", "-colorspace", "Gray", expected], check=True)
    return expected.read_bytes()


def test_grayify_answers_what_convert_makes(start_server: StartServer, tmp_path: Path) -> None:
    server = serve(start_server, "grayify")
    gray = shell("base64 photo.jpg | curl -sS --data @- $URL/run/grayify | base64 -d", server, "grayify")

    assert gray == gray_photo(tmp_path)
    said = server.event("making JPEG of 96 by 64 pixels grey")
    assert (said["logger"], said["stream"], said["level"]) == ("script", "stdout", "info")


def test_grayify_reports_an_input_that_is_not_a_picture(start_server: StartServer) -> None:
    server = serve(start_server, "grayify")
    answer = json.loads(shell("echo 'no picture' | base64 | curl -sS --data @- $URL/run/grayify", server, "grayify"))
    assert answer["status"] == 500
    assert answer["exit_code"] != 0
    assert "identify" in answer["stderr"]


def test_grayify_as_a_loop_answers_the_same(start_server: StartServer, tmp_path: Path) -> None:
    server = serve(start_server, "grayify", "warm.sh", WATCHDOG_WARM="1")
    assert answers_of_one_worker(server, "grayify", "photo.jpg") == [gray_photo(tmp_path)] * 2
    failed = problem(server.call(b"no picture", "/?input=raw"), 500)
    assert failed["exit_code"] != 0
    assert "identify" in str(failed["stderr"])
    assert answers_after(server, 3, (EXAMPLES / "grayify" / "photo.jpg").read_bytes()) == gray_photo(tmp_path)


def test_cowsay_answers_its_standard_output(start_server: StartServer) -> None:
    server = serve(start_server, "cowsay")
    answer = shell("base64 message.txt | curl -sS --data @- $URL/run/cowsay", server, "cowsay")

    with (EXAMPLES / "cowsay" / "message.txt").open("rb") as message:
        path = f"{os.environ['PATH']}:/usr/games"
        cow = subprocess.run(
            ["cowsay"], stdin=message, stdout=subprocess.PIPE, env=os.environ | {"PATH": path}, check=True
        )
    assert answer == cow.stdout
    assert b"< Moo from a container >" in answer


def test_image_classification_answers_the_five_likeliest_digits(start_server: StartServer, digits_path: str) -> None:
    server = serve(start_server, "image-classification", PATH=digits_path)
    answer = shell(
        "base64 digit.png | curl -sS --data @- $URL/run/image-classification | base64 -d",
        server,
        "image-classification",
    )
    labels = top_labels(answer)
    assert labels[0] == "4"
    assert len(set(labels)) == 5


@pytest.mark.parametrize("script", ["warm.py", "warm.sh"])
def test_image_classification_answers_the_same_if_its_model_stays_loaded(
    start_server: StartServer, digits_path: str, script: str
) -> None:
    server = serve(start_server, "image-classification", script, PATH=digits_path, WATCHDOG_WARM="1")
    for answer in answers_of_one_worker(server, "image-classification", "digit.png"):
        assert json.loads(answer)["status"] == "ok"
        labels = top_labels(answer)
        assert labels[0] == "4"
        assert len(set(labels)) == 5
    assert problem(server.call(b"no picture", "/?input=raw"), 500)["exit_code"] in (1, 22)
    assert top_labels(answers_after(server, 3, (DIGITS / "digit.png").read_bytes()))[0] == "4"
    assert server.stop() == 0
    assert server.leftovers() == []


@pytest.mark.slow
def test_copies_of_pictures_are_removed_and_a_killed_deepaas_run_is_replaced(
    start_server: StartServer, digits_path: str
) -> None:
    server = serve(start_server, "image-classification", "warm.sh", PATH=digits_path, WATCHDOG_WARM="1")
    picture = (DIGITS / "digit.png").read_bytes()
    answers_after(server, 0, picture)
    worker = int(server.event("worker ready")["pid"])
    (directory,) = [
        text for text in Path(f"/proc/{worker}/environ").read_text().split("\0") if text.startswith("WORKER_DIR=")
    ]
    assert not list(Path(directory.removeprefix("WORKER_DIR=")).glob("tmp*")), "deepaas-run leaves copies of pictures"
    children = map(int, Path(f"/proc/{worker}/task/{worker}/children").read_text().split())
    (deepaas,) = [pid for pid in children if b"deepaas-run" in arguments_of(pid)]
    os.kill(deepaas, signal.SIGKILL)
    until(lambda: proc.process(deepaas) is None, "the end of deepaas-run")
    problem(server.call(picture, "/?input=raw"), 500)
    assert top_labels(answers_after(server, 0, picture))[0] == "4"


TEXT = b"three short words\nand the last"


@pytest.mark.parametrize("worker", ["worker.awk", "worker.js", "worker.pl"])
def test_a_worker_in_any_language_serves_calls(start_server: StartServer, worker: str, tmp_path: Path) -> None:
    server = start_server(None, WATCHDOG_SCRIPT_PATH=str(EXAMPLES / "any-language" / worker), WATCHDOG_WARM="1")
    # A quote in the name of the input, and a header that looks like another variable of the call.
    hostile = {"X-Filename": 'it\'s a "text".txt', "X-Other": f"' TMP_OUTPUT_DIR='{tmp_path} $(id)"}
    assert answers_after(server, 0, TEXT, **hostile) == b"6 words, call 1 of this worker\n"
    failed = problem(server.call(b"", "/?input=raw"), 500)
    assert failed["exit_code"] == 1
    assert "the text has no words" in str(failed["stderr"])
    assert answers_after(server, 2, TEXT, **hostile) == b"6 words, call 2 of this worker\n"
    assert answers_after(server, 3, b" ".join([TEXT] * 10_000)) == b"60000 words, call 3 of this worker\n"
    assert server.stop() == 0
    assert len([event for event in server.logs if event["event"] == "worker ready"]) == 1
    assert server.leftovers() == []


PLANT_CALLS = {
    "base64": "base64 image3.jpg | curl -sS --data @- $URL/run/plant-classification-sync",
    "one line": "base64 -w 0 image3.jpg | curl -sS --data @- $URL/run/plant-classification-sync",
    "quoted": 'curl -sS -d "=\\"$(base64 image3.jpg)\\"" $URL/run/plant-classification-sync',
    "raw": "curl -sS -H 'Content-Type: image/jpeg' --data-binary @image3.jpg $URL/run/plant-classification-sync",
    "form": "curl -sS -F file=@image3.jpg $URL/run/plant-classification-sync",
}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_plant_classification_answers_the_classifiers_file(
    start_server: StartServer, digits_path: str, tmp_path: Path
) -> None:
    subprocess.run(
        ["deepaas-predict", "-i", PLANTS / "image3.jpg", "-o", tmp_path / "expected"],
        env=os.environ | {"PATH": digits_path},
        cwd=tmp_path,
        check=True,
    )
    (expected,) = (tmp_path / "expected").iterdir()
    # This is the log level of the service, CRITICAL. If it is given here, too, the test finds the server by its port.
    server = serve(start_server, "plant-classification-sync", PATH=digits_path, WATCHDOG_LOG_LEVEL="CRITICAL")
    for form, call in PLANT_CALLS.items():
        answer = shell(call + " | base64 -d", server, "plant-classification-sync")
        assert answer == expected.read_bytes(), form
        assert len(top_labels(answer)) == 5
    assert server.stop() == 0
    assert server.logs == [], "nothing is logged below CRITICAL"
    assert server.leftovers() == []
