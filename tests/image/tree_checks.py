"""Checks of the self-contained tree. Each returns texts that describe faults. Tests also use them on broken trees."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packageurl import PackageURL

SEEN_AT = "/opt/watchdog"
_INSIDE = Path(__file__).with_name("inside_tree.py").read_text()
_COMMAND_S = 120
_PROGRAMS = ("bin/watchdog", "libexec/cpython", "lib/ld.so")
# This file is compiled at each start, because it is not a module.
_START_FILE = "libexec/start.py"

# This runs in its own mount namespace, so no mount is left. In a script, `inside` runs a command in the root.
_MOUNTED = """
set -e
root=$1 tree=$2 seen_at=$3 script=$4
shift 4
mkdir -p "$root$seen_at" "$root/proc"
mount --bind "$tree" "$root$seen_at"
mount -o remount,bind,ro "$root$seen_at"
mount -t proc proc "$root/proc"
inside() { chroot "$root" "$@"; }
eval "$script"
"""


def in_root(
    tree: Path,
    script: str,
    *arguments: str,
    seen_at: str = SEEN_AT,
    files: Mapping[str, bytes] | None = None,
    root: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a shell script in which ``inside COMMAND`` runs a command in a root that has only the tree and /proc.

    Args:
        arguments: the arguments of the script, ``$1`` and so on.
        files: further files of the root, by path.
        root: another root, which has the directory ``seen_at``.
    """
    with tempfile.TemporaryDirectory(prefix="watchdog-root-") as empty:
        for path, content in (files or {}).items():
            file = Path(f"{empty}{path}")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
            file.chmod(0o755)
        command = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", _MOUNTED, "sh")
        return subprocess.run(
            [*command, str(root or empty), str(tree), seen_at, script, *arguments],
            env={"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="backslashreplace",
            timeout=_COMMAND_S,
        )


def ask(
    tree: Path,
    *command: str,
    python: str = f"{SEEN_AT}/libexec/python3",
    root: Path | None = None,
    seen_at: str = SEEN_AT,
) -> Any:
    """Run a command of ``inside_tree.py`` with the tree's Python in an empty root, or with the Python of a root."""
    result = in_root(tree, 'inside "$@"', python, "-I", "-S", "-c", _INSIDE, *command, root=root, seen_at=seen_at)
    assert result.returncode == 0, result
    return json.loads(result.stdout)


def site_packages(tree: Path) -> Path:
    (found,) = tree.glob("lib/python3.*/site-packages")
    return found


def entries(tree: Path) -> list[Path]:
    """Return all paths below the directory of the tree."""
    return sorted(tree.rglob("*"))


def elf_files(tree: Path) -> list[Path]:
    return [path for path in entries(tree) if _is_regular(path) and _begin(path) == b"\x7fELF"]


def _is_regular(path: Path) -> bool:
    return stat.S_ISREG(path.lstat().st_mode)


def _begin(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)


# ---------------------------------------------------------------------------------------------------------- libraries


def check_libraries(tree: Path) -> list[str]:
    """In an empty root, the tree's own loader finds each library, version and symbol that a file needs in the tree."""
    files = [str(path.relative_to(tree)) for path in elf_files(tree) if path != tree / "bin/watchdog"]
    # This is what `ldd -r` does, but the variables are set only for the loader. If it fails for a file, its output
    # shows that.
    script = """
        for file in "$@"; do
            echo "=== $file"
            inside /busybox env LD_TRACE_LOADED_OBJECTS=1 LD_WARN=yes LD_BIND_NOW=yes \\
                "$seen_at/lib/ld.so" --inhibit-cache --library-path "$seen_at/lib" "$seen_at/$file" 2>&1 ||
                echo "ended with $?"
        done"""
    # busybox is static.
    result = in_root(tree, script, *files, files={"/busybox": Path("/bin/busybox").read_bytes()})
    assert result.returncode == 0, result
    # Extension modules use these symbols of the program into which they are loaded.
    of_the_interpreter = _symbols(tree / "libexec/cpython")
    wrong, file, seen = [], "", 0
    for line in result.stdout.splitlines():
        if line.startswith("=== "):
            file, seen = line.removeprefix("=== "), seen + 1
        elif match := re.match(r"undefined symbol: ([^\s,]+)", line):
            if match[1] not in of_the_interpreter:
                wrong.append(f"{file}: {line.strip()}")
        elif match := re.fullmatch(r"\s+(?:\S+ => )?(/\S+) \(0x[0-9a-f]+\)", line):
            if not match[1].startswith(f"{SEEN_AT}/lib/"):
                wrong.append(f"{file}: {line.strip()}")
        elif not re.fullmatch(r"\s+(linux-(vdso|gate)\S+ \(0x[0-9a-f]+\)|statically linked)", line):
            wrong.append(f"{file}: {line.strip()}")
    assert seen == len(files)
    return wrong


def _symbols(program: Path) -> set[str]:
    """Return the symbols that a program defines for libraries."""
    lines = _output("readelf", "--wide", "--dyn-syms", str(program)).splitlines()
    fields = [line.split() for line in lines]
    return {each[7].partition("@")[0] for each in fields if len(each) >= 8 and each[6].isdecimal()}


def check_launcher(tree: Path) -> list[str]:
    """The launcher needs neither a loader nor a library."""
    about = _output("readelf", "--wide", "--program-headers", "--dynamic", str(tree / "bin/watchdog"))
    return [f"bin/watchdog has {what}" for what in ("INTERP", "(NEEDED)", "RPATH", "RUNPATH") if what in about]


def check_search_paths(tree: Path) -> list[str]:
    """No file has a DT_RPATH, which comes before ``--library-path``. A DT_RUNPATH must stay in the tree.

    libc must not search the default directories, which are those of the image.
    """
    wrong = []
    for path in elf_files(tree):
        about = _output("readelf", "--wide", "--dynamic", str(path))
        name = path.relative_to(tree)
        if "(RPATH)" in about:
            wrong.append(f"{name} has a DT_RPATH")
        for match in re.finditer(r"\(RUNPATH\)\s.*\[(.*)\]", about):
            for directory in match[1].split(":"):
                origin, _, rest = directory.partition("/")
                place = os.path.normpath(path.parent / rest)
                if origin not in ("$ORIGIN", "${ORIGIN}") or not f"{place}/".startswith(f"{tree}/"):
                    wrong.append(f"{name} has the DT_RUNPATH {directory}")
        if path.name.startswith("libc.so") and "NODEFLIB" not in about:
            wrong.append(f"{name} looks for libraries in default directories")
    return wrong


def _output(*command: str) -> str:
    environ = os.environ | {"LC_ALL": "C"}
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=True, timeout=_COMMAND_S).stdout


