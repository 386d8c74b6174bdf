"""Reading small files that somebody else names: settings, credentials, certificates."""

from __future__ import annotations

import errno
import os
import stat


def small_file(path: str, most_bytes: int) -> bytes:
    """The content of a regular file. Raises ``OSError``, also for what is larger or would never end."""
    # Without O_NONBLOCK a FIFO would keep us waiting.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        content = file.read(most_bytes + 1)
        if len(content) > most_bytes:
            raise OSError(errno.EFBIG, f"it has over {most_bytes} bytes")
        return content
