#!/bin/sh
# Unpack the Docker of Debian 13 under build/ (daemon, client, BuildKit, compose), install nothing, start nothing, and
# print the directory.
#
#     .ci/debian-docker.sh
#
# Needs apt and a Debian mirror; fails, with the reason, without them.
set -eu
cd "$(dirname "$0")/.."

root=$PWD/build/docker/root
if [ -x "$root/usr/sbin/dockerd" ]; then
    echo "$root"
    exit
fi

mirror=$(apt-get indextargets --format '$(COMPONENT) $(SITE)' 'Created-By: Packages' | sed -n '/security/d; s/^main //p' | head -n 1)
apt=$PWD/build/docker/apt
rm -rf "$root" "$root.unfinished" "$apt"
mkdir -p "$root.unfinished" "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/packages"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" > "$apt/sources.list"
# An apt of its own: no list and no package of the machine changes.
cat > "$apt/apt.conf" << END
Dir::Etc::sourcelist "$apt/sources.list";
Dir::Etc::sourceparts "-";
Dir::State::lists "$apt/lists";
Dir::State::status "/dev/null";
Dir::Cache "$apt/cache";
APT::Sandbox::User "root";
END
export APT_CONFIG="$apt/apt.conf"
{
    apt-get update
    # Programs in Go that need only an old libc. Its runc needs a newer libc, so that of the machine is used.
    cd "$apt/packages"
    apt-get download containerd docker-buildx docker-cli docker-compose docker.io tini
} >&2
for package in "$apt"/packages/*.deb; do
    dpkg-deb --extract "$package" "$root.unfinished"
done
rm -rf "$apt"
mv "$root.unfinished" "$root"
"$root/usr/bin/docker" --version >&2
echo "$root"
