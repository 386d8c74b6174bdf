#!/bin/sh
# Start a container of the image, send it one call, and compare the answer.
#
#     .github/try-image.sh IMAGE
#
# The variable PORT sets the port on this machine (default: 18080). DOCKER names a program to use instead of docker.
set -eu

docker=${DOCKER:-docker}
port=${PORT:-18080}
image=$1
# shellcheck disable=SC2016  # the script of the container expands the variables
script='#!/bin/sh
tr a-z A-Z < "$INPUT_FILE_PATH" > "$TMP_OUTPUT_DIR/upper.txt"'

"$docker" run --rm "$image" --version
container=$("$docker" run --detach --network host --env "PORT=$port" --env WATCHDOG_BIND=127.0.0.1 \
    --env "SCRIPT=$(printf %s "$script" | base64 -w0)" "$image")
trap '"$docker" logs "$container" >&2 || true; "$docker" rm --force "$container" >&2' EXIT
url=http://127.0.0.1:$port
curl --silent --show-error --fail --retry 30 --retry-delay 1 --retry-all-errors --output /dev/null "$url/_/health"
answer=$(printf 'a file of the caller' | base64 | curl --silent --show-error --data @- "$url")
expected=$(printf 'A FILE OF THE CALLER' | base64)
if [ "$answer" != "$expected" ]; then
    echo "the image $image answered '$answer', not '$expected'" >&2
    exit 1
fi
echo "the image $image answered correctly"
