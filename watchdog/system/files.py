"""Read small files whose paths a user chose: settings, credentials, certificates."""

from __future__ import annotations

import errno
import os
import stat

from ..errors import OutOfResources

# This process or the whole machine has reached its limit of open files.
TOO_MANY_OPEN_FILES = frozenset({errno.EMFILE, errno.ENFILE})
# After these errors, an `open` may succeed a moment later. Now there is no free descriptor, or no memory for one.
NO_DESCRIPTOR = TOO_MANY_OPEN_FILES | {errno.ENOMEM}
# The end of the message of an error because of TOO_MANY_OPEN_FILES.
MORE_DESCRIPTORS = "; raise the limit of open files (docker run --ulimit nofile) or lower max_inflight and max_queue"
_NOT_REGULAR = "it is not a regular file"


def raise_if_no_descriptor(error: OSError, failure: str) -> None:
    """Raise :class:`OutOfResources` with advice for the operator, if the error means that no descriptor is free.

    Args:
        failure: what could not be done, as the beginning of the message.
    """
    if error.errno in NO_DESCRIPTOR:
        hint = MORE_DESCRIPTORS if error.errno in TOO_MANY_OPEN_FILES else ""
        raise OutOfResources(f"{failure}: {error.strerror}{hint}") from error


def open_regular(path: str) -> int:
    """Open a regular file for reading, without waiting for anything, and return its descriptor.

    Raises:
        OSError: the file cannot be opened, or is not a regular file.
    """
    # Without O_NONBLOCK, open waits for a writer of a FIFO, or until another process gives up its lease (fcntl(2)).
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket, or a device that is not there
            raise OSError(errno.EINVAL, _NOT_REGULAR) from None
        raise
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, _NOT_REGULAR)
    except OSError:
        os.close(fd)
        raise
    return fd


def small_file(path: str, most_bytes: int) -> bytes:
    """Return the content of a regular file.

    Raises:
        OSError: the file cannot be read, is larger than ``most_bytes``, or is not a regular file.
    """
    with open(open_regular(path), "rb") as file:
        content = file.read(most_bytes + 1)
        if len(content) > most_bytes:
            raise OSError(errno.EFBIG, f"it has over {most_bytes} bytes")
        return content
