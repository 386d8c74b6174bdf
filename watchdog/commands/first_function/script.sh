#!/bin/sh
# This script runs once for each file that a caller sends. Change it, and call again: the server reads it for each call.
set -eu # end at the first command that fails: then the call fails, too

# INPUT_FILE_PATH is the file that the caller sent. It may be a text, a picture or any other file.
name=$(basename "$INPUT_FILE_PATH")

# The log shows what the script prints. A line that begins with "WARNING:" or "ERROR:" gets this level.
echo "reading $name"
if [ ! -s "$INPUT_FILE_PATH" ]; then
    echo "WARNING: the file is empty"
fi

# The answer has each file that the script leaves in TMP_OUTPUT_DIR.
{
    echo "name:     $name"
    echo "bytes:    $(wc -c < "$INPUT_FILE_PATH")"
    echo "lines:    $(wc -l < "$INPUT_FILE_PATH")"
    echo "words:    $(wc -w < "$INPUT_FILE_PATH")"
    echo "SHA-256:  $(sha256sum < "$INPUT_FILE_PATH" | cut -c 1-64)"
} > "$TMP_OUTPUT_DIR/report.txt"
