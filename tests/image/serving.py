"""Ways to run the tree in a container, and the checks of the server in each. They are also used for broken trees."""

from __future__ import annotations

import base64
import random
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from image.containers import Container, Engine, Options, output_of
from image.roots import Roots

TREE = "/opt/watchdog"
SERVER = (f"{TREE}/bin/watchdog", "serve")
CONFIG = "/oscar/config"
_STATIC = "/static"
# This shell runs even if the environment breaks the image's own programs.
STATIC_SHELL = f"{_STATIC}/busybox sh"
_FOREIGN = "/foreign"
_HOSTILE = "/hostile"
# The last variable is needed because a stop after a probe takes this long.
ON_LOOPBACK = (
    ("PORT", "0"),
    ("WATCHDOG_BIND", "127.0.0.1"),
    ("WATCHDOG_METRICS_PORT", "0"),
    ("WATCHDOG_HEALTHCHECK_INTERVAL", "0"),
)
_ANY_BYTES = random.Random(1).randbytes(300_000)
_OF_THE_CONTRACT = frozenset(
    [b"INPUT_FILE_PATH", b"TMP_INPUT_DIR", b"TMP_OUTPUT_DIR", b"CALL_ID", b"HTTP_RESPONSE_FILE", b"WATCHDOG_WARM_PY"]
)
# The strictest options of a platform. Docker's tmpfs is noexec.
HARDENED = (
    *("--read-only", "--tmpfs", "/tmp:rw,noexec,nosuid,nodev", "--user", "1000:1000", "--cap-drop", "ALL"),
    *("--security-opt", "no-new-privileges", "--memory", "64m"),
)
# Adds names and values that are not UTF-8, which no engine accepts.
_START = """#!/static/busybox sh
exec /static/busybox env "$(printf 'NOT_\\377_UTF8')=$(printf '\\376\\302')" EMPTY= "$@"
"""
_BAD_PROVIDER = """
openssl_conf = settings
[settings]
providers = providers
ssl_conf = missing
[providers]
foreign = foreign
[foreign]
module = /hostile/openssl.cnf
activate = 1
"""


@dataclass(frozen=True)
class Way:
    """How the server is started in a container.

    Attributes:
        options: the options of the container, except the command.
        server: the command that starts it.
        prefix: the beginning of every command. The command then has the same environment as the server.
        shell: the interpreter of the scripts in tests.
        tree: the path of the tree in the container.
    """

    options: Options
    server: tuple[str, ...] = SERVER
    prefix: tuple[str, ...] = ()
    shell: str = "/bin/sh"
    tree: str = TREE

    def serving(self) -> Options:
        return replace(self.options, command=(*self.prefix, *self.server))

    def with_flags(self, *flags: str) -> Way:
        """Return this way with more flags of ``podman run``."""
        return replace(self, options=replace(self.options, flags=(*self.options.flags, *flags)))

    def running(self, *command: str) -> Options:
        """Return the options of the same container with another program."""
        flags = self.options.flags
        if isinstance(self.options.image, str):
            flags = (*flags, "--entrypoint", "")
        return replace(self.options, command=(*self.prefix, *command), flags=flags)


