#!/bin/sh
# The input is a picture of a digit, the output JSON with the five likeliest.
set -eu

# DEEPaaS wants a name that ends in what the file is; the input's name is the caller's, or one without an ending.
picture="$TMP_INPUT_DIR/picture.png"
[ "$INPUT_FILE_PATH" = "$picture" ] || mv "$INPUT_FILE_PATH" "$picture"

# It writes first to the working directory, under a name that all calls share; -o is a directory.
cd "$TMP_OUTPUT_DIR"
deepaas-predict -i "$picture" -o "$TMP_OUTPUT_DIR"
