"""The tree serves in any container, and its scripts notice nothing of it."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from running_server import free_port

from image import roots as root_file_systems
from image.builds import Builds
from image.conftest import StartContainer
from image.containers import Engine, Options, ended, output_of, running
from image.roots import Roots
from image.serving import (
    CONFIG,
    HARDENED,
    Way,
    Ways,
    altered_copy,
    check_all,
    check_bytes,
    check_environment,
    check_health,
    check_mapped_files,
    check_no_interpreter,
    check_own_programs,
    write_script,
)

pytestmark = [pytest.mark.image, pytest.mark.timeout(300, func_only=True)]

_PROJECT = Path(__file__).parents[2]


@pytest.mark.parametrize("name_of_way", ["plain", "hardened", "hostile"])
@pytest.mark.parametrize("root", root_file_systems.ALL)
def test_the_tree_serves(
    root: str, name_of_way: str, ways: Ways, engine: Engine, start_container: StartContainer, tmp_path: Path
) -> None:
    way: Way = getattr(ways, name_of_way)(root)
    container = start_container(way.serving())
    if root == "empty":
        check_no_interpreter(container, ways.config)
        check_health(container)
        check_environment(container, way, engine, ways.config)
        check_mapped_files(container, way)
    else:
        check_all(container, way, engine, ways.config, tmp_path)
    if root in root_file_systems.WITH_PYTHON and name_of_way != "hostile":
        check_own_programs(container, way, engine, ways.config)
    assert container.stop() == 0
    assert not [event for event in container.logs if event["event"] == "not json"]


@pytest.mark.parametrize("variable", ["LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH", "OPENSSL_CONF"])
def test_the_hostile_environment_is_one(variable: str, ways: Ways, engine: Engine) -> None:
    """The image's own Python fails in this environment. Otherwise the success of the server would prove little."""
    way = ways.hostile("debian-12")
    value = ways.hostile_environ("debian-12")[variable]
    options = way.options
    program = ("/usr/bin/python3", "-c", "import asyncio, ssl; ssl.create_default_context()")
    for environ, succeeds in (((), True), (((variable, value),), False)):
        result = ended(engine, Options(options.image, program, environ, options.mounts))
        assert (result.returncode == 0) == succeeds, result


def test_the_tree_serves_where_it_is_not_pid_1(
    ways: Ways, engine: Engine, start_container: StartContainer, tmp_path: Path
) -> None:
    """The server then has a second process, its guardian."""
    way = ways.under_a_shell("debian-12")
    container = start_container(way.serving())
    check_all(container, way, engine, ways.config, tmp_path)
    assert len(container.processes_of(way.tree)) == 2
    assert container.pid not in container.processes_of(way.tree)


def test_the_tree_takes_the_place_of_oscars_programs(
    ways: Ways, engine: Engine, start_container: StartContainer, tmp_path: Path
) -> None:
    way = ways.in_oscar("debian-12")
    (ways.config / "function_config.yaml").write_text("name: twice\nlog_level: INFO\n")
    container = start_container(way.serving())
    check_all(container, way, engine, ways.config, tmp_path)
    check_own_programs(container, way, engine, ways.config)
    version = output_of(engine, way.running("/oscar/bin/supervisor", "--version"))
    assert version == output_of(engine, way.running("/oscar/bin/watchdog", "--version"))


@pytest.mark.parametrize("root", ["debian-13", "busybox"])
def test_the_tree_is_copied_into_an_image(
    root: str, roots: Roots, builds: Builds, ways: Ways, engine: Engine, start_container: StartContainer, tmp_path: Path
) -> None:
    """Copy it as the Dockerfile of a user does: into an image with another Python, and into one without Python."""
    image = f"localhost/oscar-watchdog-copied-into-{root}"
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text(f"""
FROM {builds.import_root(roots[root])}
COPY --from={builds.tree_image} /opt/watchdog /opt/watchdog
ENTRYPOINT ["/opt/watchdog/bin/watchdog"]
CMD ["serve"]
""")
    builds.build(dockerfile, tmp_path, image)
    way = ways.image(image, *HARDENED)
    container = start_container(way.serving())
    check_all(container, way, engine, ways.config, tmp_path)
    if root in root_file_systems.WITH_PYTHON:
        check_own_programs(container, way, engine, ways.config)


@pytest.mark.parametrize("command", [(), ("serve",)], ids=["no command", "serve"])
def test_the_image_serves_as_it_is(
    command: tuple[str, ...], builds: Builds, config: Path, start_container: StartContainer
) -> None:
    """Only the script is given. The container has its own loopback interface, because the ports are the defaults."""
    write_script(config, "/bin/sh", 'echo "$(id -un) $(id -u):$(id -g) $PORT $HOME"; base64 "$INPUT_FILE_PATH"')
    container = start_container(Options(builds.image, command, mounts=((config, CONFIG),), network="none"))
    assert container.port == 8080
    check_health(container)
    answer = container.curl("/", "--data", "aGVsbG8=")
    assert answer.body == b"watchdog 1000:1000 8080 /home/watchdog\naGVsbG8=\n"
    container.engine.run("podman", "healthcheck", "run", container.name)


