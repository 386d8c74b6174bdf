"""List what a script left in its output directory, in steps."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Generator, Iterator

import msgspec

from ..errors import OutputTooLarge, OutputUnreadable
from ..system.files import raise_if_no_descriptor
from .output_names import replacements
from .outputs import Output, cannot_read, shortened

# Each output takes about a kilobyte of this process's memory until its call is answered.
MOST_OUTPUTS = 100_000
# How many entries of TMP_OUTPUT_DIR are listed in one step. The first step may run in the event loop, because a thread
# would cost more. Later steps run in threads, and take some milliseconds.
_FIRST_ENTRIES = 200
_ENTRIES_IN_A_STEP = 5000
# A symbolic link takes as long as this number of other entries: its path may be long and lead through other links.
_COST_OF_LINK = 200
# A file that is larger than this is compared with the size of its file system.
_SUSPICIOUS_BYTES = 1 << 30


class Listing(msgspec.Struct):
    """A list of what a script left in its output directory.

    ``skipped``: the name of each entry that is not an output, with the reason. ``renamed``: the new name of each output
    that was renamed (:func:`output_names.replacements`), by the old name.
    """

    outputs: list[Output] = msgspec.field(default_factory=list)
    skipped: list[tuple[str, str]] = msgspec.field(default_factory=list)
    renamed: dict[str, str] = msgspec.field(default_factory=dict)


def list_outputs(output_dir: str, listing: Listing, most: int = MOST_OUTPUTS) -> Generator[bool, None, None]:
    """List what a script left in ``output_dir``, its ``TMP_OUTPUT_DIR``, in steps. No file is opened for reading.

    The first step is short and follows no link, so it may run in the event loop. Run the other steps in a thread.
    Close the generator if the list is not needed any more.

    Each directory is listed once, with its own name. A symbolic link to a file below ``TMP_OUTPUT_DIR`` is an
    output. A symbolic link to a directory below it is not followed: the files in it are outputs already, and with
    links, n directories could have 2^n paths.

    Args:
        listing: gets the entries. It is complete and sorted by name when the generator ends.

    Raises:
        OutputUnreadable: an entry cannot be examined, a directory cannot be listed, or ``TMP_OUTPUT_DIR`` is not a
            directory any more.
        OutputTooLarge: there are more than ``most`` entries, or a file is larger than the file system.
        OutOfResources: no descriptor is free.
    """
    try:
        mode = os.lstat(output_dir).st_mode
    except FileNotFoundError:
        # The script may have removed it to clean up. Then there are no outputs, which is not an error.
        listing.skipped.append(("TMP_OUTPUT_DIR", "removed by the script"))
        return
    except OSError as error:
        raise _cannot_list("TMP_OUTPUT_DIR", error) from error
    if not stat.S_ISDIR(mode):
        kind = "a file" if stat.S_ISREG(mode) else "a symbolic link" if stat.S_ISLNK(mode) else _kind(mode)
        raise OutputUnreadable(
            f"the script put {kind} in the place of the directory TMP_OUTPUT_DIR; it should write its files into "
            "this directory"
        )
    outputs, skipped = listing.outputs, listing.skipped
    room = _FIRST_ENTRIES
    pending = [(output_dir, "")]
    while pending:
        directory, prefix = pending.pop()
        with _entries(directory, prefix) as entries:
            for entry in _each(entries, prefix):
                if len(outputs) + len(skipped) + len(pending) >= most:
                    raise OutputTooLarge(
                        f"there are over {most} files in TMP_OUTPUT_DIR; pack them into one (tar, zip)"
                    )
                is_link = entry.is_symlink()
                room -= _COST_OF_LINK if is_link else 1
                if room <= 0:
                    yield True
                    room = _ENTRIES_IN_A_STEP
                name, path = prefix + entry.name, entry.path
                if is_link:
                    found = _behind_link(output_dir, name, path)
                    if isinstance(found, str):
                        skipped.append((name, found))
                        continue
                    path, status = found
                else:
                    try:
                        status = os.lstat(path)
                    except OSError as error:
                        raise cannot_read(name, error) from error
                if stat.S_ISREG(status.st_mode):
                    if status.st_size > _SUSPICIOUS_BYTES:
                        _raise_if_impossible(output_dir, name, status.st_size)
                    outputs.append(Output(path, name, status.st_size, status.st_mtime, status.st_mode))
                elif not stat.S_ISDIR(status.st_mode):
                    skipped.append((name, _kind(status.st_mode)))
                elif is_link:
                    skipped.append((name, "a symbolic link to a directory whose files are outputs already"))
                else:
                    pending.append((path, name + "/"))
    listing.renamed = renamed = replacements([output.name for output in outputs])
    if renamed:
        outputs[:] = [msgspec.structs.replace(output, name=renamed.get(output.name, output.name)) for output in outputs]
    if len(outputs) > 1:
        outputs.sort(key=lambda output: output.name)


def _behind_link(output_dir: str, name: str, path: str) -> tuple[str, os.stat_result] | str:
    """Return the real path of a symbolic link's target and its status, or why the link is not an output.

    The kernel follows the link, and stops after 40 links: the script cannot open such a file either.

    Raises:
        OutputUnreadable: the target of the link cannot be examined.
    """
    leaves = "a symbolic link that leaves the directory"
    try:
        root, _ = _real_path(output_dir)
        real_path, status = _real_path(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return "a symbolic link to nothing"
        # With EACCES, the script cannot reach the target either. If such a target is outside of the directory, the
        # link leaves the directory.
        target = os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(path)))
        if error.errno == errno.EACCES and not _is_below(target, output_dir):
            return leaves
        raise cannot_read(name, error) from error
    return (real_path, status) if _is_below(real_path, root) else leaves


def _raise_if_impossible(output_dir: str, name: str, size_bytes: int) -> None:
    """Raise ``OutputTooLarge`` if a file is larger than its file system. Reading its holes would take hours."""
    status = os.statvfs(output_dir)
    capacity_bytes = status.f_blocks * status.f_frsize
    if capacity_bytes and size_bytes > capacity_bytes:
        raise OutputTooLarge(
            f"the output {shortened(name)} has {size_bytes} bytes, but its file system has only {capacity_bytes}: it "
            "is a sparse file, and most of it was never written"
        )


def _entries(directory: str, prefix: str) -> contextlib.AbstractContextManager[Iterator[os.DirEntry[str]]]:
    try:
        return os.scandir(directory)
    except OSError as error:
        raise _cannot_list(prefix, error) from error


def _each(entries: Iterator[os.DirEntry[str]], prefix: str) -> Iterator[os.DirEntry[str]]:
    try:
        yield from entries
    except OSError as error:
        raise _cannot_list(prefix, error) from error


def _real_path(path: str) -> tuple[str, os.stat_result]:
    """Follow links and return the real path and its status. The target is not opened for reading."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        return os.readlink(f"/proc/self/fd/{fd}"), os.fstat(fd)
    finally:
        os.close(fd)


def _is_below(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory + "/")


def _cannot_list(name: str, error: OSError) -> OutputUnreadable:
    failure = f"cannot list the output folder {shortened(name or 'TMP_OUTPUT_DIR')}"
    raise_if_no_descriptor(error, failure)
    return OutputUnreadable(f"{failure}: {error.strerror}")


def _kind(mode: int) -> str:
    for test, kind in (
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISBLK, "a block device"),
        (stat.S_ISCHR, "a character device"),
    ):
        if test(mode):
            return kind
    return "neither a file nor a directory"
