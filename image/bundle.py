"""Builds the self-contained tree from this project, the locked wheels, and the Python and libraries of this machine.

::

    python3 image/bundle.py --prefix /opt/watchdog [--root DIR]

Needs a Debian with python3, pip, musl-gcc, binutils. The tree is made at ``DIR/opt/watchdog``; `--prefix` is the path
under which tracebacks name its files, and it works wherever it is put. Two runs on one machine make the same files,
byte for byte.

What a library is and where it lies is asked of the system's own tools (`readelf`, `ldd`, `dpkg`): names of loaders and
of architectures are nowhere written down.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import shutil
import stat
import struct
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent

# Of the standard library: what neither the program nor a wheel imports, and no server could use.
_UNUSED_MODULES = (
    "test idlelib tkinter turtledemo turtle.py lib2to3 ensurepip venv pydoc_data pydoc.py distutils curses sqlite3 dbm "
    "msilib unittest doctest.py pdb.py pickletools.py mailbox.py nntplib.py imaplib.py smtplib.py smtpd.py poplib.py "
    "telnetlib.py aifc.py sunau.py xmlrpc xdrlib.py lib-dynload/_tkinter.* lib-dynload/_curses*.* "
    "lib-dynload/readline.* lib-dynload/_sqlite3.* lib-dynload/_dbm.* lib-dynload/_gdbm.* lib-dynload/nis.* "
    "lib-dynload/ossaudiodev.* lib-dynload/_test*.* lib-dynload/xx*.* lib-dynload/_xxtest*.* "
    "lib-dynload/_ctypes_test.* config-* LICENSE.txt EXTERNALLY-MANAGED sitecustomize.py dist-packages site-packages "
    # For Python code in other processes or interpreters; XML other than xml.etree.
    "multiprocessing lib-dynload/_multiprocessing.* lib-dynload/_posixshmem.* concurrent/futures/process.py "
    "lib-dynload/_interp*.* xml/dom xml/sax "
    # For interactive use, for developers, for files and systems of other kinds.
    "_pyrepl bdb.py cmd.py code.py codeop.py rlcompleter.py webbrowser.py antigravity.py this.py profile.py "
    "cProfile.py pstats.py trace.py lib-dynload/_lsprof.* pyclbr.py modulefinder.py tabnanny.py zipapp.py "
    "optparse.py ftplib.py shelve.py sched.py wave.py _aix_support.py _android_support.py _apple_support.py "
    "_ios_support.py _osx_support.py "
    # Written in Python what this Python has in C.
    "_pydatetime.py _pydecimal.py _pyio.py "
    # Chinese, Japanese and Korean encodings: the program reads UTF-8, ASCII and Latin 1 only.
    "lib-dynload/_codecs_*.* lib-dynload/_multibytecodec.* encodings/big5*.py encodings/cp932.py encodings/cp949.py "
    "encodings/cp950.py encodings/euc_*.py encodings/gb*.py encodings/hz.py encodings/iso2022_*.py encodings/johab.py "
    "encodings/shift_jis*.py "
    "**/__pycache__"
).split()
# Of a wheel: what only a compiler, a type checker or an installer reads. METADATA and licences stay, for scanners.
_UNUSED_OF_WHEELS = (
    "**/*.pyi **/*.pyx **/*.pxd **/*.c **/*.h bin *.dist-info/RECORD *.dist-info/REQUESTED *.dist-info/INSTALLER "
    "*.dist-info/direct_url.json"
).split()
# Opened by name while the program runs, so that no ELF file lists them: glibc's for the end of a thread and for
# names of hosts (two of the three are part of libc itself since 2.34).
_OPENED_LIBRARIES = ("libgcc_s.so.1", "libnss_files.so.2", "libnss_dns.so.2", "libnss_compat.so.2", "libresolv.so.2")
_LICENCE_FIELDS = ("License-Expression", "License", "Classifier")  # of a wheel's METADATA
_LINKED_IN = "musl-dev"  # into the launcher
# Debian's copyright files name licences by their place here, which no other image has.
_COMMON_LICENCES = Path("/usr/share/common-licenses")


def main() -> None:
    """Make the tree."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--prefix", type=Path, default=Path("/opt/watchdog"), help="where the tree will lie")
    parser.add_argument("--root", type=Path, default=Path("/"), help="directory that the prefix is made in")
    arguments = parser.parse_args()
    tree: Path = arguments.root / arguments.prefix.relative_to("/")
    if tree.exists():
        sys.exit(f"{tree} is there already: remove it, or name another --root")

    standard_library = tree / "lib" / f"python{sysconfig.get_python_version()}"
    site_packages = standard_library / "site-packages"
    copy_python(tree, standard_library)
    install_wheels(site_packages)
    shutil.copytree(PROJECT / "watchdog", site_packages / "watchdog", ignore=shutil.ignore_patterns("__pycache__"))
    files = copy_libraries(tree)
    make_launcher(tree)
    (tree / "etc/ssl").mkdir(parents=True)
    (tree / "etc/ssl/openssl.cnf").write_text(
        "# Empty on purpose: the defaults of OpenSSL, whatever the image's say.\n"
    )
    strip_symbols(tree)
    read_no_preload_file((tree / "lib/ld.so").resolve())
    look_in_no_default_directory(tree / "lib/libc.so.6")
    compile_to_byte_code(standard_library, arguments.prefix / standard_library.relative_to(tree))
    describe(tree, [*packages_of(files), *wheels_in(site_packages)])
    settle(tree)


