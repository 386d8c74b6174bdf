#!/bin/sh
# Unpack a Python of Debian testing under build/, install nothing, and print the path of its interpreter.
#
#     .ci/debian-python.sh 3.14
#
# Use this for a version of Python that this machine does not have.
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
.ci/unpack-packages.sh testing "$root.unfinished" with-others "python$version-venv"

# The interpreter runs with the loader and the libraries that were unpacked, because those of the machine may be older.
program=$root.unfinished/usr/bin/python$version
loader=$(basename "$(patchelf --print-interpreter "$program")")
libraries=$(dirname "$(find "$root.unfinished/usr/lib" -name libc.so.6)")
inside=$root${libraries#"$root.unfinished"}
patchelf --set-interpreter "$inside/$loader" --force-rpath --set-rpath "$inside" "$program"
# `python -m venv` finds pip in this directory.
sed -i "s|/usr/share/python-wheels/|$root&|" "$root.unfinished/usr/lib/python$version"/_sysconfig*
rm -rf "$root"
mv "$root.unfinished" "$root"
"$python" -c 'import ssl, sys; print("unpacked", sys.version, ssl.OPENSSL_VERSION, file=sys.stderr)'
echo "$python"