def check_foreign_libraries(tree: Path) -> list[str]:
    """No library of the image is loaded because of /etc/ld.so.preload or /etc/nsswitch.conf, which glibc reads."""
    library = next(tree.glob("lib/libz.so.*")).read_bytes()
    files = {f"/{directory}/libnss_foreign.so.2": library for directory in ("lib", "usr/lib", "lib64", "usr/lib64")}
    files |= {
        "/foreign/preload.so": library,
        "/etc/ld.so.preload": b"/foreign/preload.so\n",
        "/etc/nsswitch.conf": b"passwd: foreign files\nhosts: foreign files\n",
        "/etc/passwd": b"somebody:x:4711:4711::/:/bin/sh\n",
        "/etc/hosts": b"127.0.0.1 somewhere.example\n",
    }
    program = """if True:
        import pwd, socket
        print(pwd.getpwuid(4711).pw_name, socket.getaddrinfo("somewhere.example", 80)[0][4])
        print(*{line.split()[5] for line in open("/proc/self/maps") if len(line.split()) > 5}, sep="\\n")
    """
    result = in_root(tree, 'inside "$@"', f"{SEEN_AT}/libexec/python3", "-c", program, files=files)
    if result.returncode:
        return [result.stderr]
    looked_up, *mapped = result.stdout.splitlines()
    wrong = [] if looked_up == "somebody ('127.0.0.1', 80)" else [f"looked up: {looked_up}"]
    wrong += [f"{path} is mapped" for path in mapped if not path.startswith((f"{SEEN_AT}/", "["))]
    return [*wrong, result.stderr] if result.stderr else wrong


# -------------------------------------------------------------------------------------------------------------- files


def check_kinds_and_owners(tree: Path) -> list[str]:
    """The tree has only files, directories and links into itself.

    All belong to root. Only root may write to them, and none is set-id.
    """
    wrong = []
    for path in entries(tree):
        name, status = path.relative_to(tree), path.lstat()
        if stat.S_ISLNK(status.st_mode):
            target = os.readlink(path)
            place = os.path.normpath(path.parent / target)
            if target.startswith("/"):
                wrong.append(f"{name} is an absolute link")
            elif not place.startswith(f"{tree}/"):
                wrong.append(f"{name} leads out of the tree")
            elif not path.exists():
                wrong.append(f"{name} leads to nothing")
        elif not stat.S_ISDIR(status.st_mode) and not stat.S_ISREG(status.st_mode):
            wrong.append(f"{name} is neither a file nor a directory nor a link")
        elif status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            wrong.append(f"others may write to {name}")
        if status.st_mode & (stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX):
            wrong.append(f"{name} is set-id or sticky")
        if (status.st_uid, status.st_gid) != (0, 0):
            wrong.append(f"{name} is of {status.st_uid}:{status.st_gid}")
        if "security.capability" in os.listxattr(path, follow_symlinks=False):
            wrong.append(f"{name} has capabilities")
    return wrong


