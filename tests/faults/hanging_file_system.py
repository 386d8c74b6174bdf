"""A file system in memory, which a separate process serves through FUSE. It hangs while that process is stopped.

::

    unshare --mount python tests/faults/hanging_file_system.py DIRECTORY PID_FILE COMMAND ARGUMENT…

mounts it at the directory, writes the pid of its process into a file, and executes the command, which sees the mount.
The messages of the kernel are defined in linux/fuse.h. Only the messages that the tests need are answered. A search for
a file with the name ``hangs`` is never answered. Each of these searches adds a byte to the file ``PID_FILE.hangs``.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import stat
import struct
import sys
from dataclasses import dataclass, field
from typing import BinaryIO

PR_SET_PDEATHSIG = 1  # linux/prctl.h
MS_PRIVATE_RECURSIVE = 1 << 18 | 1 << 14  # linux/mount.h
MOST_BYTES = 1 << 20
(LOOKUP, FORGET, GETATTR, SETATTR, MKDIR, UNLINK, RMDIR, RENAME, OPEN, READ, WRITE, STATFS, INIT, OPENDIR, READDIR) = (
    *(1, 2, 3, 4, 9, 10, 11, 12, 14, 15, 16, 17, 26, 27, 28),
)
CREATE, INTERRUPT, BATCH_FORGET, RENAME2 = 35, 36, 42, 45
NOTHING_TO_DO = {18, 20, 25, 29, 30, 34}  # RELEASE, FSYNC, FLUSH, RELEASEDIR, FSYNCDIR, ACCESS
HEADER = struct.Struct("<IIQQIIII")
SET_MODE, SET_UID, SET_GID, SET_SIZE = 1, 2, 4, 8


@dataclass
class Node:
    """A file or a directory."""

    number: int
    mode: int
    uid: int
    gid: int
    data: bytearray = field(default_factory=bytearray)
    names: dict[bytes, Node] = field(default_factory=dict)

    def attributes(self) -> bytes:
        size = len(self.data)
        times = (0,) * 6
        owner = (self.mode, 1, self.uid, self.gid, 0, 4096, 0)
        return struct.pack("<6Q10I", self.number, size, -(-size // 512), *times[:3], *times[3:], *owner)

    def entry(self) -> bytes:
        # The kernel caches neither names nor attributes, so each access asks this process, and can hang.
        return struct.pack("<4QII", self.number, 0, 0, 0, 0, 0) + self.attributes()


class FileSystem:
    def __init__(self, fd: int, hanging: BinaryIO) -> None:
        self._fd = fd
        self._hanging = hanging
        self._nodes = {1: Node(1, stat.S_IFDIR | 0o777, os.getuid(), os.getgid())}
        self._next = 2

    def serve(self) -> None:
        while True:
            try:
                message = os.read(self._fd, MOST_BYTES + (1 << 16))
            except InterruptedError:
                continue
            except OSError as error:
                if error.errno == errno.ENODEV:  # unmounted
                    return
                if error.errno == errno.ENOENT:  # the request was interrupted before it was read
                    continue
                raise
            _, operation, unique, number, uid, gid, _, _ = HEADER.unpack_from(message)
            if operation in (FORGET, BATCH_FORGET, INTERRUPT):
                continue
            if operation == LOOKUP and self._name(message[HEADER.size :]) == b"hangs":
                self._hanging.write(b"x")
                continue
            try:
                body, fault = self._answer(operation, number, uid, gid, message[HEADER.size :]), 0
            except OSError as error:
                body, fault = b"", error.errno or errno.EIO
            os.write(self._fd, struct.pack("<IiQ", 16 + len(body), -fault, unique) + body)

    def _answer(self, operation: int, number: int, uid: int, gid: int, text: bytes) -> bytes:
        if operation == INIT:
            _, minor, read_ahead, _ = struct.unpack_from("<4I", text)
            numbers = (7, min(minor, 31), read_ahead, 0, 8, 8, MOST_BYTES, 1, 0, 0)
            return struct.pack("<4I2H2I2H", *numbers) + bytes(32)
        node = self._nodes[number]
        if operation == LOOKUP:
            return self._named(node, text).entry()
        if operation in (GETATTR, SETATTR):
            if operation == SETATTR:
                self._set(node, text)
            return struct.pack("<QII", 0, 0, 0) + node.attributes()
        if operation in (OPEN, OPENDIR):
            return struct.pack("<QIi", 0, 1 if operation == OPEN else 0, 0)  # FOPEN_DIRECT_IO
        if operation == READ:
            _, at, size = struct.unpack_from("<QQI", text)
            return bytes(node.data[at : at + size])
        if operation == WRITE:
            _, at, size = struct.unpack_from("<QQI", text)
            node.data.extend(bytes(max(0, at - len(node.data))))
            node.data[at : at + size] = text[40 : 40 + size]
            return struct.pack("<II", size, 0)
        if operation == READDIR:
            return self._entries(node, *struct.unpack_from("<QQI", text)[1:])
        if operation == MKDIR:
            return self._add(node, text[8:], stat.S_IFDIR | struct.unpack_from("<I", text)[0], uid, gid).entry()
        if operation == CREATE:
            mode = stat.S_IFREG | struct.unpack_from("<II", text)[1]
            return self._add(node, text[16:], mode, uid, gid).entry() + struct.pack("<QIi", 0, 1, 0)
        if operation in (UNLINK, RMDIR):
            if operation == RMDIR and self._named(node, text).names:
                raise OSError(errno.ENOTEMPTY, "")
            del node.names[self._name(text)]
            return b""
        if operation in (RENAME, RENAME2):
            old, new, _ = text[8 if operation == RENAME else 16 :].split(b"\0", 2)
            self._nodes[struct.unpack_from("<Q", text)[0]].names[new] = self._named(node, old + b"\0")
            del node.names[old]
            return b""
        if operation == STATFS:
            return struct.pack("<5Q4I", *(1 << 20,) * 5, 4096, 255, 4096, 0) + bytes(24)
        if operation in NOTHING_TO_DO:
            return b""
        raise OSError(errno.ENOSYS, "")

    def _add(self, parent: Node, text: bytes, mode: int, uid: int, gid: int) -> Node:
        node = Node(self._next, mode, uid, gid)
        self._next += 1
        self._nodes[node.number] = parent.names[self._name(text)] = node
        return node

    def _named(self, parent: Node, text: bytes) -> Node:
        try:
            return parent.names[self._name(text)]
        except KeyError:
            raise OSError(errno.ENOENT, "") from None

    @staticmethod
    def _name(text: bytes) -> bytes:
        return text.partition(b"\0")[0]

    @staticmethod
    def _set(node: Node, text: bytes) -> None:
        valid, _, _, size = struct.unpack_from("<IIQQ", text)
        mode, _, uid, gid = struct.unpack_from("<4I", text, 68)
        if valid & SET_MODE:
            node.mode = mode
        if valid & SET_UID:
            node.uid = uid
        if valid & SET_GID:
            node.gid = gid
        if valid & SET_SIZE:
            del node.data[size:]
            node.data.extend(bytes(size - len(node.data)))

    @staticmethod
    def _entries(node: Node, at: int, size: int) -> bytes:
        found = b""
        for index, (name, each) in enumerate([*node.names.items()][at:], at + 1):
            entry = struct.pack("<QQII", each.number, index, len(name), each.mode >> 12) + name
            entry += bytes(-len(entry) % 8)
            if len(found) + len(entry) > size:
                break
            found += entry
        return found


def mount(directory: str) -> int:
    """Mount an empty file system, and return the descriptor of its requests.

    Raises:
        OSError: it cannot be mounted here.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={fd},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},allow_other"
    for arguments in (
        (b"none", b"/", None, MS_PRIVATE_RECURSIVE, None),
        (b"hanging", directory.encode(), b"fuse", 0, options.encode()),
    ):
        if libc.mount(*arguments):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), directory)
    return fd


def main() -> None:
    directory, pid_file, *command = sys.argv[1:]
    fd = mount(directory)
    parent = os.getpid()
    if pid := os.fork():
        os.close(fd)
        with open(pid_file, "w") as file:
            file.write(str(pid))
        os.execvp(command[0], command)
    # End with the command. Otherwise the kernel keeps the mount.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended already
        os._exit(0)
    os.setsid()
    with open(f"{pid_file}.hangs", "wb", buffering=0) as hanging:
        FileSystem(fd, hanging).serve()


if __name__ == "__main__":
    main()