class Ways:
    """The ways to start the server in any root."""

    def __init__(self, directory: Path, roots: Roots, tree: Path) -> None:
        """
        Args:
            directory: an empty directory, for the files that containers see.
            tree: the directory that containers see at ``/opt/watchdog``.
        """
        self._roots = roots
        self.tree = tree
        self.config, self._static, self._hostile = directory / "config", directory / "static", directory / "hostile"
        for each in (self.config, self._static, self._hostile):
            each.mkdir()
        shutil.copy("/bin/busybox", self._static / "busybox")
        (self._static / "start").write_text(_START)
        (self._static / "start").chmod(0o755)
        (self._hostile / "openssl.cnf").write_text(_BAD_PROVIDER)
        for module in ("sitecustomize", "usercustomize", "asyncio", "watchdog", "aiohttp"):
            (self._hostile / f"{module}.py").write_text("raise SystemExit('a foreign module was imported')\n")

    def plain(self, root: str) -> Way:
        mounts = ((self.tree, TREE), (self.config, CONFIG), (self._static, _STATIC))
        return Way(Options(self._roots[root], environ=ON_LOOPBACK, mounts=mounts))

    def hardened(self, root: str) -> Way:
        return self.plain(root).with_flags(*HARDENED)

    def hostile(self, root: str) -> Way:
        """Return a way with an environment that breaks most programs, even those of the image."""
        way = self.plain(root)
        environ = tuple(self.hostile_environ(root).items())
        options = replace(
            way.options,
            environ=(*way.options.environ, *environ),
            mounts=(*way.options.mounts, (self._hostile, _HOSTILE), (self._foreign_libraries(root), _FOREIGN)),
        )
        return replace(way, options=options, prefix=(f"{_STATIC}/start",), shell=STATIC_SHELL)

    def under_a_shell(self, root: str) -> Way:
        """Return a way in which the server is not PID 1. The environment is hostile, too."""
        way = self.hostile(root)
        return replace(way, prefix=(*way.prefix, f"{_STATIC}/busybox", "sh", "-c", '"$@" & wait $!', "sh"))

    def in_oscar(self, root: str) -> Way:
        """Start the server as OSCAR does, in place of the two programs that OSCAR knows.

        Sources: grycap/oscar, pkg/types/service.go and pkg/types/config.go.
        """
        way = self.plain(root)
        environ = (
            *(("fprocess", "/oscar/bin/supervisor"), ("max_inflight", "1"), ("write_debug", "true")),
            *(("exec_timeout", "0"), ("read_timeout", "300"), ("write_timeout", "300"), ("healthcheck_interval", "5")),
        )
        mounts = ((self.tree, "/oscar/bin"), *way.options.mounts[1:])
        options = replace(way.options, environ=(*way.options.environ, *environ), mounts=mounts)
        return replace(way, options=options, server=("/oscar/bin/fwatchdog",), tree="/oscar/bin")

    def image(self, image: str, *flags: str, **environ: str) -> Way:
        """Return the way of an image that has the tree and starts it."""
        mounts = ((self.config, CONFIG), (self._static, _STATIC))
        options = Options(image, environ=tuple((dict(ON_LOOPBACK) | environ).items()), mounts=mounts, flags=flags)
        return Way(options, server=())

    def hostile_environ(self, root: str) -> dict[str, str]:
        libcrypto = next(self._foreign_libraries(root).glob("libcrypto.so.*")).name
        return {
            "LD_LIBRARY_PATH": _FOREIGN,
            "LD_PRELOAD": f"libz.so.1:{_FOREIGN}/{libcrypto}",
            "LD_AUDIT": f"{_FOREIGN}/libz.so.1",
            "LD_DEBUG": "libs",
            "LD_BIND_NOW": "1",
            "PYTHONHOME": _HOSTILE,
            "PYTHONPATH": _HOSTILE,
            "PYTHONSTARTUP": f"{_HOSTILE}/asyncio.py",
            "PYTHONMALLOC": "debug",
            "PYTHONWARNINGS": "error",
            "OPENSSL_CONF": f"{_HOSTILE}/openssl.cnf",
            "OPENSSL_MODULES": _FOREIGN,
            "GCONV_PATH": f"{_FOREIGN}/gconv",
            "LOCPATH": _FOREIGN,
            "LANG": "de_DE.ISO-8859-1",
            "LC_ALL": "xx",
            "LC_CTYPE": "C",
            "MALLOC_PERTURB_": "165",
            "MALLOC_ARENA_MAX": "1",
            "GLIBC_TUNABLES": "glibc.malloc.check=3:glibc.malloc.perturb=90",
            "TZDIR": _HOSTILE,
            "_PYI_ARCHIVE_FILE": _HOSTILE,
        }

    def _foreign_libraries(self, root: str) -> Path:
        """Return a directory of shared libraries with a glibc that neither the root nor the tree has."""
        libc = next(self._roots["debian-11" if root == "debian-13" else "debian-13"].glob("usr/lib/*/libc.so.6"))
        return libc.parent


def check_all(container: Container, way: Way, engine: Engine, config: Path, directory: Path) -> None:
    """Make all checks of a container whose scripts have an interpreter.

    Args:
        config: the directory of the script.
        directory: a directory for files of the test.
    """
    check_health(container)
    check_bytes(container, way, config, directory)
    check_environment(container, way, engine, config)
    check_mapped_files(container, way)


