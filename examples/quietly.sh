#!/bin/sh
# Run a command that prints much. Its output goes to a log file. If the command fails, this script prints the end and
# the name of the log file.
#
#   quietly.sh NAME COMMAND [ARGUMENT ...]     the log file is build/logs/NAME.log
set -eu
logs=$(cd "$(dirname "$0")/.." && pwd)/build/logs
log=$logs/$1.log
shift

mkdir -p "$logs"
echo "== $*" >"$log"
code=0
"$@" >>"$log" 2>&1 || code=$?
if [ "$code" -ne 0 ]; then
    {
        tail -n 20 "$log"
        echo "this command failed with exit code $code: $*"
        echo "its whole output is in $log"
    } >&2
fi
exit "$code"
