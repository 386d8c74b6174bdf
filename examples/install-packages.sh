#!/bin/sh
# Installs the Debian packages that the arguments name and that are missing, as root or with sudo. If this is not
# possible, prints what the user can do. The output of apt-get goes to build/logs. If apt-get fails, the end of it is
# shown.
set -eu
quietly=$(dirname "$0")/quietly.sh

# Succeeds if the program of a package works, even if it was installed in another way.
works() {
    case $1 in
        imagemagick) convert -version ;;
        iproute2) ip -Version ;;
        cowsay) PATH=$PATH:/usr/games cowsay moo ;;
        binutils) readelf --version ;;
        busybox-static) [ -x /bin/busybox ] && ! head -c 4096 /bin/busybox | grep -q ld-linux ;;
        fonts-dejavu-core) [ -e /usr/share/fonts/truetype/dejavu/DejaVuSans.ttf ] ;;
        coreutils) base64 --version ;;
        prometheus) command -v promtool ;;
        procps) command -v ps ;;
        python3-pip) "${PYTHON:-python3}" -m pip --version ;;
        python3-venv) "${PYTHON:-python3}" -c 'import ensurepip, venv' ;;
        apache2-bin) command -v apache2 ;;
        ceph-common) command -v ceph && command -v radosgw-admin ;;
        libnginx-mod-http-dav-ext) [ -e /usr/lib/nginx/modules/ngx_http_dav_ext_module.so ] ;;
        musl-tools) command -v musl-gcc ;;
        nodejs) node --version ;;
        nginx-light) command -v nginx ;;
        *) command -v "$1" ;;
    esac >/dev/null 2>&1
}

missing=
for package; do
    works "$package" || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

as_root=
if [ "$(id -u)" -ne 0 ]; then
    as_root=sudo
    command -v sudo >/dev/null || as_root=none
fi
if [ "$as_root" = none ] || ! command -v apt-get >/dev/null; then
    echo "these programs are missing, and this script cannot install them:$missing" >&2
    echo "install them (on Debian or Ubuntu, as root: apt-get install$missing), then try again" >&2
    exit 1
fi

echo "installing$missing with apt-get" >&2
"$quietly" apt-update $as_root apt-get update
# shellcheck disable=SC2086  # a list of words
"$quietly" apt-install $as_root env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends $missing

for package in $missing; do
    works "$package" || { echo "$package was installed, but its program still does not work" >&2; exit 1; }
done
