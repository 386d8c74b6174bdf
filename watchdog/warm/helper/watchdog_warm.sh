# Start a script once, and let it answer many calls of oscar-watchdog. For any POSIX shell. Copy this file into the
# image. In script.sh, define a function, prepare what it needs, and end with `serve`:
#
#   #!/bin/sh
#   . /opt/watchdog_warm.sh
#   size=$(find_size)  # once
#   call() { convert "$INPUT_FILE_PATH" -resize "$size" "$TMP_OUTPUT_DIR/small.png"; }
#   serve call        # or a command with arguments: serve python3 predict.py --fast
#
# Each call runs in a subshell, so `exit`, `cd`, `set` and new variables end with the call. The function can read all
# variables of the script, but it cannot change them for the next call. `set -e` applies inside the call, too. A call
# that fails does not end the script.
#
# The server writes a line of assignments to descriptor 3 for each call, and reads `ready sh` and `done EXIT_CODE` from
# descriptor 4. Without these descriptors (a cold run), the function runs once, with the variables of the environment.

serve() {
    if [ $# -eq 0 ]; then
        echo 'serve: name a function or a command: serve my_function' >&2
        return 2
    fi
    if ! { true <&3 && true >&4; } 2>/dev/null; then
        "$@"
        return
    fi
    case $- in *e*) _warm_errexit=-e ;; *) _warm_errexit=+e ;; esac
    set +e
    echo 'ready sh' >&4
    while IFS= read -r _warm_call <&3; do
        (
            eval "export $_warm_call" || exit
            set "$_warm_errexit"
            "$@"
        ) 3<&- 4>&-
        echo "done $?" >&4
    done
    set "$_warm_errexit"
}
