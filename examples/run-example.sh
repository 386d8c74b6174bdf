#!/usr/bin/env bash
# Start the server with one of the examples on a free port, send it the example's own input with curl, show the
# answer, and stop the server. This needs watchdog, curl and the example's program on PATH. `make run` provides them.
#
#   run-example.sh NAME              NAME is a folder beside this file
#   run-example.sh --packages NAME   only prints the Debian packages that contain the example's program
set -euo pipefail
examples=$(cd "$(dirname "$0")" && pwd)

# The input, how the answer is decoded, the file for it, the command that shows it, and the packages to install.
describe() {
    case $1 in
        grayify) input=photo.jpg decode='base64 -d' answer=gray.jpg show=identify packages=imagemagick ;;
        cowsay) input=message.txt decode=cat answer=cow.txt show=cat packages=cowsay ;;
        image-classification) input=digit.png decode='base64 -d' answer=digit.json show=cat packages= ;;
        plant-classification-sync) input=image3.jpg decode='base64 -d' answer=plant.json show=cat packages= ;;
        *)
            echo "there is no example $1; there are: grayify, cowsay, image-classification," \
                "plant-classification-sync" >&2
            exit 2
            ;;
    esac
}

if [ "${1:-}" = --packages ]; then
    describe "${2:-}"
    echo "$packages"
    exit
fi
name=${1:-}
describe "$name"

for program in watchdog curl; do
    command -v "$program" >/dev/null || {
        echo "$program is not on PATH; make run installs what is needed" >&2
        exit 1
    }
done

# The classifier of plants is in a container image. If it is not installed, the classifier of digits is used instead.
case $name in
    image-classification | plant-classification-sync)
        if ! command -v deepaas-predict >/dev/null; then
            "$examples/image-classification/setup.sh"
            PATH=$examples/image-classification/.venv/bin:$PATH
        fi
        ;;
esac

results=${RESULTS:-$examples/../build/run}
work=$(mktemp -d)
server=
stop() {
    if [ -n "$server" ]; then
        kill "$server" 2>/dev/null || true
        wait "$server" || true
        server=
    fi
    rm -rf "$work"
}
trap stop EXIT
trap 'exit 130' INT TERM

# The server gets its own temporary directory, because another server on this machine may use the usual one.
mkdir -p "$results" "$work/tmp"
: >"$work/log"
TMPDIR=$work/tmp watchdog serve --port 0 --bind 127.0.0.1 --metrics-port 0 --log-format json --log-level INFO \
    --service-definition "$examples/$name/function_config.yaml" --script-path "$examples/$name/script.sh" \
    2>>"$work/log" &
server=$!

port=
for _ in {1..150}; do
    port=$(sed -n '/"event": *"listening"/s/.*"port": *\([0-9]*\).*/\1/p' "$work/log")
    [ -z "$port" ] || break
    kill -0 "$server" 2>/dev/null || break
    sleep 0.1
done
if [ -z "$port" ]; then
    echo "the server did not start; its output:" >&2
    cat "$work/log" >&2
    exit 1
fi

url=http://127.0.0.1:$port/run/$name
answer=$(realpath --relative-to=. "$results")/$answer
input=$(realpath --relative-to=. "$examples/$name")/$input
echo "The server runs examples/$name/script.sh for each call. A call to it:"
echo
unpacked=" | $decode"
[ "$decode" != cat ] || unpacked=
echo "\$ base64 $input | curl --silent --show-error --data @- $url$unpacked > $answer"
if ! base64 "$input" | curl --silent --show-error --fail-with-body --data @- "$url" >"$work/answer" ||
    ! $decode <"$work/answer" >"$answer"; then
    echo "the call failed; the answer and the server's log:" >&2
    cat "$work/answer" "$work/log" >&2
    exit 1
fi
shown=("$answer")
[ "$show" != identify ] || shown=("$input" "$answer")
echo "\$ $show ${shown[*]}"
$show "${shown[@]}"
echo
stop
echo "The server is stopped; the answer is kept in $answer."
