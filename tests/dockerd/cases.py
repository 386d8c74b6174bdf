"""How each command with Docker in the pages is run, or why it is not run."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from dockerd.pages import block

FIRST_CALL = 'echo "three short words" | base64 | curl --silent --show-error -d @- localhost:8080'
PHOTO = (
    "base64 examples/grayify/photo.jpg | curl --silent --show-error -d @- localhost:8080 | base64 -d > answer; "
    "head -c 3 answer | od -An -tx1"
)
JPEG = " ff d8 ff\n"
COUNT = '#!/bin/sh\nwc -w < "$INPUT_FILE_PATH"\n'


# Environment variables with the certificate of a private CA, for programs of this machine.
_CA_VARIABLES = ("PIP_CERT", "SSL_CERT_FILE", "CURL_CA_BUNDLE")


@dataclass(frozen=True)
class Case:
    """A command that ends.

    Attributes:
        folder: the working directory of the reader, below the repository.
        files: files that the reader has written before, by their paths below that folder.
        placeholders: the texts with which the reader replaces words of the command.
        prints: a part of what the command, or ``then``, must print.
        then: a command that checks the effect of the first one.
    """

    folder: str = "."
    files: dict[str, str] = field(default_factory=dict)
    placeholders: dict[str, str] = field(default_factory=dict)
    prints: str = ""
    then: str | None = None


@dataclass(frozen=True)
class Server(Case):
    """A command that starts a server: while it runs, ``then`` calls the server and must print exactly ``prints``."""

    path: str = "/_/health"


@dataclass(frozen=True)
class NotRun:
    reason: str


BUILT = Case()
WORDS = {"script.sh": COUNT}
WITH_WORDS = {"IMAGE": "-v $PWD/script.sh:/oscar/config/script.sh oscar-watchdog"}
_IMAGES = "docs/guide/images.md"
_WARM = "docs/guide/keep-your-model-loaded.md"
_VOLUME = "build/volume"
_PUSH = NotRun("It needs a registry, and none can be reached.")
_COMPOSE = NotRun("test_compose.py runs it, but without Grafana, whose image cannot be reached.")
_NAME_OF_AN_OPTION = NotRun("The page only names an option.")
_BASE = "docker build -t oscar-watchdog -f Dockerfile.base ."
_WITH_SCRIPT = "docker run --rm -p 8080:8080 -v $PWD/script.sh:/oscar/config/script.sh oscar-watchdog"

CASES: dict[tuple[str, str], Case | NotRun] = {
    ("README.md", _BASE): BUILT,
    ("README.md", _WITH_SCRIPT): Server(files=WORDS, then=FIRST_CALL, prints="3\n"),
    # ---- the guide
    ("docs/guide/first-call.md", _BASE): BUILT,
    ("docs/guide/first-call.md", _WITH_SCRIPT): Server(files=WORDS, then=FIRST_CALL, prints="3\n"),
    ("docs/guide/first-call.md", "docker build -t grayify ."): Case(
        "build/own-image",
        files={
            "Dockerfile": block("docs/guide/first-call.md", "dockerfile", "imagemagick"),
            "script.sh": block("docs/guide/first-call.md", "sh", "convert"),
        },
    ),
    ("docs/guide/first-call.md", "docker run --rm -p 8080:8080 grayify"): Server(then=PHOTO, prints=JPEG),
    ("docs/guide/writing-a-script.md", _WITH_SCRIPT): Server(files=WORDS, then=FIRST_CALL, prints="3\n"),
    ("docs/guide/troubleshooting.md", "docker run --rm IMAGE check"): Case(
        files=WORDS, placeholders=WITH_WORDS, prints="max_inflight"
    ),
    (_IMAGES, _BASE): BUILT,
    (_IMAGES, "docker run IMAGE check"): Case(files=WORDS, placeholders=WITH_WORDS, prints="max_inflight"),
    (_IMAGES, "docker run -it --entrypoint sh IMAGE"): NotRun("It needs a terminal."),
    (_IMAGES, "docker build -t grayify examples/grayify"): BUILT,
    (_IMAGES, "docker run --rm grayify check"): Case(prints="max_inflight"),
    (_IMAGES, "docker run --rm -p 8080:8080 grayify"): Server(then=PHOTO, prints=JPEG),
    (_IMAGES, "docker build -t oscar-watchdog:tree -f Dockerfile.base --target export ."): Case(
        then="docker image ls oscar-watchdog:tree", prints="oscar-watchdog"
    ),
    (_IMAGES, "docker build -t digest ."): Case(
        "build/digest",
        files={
            "Dockerfile": block(_IMAGES, "dockerfile", "bookworm"),
            "script.py": block(_IMAGES, "python", "sha256"),
        },
    ),
    (_IMAGES, "docker run --rm -p 8080:8080 --name digest digest"): Server(
        then="printf abc | base64 | curl --silent --show-error --data @- http://localhost:8080 | cut -c 1-76; "
        """docker exec digest /opt/watchdog/libexec/python3 -c 'import sys; print(sys.version.split(".")[:2])'""",
        prints="{\"sha256\": \"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\n['3', '13']\n",
    ),
    (
        _IMAGES,
        (
            "docker exec digest /opt/watchdog/libexec/python3 -c "
            "'import ssl, sys; print(sys.version.split()[0], ssl.OPENSSL_VERSION)'"
        ),
    ): NotRun("It is part of the command before it, while that container runs."),
    (_IMAGES, "id=$(docker create oscar-watchdog:tree /none)"): BUILT,
    (_IMAGES, "docker cp $id:/opt/watchdog/. /path/of/the/volume/"): Case(
        files={f"{_VOLUME}/.keep": ""},
        placeholders={"/path/of/the/volume": _VOLUME},
        then=f"{_VOLUME}/fwatchdog --version",
        prints="oscar-watchdog ",
    ),
    (_IMAGES, "docker rm $id"): BUILT,
    (
        _IMAGES,
        (
            "docker run --rm -p 8080:8080 -v /path/of/the/volume:/oscar/bin:ro -v $PWD/config:/oscar/config:ro "
            "-e fprocess=/oscar/bin/supervisor -e max_inflight=1 --entrypoint /oscar/bin/fwatchdog IMAGE"
        ),
    ): Server(
        files={"config/script.sh": COUNT},
        placeholders={"/path/of/the/volume": f"$PWD/{_VOLUME}", "IMAGE": "busybox"},
        then=FIRST_CALL,
        prints="3\n",
    ),
    (
        _IMAGES,
        (
            "docker run --rm -p 8080:8080 --read-only --tmpfs /tmp:rw,noexec,nosuid,nodev,size=64m --user 1000:1000 "
            "--cap-drop ALL --security-opt no-new-privileges --memory 64m IMAGE"
        ),
    ): Server(placeholders={"IMAGE": "grayify"}, then=PHOTO, prints=JPEG),
    (
        _IMAGES,
        "docker run --rm --entrypoint /opt/watchdog/libexec/python3 IMAGE -c 'import ssl; print(ssl.OPENSSL_VERSION)'",
    ): Case(placeholders={"IMAGE": "grayify"}, prints="OpenSSL 3"),
    (
        _IMAGES,
        "docker run --rm --entrypoint cat oscar-watchdog /opt/watchdog/share/sbom.cdx.json > sbom.cdx.json",
    ): Case(then="head -c 400 sbom.cdx.json", prints="CycloneDX"),
    (_IMAGES, "docker buildx build --platform linux/arm64"): NotRun(
        "It needs an arm64 machine, or an emulator of one."
    ),
    (_WARM, "docker run --rm oscar-watchdog helper python > my-function/watchdog_warm.py"): Case(
        files={"my-function/.keep": ""}, then="head -n 3 my-function/watchdog_warm.py", prints='"""'
    ),
    (_WARM, "docker build -t my-function my-function"): Case(
        files={
            "my-function/Dockerfile": block(_WARM, "dockerfile", "my-function"),
            "my-function/script.py": block(_WARM, "python", "load_model"),
            "my-function/script.sh": block(_WARM, "sh", "exec python3"),
        }
    ),
    (_WARM, "docker run --rm -p 8080:8080 -e WATCHDOG_WARM=1 my-function"): Server(
        path="/_/ready",
        then='echo "Is it warm?" | base64 | curl --silent --show-error -d @- "localhost:8080/?output=raw"',
        prints="question\n",
    ),
    # ---- operators
    (
        "docs/guide/kubernetes.md",
        "docker build -t registry.example.org/oscar-watchdog:0.2.0 -f Dockerfile.base .",
    ): BUILT,
    ("docs/guide/kubernetes.md", "docker push registry.example.org/oscar-watchdog:0.2.0"): _PUSH,
    (
        "docs/guide/oscar-cluster.md",
        "docker build -t registry.example.org/oscar-watchdog:0.2.0 -f Dockerfile.base .",
    ): BUILT,
    ("docs/guide/oscar-cluster.md", "docker push registry.example.org/oscar-watchdog:0.2.0"): _PUSH,
    ("docs/guide/starting-and-stopping.md", "docker stop --time"): _NAME_OF_AN_OPTION,
    ("docs/guide/troubleshooting.md", "docker run -v"): _NAME_OF_AN_OPTION,
    ("docs/explanation/reliability.md", "docker run --init"): _NAME_OF_AN_OPTION,
    ("docs/guide/images.md", "docker run -e"): _NAME_OF_AN_OPTION,
    ("SECURITY.md", "docker run --init"): _NAME_OF_AN_OPTION,
    ("SECURITY.md", "docker exec --user 0"): _NAME_OF_AN_OPTION,
    # ---- the examples
    ("examples/README.md", "docker build --tag oscar-watchdog --file Dockerfile.base ."): BUILT,
    ("examples/README.md", "docker build --tag grayify examples/grayify"): BUILT,
    ("examples/README.md", "docker run --rm --publish 8080:8080 grayify"): Server(then=PHOTO, prints=JPEG),
    ("examples/grayify/README.md", "docker build --tag grayify examples/grayify"): BUILT,
    ("examples/grayify/README.md", "docker run --rm --publish 8080:8080 grayify"): Server(then=PHOTO, prints=JPEG),
    ("examples/cowsay/README.md", "docker build --tag cowsay examples/cowsay"): BUILT,
    ("examples/cowsay/README.md", "docker run --rm --publish 8080:8080 cowsay"): Server(
        then="base64 examples/cowsay/message.txt | curl --silent --show-error --data @- http://localhost:8080/run/cowsay"
        " | head -n 2",
        prints=" ______________________\n< Moo from a container >\n",
    ),
    (
        "examples/image-classification/README.md",
        "docker build --tag image-classification examples/image-classification",
    ): (NotRun("It downloads 800 MB; make image-test builds the smaller images, make test runs the model.")),
    ("examples/image-classification/README.md", "docker run --rm --publish 8080:8080 image-classification"): NotRun(
        "Its image is not built here."
    ),
    (
        "examples/image-classification/README.md",
        (
            "docker run --rm --publish 8080:8080 --env WATCHDOG_WARM=1 "
            "--env WATCHDOG_SCRIPT_PATH=/oscar/config/warm.py image-classification"
        ),
    ): NotRun("Its image is not built here."),
    (
        "examples/plant-classification-sync/README.md",
        "docker build --tag plant-classification-sync examples/plant-classification-sync",
    ): NotRun("It needs the image of the model from a registry, and none can be reached."),
    ("examples/plant-classification-sync/README.md", "docker run --rm --publish 8080:8080 plant-classification-sync"): (
        NotRun("Its image is not built here.")
    ),
    ("examples/thumbnails-job/README.md", "docker build --tag thumbnails examples/thumbnails-job"): BUILT,
    (
        "examples/thumbnails-job/README.md",
        "docker run --rm --interactive --network host thumbnails job < examples/thumbnails-job/event.json",
    ): NotRun(
        "It needs the storage server of the page; contract/test_thumbnails_example.py runs the same job with it."
    ),
    (
        "examples/knative/README.md",
        "docker build --tag registry/oscar-watchdog:tag --file ../../Dockerfile.base ../..",
    ): (Case("examples/knative")),
    ("examples/grafana/README.md", "docker build --tag oscar-watchdog --file Dockerfile.base ."): BUILT,
    ("examples/grafana/README.md", "docker compose --file examples/grafana/compose.yaml up --build --detach"): _COMPOSE,
    ("examples/grafana/README.md", "docker compose --file examples/grafana/compose.yaml stop cowsay"): _COMPOSE,
    ("examples/grafana/README.md", "docker compose --file examples/grafana/compose.yaml down --volumes"): _COMPOSE,
    ("examples/knative/README.md", "docker push registry/oscar-watchdog:tag"): _PUSH,
    ("examples/openfaas/README.md", "docker build --tag oscar-watchdog --file Dockerfile.base ."): BUILT,
}


def write_files(case: Case, repository: Path) -> Path:
    """Write the files that the reader has written before. Return the working directory of the command."""
    folder = repository / case.folder
    for name, text in case.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        # With some umasks, Python writes files with mode 0600. The user of a container must be able to read all files.
        path.chmod(0o755 if name.endswith(".sh") else 0o644)
    return folder


def typed(command: str, case: Case) -> str:
    """Return the command without placeholders, and with a private CA if there is one (docs/guide/images.md)."""
    for word, value in case.placeholders.items():
        assert word in command
        command = command.replace(word, value)
    certificate = next((os.environ[name] for name in _CA_VARIABLES if os.environ.get(name)), None)
    if certificate is not None and "Dockerfile.base" in command:
        command = command.replace("docker build", f"docker build --secret id=ca,src={shlex.quote(certificate)}", 1)
    return command
