#!/bin/sh
# The input is a picture of a digit. The output is JSON with the five most likely digits.
set -eu

# DEEPaaS needs a name whose ending shows the type of the file. The caller chooses the name of the input. If the caller
# gives no name, the input's name has no ending.
picture="$TMP_INPUT_DIR/picture.png"
[ "$INPUT_FILE_PATH" = "$picture" ] || mv "$INPUT_FILE_PATH" "$picture"

# deepaas-predict first writes a file to the working directory, with the same name in each call. -o is a directory.
cd "$TMP_OUTPUT_DIR"
deepaas-predict -i "$picture" -o "$TMP_OUTPUT_DIR"
