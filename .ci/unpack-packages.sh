#!/bin/sh
# Unpack packages of a Debian release into a directory, with or without the packages that they need. Install nothing.
#
#     .ci/unpack-packages.sh RELEASE DIRECTORY alone|with-others PACKAGE...
#
# DIRECTORY is an absolute path. This needs apt and a Debian mirror. Without them, it fails and prints the reason.
set -eu

release=$1
directory=$2
which=$3
shift 3

mirror=$(apt-get indextargets --format '$(COMPONENT) $(SITE)' 'Created-By: Packages' | sed -n '/security/d; s/^main //p' | head -n 1)
apt=$directory.apt
rm -rf "$directory" "$apt"
mkdir -p "$directory" "$apt/lists/partial" "$apt/cache/archives/partial"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $release main" > "$apt/sources.list"
# apt gets its own directories, so no list and no package of the machine changes. With an empty status file, no package
# counts as installed, so apt downloads all packages that are needed.
cat > "$apt/apt.conf" << END
Dir::Etc::sourcelist "$apt/sources.list";
Dir::Etc::sourceparts "-";
Dir::State::lists "$apt/lists";
Dir::State::status "/dev/null";
Dir::Cache "$apt/cache";
APT::Sandbox::User "root";
END
export APT_CONFIG="$apt/apt.conf"
cd "$apt/cache/archives"
{
    apt-get update
    case $which in
        alone) apt-get download "$@" ;;
        with-others) apt-get install --download-only --yes --no-install-recommends "$@" ;;
        *)
            echo "the argument '$which' is not known; give alone or with-others" >&2
            exit 2
            ;;
    esac
} >&2
for package in *.deb; do
    dpkg-deb --extract "$package" "$directory"
done
rm -rf "$apt"
