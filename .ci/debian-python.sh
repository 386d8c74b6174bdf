#!/bin/sh
# Unpack a Python of Debian testing under build/, install nothing, and print the path of its interpreter.
#
#     .ci/debian-python.sh 3.14
#
# For a Python that this machine does not have. Needs apt and a Debian mirror; fails, with the reason, without them.
set -eu
cd "$(dirname "$0")/.."

version=$1
root=$PWD/build/python-$version
python=$root/usr/bin/python$version
if [ -x "$python" ]; then
    echo "$python"
    exit
fi

examples/install-packages.sh patchelf >&2
mirror=$(apt-get indextargets --format '$(COMPONENT) $(SITE)' 'Created-By: Packages' | sed -n '/security/d; s/^main //p' | head -n 1)
apt=$root.apt
rm -rf "$root" "$root.unfinished" "$apt"
mkdir -p "$root.unfinished" "$apt/lists/partial" "$apt/cache/archives/partial"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror testing main" > "$apt/sources.list"
# An apt of its own: no list and no package of the machine changes. With no package installed, it gets all that are needed.
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
    apt-get install --download-only --yes --no-install-recommends "python$version-venv"
} >&2
for package in "$apt"/cache/archives/*.deb; do
    dpkg-deb --extract "$package" "$root.unfinished"
done
rm -rf "$apt"

# The interpreter runs with the loader and the libraries that were unpacked: the machine's may be older.
program=$root.unfinished/usr/bin/python$version
loader=$(basename "$(patchelf --print-interpreter "$program")")
libraries=$(dirname "$(find "$root.unfinished/usr/lib" -name libc.so.6)")
inside=$root${libraries#"$root.unfinished"}
patchelf --set-interpreter "$inside/$loader" --force-rpath --set-rpath "$inside" "$program"
# Where `python -m venv` finds pip.
sed -i "s|/usr/share/python-wheels/|$root&|" "$root.unfinished/usr/lib/python$version"/_sysconfig*
mv "$root.unfinished" "$root"
"$python" -c 'import ssl, sys; print("unpacked", sys.version, ssl.OPENSSL_VERSION, file=sys.stderr)'
echo "$python"
