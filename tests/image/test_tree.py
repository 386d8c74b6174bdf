"""The self-contained tree at rest: each check of ``tree_checks`` passes on the tree, and not on one that is broken."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path, PurePath
from urllib.parse import urlsplit

import pytest

from image.builds import Builds
from image.roots import Roots
from image.tree_checks import (
    SEEN_AT,
    Imports,
    check_bill_of_materials,
    check_byte_code,
    check_debian_packages,
    check_foreign_libraries,
    check_kinds_and_owners,
    check_launcher,
    check_libraries,
    check_modes_and_times,
    check_search_paths,
    check_traces_of_the_builder,
    differences,
    imports_of_debian,
    imports_of_tree,
    linked_copy,
    own,
    site_packages,
    unchanged,
    write,
)

pytestmark = [pytest.mark.image, pytest.mark.timeout(300, func_only=True)]

Check = Callable[[Path], list[str]]

_PROJECT = Path(__file__).parents[2]
_CHECKS = (
    check_libraries,
    check_launcher,
    check_search_paths,
    check_foreign_libraries,
    check_kinds_and_owners,
    check_modes_and_times,
    check_byte_code,
    check_bill_of_materials,
)
# The time for a second build.
_ANOTHER_DAY = 1_700_000_000

# Modules that need a pruned module, and why the program does not need them.
_FAILING = {
    "aiohttp.test_utils": "for tests of aiohttp's users",
    "certifi.tests.test_certify": "a test",
    "google.protobuf.internal.testing_refleaks": "a test",
}
# Modules with imports of pruned modules in functions, and the reasons.
_UNRESOLVED = {
    "_sitebuiltins": "help() of interactive use",
    "aiohttp.test_utils": "as above",
    "asyncio.__main__": "interactive",
    "certifi.tests.test_certify": "as above",
    "compileall": "compiles in several processes",
    "datetime": "the same in Python, without the one in C",
    "decimal": "the same in Python, without the one in C",
    "difflib": "tests itself when it is run",
    "google.protobuf.internal.json_format_benchmark": "as above",
    "google.protobuf.internal.testing_refleaks": "as above",
    "heapq": "tests itself when it is run",
    "logging.config": "queues between processes",
    "logging.handlers": "log events by mail",
    "pickle": "tests itself when it is run, and disassembles pickles",
    "platform": "of other systems",
    "site": "not run; interactive",
    "sysconfig": "of other systems",
    "urllib.request": "FTP, which nobody uses",
    "wsgiref.simple_server": "tests itself when it is run",
}


@pytest.mark.parametrize("check", _CHECKS, ids=lambda check: check.__name__)
def test_the_tree_is_sound(check: Check, tree: Path) -> None:
    assert check(tree) == []


# ------------------------------------------------------------------------------------------------- negative controls


def _library(tree: Path) -> Path:
    return next(tree.glob("lib/libz.so.*"))


def _remove_a_library(tree: Path) -> None:
    _library(tree).unlink()


def _take_a_version_away(tree: Path) -> None:
    """Make the glibc of the tree look older than the one for which a wheel was built."""
    libc = tree / "lib/libc.so.6"
    content = libc.read_bytes()
    assert b"\0GLIBC_2.34\0" in content
    write(libc, content.replace(b"\0GLIBC_2.34\0", b"\0GLIBC_2.3x\0"))


def _take_a_symbol_away(tree: Path) -> None:
    _replace_once(next(tree.glob("lib/libssl.so.*")), b"\0SSL_CTX_new\0", b"\0SSL_CTX_nex\0")


def _make_the_launcher_dynamic(tree: Path) -> None:
    write(tree / "bin/watchdog", (tree / "libexec/cpython").read_bytes())


def _search_path(kind: str, directory: str) -> Callable[[Path], None]:
    """Return a function that builds a library with this search path, beside the other libraries."""

    def alter(tree: Path) -> None:
        tags = "--disable-new-dtags" if kind == "RPATH" else "--enable-new-dtags"
        library = tree / "lib/libother.so"
        nothing = tree / "nothing.o"
        # An object file without content, for which no compiler is needed.
        subprocess.run(["ld", "-r", "-o", nothing, "-b", "binary", os.devnull], check=True, timeout=60)
        subprocess.run(["ld", "-shared", tags, "-rpath", directory, "-o", library, nothing], check=True, timeout=60)
        nothing.unlink()

    return alter


def _let_libc_look_elsewhere(tree: Path) -> None:
    """Clear DF_1_NODEFLIB (0x800) of DT_FLAGS_1, and keep its other flags."""
    libc = tree / "lib/libc.so.6"
    found = re.findall(rb"\xfb\xff\xff\x6f\0{4}..", libc.read_bytes(), re.DOTALL)
    (entry,) = (each for each in found if each[-1] & 0x08)
    _replace_once(libc, entry, entry[:-1] + bytes([entry[-1] & ~0x08]))


def _let_the_loader_read_the_images_list(tree: Path) -> None:
    _replace_once((tree / "lib/ld.so").resolve(), b"/dev/null/preload_", b"/etc/ld.so.preload")


def _replace_once(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert content.count(old) == 1
    write(path, content.replace(old, new))


def _link(target: str) -> Callable[[Path], None]:
    return lambda tree: (tree / "lib/other").symlink_to(target)


def _mode(mode: int) -> Callable[[Path], None]:
    return lambda tree: own(_library(tree)).chmod(mode)


def _module(tree: Path, name: str = "csv") -> Path:
    return site_packages(tree).with_name(f"{name}.py")


def _byte_code(tree: Path, name: str = "csv") -> Path:
    (found,) = site_packages(tree).parent.glob(f"__pycache__/{name}.cpython-*.pyc")
    return found


def _compile_again(*arguments: str) -> Callable[[Path], None]:
    def alter(tree: Path) -> None:
        _byte_code(tree).unlink()
        # The loader of the tree would not use byte code that compileall did not make.
        python = tree / "libexec/python3"
        subprocess.run([python, "-m", "compileall", "-q", *arguments, _module(tree)], check=True, timeout=60)

    return alter


def _bill(alter_document: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    def alter(tree: Path) -> None:
        path = tree / "share/sbom.cdx.json"
        document = json.loads(path.read_text())
        alter_document(document)
        write(path, json.dumps(document).encode())

    return alter


def _add_a_wheel(tree: Path) -> None:
    metadata = site_packages(tree) / "other-0.1.dist-info/METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: other\nVersion: 0.1\n")


_FAULTS: dict[str, tuple[Check, Callable[[Path], object], str]] = {
    "a library is missing": (check_libraries, _remove_a_library, r"libz\.so\S* => not found|libz\.so\S*: cannot open"),
    "a version is missing": (check_libraries, _take_a_version_away, "version `GLIBC_2.34' not found"),
    "a symbol is missing": (check_libraries, _take_a_symbol_away, "undefined symbol: SSL_CTX_new, version"),
    "the launcher is dynamic": (check_launcher, _make_the_launcher_dynamic, r"has \(NEEDED\)"),
    "RPATH": (check_search_paths, _search_path("RPATH", "$ORIGIN"), "has a DT_RPATH"),
    "absolute RUNPATH": (check_search_paths, _search_path("RUNPATH", "/usr/lib"), "has the DT_RUNPATH /usr/lib"),
    "RUNPATH out of it": (check_search_paths, _search_path("RUNPATH", "$ORIGIN/../.."), "has the DT_RUNPATH"),
    "default directories": (check_search_paths, _let_libc_look_elsewhere, "default directories"),
    "a module of the image": (check_foreign_libraries, _let_libc_look_elsewhere, "libnss_foreign.so.2 is mapped"),
    "preloaded": (check_foreign_libraries, _let_the_loader_read_the_images_list, "preload.so is mapped"),
    "an absolute link": (check_kinds_and_owners, _link(f"{SEEN_AT}/bin/watchdog"), "absolute link"),
    "a link out of it": (check_kinds_and_owners, _link("../../etc/passwd"), "leads out of the tree"),
    "a link to nothing": (check_kinds_and_owners, _link("libnone.so"), "leads to nothing"),
    "a pipe": (check_kinds_and_owners, lambda tree: os.mkfifo(tree / "lib/pipe"), "neither a file nor"),
    "set-id": (check_kinds_and_owners, _mode(0o4755), "is set-id"),
    "writable": (check_kinds_and_owners, _mode(0o646), "others may write"),
    "another owner": (check_kinds_and_owners, lambda tree: os.chown(own(_library(tree)), 1000, 0), "is of 1000:0"),
    "capabilities": (
        check_kinds_and_owners,
        # CAP_NET_BIND_SERVICE, permitted and effective: vfs_cap_data of linux/capability.h.
        lambda tree: os.setxattr(
            own(tree / "bin/watchdog"), "security.capability", b"\1\0\0\2\0\4\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
        ),
        "has capabilities",
    ),
    "a mode": (check_modes_and_times, _mode(0o755), "has the mode 755"),
    "a time": (check_modes_and_times, lambda tree: os.utime(own(_library(tree))), "not 0"),
    "no byte code": (check_byte_code, lambda tree: _byte_code(tree).unlink(), "has no byte code"),
    "by time": (
        check_byte_code,
        _compile_again("--invalidation-mode", "timestamp"),
        "is compared with its source",
    ),
    "by checked hash": (
        check_byte_code,
        _compile_again("--invalidation-mode", "checked-hash"),
        "is compared with its source",
    ),
    "named otherwise": (
        check_byte_code,
        _compile_again("--invalidation-mode", "unchecked-hash"),
        "names another file",
    ),
    "of another source": (check_byte_code, lambda tree: write(_module(tree), b"pass\n"), "is of another source"),
    "of no source": (check_byte_code, lambda tree: _module(tree).unlink(), "has no source"),
    "of another Python": (
        check_byte_code,
        lambda tree: write(_byte_code(tree), b"\0" + _byte_code(tree).read_bytes()[1:]),
        "is of another Python",
    ),
    "not valid": (check_bill_of_materials, _bill(lambda document: document.update(components=1)), "not valid"),
    "dated": (
        check_bill_of_materials,
        _bill(lambda document: document["metadata"].update(timestamp="2026-01-01T00:00:00Z")),  # type: ignore[attr-defined]
        "differs each time",
    ),
    "a wheel is not listed": (
        check_bill_of_materials,
        _add_a_wheel,
        "the wheel other 0.1 is not in it",
    ),
    "a copyright is missing": (
        check_bill_of_materials,
        lambda tree: (tree / "share/doc/libc6/copyright").unlink(),
        "libc6 has no copyright file",
    ),
    "a licence is missing": (
        check_bill_of_materials,
        lambda tree: (tree / "share/common-licenses/LGPL-2.1").unlink(),
        "refers to the licence LGPL-2.1",
    ),
}


@pytest.mark.parametrize("fault", _FAULTS)
def test_a_fault_is_found(fault: str, tree: Path, tmp_path: Path) -> None:
    check, alter, what = _FAULTS[fault]
    found = check(linked_copy(tree, tmp_path / "tree", alter))
    assert any(re.search(what, each) for each in found), found


def test_each_check_has_a_fault_that_it_finds() -> None:
    assert {check for check, _, _ in _FAULTS.values()} == set(_CHECKS)


# ----------------------------------------------------------------------------------------------------------- imports


@pytest.fixture(scope="module")
def complete(tree: Path, roots: Roots) -> Imports:
    """Return the imports of Debian's complete Python, with the wheels of the tree."""
    return imports_of_debian(tree, roots["debian-13"])


