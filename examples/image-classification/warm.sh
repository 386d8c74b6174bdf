#!/bin/bash
# The same function for WATCHDOG_WARM, without a change to the model: deepaas-run starts once and keeps the model loaded,
# and curl sends each picture to it.
set -eu

# deepaas-run leaves a copy of each picture in TMPDIR. WORKER_DIR is removed when this worker ends.
export TMPDIR=$WORKER_DIR PYTHONUNBUFFERED=1

# deepaas-run listens on a free port of 127.0.0.1 (port 0). When the model is loaded, it prints the address.
exec {printed}< <(exec deepaas-run --model-name digits --listen-port 0 2>&1 3<&- 4>&-)
deepaas=$!
address=
until [ -n "$address" ]; do
    IFS= read -r line <&"$printed" || exit 1 # deepaas-run has ended; its last lines say why
    echo "$line" >&2
    if [[ $line =~ Running\ on\ ([^ ]+) ]]; then address=${BASH_REMATCH[1]}; fi
done
cat <&"$printed" >&2 3<&- 4>&- & # the rest of what it prints goes to the log, too

predict() {
    curl --silent --show-error --fail-with-body --write-out '\n' --form 'image=@-;filename=picture' \
        "$address/v2/models/digits/predict/" <"$INPUT_FILE_PATH" >"$TMP_OUTPUT_DIR/digit.json"
}

echo 'ready sh' >&4
while IFS= read -r call <&3; do
    eval "export $call"
    code=0
    predict || code=$?
    rm -f "$TMPDIR"/tmp*
    kill -0 "$deepaas" || exit 1 # without deepaas-run no call can succeed; the watchdog starts another worker
    echo "done $code" >&4
done