def check_health(container: Container) -> None:
    answer = container.curl("/_/health")
    assert (answer.status, answer.body) == (200, b"OK")


def check_bytes(container: Container, way: Way, config: Path, directory: Path) -> None:
    """Check that input and answer are base64, and that the script got and changed the bytes."""
    write_script(config, way.shell, 'cat "$INPUT_FILE_PATH" "$INPUT_FILE_PATH" >"$TMP_OUTPUT_DIR/twice"')
    body = directory / "body.base64"
    body.write_bytes(base64.encodebytes(_ANY_BYTES))
    answer = container.curl("/run/twice?x=y", data=body)
    assert answer.status == 200, answer.body
    assert base64.b64decode(answer.body.removesuffix(b"\n"), validate=True) == 2 * _ANY_BYTES


def check_no_interpreter(container: Container, config: Path) -> None:
    """Check that the answer says so if the container has no interpreter for the script."""
    write_script(config, "/bin/sh", "echo this is never printed")
    answer = container.curl("/", "--data", "aGVsbG8=")
    assert answer.status == 500, answer.body
    assert "/bin/sh" in answer.json["detail"], answer.body
    assert "interpreter" in answer.json["detail"], answer.body


def check_environment(container: Container, way: Way, engine: Engine, config: Path) -> None:
    """A script gets the environment of the image, byte for byte, the variables of the contract, and nothing else."""
    image = _entries(output_of(engine, way.running(f"{_STATIC}/busybox", "cat", "/proc/self/environ")))
    # Read the first environment of the interpreter, because a shell changes the environment of its children.
    write_script(config, STATIC_SHELL, f'{_STATIC}/busybox cat /proc/$$/environ >"$TMP_OUTPUT_DIR/environ"')
    answer = container.curl("/?output=raw", "--data", "aGVsbG8=")
    assert answer.status == 200, answer.body
    script = _entries(answer.body)
    added = Counter({entry: count for entry, count in script.items() if _is_of_the_contract(entry.partition(b"=")[0])})
    assert script - added == image, f"missing: {image - script}; changed or added: {script - added - image}"
    names = Counter(entry.partition(b"=")[0] for entry in added.elements())
    assert set(names.values()) == {1}
    assert _OF_THE_CONTRACT | {b"Http_Method", b"Http_Path", b"Http_User_Agent"} <= names.keys()


def _entries(environ: bytes) -> Counter[bytes]:
    assert environ.endswith(b"\0")
    return Counter(environ[:-1].split(b"\0"))


def _is_of_the_contract(name: bytes) -> bool:
    return name in _OF_THE_CONTRACT or name.startswith(b"Http_")


def check_mapped_files(container: Container, way: Way) -> None:
    """Check that no process of the server has mapped a file outside of the tree."""
    pids = container.processes_of(way.tree)
    assert pids
    for pid in pids:
        mapped = set()
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            fields = line.split(maxsplit=5)
            if len(fields) == 6:
                mapped.add(fields[5])
        foreign = {path for path in mapped if not path.startswith((f"{way.tree}/", "[", "/memfd:", "/dev/zero"))}
        assert not foreign, f"mapped from outside the tree: {foreign}"
        assert any(path.startswith(f"{way.tree}/lib/libc.so") for path in mapped)


def check_own_programs(container: Container, way: Way, engine: Engine, config: Path) -> None:
    """Check that the image's own Python, OpenSSL and apt work in a script as they do outside of it."""
    commands = (
        "python3 -c 'import sys, ssl, json, asyncio; print(json.dumps([sys.version, sys.path, ssl.OPENSSL_VERSION]))'"
        " && openssl version && apt-get --version && locale"
    )
    without = output_of(engine, way.running("/bin/sh", "-c", commands))
    assert without
    write_script(config, "/bin/sh", commands)
    answer = container.curl("/", "--data", "aGVsbG8=")
    assert (answer.status, answer.body) == (200, without)


def write_script(config: Path, interpreter: str, text: str) -> None:
    (config / "script.sh").write_text(f"#!{interpreter}\nset -eu\n{text}\n")


def altered_copy(tree: Path, directory: Path, alter: Callable[[Path], None]) -> Path:
    """Return a copy of the tree that ``alter`` has changed."""
    shutil.copytree(tree, directory, symlinks=True)
    alter(directory)
    return directory