@pytest.fixture(scope="module")
def pruned(tree: Path) -> Imports:
    return imports_of_tree(tree)


def test_what_can_be_imported_in_a_complete_python_can_be_in_the_tree(complete: Imports, pruned: Imports) -> None:
    failing = {name: why for name, why in pruned.failing.items() if name not in complete.failing}
    assert failing.keys() == _FAILING.keys(), failing
    assert pruned.modules > {
        "watchdog.http.server",
        "aiohttp.web",
        "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    }


def test_imports_within_functions_lead_somewhere(complete: Imports, pruned: Imports) -> None:
    """The imports lead to the same modules as in a complete Python."""
    unresolved = pruned.unresolved - complete.unresolved
    assert {importer for importer, _ in unresolved} == _UNRESOLVED.keys(), sorted(unresolved)
    assert not [importer for importer, _ in pruned.unresolved if importer.startswith("watchdog")]


def test_what_was_pruned_is_named(complete: Imports, pruned: Imports) -> None:
    """No module is missing for another reason."""
    sys.path.insert(0, str(_PROJECT / "image"))
    try:
        from bundle import _UNUSED_MODULES
    finally:
        sys.path.pop(0)
    patterns = {re.sub(r"^lib-dynload/|\.py$|\.\*$", "", pattern) for pattern in _UNUSED_MODULES}

    def is_named(module: str) -> bool:
        path = PurePath(*module.split("."))
        return any(fnmatch(str(each), pattern) for each in (path, *path.parents) for pattern in patterns)

    assert not [name for name in complete.modules - pruned.modules if not is_named(name)]


def test_a_pruned_module_that_is_needed_is_found(
    complete: Imports, pruned: Imports, tree: Path, tmp_path: Path
) -> None:
    library = site_packages(tree).parent.name
    altered = linked_copy(tree, tmp_path / "tree", lambda copy: shutil.rmtree(copy / "lib" / library / "wsgiref"))
    found = imports_of_tree(altered)
    assert "prometheus_client.exposition" in found.failing.keys() - complete.failing.keys() - _FAILING.keys()
    assert ("prometheus_client.exposition", "wsgiref.simple_server:make_server") in found.unresolved - pruned.unresolved


# ----------------------------------------------------------------------------------------------- where it comes from


def test_the_bill_of_materials_is_true_of_debian(tree: Path, roots: Roots, tmp_path: Path) -> None:
    debians = (roots["debian-13"], roots["debian-13-slim"])
    assert check_debian_packages(tree, *debians) == []

    def falsify(document: dict[str, object]) -> None:
        components: list[dict[str, str]] = document["components"]  # type: ignore[assignment]
        for each in components:
            each["version"] = "1.0-1"
        components[:] = [each for each in components if each["name"] != "zlib1g"]

    found = check_debian_packages(linked_copy(tree, tmp_path / "tree", _bill(falsify)), *debians)
    for what in (
        "libz.so.1 is of {'zlib1g'}",
        "libc6 is of version",
        "libssl3t64 is of version",
        "-stdlib is of version",
    ):
        assert any(what in each for each in found), found


def test_nothing_names_the_builder(tree: Path, tmp_path: Path) -> None:
    # The paths at which Dockerfile.base builds and pip unpacks, and the package indexes of this machine.
    words = ["/build/image", "/build/watchdog", "/tmp/pip-", str(_PROJECT), *_package_indexes()]
    assert check_traces_of_the_builder(tree, *words) == []
    altered = linked_copy(tree, tmp_path / "tree", lambda copy: (copy / "lib/log").write_text("in /build/image"))
    assert check_traces_of_the_builder(altered, *words) == ["lib/log names /build/image"]


def _package_indexes() -> set[str]:
    settings = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    settings += " ".join(f"{name}={value!r}" for name, value in os.environ.items() if name.startswith("PIP_"))
    urls = [urlsplit(url) for url in re.findall(r"\w+://[^\s'\"\\]+", settings)]
    # A wheel may contain the name of a host for other reasons, so only URLs with a path count.
    return {f"{url.hostname or ''}{url.path}" for url in urls if url.path.strip("/") and url.hostname != "pypi.org"}


def test_another_build_makes_the_same_files(builds: Builds, tree: Path, tmp_path: Path) -> None:
    """The second build is on another day, which is the time of its files."""
    again = builds.build_tree(tmp_path, "--build-arg", f"SOURCE_DATE_EPOCH={_ANOTHER_DAY}")
    assert differences(tree, again) == []
    assert check_modes_and_times(again, _ANOTHER_DAY) == []


def test_a_file_that_differs_is_found(tree: Path, tmp_path: Path) -> None:
    altered = linked_copy(tree, tmp_path / "tree", lambda copy: write(_module(copy), b"pass\n"))
    assert differences(tree, altered) == [f"{_module(tree).relative_to(tree)} differs"]


# -------------------------------------------------------------------------------------------------------- in use


@pytest.mark.parametrize("writes", [False, True], ids=["as it is", "with a start file that lets it write"])
def test_nothing_is_written_to_the_tree(writes: bool, tree: Path, tmp_path: Path) -> None:
    """The server runs as root, which has the permission to write."""
    copy = tmp_path / "tree"
    shutil.copytree(tree, copy, symlinks=True)
    if writes:
        start = copy / "libexec/start.py"
        start.write_text(
            start.read_text().replace("import os\n", "import os, sys; sys.dont_write_bytecode = False\n", 1)
        )
        _byte_code(copy, "argparse").unlink()
    script = tmp_path / "script.sh"
    script.write_text('cp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/copy"\n')
    environ = {"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path), "WATCHDOG_SCRIPT_PATH": str(script)}
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    with unchanged(copy) as written:
        for command in (["run", str(script)], ["check"], ["--version"]):
            result = subprocess.run(
                [copy / "bin/watchdog", *command], env=environ | endpoint, capture_output=True, timeout=60
            )
            assert result.returncode == 0, result
        everything = "import csv, ssl, asyncio, concurrent.futures.thread"
        subprocess.run([copy / "libexec/python3", "-c", everything], check=True, timeout=60)
    assert bool(written) == writes, written
