"""Build the self-contained tree from this project, the locked wheels, and the Python and libraries of this machine.

::

    python3 image/bundle.py --prefix /opt/watchdog [--root DIR]

This needs a Debian with python3, pip, musl-gcc and binutils. It makes the tree at ``DIR/opt/watchdog``. Tracebacks
show paths below `--prefix`, but the tree works at any path. Two runs on one machine make the same files, byte for byte.

The system's own tools (`readelf`, `ldd`, `dpkg`) show which libraries are needed and where they are. So this program
contains no names of loaders or architectures.
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

# Modules of the standard library that neither the program nor a wheel imports, and that a server does not need.
_UNUSED_MODULES = (
    "test idlelib tkinter turtledemo turtle.py lib2to3 ensurepip venv pydoc_data pydoc.py distutils curses sqlite3 dbm "
    "msilib unittest doctest.py pdb.py pickletools.py mailbox.py nntplib.py imaplib.py smtplib.py smtpd.py poplib.py "
    "telnetlib.py aifc.py sunau.py xmlrpc xdrlib.py lib-dynload/_tkinter.* lib-dynload/_curses*.* "
    "lib-dynload/readline.* lib-dynload/_sqlite3.* lib-dynload/_dbm.* lib-dynload/_gdbm.* lib-dynload/nis.* "
    "lib-dynload/ossaudiodev.* lib-dynload/_test*.* lib-dynload/xx*.* lib-dynload/_xxtest*.* "
    "lib-dynload/_ctypes_test.* config-* LICENSE.txt EXTERNALLY-MANAGED sitecustomize.py dist-packages site-packages "
    # For Python code in other processes or interpreters, and for XML (except xml.etree).
    "multiprocessing lib-dynload/_multiprocessing.* lib-dynload/_posixshmem.* concurrent/futures/process.py "
    "lib-dynload/_interp*.* xml/dom xml/sax "
    # For interactive use, for developers, for other kinds of files, and for other systems.
    "_pyrepl bdb.py cmd.py code.py codeop.py rlcompleter.py webbrowser.py antigravity.py this.py profile.py "
    "cProfile.py pstats.py trace.py lib-dynload/_lsprof.* pyclbr.py modulefinder.py tabnanny.py zipapp.py "
    "optparse.py ftplib.py shelve.py sched.py wave.py _aix_support.py _android_support.py _apple_support.py "
    "_ios_support.py _osx_support.py "
    # Modules in Python that this interpreter also has in C.
    "_pydatetime.py _pydecimal.py _pyio.py "
    # Chinese, Japanese and Korean encodings: the program reads UTF-8, ASCII and Latin 1 only.
    "lib-dynload/_codecs_*.* lib-dynload/_multibytecodec.* encodings/big5*.py encodings/cp932.py encodings/cp949.py "
    "encodings/cp950.py encodings/euc_*.py encodings/gb*.py encodings/hz.py encodings/iso2022_*.py encodings/johab.py "
    "encodings/shift_jis*.py "
    "**/__pycache__"
).split()
# Files of a wheel that only a compiler, a type checker or an installer reads. METADATA and licences stay for scanners.
_UNUSED_OF_WHEELS = (
    "**/*.pyi **/*.pyx **/*.pxd **/*.c **/*.h bin *.dist-info/RECORD *.dist-info/REQUESTED *.dist-info/INSTALLER "
    "*.dist-info/direct_url.json"
).split()
# Libraries that no ELF file lists. glibc opens them by name while the program runs: to end a thread, and to look up
# names of hosts. Since glibc 2.34, some of them are part of libc itself.
_OPENED_LIBRARIES = ("libgcc_s.so.1", "libnss_files.so.2", "libnss_dns.so.2", "libnss_compat.so.2", "libresolv.so.2")
_LICENCE_FIELDS = ("License-Expression", "License", "Classifier")  # fields in the METADATA of a wheel
_LINKED_IN = "musl-dev"  # the package of the library that is linked into the launcher
# Debian's copyright files refer to licence texts in this directory, which other images do not have.
_COMMON_LICENCES = Path("/usr/share/common-licenses")


def main() -> None:
    """Make the tree."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--prefix", type=Path, default=Path("/opt/watchdog"), help="the path of the tree in an image")
    parser.add_argument("--root", type=Path, default=Path("/"), help="the directory in which the prefix is created")
    arguments = parser.parse_args()
    tree: Path = arguments.root.resolve() / arguments.prefix.relative_to("/")
    if tree.exists():
        sys.exit(f"{tree} exists already: remove it, or choose another --root")

    standard_library = tree / "lib" / f"python{sysconfig.get_python_version()}"
    site_packages = standard_library / "site-packages"
    copy_python(tree, standard_library)
    install_wheels(site_packages)
    shutil.copytree(PROJECT / "watchdog", site_packages / "watchdog", ignore=shutil.ignore_patterns("__pycache__"))
    files = copy_libraries(tree)
    make_launcher(tree)
    (tree / "etc/ssl").mkdir(parents=True)
    (tree / "etc/ssl/openssl.cnf").write_text(
        "# This file is empty so that OpenSSL uses its defaults and not the settings of the image.\n"
    )
    strip_symbols(tree)
    read_no_preload_file((tree / "lib/ld.so").resolve())
    look_in_no_default_directory(tree / "lib/libc.so.6")
    compile_to_byte_code(standard_library, arguments.prefix / standard_library.relative_to(tree))
    describe(tree, [*packages_of(files), *wheels_in(site_packages)])
    settle(tree)