def check_modes_and_times(tree: Path, moment: int = 0) -> list[str]:
    """Directories and programs have the mode 0755, other files 0644. All have the same time, in seconds since 1970.

    The directory of the tree itself is not checked, because a container engine that copies the tree makes it.
    """
    programs = {(tree / name).resolve() for name in _PROGRAMS}
    wrong = []
    for path in entries(tree):
        name, status = path.relative_to(tree), path.lstat()
        if not path.is_symlink():
            mode = stat.S_IMODE(status.st_mode)
            if mode != (0o755 if path.is_dir() or path.resolve() in programs else 0o644):
                wrong.append(f"{name} has the mode {mode:o}")
        if status.st_mtime_ns != moment * 1_000_000_000:
            wrong.append(f"{name} is of {status.st_mtime}, not {moment}")
    return wrong


def check_traces_of_the_builder(tree: Path, *words: str) -> list[str]:
    """No file contains one of the words, which are paths and hosts of package indexes."""
    return [
        f"{path.relative_to(tree)} names {word}"
        for path in entries(tree)
        if _is_regular(path)
        for content in [path.read_bytes()]
        for word in words
        if word.encode() in content
    ]


def contents(tree: Path) -> dict[str, str]:
    """Return for each path of the tree: kind, mode, and the digest of a file or the target of a link."""
    found = {}
    for path in entries(tree):
        what = os.readlink(path) if path.is_symlink() else ""
        if _is_regular(path):
            what = hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path.relative_to(tree))] = f"{path.lstat().st_mode:o} {what}"
    return found


def differences(one: Path, other: Path) -> list[str]:
    here, there = contents(one), contents(other)
    return [f"{name} differs" for name in sorted(here.keys() | there.keys()) if here.get(name) != there.get(name)]


# ------------------------------------------------------------------------------------------------------------- Python


def check_byte_code(tree: Path) -> list[str]:
    """All modules have byte code. It does not depend on the times of files, and names the final path of the tree."""
    wrong: list[str] = ask(tree, "byte_code", SEEN_AT, SEEN_AT)
    return wrong


@dataclass(frozen=True)
class Imports:
    """The imports that lead to nothing, in the modules of a Python and of the tree's wheels.

    Attributes:
        failing: modules that cannot be imported, with the reason.
        unresolved: pairs of a module and an import in it, also in functions.
    """

    modules: frozenset[str]
    failing: dict[str, str]
    unresolved: frozenset[tuple[str, str]]


def imports_of_tree(tree: Path) -> Imports:
    """Return the imports of the tree in an empty root."""
    return _imports(tree, f"{SEEN_AT}/libexec/python3", None, SEEN_AT)


def imports_of_debian(tree: Path, root: Path) -> Imports:
    """Return the imports of the complete Python of a Debian."""
    # Each Debian has this directory, so the root does not change.
    return _imports(tree, "/usr/bin/python3", root, "/mnt")


def _imports(tree: Path, python: str, root: Path | None, seen_at: str) -> Imports:
    wheels = f"{seen_at}/{site_packages(tree).relative_to(tree)}"

    def told(*command: str) -> Any:
        return ask(tree, *command, python=python, root=root, seen_at=seen_at)

    return Imports(
        frozenset(told("modules", wheels)),
        told("failing_imports", wheels),
        frozenset(map(tuple, told("unresolved_imports", wheels))),
    )


# ---------------------------------------------------------------------------------------------- bill of materials


def check_bill_of_materials(tree: Path) -> list[str]:
    """It is valid, the same for each build, right about the wheels, and has a licence text for each component."""
    # The import takes more than a second, and each process of a test run imports this module.
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = (tree / "share/sbom.cdx.json").read_text()
    error = JsonStrictValidator(SchemaVersion.V1_5).validate_str(text)
    if error is not None:
        return [f"it is not valid: {error}"]
    document = json.loads(text)
    wrong = [f"it differs each time: {name}" for name in ("serialNumber", "timestamp") if f'"{name}"' in text]
    components = [each for each in document["components"] if each["type"] == "library"]
    for each in components:
        purl = PackageURL.from_string(each["purl"])
        if (_normal(purl.name), purl.version) != (_normal(each["name"]), each["version"]):
            wrong.append(f"the package URL {each['purl']} is not of {each['name']} {each['version']}")
        copyrights = [own["value"] for own in each["properties"] if own["name"] == "oscar-watchdog:copyright"]
        if copyrights != [f"share/doc/{each['name']}/copyright"]:
            wrong.append(f"{each['name']} names {copyrights} for its copyright")
    for name in ("oscar-watchdog", *(each["name"] for each in components)):
        file = tree / "share/doc" / name / "copyright"
        if not file.is_file() or not file.read_text().strip():
            wrong.append(f"{name} has no copyright file")
        else:
            named = re.findall(r"/usr/share/common-licenses/([\w.+-]*\w)", file.read_text())
            missing = {each for each in named if not (tree / "share/common-licenses" / each).is_file()}
            wrong += [f"{name} refers to the licence {each}, which is not there" for each in sorted(missing)]
    listed = {(PackageURL.from_string(each["purl"]).name, each["version"]) for each in components}
    for wheel in importlib.metadata.distributions(path=[str(site_packages(tree))]):
        if (_normal(wheel.metadata["Name"]), wheel.version) not in listed:
            wrong.append(f"the wheel {wheel.metadata['Name']} {wheel.version} is not in it")
    return wrong


