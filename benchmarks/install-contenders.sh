#!/bin/sh
# Installs what the benchmark compares with, as far as that can be done here; what is missing then is named in the results.
# Debian's packages of nginx, fcgiwrap and webhook start a server of the system when they are installed, unless a policy
# forbids it: one does so for the time of the installation.
set -eu
cd "$(dirname "$0")/.."

PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
policy=/usr/sbin/policy-rc.d
packages="wrk webhook nginx fcgiwrap"

missing=
for package in $packages; do
    command -v "$package" >/dev/null || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

as_root=
[ "$(id -u)" -eq 0 ] || as_root=sudo
if [ -z "$as_root" ] || command -v sudo >/dev/null; then
    if [ ! -e "$policy" ]; then
        # shellcheck disable=SC2064  # both are as they are now
        trap "$as_root rm -f $policy" EXIT
        trap 'exit 1' INT TERM
        printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
        $as_root chmod 755 "$policy"
    fi
fi
# One at a time: one that cannot be had keeps no other out.
for package in $missing; do
    examples/install-packages.sh "$package" || echo "the benchmark goes on without $package" >&2
done