def copy_python(tree: Path, standard_library: Path) -> None:
    """Copy the interpreter and the standard library, without modules that a server does not need."""
    (tree / "libexec").mkdir(parents=True)
    shutil.copy(Path(sys.executable).resolve(), tree / "libexec/cpython")
    shutil.copy(PROJECT / "image/start.py", tree / "libexec/start.py")
    source = Path(sysconfig.get_path("stdlib"))
    shutil.copytree(source, standard_library, symlinks=True, ignore=shutil.ignore_patterns("dist-packages", "test"))
    remove(standard_library, _UNUSED_MODULES)


def install_wheels(site_packages: Path) -> None:
    """Install the wheels of the lock file, and nothing else."""
    run(
        *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--only-binary=:all:"),
        *("--no-compile", "--no-cache-dir", "--disable-pip-version-check", "--root-user-action=ignore"),
        *("--target", str(site_packages), "-r", str(PROJECT / "image/requirements.txt")),
    )
    remove(site_packages, _UNUSED_OF_WHEELS)


def remove(directory: Path, patterns: list[str]) -> None:
    """Remove files and directories that match one of the patterns."""
    for pattern in patterns:
        for path in list(directory.glob(pattern)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def copy_libraries(tree: Path) -> list[Path]:
    """Copy the loader and each shared library that a file of the tree needs. Return their paths on this machine."""
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
    """Return the directory that contains glibc."""
    return next(path for name, path in needed.items() if name.startswith("libc.so")).parent


def elf_files(tree: Path) -> Iterator[Path]:
    """Yield the paths of all programs and shared libraries in the tree."""
    for path in sorted(tree.rglob("*")):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                if file.read(4) == b"\x7fELF":
                    yield path


def make_launcher(tree: Path) -> None:
    """Compile the static launcher, and make links for all its names."""
    (tree / "bin").mkdir()
    run(
        *("musl-gcc", "-static", "-Os", "-s", "-Wall", "-Wextra", "-Werror"),
        *("-o", str(tree / "bin/watchdog"), str(PROJECT / "image/launcher.c")),
    )
    for name in ("fwatchdog", "supervisor"):
        (tree / "bin" / name).symlink_to("watchdog")
    for name in ("watchdog", "fwatchdog", "supervisor"):
        (tree / name).symlink_to(f"bin/{name}")
    # Where OSCAR looks for it in a service with `alpine: true`.
    (tree / "alpine").mkdir()
    (tree / "alpine/supervisor").symlink_to("../bin/supervisor")
    (tree / "libexec/python3").symlink_to("../bin/watchdog")


def strip_symbols(tree: Path) -> None:
    """Remove symbols that only a debugger reads."""
    for path in elf_files(tree):
        path.chmod(path.stat().st_mode | stat.S_IWUSR)
        run("strip", "--strip-unneeded", str(path))


def read_no_preload_file(loader: Path) -> None:
    """Make the loader ignore ``/etc/ld.so.preload``, the image's list of libraries for all programs.

    The loader has no option for that. So this changes the path in the loader to a path below /dev/null, where no file
    can exist.
    """
    file, nothing = b"/etc/ld.so.preload\0", b"/dev/null/preload_\0"
    content = loader.read_bytes()
    if content.count(file) != 1:
        sys.exit(f"{loader} names {file!r} {content.count(file)} times, not once")
    loader.write_bytes(content.replace(file, nothing))


def look_in_no_default_directory(library: Path) -> None:
    """Set the flag DF_1_NODEFLIB of a shared library, as `ld -z nodefaultlib` does.

    The library then opens other libraries only in the tree. To look up hosts and users, libc opens the libraries that
    the image's /etc/nsswitch.conf names. If the tree does not have one of them, libc would open the library of the
    image, which needs the image's libc. libc ignores a library that it cannot open (nsswitch.conf(5)).
    """
    null, flags_1, no_default_directory, dynamic = 0, 0x6FFFFFFB, 0x800, 2
    content = bytearray(library.read_bytes())
    if content[4:6] != b"\x02\x01":
        sys.exit(f"{library} is not for a 64-bit little-endian machine")
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
    # Linkers leave some free entries at the end. The last one must stay.
    place = tags.index(flags_1) if flags_1 in tags else tags.index(null)
    if place == len(tags) - 1:
        sys.exit(f"{library} has no free entry in its dynamic section")
    flags = entries[place][1] | no_default_directory
    struct.pack_into("<QQ", content, offset + 16 * place, flags_1, flags)
    library.write_bytes(content)


def compile_to_byte_code(directory: Path, shown_as: Path) -> None:
    """Compile the modules to byte code that stays valid if the tree is copied and its files get other times."""
    run(
        *(sys.executable, "-m", "compileall", "-q", "-j1", "--invalidation-mode", "unchecked-hash"),
        *("-s", str(directory), "-p", str(shown_as), str(directory)),
        # The order of constant sets in the byte code depends on this.
        environment={"PYTHONHASHSEED": "0"},
    )


@dataclass(frozen=True)
class Component:
    """A part of the tree that does not belong to this project."""

    name: str
    version: str
    purl: str  # the package URL, which scanners use
    copyright: str
    license_expression: str = ""  # in the syntax of SPDX; empty for Debian packages, which have a copyright file


def packages_of(files: list[Path]) -> list[Component]:
    """Return the Debian packages of these files, and of the library that is linked into the launcher."""
    found = {package_of(path) for path in files} | {_LINKED_IN}
    stdlib = Path(sysconfig.get_path("stdlib"))
    found |= {
        package_of(stdlib / "os.py"),
        package_of(Path(sysconfig.get_path("platstdlib"), "asyncio/base_events.py")),
    }
    components = []
    if None in found:  # this machine has a Python that is not from a Debian package
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
    """Return the Debian package of a file; None for a Python that is not from a Debian package.

    In current Debian releases, /lib is a link to /usr/lib.
    """
    resolved = str(path.resolve())
    for candidate in (str(path), resolved, resolved.removeprefix("/usr"), "/usr" + resolved):
        result = subprocess.run(["dpkg", "-S", candidate], capture_output=True, text=True, check=False)
        # If a package has moved this path to another one, dpkg prints "diversion by PACKAGE from: PATH" first.
        owners = [line.rpartition(": ")[0] for line in result.stdout.splitlines() if not line.startswith("diversion ")]
        if owners:
            return owners[-1]
    if Path(sys.prefix) in path.parents:
        return None
    sys.exit(f"no Debian package owns {path}: its licence and its security fixes would be unknown")


def wheels_in(site_packages: Path) -> list[Component]:
    """Return the installed wheels."""
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
    """Write the licences, and a bill of materials (CycloneDX 1.5) for vulnerability scanners."""
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
    """Set modes and times of all files, so that they do not depend on the time and the user of the build."""
    programs = {tree / "bin/watchdog", tree / "libexec/cpython", (tree / "lib/ld.so").resolve()}
    moment = int(os.environ.get("SOURCE_DATE_EPOCH") or 0)
    for path in [*tree.rglob("*"), tree]:
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path in programs else 0o644)
        os.utime(path, (moment, moment), follow_symlinks=False)


def distribution() -> str:
    """Return the name and version of this machine's distribution, such as ``debian-12``."""
    release = platform.freedesktop_os_release()
    return f"{release['ID']}-{release['VERSION_ID']}"


def quote(version: str) -> str:
    """Return a version as it is written in a package URL."""
    return version.replace("+", "%2B").replace(":", "%3A")


def output(*command: str) -> str:
    """Return what a command prints to stdout. Its exit code is ignored: ldd fails for files that are not dynamic."""
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"LC_ALL": "C"})
    return result.stdout


def run(*command: str, environment: dict[str, str] | None = None) -> None:
    """Run a command. If it fails, end this program with an error."""
    if subprocess.run(command, check=False, env=os.environ | (environment or {})).returncode:
        sys.exit(f"failed: {' '.join(command)}")


if __name__ == "__main__":
    main()