def check_debian_packages(tree: Path, root: Path, base: Path) -> list[str]:
    """Each file from Debian is of a package in the bill, with the right version.

    Args:
        root: a Debian that has all of these packages, possibly in the versions of another day.
        base: the Debian on which the builder is based.
    """
    document = json.loads((tree / "share/sbom.cdx.json").read_text())
    components = {each["name"]: each for each in document["components"] if each.get("purl", "").startswith("pkg:deb/")}
    wrong = []
    for library in [*tree.glob("lib/*.so*"), tree / "libexec/cpython"]:
        name = library.name if library.name != "cpython" else f"bin/{site_packages(tree).parent.name}"
        if not library.is_symlink():
            packages = _dpkg_query(root, "--search", f"*/{name}")
            owners = {line.partition(":")[0] for line in packages.splitlines() if line.endswith(f"/{name}")}
            if not owners & components.keys():
                wrong.append(f"{library.name} is of {owners or 'no package'}, which is not in it")
    shown = _dpkg_query(base, "--show", "-f", "${Package} ${Version}\n")
    for name, version in (line.split() for line in shown.splitlines()):
        # Packages that were installed for the build may have needed newer versions.
        if name in components and not _is_of_or_newer(components[name]["version"], version):
            wrong.append(f"{name} is of version {version}, not {components[name]['version']}")
    told = subprocess.run(
        [tree / "libexec/python3", "-c", "import platform, ssl; print(platform.python_version(), ssl.OPENSSL_VERSION)"],
        capture_output=True,
        text=True,
        check=True,
        timeout=_COMMAND_S,
    ).stdout.split()
    python, openssl = told[0], told[2]
    glibc = re.search(rb"\(Debian GLIBC ([^)]+)\)", (tree / "lib/libc.so.6").read_bytes())
    versions = {"libssl3t64": f"{openssl}-", f"lib{site_packages(tree).parent.name}-stdlib": f"{python}-"}
    versions |= {"libc6": glibc[1].decode() if glibc else "unknown"}
    for name, version in versions.items():
        if not components.get(name, {"version": ""})["version"].startswith(version):
            wrong.append(f"{name} is of version {version}, not {components.get(name)}")
    return wrong


def _dpkg_query(root: Path, *command: str) -> str:
    result = subprocess.run(
        ["dpkg-query", f"--admindir={root}/var/lib/dpkg", *command], capture_output=True, text=True, timeout=_COMMAND_S
    )
    return result.stdout


def _is_of_or_newer(version: str, other: str) -> bool:
    return subprocess.run(["dpkg", "--compare-versions", version, "ge", other], timeout=_COMMAND_S).returncode == 0


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# --------------------------------------------------------------------------------------------------- trees to compare


@contextlib.contextmanager
def unchanged(tree: Path) -> Iterator[list[str]]:
    """Yield a list. After the context, it has the paths in the tree that were written in the context."""

    def state() -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {}
        for path in [tree, *entries(tree)]:
            status = path.lstat()
            found[str(path)] = (status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        return found

    written: list[str] = []
    before = state()
    yield written
    after = state()
    written += [path for path in sorted(before.keys() | after.keys()) if before.get(path) != after.get(path)]


def linked_copy(tree: Path, directory: Path, alter: Callable[[Path], object]) -> Path:
    """Return a tree that shares files with another one, except those that ``alter`` changes (``own``, ``write``)."""
    shutil.copytree(tree, directory, symlinks=True, copy_function=_link)
    alter(directory)
    return directory


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.EXDEV:  # another file system
            raise
        shutil.copy2(source, target, follow_symlinks=False)


def own(path: Path) -> Path:
    """Replace a file of a linked copy by a separate file, so that it can be changed."""
    copy = path.with_name(f"{path.name}.copy")
    shutil.copy2(path, copy)
    copy.rename(path)
    return path


def write(path: Path, content: bytes) -> None:
    """Give a file of a linked copy another content, and keep its mode and time."""
    status = own(path).stat()
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