def test_the_health_check_of_the_image_fails_while_it_is_not_ready(
    builds: Builds, engine: Engine, start_container: StartContainer
) -> None:
    container = start_container(Options(builds.image, network="none"))
    container.event("not ready")
    result = engine.run("podman", "healthcheck", "run", container.name, check=False)
    assert result.returncode == 1, result.stderr


def test_the_image_checks_its_settings(builds: Builds, engine: Engine, config: Path) -> None:
    without_script = ended(engine, Options(builds.image, ("check",)))
    assert without_script.returncode == 2
    assert b"'/oscar/config/script.sh'; there is no such file" in without_script.stdout
    write_script(config, "/bin/sh", "true")
    output = output_of(engine, Options(builds.image, ("check",), mounts=((config, CONFIG),))).decode()
    assert ["port", "8080", "environment", "PORT"] in [line.split() for line in output.splitlines()]


def test_the_image_serves_as_knative_starts_it(
    builds: Builds, ways: Ways, engine: Engine, start_container: StartContainer, tmp_path: Path
) -> None:
    """There is no command, PORT has the port, and the user has no capability. Source: Knative's runtime contract."""
    port = free_port()
    of_knative = {"PORT": str(port), "K_SERVICE": "twice", "K_REVISION": "twice-00001", "K_CONFIGURATION": "twice"}
    way = ways.image(builds.image, *HARDENED, "--user", "4711:4711", **of_knative)
    container = start_container(way.serving())
    assert container.port == port
    check_all(container, way, engine, ways.config, tmp_path)
    assert container.stop() == 0


def test_an_example_runs_on_the_image(
    builds: Builds, engine: Engine, start_container: StartContainer, tmp_path: Path
) -> None:
    """The answer is the picture that ImageMagick makes in the same image without a server."""
    example = _PROJECT / "examples/grayify"
    image = "localhost/oscar-watchdog-grayify"
    builds.build(example / "Dockerfile", example, image, "--build-arg", f"BASE={builds.image}")
    variables = "INPUT_FILE_PATH=/example/photo.jpg TMP_OUTPUT_DIR=/tmp"
    by_hand = f"{variables} sh /oscar/config/script.sh >/dev/null && cat /tmp/gray.jpg"
    flags = ("--entrypoint", "/bin/sh")
    gray = output_of(engine, Options(image, ("-c", by_hand), mounts=((example, "/example"),), flags=flags))

    container = start_container(Options(image, network="none"))
    body = tmp_path / "photo.base64"
    body.write_bytes(base64.encodebytes((example / "photo.jpg").read_bytes()))
    answer = container.curl("/run/grayify", data=body)
    assert answer.status == 200, answer.body
    picture = base64.b64decode(answer.body)
    assert picture.startswith(b"\xff\xd8\xff")
    assert picture == gray


def test_a_tree_without_one_of_its_libraries_is_found_out(ways: Ways, engine: Engine, tmp_path: Path) -> None:
    """In an empty root it does not start. In a root with this library it uses that one, which the check must find."""

    def remove_zlib(tree: Path) -> None:
        (library,) = tree.glob("lib/libz.so.*")
        library.unlink()

    ways.tree = altered_copy(ways.tree, tmp_path / "tree", remove_zlib)
    with (
        pytest.raises(AssertionError, match="ended before the event 'listening'"),
        running(engine, ways.plain("empty").serving()),
    ):
        pass
    way = ways.plain("debian-12")
    with running(engine, way.serving()) as container:
        check_bytes(container, way, ways.config, tmp_path)
        with pytest.raises(AssertionError, match=r"mapped from outside the tree: .*/libz\.so"):
            check_mapped_files(container, way)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("main(environ)", "main()"),
        ("os.fsdecode(value)", "value.decode('utf-8', 'replace')"),
        ("main(environ)", "main(environ | {'LC_CTYPE': 'C.UTF-8'})"),
        ("main(environ)", "main({n: v for n, v in environ.items() if n != 'LD_PRELOAD'})"),
        ("main(environ)", "main({n: v for n, v in environ.items() if v})"),
    ],
    ids=["the server's own", "a byte changed", "one added", "one lost", "empty ones lost"],
)
def test_a_start_file_that_does_not_restore_the_environment_is_found_out(
    right: str, wrong: str, ways: Ways, engine: Engine, tmp_path: Path
) -> None:
    def alter_start_file(tree: Path) -> None:
        text = (tree / "libexec/start.py").read_text()
        assert right in text
        (tree / "libexec/start.py").write_text(text.replace(right, wrong))

    ways.tree = altered_copy(ways.tree, tmp_path / "tree", alter_start_file)
    way = ways.hostile("debian-12")
    with running(engine, way.serving()) as container:
        check_bytes(container, way, ways.config, tmp_path)
        with pytest.raises(AssertionError, match="missing: "):
            check_environment(container, way, engine, ways.config)
