#!/bin/sh
# The input is $INPUT_FILE_PATH; what is left in $TMP_OUTPUT_DIR is the output, or what is printed if nothing is.
set -eu
echo "got $(wc -c < "$INPUT_FILE_PATH") bytes"
cp "$INPUT_FILE_PATH" "$TMP_OUTPUT_DIR/copy"