def copy_python(tree: Path, standard_library: Path) -> None:
    """The interpreter and its library, without what no server uses."""
    (tree / "libexec").mkdir(parents=True)
    shutil.copy(Path(sys.executable).resolve(), tree / "libexec/cpython")
    shutil.copy(PROJECT / "image/start.py", tree / "libexec/start.py")
    source = Path(sysconfig.get_path("stdlib"))
    shutil.copytree(source, standard_library, symlinks=True, ignore=shutil.ignore_patterns("dist-packages", "test"))
    remove(standard_library, _UNUSED_MODULES)


def install_wheels(site_packages: Path) -> None:
    """What the lock names, nothing else."""
    run(
        *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--only-binary=:all:"),
        *("--no-compile", "--no-cache-dir", "--disable-pip-version-check", "--root-user-action=ignore"),
        *("--target", str(site_packages), "-r", str(PROJECT / "image/requirements.txt")),
    )
    remove(site_packages, _UNUSED_OF_WHEELS)


def remove(directory: Path, patterns: list[str]) -> None:
    """What matches one of the patterns."""
    for pattern in patterns:
        for path in list(directory.glob(pattern)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def copy_libraries(tree: Path) -> list[Path]:
    """The loader and each shared library that a file of the tree needs; returns the originals on this machine."""
    needed: dict[str, Path] = {}
    for path in elf_files(tree):
        for line in output("ldd", str(path)).splitlines():
            if "not found" in line:
                sys.exit(f"{path} needs a library that is not on this machine: {line.strip()}")
            if match := re.match(r"\s*(?:(\S+) => )?(/\S+) \(0x", line):
                original = Path(match[2])
                if tree not in original.parents:  # a wheel's own library
                    needed[match[1] or original.name] = original
    directory = directory_of_glibc(needed)
    for name in _OPENED_LIBRARIES:
        if name not in needed and (directory / name).exists():
            needed[name] = directory / name
    for name, original in needed.items():
        shutil.copy(original.resolve(), tree / "lib" / Path(name).name)
    loader = Path(re.search(r"interpreter: (\S+)\]", output("readelf", "-l", str(tree / "libexec/cpython")))[1])  # type: ignore[index]
    if not (tree / "lib" / loader.name).exists():
        sys.exit(f"the loader {loader} was not among the libraries: {sorted(needed)}")
    (tree / "lib" / loader.name).chmod(0o755)
    (tree / "lib/ld.so").symlink_to(loader.name)
    return [Path(sys.executable).resolve(), *needed.values()]


def directory_of_glibc(needed: dict[str, Path]) -> Path:
    """Where its libraries lie."""
    return next(path for name, path in needed.items() if name.startswith("libc.so")).parent


def elf_files(tree: Path) -> Iterator[Path]:
    """All programs and shared libraries."""
    for path in sorted(tree.rglob("*")):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                if file.read(4) == b"\x7fELF":
                    yield path


def make_launcher(tree: Path) -> None:
    """The static program, and all names that it answers to."""
    (tree / "bin").mkdir()
    run(
        *("musl-gcc", "-static", "-Os", "-s", "-Wall", "-Wextra", "-Werror"),
        *("-o", str(tree / "bin/watchdog"), str(PROJECT / "image/launcher.c")),
    )
    for name in ("fwatchdog", "supervisor"):
        (tree / "bin" / name).symlink_to("watchdog")
    for name in ("watchdog", "fwatchdog", "supervisor"):
        (tree / name).symlink_to(f"bin/{name}")
    (tree / "libexec/python3").symlink_to("../bin/watchdog")


def strip_symbols(tree: Path) -> None:
    """Without what only a debugger reads."""
    for path in elf_files(tree):
        path.chmod(path.stat().st_mode | stat.S_IWUSR)
        run("strip", "--strip-unneeded", str(path))


def read_no_preload_file(loader: Path) -> None:
    """The loader reads the image's list of libraries for all of the image's programs, and no option forbids it: it gets
    another path, below a file, where nothing can be."""
    file, nothing = b"/etc/ld.so.preload\0", b"/dev/null/preload_\0"
    content = loader.read_bytes()
    if content.count(file) != 1:
        sys.exit(f"{loader} names {file!r} {content.count(file)} times, not once")
    loader.write_bytes(content.replace(file, nothing))


def look_in_no_default_directory(library: Path) -> None:
    """Set DF_1_NODEFLIB of a shared library, as `ld -z nodefaultlib` does: what it opens itself lies in the tree.

    libc opens libraries that the image's /etc/nsswitch.conf names, to look up hosts and users: those that the tree does
    not have would be the image's, which need the image's libc. What cannot be opened is passed over (nsswitch.conf(5)).
    """
    null, flags_1, no_default_directory, dynamic = 0, 0x6FFFFFFB, 0x800, 2
    content = bytearray(library.read_bytes())
    if content[4:6] != b"\x02\x01":
        sys.exit(f"{library} is not of a 64-bit little-endian machine")
    (headers,) = struct.unpack_from("<Q", content, 32)
    header_size, count = struct.unpack_from("<HH", content, 54)
    for header in range(headers, headers + header_size * count, header_size):
        kind, _, offset, _, _, size = struct.unpack_from("<IIQQQQ", content, header)
        if kind == dynamic:
            break
    else:
        sys.exit(f"{library} is not dynamic")
    entries = [struct.unpack_from("<QQ", content, position) for position in range(offset, offset + size, 16)]
    tags = [tag for tag, _ in entries]
    # Linkers leave some free entries at the end, the last of which must stay.
    place = tags.index(flags_1) if flags_1 in tags else tags.index(null)
    if place == len(tags) - 1:
        sys.exit(f"{library} has no free entry in its dynamic section")
    flags = entries[place][1] | no_default_directory
    struct.pack_into("<QQ", content, offset + 16 * place, flags_1, flags)
    library.write_bytes(content)


def compile_to_byte_code(directory: Path, shown_as: Path) -> None:
    """Byte code that is never looked upon as stale: copying, other times and read-only roots change nothing."""
    run(
        *(sys.executable, "-m", "compileall", "-q", "-j1", "--invalidation-mode", "unchecked-hash"),
        *("-s", str(directory), "-p", str(shown_as), str(directory)),
        # The order in sets of constants follows it.
        environment={"PYTHONHASHSEED": "0"},
    )


@dataclass(frozen=True)
class Component:
    """A part of the tree that somebody else has made."""

    name: str
    version: str
    purl: str  # package URL, by which scanners know it
    copyright: str
    license_expression: str = ""  # of SPDX; Debian's copyright files are longer than one


def packages_of(files: list[Path]) -> list[Component]:
    """The Debian packages that these files of this machine come from, and what is linked into the launcher."""
    found = {package_of(path) for path in files} | {_LINKED_IN}
    stdlib = Path(sysconfig.get_path("stdlib"))
    found |= {
        package_of(stdlib / "os.py"),
        package_of(Path(sysconfig.get_path("platstdlib"), "asyncio/base_events.py")),
    }
    components = []
    if None in found:  # an image with a Python of its own
        licence = next(iter(sorted(stdlib.glob("LICENSE*"))), None)
        text = licence.read_text() if licence else "see https://docs.python.org/3/license.html"
        version = platform.python_version()
        components.append(Component("python", version, f"pkg:generic/python@{version}", text, "Python-2.0.1"))
    for package in sorted(each for each in found if each is not None):
        query = "${Version} ${Architecture} ${source:Package}"
        version, architecture, source = output("dpkg-query", "-W", f"-f={query}", package).split()
        name = package.partition(":")[0]
        purl = f"pkg:deb/debian/{name}@{quote(version)}?arch={architecture}&distro={distribution()}&upstream={source}"
        text = Path("/usr/share/doc", name, "copyright").read_text("utf-8", "replace")
        components.append(Component(name, version, purl, text))
    return components


def package_of(path: Path) -> str | None:
    """The Debian package that owns a file, None if none does. /lib is a link to /usr/lib in today's Debian."""
    resolved = str(path.resolve())
    for candidate in (str(path), resolved, resolved.removeprefix("/usr"), "/usr" + resolved):
        result = subprocess.run(["dpkg", "-S", candidate], capture_output=True, text=True, check=False)
        # A path that a package moves out of the way is answered with "diversion by PACKAGE from: PATH".
        owners = [line.rpartition(": ")[0] for line in result.stdout.splitlines() if not line.startswith("diversion ")]
        if owners:
            return owners[-1]
    if Path(sys.prefix) in path.parents:
        return None
    sys.exit(f"no Debian package owns {path}: its licence and its security fixes would be unknown")


def wheels_in(site_packages: Path) -> list[Component]:
    """The installed wheels."""
    components = []
    for wheel in importlib.metadata.distributions(path=[str(site_packages)]):
        name, version = wheel.metadata["Name"], wheel.version
        directory = Path(str(wheel._path))  # type: ignore[attr-defined]
        texts = [
            path.read_text("utf-8", "replace")
            for path in sorted(directory.rglob("*"))
            if path.is_file() and re.match(r"(LICEN[CS]E|COPYING|NOTICE|AUTHORS)", path.name, re.IGNORECASE)
        ]
        if not texts:
            stated = [value for field in _LICENCE_FIELDS for value in wheel.metadata.get_all(field, [])]
            if not stated:
                sys.exit(f"the wheel of {name} {version} names no licence")
            texts = [f"The wheel of {name} {version} has no licence file; it states: {'; '.join(stated)}\n"]
        purl = f"pkg:pypi/{re.sub('[-_.]+', '-', name).lower()}@{version}"
        expression = next(iter(wheel.metadata.get_all("License-Expression", [])), "")
        components.append(Component(name, version, purl, "\n\n".join(texts), expression))
    return sorted(components, key=lambda each: each.name.lower())


def describe(tree: Path, components: list[Component]) -> None:
    """The licences, and a bill of materials (CycloneDX 1.5) for scanners of vulnerabilities."""
    version = re.search(r'__version__ = "(.+)"', (PROJECT / "watchdog/__init__.py").read_text())[1]  # type: ignore[index]
    own = tree / "share/doc/oscar-watchdog"
    own.mkdir(parents=True)
    shutil.copy(PROJECT / "LICENSE", own / "copyright")
    common = tree / "share/common-licenses"
    common.mkdir()
    listed: list[dict[str, object]] = []
    for each in components:
        directory = tree / "share/doc" / each.name
        directory.mkdir()
        (directory / "copyright").write_text(each.copyright)
        for licence in re.findall(rf"{_COMMON_LICENCES}/([\w.+-]*\w)", each.copyright):
            if (_COMMON_LICENCES / licence).is_file():
                shutil.copy(_COMMON_LICENCES / licence, common / licence)
        component: dict[str, object] = {"type": "library", "bom-ref": each.purl, "name": each.name}
        component |= {"version": each.version, "purl": each.purl}
        if each.license_expression:
            component["licenses"] = [{"expression": each.license_expression}]
        component["properties"] = [{"name": "oscar-watchdog:copyright", "value": f"share/doc/{each.name}/copyright"}]
        listed.append(component)
    name, _, release = distribution().partition("-")
    listed.append({"type": "operating-system", "bom-ref": "operating-system", "name": name, "version": release})
    program = {"type": "application", "bom-ref": "oscar-watchdog", "name": "oscar-watchdog", "version": version}
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": program | {"licenses": [{"expression": "Apache-2.0"}]}},
        "components": listed,
        "dependencies": [{"ref": "oscar-watchdog", "dependsOn": sorted(str(each["bom-ref"]) for each in listed)}],
    }
    (tree / "share/sbom.cdx.json").write_text(json.dumps(document, indent=1) + "\n")


def settle(tree: Path) -> None:
    """Modes and times that do not depend on when and by whom the tree was made."""
    programs = {tree / "bin/watchdog", tree / "libexec/cpython", (tree / "lib/ld.so").resolve()}
    moment = int(os.environ.get("SOURCE_DATE_EPOCH") or 0)
    for path in [*tree.rglob("*"), tree]:
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path in programs else 0o644)
        os.utime(path, (moment, moment), follow_symlinks=False)


def distribution() -> str:
    """Such as ``debian-12``."""
    release = platform.freedesktop_os_release()
    return f"{release['ID']}-{release['VERSION_ID']}"


def quote(version: str) -> str:
    """As a package URL has it."""
    return version.replace("+", "%2B").replace(":", "%3A")


def output(*command: str) -> str:
    """What the command prints. Files that are no dynamic programs make ldd fail, which is an answer, too."""
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"LC_ALL": "C"})
    return result.stdout


def run(*command: str, environment: dict[str, str] | None = None) -> None:
    """Run it; end with its error if it fails."""
    if subprocess.run(command, check=False, env=os.environ | (environment or {})).returncode:
        sys.exit(f"failed: {' '.join(command)}")


if __name__ == "__main__":
    main()
