"""Keep the lock file ``$TMPDIR/.lock``, which shows OpenFaaS that the server is healthy.

Every script may write to the directory of the file. So a script can remove the file or replace it. If it put a FIFO
there, the server would block when it opened the FIFO. If it put a link there, the server would empty the file that the
link names. Therefore the server never opens an existing ``.lock``. It creates a new file in the same directory and
renames it to ``.lock``. The rename replaces everything except a directory.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Mapping

from ..errors import ListenError
from ..logs.setup import get_logger

log = get_logger("server")


class LockFile:
    """The lock file of one server.

    Args:
        environ: the environment of the image, for its variable ``TMPDIR``.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.path = os.path.join(environ.get("TMPDIR") or "/tmp", ".lock")
        self._is_written = False
        self._is_reported = False

    def write(self) -> None:
        """Write the file. Replace an existing file.

        Raises:
            ListenError: the file cannot be written.
        """
        found = self._found()
        try:
            self._replace()
        except OSError as error:
            raise ListenError(
                f"cannot write the lock file {self.path}: {error.strerror}; make its directory writable "
                "or set suppress_lock=true"
            ) from error
        if found is not None and not _is_lock_file(found):
            log.warning("the lock file was not a readable regular file and is replaced", path=self.path)
        self._is_written = True

    def restore(self) -> bool:
        """Write the file again if it was removed or replaced. Return whether the file exists now."""
        if not self._is_written:
            return False
        found = self._found()
        if found is not None and _is_lock_file(found):
            self._is_reported = False
            return True
        change = "removed" if found is None else "replaced"
        try:
            self._replace()
        except OSError as error:
            if not self._is_reported:
                log.warning(
                    "the lock file is gone and cannot be written again",
                    path=self.path,
                    change=change,
                    reason=error.strerror,
                )
                self._is_reported = True
            return False
        log.warning("the lock file was gone and is written again", path=self.path, change=change)
        return True

    def remove(self) -> None:
        """Remove the file, if it was written. After this, :meth:`restore` does not write it again."""
        if self._is_written:
            self._is_written = False
            with contextlib.suppress(OSError):
                os.unlink(self.path)

    def _found(self) -> os.stat_result | None:
        try:
            return os.lstat(self.path)
        except OSError:
            return None

    def _replace(self) -> None:
        new = f"{self.path}-{os.urandom(8).hex()}"
        os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o660))
        try:
            os.rename(new, self.path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(new)
            raise


def _is_lock_file(status: os.stat_result) -> bool:
    """Return whether a health check such as ``cat`` can read the file without waiting."""
    return stat.S_ISREG(status.st_mode) and bool(status.st_mode & stat.S_IRUSR)
