#!/bin/sh
# Install the programs that the benchmark compares with or measures with, if they are available. The results name missing
# programs.
# Debian's packages of nginx, fcgiwrap and webhook start a system service when they are installed, unless a policy
# forbids this. The script sets such a policy during the installation.
set -eu
cd "$(dirname "$0")/.."

PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
policy=/usr/sbin/policy-rc.d
packages="wrk webhook nginx fcgiwrap strace"

missing=
for package in $packages; do
    command -v "$package" >/dev/null || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

as_root=
[ "$(id -u)" -eq 0 ] || as_root=sudo
if [ -z "$as_root" ] || command -v sudo >/dev/null; then
    if [ ! -e "$policy" ]; then
        # shellcheck disable=SC2064  # both variables are expanded now
        trap "$as_root rm -f $policy" EXIT
        trap 'exit 1' INT TERM
        printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
        $as_root chmod 755 "$policy"
    fi
fi
# One package at a time, so that a package that is not available does not prevent the others.
for package in $missing; do
    examples/install-packages.sh "$package" || echo "the benchmark goes on without $package" >&2
done
