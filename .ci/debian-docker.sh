#!/bin/sh
# Unpack the Docker of Debian 13 under build/ (daemon, client, BuildKit, compose), install nothing, start nothing, and
# print the directory.
#
#     .ci/debian-docker.sh
set -eu
cd "$(dirname "$0")/.."

root=$PWD/build/docker/root
if [ -x "$root/usr/sbin/dockerd" ]; then
    echo "$root"
    exit
fi

mkdir -p build/docker
# These programs in Go need only an old libc. The runc of Debian 13 needs a newer libc, so the runc of the machine is
# used.
.ci/unpack-packages.sh trixie "$root.unfinished" alone \
    containerd docker-buildx docker-cli docker-compose docker.io tini
rm -rf "$root"
mv "$root.unfinished" "$root"
"$root/usr/bin/docker" --version >&2
echo "$root"
