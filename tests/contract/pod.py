"""A container as the kubelet makes one for Knative, without a cluster: what it may not do, and what its files are.

The server in it is PID 1, any user, without a capability and without a way to more; its root file system is read-only
but for a ``/tmp`` in memory; its configuration lies in ``/oscar/config`` as a ConfigMap is mounted there.
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
# A new root of the old one's directories. ``proc`` is that of the new PID namespace.
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
# Both may lie below what is hidden now, or what only its owner may enter.
for path in "$program" "$interpreter"; do
    if [ -e "$root$path" ]; then continue; fi
    mkdir -p "$root$path"
    mount --rbind "$path" "$root$path"
    mount -o remount,bind,ro "$root$path"
done
mount -o remount,ro "$root"
# A user's PATH, even root's, may lack the directory that has it.
exec "$(PATH=$PATH:/usr/sbin:/sbin; command -v chroot)" "$root" "$@"
"""


def prefix(directory: Path, files: Mapping[str, str], *, tmp_bytes: int, user: int = USER) -> tuple[str, ...]:
    """The beginning of a command that runs the rest of it in such a container.

    Args:
        directory: an empty one of the host.
        files: what the ConfigMap holds, by key.
        tmp_bytes: ``sizeLimit`` of ``/tmp``.
    """
    if os.geteuid() != 0:
        pytest.skip("a pod's root file system can be made by root only: sudo make test")
    root, config = directory / "root", directory / "config"
    root.mkdir(parents=True)
    write_config_map(config, files)
    make_root = ("sh", "-c", _MAKE_ROOT, "sh", str(root), str(config), str(tmp_bytes), str(_PROJECT), sys.base_prefix)
    ids = (f"--reuid={user}", f"--regid={user}", "--clear-groups")
    # A change of the user clears the signal by which unshare takes its child with it.
    rights = ("--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", "--pdeathsig=KILL")
    return (*AS_PID_1, "--mount", *make_root, "setpriv", *ids, *rights)


def write_config_map(directory: Path, files: Mapping[str, str]) -> None:
    """Files as the kubelet lays them: links to links, so that all of them change at once; mode 0644."""
    data = directory / "..2026_01_01_00_00_00.1"
    data.mkdir(parents=True)
    data.chmod(0o755)
    (directory / "..data").symlink_to(data.name)
    for name, text in files.items():
        (data / name).write_text(text)
        (data / name).chmod(0o644)
        (directory / name).symlink_to(f"..data/{name}")


def pid_1_of(unshare_pid: int) -> int:
    """The first process in the namespace that ``unshare`` made, as this process knows it."""
    (child,) = Path(f"/proc/{unshare_pid}/task/{unshare_pid}/children").read_text().split()
    return int(child)
