#!/bin/bash
# The same function as a loop, for WATCHDOG_WARM: the script starts once, and serves many calls.
gray() {
    picture=$(identify -format '%m of %w by %h pixels' "$INPUT_FILE_PATH") || return
    echo "making $picture grey"
    convert "$INPUT_FILE_PATH" -colorspace Gray "$TMP_OUTPUT_DIR/gray.jpg"
}

echo 'ready sh' >&4                   # it has loaded
while IFS= read -r call <&3; do       # a line for each call
    eval "export $call"               # the call's variables
    gray
    echo "done $?" >&4                # the exit code of the call
done
