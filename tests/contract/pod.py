"""A container with the rights and files that the kubelet gives to a container of Knative, without a cluster.

The server is PID 1 and may be any user. It has no capabilities and cannot get any. Its root file system is read-only,
except ``/tmp``, which is in memory. Its configuration is a ConfigMap, mounted at ``/oscar/config``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from running_server import AS_PID_1

USER = 4711
_PROJECT = Path(__file__).parents[2]
# Make a new root from the directories of the old one. ``proc`` is that of the new PID namespace.
_MAKE_ROOT = """
set -eu
mount --make-rprivate /
root=$1 config=$2 size=$3 program=$4 interpreter=$5
shift 5
mount -t tmpfs -o mode=755 none "$root"
for path in /*; do
    name=${path#/}
    case $name in oscar | tmp | proc | root | home) continue ;; esac
    if [ -L "$path" ]; then cp -P "$path" "$root/$name"; continue; fi
    if [ ! -d "$path" ]; then continue; fi
    mkdir "$root/$name"
    mount --rbind "$path" "$root/$name"
    case $name in dev | sys) ;; *) mount -o remount,bind,ro "$root/$name" ;; esac
done
mkdir -p "$root/oscar/config" "$root/tmp" "$root/proc"
mount --rbind /proc "$root/proc"
mount --bind "$config" "$root/oscar/config"
mount -o remount,bind,ro "$root/oscar/config"
mount -t tmpfs -o "mode=1777,size=$size" none "$root/tmp"
# Both may be below a directory that is hidden now, or that only its owner may enter.
for path in "$program" "$interpreter"; do
    if [ -e "$root$path" ]; then continue; fi
    mkdir -p "$root$path"
    mount --rbind "$path" "$root$path"
    mount -o remount,bind,ro "$root$path"
done
mount -o remount,ro "$root"
# The directory of chroot may be missing in the PATH of a user, even of root.
exec "$(PATH=$PATH:/usr/sbin:/sbin; command -v chroot)" "$root" "$@"
"""


def prefix(directory: Path, files: Mapping[str, str], *, tmp_bytes: int, user: int = USER) -> tuple[str, ...]:
    """Return the beginning of a command. The rest of the command then runs in such a container.

    Args:
        directory: an empty directory of the host.
        files: the content of the ConfigMap, by key.
        tmp_bytes: ``sizeLimit`` of ``/tmp``.
    """
    if os.geteuid() != 0:
        pytest.skip("a pod's root file system can be made by root only: sudo make test")
    root, config = directory / "root", directory / "config"
    root.mkdir(parents=True)
    write_config_map(config, files)
    make_root = ("sh", "-c", _MAKE_ROOT, "sh", str(root), str(config), str(tmp_bytes), str(_PROJECT), sys.base_prefix)
    ids = (f"--reuid={user}", f"--regid={user}", "--clear-groups")
    # A change of the user clears the signal with which unshare kills its child, so set it again.
    rights = ("--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", "--pdeathsig=KILL")
    return (*AS_PID_1, "--mount", *make_root, "setpriv", *ids, *rights)


def write_config_map(directory: Path, files: Mapping[str, str]) -> None:
    """Write files as the kubelet does: with mode 0644, and as links to links, so that all of them change at once."""
    data = directory / "..2026_01_01_00_00_00.1"
    data.mkdir(parents=True)
    data.chmod(0o755)
    (directory / "..data").symlink_to(data.name)
    for name, text in files.items():
        (data / name).write_text(text)
        (data / name).chmod(0o644)
        (directory / name).symlink_to(f"..data/{name}")


def pid_1_of(unshare_pid: int) -> int:
    """Return the pid, outside of the namespace that ``unshare`` made, of its first process."""
    (child,) = Path(f"/proc/{unshare_pid}/task/{unshare_pid}/children").read_text().split()
    return int(child)
