"""Keep the answers of one call as files below a directory. Each file is complete.

The bytes first go to numbered files in a hidden directory, ``.invoke-XXXXXXXX.part``. When the answer is complete, each
of them gets its own name with link(2), which fails if a file with this name exists. Existing files are replaced only
with --force. The folders of a name are opened one by one, and none of them may be a symbolic link. So nothing that a
service answers can lead out of the directory.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from typing import BinaryIO

import msgspec

from ..errors import AnswerNotKept, quoted
from ..logs import readable
from ..logs.text import printable
from ..system.nameless_file import write_all
from ..workspace.space import free_bytes
from .names import numbered, parts_of

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# The file system has no hard links (FAT, some network file systems), or the file has too many.
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV})


class NameTaken(AnswerNotKept):
    """All files of an answer are kept, but some of them have other names, because theirs were taken."""


class Kept(msgspec.Struct, frozen=True):
    """An answer that was kept. ``path``: as the user can type it."""

    path: str
    size_bytes: int


class KeptFile:
    """A file that is being written. Its name is given later."""

    def __init__(self, fd: int, number: int, parts: list[str]) -> None:
        self.number = number
        self.parts = parts
        self.size_bytes = 0
        self._fd = fd

    def write(self, data: bytes) -> None:
        try:
            write_all(self._fd, data)
        except OSError as error:
            raise _not_kept("/".join(self.parts), error) from None
        self.size_bytes += len(data)

    def reader(self) -> BinaryIO:
        """Return the file for reading. Closing the reader also closes the file."""
        fd, self._fd = self._fd, -1
        os.lseek(fd, 0, os.SEEK_SET)
        return open(fd, "rb")

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            try:
                os.close(fd)
            except OSError as error:  # a network file system may report a full disk only now
                raise _not_kept("/".join(self.parts), error) from None


class Folder:
    """The answers of one call. Use it as a context: at the end, all files that have no name yet are removed.

    Args:
        path: the directory of the user. It must exist.
        prefix: the folder below it for files that a script left; "" for the directory itself.
        replaces: whether files with the same name are replaced.
        has_hidden: whether names may begin with a dot. False if the user did not name the directory, because a service
            could make a ``.bashrc`` in it.
    """

    def __init__(self, path: str, prefix: str, *, replaces: bool, has_hidden: bool = True) -> None:
        self._path = path
        self._prefix = [prefix] if prefix else []
        self._replaces = replaces
        self._has_hidden = has_hidden
        self._root = self._staging = -1
        self._staging_name = ""
        self._files: list[KeptFile] = []
        self._begun = 0  # the number of files so far

    def __enter__(self) -> Folder:
        try:
            self._staging_name = f".invoke-{secrets.token_hex(4)}.part"
            self._root = os.open(self._path, _DIRECTORY)
            os.mkdir(self._staging_name, 0o700, dir_fd=self._root)
            self._staging = os.open(self._staging_name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=self._root)
        except OSError as error:
            self.__exit__()
            raise _not_kept(self._path, error) from None
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            self._remove(file)
        if self._staging >= 0:
            os.close(self._staging)
        if self._root >= 0:
            with contextlib.suppress(OSError):
                os.rmdir(self._staging_name, dir_fd=self._root)
            os.close(self._root)
        self._root = self._staging = -1

    def require_room(self, size_bytes: int) -> None:
        """Raise ``AnswerNotKept`` if files of this size do not fit on the disk."""
        free = free_bytes(self._path)
        if size_bytes > free:
            raise AnswerNotKept(
                f"the files of the answer have {readable.size(size_bytes)}, and {printable(self._path)} has room for "
                f"{readable.size(int(free))}"
            )

    def create(self, name: str, *, is_own: bool) -> KeptFile:
        """Begin a file.

        Args:
            is_own: the client chose the name. Then the file gets no folder before its name.

        Raises:
            AnswerBroken: the name is not a path below a directory.
            AnswerNotKept: the file cannot be made.
        """
        parts = parts_of(name) if is_own else [*self._prefix, *parts_of(name)]
        if parts[0].startswith(".") and not is_own and not self._has_hidden:
            raise AnswerNotKept(
                f"the service named its output {quoted(name)}, which would be a hidden file in the current directory; "
                "use -o DIR to keep it there"
            )
        number = self._begun
        self._begun += 1
        try:
            fd = os.open(str(number), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=self._staging)
        except OSError as error:
            raise _not_kept("/".join(parts), error) from None
        file = KeptFile(fd, number, parts)
        self._files.append(file)
        return file

    def reopened(self, file: KeptFile) -> BinaryIO:
        """Open a file of :meth:`create` for reading."""
        return open(os.open(str(file.number), os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._staging), "rb")

    def keep_only(self, file: KeptFile) -> Kept:
        """Remove all other files, and give this file its name, or another name if its name is taken."""
        others = [each for each in self._files if each is not file]
        self._files = [file]
        for other in others:
            self._remove(other)
        return self._named(file)

    def finish(self, *, without: KeptFile | None = None) -> list[Kept]:
        """Give all files their names, and return them.

        Args:
            without: a file that gets no name.

        Raises:
            NameTaken: a name is taken. This file is kept under another name, so that the result of the run is not lost.
            AnswerNotKept: a file cannot have its name. The other files are kept.
        """
        kept, taken = [], []
        failures: dict[str, None] = {}  # files in the same folder may have the same failure
        for file in self._files:
            if file is without:
                continue
            try:
                new = self._named(file)
            except AnswerNotKept as error:
                failures[str(error)] = None
                continue
            kept.append(new)
            if (old := os.path.join(self._path, *file.parts)) != new.path:
                taken.append(f"{printable(old)} exists, so the answer is in {printable(new.path)}")
        if failures:
            others = f"{len(kept)} other {'file is' if len(kept) == 1 else 'files are'} kept in {printable(self._path)}"
            raise AnswerNotKept("\n".join([*taken, *failures, *([others] if kept else [])]))
        if taken:
            raise NameTaken("\n".join([*taken, "use --force to replace files"]))
        return kept

    def _named(self, file: KeptFile) -> Kept:
        file.close()
        with self._parent(file.parts) as parent:
            name = self._name(file.number, parent, file.parts[-1], "/".join(file.parts))
        return Kept(os.path.join(self._path, *file.parts[:-1], name), file.size_bytes)

    def _remove(self, file: KeptFile) -> None:
        with contextlib.suppress(AnswerNotKept):
            file.close()
        with contextlib.suppress(OSError):
            os.unlink(str(file.number), dir_fd=self._staging)

    @contextlib.contextmanager
    def _parent(self, parts: list[str]) -> Iterator[int]:
        """Open the directory for a file below the user's directory, and make it if it is missing."""
        parent = os.dup(self._root)
        try:
            for depth, part in enumerate(parts[:-1], 1):
                try:
                    child = _directory(part, parent)
                except OSError as error:
                    path = printable(os.path.join(self._path, *parts[:depth]))
                    if error.errno in (errno.ENOTDIR, errno.ELOOP):
                        why = "is a symbolic link or a file, and not a directory; remove it, or choose another -o DIR"
                        raise AnswerNotKept(f"{path} {why}") from None
                    raise _not_kept(path, error) from None
                os.close(parent)
                parent = child
            yield parent
        finally:
            os.close(parent)

    def _name(self, number: int, parent: int, wanted: str, shown: str) -> str:
        """Give a file its name, or another name if a file with this name exists. Return the name of the file."""
        staged = str(number)
        try:
            if self._replaces:
                os.rename(staged, wanted, src_dir_fd=self._staging, dst_dir_fd=parent)
                return wanted
            if self._took(staged, wanted, parent):
                return wanted
            return next(name for name in numbered(wanted) if self._took(staged, name, parent))
        except OSError as error:
            if error.errno == errno.EXDEV:
                raise AnswerNotKept(
                    f"the answer cannot be written to {printable(shown)}: its folder is on another file system than "
                    f"{printable(self._path)}; choose another -o DIR"
                ) from None
            raise _not_kept(shown, error) from None

    def _took(self, staged: str, name: str, parent: int) -> bool:
        """Give a file its name, and return True. Return False if the name is taken."""
        try:
            os.link(staged, name, src_dir_fd=self._staging, dst_dir_fd=parent, follow_symlinks=False)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # Make an empty file with this name first. Then no other process can take the name.
            try:
                os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, dir_fd=parent))
            except FileExistsError:
                return False
            try:
                os.rename(staged, name, src_dir_fd=self._staging, dst_dir_fd=parent)
            except OSError:
                os.unlink(name, dir_fd=parent)
                raise
        return True


def _directory(name: str, parent: int) -> int:
    flags = _DIRECTORY | os.O_NOFOLLOW
    try:
        return os.open(name, flags, dir_fd=parent)
    except FileNotFoundError:
        with contextlib.suppress(FileExistsError):  # another call has just made it
            os.mkdir(name, dir_fd=parent)
        return os.open(name, flags, dir_fd=parent)


def _not_kept(path: str, error: OSError) -> AnswerNotKept:
    return AnswerNotKept(f"the answer cannot be written to {printable(path)}: {error.strerror}")
