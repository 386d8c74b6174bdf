#!/bin/sh
# The input is the file $INPUT_FILE_PATH. The answer has the files in $TMP_OUTPUT_DIR. If there are none, the answer is
# the printed text.
set -eu
echo "got $(wc -c < "$INPUT_FILE_PATH") bytes"
cp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/copy"
